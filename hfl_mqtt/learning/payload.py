"""Weights as bytes and back: a msgpack map that says what follows, then the tensors' bytes, packed.

    {v: 1, codec: "int8 | zstd", tensors: [[name, dtype, shape, [bytes of each part]], ...]}  body

Parts of a tensor are the side bytes of each array codec and the last rest, or just its values where it passes exactly.
An empty body is not packed. All numbers are little-endian. The map stands before the body, not around it, so that a
reader can bound it by itself: a hundred megabytes of empty msgpack lists would become gigabytes of Python lists.

`decode` is for hostile bytes: every name, shape, dtype and length is checked before anything of that size is allocated,
and nothing but `Refused` ever comes out.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import TINY, Chain, Flat
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import (
    DTYPES,
    MAX_NAME,
    MAX_NDIM,
    MAX_TENSORS,
    Layout,
    TensorSpec,
    check_finite,
    check_layout,
    layout_of,
    little_endian,
    shown,
)

#: Raised only together with new golden files.
VERSION = 1
#: The most bytes of the map in front, for a reader that does not know what to expect.
MAX_HEADER = 1 << 20
_DTYPES = {code: np.dtype(code) for code in DTYPES}


def encode(weights: Weights, chain: Chain, rng: np.random.Generator) -> bytes:
    """Return `weights` as bytes. The same seed of `rng` gives the same bytes.

    Raises:
        Refused: they hold NaN or infinity, or a dtype or name that cannot travel.
    """
    tensors: list[list[Any]] = []
    parts: list[bytes | memoryview] = []
    for name, spec in layout_of(weights).items():
        values = np.ascontiguousarray(weights[name].reshape(-1))
        if spec.is_float:
            check_finite(name, values)
        pieces: list[bytes | memoryview] = []
        if _meets_codec(spec):
            for codec in chain.arrays:
                side, values = codec.encode(values, rng)
                pieces.append(side)
        pieces.append(little_endian(values))
        tensors.append([name, spec.code, spec.shape, [len(piece) for piece in pieces]])
        parts += pieces
    header: bytes = msgpack.packb({"v": VERSION, "codec": str(chain), "tensors": tensors})
    if len(header) > MAX_HEADER:
        raise Refused(f"the names and shapes of {len(tensors)} tensors take {len(header)} bytes, at most {MAX_HEADER}")
    body = b"".join(parts)
    for packer in chain.packers if body else ():
        body = packer.encode(body)
    return header + body


def decode(payload: bytes, chain: Chain, expected: Layout) -> Weights:
    """Read a payload whose layout and chain are known. The arrays may be read-only views of one buffer.

    Raises:
        Refused: it is anything else, or holds NaN or infinity.
    """
    layout, parts, start = _read_header(payload, chain, min(MAX_HEADER, _header_limit(expected, chain)))
    check_layout(layout, expected)
    limit = size_limit(expected, chain)
    if len(payload) > limit:
        raise Refused(f"{len(payload)} bytes, at most {limit} for this model in {chain}")
    return _read_body(payload, start, chain, layout, parts)


def decode_unknown(payload: bytes, chain: Chain, max_bytes: int) -> Weights:
    """Read a payload whose layout is not known, such as the first model. The arrays may be read-only views.

    Args:
        payload: a stranger's bytes.
        chain: what it must be coded in.
        max_bytes: the most bytes of decoded values, and of the payload's body, that the receiver is ready to hold.

    Raises:
        Refused: it is no such payload, or holds NaN or infinity.
    """
    layout, parts, start = _read_header(payload, chain, MAX_HEADER)
    total = sum(spec.size_bytes for spec in layout.values())
    if total > max_bytes or len(payload) - start > _packed_limit(chain, max_bytes)[-1]:
        raise Refused(f"a model of {total} bytes, at most {max_bytes}")
    return _read_body(payload, start, chain, layout, parts)


def size_limit(layout: Layout, chain: Chain) -> int:
    """Return the most bytes that weights of this layout take in this chain."""
    body = sum(sum(_part_limits(spec, chain)[0]) for spec in layout.values())
    return _header_limit(layout, chain) + _packed_limit(chain, body)[-1]


def _meets_codec(spec: TensorSpec) -> bool:
    return spec.is_float and spec.size >= TINY


def _part_limits(spec: TensorSpec, chain: Chain) -> tuple[list[int], list[Flat]]:
    """Return the most bytes of each part, and what goes into each array codec, and last, what is written."""
    flats, limits = [Flat(dtype=spec.dtype, size=spec.size)], []
    if _meets_codec(spec):
        for codec in chain.arrays:
            side, rest = codec.outline(flats[-1])
            limits.append(side)
            flats.append(rest)
    return [*limits, flats[-1].size_bytes], flats


def _packed_limit(chain: Chain, size: int) -> list[int]:
    """Return the most bytes of the body before and after each bytes codec."""
    return list(accumulate(chain.packers, lambda total, packer: packer.limit(total), initial=size))


def _header_limit(layout: Layout, chain: Chain) -> int:
    """Return a bound on the map in front: msgpack takes at most 9 bytes for a number."""
    parts = len(chain.arrays) + 1
    return (
        64
        + len(str(chain))
        + sum(len(name.encode()) + 32 + 9 * (len(spec.shape) + parts) for name, spec in layout.items())
    )


def _read_header(payload: bytes, chain: Chain, limit: int) -> tuple[dict[str, TensorSpec], list[list[int]], int]:
    """Return layout, lengths of the parts, and where the body starts."""
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=limit,
        max_array_len=MAX_TENSORS,
        max_map_len=8,
        max_str_len=4 * MAX_NAME,
        max_bin_len=0,
        max_ext_len=0,
    )
    unpacker.feed(memoryview(payload)[:limit])
    try:
        header = unpacker.unpack()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise Refused(f"not a payload: {type(error).__name__}") from None
    if not isinstance(header, dict) or header.get("v") != VERSION:
        raise Refused(f"not a payload of version {VERSION}")
    codec = header.get("codec")
    if codec != str(chain):
        # Only text is shown: the repr of a thousand nested lists would raise.
        raise Refused(
            f"coded in {codec[:60]!r}, asked was {str(chain)!r}" if isinstance(codec, str) else "names no codec"
        )
    tensors = header.get("tensors")
    if not isinstance(tensors, list):
        raise Refused("not a payload: no tensors")
    layout: dict[str, TensorSpec] = {}
    lengths = []
    for row in tensors:
        name, spec, parts = _read_row(row)
        if name in layout:
            raise Refused(f"{shown(name)} stands twice")
        limits, _ = _part_limits(spec, chain)
        if len(parts) != len(limits) or any(part > most for part, most in zip(parts, limits, strict=True)):
            raise Refused(f"{shown(name)} has parts of wrong sizes")
        layout[name] = spec
        lengths.append(parts)
    return layout, lengths, unpacker.tell()


def _read_row(row: object) -> tuple[str, TensorSpec, list[int]]:
    match row:
        case [str(name), str(code), list(shape), list(parts)] if (
            0 < len(name) <= MAX_NAME and code in _DTYPES and len(shape) <= MAX_NDIM and _are_counts(shape + parts)
        ):
            # A dimension of 0 makes the others free of charge, but numpy still multiplies them.
            if math.prod(max(dim, 1) for dim in shape) >= 2**48:
                raise Refused(f"{shown(name)} has an impossible shape")
            return name, TensorSpec(dtype=_DTYPES[code], shape=tuple(shape)), parts
    raise Refused("not a payload: a tensor is not [name, dtype, shape, parts]")


def _are_counts(numbers: list[object]) -> bool:
    return all(type(number) is int and 0 <= number < 2**48 for number in numbers)


def _read_body(payload: bytes, start: int, chain: Chain, layout: Layout, lengths: list[list[int]]) -> Weights:
    size = sum(map(sum, lengths))
    body: bytes | memoryview = memoryview(payload)[start:]
    limits = _packed_limit(chain, size)
    for packer, limit in zip(reversed(chain.packers), reversed(limits[:-1]), strict=True):
        body = packer.decode(body, limit) if size else body
    if len(body) != size:
        raise Refused(f"a body of {len(body)} bytes, expected {size}")
    view, offset = memoryview(body), 0
    weights: Weights = {}
    for (name, spec), parts in zip(layout.items(), lengths, strict=True):
        pieces = []
        for part in parts:
            pieces.append(view[offset : offset + part])
            offset += part
        values = _read_tensor(spec, chain, pieces)
        _check_values(name, spec, values)
        weights[name] = values.reshape(spec.shape)
    return weights


def _read_tensor(spec: TensorSpec, chain: Chain, pieces: list[memoryview]) -> NDArray[Any]:
    _, flats = _part_limits(spec, chain)
    last, written = pieces[-1], flats[-1]
    if len(last) % written.dtype.itemsize:
        raise Refused(f"{len(last)} bytes are no whole {written.dtype.name}s")
    values = _from_bytes(last, written.dtype)
    if len(flats) > 1:
        for codec, side, before in reversed(list(zip(chain.arrays, pieces[:-1], flats[:-1], strict=True))):
            values = codec.decode(bytes(side), values, before)
    if values.size != spec.size:
        raise Refused(f"{values.size} values, expected {spec}")
    return values


def _from_bytes(data: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    count = len(data) // dtype.itemsize
    little: NDArray[Any] = np.ndarray((count,), dtype=dtype.newbyteorder("<"), buffer=data if count else b"")
    return little.astype(dtype, copy=False)


def _check_values(name: str, spec: TensorSpec, values: NDArray[Any]) -> None:
    if spec.is_float:
        check_finite(name, values)
    elif spec.dtype.kind == "b" and values.size and values.view("u1").max() > 1:
        raise Refused(f"{shown(name)} holds a boolean that is neither 0 nor 1")
