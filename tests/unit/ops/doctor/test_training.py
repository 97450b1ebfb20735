"""Torch as it is installed, and a step of a task, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfl_mqtt.ops.doctor import training
from hfl_mqtt.ops.doctor.findings import Verdict
from hfl_mqtt.ops.doctor.patient import load

TASK = """
import torch
from hfl_mqtt.learning.contracts import Metric

metric = Metric("rmse", higher_is_better=False, is_root=True)

def model():
    return torch.nn.Linear(1, 1)

def data(options):
    if options.get("refuse"):
        raise ValueError("no hive here")
    if "table" in options:
        x = torch.tensor(options["table"]["x"], dtype=torch.float32)[:, None]
        return (x, 3 * x), None
    x = torch.arange(1, options.get("n", 4) + 1, dtype=torch.float32)[:, None]
    return (x, 3 * x), None

def loss(output, target):
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return ((output - target) ** 2).squeeze(1)
"""
YAML = """
role: client
federation: fed1
name: cloud/a/pi-1
broker: {host: 127.0.0.1}
task: {file: task.py}
state_dir: state
"""


def write(folder: Path, data: str = "") -> Path:
    (folder / "task.py").write_text(TASK)
    path = folder / "agent.yaml"
    path.write_text(YAML + data)
    return path


def test_a_step_of_the_configured_task_is_timed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = training.check_step(load(path))
    assert found.verdict is Verdict.OK, found
    assert "task, 2 parameters" in found.text
    assert "a step of 32" in found.text
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != "__pycache__") == ["agent.yaml", "task.py"]


def test_files_are_read_into_a_window_of_its_own_and_not_into_the_agents(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("at,x\n1700000000,1\n1700000001,2\n1700000002,3\n")
    path = write(tmp_path, "data: {source: csv, path: x.csv, time: at, columns: {x: {}}, least: 2}\n")
    found = training.check_step(load(path))
    assert found.verdict is Verdict.OK, found
    assert "3 examples seen" in found.text
    assert not (tmp_path / "state").exists()


def test_a_device_without_enough_rows_from_its_sensors_is_told_how_many_it_has(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {source: mqtt, topic: sensors/x, columns: {x: x}, least: 60}\n")
    patient = load(path)
    found = training.check_rows(patient)
    assert (found.verdict, found.text) == (Verdict.WARN, "0 of 0 readings, 0 of them bad; 60 are needed")
    assert training.check_step(patient).verdict is Verdict.SKIPPED
    assert not (tmp_path / "state").exists()


def test_what_a_task_raises_is_the_finding(tmp_path: Path) -> None:
    found = training.check_step(load(write(tmp_path, "data: {refuse: true}\n")))
    assert found.verdict is Verdict.FAIL
    assert "ValueError: no hive here" in found.text


def test_an_installation_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "IMPORT_S", 0.2)
    assert training._run("import threading; threading.Event().wait()") == (None, "not imported within 0.2 s")


def test_an_installation_that_crashes_is_told_by_its_signal_and_one_that_raises_by_its_words() -> None:
    assert (
        training._run("import os; os.kill(os.getpid(), 9)")[1] == "the import was killed by signal 9: it said nothing"
    )
    assert training._run("import no_such_thing")[1] == "ModuleNotFoundError: No module named 'no_such_thing'"
    assert training._run("print('hello')") == (None, "it printed something else than was asked")
