"""Weights as bytes and back, in two forms: compact for who knows the model, full for who does not.

    compact   01  codec  fingerprint  lengths  sides  body        updates, and deltas of a model
    full      81  codec  layout       lengths  sides  body        keyframes

`codec` is the chain's canonical text behind its length. `layout` is the table of names, dtypes and shapes (`tables`),
`fingerprint` the start of its SHA-256. `lengths` are those of sides that vary, in LEB128; `sides` are what the array
codecs keep for themselves, as dense as it gets; `body` are the last rests, packed by the bytes codecs, or empty. The
order is that of the names; a codec that sees a whole model has all float tensors of a dtype where the first of them
would stand (`grouping`). Without bytes codecs, zeros stand before the body so that numbers in it are aligned. All
numbers are little-endian.

Readers are for hostile bytes: whatever is allocated is of a size that the receiver's own layout, or its `max_bytes`,
gives, and nothing but `Refused` ever comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs import Chain, Flat, Reader, parse
from hfl_mqtt.learning.codecs.chain import Bytes, Whole
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.grouping import Batch, Group, Plan, plan
from hfl_mqtt.learning.tables import Cursor, decode_layout, encode_layout, varint
from hfl_mqtt.learning.weights import Layout, TensorSpec, check_finite, layout_of, little_endian, shown
from hfl_mqtt.protocol.limits import MAX_CODEC

__all__ = [
    "VERSION",
    "codec_of",
    "decode",
    "decode_full",
    "decode_layout",
    "encode",
    "encode_full",
    "encode_layout",
    "read_layout",
    "size_limit",
    "tensors",
]

#: Raised only together with new golden files.
VERSION = 1
_COMPACT, _FULL = VERSION, 0x80 | VERSION


def encode(weights: Weights, chain: Chain, rng: np.random.Generator) -> bytes:
    """Return `weights` in compact form. The same seed of `rng` gives the same bytes on the same machine.

    Raises:
        Refused: they hold NaN or infinity, or a dtype or name that cannot travel.
    """
    made = plan(layout_of(weights), chain)
    return _write(bytes([_COMPACT]) + _text(chain) + made.fingerprint, weights, made, rng)


def carry(weights: Weights, chain: Chain, rng: np.random.Generator) -> tuple[bytes, Weights]:
    """Return what `encode` does, and what `decode` makes of it, to the bit and for less. Arrays may be those given.

    Raises:
        Refused: as `encode`; or what is decoded would hold infinity.
    """
    made = plan(layout_of(weights), chain)
    said: Weights = {}
    payload = _write(bytes([_COMPACT]) + _text(chain) + made.fingerprint, weights, made, rng, said)
    return payload, {name: said[name] for name in weights}


def encode_full(weights: Weights, chain: Chain, rng: np.random.Generator) -> bytes:
    """Return `weights` in full form.

    Raises:
        Refused: as `encode`, or names and shapes take over 1 MiB.
    """
    layout = layout_of(weights)
    table = encode_layout(layout)
    return _write(bytes([_FULL]) + _text(chain) + varint(len(table)) + table, weights, plan(layout, chain), rng)


def decode(payload: Bytes, chain: Chain, expected: Layout) -> Weights:
    """Read a compact payload whose layout and chain are known. Arrays may be read-only views of `payload`.

    Raises:
        Refused: it is anything else, or holds NaN or infinity.
    """
    found = dict(tensors(payload, chain, expected))
    return {name: found[name] for name in expected}


def tensors(payload: Bytes, chain: Chain, expected: Layout) -> Iterator[tuple[str, NDArray[Any]]]:
    """Read a compact payload one tensor after another, each checked before it is given.

    At most one tensor is held, or a few small ones, or with codecs that see a whole model, one dtype's; what `zstd` has
    packed is unpacked as it goes. The last `Refused` may come after the last tensor: nothing counts before the end.

    Raises:
        Refused: as `decode`, at any step.
    """
    cursor = Cursor(payload)
    _expect(cursor, _COMPACT, chain)
    made = plan(expected, chain)
    if cursor.take(len(made.fingerprint)) != made.fingerprint:
        raise Refused("coded for another model: names, shapes or dtypes differ")
    yield from _read(cursor, made)


def decode_full(payload: Bytes, max_bytes: int, chain: Chain | None = None) -> Weights:
    """Read a full payload. Arrays may be read-only views of `payload`.

    Args:
        payload: a stranger's bytes.
        max_bytes: the most bytes of decoded values that the receiver is ready to hold.
        chain: what it must be coded in; None allows every chain there is.

    Raises:
        Refused: it is no such payload, or holds NaN or infinity.
    """
    cursor = Cursor(payload)
    found = _expect(cursor, _FULL, chain)
    layout = decode_layout(cursor.take(cursor.varint()), max_bytes)
    weights = dict(_read(cursor, plan(layout, found)))
    return {name: weights[name] for name in layout}


def read_layout(payload: Bytes, max_bytes: int) -> dict[str, TensorSpec]:
    """Return what the weights in a full payload look like, without reading them.

    Raises:
        Refused: it is no full payload, or one of more than `max_bytes` of values.
    """
    cursor = Cursor(payload)
    _expect(cursor, _FULL, None)
    return decode_layout(cursor.take(cursor.varint()), max_bytes)


def codec_of(payload: Bytes) -> str:
    """Return the canonical text of the chain that a payload, of either form, says it is coded in.

    Raises:
        Refused: it is no payload, or no such chain is known here.
    """
    cursor = Cursor(payload)
    chain = _expect(cursor, _FULL if bytes(payload[:1]) == bytes([_FULL]) else _COMPACT, None)
    return _text(chain)[1:].decode()


def size_limit(layout: Layout, chain: Chain) -> int:
    """Return the most bytes that weights of this layout take in this chain, in either form."""
    return plan(layout, chain).size_limit


@lru_cache(maxsize=64)
def _text(chain: Chain) -> bytes:
    text = str(chain).encode()
    return bytes([len(text)]) + text


def _write(head: bytes, weights: Weights, made: Plan, rng: np.random.Generator, said: Weights | None = None) -> bytes:
    """Return a payload; `said` is filled with what decoding gives."""
    arrays = made.chain.arrays
    lengths: list[bytes] = []
    sides: list[bytes] = []

    def rests() -> Iterator[Bytes]:
        """Encode while the body is packed, so that no two rests lie in memory without need."""
        for group in made.groups:
            values = found = _gather(group, weights)
            if group.is_coded:
                if said is None:
                    own, values = made.chain.encode(values, rng)
                else:
                    with np.errstate(over="ignore", invalid="ignore"):
                        own, values, found = made.chain.carry(values, rng, group.flats)
                    _check_finite([group], found)
                lengths.extend(varint(len(side)) for codec, side in zip(arrays, own, strict=True) if codec.side_varies)
                sides.extend(own)
            if said is not None:
                said.update(_taken_apart(group, found, made.layout))
            yield little_endian(values)

    body: list[Bytes] = list(_packed(rests(), made.body_bytes, made.chain))
    front = b"".join((head, *lengths, *sides))
    return b"".join((front, bytes(-len(front) % made.alignment), *body))


def _packed(parts: Iterator[Bytes], size: int, chain: Chain) -> Iterator[Bytes]:
    for packer in chain.packers if size else ():
        packed = list(packer.encode(parts, size))
        parts, size = iter(packed), sum(map(len, packed))
    yield from parts


def _gather(group: Group, weights: Weights) -> NDArray[Any]:
    """Return the values of a group as one finite flat array in native order."""
    flats = [np.ascontiguousarray(weights[name].reshape(-1), dtype=group.flat.dtype) for name in group.names]
    values = flats[0] if len(flats) == 1 else np.concatenate(flats)
    if group.flat.dtype.kind == "f":
        _check_finite([group], values)
    return values


def _expect(cursor: Cursor, form: int, chain: Chain | None) -> Chain:
    """Read form and codec, and return the chain."""
    if cursor.take(1)[0] != form:
        said = "full" if form == _FULL else "compact"
        raise Refused(f"not a {said} payload of version {VERSION}")
    text = bytes(cursor.take(cursor.take(1)[0]))
    if chain is None:
        return _chain(text)
    if text != _text(chain)[1:]:
        raise Refused(f"coded in {text[:60].decode('ascii', 'replace')!r}, asked was {str(chain)!r}")
    return chain


@lru_cache(maxsize=64)
def _chain(text: bytes) -> Chain:
    try:
        if len(text) > MAX_CODEC or not text.isascii():
            raise ConfigError("no text of a codec")
        found = parse(text.decode())
    except ConfigError as error:
        raise Refused(f"coded in nothing known here: {str(error)[:200]}") from None
    if str(found).encode() != text:
        raise Refused(f"coded in {text[:60].decode()!r}, which is {str(found)!r}")
    return found


def _read(cursor: Cursor, made: Plan) -> Iterator[tuple[str, NDArray[Any]]]:
    lengths = [_side_lengths(cursor, group, made.chain) for group in made.groups]
    sides = iter([[cursor.take(length) for length in own] if own else [] for own in lengths])
    if any(cursor.take(-cursor.offset % made.alignment)):
        raise Refused("something stands before the body where zeros belong")
    reader = _open(cursor.rest(), made)
    for batch in made.batches:
        arrays = _read_batch(batch, sides, reader.take(batch.body_bytes), made.chain)
        for group, values in zip(batch.groups, arrays, strict=True):
            yield from _taken_apart(group, values, made.layout).items()
    reader.finish()


def _taken_apart(group: Group, values: NDArray[Any], layout: Layout) -> Weights:
    """Return the tensors of a group, views of its values."""
    starts = (0, *group.ends)
    return {
        name: values[start:end].reshape(layout[name].shape)
        for name, start, end in zip(group.names, starts, group.ends, strict=False)
    }


def _side_lengths(cursor: Cursor, group: Group, chain: Chain) -> Sequence[int]:
    if not (group.is_coded and chain.side_varies):
        return group.sides
    lengths = []
    for codec, most in zip(chain.arrays, group.sides, strict=True):
        length = cursor.varint() if codec.side_varies else most
        if length > most:
            raise Refused(f"{shown(group.names[0])} in {codec.name} with {length} bytes beside, at most {most}")
        lengths.append(length)
    return lengths


def _open(body: Bytes, made: Plan) -> Reader:
    if not (made.chain.packers and made.body_bytes):
        return Whole(body, made.body_bytes)
    for packer, limit in zip(made.chain.packers[:0:-1], made.packed_limits[-2:0:-1], strict=True):
        body = packer.decode(body, limit)
    return made.chain.packers[0].reader(body, made.body_bytes)


def _read_batch(batch: Batch, sides: Iterator[list[memoryview]], body: memoryview, chain: Chain) -> list[NDArray[Any]]:
    """Return the values of each group, checked."""
    arrays, start = [], 0
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused below
        for group, own in zip(batch.groups, sides, strict=False):
            end = start + group.rest.size_bytes
            values = _from_bytes(body[start:end], group.rest)
            arrays.append(chain.decode(own, values, group.flats) if group.is_coded else values)
            start = end
    for dtype in {group.flat.dtype for group in batch.groups}:
        alike = [place for place, group in enumerate(batch.groups) if group.flat.dtype == dtype]
        groups, found = [batch.groups[place] for place in alike], [arrays[place] for place in alike]
        values = found[0] if len(found) == 1 else np.concatenate(found)
        if dtype.kind == "f":
            _check_finite(groups, values)
        elif dtype.kind == "b" and values.size and values.view("u1").max() > 1:
            raise Refused(f"{shown(_first(groups, values.view('u1') > 1))} holds a boolean that is neither 0 nor 1")
    return arrays


def _from_bytes(data: memoryview, flat: Flat) -> NDArray[Any]:
    little: NDArray[Any] = np.ndarray(
        (flat.size,), dtype=flat.dtype.newbyteorder("<"), buffer=data if flat.size else b""
    )
    return little.astype(flat.dtype, copy=False)


def _check_finite(groups: Sequence[Group], values: NDArray[Any]) -> None:
    """Check the values of groups of floats, one behind another; `Refused` names the first tensor that is none."""
    try:
        check_finite("", values)
    except Refused:
        check_finite(_first(groups, ~np.isfinite(values)), values)


def _first(groups: Sequence[Group], is_wrong: NDArray[np.bool_]) -> str:
    """Return the name of the first tensor in which something is wrong."""
    at = int(np.argmax(is_wrong))
    for group in groups:
        for name, end in zip(group.names, group.ends, strict=True):
            if at < end:
                return name
        at -= group.ends[-1]
    raise AssertionError("nothing is wrong")
