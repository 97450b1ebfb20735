"""LeNet on 2,500 invented digits: the work of a device in the peers' measurements, without a download."""

from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric
from hfl_mqtt.learning.tasks.mnist import LeNet

metric = Metric("accuracy", higher_is_better=True)


def model() -> torch.nn.Module:
    return LeNet()


def data(options: dict[str, Any]) -> tuple[Any, None]:
    chance = torch.Generator().manual_seed(options.get("seed", 0))
    images = torch.randint(256, (2500, 1, 28, 28), dtype=torch.uint8, generator=chance)
    return (images, torch.randint(10, (2500,), generator=chance)), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float()
