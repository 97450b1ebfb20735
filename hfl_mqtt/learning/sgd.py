"""The torch loops: train with SGD, evaluate, and a model's tensors in and out as numpy arrays.

The order of batches is a pure function of (samples, batch size, seed), so that anyone can rebuild a client's training
in ten lines and compare to the last bit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset, default_collate

from hfl_mqtt.errors import HflError, TaskError
from hfl_mqtt.learning.contracts import Score, Task, TrainResult, Weights
from hfl_mqtt.protocol.messages import Plan

Stop = Callable[[], bool]
#: Evaluation keeps no gradients, so its batches may be larger than training's.
EVALUATION_BATCH = 256


class Cancelled(HflError):
    """The work was given up because `stop()` said so."""


def never() -> bool:
    """Be the `stop` of work that nobody cancels."""
    return False


def batches(
    samples: int, batch_size: int, seed: int, *, epochs: int | None = None, steps: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of each batch, for whole `epochs` or for a number of `steps`.

    Epoch `e`, counted from 0, walks through `numpy.random.default_rng([seed, e]).permutation(samples)` in slices of
    `batch_size`; a last short one is kept. Steps walk through as many epochs as they need.

    >>> [batch.size for batch in batches(5, 2, seed=0, epochs=1)]
    [2, 2, 1]
    >>> [batch.size for batch in batches(5, 2, seed=0, steps=4)]
    [2, 2, 1, 2]
    """
    if samples <= 0:
        return
    done = 0
    for epoch in count() if epochs is None else range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(samples)
        for start in range(0, samples, batch_size):
            if done == steps:
                return
            yield order[start : start + batch_size]
            done += 1


def seed_all(seed: int) -> None:
    """Seed torch, numpy and random, for dropout, initial weights and whatever a user's code draws from."""
    # As torch.manual_seed, but for a stack trace that it takes for each accelerator that is not there: a millisecond.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def train(
    task: Task, model: torch.nn.Module, data: Any, plan: Plan, seed: int, *, device: str = "cpu", stop: Stop = never
) -> TrainResult:
    """Train `model` in place as the plan says, with SGD whose momentum starts at rest, or with the task's own loop.

    Raises:
        Cancelled: `stop()` turned true.
        TaskError: there is nothing to train on, or the loss or a weight is no longer finite.
    """
    samples = len(_columns(data)[0]) if _is_tensors(data) else len(data)
    if samples == 0:
        raise TaskError("no training examples: check the data options of this client")
    seed_all(seed)
    model.to(device).train()
    if task.train is not None:
        result = task.train(model, data, plan, stop)
    else:
        result = _sgd(task, model, data, samples, plan, seed, device, stop)
    if stop():
        raise Cancelled("cancelled")
    if not math.isfinite(result.loss):
        raise TaskError(f"training loss is {result.loss}: lower the learning rate ({plan.learning_rate})")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise TaskError(f"{name} is not finite after training: lower the learning rate ({plan.learning_rate})")
    return result


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum is a number only if all of it are; one of large numbers may still be none.
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _sgd(
    task: Task, model: torch.nn.Module, data: Any, samples: int, plan: Plan, seed: int, device: str, stop: Stop
) -> TrainResult:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    momenta: dict[torch.nn.Parameter, torch.Tensor] = {}
    total, seen, step = 0.0, 0, 0
    for step, index in enumerate(batches(samples, plan.batch_size, seed, epochs=plan.epochs, steps=plan.steps), 1):
        if stop():
            raise Cancelled("cancelled")
        inputs, targets = _batch(data, index, device)
        model.zero_grad(set_to_none=True)
        loss = task.loss(model(inputs), targets)
        if loss.numel() != 1:
            raise TaskError(f"loss gave the shape {tuple(loss.shape)}: return one number, the mean over the batch")
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TaskError(f"training loss is {value} at step {step}: lower the learning rate ({plan.learning_rate})")
        loss.backward()  # type: ignore[no-untyped-call]
        step_(parameters, momenta, plan)
        total += value * index.size
        seen += index.size
    return TrainResult(loss=total / seen, samples=min(samples, seen), steps=step)


@torch.no_grad()
def step_(parameters: list[torch.nn.Parameter], momenta: dict[torch.nn.Parameter, torch.Tensor], plan: Plan) -> None:
    """Take one step of SGD along the gradients, to the last bit that of `torch.optim.SGD`.

    The first use of a torch optimizer loads torch's compiler: 75 MB and seconds on a board, for these ten lines.
    """
    for parameter in parameters:
        direction = parameter.grad
        if direction is None:
            continue
        if plan.weight_decay:
            direction = direction.add(parameter, alpha=plan.weight_decay)
        if plan.momentum:
            if parameter in momenta:
                direction = momenta[parameter].mul_(plan.momentum).add_(direction)
            else:
                direction = momenta[parameter] = direction.clone()
        parameter.add_(direction, alpha=-plan.learning_rate)


def evaluate(task: Task, model: torch.nn.Module, data: Any, *, device: str = "cpu", stop: Stop = never) -> Score:
    """Score `model` on a data set, in the order of the data, with the task's own loop where it has one.

    Raises:
        Cancelled: `stop()` turned true.
        TaskError: the scores are not one finite number per example.
    """
    model.to(device).eval()
    score = task.evaluate(model, data) if task.evaluate is not None else _score(task, model, data, device, stop)
    if stop():
        raise Cancelled("cancelled")
    if not math.isfinite(score.total):
        raise TaskError(
            f"{task.metric.name} of the model is not finite: training has diverged, lower the learning rate"
        )
    return score


def _score(task: Task, model: torch.nn.Module, data: Any, device: str, stop: Stop) -> Score:
    samples = len(_columns(data)[0]) if _is_tensors(data) else len(data)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, samples, EVALUATION_BATCH):
            if stop():
                raise Cancelled("cancelled")
            index = np.arange(start, min(start + EVALUATION_BATCH, samples))
            inputs, targets = _batch(data, index, device)
            scores = task.score(model(inputs), targets)
            if scores.shape != (index.size,):
                raise TaskError(
                    f"score gave the shape {tuple(scores.shape)} for {index.size} examples: return one number for each"
                )
            total += float(scores.double().sum())
    return Score(total=total, count=samples)


def _is_tensors(data: Any) -> bool:
    return isinstance(data, TensorDataset) or (isinstance(data, tuple | list) and isinstance(data[0], torch.Tensor))


def _columns(data: Any) -> Any:
    return data.tensors if isinstance(data, TensorDataset) else data


def _batch(data: Any, index: NDArray[np.int64], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    if _is_tensors(data):
        at = torch.from_numpy(index)
        inputs, targets = (column[at] for column in _columns(data))
    else:
        inputs, targets = default_collate([data[int(i)] for i in index])
    return inputs.to(device), targets.to(device)


def weights_of(model: torch.nn.Module, *, is_copied: bool = True) -> Weights:
    """Return a model's parameters and buffers, in the order of its `state_dict`.

    Where they are not copied, they change with the model.

    Raises:
        TaskError: the model holds what has no numpy form.
    """
    weights: Weights = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype is torch.bfloat16:
            what = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TaskError(f"{name} of the model is {what}: use tensors that numpy knows, for example float32")
        weights[name] = (np.array if is_copied else np.asarray)(tensor.detach().cpu().numpy(), order="C")
    return weights


def load_(model: torch.nn.Module, weights: Weights) -> None:
    """Set a model's parameters and buffers.

    Raises:
        TaskError: names, shapes or dtypes are not this model's; the message names the first difference.
    """
    remedy = "give every node the same task and options"
    state = model.state_dict()
    if odd := sorted(state.keys() ^ weights.keys()):
        side = "only in this task's model" if odd[0] in state else "only in the model that was sent"
        raise TaskError(f"{odd[0]} is {side}: {remedy}")
    # Copies, for a module may keep what it is given, and train on it.
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in weights.items()}
    for name, tensor in tensors.items():
        own = state[name]
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise TaskError(
                f"{name} was sent as {tensor.dtype}{tuple(tensor.shape)}, "
                f"this task's model has {own.dtype}{tuple(own.shape)}: {remedy}"
            )
    model.load_state_dict(tensors)


def parameter_count(model: torch.nn.Module) -> int:
    """Return how many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def pick_device(name: str) -> str:
    """Turn "auto" into "cuda" or "cpu", and make what runs there repeatable.

    Raises:
        TaskError: torch does not find that device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise TaskError(
            f"torch cannot use the device {name!r} ({str(error).splitlines()[0]}): set device to cpu"
        ) from None
    if name != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return name
