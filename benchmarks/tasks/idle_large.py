"""A model of 2,500,000 parameters, 10 MB, that is not trained: updates so large that they wait their turn."""

from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("rmse", higher_is_better=False, is_root=True)


def model() -> torch.nn.Module:
    return torch.nn.Linear(2_500, 1_000, bias=False)


def data(options: dict[str, Any]) -> tuple[Any, None]:  # noqa: ARG001
    return (torch.zeros(32, 2_500), torch.zeros(32, 1_000)), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).mean(dim=1)


@torch.no_grad()
def train(model: torch.nn.Module, data: Any, plan: Any, stop: Any) -> TrainResult:  # noqa: ARG001
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return TrainResult(loss=0.0, samples=len(data[0]), steps=0)
