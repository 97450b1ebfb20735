"""A model's layout as bytes: the table of names, dtypes and shapes in front of a full payload, and its fingerprint.

One row per tensor, in the order of the model: length and UTF-8 of the name, number of the dtype, number of dimensions,
dimensions; lengths and dimensions in LEB128. On the wire the table is packed with zstd.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import zstandard

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.weights import DTYPES, Layout, TensorSpec, shown
from hfl_mqtt.protocol.limits import MAX_DIMENSIONS, MAX_TABLE, MAX_TENSOR_NAME, MAX_TENSORS

#: The numbers of dtypes on the wire: their places in this row.
_CODES = ("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4")
_MAX_VARINT_BITS = 49
assert set(_CODES) == DTYPES


class Cursor:
    """Reads a stranger's bytes from the front."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.offset = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes, as a view.

        Raises:
            Refused: there are fewer.
        """
        start, self.offset = self.offset, self.offset + size
        if self.offset > len(self._data):
            raise Refused(f"ends after {len(self._data)} bytes, at least {self.offset} were announced")
        return self._data[start : self.offset]

    def varint(self) -> int:
        """Return the next number, under 2**49.

        Raises:
            Refused: there is none.
        """
        number = 0
        for shift in range(0, _MAX_VARINT_BITS, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise Refused("a number too large")

    def rest(self) -> memoryview:
        """Return all that is left."""
        return self._data[self.offset :]


def varint(number: int) -> bytes:
    """Return a number from 0 on in LEB128.

    >>> varint(300).hex()
    'ac02'
    """
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def encode_layout(layout: Layout) -> bytes:
    """Return a layout's table, packed.

    Raises:
        Refused: it takes over 1 MiB.
    """
    table = _table(layout, list(layout))
    if len(table) > MAX_TABLE:
        raise Refused(f"the names and shapes of {len(layout)} tensors take {len(table)} bytes, at most {MAX_TABLE}")
    return zstandard.ZstdCompressor(level=9).compress(table)


def decode_layout(data: bytes | memoryview, max_bytes: int) -> dict[str, TensorSpec]:
    """Read a packed table.

    Args:
        data: a stranger's bytes.
        max_bytes: the most bytes of values that the receiver is ready to hold in such a model.

    Raises:
        Refused: it is no table, or that of a larger model.
    """
    try:
        stated = zstandard.frame_content_size(data)
        if not 0 < stated <= MAX_TABLE:
            raise Refused(f"a table of {stated} bytes, at most {MAX_TABLE}")
        table = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused(f"not a table: {str(error)[:100]}") from None
    cursor = Cursor(table)
    count = cursor.varint()
    if count > MAX_TENSORS:
        raise Refused(f"{count} tensors, at most {MAX_TENSORS}")
    layout: dict[str, TensorSpec] = {}
    for _ in range(count):
        name, spec = _read_row(cursor)
        if name in layout:
            raise Refused(f"{shown(name)} stands twice")
        layout[name] = spec
    if cursor.offset != len(table):
        raise Refused(f"{len(table) - cursor.offset} bytes stand behind the table")
    total = sum(spec.size_bytes for spec in layout.values())
    if total > max_bytes:
        raise Refused(f"a model of {total} bytes, at most {max_bytes}")
    return layout


def fingerprint(layout: Layout) -> bytes:
    """Return 8 bytes that two layouts share if they are the same, whatever the order of their names."""
    return hashlib.sha256(_table(layout, sorted(layout))).digest()[:8]


def size_limit(layout: Layout) -> int:
    """Return the most bytes of `encode_layout`."""
    size = len(_table(layout, list(layout)))
    return size + (size >> 8) + 128


def _table(layout: Layout, names: list[str]) -> bytes:
    rows = [varint(len(names))]
    for name in names:
        spec, text = layout[name], name.encode()
        dims = b"".join(map(varint, spec.shape))
        rows.append(varint(len(text)) + text + bytes([_CODES.index(spec.code), len(spec.shape)]) + dims)
    return b"".join(rows)


def _read_row(cursor: Cursor) -> tuple[str, TensorSpec]:
    size = cursor.varint()
    if size > 4 * MAX_TENSOR_NAME:
        raise Refused(f"a name of {size} bytes")
    try:
        name = str(cursor.take(size), "utf-8")
    except UnicodeDecodeError:
        raise Refused("a name that is not UTF-8") from None
    code, ndim = cursor.take(2)
    if not 0 < len(name) <= MAX_TENSOR_NAME or code >= len(_CODES) or ndim > MAX_DIMENSIONS:
        raise Refused(f"{shown(name)} is no tensor of this package")
    shape = tuple(cursor.varint() for _ in range(ndim))
    # A dimension of 0 makes the others free of charge, but numpy still multiplies them.
    if math.prod(max(dim, 1) for dim in shape) >= 2**48:
        raise Refused(f"{shown(name)} has an impossible shape")
    return name, TensorSpec(dtype=np.dtype(_CODES[code]), shape=shape)
