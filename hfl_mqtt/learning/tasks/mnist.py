"""MNIST digits on a LeNet of 44,426 parameters, divided among clients: the yardstick that every other system reports.

Images stay bytes, 784 to a digit, and become floats inside the model, one batch at a time: a client with all 60,000
holds 47 MB of them, not 188.
"""

from __future__ import annotations

import gzip
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.contracts import Metric, Options, Task
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.tasks import check_keys, partition
from hfl_mqtt.learning.torchvision_ops import load_torchvision

Bytes = NDArray[np.uint8]
_PIECE = 2**20
_MEAN, _DEVIATION = 0.1307, 0.3081
_KEYS = KEYS["mnist"]


class LeNet(nn.Module):
    """LeNet-5's shape without padding: 28x28 bytes, or floats of 0 to 1, in; ten logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 10) for images of shape (batch, 1, 28, 28)."""
        x = images.float().div(255) if images.dtype == torch.uint8 else images
        x = (x - _MEAN) / _DEVIATION
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
        x = functional.relu(self.fc2(functional.relu(self.fc1(x))))
        logits: torch.Tensor = self.fc3(x)
        return logits


class Mnist(Task):
    """Digits among clients. Task options: `data_dir` (the IDX files, or where to put them) and `download`.

    Data options of a client: `partition` (iid, shards, dirichlet), `index` and `of` (which part of how many), `seed`,
    `shards_per_client`, `alpha`, and `samples` (at most so many). Nothing is held out: the 10,000 test digits
    are the cloud's.
    """

    metric = Metric("accuracy", higher_is_better=True)

    def __init__(self, data_dir: Path, *, download: bool = True) -> None:
        self._data_dir = data_dir
        self._download = download

    @classmethod
    def make(cls, options: Options) -> Mnist:
        """Check the options; the files are read when first asked for."""
        check_keys(options, _KEYS.task, "task")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfl-mqtt" / "mnist"
        return cls(Path(options.get("data_dir") or cache).expanduser(), download=bool(options.get("download", True)))

    def model(self) -> nn.Module:
        """Build the network."""
        return LeNet()

    def train_data(self, data: Options) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this client's images, uint8 of shape (n, 1, 28, 28), and labels, int64 of shape (n,)."""
        images, labels = self._train
        index = part_of(labels, data)
        return _tensors(images[index], labels[index])

    def test_data(self, data: Options) -> None:
        """Hold nothing out: partitions stay complete, and the 10,000 test digits are the cloud's."""

    def central_data(self) -> dict[str, Any]:
        """Return the 10,000 test digits, as "test"."""
        return {"test": _tensors(*self._read("t10k"))}

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy."""
        return functional.cross_entropy(output, target)

    def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return 1 for each digit that was read right."""
        return (output.argmax(dim=1) == target).float()

    @cached_property
    def _train(self) -> tuple[Bytes, Bytes]:
        return self._read("train")

    def _read(self, which: str) -> tuple[Bytes, Bytes]:
        names = (f"{which}-images-idx3-ubyte", f"{which}-labels-idx1-ubyte")
        paths = [self._find(name) for name in names]
        if None in paths and self._download:
            self._fetch()
            paths = [self._find(name) for name in names]
        images_path, labels_path = paths
        if images_path is None or labels_path is None:
            raise TaskError(f"no {names[0]} and {names[1]}, plain or .gz, in {self._data_dir}: set task.data_dir")
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise TaskError(f"{images_path} has {len(images)} images for {len(labels)} labels: fetch both again")
        return images, labels

    def _find(self, name: str) -> Path | None:
        for folder in (self._data_dir / "MNIST" / "raw", self._data_dir):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
        return None

    def _fetch(self) -> None:
        try:
            load_torchvision("torchvision.datasets").MNIST(str(self._data_dir), download=True)
        except (ImportError, OSError, RuntimeError) as error:
            text = str(error).strip().splitlines()
            raise TaskError(
                f"MNIST is not in {self._data_dir} and cannot be downloaded ({text[-1] if text else error!r}): put its "
                "four idx files, plain or .gz, there, or set task.data_dir to where they are"
            ) from error


def part_of(labels: Bytes, data: Options) -> NDArray[np.int64]:
    """Return the indices of the client with these data options.

    Raises:
        TaskError: an option is unknown, missing or out of range.
    """
    check_keys(data, _KEYS.data, "data")
    kind = data.get("partition", "iid")
    of = _whole(data, "of", 1, 1, len(labels))
    index = _whole(data, "index", 0, 0, of - 1)
    seed = _whole(data, "seed", 0, 0, 2**53)
    if kind == "iid":
        part = partition.iid(labels, of, seed)[index]
    elif kind == "shards":
        per_client = _whole(data, "shards_per_client", 2, 1, max(1, len(labels) // of))
        part = partition.shards(labels, of, seed, per_client)[index]
    elif kind == "dirichlet":
        alpha = data.get("alpha", 0.5)
        if not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
            raise TaskError(f"data.alpha is {alpha!r}: a positive number is needed, for example 0.5")
        part = partition.dirichlet(labels, of, seed, alpha)[index]
    else:
        raise TaskError(f"data.partition is {kind!r}: one of iid, shards, dirichlet is needed")
    return part[: _whole(data, "samples", len(labels), 1, 2**53)]


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read an IDX file of bytes, plain or gzipped; a plain one is mapped, so that only what is used is read.

    Raises:
        TaskError: it is not one, or is cut short.
    """
    head_size = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(head_size)
            shape = tuple(np.frombuffer(head[4:], ">i4").tolist())
            if head[:4] != bytes([0, 0, 8, dimensions]) or len(shape) != dimensions or not 0 <= np.prod(shape) < 2**31:
                raise ValueError(f"no IDX file of {dimensions} dimensions")
            if path.suffix != ".gz":
                return np.memmap(path, np.uint8, "r", offset=head_size, shape=shape)
            # Unpacked piece by piece into its place: a board has no room for the file, its bytes and the array.
            flat = np.empty(int(np.prod(shape)), np.uint8)
            for start in range(0, flat.size, _PIECE):
                wanted = min(_PIECE, flat.size - start)
                piece = stream.read(wanted)
                if len(piece) < wanted:
                    raise ValueError("it is cut short")
                flat[start : start + wanted] = np.frombuffer(piece, np.uint8)
            if stream.read(1):  # at the end gzip also checks its sum
                raise ValueError("it is too long")
            return flat.reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read ({error}): fetch it again") from error


def _tensors(images: Bytes, labels: Bytes) -> tuple[torch.Tensor, torch.Tensor]:
    owned = np.require(images, np.uint8, ["C", "W", "E"])  # a mapped file is neither writable nor a plain array
    return torch.from_numpy(owned[:, None]), torch.from_numpy(labels.astype(np.int64))


def _whole(data: Options, key: str, default: int, least: int, most: int) -> int:
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise TaskError(f"data.{key} is {value!r}: a whole number from {least} to {most} is needed")
    return value
