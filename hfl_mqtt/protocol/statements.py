"""What is signed, as bytes. A statement names its kind and holds its fields in msgpack, which no other fields give.

An update and a keyframe carry their signature as a trailer of their blob, so that parts, digests and what is kept hold
it as they hold the rest. A call carries it as a field. Whether it stands there is configured, and never guessed.

What is signed is what is acted on: the fields as they were understood. A release that does not know a field of a newer
one does not take its signature either.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import msgpack

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.messages import Buffer, RoundCall
from hfl_mqtt.protocol.wire import fields_of

#: Bytes of a signature, and of the trailer of a blob.
SIGNATURE_SIZE = 64

_UPDATE = b"hfl-mqtt update 1\0"
_KEYFRAME = b"hfl-mqtt keyframe 1\0"
_CALL = b"hfl-mqtt call 1\0"


def of_update(
    federation: str, run: str, round_id: tuple[int, ...], sender: str, base: str, body_digest: bytes
) -> bytes:
    """Return the statement of an update: under another run, round, name or base it is another one.

    Args:
        federation, run, round_id, sender: where it belongs.
        base: the model that it starts from, as its parts say it: 16 hex digits.
        body_digest: SHA-256 of its blob without the trailer.
    """
    return _stated(_UPDATE, federation, run, list(round_id), sender, base, body_digest)


def of_keyframe(federation: str, run: str, sender: str, version: int, digest: str, body_digest: bytes) -> bytes:
    """Return the statement of a keyframe of the model `digest`, which says how it came about, not what is in it."""
    return _stated(_KEYFRAME, federation, run, sender, version, digest, body_digest)


def of_call(federation: str, sender: str, call: RoundCall) -> bytes:
    """Return the statement of a call, whatever signature it carries."""
    text = json.dumps(fields_of(replace(call, signature="")), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _stated(_CALL, federation, sender, text)


def to_text(signature: bytes) -> str:
    """Write a signature as 86 characters of base64url.

    >>> to_text(bytes(64))[:4], len(to_text(bytes(64)))
    ('AAAA', 86)
    """
    return base64.urlsafe_b64encode(signature).decode("ascii").rstrip("=")


def from_text(text: str) -> bytes:
    """Read what `to_text` wrote; the message has checked that it has 86 such characters, or is empty."""
    return base64.urlsafe_b64decode(text + "==") if text else b""


def unsealed(blob: Buffer) -> tuple[memoryview, bytes]:
    """Return the body of a sealed blob, as a view, and its signature.

    Raises:
        Malformed: it is too short to have both.
    """
    view = memoryview(blob)
    if len(view) <= SIGNATURE_SIZE:
        raise Malformed(f"a blob of {len(view)} bytes carries no signature")
    return view[:-SIGNATURE_SIZE], bytes(view[-SIGNATURE_SIZE:])


def _stated(kind: bytes, *fields: Any) -> bytes:
    return kind + bytes(msgpack.packb(list(fields), use_bin_type=True))
