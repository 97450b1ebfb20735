"""The contract of a codec, and chains of them as they stand in YAML.

A chain starts with one or more array codecs, which see one flat float array at a time, and ends with any number of
bytes codecs, which see all arrays' bytes in a row.

An **array codec** splits an array into `side` (bytes it keeps for itself: a scale, places; as dense as it can make
them, no bytes codec sees them) and `rest`, the array that goes on to the next one; the last rest is what bytes codecs
pack. So a top-k gives places and fewer floats, and `int8` behind it rounds those. `outline` says before any data is
there how large both are: a receiver allocates and refuses by it. Integers, booleans and tensors under `TINY` elements
never meet an array codec: they pass exactly.

What "one flat array" is depends on the first array codec's `scope`: a tensor, or all float tensors of one dtype behind
one another, so that a top 1 % is the whole model's and blocks are filled across tensors.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.protocol.limits import MAX_CODEC, MAX_STAGES

#: Float tensors with fewer elements pass exactly: nothing is won on them, and biases and scales sit there. Wire format.
TINY = 16

Bytes = bytes | memoryview
Scope = Literal["tensor", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A flat array without its values: dtype and number of elements."""

    dtype: np.dtype[Any]
    size: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize


class Codec(ABC):
    """What all codecs share: a name, options as dataclass fields that are numbers, and a canonical text."""

    name: ClassVar[str]
    is_lossless: ClassVar[bool] = False

    def __str__(self) -> str:
        options = [field for field in dataclasses.fields(self) if field.init]  # type: ignore[arg-type]
        values = [getattr(self, option.name) for option in options]
        while values and values[-1] == options[len(values) - 1].default:
            values.pop()
        return f"{self.name}({', '.join(map(str, values))})" if values else self.name


class ArrayCodec(Codec):
    """Turns a flat array of at least one float into bytes of its own and a smaller array."""

    #: What `rest` holds: more floats for the next array codec, or its last word.
    gives_floats: ClassVar[bool] = False
    #: What it sees as one array where it stands first.
    scope: ClassVar[Scope] = "tensor"
    #: Whether `side` may be shorter than `outline` says; then its length travels.
    side_varies: ClassVar[bool] = False

    @abstractmethod
    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Return for such values the bytes of `side`, the most it can have if it varies, and what `rest` is."""

    @abstractmethod
    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Return `side` and `rest` of finite values, shape (size,). Randomness comes from `rng` alone."""

    def carry(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any], NDArray[Any]]:
        """Return what `encode` does, and what `decode` makes of it, to the bit; better ones know that beforehand."""
        side, rest = self.encode(values, rng)
        return side, rest, self.decode(side, rest, Flat(dtype=values.dtype, size=values.size))

    @abstractmethod
    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Return the values, of exactly the dtype and size in `values`. They need not be finite: the caller looks.

        Both parts come from a stranger; that they are as `outline` says has been checked.

        Raises:
            Refused: they are not what `encode` writes.
        """


class Reader(ABC):
    """Bytes that are unpacked while they are read."""

    @abstractmethod
    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes, 0 or more.

        Raises:
            Refused: there are fewer, or they are broken.
        """

    @abstractmethod
    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            Refused: something is.
        """


class Whole(Reader):
    """Bytes that lie there as they are: what is taken is a view."""

    def __init__(self, data: Bytes, size: int) -> None:
        """Expect exactly `size` bytes; `Refused` where there are others."""
        if len(data) != size:
            raise Refused(f"a body of {len(data)} bytes, expected {size}")
        self._data = memoryview(data)
        self._offset = 0

    def take(self, size: int) -> memoryview:
        """Return a view."""
        start, self._offset = self._offset, self._offset + size
        return self._data[start : self._offset]

    def finish(self) -> None:
        """Nothing can be left: the size was right."""


class BytesCodec(Codec):
    """Turns bytes into fewer bytes. It never meets an empty body: that stays empty."""

    @abstractmethod
    def limit(self, size_bytes: int) -> int:
        """Return the most bytes that `size_bytes` bytes can become."""

    @abstractmethod
    def encode(self, parts: Iterable[Bytes], size_bytes: int) -> Iterable[bytes]:
        """Return the packed bytes of all `parts` in a row, `size_bytes` in all, in parts of its own."""

    @abstractmethod
    def decode(self, data: Bytes, limit: int) -> bytes:
        """Return the original bytes, at most `limit`, allocating no more than that.

        Raises:
            Refused: a stranger's bytes are not what `encode` writes, or would become more than `limit`.
        """

    def reader(self, data: Bytes, size_bytes: int) -> Reader:
        """Return a reader of the original bytes, exactly `size_bytes`. Better ones do not hold them all at once.

        Raises:
            Refused: as `decode`.
        """
        return Whole(self.decode(data, size_bytes), size_bytes)


@dataclass(frozen=True)
class Chain:
    """Array codecs, then bytes codecs."""

    arrays: tuple[ArrayCodec, ...]
    packers: tuple[BytesCodec, ...] = ()

    def __str__(self) -> str:
        return " | ".join(map(str, (*self.arrays, *self.packers)))

    @property
    def is_lossless(self) -> bool:
        """Whether every value comes back bit for bit."""
        return all(codec.is_lossless for codec in (*self.arrays, *self.packers))

    @cached_property
    def side_varies(self) -> bool:
        """Whether the length of any side has to travel."""
        return any(codec.side_varies for codec in self.arrays)

    @cached_property
    def is_raw(self) -> bool:
        """Whether values go into the body as they are."""
        return all(codec.name == "raw" for codec in self.arrays)

    @property
    def scope(self) -> Scope:
        """What its first array codec sees as one array."""
        return self.arrays[0].scope

    def outline(self, values: Flat) -> tuple[list[int], list[Flat]]:
        """Return the (most) bytes of each array codec's side, and what goes into each, and last, what is left."""
        sides, flats = [], [values]
        for codec in self.arrays:
            side, rest = codec.outline(flats[-1])
            sides.append(side)
            flats.append(rest)
        return sides, flats

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[list[bytes], NDArray[Any]]:
        """Run the array codecs; returns the side of each, and the last rest."""
        sides = []
        for codec in self.arrays:
            side, values = codec.encode(values, rng)
            sides.append(side)
        return sides, values

    def carry(
        self, values: NDArray[Any], rng: np.random.Generator, flats: Sequence[Flat]
    ) -> tuple[list[bytes], NDArray[Any], NDArray[Any]]:
        """Return what `encode` does, and what `decode` makes of it; see there for `flats` and what may overflow."""
        if len(self.arrays) == 1:
            side, rest, said = self.arrays[0].carry(values, rng)
            return [side], rest, said
        sides, rest = self.encode(values, rng)
        return sides, rest, self.decode(sides, rest, flats)

    def decode(self, sides: Sequence[Bytes], rest: NDArray[Any], flats: Sequence[Flat]) -> NDArray[Any]:
        """Run the array codecs backwards; `flats` is what `outline` says goes into each.

        A scale of a stranger's may overflow: call it where numpy does not warn of that, and look for infinity.

        Raises:
            Refused: these are not the parts that `encode` gives.
        """
        for place in range(len(self.arrays) - 1, -1, -1):
            rest = self.arrays[place].decode(sides[place], rest, flats[place])
        return rest


@lru_cache(maxsize=64)
def parse(text: str) -> Chain:
    """Read a chain as it stands in YAML. `str()` of the result is the canonical text.

    >>> str(parse("topk( .01 )|int8|zstd( 3 )"))
    'topk(0.01) | int8 | zstd'

    Raises:
        ConfigError: an unknown codec (the message says the nearest), a wrong option, or codecs that do not fit.
    """
    parts = text.split("|")
    if len(parts) > MAX_STAGES:
        raise ConfigError(f"codec {text[:MAX_CODEC]!r}: {len(parts)} codecs in a row, at most {MAX_STAGES}")
    try:
        stages = [registry.make("codecs", part) for part in parts]
    except ConfigError as error:
        raise ConfigError(f"codec {text!r}: {error}") from None
    arrays = tuple(stage for stage in stages if isinstance(stage, ArrayCodec))
    packers = tuple(stage for stage in stages if isinstance(stage, BytesCodec))
    if not arrays or (*arrays, *packers) != tuple(stages):
        raise ConfigError(f"codec {text!r}: array codecs such as raw or int8 come first, then those such as zstd")
    for before, after in pairwise(arrays):
        if not before.gives_floats:
            raise ConfigError(f"codec {text!r}: {before.name} leaves no floats for {after.name}; drop one of them")
    chain = Chain(arrays, packers)
    if len(str(chain)) > MAX_CODEC:
        raise ConfigError(f"codec {text[:MAX_CODEC]!r}: longer than {MAX_CODEC} characters; drop a codec")
    return chain


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: halves would lose their last bits."""
    return np.dtype("f8") if dtype.itemsize == 8 else np.dtype("f4")


def largest_magnitude(values: NDArray[Any]) -> float:
    """Return the largest magnitude of at least one value, without a copy."""
    return max(-float(values.min()), float(values.max()))
