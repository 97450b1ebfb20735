"""Flower's processes, the relay that counts before its server, and what came of a run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.flower.environment import NAME
from benchmarks.flower.measured import Marks, Peaks, Worked, between, descendants
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import children
from hfl_mqtt.ops.mosquitto import free_ports
from hfl_mqtt.ops.relay import Relay

APP = Path(__file__).parent / "peer"
HOST = "127.0.0.1"
LIMIT_S = 150.0
START_S = 60.0
STOP_S = 5.0
_APP = """\
[project]
name = "peer"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["{name}"]

[tool.flwr.app]
publisher = "benchmarks"

[tool.flwr.app.components]
serverapp = "peer.deployed:server"
clientapp = "peer.deployed:client"

[tool.flwr.app.config]
clients = {clients}
"""
_PLACE = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{host}:{port}"\ninsecure = true\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Flower:
    """How Flower is run.

    Attributes:
        home: its virtual environment.
        digits: the folder with each client's data.
        clients: how many.
        is_deployed: a SuperLink and SuperNodes; else the deprecated server and clients of one process each.
    """

    home: Path
    digits: Path
    clients: int
    is_deployed: bool

    def run(self, rounds: int, *, is_idle: bool) -> Worked:
        """Run from start to end; where it is idle, no relay stands between.

        Raises:
            HflError: a process failed, or it took longer than `LIMIT_S`.
        """
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-peers-")))
            shutil.copytree(APP, directory / "peer", ignore=shutil.ignore_patterns("__pycache__"))
            marks = stack.enter_context(Marks())
            [port] = free_ports(1, HOST)
            near = port
            if not is_idle:
                relay = stack.enter_context(Relay(HOST, HOST, port))
                marks.relayed, near = lambda: (relay.up_bytes, relay.down_bytes), relay.port
            started = _Started(self, directory, self._environment(directory, marks.port, rounds, is_idle))
            stack.callback(started.stop)
            started.start(port, near)
            peaks, give_up_s = Peaks(), time.monotonic() + LIMIT_S
            while len(marks.take("round")) <= rounds:
                started.check()
                if time.monotonic() > give_up_s:
                    raise HflError(f"Flower did not end {rounds} rounds in {LIMIT_S:g} s{started.tail()}")
                peaks.look(started.roots())
                time.sleep(0.02)
            return self._worked(marks, peaks)

    def _worked(self, marks: Marks, peaks: Peaks) -> Worked:
        ends = marks.take("round")
        # The first round of long-lived processes waits for them to start; the deployed ones are new in every round.
        ends = ends if self.is_deployed else ends[1:]
        share = (len(ends) - 1) * self.clients
        clients_mb = [mb for name, mb in peaks.mb.items() if name != "server"]
        return Worked(
            rounds=between([mark["at_s"] for mark in ends]),
            trained=marks.spans(),
            up_bytes=(ends[-1]["up"] - ends[0]["up"]) / share,
            down_bytes=(ends[-1]["down"] - ends[0]["down"]) / share,
            peak_mb={"server": peaks.mb["server"], "client": max(clients_mb)},
        )

    def _environment(self, directory: Path, marks_port: int, rounds: int, is_idle: bool) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(directory),
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(directory / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PEER_DATA": str(self.digits),
            "PEER_MARKS": str(marks_port),
            "PEER_ROUNDS": str(rounds),
            "PEER_IDLE": "1" if is_idle else "0",
        }


class _Started:
    """The processes of one run."""

    def __init__(self, flower: Flower, directory: Path, environment: dict[str, str]) -> None:
        self._flower, self._directory, self._environment = flower, directory, environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, port: int, near: int) -> None:
        """Start the server on `port` and clients that connect to `near`, and where it needs that the run."""
        if self._flower.is_deployed:
            self._deploy(port, near)
            return
        python = str(self._flower.home / "bin" / "python")
        clients = self._flower.clients
        self._start("server", [python, "-m", "peer.legacy", "server", str(port), str(clients)])
        self._wait_for(port)
        for index in range(clients):
            self._start(f"client-{index}", [python, "-m", "peer.legacy", "client", str(near), str(index)])

    def roots(self) -> dict[str, int]:
        """Return the processes by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def check(self) -> None:
        """Raise where one has failed."""
        for name, process in self._processes.items():
            if process.poll():
                raise HflError(f"Flower's {name} failed{children.log_tail(self._log(name))}")

    def tail(self) -> str:
        """Return the end of the server's log."""
        return children.log_tail(self._log("server"))

    def stop(self) -> None:
        """End them all, with what they started."""
        left = descendants([process.pid for process in self._processes.values()])
        children.stop(list(self._processes.values()), STOP_S)
        for process in left:
            if process.is_running():
                process.kill()

    def _deploy(self, port: int, near: int) -> None:
        flower, directory = self._flower, self._directory
        (directory / "pyproject.toml").write_text(_APP.format(name=NAME, clients=flower.clients))
        (directory / "home").mkdir()
        (directory / "home" / "config.toml").write_text(_PLACE.format(host=HOST, port=port))
        programs = flower.home / "bin"
        command = [str(programs / "flower-superlink"), "--insecure", "--host", HOST, "--port", str(port)]
        self._start("server", [*command, "--disable-runtime-dependency-installation"])
        self._wait_for(port)
        for index, own_port in enumerate(free_ports(flower.clients, HOST)):
            command = [str(programs / "flower-supernode"), "--insecure", "--superlink", f"{HOST}:{near}"]
            self._start(f"client-{index}", [*command, "--port", str(own_port), "--node-config", f"index={index}"])
        submit = [str(programs / "flwr"), "run", str(directory), "here"]
        done = subprocess.run(
            submit, env=self._environment, capture_output=True, text=True, timeout=START_S, check=False
        )
        if done.returncode:
            raise HflError(f"Flower does not take the run: {(done.stderr or done.stdout).strip()[-500:]}")

    def _wait_for(self, port: int) -> None:
        """Wait until the server listens: a client that finds nobody fails."""
        give_up_s = time.monotonic() + START_S
        while True:
            with suppress(OSError), socket.create_connection((HOST, port)):
                return
            self.check()
            if time.monotonic() > give_up_s:
                raise HflError(f"Flower's server does not listen after {START_S:g} s{self.tail()}")
            time.sleep(0.1)

    def _start(self, name: str, command: list[str]) -> None:
        self._processes[name] = children.start(command, self._log(name), self._environment)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
