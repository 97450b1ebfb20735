"""The task of hfl-mqtt's side: the same digits as the peer's clients have, the trainer's own loop, the same marks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer.work import mark  # type: ignore[import-not-found,unused-ignore]

from hfl_mqtt.learning import sgd
from hfl_mqtt.learning.contracts import Metric, TrainResult
from hfl_mqtt.learning.tasks.mnist import LeNet, Mnist

metric = Metric("accuracy", higher_is_better=True)
_task = Mnist.make({"download": False})
model, loss, score = LeNet, _task.loss, _task.score


def data(options: dict[str, Any]) -> tuple[Any, None]:
    with np.load(Path(os.environ["PEER_DATA"]) / f"{options['index']}.npz") as digits:
        return (torch.from_numpy(digits["images"]), torch.from_numpy(digits["labels"])), None


def train(model: torch.nn.Module, data: Any, plan: Any, stop: Any) -> TrainResult:
    began_s = time.time()
    result = sgd.train(_task, model, data, plan, torch.initial_seed(), stop=stop)
    mark({"what": "trained", "from_s": began_s, "to_s": time.time()})
    return result
