"""A model of HFL_BULK_MB megabytes, 100 if nothing is said, whose training is noise: what matters is its way."""

import os
from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("rmse", higher_is_better=False, is_root=True)
#: Values in a layer.
LAYER = 1_000_000


class Bulk(torch.nn.Module):
    def __init__(self, megabytes: float) -> None:
        super().__init__()
        sizes = [LAYER] * int(megabytes * 1_000_000 / 4 // LAYER)
        sizes.append(round(megabytes * 1_000_000 / 4) - sum(sizes))
        self.layers = torch.nn.ParameterList(torch.empty(size).uniform_(-0.05, 0.05) for size in sizes if size)


def model() -> torch.nn.Module:
    return Bulk(float(os.environ.get("HFL_BULK_MB", "100")))


def data(options: dict[str, Any]) -> tuple[Any, None]:  # noqa: ARG001
    return (torch.zeros(32, 1), torch.zeros(32, 1)), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).squeeze(1)


@torch.no_grad()
def train(model: torch.nn.Module, data: Any, plan: Any, stop: Any) -> TrainResult:  # noqa: ARG001
    for parameter in model.parameters():
        parameter.add_(torch.empty_like(parameter).uniform_(-1e-3, 1e-3))
    return TrainResult(loss=0.0, samples=len(data[0]), steps=0)
