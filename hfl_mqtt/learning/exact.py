"""Exact sums of weighted numbers in integers, a cache-sized block at a time: fast, and blind to the order of adding.

Every block rounds an update once, by a rule that looks at that part of that update alone; the rest is modular
arithmetic of integers, which can be undone to the last bit.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.weights import TensorSpec, shown

#: No weighted delta is rounded finer than 2^-FRACTION_BITS: a mean over n samples from m updates may be off by
#: 1.2e-10 m/n. The rest of int64 bounds the sum over all updates of weight x |delta| by 2^31, e.g. a million samples
#: times a change of 2147.
FRACTION_BITS = 32
#: Elements worked on at a time, so that intermediates stay in the processor's cache. The rounding depends on it.
BLOCK = 1 << 16

#: What a float32 holds besides its sign and the leading bits of `_MAGIC`: a rounded element is at most 2^22 units.
_PRECISION_BITS = 22
_LIMIT = 2**63
#: A float32 in [2^23, 2^24] has a last bit of 1. So adding this rounds to an integer, and the bits of the sum are those
#: of `_MAGIC` plus that integer: rounding and conversion in the one pass of an addition.
_MAGIC = np.float32(1.5 * 2**23)
_MAGIC_BITS = int(_MAGIC.view(np.int32))


class Scratch:
    """Room for one block's intermediates, shared by all blocks of a sum."""

    def __init__(self, size: int) -> None:
        self.singles = np.empty(size, dtype=np.float32)
        self.doubles = np.empty(size, dtype=np.float64)
        self.ints = np.empty(size, dtype=np.int64)


class Block(ABC):
    """The exact sum of a part of a tensor, in `cells` of int64 that count units of 2^-`fraction_bits`."""

    __slots__ = ("bound", "cells", "name", "scratch")
    fraction_bits = FRACTION_BITS

    def __init__(self, name: str, cells: NDArray[np.int64], scratch: Scratch) -> None:
        self.name, self.cells, self.scratch = name, cells, scratch
        #: No cell is larger than this, in units; as a Python integer it cannot overflow itself. At 0 all cells are 0,
        #: whatever stands in them.
        self.bound = 0

    @abstractmethod
    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add (`sign` 1) or take back (-1) weight x values; `Refused`, before anything changed, where it cannot be."""

    @abstractmethod
    def mean(self, weight: int, out: NDArray[Any]) -> None:
        """Write the cells / weight."""

    def bound_after(self, peak: float, weight: int, units: int, sign: int) -> int:
        """Return the bound with an update whose largest weighted element has this many units."""
        bound = self.bound + sign * units
        if bound >= _LIMIT:
            one = 1 << self.fraction_bits
            raise Refused(
                f"{shown(self.name)}: weight {weight} x delta {peak:.4g} on top of {self.bound / one:.4g} "
                f"passes {_LIMIT / one:.4g}, the range of a sum"
            )
        return bound


class Singles(Block):
    """float16 and float32. Cells begin in the first half of their room, 4 bytes each, and widen where those do not do.

    The narrow way moves 12 bytes of memory an element, as an addition of float32 does, and is twice as fast. Which way
    it went cannot be seen in the sum. Cells count units of 2^`exponent`: narrow ones the finest rounding so far, wide
    ones 2^-32. `offset` is what they hold too much: the bits of `_MAGIC` from every addition, modulo the width.
    """

    __slots__ = ("bits", "exponent", "is_narrow", "narrow", "offset", "rounded")

    def __init__(self, name: str, cells: NDArray[np.int64], scratch: Scratch) -> None:
        super().__init__(name, cells, scratch)
        self.exponent, self.is_narrow, self.offset = 0, True, 0
        self.narrow = cells.view(np.int32)[: cells.size]
        self.rounded = scratch.singles[: cells.size]
        self.bits = self.rounded.view(np.int32)

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        peak = _peak(self.name, values)
        if not peak:
            return
        weighted = peak * float(weight)
        # weighted < 2^e, rounded to a multiple of 2^(e - _PRECISION_BITS); the 1 covers all roundings on the way.
        exponent = max(math.frexp(weighted)[1] - _PRECISION_BITS, -FRACTION_BITS)
        units = int(math.ldexp(weighted, -exponent)) + 1
        bound = self.bound_after(peak, weight, units << (exponent + FRACTION_BITS), sign)
        self._make_room(max(bound, self.bound), exponent)
        np.multiply(values, np.float32(math.ldexp(weight, -exponent)), out=self.rounded, dtype=np.float32)
        np.add(self.rounded, _MAGIC, out=self.rounded)
        add, shift = np.add if sign > 0 else np.subtract, exponent - self.exponent
        if self.is_narrow:
            if shift:
                np.left_shift(self.bits, shift, out=self.bits)
            add(self.narrow, self.bits, out=self.narrow)
        else:
            wide = self.scratch.ints[: values.size]
            np.copyto(wide, self.bits)
            np.left_shift(wide, shift, out=wide)
            add(self.cells, wide, out=self.cells)
        self.offset += sign * (_MAGIC_BITS << shift)
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any]) -> None:
        """Write the cells / weight."""
        if not self.bound:
            out.fill(0)
            return
        mean = self.scratch.doubles[: out.size]
        np.divide(self._whole(), math.ldexp(weight, -self.exponent), out=mean)
        out[:] = mean

    def _make_room(self, bound: int, exponent: int) -> None:
        """Make the cells such that they hold multiples of 2^`exponent` up to `bound`."""
        finest = min(exponent, self.exponent)
        if not self.bound:
            self.exponent, self.is_narrow, self.offset = exponent, True, 0
            self.narrow.fill(0)
        elif not self.is_narrow:
            return
        elif bound >> (finest + FRACTION_BITS) >= 2**31:
            self.cells[:] = self._whole().astype(np.int64) << (self.exponent + FRACTION_BITS)
            self.exponent, self.is_narrow, self.offset = -FRACTION_BITS, False, 0
        elif finest < self.exponent:
            self.offset <<= self.exponent - finest
            self.narrow <<= self.exponent - finest
            self.exponent = finest

    def _whole(self) -> NDArray[np.int32] | NDArray[np.int64]:
        """Return the cells without the offset; integers of an array wrap, which is the point."""
        if self.is_narrow:
            return self.narrow - np.array(self.offset % 2**32, dtype=np.uint32).view(np.int32)
        return self.cells - np.array(self.offset % 2**64, dtype=np.uint64).view(np.int64)


class Doubles(Block):
    """float64, rounded to multiples of 2^-32."""

    __slots__ = ()

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        factor = float(weight) * 2.0**FRACTION_BITS
        peak = _peak(self.name, values)
        largest = peak * factor  # as below; rounding keeps the order
        bound = self.bound_after(peak, weight, round(largest) if largest < _LIMIT else _LIMIT, sign)
        if not self.bound:
            self.cells.fill(0)
        scaled, whole = self.scratch.doubles[: values.size], self.scratch.ints[: values.size]
        np.multiply(values, factor, out=scaled)
        np.rint(scaled, out=scaled)
        np.copyto(whole, scaled, casting="unsafe")
        (np.add if sign > 0 else np.subtract)(self.cells, whole, out=self.cells)
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any]) -> None:
        """Write the cells / weight."""
        if self.bound:
            np.divide(self.cells, float(weight) * 2.0**FRACTION_BITS, out=out)
        else:
            out.fill(0)


class Integers(Block):
    """Differences of integers and booleans, exact, no further apart than two values of the model's dtype can be."""

    __slots__ = ("dtype", "span")
    fraction_bits = 0

    def __init__(self, name: str, cells: NDArray[np.int64], scratch: Scratch, dtype: np.dtype[Any]) -> None:
        super().__init__(name, cells, scratch)
        self.dtype = dtype
        self.span = 1 if dtype.kind == "b" else 2 ** (8 * dtype.itemsize) - 1

    def add(self, values: NDArray[Any], weight: int, sign: int = 1) -> None:
        """Add or take back; see `Block.add`."""
        peak = max(-int(values.min()), int(values.max()))
        bound = self.bound_after(peak, weight, peak * weight, sign)
        if peak > self.span:
            raise Refused(f"{shown(self.name)} would leave the range of {self.dtype.name}: a delta of {peak}")
        if not self.bound:
            self.cells.fill(0)
        self.cells += sign * weight * values
        self.bound = bound

    def mean(self, weight: int, out: NDArray[Any]) -> None:
        """Write the cells / weight, rounded to the nearest, halves up."""
        if self.bound:
            whole, left = np.divmod(self.cells, weight)
            out[:] = whole + (2 * left >= weight)
        else:
            out.fill(0)


def _peak(name: str, values: NDArray[Any]) -> float:
    """Return the largest magnitude; `Refused` where there is NaN or infinity, both of which go through min and max."""
    peak = max(-float(np.minimum.reduce(values)), float(np.maximum.reduce(values)))
    if not math.isfinite(peak):
        raise Refused(f"{shown(name)} holds NaN or infinity")
    return peak


def _untouched(size: int) -> NDArray[np.int64]:
    """Return cells that take no memory before somebody writes to them, and a block writes to no more than it needs.

    What numpy allocates will not do: it asks for huge pages, and 2 MiB would be taken where one block begins to write.
    """
    if size <= BLOCK:
        return np.empty(size, dtype=np.int64)
    room = mmap.mmap(-1, size * np.dtype(np.int64).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # where the system has no huge pages, there is nothing to forbid
        room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, dtype=np.int64)


def blocks_of(name: str, spec: TensorSpec, scratch: Scratch) -> list[Block]:
    """Return the empty blocks for deltas of a tensor of a model, `BLOCK` elements each but the last."""
    cells = _untouched(spec.size)
    parts = [cells[at : at + BLOCK] for at in range(0, spec.size, BLOCK)]
    if not spec.is_float:
        return [Integers(name, part, scratch, spec.dtype) for part in parts]
    kind = Doubles if spec.dtype.itemsize == 8 else Singles
    return [kind(name, part, scratch) for part in parts]
