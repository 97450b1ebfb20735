import doctest
import sys

import numpy as np
import pytest
import torch

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning import sgd, tasks
from hfl_mqtt.learning.contracts import Metric, Options, Score, Task, TrainResult, Weights
from hfl_mqtt.learning.torchvision_ops import load_torchvision
from hfl_mqtt.protocol.messages import Plan


class Line(Task):
    """y = w x + b, with squared error."""

    metric = Metric("rmse", higher_is_better=False, is_root=True)

    @classmethod
    def make(cls, options: Options) -> Task:  # noqa: ARG003
        return cls()

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def train_data(self, data: Options) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        return torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])

    def test_data(self, data: Options) -> None:  # noqa: ARG002
        return None

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(output, target)

    def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target) ** 2).squeeze(1)


def line_at(w: float, b: float) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    sgd.load_(model, {"weight": np.array([[w]], np.float32), "bias": np.array([b], np.float32)})
    return model


def test_an_epoch_visits_every_example_once_and_keeps_the_short_last_batch() -> None:
    order = list(sgd.batches(7, 3, seed=1, epochs=2))
    assert [batch.size for batch in order] == [3, 3, 1, 3, 3, 1]
    assert sorted(np.concatenate(order[:3])) == sorted(np.concatenate(order[3:])) == list(range(7))


def test_the_order_of_an_epoch_is_what_the_documentation_says() -> None:
    first, second = sgd.batches(4, 4, seed=9, epochs=2)
    assert first.tolist() == np.random.default_rng([9, 0]).permutation(4).tolist()
    assert second.tolist() == np.random.default_rng([9, 1]).permutation(4).tolist()


def test_steps_are_the_beginning_of_the_epochs() -> None:
    by_steps = [batch.tolist() for batch in sgd.batches(5, 2, seed=3, steps=4)]
    by_epochs = [batch.tolist() for batch in sgd.batches(5, 2, seed=3, epochs=2)]
    assert by_steps == by_epochs[:4]


def test_the_examples_in_the_docstrings_are_true() -> None:
    for module in (sgd, tasks):
        assert doctest.testmod(module).failed == 0


def test_no_examples_give_no_batches() -> None:
    assert list(sgd.batches(0, 2, seed=3, steps=4)) == []


def test_one_full_batch_moves_the_line_as_worked_by_hand() -> None:
    # At w = b = 0 the errors are -2 and -4: loss (4 + 16) / 2 = 10, dw = 2 * mean(-2 * 1, -4 * 2) = -10, db = -6.
    model = line_at(0, 0)
    task = Line()
    plan = Plan(task="line", steps=1, epochs=None, batch_size=2, learning_rate=0.1)
    result = sgd.train(task, model, task.train_data({}), plan, seed=0)
    weights = sgd.weights_of(model)
    assert result == TrainResult(loss=10.0, samples=2, steps=1)
    assert weights["weight"].item() == pytest.approx(1.0)
    assert weights["bias"].item() == pytest.approx(0.6)


def test_samples_are_counted_once_whatever_the_epochs_and_not_beyond_the_steps() -> None:
    task, data = Line(), (torch.zeros(10, 1), torch.zeros(10, 1))
    two_epochs = sgd.train(task, line_at(0, 0), data, Plan(task="line", epochs=2, batch_size=4), seed=0)
    one_step = sgd.train(task, line_at(0, 0), data, Plan(task="line", epochs=None, steps=1, batch_size=4), seed=0)
    assert (two_epochs.samples, two_epochs.steps) == (10, 6)
    assert (one_step.samples, one_step.steps) == (4, 1)


def test_a_plain_loop_over_the_documented_batches_gives_the_same_weights() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(11, 1)).astype(np.float32))
    y = 3 * x - 1
    trained, plain = line_at(0.5, 0), line_at(0.5, 0)
    plan = Plan(task="line", epochs=3, batch_size=4, learning_rate=0.05, momentum=0.9, weight_decay=0.01)
    sgd.train(Line(), trained, (x, y), plan, seed=42)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(3):
        order = np.random.default_rng([42, epoch]).permutation(11)
        for start in range(0, 11, 4):
            index = order[start : start + 4]
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(plain(x[index]), y[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, array in sgd.weights_of(plain).items():
        assert array.tobytes() == sgd.weights_of(trained)[name].tobytes()


def test_a_map_style_data_set_trains_as_its_tensors_do() -> None:
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    plan = Plan(task="line", epochs=2, batch_size=2)
    results = []
    for data in ((x, y), torch.utils.data.TensorDataset(x, y), list(zip(x, y, strict=True))):
        model = line_at(0, 0)
        sgd.train(Line(), model, data, plan, seed=5)
        results.append(sgd.weights_of(model)["weight"].tobytes())
    assert results[0] == results[1] == results[2]


def test_a_score_is_a_sum_over_examples() -> None:
    # Zero everywhere: squared errors 4 and 16.
    assert sgd.evaluate(Line(), line_at(0, 0), Line().train_data({})) == Score(total=20.0, count=2)


def test_a_score_of_one_number_per_batch_is_refused() -> None:
    class Wrong(Line):
        def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return ((output - target) ** 2).mean()

    with pytest.raises(TaskError, match="one number for each"):
        sgd.evaluate(Wrong(), line_at(0, 0), Line().train_data({}))


def test_a_loss_per_example_is_refused() -> None:
    class Wrong(Line):
        def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (output - target) ** 2

    with pytest.raises(TaskError, match=r"loss gave the shape \(2, 1\): return one number"):
        sgd.train(Wrong(), line_at(0, 0), Line().train_data({}), Plan(task="line"), seed=0)


def test_a_diverging_loss_says_at_which_step_and_what_to_do() -> None:
    plan = Plan(task="line", epochs=None, steps=500, batch_size=2, learning_rate=1000.0)
    with pytest.raises(TaskError, match=r"training loss is (inf|nan) at step \d+: lower the learning rate"):
        sgd.train(Line(), line_at(0, 0), Line().train_data({}), plan, seed=0)


def test_weights_that_are_not_finite_after_the_last_step_are_refused() -> None:
    plan = Plan(task="line", epochs=None, steps=1, batch_size=2)

    class Poisoned(Line):
        def train(self, model: torch.nn.Module, *_: object) -> TrainResult:
            torch.nn.init.constant_(model.get_parameter("bias"), float("nan"))
            return TrainResult(loss=0.0, samples=2, steps=1)

    with pytest.raises(TaskError, match="bias is not finite"):
        sgd.train(Poisoned(), line_at(0, 0), Line().train_data({}), plan, seed=0)


def test_no_examples_are_no_training() -> None:
    with pytest.raises(TaskError, match="no training examples"):
        sgd.train(Line(), line_at(0, 0), (torch.zeros(0, 1), torch.zeros(0, 1)), Plan(task="line"), seed=0)


def test_training_stops_between_batches() -> None:
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(sgd.Cancelled):
        sgd.train(Line(), line_at(0, 0), Line().train_data({}), Plan(task="line", epochs=100), seed=0, stop=stop)
    assert len(asked) == 3


def test_buffers_travel_with_parameters_and_keep_their_dtype() -> None:
    model = torch.nn.BatchNorm1d(2)
    weights = sgd.weights_of(model)
    assert list(weights) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert weights["num_batches_tracked"].dtype == np.int64
    assert weights["num_batches_tracked"].shape == ()
    weights["num_batches_tracked"] = np.array(7, np.int64)
    sgd.load_(model, weights)
    assert sgd.weights_of(model)["num_batches_tracked"] == 7


def test_weights_are_a_copy() -> None:
    model = line_at(1, 0)
    before = sgd.weights_of(model)
    sgd.load_(model, {"weight": np.array([[5]], np.float32), "bias": np.array([0], np.float32)})
    assert before["weight"].item() == 1


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"weight": np.zeros((1, 1), np.float32)}, "bias is only in this task's model"),
        ({"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32)}, r"weight was sent as .*\(1, 2\)"),
        ({"weight": np.zeros((1, 1)), "bias": np.zeros(1)}, "float64"),
    ],
)
def test_a_foreign_model_is_refused_by_its_first_difference(weights: Weights, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        sgd.load_(torch.nn.Linear(1, 1), weights)


def test_a_device_that_is_not_there_is_refused_with_the_remedy() -> None:
    assert sgd.pick_device("cpu") == "cpu"
    with pytest.raises(TaskError, match="set device to cpu"):
        sgd.pick_device("nonsense")


def test_torchvision_comes_with_or_without_its_operators() -> None:
    models = load_torchvision("torchvision.models")
    assert models.resnet18().fc.out_features == 1000
    assert sys.modules["torchvision"].datasets is not None
