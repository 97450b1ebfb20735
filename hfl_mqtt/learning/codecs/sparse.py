"""Codecs that send only the largest values of a whole model. They need error feedback: what is kept back is not lost.

Their places are Rice codes of gaps, below the order-0 entropy of the places on real updates (`packing.pack_places`).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs import packing
from hfl_mqtt.learning.codecs.chain import ArrayCodec, Bytes, Flat, working_dtype

#: Most levels of a dead-zone quantiser, and most places for each value it keeps. Wire format.
_LEVELS, _PLACES_EACH = 15, 4
#: How many levels it has, and how many places.
_HEAD = struct.Struct("<BI")
#: A sample of the magnitudes says roughly where the largest begin.
_SAMPLE = 1 << 14
#: Elements worked on at a time, so that intermediates stay in the processor's cache.
_PIECE = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Largest(ArrayCodec):
    """Keeps the `fraction` of values with the largest magnitudes, at least one."""

    scope = "model"
    side_varies = True

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"{self.name} takes a fraction over 0 and up to 1, not {self.fraction}")
        object.__setattr__(self, "fraction", float(self.fraction))  # topk(1) and topk(1.0) are one text

    def _count(self, size: int) -> int:
        return max(1, int(self.fraction * size))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(_Largest):
    """The largest values as they are, and their places; the next codec rounds them (DGC, 1712.01887).

    Bytes: 0.7 to 1.05 per kept value for its place at 1 %, and what the next codec makes of the values. Error: the
    values not kept. `topk(0.01) | int8 | zstd` is 0.02 bytes per weight.
    """

    name = "topk"
    gives_floats = True

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """The places, and the values kept."""
        count = self._count(values.size)
        return packing.places_limit(count, values.size), Flat(dtype=values.dtype, size=count)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Choose."""
        places = largest(values, self._count(values.size))
        return packing.pack_places(places), values[places]

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Put the values in their places among zeros."""
        places = packing.unpack_places(side, rest.size, values.size)
        result = np.zeros(values.size, dtype=values.dtype)
        result[places] = rest
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Stc(_Largest):
    """Sparse ternary compression: the largest values as plus or minus their mean magnitude (1903.02891).

    Bytes per kept value: 1/8 for the sign, and 0.55 to 0.62 at 10 %, 0.7 to 1.05 at 1 % for its place. Error: of a
    value kept, its distance from the mean magnitude, which is the least squares for one magnitude; all of the others.
    """

    name = "stc"

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """The mean magnitude and the places, and the signs."""
        count = self._count(values.size)
        side = working_dtype(values.dtype).itemsize + packing.places_limit(count, values.size)
        return side, Flat(dtype=np.dtype("u1"), size=packing.packed_size(count, 1))

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Choose, and average in float64."""
        places = largest(values, self._count(values.size))
        kept = values[places]
        magnitudes = np.abs(kept)
        peak = float(magnitudes.max())
        mean = float((magnitudes / (peak or 1.0)).mean(dtype="f8")) * peak  # a sum of the largest float64s is no number
        return struct.pack(self._form(values.dtype), mean) + packing.pack_places(places), packing.pack(kept >= 0, 1)

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Put plus or minus the mean in their places among zeros."""
        form = self._form(values.dtype)
        at = struct.calcsize(form)
        if len(side) < at:
            raise Refused(f"stc without its magnitude: {len(side)} bytes")
        (mean,) = struct.unpack(form, side[:at])
        if not 0 <= mean < math.inf:
            raise Refused(f"stc magnitude {mean} is not a number from 0 on")
        count = self._count(values.size)
        places = packing.unpack_places(side[at:], count, values.size)
        result = np.zeros(values.size, dtype=values.dtype)
        signs = np.unpackbits(np.asarray(rest), count=count, bitorder="little")
        result[places] = np.array([-mean, mean]).astype(values.dtype)[signs]
        return result

    @staticmethod
    def _form(dtype: np.dtype[Any]) -> str:
        return "<d" if dtype.itemsize == 8 else "<f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dz(_Largest):
    """The largest values, each as plus or minus the mean magnitude of its level: a quantiser with a dead zone.

    The smallest magnitude kept, T, is the edge of the dead zone; above it a level is `step` x T wide, and the last one
    is open. Deltas are heavy-tailed, those of a run's first rounds most of all: one magnitude for all, as `stc` has,
    delivers a quarter of what the largest weights ask for and costs rounds that never come back; a few levels deliver
    nearly all of it. The mean of a level is its least-squares magnitude. Zeros are never kept.

    On the wire a level is a place once more: behind the places of what is kept among all values stand those of what is
    of a higher level among what is kept, and so on, one row of increasing numbers. That is near the entropy of the
    levels, as no code of whole bits for each value would be.

    Bytes per kept value, on real updates: 0.7 at 15 %, 0.75 at 10 %, 0.9 at 3 %, of which 1/8 are the sign and 0.08 the
    level. Error: of a value kept, its distance from the mean of its level; all of the others.
    """

    name = "dz"

    step: float = 1.5

    def __post_init__(self) -> None:
        super(Dz, self).__post_init__()
        if not 0 < self.step <= 100:
            raise ConfigError(f"dz takes a step over 0 and up to 100, not {self.step}")
        object.__setattr__(self, "step", float(self.step))

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """How many levels and places, the levels' magnitudes and the places; and the signs."""
        count = self._count(values.size)
        most = _PLACES_EACH * count
        side = _HEAD.size + _LEVELS * working_dtype(values.dtype).itemsize
        side += packing.places_limit(most, values.size + most)
        return side, Flat(dtype=np.dtype("u1"), size=packing.packed_size(count, 1))

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:
        """Choose, sort into levels, and average each in float64."""
        return self.carry(values, rng)[:2]

    def carry(
        self,
        values: NDArray[Any],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[bytes, NDArray[Any], NDArray[Any]]:
        """As `encode`; places, signs and levels are at hand here, which `decode` would have to unpack."""
        said = np.zeros(values.size, dtype=values.dtype)
        count = self._count(values.size)
        is_any = values != 0
        places = largest(values, count) if np.count_nonzero(is_any) > count else np.flatnonzero(is_any)
        kept = values[places]
        signs = np.zeros(packing.packed_size(count, 1), dtype="u1")
        if not kept.size:
            return _HEAD.pack(0, 0), signs, said
        is_positive = kept > 0
        packed = packing.pack(is_positive, 1)
        signs[: packed.size] = packed
        levels, means = self._levels(np.abs(kept).astype("f8", copy=False), _PLACES_EACH * count)
        table = means.astype(working_dtype(values.dtype).newbyteorder("<"))
        magnitudes = table.astype(values.dtype)[levels]
        said[places] = np.where(is_positive, magnitudes, -magnitudes)
        rows, among, higher = [places], values.size, levels
        while (inner := np.flatnonzero(higher)).size:
            rows.append(inner + among)
            among += higher.size
            higher = higher[inner] - 1
        row = np.concatenate(rows)
        return _HEAD.pack(table.size, row.size) + table.tobytes() + packing.pack_places(row), signs, said

    def _levels(self, magnitudes: NDArray[Any], most: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the level of each, from 0 on, and the mean of each level; fewer levels where places would be many."""
        with np.errstate(over="ignore"):  # the last level is open
            steps = (magnitudes / magnitudes.min() - 1) / self.step
        levels = np.minimum(steps, _LEVELS - 1, out=steps).astype("i8")
        counts = np.bincount(levels)
        at_least = np.cumsum(counts[::-1])[::-1]
        size = int(np.searchsorted(np.cumsum(at_least), most, side="right"))
        if size < at_least.size:
            levels, counts = np.minimum(levels, size - 1), at_least[:size] - np.append(at_least[1:size], 0)
        peak = magnitudes.max()  # a sum of the largest float64s is no number
        return levels, np.bincount(levels, weights=magnitudes / peak) / np.maximum(counts, 1) * peak

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:
        """Put plus or minus the mean of each value's level in its place among zeros."""
        result = np.zeros(values.size, dtype=values.dtype)
        dtype, most = working_dtype(values.dtype).newbyteorder("<"), self._count(values.size)
        if len(side) < _HEAD.size:
            raise Refused(f"dz with {len(side)} bytes beside")
        size, count = _HEAD.unpack(side[: _HEAD.size])
        at = _HEAD.size + size * dtype.itemsize
        if size > _LEVELS or count > _PLACES_EACH * most or bool(size) != bool(count) or len(side) < at:
            raise Refused(f"dz with {size} levels and {count} places in {len(side)} bytes")
        if not size:
            if len(side) > at:
                raise Refused("dz of nothing with bytes behind it")
            return result
        means = np.frombuffer(side[_HEAD.size : at], dtype=dtype)
        if not (means.min() >= 0 and means.max() < np.inf):  # NaN is neither
            raise Refused("dz has a magnitude that is not a number from 0 on")
        row = packing.unpack_places(side[at:], count, values.size + count)
        places = row[: np.searchsorted(row, values.size)]
        if not 0 < places.size <= most:
            raise Refused(f"dz keeps {places.size} values, expected 1 to {most}")
        signed = np.concatenate([-means, means]).astype(values.dtype)
        chosen = np.unpackbits(np.asarray(rest), count=places.size, bitorder="little").astype(np.intp)
        chosen *= size
        chosen += _levels_of(row, places.size, values.size, size)
        result[places] = signed[chosen]
        return result


def _levels_of(row: NDArray[Any], count: int, among: int, size: int) -> NDArray[Any]:
    """Return the levels of `count` values, which the places behind theirs in `row` say, all of them under `size`."""
    levels = np.zeros(count, dtype=np.intp)
    higher, at = np.arange(count), count
    for level in range(1, size):
        among, start = among + higher.size, among
        end = int(np.searchsorted(row, among))
        higher = higher[row[at:end] - start]
        levels[higher] = level
        at = end
    if at != row.size or not higher.size:
        raise Refused("dz has not the levels that it names")
    return levels


def largest(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the places of the `count` largest magnitudes in increasing order, i8; of equal ones the first."""
    found = _candidates(values, count)
    magnitudes = np.abs(values if found is None else values[found])
    limit = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    places = np.flatnonzero(magnitudes >= limit)
    if places.size > count:  # several are equal to the least
        equal = np.flatnonzero(magnitudes[places] == limit)
        places = np.delete(places, equal[count - places.size :])
    return places if found is None else found[places]


def _candidates(values: NDArray[Any], count: int) -> NDArray[Any] | None:
    """Return the places of at least `count` largest magnitudes, only a few more of them, or None for all.

    A sample tells where to cut, so that the exact choice is among few. Where it errs, None costs time and memory only.
    """
    if values.size <= 4 * _SAMPLE:
        return None
    sample = np.sort(np.abs(values[:: values.size // _SAMPLE]))
    rank = sample.size - int(count / values.size * sample.size * 1.2) - 100
    if rank <= 0:
        return None
    starts = range(0, values.size, _PIECE)
    found = np.concatenate(
        [np.flatnonzero(np.abs(values[start : start + _PIECE]) >= sample[rank]) + start for start in starts]
    )
    return found if found.size >= count else None
