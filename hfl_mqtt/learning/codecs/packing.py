"""Small integers in few bits: fixed width, and Rice codes for gaps. Vectorised, little-endian, the same everywhere."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused

#: Gaps that share one width. 32 gaps of k bits are 4 k whole bytes.
GROUP = 32
#: A group's width has so many bits.
_WIDTH_BITS = 5
#: The widest gaps of which eight fit a word of 64 bits.
_WORD = 8
#: Widths to try, less the bits of the mean gap; a column, for groups are a row.
_AROUND = np.array([[-2], [-1], [0]])
#: Groups unpacked at a time.
_CHUNK = 2048

Array = NDArray[Any]


def pack(numbers: Array, bits: int) -> Array:
    """Return numbers under 2**bits (u1, 1 to 4 bits) side by side, lowest bits first, as u1.

    The last byte, or with 3 bits the last three, is filled up with zeros.

    >>> pack(np.array([1, 2, 3], dtype="u1"), 4).tolist()
    [33, 3]
    """
    packed: Array
    if bits == 1:
        packed = np.packbits(numbers, bitorder="little")
        return packed
    per_word = 8 if bits == 3 else 8 // bits
    if numbers.size % per_word:
        numbers = np.concatenate([numbers, np.zeros(-numbers.size % per_word, dtype="u1")])
    words = numbers.view(f"<u{per_word}")
    if bits == 4:
        packed = (words | words >> 4).astype("u1")
    elif bits == 2:
        words = words | words >> 6  # pairs, 4 bits in the lower half and 4 in the upper
        packed = (words & 0x0F | words >> 12 & 0xF0).astype("u1")
    else:
        words = (words | words >> 5) & 0x003F003F003F003F
        words = (words | words >> 10) & 0x00000FFF00000FFF
        words = (words | words >> 20).astype("<u8", copy=False)
        packed = words.view("u1").reshape(-1, 8)[:, :3].reshape(-1)
    return packed


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that `pack` makes of `count` numbers."""
    return -(-count // 8) * 3 if bits == 3 else -(-count * bits // 8)


@lru_cache(maxsize=16)
def table(levels: tuple[float, ...]) -> Array:
    """Return what `spread` needs to turn packed numbers into `levels` (2, 4, 8 or 16 of them), as float32."""
    bits = len(levels).bit_length() - 1
    index_bits = 12 if bits == 3 else 8
    index = np.arange(1 << index_bits)[:, np.newaxis] >> np.arange(0, index_bits, bits) & (len(levels) - 1)
    found: Array = np.array(levels, dtype="f4")[index]
    return found


def spread(packed: Array, levels: Array) -> Array:
    """Return the level of each number in `packed`, what filled up the last bytes included, as float32."""
    if len(levels) == 256:
        return levels.take(packed, axis=0).reshape(-1)
    triples = packed.reshape(-1, 3).astype("u2")
    index = np.empty((len(triples), 2), dtype="u2")
    index[:, 0] = triples[:, 0] | (triples[:, 1] & 15) << 8
    index[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    return levels.take(index.reshape(-1), axis=0).reshape(-1)


def pack_places(places: Array) -> bytes:
    """Return increasing places (i8, at least one) as Rice codes of the gaps between them.

    A gap g under width k is g >> k in unary and its k lower bits (Golomb 1966, Rice 1979). Each 32 gaps have a width
    of their own, because layers are not equally dense: on real updates that is 5 to 30 % below the entropy of places
    drawn with one chance. Three sections: widths, lower bits, unary.
    """
    count = places.size
    groups = -(-count // GROUP)
    flat = np.zeros(groups * GROUP, dtype="i8")
    flat[:count] = places
    flat[1:count] -= places[:-1] + 1
    gaps = flat.reshape(groups, GROUP)
    widths = _best_widths(gaps, count)
    quotients = (gaps >> widths[:, np.newaxis]).reshape(-1)[:count]
    ends = np.cumsum(quotients + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, dtype="u1")
    unary[ends] = 1
    header = (widths[:, np.newaxis] >> np.arange(_WIDTH_BITS) & 1).astype("u1")
    lower = _pack_lower(gaps, widths)[: _lower_size(widths, count)]
    return b"".join(
        (
            np.packbits(header.reshape(-1), bitorder="little").tobytes(),
            lower.tobytes(),
            np.packbits(unary, bitorder="little").tobytes(),
        )
    )


def places_limit(count: int, among: int) -> int:
    """Return the most bytes `pack_places` makes of `count` places under `among`.

    The best width of a group with mean gap m costs at most 3 + log2(1 + m) bits a gap, and log2 is concave.
    """
    bits = count * (3 + math.log2(1 + among / count))
    return 16 + int(bits * 1.001 / 8) + -(-count // GROUP) * _WIDTH_BITS // 8


def unpack_places(code: bytes | memoryview, count: int, among: int) -> Array:
    """Return `count` increasing places under `among`, as i8.

    Raises:
        Refused: a stranger's bytes are not what `pack_places` writes.
    """
    if 8 * len(code) + count >= 1 << 32:  # widths are under 32, so up to here no sum of gaps passes 2**63
        raise Refused(f"{count} places in {len(code)} bytes")
    data = np.frombuffer(code, dtype="u1")
    groups = -(-count // GROUP)
    header_size = -(-groups * _WIDTH_BITS // 8)
    header = np.unpackbits(data[:header_size], bitorder="little")
    if header.size < groups * _WIDTH_BITS:
        raise Refused(f"the places of {count} values take more than {len(code)} bytes")
    widths = header[: groups * _WIDTH_BITS].reshape(groups, _WIDTH_BITS) @ (1 << np.arange(_WIDTH_BITS))
    unary_start = header_size + _lower_size(widths, count)
    unary = np.unpackbits(data[unary_start:], bitorder="little").view("?")
    if np.count_nonzero(unary) != count or data[-1] == 0:
        raise Refused(f"{np.count_nonzero(unary)} places where {count} belong")
    ends = np.flatnonzero(unary)
    gaps = _unpack_lower(data[header_size:unary_start], widths)
    steps = np.zeros(groups * GROUP, dtype="i8")
    steps[:count] = ends
    steps[1:count] -= ends[:-1]
    steps[0] += 1
    rows = steps.reshape(groups, GROUP)  # quotient + 1; and a step is a gap + 1
    rows <<= widths[:, np.newaxis]
    rows += gaps
    rows += (1 - (1 << widths))[:, np.newaxis]
    steps[0] -= 1
    places: Array = np.cumsum(steps[:count])
    if places[-1] >= among:
        raise Refused(f"a place beyond {among} values")
    return places


def _best_widths(gaps: Array, count: int) -> Array:
    """Return the width of each group that costs least of the three around log2 of its mean gap."""
    sizes = np.full(len(gaps), GROUP)
    sizes[-1] = count - GROUP * (len(gaps) - 1)
    guess = np.frexp(gaps.sum(axis=1) // sizes)[1].astype("i8")
    tried = np.clip(guess + _AROUND, 0, (1 << _WIDTH_BITS) - 1)
    bits = tried * sizes + np.stack([(gaps >> widths[:, np.newaxis]).sum(axis=1) for widths in tried])
    best: Array = tried[bits.argmin(axis=0), np.arange(len(gaps))]  # of equal ones the first
    return best


def _lower_size(widths: Array, count: int) -> int:
    """Return the bytes of all lower bits; those of the last group end with its last gap."""
    last = count - GROUP * (widths.size - 1)
    return int(widths[:-1].sum()) * GROUP // 8 + -(-int(widths[-1]) * last // 8)


def _chunks(widths: Array) -> list[tuple[int, Array]]:
    """Return each width there is with numbers of groups that have it, a bounded number at a time."""
    return [
        (width, rows[start : start + _CHUNK])
        for width, count in enumerate(np.bincount(widths).tolist())
        if width and count
        for rows in [np.flatnonzero(widths == width)]
        for start in range(0, rows.size, _CHUNK)
    ]


def _pack_lower(gaps: Array, widths: Array) -> Array:
    if widths.max() <= _WORD and len(gaps) <= _CHUNK:
        return _words_of(gaps, widths)
    starts = (np.cumsum(widths) - widths) * (GROUP // 8)
    code = np.zeros(int(widths.sum()) * (GROUP // 8), dtype="u1")
    for width, rows in _chunks(widths):
        places = starts[rows, np.newaxis] + np.arange(width * GROUP // 8)
        if width <= _WORD:  # eight gaps are a word of as many bytes as each has bits
            lower = gaps[rows].reshape(-1, 8) & ((1 << width) - 1)
            words = np.bitwise_or.reduce(lower << np.arange(0, 8 * width, width), axis=1).astype("<i8", copy=False)
            code[places] = words.view("u1").reshape(-1, 8)[:, :width].reshape(rows.size, -1)
        else:
            bits = (gaps[rows, :, np.newaxis] >> np.arange(width) & 1).astype("u1")
            code[places] = np.packbits(bits.reshape(rows.size, -1), axis=1, bitorder="little")
    return code


def _words_of(gaps: Array, widths: Array) -> Array:
    """Pack gaps of any widths up to a byte: eight are a word of as many bytes as each has bits."""
    width = np.repeat(widths, GROUP // 8)
    lower = np.ascontiguousarray((gaps & ((1 << widths) - 1)[:, np.newaxis]).reshape(-1, 8).T)
    words = lower[7]
    for place in range(6, -1, -1):
        words = words << width | lower[place]
    packed: Array = words.astype("<i8", copy=False).view("u1").reshape(-1, 8)[np.arange(8) < width[:, np.newaxis]]
    return packed


def _unpack_lower(code: Array, widths: Array) -> Array:
    starts = (np.cumsum(widths) - widths) * (GROUP // 8)
    whole = np.zeros(int(widths.sum()) * (GROUP // 8), dtype="u1")
    whole[: code.size] = code
    gaps = np.zeros((widths.size, GROUP), dtype="i8")
    for width, rows in _chunks(widths):
        packed = whole[starts[rows, np.newaxis] + np.arange(width * GROUP // 8)]
        if width <= _WORD:
            words = np.zeros((rows.size * GROUP // 8, 8), dtype="u1")
            words[:, :width] = packed.reshape(-1, width)
            part = words.view("<u8") >> np.arange(0, 8 * width, width, dtype="u8") & np.uint64((1 << width) - 1)
            gaps[rows] = part.reshape(rows.size, GROUP)
            continue
        bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(rows.size, GROUP, width)
        for place in range(width):
            gaps[rows] |= bits[:, :, place].astype("i8") << place
    return gaps
