"""LeNet whose training is no training: what is left of a round is the framework's own time.

`train` adds noise rather than nothing, so that updates and models take as many bytes as real ones.
"""

from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult
from hfl_mqtt.learning.tasks.mnist import LeNet

metric = Metric("accuracy", higher_is_better=True)


def model() -> torch.nn.Module:
    return LeNet()


def data(options: dict[str, Any]) -> tuple[Any, None]:  # noqa: ARG001
    return (torch.zeros(32, 1, 28, 28, dtype=torch.uint8), torch.zeros(32, dtype=torch.int64)), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float()


@torch.no_grad()
def train(model: torch.nn.Module, data: Any, plan: Any, stop: Any) -> TrainResult:  # noqa: ARG001
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return TrainResult(loss=0.0, samples=len(data[0]), steps=0)
