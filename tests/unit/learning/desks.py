"""A trainer with a real training process, what it says, and models as they come to it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from hfl_mqtt.learning import start
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.jobs import ModelBytes
from hfl_mqtt.learning.trainer import Result, Trained, Trainer, TrainJob
from hfl_mqtt.learning.weights import digest, size_bytes
from hfl_mqtt.protocol.messages import Plan

CODEC = "raw | zstd"
PATIENCE_S = 60.0
#: y = w x, whose loss says where it starts, so that a test can wait for it; and ways to misbehave.
TASK = """
import os, signal, sys, time
import torch
from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("rmse", higher_is_better=False, is_root=True)

def model():
    return torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Dropout(0.5))

def data(options):
    if options.get("refuse"):
        raise ValueError("no hive here")
    x = torch.arange(1, options.get("n", 4) + 1, dtype=torch.float32)[:, None]
    return (x, 3 * x), (torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [4.0]]))

def central_data():
    return {"unseen": (torch.tensor([[1.0]]), torch.tensor([[5.0]]))}

def loss(output, target):
    print("a line on stdout")
    print("training", file=sys.stderr, flush=True)
    os.write(1, b"raw bytes on file descriptor 1\\n")
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return ((output - target) ** 2).squeeze(1)
"""
ONE: Weights = {"0.weight": np.array([[1.0]], np.float32)}


def sent(weights: Weights, **change: Any) -> ModelBytes:
    """A model as it comes to a device that has seen none before."""
    data = start.of_weights(weights)
    name = digest(weights)
    model = ModelBytes(
        run="r1", version=0, digest=name, key_version=0, key_digest=name, size=size_bytes(weights), start=data
    )
    return replace(model, **change)


class Desk:
    """A trainer, what it said, and the task file that its jobs name."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.results: SimpleQueue[Result] = SimpleQueue()
        self.lines: SimpleQueue[str] = SimpleQueue()
        self.trainer = Trainer(self.results.put, device="cpu", on_log=self.lines.put, **options)
        self.folder = folder
        self.tensors = TensorArithmetic()
        self.base = ONE

    def job(self, job_id: str, *, task: str = TASK, plan: Plan | None = None, **data: object) -> TrainJob:
        path = self.folder / f"task_{abs(hash(task))}.py"
        path.write_text(task)
        return TrainJob(
            id=job_id,
            client="cloud/farm-a/pi-07",
            task_options={"file": str(path)},
            data_options=data,
            plan=plan or Plan(task="line", epochs=2, batch_size=3, learning_rate=0.01),
            seed=7,
            codec=CODEC,
            model=sent(self.base),
        )

    def endless(self, job_id: str, *, task: str = TASK) -> TrainJob:
        return self.job(job_id, task=task, plan=Plan(task="line", epochs=None, steps=10_000_000, learning_rate=1e-9))

    def result(self) -> Result:
        try:
            return self.results.get(timeout=PATIENCE_S)
        except Empty:
            lines = []
            while not self.lines.empty():
                lines.append(self.lines.get())
            raise AssertionError("no result; the log: " + "\n".join(lines)) from None

    def train(self, job: TrainJob) -> Trained:
        self.trainer.train(job)
        result = self.result()
        assert isinstance(result, Trained), result
        return result

    def delta(self, trained: Trained) -> Weights:
        """The delta in a payload."""
        return self.tensors.decode(trained.payload, self.tensors.layout(sent(self.base).start))

    def wait_for_line(self, pattern: str) -> str:
        while True:
            line = self.lines.get(timeout=PATIENCE_S)
            if re.search(pattern, line):
                return line
