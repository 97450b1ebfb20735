"""The operator's guide is a contract: each of its commands that needs no hardware is run here, in its order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hfl_mqtt.ops.mosquitto import free_ports

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh ?(\w*)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
#: The commands, each with where it runs.
COMMANDS = [(where, line) for where, text in BLOCKS for line in text.splitlines() if line.strip()]
FIRST_PORT = 28800
LIMIT_S = 240.0
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
}


class Shell:
    """One after another, as a person types them; `cd` holds for those after it."""

    def __init__(self, folder: Path, ports: range) -> None:
        self.folder, self._ports = folder, ports

    def own(self, line: str) -> str:
        """Return a command with ports that are free here in place of the guide's."""
        return re.sub(r"\b288(\d\d)\b", lambda found: str(self._ports[int(found[1])]), line)

    def run(self, line: str) -> str:
        """Run a command to its end, which must be a good one; what it printed."""
        if line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
            return ""
        done = subprocess.run(
            ["bash", "-c", self.own(line)],  # noqa: S607
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def terminal(self, line: str, is_up: str) -> Iterator[list[str]]:
        """Run a command in a terminal of its own, until it says that it is up; end it with Ctrl-C."""
        program = subprocess.Popen(
            ["bash", "-c", f"exec {self.own(line)}"],  # noqa: S607
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said: list[str] = []
        heard = threading.Event()

        def read() -> None:
            assert program.stdout is not None
            with program.stdout as stream:
                for text in stream:
                    said.append(text)
                    if is_up in text:
                        heard.set()
            heard.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            assert heard.wait(LIMIT_S), said
            assert any(is_up in text for text in said), said
            yield said
        finally:
            if program.poll() is None:
                program.send_signal(signal.SIGINT)
            program.wait(LIMIT_S)
            reader.join(LIMIT_S)


def free_range(count: int) -> range:
    """Return neighbouring ports that are free."""
    for first in free_ports(50):
        ports = range(first, first + count)
        try:
            with ExitStack() as sockets:
                for port in ports:
                    sockets.enter_context(socket.create_server(("127.0.0.1", port)))
        except (OSError, OverflowError):
            continue
        return ports
    raise AssertionError(f"no {count} free ports in a row")


def test_every_block_says_where_its_commands_run() -> None:
    assert {where for where, _ in COMMANDS} == {"home", "terminal", "board"}
    assert GUIDE.count("```") == 2 * len(BLOCKS)


def test_from_nothing_to_a_trained_model_are_at_most_eight_commands() -> None:
    needed = [line for where, line in COMMANDS if where in ("home", "terminal")]
    assert needed[0].startswith("hfl fleet init")
    assert needed.index("hfl cloud --config local/cloud/agent.yaml") + 1 <= 8


@pytest.mark.parametrize("link", sorted(set(re.findall(r"`([\w./-]+\.(?:md|py|sh))`", GUIDE))))
def test_every_file_that_the_guide_names_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_each_command_of_the_guide_that_needs_no_board_does_what_it_says(tmp_path: Path) -> None:
    shell = Shell(tmp_path, free_range(20))
    printed: dict[str, str] = {}
    began_s, seconds = time.monotonic(), 0.0
    with ExitStack() as terminals:
        for where, line in COMMANDS:
            if where == "terminal":
                terminals.enter_context(shell.terminal(line, "Up: 4 brokers, 3 edges, 12 devices"))
            elif where == "home":
                printed[line] = shell.run(line)
                if line.startswith("hfl cloud "):
                    seconds = time.monotonic() - began_s
    sys.stdout.write(f"from nothing to a trained model: {seconds:.1f} s\n")
    said = {line.removeprefix("hfl ").partition(" --")[0]: text for line, text in printed.items()}
    assert "4 brokers, 16 bundles" in said["fleet render"]
    assert re.search(r"5 rounds in .* rmse 0\.\d+; the model lies in", said["cloud"])
    assert len(re.findall(r"pi-\d +ready", said["watch -f orchard"])) == 12
    assert " fail" not in said["doctor"]
    assert "node.key" not in said["tar"].splitlines()
    assert "node.crt" in said["tar"].splitlines()
    assert "revoked    cloud/farm-c/pi-4" in said["fleet revoke cloud/farm-c/pi-4"]
    assert "All is as the site file says." in said["fleet status"]
