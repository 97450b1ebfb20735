"""Codecs: how tensors become few bytes. A chain of them is written as in YAML, `int8 | zstd(3)`.

A chain starts with one or more array codecs, which see one flat float tensor at a time, and ends with any number of
bytes codecs, which see all tensors' bytes at once. To add a codec: write one class here or elsewhere, and register it
under `hfl_mqtt.codecs`. It must stay able to read its old bytes; `tests/golden` holds it to that.

An **array codec** splits a tensor into `side` (bytes it keeps for itself: a scale, indices) and `rest`, the array that
goes on to the next one; the last rest is written as it is. So a top-k gives indices and fewer floats, and `int8` behind
it rounds those. `outline` says before any data is there how large both can get: a receiver refuses by it. Integers,
booleans and tensors under `TINY` elements never meet an array codec: they pass exactly.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, Refused

#: Float tensors with fewer elements pass exactly: nothing is won on them, and biases and scales sit there. Wire format.
TINY = 64
#: Elements worked on at a time, so that intermediates stay in the processor's cache.
BLOCK = 1 << 15

_STAGE = re.compile(r"([a-z][a-z0-9_\-]*)\s*(?:\(([^()]*)\))?\Z")


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
    """Turns one flat tensor into bytes of its own and a smaller array."""

    #: What `rest` holds: more floats for the next array codec, or its last word.
    gives_floats: ClassVar[bool] = False

    @abstractmethod
    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Return for such values the most bytes `side` may have, and dtype and size of `rest`.

        The size is exact, or for a codec that leaves no floats, the largest.
        """

    @abstractmethod
    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Return `side` and `rest` of finite values, shape (size,). Randomness comes from `rng` alone."""

    @abstractmethod
    def decode(self, side: bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Return the values, of exactly the dtype and size in `values`. They need not be finite: the caller looks.

        Both parts come from a stranger; that they keep within `outline` has been checked.

        Raises:
            Refused: they are not what `encode` writes.
        """


class BytesCodec(Codec):
    """Turns bytes into fewer bytes. It never meets an empty body: that stays empty."""

    @abstractmethod
    def limit(self, size_bytes: int) -> int:
        """Return the most bytes that `size_bytes` bytes can become."""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Return the packed bytes."""

    @abstractmethod
    def decode(self, data: bytes | memoryview, limit: int) -> bytes:
        """Return the original bytes, at most `limit`, allocating no more than that.

        Raises:
            Refused: a stranger's bytes are not what `encode` writes, or would become more than `limit`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(ArrayCodec):
    """The values as they are, bit for bit."""

    name = "raw"
    is_lossless = True
    gives_floats = True

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """No bytes of its own."""
        return 0, values

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Return the values."""
        return b"", values

    def decode(self, side: bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:  # noqa: ARG002
        """Return the rest."""
        return _sized(rest, values.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16(ArrayCodec):
    """Half precision under one power of two per tensor, so that deltas of 1e-6 keep their 11 bits.

    A plain half has 4 bits left at 1e-6 and nothing above 65504. Here the largest value lands under 2^15 and whatever
    is within 2^-29 of it has a relative error of at most 2^-11. Side: the exponent, int16.
    """

    name = "fp16"

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Two bytes, and halves."""
        return 2, Flat(dtype=np.dtype("f2"), size=values.size)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Scale and round to nearest."""
        shift = self._shift(values)
        rest = np.empty(values.size, dtype="f2")
        factor = _working(values.dtype).type(2.0**shift)
        for start in range(0, values.size, BLOCK):
            rest[start : start + BLOCK] = values[start : start + BLOCK] * factor
        return struct.pack("<h", shift), rest

    def decode(self, side: bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Scale back."""
        if len(side) != 2:
            raise Refused(f"fp16 keeps 2 bytes of its own, not {len(side)}")
        (shift,) = struct.unpack("<h", side)
        if abs(shift) > self._widest(values.dtype):
            raise Refused(f"fp16 exponent {shift} is out of range")
        result = np.empty(values.size, dtype=values.dtype)
        factor = _working(values.dtype).type(2.0**-shift)
        rest = _sized(rest, values.size)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, values.size, BLOCK):
                result[start : start + BLOCK] = rest[start : start + BLOCK].astype(factor.dtype) * factor
        return result

    def _shift(self, values: NDArray[Any]) -> int:
        if values.dtype.itemsize == 2:
            return 0  # already halves: they pass exactly
        widest = self._widest(values.dtype)
        return max(-widest, min(widest, 15 - math.frexp(_peak(values))[1]))

    @staticmethod
    def _widest(dtype: np.dtype[Any]) -> int:
        return 1020 if dtype.itemsize == 8 else 120  # 2.0**+-widest is a normal number in the working dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(ArrayCodec):
    """255 steps per tensor, rounded at random so that the mean of many devices is the true mean.

    A step is the tensor's largest magnitude / 127; a value between two steps goes up with the chance of its distance
    from the lower one (QSGD, 1610.02132): no value is off by more than one step, and none is off on average. Side: the
    step, float64.
    """

    name = "int8"

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Eight bytes, and one byte per value."""
        return 8, Flat(dtype=np.dtype("i1"), size=values.size)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Divide by the step and round down after adding [0, 1)."""
        working = _working(values.dtype)
        step = max(_peak(values) / 127, 1e-300 if working.itemsize == 8 else 1e-30)  # its inverse is finite
        inverse = working.type(1 / step)
        rest = np.empty(values.size, dtype="i1")
        scaled, lots = np.empty((2, min(BLOCK, values.size)), dtype=working)
        for start in range(0, values.size, BLOCK):
            block = values[start : start + BLOCK]
            a, u = scaled[: block.size], lots[: block.size]
            np.multiply(block, inverse, out=a)
            rng.random(out=u, dtype=working.type)
            np.add(a, u, out=a)
            np.floor(a, out=a)
            np.clip(a, -127, 127, out=a)  # 127 + 0.99999994 is 128 in float32
            rest[start : start + BLOCK] = a
        return struct.pack("<d", step), rest

    def decode(self, side: bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Multiply by the step."""
        if len(side) != 8:
            raise Refused(f"int8 keeps 8 bytes of its own, not {len(side)}")
        (step,) = struct.unpack("<d", side)
        if not 0 < step < math.inf:
            raise Refused(f"int8 step {step} is not a positive number")
        result = np.empty(values.size, dtype=values.dtype)
        working = _working(values.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            factor = working.type(step)
            rest = _sized(rest, values.size)
            for start in range(0, values.size, BLOCK):
                result[start : start + BLOCK] = rest[start : start + BLOCK].astype(working) * factor
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Zstd(BytesCodec):
    """Zstandard at `level` 1 to 19, one frame that states its size."""

    name = "zstd"
    is_lossless = True
    level: int = 3

    def __post_init__(self) -> None:
        if not (isinstance(self.level, int) and 1 <= self.level <= 19):
            raise ConfigError(f"zstd takes a level from 1 to 19, not {self.level}")

    def limit(self, size_bytes: int) -> int:
        """ZSTD_COMPRESSBOUND, rounded up."""
        return size_bytes + (size_bytes >> 8) + 128

    def encode(self, data: bytes) -> bytes:
        """Compress."""
        return zstandard.ZstdCompressor(level=self.level).compress(data)

    def decode(self, data: bytes | memoryview, limit: int) -> bytes:
        """Decompress one frame and nothing else. It must state its size, so a bomb is refused before it goes off."""
        try:
            stated = zstandard.frame_content_size(data)
            if not 0 < stated <= limit:  # an empty frame would let anything stand behind it
                raise Refused(f"zstd frame of {'unknown size' if stated < 0 else f'{stated} bytes'}, at most {limit}")
            return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Refused(f"zstd: {str(error)[:100]}") from None


@dataclass(frozen=True, slots=True)
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


@lru_cache(maxsize=64)
def parse(text: str) -> Chain:
    """Read a chain as it stands in YAML. `str()` of the result is the canonical text.

    >>> str(parse("int8|zstd( 3 )"))
    'int8 | zstd'

    Raises:
        ConfigError: an unknown codec (the message says the nearest), a wrong option, or codecs that do not fit.
    """
    try:
        stages = [_parse_stage(part.strip()) for part in text.split("|")]
    except ConfigError as error:
        raise ConfigError(f"codec {text!r}: {error}") from None
    arrays = tuple(stage for stage in stages if isinstance(stage, ArrayCodec))
    packers = tuple(stage for stage in stages if isinstance(stage, BytesCodec))
    if not arrays or (*arrays, *packers) != tuple(stages):
        raise ConfigError(f"codec {text!r}: array codecs such as raw or int8 come first, then those such as zstd")
    for before, after in pairwise(arrays):
        if not before.gives_floats:
            raise ConfigError(f"codec {text!r}: {before.name} leaves no floats for {after.name}; drop one of them")
    return Chain(arrays, packers)


def _parse_stage(text: str) -> Codec:
    match = _STAGE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not of the form name or name(number, ...)")
    name, arguments = match.groups()
    kind = registry.load("codecs", name)
    options = [field.name for field in dataclasses.fields(kind) if field.init]
    values = [_number(part) for part in arguments.split(",")] if arguments and arguments.strip() else []
    if len(values) > len(options):
        raise ConfigError(f"{name} takes {', '.join(options) or 'no options'}, got {len(values)} options")
    codec: Codec = kind(**dict(zip(options, values, strict=False)))
    return codec


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"{text.strip()!r} is not a number") from None
        if not math.isfinite(value):
            raise ConfigError(f"{text.strip()!r} is not a finite number") from None
        return value


def _working(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: halves would lose their last bits."""
    return np.dtype("f8") if dtype.itemsize == 8 else np.dtype("f4")


def _peak(values: NDArray[Any]) -> float:
    return max(-float(values.min()), float(values.max())) if values.size else 0.0


def _sized(rest: NDArray[Any], size: int) -> NDArray[Any]:
    if rest.size != size:
        raise Refused(f"{rest.size} values, expected {size}")
    return rest
