"""LeNet whose training is no training: what is left of a round is the framework's own time.

`train` adds noise rather than nothing, so that updates and models take as many bytes as real ones. It is drawn once:
drawing takes longer than much of what is measured. Of a device with `noise: 0` it does nothing at all. It may take a
while: a device's `seconds`.
"""

import time
from functools import cache
from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult
from hfl_mqtt.learning.tasks.mnist import LeNet

metric = Metric("accuracy", higher_is_better=True)


def model() -> torch.nn.Module:
    return LeNet()


def data(options: dict[str, Any]) -> tuple[Any, None]:
    # No images, for nobody looks at them: the noise that training adds, and how many seconds that takes.
    return (torch.full((32,), options.get("noise", 1e-3)), torch.full((32,), options.get("seconds", 0))), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float()


@torch.no_grad()
def train(model: torch.nn.Module, data: Any, plan: Any, stop: Any) -> TrainResult:  # noqa: ARG001
    if seconds := int(data[1][0]):  # even none of them would let another process go first
        time.sleep(seconds)
    if scale := float(data[0][0] * (torch.rand(()) + 0.5)):
        parameters: list[torch.Tensor] = list(model.parameters())
        torch._foreach_add_(parameters, [_noise(parameter.shape) for parameter in parameters], alpha=scale)
    return TrainResult(loss=float(torch.rand(())), samples=len(data[0]), steps=0)


@cache
def _noise(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape)
