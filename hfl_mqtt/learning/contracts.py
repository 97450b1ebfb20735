"""What a task is, and the words tasks, trainer and codecs share. Importing this file does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

#: A model's tensors by name: parameters and buffers, as in a torch `state_dict`, in its order.
Weights = dict[str, NDArray[Any]]

#: Options as they stand in YAML, checked by the task that takes them.
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a task scores a model: the mean over examples of `Task.score`, or its square root (`is_root`, as in RMSE)."""

    name: str
    higher_is_better: bool
    is_root: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A sum over examples and their number; adding two is a score again, so scores add up the tree."""

    total: float
    count: int


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What local training gives: the mean training loss, and how many examples were trained on (each counted once)."""

    loss: float
    samples: int
    steps: int


class Task(ABC):
    """A model, its data, its loss and its metric. Subclasses are registered under `hfl_mqtt.tasks`.

    A task is made once per process from the `options` under `task:` in YAML. A data set is a pair of tensors
    `(inputs, targets)` of equal first dimension, or a map-style torch `Dataset` of such examples. Data sets are cached
    by the caller per client. Where `train` and `evaluate` are not overridden, the trainer's own SGD loop is used.
    """

    #: Filled in by subclasses.
    metric: Metric

    @classmethod
    @abstractmethod
    def make(cls, options: Options) -> Task:
        """Check the task's options and build it.

        Raises:
            TaskError: an option is wrong; the message names it and the remedy.
        """

    @abstractmethod
    def model(self) -> torch.nn.Module:
        """Build the model. The caller seeds torch first, so equal seeds give equal initial weights."""

    @abstractmethod
    def train_data(self, data: Options) -> Any:
        """Return the training set of the client whose `data:` options these are; `TaskError` where they are wrong."""

    @abstractmethod
    def test_data(self, data: Options) -> Any | None:
        """Return the same client's held-out set, or None where it has none."""

    def central_data(self) -> dict[str, Any]:
        """Return named test sets that the cloud itself holds, e.g. stations no client trains on. None by default."""
        return {}

    @abstractmethod
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the scalar training loss of a batch."""

    @abstractmethod
    def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return one number per example, shape (batch,): squared error, 1 for right and 0 for wrong, ..."""

    #: A task may bring loops of its own in place of the trainer's: `train(model, data, plan, stop) -> TrainResult`,
    #: `evaluate(model, data) -> Score`. `stop()` turns true when the round is over; a loop should ask between batches.
    train: Callable[..., TrainResult] | None = None
    evaluate: Callable[..., Score] | None = None
