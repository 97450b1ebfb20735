"""The work of a client, in plain torch: LeNet, one epoch of SGD over the images that the benchmark laid down.

The environment says where things are: `PEER_DATA` (a folder with one file of digits for each client), `PEER_MARKS` (the
port where the benchmark listens), `PEER_IDLE` (1: noise in place of training), `PEER_ROUNDS`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Arrays = list[NDArray[np.float32]]
ROUNDS = int(os.environ.get("PEER_ROUNDS", "1"))
_MEAN, _DEVIATION = 0.1307, 0.3081


class LeNet(nn.Module):
    """The same network as hfl_mqtt's MNIST task: 44,426 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 10) for bytes of shape (batch, 1, 28, 28)."""
        x = (images.float().div(255) - _MEAN) / _DEVIATION
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
        x = functional.relu(self.fc2(functional.relu(self.fc1(x))))
        logits: torch.Tensor = self.fc3(x)
        return logits


def initial_arrays() -> Arrays:
    """Return the weights that a run starts from."""
    torch.manual_seed(0)
    return arrays_of(LeNet())


def arrays_of(model: nn.Module) -> Arrays:
    """Return a model's weights in the order of its state."""
    return [value.detach().numpy().copy() for value in model.state_dict().values()]


def train(index: int, arrays: Arrays) -> tuple[Arrays, int]:
    """Train the model from these weights on the digits of client `index`; returns its weights and how many samples."""
    model = LeNet()
    names = model.state_dict()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)})
    images, labels = _digits(index)
    if os.environ.get("PEER_IDLE") == "1":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    else:
        began_s = time.time()
        _epoch(model, images, labels)
        mark({"what": "trained", "from_s": began_s, "to_s": time.time()})
    return arrays_of(model), len(labels)


def mark(what: dict[str, object]) -> None:
    """Tell the benchmark of an event, and wait until it has read its counters."""
    with socket.create_connection(("127.0.0.1", int(os.environ["PEER_MARKS"]))) as link:
        link.sendall(json.dumps(what).encode() + b"\n")
        link.recv(1)


def _epoch(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for batch in torch.split(torch.randperm(len(labels)), 32):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()


def _digits(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(Path(os.environ["PEER_DATA"]) / f"{index}.npz") as digits:
        return torch.from_numpy(digits["images"]), torch.from_numpy(digits["labels"])
