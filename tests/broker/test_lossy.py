"""Lossy coding in both directions on real processes: nothing is lost for good, whoever is killed, and all agree.

The devices' task is a user's own file that moves the model by known numbers, so what must arrive can be worked by hand.
"""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfl_mqtt.learning import residuals, store
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.protocol.wire import unpack_keyframe
from hfl_mqtt.state.vault import DATABASE, Kept
from tests.broker.federations import running_brokers, wait_for_the_result
from tests.broker.processes import until

pytestmark = pytest.mark.broker

EDGE, A = "cloud/farm-a", "cloud/farm-a/a"
#: Trainings are counted by the bytes of a file. Those of `a`, from the one in `closed` on, wait until there is `open`.
HEAD = """\
import threading
from pathlib import Path

import torch

from hfl_mqtt.learning.contracts import Metric, Score, TrainResult

HERE = Path(__file__).parent
metric = Metric("mse", higher_is_better=False)


class Readings(torch.utils.data.Dataset):
    def __init__(self, who, goal):
        self.who, self.goal = who, goal

    def __len__(self):
        return 10


def loss(output, target):
    raise AssertionError


def score(output, target):
    raise AssertionError


def count(who):
    with (HERE / f"{who}.trained").open("a") as file:
        file.write(".")
    return len((HERE / f"{who}.trained").read_text())


def wait_for_the_gate(times, stop):
    pause = threading.Event()
    while times >= int((HERE / "closed").read_text()) and not (HERE / "open").exists() and not stop():
        pause.wait(0.01)


def train(model, data, plan, stop):
    times = count(data.who)
    if data.who == "a":
        wait_for_the_gate(times, stop)
    with torch.no_grad():
        move(model["w"], data.goal, times)
    return TrainResult(loss=0.5, samples=10, steps=1)


def evaluate(model, data):
    (HERE / f"{data.who}.model").write_bytes(model["w"].detach().numpy().tobytes())
    return Score(total=float(((model["w"].detach() - data.goal) ** 2).mean()), count=1)
"""
#: The first time from 0 to 1, 2, ..., 64, and nowhere after that.
ONCE = """
def model():
    return torch.nn.ParameterDict({"w": torch.zeros(64)})


def data(options):
    readings = Readings(options["who"], torch.arange(1, 65))
    return readings, readings


def move(w, goal, times):
    if times == 1:
        w += goal
"""
#: Each time a tenth of the way to where this device wants to be. What is owed on four hops comes a few rounds later, so
#: with steps much larger than that everybody would overshoot.
STEPS = """
def model():
    return torch.nn.ParameterDict({"w": torch.randn(4096)})


def data(options):
    readings = Readings(options["who"], torch.sin(torch.arange(4096.0) * options["number"]))
    return readings, readings


def move(w, goal, times):
    w += 0.1 * (goal - w)
"""


@contextmanager
def brokers(
    directory: Path, task: str, farms: tuple[FarmPlan, ...], *tiers: Mapping[str, Any], **settings: Any
) -> Iterator[LocalFederation]:
    (directory / "task.py").write_text(HEAD + task)
    (directory / "closed").write_text("1000000")
    plan = RunPlan(farms=farms, task={"file": str(directory / "task.py")}, seed=3, tiers=tiers, **settings)
    with running_brokers(plan, directory) as federation:
        yield federation


def farm(name: str, *devices: str) -> FarmPlan:
    numbers = {"a": 1, "b": 2, "c": 3, "d": 4}
    return FarmPlan(
        name=name, devices=tuple(Device(name=one, data={"who": one, "number": numbers[one]}) for one in devices)
    )


def notes(federation: LocalFederation, node: str, event: str, **fields: object) -> list[dict[str, Any]]:
    wanted = {"node": node, "event": event, **fields}
    records = [record for path in federation.journals() for record in journal.read(path)]
    return [record for record in records if all(record.get(name) == value for name, value in wanted.items())]


def kill(federation: LocalFederation, name: str) -> None:
    federation.processes[name].send_signal(signal.SIGKILL)
    federation.processes[name].wait()


def trainings(directory: Path, who: str) -> int:
    path = directory / f"{who}.trained"
    return len(path.read_text()) if path.exists() else 0


def found(directory: Path, node: str) -> Path:
    """The one residual of a node, wherever its state lies."""
    (path,) = directory.rglob(residuals.path_of(Path(), node).name)
    return path


def owed_above(directory: Path, edge: str) -> np.ndarray[Any, Any]:
    """What an edge owes its parent, summed up, from what it has made durable; it may run meanwhile."""
    (folder,) = [path.parent for path in directory.rglob(f"{edge.replace('/', '+')}.boot")]
    database = sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro", uri=True)
    try:
        kept = Kept(database, folder, edge, set())
        layout = TensorArithmetic().layout(unpack_keyframe(kept["chain/key"]).start)
        left = [bytes(kept[key]) for key in kept if key.startswith("edge/left/")]
    finally:
        database.close()
    owed: np.ndarray[Any, Any] = sum((TensorArithmetic().decode(data, layout)["w"] for data in left), np.zeros(1))
    return owed


def model_of(federation: LocalFederation) -> np.ndarray[Any, Any]:
    weights, _ = store.load(federation.out / "model.safetensors")
    return weights["w"]


def summary_of(federation: LocalFederation) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((federation.out / "summary.json").read_text())
    return read


def test_what_was_cut_off_survives_a_killed_device_and_a_killed_edge_and_arrives_in_the_end(tmp_path: Path) -> None:
    tiers = (
        {"quorum": 1, "open_for": "120 s", "grace": "0 s", "codec": "topk(0.25)"},
        {"quorum": 1, "open_for": "60 s", "grace": "0 s", "codec": "topk(0.5)"},
    )
    with brokers(tmp_path, ONCE, (farm("farm-a", "a"),), *tiers, rounds=4) as federation:
        (tmp_path / "closed").write_text("2")
        federation.start_nodes()
        # Round one: of 1 to 64 the device says 33 to 64, of which the edge passes on 49 to 64.
        until(lambda: trainings(tmp_path, "a") == 2, "round two")
        (run,) = {note["run"] for note in notes(federation, "cloud", "run")}
        own = residuals.load(found(tmp_path, A), run, EDGE)
        above = owed_above(tmp_path, EDGE)
        assert own is not None
        assert np.flatnonzero(own["w"]).tolist() == list(range(32))
        assert np.flatnonzero(above).tolist() == list(range(32, 48))
        (device,) = federation.client_processes(federation.plan.farms[0])
        kill(federation, device)
        kill(federation, EDGE)
        (tmp_path / "open").touch()
        federation.start_edge("farm-a")
        federation.start_client(device)
        wait_for_the_result(federation)
        # Then nothing is learned any more, and 33 to 48, 17 to 32 and 1 to 16 come after.
        assert model_of(federation).tolist() == list(range(1, 65))
        assert (tmp_path / "a.model").read_bytes() == np.arange(1, 65, dtype="<f4").tobytes()
        own = residuals.load(found(tmp_path, A), run, EDGE)
        assert not own or not own["w"].any(), "nothing is owed any more"
        assert not owed_above(tmp_path, EDGE).any()
        assert summary_of(federation)["rounds"] == 4


@pytest.mark.parametrize("edge_rounds", [1, 2])
def test_one_bit_a_weight_both_ways_and_a_killed_edge_leave_all_with_the_clouds_model(
    tmp_path: Path, edge_rounds: int
) -> None:
    tiers = (
        {"quorum": 2, "open_for": "120 s", "codec": "rot1", "downlink": "rot1"},
        {"quorum": 2, "open_for": "60 s", "rounds": edge_rounds, "codec": "rot1", "downlink": "rot1"},
    )
    farms = farm("farm-a", "a", "b"), farm("farm-b", "c", "d")
    with brokers(tmp_path, STEPS, farms, *tiers, rounds=16 // edge_rounds) as federation:
        (tmp_path / "closed").write_text("5")
        federation.start_nodes()
        until(lambda: trainings(tmp_path, "a") == 5, "a to train a fifth time")
        kill(federation, EDGE)
        federation.start_edge("farm-a")
        until(lambda: len(notes(federation, "cloud", "joined", sender=EDGE)) == 2, "the edge to be back")
        (tmp_path / "open").touch()
        wait_for_the_result(federation)

        (run,) = {note["run"] for note in notes(federation, "cloud", "run")}
        learned = model_of(federation)
        models = [np.frombuffer((tmp_path / f"{one}.model").read_bytes(), dtype="<f4") for one in "abcd"]
        assert models[0].tobytes() == models[1].tobytes()
        assert models[2].tobytes() == models[3].tobytes()
        for model in models:
            if edge_rounds == 1:  # the cloud's deltas came through as they were
                assert model.tobytes() == learned.tobytes()
            # Where an edge coded deltas of its own between its rounds, it still owes a part of them.
            assert np.linalg.norm(model - learned) < 0.5 * np.linalg.norm(learned)
        for edge in ("cloud/farm-a", "cloud/farm-b"):
            assert 0 < np.abs(owed_above(tmp_path, edge)).max() < 10
        for path in federation.plan.clients:
            owed = residuals.load(found(tmp_path, path), run, path.rpartition("/")[0])
            assert owed is not None, path
            assert 0 < np.abs(owed["w"]).max() < 10
        for note in notes(federation, "cloud", "accepted"):
            assert note.get("kind") == "evaluate" or note["bytes"] < 4096 / 8 * 1.1
        goal = np.mean([np.sin(np.arange(4096, dtype="f4") * number) for number in (1, 2, 3, 4)], axis=0)
        # fp32 leaves 0.9^16 = 0.19 of the way; at the start a model of N(0, 1) is three times |goal| away.
        assert np.linalg.norm(learned - goal) < 0.8 * np.linalg.norm(goal)
        assert summary_of(federation)["rounds"] == 16 // edge_rounds
        assert {note["accepted"] for note in notes(federation, "cloud", "closed")} == {2}
        for process in federation.processes:
            assert "Traceback" not in federation.log_path(process).read_text(), process


def test_a_run_stops_when_a_model_scores_as_well_as_was_wanted(tmp_path: Path) -> None:
    tiers = {"quorum": 1, "open_for": "120 s"}, {"quorum": 2, "open_for": "60 s", "codec": "auto"}
    stop = {"stop": {"target": 0.8}}
    with brokers(tmp_path, STEPS, (farm("farm-a", "a", "b"),), *tiers, rounds=100, cloud=stop) as federation:
        federation.start_nodes()
        wait_for_the_result(federation)
        # Seen a round later: every round scores the model that it starts from.
        (told,) = notes(federation, "cloud", "stopping")
        rounds, history = summary_of(federation)["rounds"], summary_of(federation)["history"]
        reached = next(version for version, scores in enumerate(history) if scores["mse"] <= 0.8)
        assert 0 < reached < rounds == told["version"] == reached + 1 < 20
        assert told["reason"] == f"mse {history[reached]['mse']:.4g} of version {reached} reaches the target 0.8"
        assert len(history) == rounds + 1
        assert history[rounds]["mse"] <= 0.8, "the last model was scored too"
        assert (tmp_path / "a.model").read_bytes() == model_of(federation).tobytes()
