"""Codecs that round each value: fp16, bf16, int8 and int4."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs import packing
from hfl_mqtt.learning.codecs.chain import ArrayCodec, Bytes, Flat, largest_magnitude, working_dtype

#: Elements worked on at a time, so that intermediates stay in the processor's cache.
BLOCK = 1 << 15


class _Shifted(ArrayCodec):
    """Sixteen bits under one power of two. Side: its exponent, int16."""

    def _shift(self, values: NDArray[Any]) -> int:
        """Return the exponent of the power of two to multiply with."""
        raise NotImplementedError

    @staticmethod
    def _widest(dtype: np.dtype[Any]) -> int:
        return 1020 if dtype.itemsize == 8 else 120  # 2.0**+-widest is a normal number in the working dtype

    def _factor(self, side: Bytes, dtype: np.dtype[Any]) -> Any:
        """Return the power of two that undoes the shift, as a scalar of the working dtype."""
        (shift,) = struct.unpack("<h", side)
        if abs(shift) > self._widest(dtype):
            raise Refused(f"{self.name} exponent {shift} is out of range")
        return working_dtype(dtype).type(2.0**-shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16(_Shifted):
    """Half precision under one power of two per tensor: 2 bytes per value, relative error at most 2**-11.

    A plain half has 4 bits left at 1e-6 and nothing above 65504. Here the largest value lands under 2**15 and whatever
    is within 2**-29 of it keeps its 11 bits; smaller ones are off by at most 2**-40 of the largest.
    """

    name = "fp16"

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Two bytes, and halves."""
        return 2, Flat(dtype=np.dtype("f2"), size=values.size)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Scale and round to nearest."""
        shift = self._shift(values)
        rest = np.empty(values.size, dtype="f2")
        factor = working_dtype(values.dtype).type(2.0**shift)
        for start in range(0, values.size, BLOCK):
            rest[start : start + BLOCK] = values[start : start + BLOCK] * factor
        return struct.pack("<h", shift), rest

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Scale back."""
        factor = self._factor(side, values.dtype)
        result = np.empty(values.size, dtype=values.dtype)
        for start in range(0, values.size, BLOCK):
            result[start : start + BLOCK] = rest[start : start + BLOCK].astype(factor.dtype) * factor
        return result

    def _shift(self, values: NDArray[Any]) -> int:
        if values.dtype.itemsize == 2:
            return 0  # already halves: they pass exactly
        widest = self._widest(values.dtype)
        return max(-widest, min(widest, 15 - math.frexp(largest_magnitude(values))[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bf16(_Shifted):
    """The upper half of a float32, rounded to nearest: 2 bytes per value, relative error at most 2**-8.

    Behind it zstd finds more than behind fp16, because the exponents stand in whole bytes. Only float64 needs its
    power of two.
    """

    name = "bf16"

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Two bytes, and two bytes per value."""
        return 2, Flat(dtype=np.dtype("u2"), size=values.size)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Round to nearest, ties to even."""
        shift = self._shift(values)
        rest = np.empty(values.size, dtype="u2")
        factor = working_dtype(values.dtype).type(2.0**shift)
        for start in range(0, values.size, BLOCK):
            bits = (values[start : start + BLOCK] * factor).astype("f4").view("u4")
            rest[start : start + BLOCK] = bits + (0x7FFF + (bits >> 16 & 1)) >> 16
        return struct.pack("<h", shift), rest

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Put zeros behind, and scale back."""
        factor = self._factor(side, values.dtype)
        result = np.empty(values.size, dtype=values.dtype)
        for start in range(0, values.size, BLOCK):
            floats = (rest[start : start + BLOCK].astype("u4") << 16).view("f4")
            result[start : start + BLOCK] = floats.astype(factor.dtype) * factor
        return result

    def _shift(self, values: NDArray[Any]) -> int:
        if values.dtype.itemsize < 8:
            return 0
        return max(-1020, min(1020, 100 - math.frexp(largest_magnitude(values))[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stepped(ArrayCodec):
    """Whole steps, rounded at random so that the mean of many devices is the true mean.

    A step is the largest magnitude / `_MOST`; a value between two steps goes up with the chance of its distance from
    the lower one (QSGD, 1610.02132): no value is off by more than a step, and none is off on average. `block` is how
    many values share a step, 0 for a whole tensor. Side: the steps.
    """

    _MOST: ClassVar[int]
    block: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.block, int) and (self.block == 0 or 16 <= self.block <= 1 << 20)):
            raise ConfigError(f"{self.name} takes a block of 16 to 1048576 values, or 0 for one per tensor")

    def _outline_side(self, values: Flat) -> int:
        return (-(-values.size // self.block) if self.block else 1) * working_dtype(values.dtype).itemsize

    def _pieces(self, size: int) -> Iterator[tuple[slice, int, slice]]:
        """Return pieces that fit the cache: which values, in rows of how many, and the steps of the rows."""
        if not self.block:
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                yield slice(start, stop), stop - start, slice(0, 1)
            return
        rows, whole = max(BLOCK // self.block, 1), size // self.block
        for row in range(0, whole, rows):
            end = min(row + rows, whole)
            yield slice(row * self.block, end * self.block), self.block, slice(row, end)
        if size % self.block:
            yield slice(whole * self.block, size), size % self.block, slice(whole, whole + 1)

    def _steps(self, values: NDArray[Any]) -> NDArray[Any]:
        working = working_dtype(values.dtype)
        if not self.block:
            peaks = np.array([largest_magnitude(values)], dtype=working)
        else:
            peaks = np.empty(-(-values.size // self.block), dtype=working)
            for piece, width, rows in self._pieces(values.size):
                np.abs(values[piece].reshape(-1, width)).max(axis=1, out=peaks[rows])
        least = working.type(1e-300 if working.itemsize == 8 else 1e-30)  # its inverse is finite
        steps: NDArray[Any] = np.maximum(peaks / working.type(self._MOST), least)
        return steps

    def _rounded(
        self, values: NDArray[Any], steps: NDArray[Any], rng: np.random.Generator
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Return which values, and their whole steps as floats: divided, and rounded down after adding [0, 1)."""
        inverses = 1 / steps[:, np.newaxis]
        scaled, lots = np.empty((2, min(max(BLOCK, self.block), values.size)), dtype=steps.dtype)
        for piece, width, rows in self._pieces(values.size):
            a, u = scaled[: piece.stop - piece.start], lots[: piece.stop - piece.start]
            np.multiply(values[piece].reshape(-1, width), inverses[rows], out=a.reshape(-1, width))
            rng.random(out=u, dtype=steps.dtype.type)
            np.add(a, u, out=a)
            np.floor(a, out=a)
            np.clip(a, -self._MOST, self._MOST, out=a)  # 127 + 0.99999994 is 128 in float32
            yield piece, a

    def _read_steps(self, side: Bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
        working = working_dtype(dtype)
        steps: NDArray[Any] = np.frombuffer(side, dtype=working.newbyteorder("<")).astype(working, copy=False)
        if not (steps.min() > 0 and steps.max() < np.inf):  # NaN is neither
            raise Refused(f"{self.name} steps are not all positive numbers")
        return steps[:, np.newaxis]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(_Stepped):
    """255 steps per tensor or block, stochastic: 1 byte per value, error at most max/127, none on average."""

    name = "int8"
    _MOST = 127

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """The steps, and one byte per value."""
        return self._outline_side(values), Flat(dtype=np.dtype("i1"), size=values.size)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Round at random."""
        steps = self._steps(values)
        rest = np.empty(values.size, dtype="i1")
        for piece, rounded in self._rounded(values, steps, rng):
            rest[piece] = rounded
        return steps.astype(steps.dtype.newbyteorder("<")).tobytes(), rest

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Multiply by the steps."""
        if not self.block and values.size <= BLOCK and values.dtype.itemsize == 4:
            return self._of_one_step(side, rest)
        steps = self._read_steps(side, values.dtype)
        result = np.empty(values.size, dtype=values.dtype)
        for piece, width, rows in self._pieces(values.size):
            result[piece].reshape(-1, width)[...] = rest[piece].reshape(-1, width).astype(steps.dtype) * steps[rows]
        return result

    def _of_one_step(self, side: Bytes, rest: NDArray[Any]) -> NDArray[Any]:
        """Do the same for the many small tensors of a model, in a third of the time."""
        (step,) = struct.unpack("<f", side)
        if not 0 < step < math.inf:
            raise Refused(f"{self.name} steps are not all positive numbers")
        result: NDArray[Any] = np.multiply(rest, step, dtype=np.float32)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4(_Stepped):
    """15 steps per tensor or block, stochastic, two to a byte: error at most max/7, none on average."""

    name = "int4"
    _MOST = 7

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """The steps, and half a byte per value."""
        return self._outline_side(values), Flat(dtype=np.dtype("u1"), size=packing.packed_size(values.size, 4))

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Round at random; -7 to 7 are written as 1 to 15."""
        steps = self._steps(values)
        levels = np.empty(values.size, dtype="u1")
        for piece, rounded in self._rounded(values, steps, rng):
            rounded += 8
            levels[piece] = rounded
        return steps.astype(steps.dtype.newbyteorder("<")).tobytes(), packing.pack(levels, 4)

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Multiply by the steps."""
        steps = self._read_steps(side, values.dtype)
        table = packing.table(tuple(range(-8, 8)))
        result = np.empty(values.size, dtype=values.dtype)
        for piece, width, rows in self._pieces(values.size):
            odd = piece.start % 2  # a block of odd length starts in the middle of a byte
            levels = packing.spread(rest[piece.start // 2 : (piece.stop + 1) // 2], table)
            levels = levels[odd : odd + piece.stop - piece.start].reshape(-1, width)
            result[piece].reshape(-1, width)[...] = levels * steps[rows]
        return result
