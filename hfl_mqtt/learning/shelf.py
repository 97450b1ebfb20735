"""Where large things lie while nobody works on them: temporary files in a directory of the node's, read piece by piece.

An edge with a model of 100 MB would else hold its parent's keyframe, a few deltas of that size, and what each of its
hops has not carried yet. The files have no names: nobody finds them, and they are gone with the process. What is
deleted soon, most of a round's deltas, is rarely written to the card at all: the system keeps it for half a minute.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import HflError
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import TensorSpec
from hfl_mqtt.protocol.messages import Buffer

#: Smaller things stay in memory, in bytes.
LEAST = 2**20


class Shelf:
    """Room for what is large.

    Args:
        directory: where the files are made; it exists.
        least: the fewest bytes that are worth a file.
    """

    def __init__(self, directory: Path, least: int = LEAST) -> None:
        self._directory = directory
        self._least = least

    def keep(self, parts: Sequence[Buffer]) -> Buffer | Lying:
        """Put bytes away that stand in several parts; see `protocol.blobs.Keep`.

        Raises:
            HflError: there is no room, or the directory is not ours.
        """
        if sum(map(len, parts)) < self._least:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        lying = self._open()
        for part in parts:
            lying.append(part)
            let_go(part)
        return lying

    def weights(self, tensors: Iterable[tuple[str, NDArray[Any]]]) -> Weights:
        """Put tensors away as they come; what is returned reads them one by one, each time it is asked.

        Raises:
            HflError: as `keep`.
        """
        held: Weights = {}
        coming, size = iter(tensors), 0
        for name, values in coming:
            held[name] = values
            size += values.nbytes
            if size >= self._least:
                found = _Tensors(self._open(), chain(held.items(), coming))
                return cast(Weights, found)  # nobody writes to a delta
        return held

    def holds(self, weights: Weights) -> bool:
        """Whether these are on a shelf, and not in memory."""
        return isinstance(weights, _Tensors)

    def _open(self) -> Lying:
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                return Lying(os.dup(file.fileno()), self._directory)
        except OSError as error:
            raise _no_room(self._directory, error) from error


class Lying:
    """Bytes in a file without a name, which is gone with them.

    Args:
        descriptor: of the file; closed with this.
        directory: where it is, for people.
    """

    def __init__(self, descriptor: int, directory: Path) -> None:
        self._descriptor, self._directory = descriptor, directory
        self._size = 0
        weakref.finalize(self, os.close, descriptor)

    def __len__(self) -> int:
        return self._size

    def append(self, data: Buffer) -> int:
        """Write more bytes behind what is there, and return where they begin."""
        start, left = self._size, memoryview(data).cast("B")
        try:
            while left:
                written = os.pwrite(self._descriptor, left, self._size)
                self._size += written
                left = left[written:]
        except OSError as error:
            raise _no_room(self._directory, error) from error
        return start

    def read(self, start: int, size: int) -> bytes:
        """Return some of them."""
        return os.pread(self._descriptor, size, start)

    def read_into(self, start: int, values: memoryview) -> None:
        """Read as many as `values` has room for."""
        while values:
            count = os.preadv(self._descriptor, [values], start)
            if not count:
                raise EOFError("a temporary file of ours has become shorter")
            start, values = start + count, values[count:]

    def view(self) -> memoryview:
        """Return all of them; what is looked at is in memory until `let_go`, or until the view is dropped."""
        return memoryview(_Seen(self._descriptor, self._size, access=mmap.ACCESS_READ))


class _Seen(mmap.mmap):
    """A map of a file; of any other, what is let go would be lost."""


def let_go(data: Buffer) -> None:
    """Have what was looked at of a view of lying bytes take no memory any more; it can be looked at again."""
    if isinstance(data, memoryview) and isinstance(data.obj, _Seen):
        data.obj.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Place:
    spec: TensorSpec
    start: int


class _Tensors(Mapping[str, NDArray[Any]]):
    """Tensors in a file; each is read when it is asked for, into an array of its own."""

    def __init__(self, lying: Lying, tensors: Iterable[tuple[str, NDArray[Any]]]) -> None:
        self._lying = lying
        self._places: dict[str, _Place] = {}
        for name, values in tensors:
            start = lying.append(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data if values.size else b"")
            self._places[name] = _Place(TensorSpec(dtype=values.dtype, shape=values.shape), start)

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        values: NDArray[Any] = np.empty(place.spec.shape, dtype=place.spec.dtype)
        if values.size:
            self._lying.read_into(place.start, values.reshape(-1).view(np.uint8).data)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _no_room(where: Path, error: OSError) -> HflError:
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see `state_dir:`"
    return HflError(f"{where}: a large model needs room for temporary files there: {error.strerror}; {advice}")
