"""A cloud that is killed, stopped, paused or drained goes on where it was; people steer it over its own broker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.ops import journal
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from tests.broker.conftest import PASSWORD
from tests.broker.processes import LIMIT_S, Program, command, hfl, until

pytestmark = pytest.mark.broker
CHILDREN = ("a", "b")
TASK = """
import os
import time
import torch
from pathlib import Path
from hfl_mqtt.learning.contracts import Metric

metric = Metric("rmse", higher_is_better=False, is_root=True)
HOLD = Path(__file__).with_name("hold")

def model():
    return torch.nn.Linear(3, 1)

def data(options):
    picked = torch.Generator().manual_seed(options["seed"])
    inputs = torch.randn(40, 3, generator=picked)
    return (inputs, inputs.sum(dim=1, keepdim=True)), (inputs, inputs.sum(dim=1, keepdim=True))

def loss(output, target):
    while HOLD.exists() and torch.is_grad_enabled():
        time.sleep(0.02)
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return (output - target).square().flatten()
"""
CLOUD = """\
role: cloud
federation: fed1
broker: {{host: 127.0.0.1, port: {port}, password_env: PASSWORD}}
task: {{file: task.py}}
rounds: {rounds}
seed: 3
evaluate: {evaluate}
wait_for: 2
state_dir: cloud
out: out
plan: {{learning_rate: {rate}, batch_size: 8}}
tiers:
  - {{quorum: 100 %, open_for: 60 s}}
"""
CLIENT = """\
role: client
federation: fed1
broker: {{host: 127.0.0.1, port: {port}, password_env: PASSWORD}}
task: {{file: task.py}}
state_dir: {name}
name: cloud/{name}
data: {{seed: {seed}}}
"""


class Tree:
    """A broker, a cloud and two devices right below it."""

    def __init__(self, folder: Path, port: int, stack: ExitStack) -> None:
        self.folder, self._port, self._stack = folder, port, stack
        (folder / "task.py").write_text(TASK)
        self.write()
        for number, name in enumerate(CHILDREN):
            (folder / f"{name}.yaml").write_text(CLIENT.format(port=port, name=name, seed=number))

    def write(self, *, rounds: int = 5, rate: float = 0.05, evaluate: bool = False) -> None:
        text = CLOUD.format(port=self._port, rounds=rounds, rate=rate, evaluate=str(evaluate).lower())
        (self.folder / "cloud.yaml").write_text(text)

    def start(self, role: str = "cloud", *more: str, name: str = "cloud") -> Program:
        program = Program(role, "--config", self.folder / f"{name}.yaml", *more)
        self._stack.callback(program.kill)
        return program

    def service(self) -> str:
        """Start the cloud as systemd does with its board, and return what it says until it ends well."""
        service = [sys.executable, "-m", "device_agents", "--config", str(self.folder / "cloud.yaml"), "--quiet"]
        done = subprocess.run(service, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start_devices(self) -> None:
        for name in CHILDREN:
            self.start("client", name=name)

    def run(self, *order: str) -> dict[str, Any]:
        done = hfl("run", *order, "--config", self.folder / "cloud.yaml", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *order: str) -> tuple[int, str]:
        done = hfl(*order, "--config", self.folder / "cloud.yaml")
        return done.returncode, done.stderr

    def hold(self, *, is_held: bool) -> None:
        """Keep the devices from training, or let them."""
        path = self.folder / "hold"
        path.touch() if is_held else path.unlink()

    def folders(self) -> list[Path]:
        out = self.folder / "out"
        return sorted(path for path in out.iterdir() if not path.is_symlink()) if out.is_dir() else []

    def notes(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The cloud's notes of this kind, of all its runs."""
        return [
            record
            for folder in self.folders()
            if (folder / "journal.jsonl").is_file()
            for record in journal.read(folder / "journal.jsonl")
            if record["event"] == event and fields.items() <= record.items()
        ]

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "latest" / "summary.json").read_text())
        return found

    def model(self) -> bytes:
        """The weights of the last result: the file but for its tags, which name the run."""
        data = (self.folder / "out" / "latest" / "model.safetensors").read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.fixture
def tree(start_broker: Callable[..., Mosquitto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    pytest.importorskip("torch")
    monkeypatch.setitem(os.environ, "PASSWORD", PASSWORD)
    monkeypatch.setattr("tests.broker.processes._ENVIRONMENT", {**os.environ, "OMP_NUM_THREADS": "1"})
    with ExitStack() as stack:
        yield Tree(tmp_path, start_broker().port, stack)


def test_a_killed_cloud_goes_on_with_its_run_and_ends_with_the_very_model_of_one_that_was_not(tree: Tree) -> None:
    tree.start_devices()
    assert tree.start().end(None)[0] == 0
    undisturbed, summary = tree.model(), tree.summary()
    assert (summary["rounds"], summary["lives"]) == (5, 1)
    cloud = tree.start()
    until(lambda: len(tree.notes("closed", round="g2")) == 2, "its second round")
    cloud.end(signal.SIGKILL)
    again = tree.start()
    again.hear("going on with the unfinished run")
    assert again.end(None)[0] == 0
    assert tree.model() == undisturbed
    summary = tree.summary()
    assert (summary["rounds"], summary["lives"], len(summary["history"])) == (5, 2, 6)
    _, folder = tree.folders()
    assert summary["run"] == folder.name
    assert all("rmse" in scores for scores in summary["history"][:5])
    runs = [note for note in tree.notes("closed") if note["run"] == folder.name]
    assert [note["round"] for note in runs] == ["g1", "g2", "g3", "g4", "g5"], "both lives, each round once"


def test_a_stopped_cloud_says_how_to_go_on_and_takes_more_rounds_but_no_other_plan(tree: Tree) -> None:
    tree.start_devices()
    tree.write(rounds=10_000)
    cloud = tree.start()
    until(lambda: tree.notes("closed", round="g1"), "its first round")
    status, _ = cloud.end(signal.SIGTERM)
    assert status == 0
    (folder,) = tree.folders()
    assert f"the run {folder.name} is not over: start this cloud again and it goes on where it was" in cloud.lines[-1]
    assert not (folder / "summary.json").exists()
    kept = tree.run("status")
    assert (kept["state"], kept["kept"]["run"]) == ("disconnected", folder.name)
    tree.write(rounds=10_000, rate=0.01)
    status, told = tree.refused("cloud")
    assert status == 2
    assert "plan.learning_rate: was 0.05, is 0.01" in told
    assert "--new" in told
    version = kept["kept"]["version"]
    tree.write(rounds=version + 2)
    assert tree.start().end(None)[0] == 0
    assert (tree.summary()["run"], tree.summary()["rounds"]) == (folder.name, version + 2)
    assert tree.run("status")["kept"] == {}
    tree.write(rounds=1, rate=0.01)
    assert tree.start().end(None)[0] == 0
    assert tree.summary()["run"] != folder.name, "the one before was over"


def test_another_run_is_begun_with_new(tree: Tree) -> None:
    tree.start_devices()
    tree.write(rounds=10_000)
    cloud = tree.start()
    until(lambda: tree.notes("closed", round="g1"), "its first round")
    cloud.end(signal.SIGKILL)
    tree.write(rounds=2)
    other = tree.start("cloud", "--new")
    assert other.end(None)[0] == 0
    _, second = tree.folders()
    assert tree.summary()["run"] == second.name
    assert tree.summary()["lives"] == 1


def test_a_service_begins_no_other_run_at_the_next_boot_unless_more_is_asked_for(tree: Tree) -> None:
    tree.start_devices()
    tree.write(rounds=1)
    assert tree.start().end(None)[0] == 0
    (folder,) = tree.folders()
    told = tree.service()
    assert f"the run {folder.name} is finished, its result lies in {folder}; nothing is begun" in told
    assert "hfl cloud --new" in told
    assert tree.folders() == [folder]
    status = tree.run("status")
    assert (status["state"], status["run"], status["phase"]) == ("disconnected", folder.name, "finished")
    assert (status["kept"], status["finished"]) == ({}, {"run": folder.name, "folder": str(folder)})
    shown = hfl("run", "status", "--config", tree.folder / "cloud.yaml").stdout
    assert f"finished run {folder.name}: its result lies in {folder}\n" in shown
    tree.write(rounds=2)
    assert tree.service() == ""
    assert tree.summary()["rounds"] == 2
    assert len(tree.folders()) == 2
    assert "finished" in tree.service()


def test_people_pause_resume_drain_and_stop_a_run(tree: Tree) -> None:
    tree.write(rounds=10_000)
    tree.hold(is_held=True)
    tree.start_devices()
    tree.start()
    until(lambda: tree.notes("opened", round="g1"), "its first round")
    paused = tree.run("pause", "--wait", "0.5")
    assert (paused["is_done"], paused["state"], paused["round"], paused["phase"]) == (False, "paused", "g1", "open")
    tree.hold(is_held=False)
    paused = tree.run("pause")
    assert (paused["is_done"], paused["state"]) == (True, "paused")
    assert tree.run("status")["state"] == "paused"
    assert not tree.notes("opened", round="g2")
    # A pause outlives the cloud.
    drained = tree.run("drain")
    assert (drained["is_done"], drained["state"]) == (True, "disconnected")
    status, told = tree.refused("run", "resume")
    assert status == 1
    (folder,) = tree.folders()
    assert f"cloud has ended: start it with hfl cloud; the run {folder.name} is paused until hfl run resume" in told
    again = tree.start()
    again.hear("cloud  paused  reason=by hand, before this start; hfl run resume lets it go on")
    until(lambda: tree.run("status")["state"] == "paused", "the paused cloud to be back")
    assert not tree.notes("opened", round="g2")
    told = hfl("run", "status", "--config", tree.folder / "cloud.yaml").stdout
    assert "cloud: paused, paused by hand; hfl run resume lets it go on\n" in told
    status, told = tree.refused("run", "stop", "--run", "another")
    assert status == 1
    assert "no run another here" in told
    resumed = tree.run("resume")
    assert (resumed["is_done"], resumed["state"]) == (True, "ready")
    until(lambda: tree.notes("closed", round="g2"), "its second round")
    stopped = tree.run("stop")
    assert stopped["is_done"]
    until(lambda: (tree.folder / "out" / "latest" / "summary.json").is_file(), "its result")
    assert tree.summary()["stopped"] == "stopped by hand"
    assert tree.summary()["lives"] == 2
    assert tree.summary()["rounds"] < 10_000


def test_who_asks_where_nobody_is_is_told_what_to_do(tree: Tree) -> None:
    status, told = tree.refused("run", "pause")
    assert status == 1
    assert "cloud has never been heard of" in told
    done = hfl("run", "status", "--config", tree.folder / "cloud.yaml")
    assert (done.returncode, done.stderr) == (1, "")
    never, nothing = done.stdout.splitlines()
    assert never == "cloud: never heard of in fed1; start it with hfl cloud"
    assert nothing.endswith("cloud: nothing has been kept there yet")


def test_the_state_folder_tells_how_a_run_stands_at_once_where_no_broker_is(tree: Tree) -> None:
    text = (tree.folder / "cloud.yaml").read_text()
    nowhere = re.sub(r"port: \d+", f"port: {free_port()}", text)
    (tree.folder / "cloud.yaml").write_text(nowhere)
    done = hfl("run", "status", "--config", tree.folder / "cloud.yaml", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert "nothing listens there" in found["broker"]
    assert found["kept"] == {}
    (tree.folder / "cloud.yaml").write_text(text)
    tree.start_devices()
    cloud = tree.start()
    until(lambda: tree.notes("closed", round="g1"), "its first round")
    cloud.end(signal.SIGKILL)
    (tree.folder / "cloud.yaml").write_text(nowhere)
    began_s = time.monotonic()
    done = hfl("run", "status", "--config", tree.folder / "cloud.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began_s < 8, "the first refusal is enough"
    (folder,) = tree.folders()
    no_broker, unfinished = done.stdout.splitlines()
    assert "nothing listens there" in no_broker
    assert unfinished.startswith(f"unfinished run {folder.name}: ")


def test_one_cloud_at_a_time(tree: Tree) -> None:
    tree.write(rounds=10_000)
    tree.start_devices()
    tree.start()
    until(lambda: tree.notes("closed", round="g1"), "its first round")
    status, told = tree.refused("cloud")
    assert status == 1
    assert "belongs to the running process" in told


def test_a_cloud_whose_output_nobody_reads_any_more_runs_to_its_result(tree: Tree) -> None:
    tree.start_devices()
    reading, writing = os.pipe()
    with subprocess.Popen(
        command("cloud", "--config", tree.folder / "cloud.yaml"), stdout=writing, stderr=subprocess.PIPE, text=True
    ) as cloud:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        _, told = cloud.communicate(timeout=LIMIT_S)
    assert (cloud.returncode, told) == (0, "")
    assert tree.summary()["rounds"] == 5
