"""Exact sums of weighted numbers in integers, a cache-sized block at a time: fast, and blind to the order of adding.

Every block rounds an update once, by a rule that looks at that part of that update alone; the rest is modular
arithmetic of integers, which can be undone to the last bit. Small tensors of one dtype share a block, so that a model
of many costs little more than one of few.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.weights import Layout, TensorSpec, delta_layout, shown

#: No weighted delta is rounded finer than 2^-FRACTION_BITS: a mean over n samples from m updates may be off by
#: 1.2e-10 m/n. The rest of int64 bounds the sum over all updates of weight x |delta| by 2^31, e.g. a million samples
#: times a change of 2147.
FRACTION_BITS = 32
#: Elements worked on at a time, so that values, cells and intermediates stay in a core's cache: 1.3 MB of 2. The
#: rounding depends on it.
BLOCK = 7 << 14
#: Float tensors with fewer elements share blocks. From here on the four bytes an element of `Singles` are faster.
SMALL = 1 << 14

#: What a float32 holds besides its sign and the leading bits of `_MAGIC`: a rounded element is at most 2^22 units.
_PRECISION_BITS = 22
#: Blocks round to every 2nd power of two only, so that updates of like weight and size count in the same unit: bits of
#: another unit have to be shifted, which takes as long as an addition. It costs one bit of the 22 at worst.
_STRIDE_BITS = 2
_LIMIT = 2**63
_NO_CELLS = np.empty(0, dtype=np.int64)
#: A float32 in [2^23, 2^24] has a last bit of 1. So adding this rounds to an integer, and the bits of the sum are those
#: of `_MAGIC` plus that integer: rounding and conversion in the one pass of an addition.
_MAGIC = np.array(1.5 * 2**23, dtype=np.float32)
_MAGIC_BITS = int(_MAGIC.view(np.int32))
_BITS, _FLOAT = Struct("=I"), Struct("=f")
_maximum = np.maximum.reduce
#: The same of a float64: its last bit is 1 in [2^52, 2^53], and what is added may have 2^51 units.
_WIDE_MAGIC = np.float64(1.5 * 2**52)
_WIDE_MAGIC_BITS = int(_WIDE_MAGIC.view(np.int64))
_WIDE_MAGIC_LIMIT = 2.0**51


#: Tensors one behind another, each with the place of its end.
Names = tuple[tuple[str, int], ...]


class Scratch:
    """Room for one block's intermediates, shared by all blocks of a sum."""

    def __init__(self, size: int) -> None:
        self.singles = np.empty(size, dtype=np.float32)
        self.bits = self.singles.view(np.int32)
        self.doubles = np.empty(size, dtype=np.float64)
        self.ints = np.empty(size, dtype=np.int64)
        #: An operand in an array without dimensions costs a ufunc half of the time of any other.
        self.factor, self.shift = np.empty((), dtype=np.float32), np.empty((), dtype=np.int32)

    def rounded(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return room for floats, and the same memory as integers."""
        if size == self.singles.size:
            return self.singles, self.bits
        return self.singles[:size], self.bits[:size]


class Block(ABC):
    """The exact sum of a part of a tensor, or of several, in `cells` of int64 that count units of 2^-`fraction_bits`.

    Args:
        names: of the tensors, with where each ends in the block.
        cells: as many as there are elements; whatever stands in them.
        scratch: at least as large.
    """

    __slots__ = ("bound", "cells", "names", "scratch")
    fraction_bits = FRACTION_BITS

    def __init__(self, names: Names, cells: NDArray[np.int64], scratch: Scratch) -> None:
        self.names, self.cells, self.scratch = names, cells, scratch
        #: No cell is larger than this, in units; as a Python integer it cannot overflow itself. At 0 all cells are 0,
        #: whatever stands in them.
        self.bound = 0

    @property
    def size(self) -> int:
        """How many elements it sums."""
        return self.names[-1][1]

    @abstractmethod
    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add (`sign` 1) or take back (-1) weight x values; `Refused`, before anything changed, where it cannot be."""

    @abstractmethod
    def mean(self, weight: int, out: NDArray[Any], start: int = 0) -> None:
        """Write the cells from `start` on, as many as `out` takes, / weight."""

    def _peak(self, values: NDArray[Any]) -> float:
        """Return the largest magnitude; `Refused` where there is NaN or infinity: both go through min and max."""
        peak = self._largest(values)
        if not peak < math.inf:
            raise Refused(f"{self.blamed(values)} holds NaN or infinity")
        return peak

    @staticmethod
    def _largest(values: NDArray[Any]) -> float:
        return max(-float(np.minimum.reduce(values)), float(np.maximum.reduce(values)))

    def blamed(self, values: NDArray[Any]) -> str:
        """Return the name, for people, of the tensor that holds the first NaN, or the largest magnitude."""
        at = int(np.argmax(np.abs(values)))
        return shown(next(name for name, end in self.names if at < end))

    def beyond(self, values: NDArray[Any], peak: float, weight: int) -> Refused:
        """Return what to say of an update that would lift the bound to `_LIMIT` or more."""
        one = 1 << self.fraction_bits
        return Refused(
            f"{self.blamed(values)}: weight {weight} x delta {peak:.4g} on top of {self.bound / one:.4g} "
            f"passes {_LIMIT / one:.4g}, the range of a sum"
        )


class Singles(Block):
    """float16 and float32. Cells are narrow at first, 4 bytes each; where those do not do, wide ones are made as well.

    The narrow way moves 12 bytes of memory an element, as an addition of float32 does, and is twice as fast. Which way
    it went cannot be seen in the sum. Cells count units of 2^`exponent`: narrow ones the finest rounding so far, wide
    ones 2^-32. `offset` is what they hold too much: the bits of `_MAGIC` from every addition, modulo the width.
    """

    __slots__ = ("exponent", "is_narrow", "narrow", "offset", "room")

    def __init__(self, names: Names, narrow: NDArray[np.int32], scratch: Scratch) -> None:
        super().__init__(names, _NO_CELLS, scratch)
        self.exponent, self.is_narrow, self.offset = 0, True, 0
        #: The bound that cells of this width and exponent have no room for any more.
        self.room = 0
        self.narrow = narrow

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        peak = self._peak(values)
        if not peak:
            return
        weighted = peak * float(weight)
        # weighted < 2^above, rounded to a multiple of 2^(above - _PRECISION_BITS); 1 covers all roundings on the way.
        above = -(-math.frexp(weighted)[1] // _STRIDE_BITS) * _STRIDE_BITS
        exponent = max(above - _PRECISION_BITS, -FRACTION_BITS)
        units = int(math.ldexp(weighted, -exponent)) + 1
        bound = self.bound + sign * (units << (exponent + FRACTION_BITS))
        if bound >= _LIMIT:
            raise self.beyond(values, peak, weight)
        if bound >= self.room or exponent < self.exponent or not self.bound:
            self._make_room(max(bound, self.bound), exponent)
        rounded, bits = self.scratch.rounded(values.size)
        self.scratch.factor[()] = math.ldexp(weight, -exponent)
        np.multiply(values, self.scratch.factor, rounded)
        np.add(rounded, _MAGIC, rounded)
        add, shift = np.add if sign > 0 else np.subtract, exponent - self.exponent
        if self.is_narrow:
            if shift:
                self.scratch.shift[()] = shift
                np.left_shift(bits, self.scratch.shift, bits)
            add(self.narrow, bits, self.narrow)
        else:
            wide = self.scratch.ints[: values.size]
            np.copyto(wide, bits)
            np.left_shift(wide, shift, out=wide)
            add(self.cells, wide, out=self.cells)
        self.offset += sign * (_MAGIC_BITS << shift)
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any], start: int = 0) -> None:
        """Write the mean; see `Block.mean`."""
        if not self.bound:
            out.fill(0)
            return
        mean = self.scratch.doubles[: out.size]
        np.divide(self._whole()[start : start + out.size], math.ldexp(weight, -self.exponent), out=mean)
        out[:] = mean

    @staticmethod
    def _largest(values: NDArray[Any]) -> float:
        """Return the largest magnitude, NaN where there is one, by the bits: a tenth faster than by the floats.

        Bits without the sign are in the order of magnitudes, with infinity and then NaN on top. The largest as signed
        integers is the largest positive float, if there is one; as unsigned, the largest negative.
        """
        if values.dtype != np.float32:
            return Block._largest(values)
        positive = int(_maximum(values.view(np.int32)))
        negative = int(_maximum(values.view(np.uint32)))
        return cast(float, _FLOAT.unpack(_BITS.pack(max(positive, negative & 0x7FFFFFFF)))[0])

    def _make_room(self, bound: int, exponent: int) -> None:
        """Make the cells such that they hold multiples of 2^`exponent` up to `bound`."""
        if not self.bound:
            self.exponent, self.is_narrow, self.offset = exponent, True, 0
            self.cells = _NO_CELLS
            self.narrow.fill(0)
        finest = min(exponent, self.exponent)
        self.room = 2**31 << (finest + FRACTION_BITS)
        if bound >= self.room:
            self.cells = self._whole().astype(np.int64) << (self.exponent + FRACTION_BITS)
            self.exponent, self.is_narrow, self.offset, self.room = -FRACTION_BITS, False, 0, _LIMIT
        elif finest < self.exponent:
            self.offset <<= self.exponent - finest
            self.narrow <<= self.exponent - finest
            self.exponent = finest

    def _whole(self) -> NDArray[np.int32] | NDArray[np.int64]:
        """Return the cells without the offset; integers of an array wrap, which is the point."""
        if self.is_narrow:
            return self.narrow - np.array(self.offset % 2**32, dtype=np.uint32).view(np.int32)
        return self.cells - _wrapped(self.offset)


class Doubles(Block):
    """float64, and small tensors of any float, rounded to multiples of 2^-32.

    No tensor is any rougher for a louder one beside it. `offset` is what the cells hold too much, modulo 2^64.
    """

    __slots__ = ("offset",)

    def __init__(self, names: Names, cells: NDArray[np.int64], scratch: Scratch) -> None:
        super().__init__(names, cells, scratch)
        self.offset = 0

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        factor = float(weight) * 2.0**FRACTION_BITS
        peak = self._peak(values)
        largest = peak * factor  # as below; rounding keeps the order
        bound = self.bound + sign * (round(largest) if largest < _LIMIT else _LIMIT)
        if bound >= _LIMIT:
            raise self.beyond(values, peak, weight)
        if not self.bound:
            self.cells.fill(0)
            self.offset = 0
        scaled = self.scratch.doubles[: values.size]
        np.multiply(values, factor, out=scaled, dtype=np.float64)
        if largest < _WIDE_MAGIC_LIMIT:
            np.add(scaled, _WIDE_MAGIC, out=scaled)
            whole = scaled.view(np.int64)
            self.offset += sign * _WIDE_MAGIC_BITS
        else:
            whole = self.scratch.ints[: values.size]
            np.rint(scaled, out=scaled)
            np.copyto(whole, scaled, casting="unsafe")
        (np.add if sign > 0 else np.subtract)(self.cells, whole, out=self.cells)
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any], start: int = 0) -> None:
        """Write the mean; see `Block.mean`."""
        if self.bound:
            whole = self.cells[start : start + out.size] - _wrapped(self.offset)
            np.divide(whole, float(weight) * 2.0**FRACTION_BITS, out=out, casting="same_kind")
        else:
            out.fill(0)


class Integers(Block):
    """Differences of integers and booleans, exact, no further apart than two values of the model's dtype can be."""

    __slots__ = ("dtype", "span")
    fraction_bits = 0

    def __init__(self, names: Names, cells: NDArray[np.int64], scratch: Scratch, dtype: np.dtype[Any]) -> None:
        super().__init__(names, cells, scratch)
        self.dtype = dtype
        self.span = 1 if dtype.kind == "b" else 2 ** (8 * dtype.itemsize) - 1

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        peak = max(-int(values.min()), int(values.max()))
        bound = self.bound + sign * peak * weight
        if bound >= _LIMIT:
            raise self.beyond(values, peak, weight)
        if peak > self.span:
            raise Refused(f"{self.blamed(values)} would leave the range of {self.dtype.name}: a delta of {peak}")
        if not self.bound:
            self.cells.fill(0)
        self.cells += sign * weight * values
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any], start: int = 0) -> None:
        """Write the mean, rounded to the nearest, halves up; see `Block.mean`."""
        if self.bound:
            whole, left = np.divmod(self.cells[start : start + out.size], weight)
            out[:] = whole + (2 * left >= weight)
        else:
            out.fill(0)


def _wrapped(offset: int) -> NDArray[np.int64]:
    """Return an offset modulo 2^64 in the range of int64."""
    return np.array(offset % 2**64, dtype=np.uint64).view(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the deltas of a tensor are summed: in blocks of its own, or in one with others, from `start` on.

    `dtype` and `size` are those of the deltas.
    """

    dtype: np.dtype[Any]
    size: int
    blocks: tuple[Block, ...]
    start: int = 0
    is_shared: bool = False


def places_of(layout: Layout) -> dict[str, Place]:
    """Return empty blocks for deltas of a model, `BLOCK` elements each at most, by tensor in the layout's order.

    Which tensors share a block follows from the layout alone, not from the order of its names.
    """
    scratch = Scratch(min(BLOCK, sum(spec.size for spec in layout.values())))
    deltas = delta_layout(layout)
    found: dict[str, Place] = {}
    for names in _shares(layout):
        dtype = layout[names[0]].dtype
        ends = tuple(accumulate(layout[name].size for name in names))
        shared = Doubles(tuple(zip(names, ends, strict=True)), np.empty(ends[-1], dtype=np.int64), scratch)
        for name, end in shared.names:
            size = layout[name].size
            found[name] = Place(dtype=dtype, size=size, blocks=(shared,), start=end - size, is_shared=True)
    return {
        name: found.get(name)
        or Place(dtype=deltas[name].dtype, size=spec.size, blocks=tuple(_blocks_of(name, spec, scratch)))
        for name, spec in layout.items()
    }


def _shares(layout: Layout) -> list[list[str]]:
    """Return the names of tensors that share a block: small, of one dtype, one behind another in order of names."""
    rows: list[list[str]] = []
    last: dict[str, tuple[list[str], int]] = {}
    for name in sorted(layout):
        spec = layout[name]
        if not (spec.is_float and 0 < spec.size < SMALL):
            continue
        row, size = last.get(spec.code, ([], BLOCK))
        if size + spec.size > BLOCK:
            row, size = [], 0
            rows.append(row)
        row.append(name)
        last[spec.code] = row, size + spec.size
    return [row for row in rows if len(row) > 1]


def _blocks_of(name: str, spec: TensorSpec, scratch: Scratch) -> list[Block]:
    starts = range(0, spec.size, BLOCK)
    names = [((name, min(BLOCK, spec.size - at)),) for at in starts]
    if spec.is_float and spec.dtype.itemsize < 8:
        # All in one piece: numpy then asks the system for pages of 2 MiB, which spares a tenth of the time.
        narrow = np.empty(spec.size, dtype=np.int32)
        return [Singles(one, narrow[at : at + BLOCK], scratch) for one, at in zip(names, starts, strict=True)]
    cells = np.empty(spec.size, dtype=np.int64)
    parts = [cells[at : at + BLOCK] for at in starts]
    if not spec.is_float:
        return [Integers(one, part, scratch, spec.dtype) for one, part in zip(names, parts, strict=True)]
    return [Doubles(one, part, scratch) for one, part in zip(names, parts, strict=True)]
