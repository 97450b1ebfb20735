"""The agent's command line, and what it says of itself while nobody listens."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from device_agents.__main__ import _parser
from hfl_mqtt.config.models import ClientConfig, CloudConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.roles import runs
from hfl_mqtt.roles.client import _publish_vitals, make
from hfl_mqtt.roles.shell import Shell
from hfl_mqtt.rounds.actions import Counted, Move, Note, Persist, RunOver, Save, Work
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.state.vault import Vault
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink

ROOT = Path(__file__).resolve().parents[3]


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "device_agents", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_vitals_are_printed_once_as_json() -> None:
    done = agent("--vitals")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["board"] in ("generic", "raspberry_pi", "jetson")
    assert "core" in said["hardware"]
    assert 0 <= said["cpu_percent"] <= 100
    assert 0 < said["memory_percent"] < 100


def test_a_wrong_file_ends_the_agent_with_one_line_and_the_exit_code_of_configuration(tmp_path: Path) -> None:
    done = agent("--config", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"device_agents: {tmp_path / 'none.yaml'}: no such file\n"


@pytest.mark.parametrize("text", ["0 s", "soon", "-5"])
def test_a_time_between_vitals_that_cannot_be_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["--config", "x", f"--every={text}"])
    assert "--every: must be" in capsys.readouterr().err


def test_help_has_an_example() -> None:
    assert "python -m device_agents --config configs/client.yaml" in agent("--help").stdout


def test_the_yaml_of_the_manual_is_a_clients(tmp_path: Path) -> None:
    manual = (ROOT / "device_agents" / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "agent.yaml"
    path.write_text(manual.partition("```yaml\n")[2].partition("```")[0])
    config = load_role(path, ClientConfig)
    assert config.devices[0].name == "cloud/farm-a/pi-1"
    assert config.may_train is not None


def test_the_options_of_the_manual_are_those_of_the_script() -> None:
    manual = (ROOT / "device_agents" / "README.md").read_text(encoding="utf-8")
    told = subprocess.run(
        [ROOT / "device_agents" / "install.sh", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    named = {word for line in manual.splitlines() if "install.sh" in line for word in re.findall(r" (--[a-z-]+)", line)}
    assert named
    assert {option for option in named if f"{option} " not in told and f"{option}\n" not in told} == set()


def test_a_file_of_no_role_that_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("role: demo\n")
    done = agent("--config", str(tmp_path / "demo.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "an agent is a client, an edge or a cloud" in done.stderr


def test_an_edge_is_a_service_too_and_ready_without_a_broker(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text(
        "role: edge\nfederation: fed1\nname: cloud/farm-a\nbroker: {host: 127.0.0.1, port: 1}\nstate_dir: state\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [sys.executable, "-m", "device_agents", "--config", str(tmp_path / "edge.yaml"), "--quiet"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            try:
                assert manager.recv(100) == b"READY=1\nWATCHDOG=1"
            finally:
                process.terminate()
        assert process.returncode == 0


CLOUD = """\
role: cloud
federation: fed1
broker: {{host: 127.0.0.1, port: 1}}
task: {{name: soil-moisture}}
rounds: {rounds}
wait_at_most: 1 s
state_dir: state
"""


def test_a_cloud_whose_run_is_finished_says_so_as_a_service_and_begins_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cloud.yaml"
    path.write_text(CLOUD.format(rounds=5))
    config = load_role(path, CloudConfig)
    vault = Vault(config.state_path())
    runs.end(vault, "cloud", runs.Finished(run="r1", folder="/srv/out/r1", asked=runs.asked(config)))
    vault.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [sys.executable, "-m", "device_agents", "--config", str(path), "--quiet"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == (
            "device_agents: the run r1 is finished, its result lies in /srv/out/r1; nothing is begun: another run "
            "begins with hfl cloud --new, or when the YAML asks for more rounds or for something else\n"
        )
        assert manager.recv(100) == b"READY=1\nWATCHDOG=1", "who ends before that has failed, and is started again"
    assert not (tmp_path / "state" / "out").exists()


def test_rules_that_nobody_would_keep_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text((ROOT / "configs" / "client.yaml").read_text() + "\nmay_train: {mains: true}\n")
    with pytest.raises(ConfigError, match="python -m device_agents"):
        make(load_role(path, ClientConfig), lambda _path, _note: None)


def test_an_idle_agent_loads_neither_numpy_nor_torch_nor_a_command_line_framework() -> None:
    script = (
        "import sys, device_agents.__main__, hfl_mqtt.config.models, hfl_mqtt.ops.serve, hfl_mqtt.roles.client;"
        "from hfl_mqtt.config.roles import load_role;"
        "load_role('configs/client.yaml', hfl_mqtt.config.models.ClientConfig);"
        "print(sorted({'numpy', 'torch', 'safetensors', 'zstandard', 'typer', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


class Board:
    """A world in which only vitals happen."""

    def vitals(self, node: Node) -> Mapping[str, int | float | str | None]:  # noqa: ARG002
        return {"cpu_percent": 50.0}

    def work(self, node: Node, work: Work) -> None: ...
    def cancel(self, node: Node, work_id: str) -> None: ...
    def counted(self, node: Node, counted: Counted) -> None: ...
    def persist(self, node: Node, changes: Persist) -> None: ...
    def move(self, node: Node, move: Move) -> None: ...
    def reconnect(self, node: Node) -> None: ...
    def save(self, node: Node, save: Save) -> None: ...
    def record(self, node: Node, entry: Note) -> None: ...
    def over(self, node: Node, end: RunOver) -> None: ...


def test_vitals_do_not_pile_up_while_the_broker_is_away() -> None:
    broker = MemoryBroker()
    path = "cloud/farm-a/pi-1"
    link = MemoryLink(broker, path, [], lambda _event: None)
    shell = Shell(ClientNode(path=path, boot=1, info=Info(role="client", boot=1)), "fed1", link, Board())
    shell.start(0.0)
    broker.deliver_due(0.0)
    link.cut()
    for _ in range(3):
        _publish_vitals(shell)
    assert link.pending == 1
    link.restore()
    broker.deliver_due(0.0)
    _publish_vitals(shell)
    broker.deliver_due(0.0)
    (frame,) = broker.retained()
    assert decode(frame)[0].values == {"cpu_percent": 50.0}  # type: ignore[union-attr]
