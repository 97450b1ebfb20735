from pathlib import Path

import pytest
import torch

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.contracts import Metric
from hfl_mqtt.learning.tasks import load_task

GOOD = """
import torch
from hfl_mqtt.learning.contracts import Metric
metric = Metric("rmse", higher_is_better=False, is_root=True)
calls = []
def model():
    return torch.nn.Linear(1, 1)
def data(options):
    calls.append(options)
    x = torch.ones(options["n"], 1)
    return (x, x), None
def loss(output, target):
    return torch.nn.functional.mse_loss(output, target)
def score(output, target):
    return ((output - target) ** 2).squeeze(1)
"""


def write(folder: Path, text: str, more_import: str = "sys") -> dict[str, object]:
    path = folder / "task.py"
    path.write_text(text.replace("import torch", f"import torch, {more_import}"))
    return {"file": str(path)}


def test_a_file_is_a_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert task.metric == Metric("rmse", higher_is_better=False, is_root=True)
    assert isinstance(task.model(), torch.nn.Linear)
    assert len(task.train_data({"n": 3})[0]) == 3
    assert task.test_data({"n": 3}) is None
    assert task.central_data() == {}
    assert task.train is None
    assert task.evaluate is None
    assert task.score(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)).tolist() == [1.0, 4.0]
    assert task.loss(torch.ones(2, 1), torch.zeros(2, 1)).item() == 1.0


def test_data_is_read_once_for_training_and_held_out_data(tmp_path: Path) -> None:
    text = GOOD.replace("calls.append(options)", "calls.append(options); assert len(calls) == 1")
    task = load_task(write(tmp_path, text))
    task.test_data({"n": 3})
    assert len(task.train_data({"n": 3})[0]) == 3


def test_a_file_may_bring_loops_and_central_data_of_its_own(tmp_path: Path) -> None:
    text = GOOD + (
        "from hfl_mqtt.learning.contracts import Score, TrainResult\n"
        "def train(model, data, plan, stop):\n    return TrainResult(loss=1.0, samples=2, steps=3)\n"
        "def evaluate(model, data):\n    return Score(total=1.0, count=2)\n"
        "def central_data():\n    return {'unseen': data({'n': 4})[0]}\n"
    )
    task = load_task(write(tmp_path, text))
    assert task.train is not None
    assert task.evaluate is not None
    assert task.train(None, None, None, None).steps == 3
    assert task.evaluate(None, None).count == 2
    assert len(task.central_data()["unseen"][0]) == 4


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "hive_neighbour.py").write_text("WIDTH = 5\n")
    text = "from hive_neighbour import WIDTH\n" + GOOD.replace("Linear(1, 1)", "Linear(1, WIDTH)")
    assert load_task(write(tmp_path, text)).model().out_features == 5


def test_what_is_raised_on_import_is_told_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.py:2: the file raised ZeroDivisionError: division by zero. Correct it"):
        load_task(write(tmp_path, "x = 1\ny = x / 0\n"))


def test_a_syntax_error_is_told_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.py:2: the file raised SyntaxError"):
        load_task(write(tmp_path, "x = 1\ndef model(:\n"))


@pytest.mark.parametrize(
    ("old", "new", "call", "line", "what"),
    [
        ("torch.nn.Linear(1, 1)", "torch.nn.Linear(1, 'a')", "model", 7, "model"),
        ('options["n"], 1', 'options["m"], 1', "train_data", 10, "data"),
        ("mse_loss(output, target)", "mse_loss(output, None)", "loss", 13, "loss"),
        ("squeeze(1)", "squeeze(9)", "score", 15, "score"),
    ],
)
def test_what_is_raised_later_is_told_with_the_users_own_line(
    tmp_path: Path, old: str, new: str, call: str, line: int, what: str
) -> None:
    task = load_task(write(tmp_path, GOOD.replace(old, new)))
    ones = torch.ones(2, 1)
    arguments = {"model": (), "train_data": ({"n": 2},), "loss": (ones, ones), "score": (ones, ones)}[call]
    with pytest.raises(TaskError, match=rf"task\.py:{line}: {what}\(\) raised \w+: "):
        getattr(task, call)(*arguments)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def score", "def scored", "has no score: a task file defines model, data, loss, score, metric"),
        ('Metric("rmse", higher_is_better=False, is_root=True)', '"rmse"', "metric is a str: write metric = Metric"),
    ],
)
def test_a_file_that_lacks_something_says_what(tmp_path: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        load_task(write(tmp_path, GOOD.replace(old, new)))


def test_functions_that_return_the_wrong_thing_say_what_to_return(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"return a torch\.nn\.Module"):
        load_task(write(tmp_path, GOOD.replace("torch.nn.Linear(1, 1)", "3"))).model()
    with pytest.raises(TaskError, match=r"must return \(train, test\)"):
        load_task(write(tmp_path, GOOD.replace("(x, x), None", "[x]"))).train_data({"n": 1})


def test_a_file_that_is_not_there_says_where_a_relative_path_starts() -> None:
    with pytest.raises(TaskError, match="a relative one starts at"):
        load_task({"file": "nowhere/task.py"})


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)["file"]
    with pytest.raises(TaskError, match="no task is called"):
        load_task({"name": str(path)})


def test_a_task_must_be_chosen() -> None:
    with pytest.raises(TaskError, match="neither which `name` nor which `file`"):
        load_task({})


def test_what_is_not_found_is_told_with_one_full_stop_and_where_relative_paths_start(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD.replace("calls.append(options)", "numpy.loadtxt(options['csv'])"), "numpy"))
    with pytest.raises(TaskError) as caught:
        task.train_data({"csv": "gone.csv"})
    text = str(caught.value)
    assert text.endswith(f"gone.csv not found. Correct it there (a relative path starts at {Path.cwd()})")
