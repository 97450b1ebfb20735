"""One to four bits per value after a random rotation that makes all values alike: rot1 to rot4.

DRIVE (2105.08339) and EDEN (2108.08842): random signs and a Hadamard transform turn any block into nearly normal
numbers, for which the best few levels are known (Lloyd-Max). Blocks have 2,048 values; what is left of an array goes
into smaller ones, powers of two down to 16, each with a scale of its own, so that little is filled up.

The scale is the one of least squares, not the unbiased one: with error feedback, which these codecs need at 1 and 2
bits, what it loses comes later, and what an unbiased scale adds in noise does not.

**Decoding is exact.** Levels are integers, at most 2,733; the transform of a block adds and subtracts 2,048 of them, so
every partial sum is an integer under 2**24, which float32 holds exactly: matrix products give the same in any order, on
any processor. Then each value is multiplied once by its block's scale, and flipped where its sign says so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import packing
from hfl_mqtt.learning.codecs.chain import ArrayCodec, Bytes, Flat, largest_magnitude, working_dtype

Array = NDArray[Any]

#: Values in a block, and in the smallest one an array may end with. Wire format.
BLOCK, LEAST = 2048, 16
#: Blocks worked on at a time, so that intermediates stay in the processor's cache.
_ROWS = 64
_HEAD = struct.Struct("<Ih")
#: Levels in thousandths of the standard deviation, best for normal numbers (Max 1960), positive half. Wire format.
_HALVES = {
    1: (1,),
    2: (453, 1510),
    3: (245, 756, 1344, 2152),
    4: (128, 388, 657, 942, 1256, 1618, 2069, 2733),
}
#: The quantiser looks a number up by cells of 1/32 standard deviation, from -4 to 4.
_CELLS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated(ArrayCodec):
    """What rot1 to rot4 share. Side: a seed for the signs, an exponent for all, a scale per block (bfloat16)."""

    scope = "model"
    bits: ClassVar[int]

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """Six bytes and two per block, and the levels."""
        sizes = _sizes(values.size)
        packed = Flat(dtype=np.dtype("u1"), size=sum(sizes) * self.bits // 8)
        return _HEAD.size + 2 * len(sizes), packed

    def encode(self, values: Array, rng: np.random.Generator) -> tuple[bytes, Array]:
        """Rotate, choose the nearest levels, and the scale for them."""
        seed = int(rng.integers(1 << 32))
        widest = 1000 if values.dtype.itemsize == 8 else 120
        exponent = max(-widest, min(widest, math.frexp(largest_magnitude(values))[1]))
        signs = _signs(seed).astype(working_dtype(values.dtype)) * 2.0**-exponent
        scales, codes = [], []
        for start, rows, size in _pieces(values.size):
            numbers = values[start : start + rows * size]
            if numbers.size < rows * size:
                numbers = np.concatenate([numbers, np.zeros(rows * size - numbers.size, dtype=values.dtype)])
            blocks = np.empty((rows, size), dtype="f4")
            np.multiply(numbers.reshape(rows, size), signs[:size], out=blocks, casting="same_kind")
            scale, code = self._quantise(transform(blocks))
            scales.append(scale)
            codes.append(code)
        bits = np.concatenate(scales).view("u4")
        upper = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
        return _HEAD.pack(seed, exponent) + upper.tobytes(), np.concatenate(codes)

    def decode(self, side: Bytes, rest: Array, values: Flat) -> Array:
        """Rotate the levels back, scale, flip."""
        seed, exponent = _HEAD.unpack(side[: _HEAD.size])
        upper = np.frombuffer(side, dtype="<u2", offset=_HEAD.size)
        if abs(exponent) > 1000 or (upper >= 0x7F80).any():
            raise Refused(f"{self.name} scales are not all numbers from 0 on")
        working = working_dtype(values.dtype)
        scales = (upper.astype("u4") << 16).view("f4").astype("f8") * 2.0**exponent
        factors = scales.astype(working)[:, np.newaxis]
        signs = _signs(seed).astype(working)
        table = packing.table(_levels(self.bits))
        result = np.empty(values.size, dtype=values.dtype)
        block = 0
        for start, rows, size in _pieces(values.size):
            code = rest[start * self.bits // 8 : (start + rows * size) * self.bits // 8]
            sums = transform(packing.spread(code, table).reshape(rows, size))
            found = sums * factors[block : block + rows]
            found *= signs[:size]
            part = result[start : start + rows * size]
            part[...] = found.reshape(-1)[: part.size]
            block += rows
        return result

    def _quantise(self, rotated: Array) -> tuple[Array, Array]:
        """Return the least-squares scale of each row, and its levels, packed.

        The transform of levels q has to be near the block: with n values in it, that is sum(yq) / (n sum(qq)).
        """
        rows, size = rotated.shape
        if self.bits == 1:
            code = packing.pack(rotated >= 0, 1)
            return np.abs(rotated, out=rotated).sum(axis=1) / np.float32(size * size), code
        deviation = np.sqrt(np.einsum("ij,ij->i", rotated, rotated) / size)
        cells = rotated * (_CELLS / np.maximum(deviation, np.float32(1e-30)))[:, np.newaxis]
        np.clip(cells, -4 * _CELLS, 4 * _CELLS - 1, out=cells)
        cells += 4 * _CELLS
        numbers = cells.astype("u1").tobytes().translate(_nearest(self.bits))
        code = packing.pack(np.frombuffer(numbers, dtype="u1"), self.bits)
        levels = packing.spread(code, packing.table(_levels(self.bits))).reshape(rows, size)
        down = np.einsum("ij,ij->i", levels, levels) * np.float32(size)
        return np.einsum("ij,ij->i", rotated, levels) / down, code


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot1(Rotated):
    """1 bit per value, 0.126 bytes: the error's energy is 36 % of the values' own (1 - 2/pi)."""

    name = "rot1"
    bits = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot2(Rotated):
    """2 bits per value, 0.251 bytes: the error's energy is 12 % of the values' own."""

    name = "rot2"
    bits = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot3(Rotated):
    """3 bits per value, 0.376 bytes: the error's energy is 3.5 % of the values' own."""

    name = "rot3"
    bits = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot4(Rotated):
    """4 bits per value, 0.501 bytes: the error's energy is 1 % of the values' own."""

    name = "rot4"
    bits = 4


def transform(rows: Array) -> Array:
    """Return the Hadamard transform of each row of float32, shape (rows, a power of two), not normalised.

    A transform of 2,048 is two, of 64 and of 32, one along each axis of a 32 x 64 table: two matrix products.
    """
    count, size = rows.shape
    inner = 1 << (size.bit_length()) // 2
    outer = size // inner
    half = rows.reshape(-1, inner) @ _hadamard(inner)
    result: Array = np.matmul(_hadamard(outer), half.reshape(count, outer, inner))
    return result.reshape(count, size)


@lru_cache(maxsize=16)
def _hadamard(size: int) -> Array:
    """Return the matrix of plus and minus one, Sylvester's."""
    matrix: Array = np.ones((1, 1), dtype="f4")
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _signs(seed: int) -> Array:
    """Return one plus or minus one per value of a block, float32: bits of SplitMix64, on every machine the same."""
    with np.errstate(over="ignore"):
        words = (np.uint64(seed) + np.arange(1, BLOCK // 64 + 1, dtype="u8")) * np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    bits = np.unpackbits(words.astype("<u8").view("u1"), bitorder="little")
    return bits.astype("f4") * 2 - 1


def _sizes(size: int) -> list[int]:
    """Return the sizes of all blocks.

    >>> _sizes(2048 + 300)
    [2048, 256, 32, 16]
    """
    left = -(-(size % BLOCK) // LEAST) * LEAST
    return [BLOCK] * (size // BLOCK) + [bit for bit in (1 << at for at in range(11, 3, -1)) if left & bit]


def _pieces(size: int) -> Iterator[tuple[int, int, int]]:
    """Return where each piece starts, how many blocks it has, and of what size."""
    sizes = _sizes(size)
    whole = sizes.count(BLOCK)
    for row in range(0, whole, _ROWS):
        yield row * BLOCK, min(_ROWS, whole - row), BLOCK
    start = whole * BLOCK
    for one in sizes[whole:]:
        yield start, 1, one
        start += one


def _levels(bits: int) -> tuple[float, ...]:
    """Return the levels from the lowest to the highest."""
    half = _HALVES[bits]
    return (*(-level for level in reversed(half)), *half)


@lru_cache(maxsize=4)
def _nearest(bits: int) -> bytes:
    """Return for each cell the number of its nearest level."""
    middles = (np.arange(8 * _CELLS) + 0.5) * (1000 / _CELLS) - 4000
    distances = np.abs(middles[:, np.newaxis] - np.array(_levels(bits)))
    return bytes(distances.argmin(axis=1).astype("u1"))
