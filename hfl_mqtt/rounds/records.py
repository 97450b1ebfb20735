"""What a machine persists of itself, as bytes: small dataclasses as msgpack, validated when they are read again.

A record may have been written by another release, or damaged: what cannot be read counts as absent, and is never an
error, for a node that cannot read its notes can still begin anew.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from hfl_mqtt.protocol.messages import Buffer

#: Raised where older records must not be read any more; a new field with a usual value needs no new number.
FORMAT = 1
T = TypeVar("T")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def pack(record: Any) -> bytes:
    """Return the bytes of a dataclass; fields that have their usual value are left out.

    >>> from hfl_mqtt.protocol.messages import Tally
    >>> read(Tally, pack(Tally(total=1.5, count=3)))
    Tally(total=1.5, count=3.0, is_root=False)
    """
    fields = _adapter(type(record)).dump_python(record, mode="python", exclude_defaults=True)
    return msgpack.packb([FORMAT, fields], default=_plain, use_bin_type=True)  # type: ignore[no-any-return]


def read(kind: type[T], data: Buffer | None) -> T | None:
    """Return the record that `pack` made these bytes of; None where there are none, or they are no such record."""
    if data is None:
        return None
    try:
        found = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
        version, fields = found
        return _adapter(kind).validate_python(fields) if version == FORMAT else None
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException, ValidationError):
        return None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    found = _ADAPTERS.get(kind)
    if found is None:
        found = _ADAPTERS[kind] = TypeAdapter(kind)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a record holds no {type(value).__name__}")
