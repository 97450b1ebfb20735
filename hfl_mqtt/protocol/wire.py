"""Messages to bytes on a topic and back: JSON for what people read, a msgpack envelope with a version for weights.

This is the border. `decode` bounds a payload before it parses it, validates it once, and raises `Malformed` with a
reason for anything that is not exactly a message of this protocol on a topic where it may stand. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.limits import MAX_BINARY, MAX_CONTAINERS, MAX_HEAD, MAX_JSON, MAX_TEXT
from hfl_mqtt.protocol.messages import (
    PROTOCOL,
    Announce,
    Assign,
    Buffer,
    Control,
    Decline,
    Identity,
    Info,
    Keyframe,
    KeyPart,
    Lease,
    Message,
    Metrics,
    ModelPart,
    Moving,
    Piece,
    Quarantine,
    Quarantined,
    Receipt,
    RoundCall,
    State,
    Update,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.topics import UP_SLOTS, Channel, Topic, slot

_JSON_TYPES: dict[tuple[Channel, str], type[Any]] = {
    (kind.channel, kind.name): kind
    for kind in (
        *(State, Info, Metrics, RoundCall, Receipt, Want, WantModel, Announce, Decline, Moving),
        *(Quarantine, Quarantined),
        *(Control, Assign, Lease, Identity),
    )
}
#: Their channel says what they are, and what their blobs are.
_BINARY_TYPES: dict[Channel, type[Any]] = {
    Channel.UP: UpdatePart,
    Channel.DOWN: ModelPart,
    Channel.KEY: KeyPart,
}
_BLOB_TYPES: tuple[type[Any], ...] = (Update, Keyframe)
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (*_JSON_TYPES.values(), *_BINARY_TYPES.values(), *_BLOB_TYPES)
}
#: Fields that are bytes in binary envelopes and hexadecimal digits everywhere else.
_DIGESTS = frozenset({"blob", "base", "digest"})
#: Of what is one part, the size is that of its bytes and is not said.
_PART_TYPES: tuple[type[Any], ...] = tuple(_BINARY_TYPES.values())
#: What stands before bytes in msgpack: a code, and their number in so many bytes.
_BIN_HEADS = ((0xC4, 1), (0xC5, 2), (0xC6, 4))
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A payload on a topic, as a link carries it. Of a large part only the head waits in line; `tail` is the rest."""

    topic: str
    payload: bytes = dataclasses.field(repr=False)
    retain: bool = False
    qos: int = 1
    tail: Piece | None = dataclasses.field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of the payload, tail included."""
        return len(self.payload) + (len(self.tail) if self.tail is not None else 0)

    def whole(self) -> Frame:
        """Return it with the tail read into the payload."""
        return self if self.tail is None else replace(self, payload=self.payload + bytes(self.tail), tail=None)


def encode(message: Message, federation: str, path: str) -> Frame:
    """Put a message on its topic.

    Args:
        message: what to say.
        federation: in which federation.
        path: the node it stands on: the speaker's own, or for `Receipt` and `Want` the addressed child's.
    """
    channel = message.channel
    tail = None
    if isinstance(message, UpdatePart | KeyPart | ModelPart):
        payload, tail = _pack_part(message)
        if isinstance(message, ModelPart):
            name = slot(message.frame, message.index)
        else:
            name = str(message.index % UP_SLOTS if isinstance(message, UpdatePart) else message.index)
    else:
        name, payload = message.name, _json(message)
    topic = str(Topic(federation, path, channel, name))
    return Frame(topic=topic, payload=payload, retain=channel.is_retained, tail=tail)


def decode(frame: Frame) -> tuple[Message, Topic]:
    """Read a message and the topic it stood on.

    Raises:
        Malformed: the topic, the size, the version or any field is not as the protocol says.
    """
    topic = Topic.parse(frame.topic)
    if topic.channel.is_binary:
        return _unpack(frame.payload, _BINARY_TYPES[topic.channel], MAX_BINARY), topic
    kind = _JSON_TYPES.get((topic.channel, topic.name))
    if kind is None:
        raise Malformed(f"no message is called {topic.channel.value}/{topic.name}")
    if len(frame.payload) > MAX_JSON:
        raise Malformed(f"{kind.__name__} of {len(frame.payload)} bytes, at most {MAX_JSON}")
    message: Message = _read_json(kind, frame.payload)
    return message, topic


def pack_update(update: Update) -> bytes:
    """Return the blob of an update: a msgpack map, and behind it the payload."""
    return b"".join(update_pieces(update))


def update_pieces(update: Update) -> list[Buffer]:
    """Return the blob of an update in pieces, without a copy of what may be large."""
    return [_pack(replace(update, payload=b"")), update.payload]


def unpack_update(blob: Buffer) -> Update:
    """Read the blob of an update; its payload is a view of the blob.

    Raises:
        Malformed: it is not one.
    """
    head, rest = _unpack_head(blob, Update)
    if head.pop("payload", b""):
        raise Malformed("Update.payload: stands behind the map")
    return _validate(Update, {**head, "payload": rest})  # type: ignore[no-any-return]


def pack_keyframe(keyframe: Keyframe) -> bytes:
    """Return the blob of a keyframe: a msgpack map that says how long `start` is, and behind it `start` and `plus`."""
    return b"".join(keyframe_pieces(keyframe))


def keyframe_pieces(keyframe: Keyframe) -> list[Buffer]:
    """Return the blob of a keyframe in pieces, without a copy of what may be large."""
    head = replace(keyframe, start=len(keyframe.start).to_bytes(4, "big"), plus=None)
    return [_pack(head), keyframe.start, *([keyframe.plus] if keyframe.plus is not None else [])]


def unpack_keyframe(blob: Buffer) -> Keyframe:
    """Read the blob of a keyframe; what stands in it are views of the blob.

    Raises:
        Malformed: it is not one.
    """
    head, rest = _unpack_head(blob, Keyframe)
    length = head.pop("start", None)
    if (
        not isinstance(length, bytes)
        or len(length) != 4
        or not 0 < (size := int.from_bytes(length, "big")) <= len(rest)
    ):
        raise Malformed("Keyframe.start: does not stand behind the map")
    return _validate(Keyframe, {**head, "start": rest[:size], "plus": rest[size:] if size < len(rest) else None})  # type: ignore[no-any-return]


def fields_of(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, without the fields that have their usual value.

    On a metered link these messages are most of what is sent beside the model.
    """
    return _ADAPTERS[type(message)].dump_python(message, mode="json", exclude_defaults=True)  # type: ignore[no-any-return]


def _json(message: Message) -> bytes:
    if isinstance(message, Metrics):
        return json.dumps(message.values, separators=(",", ":"), allow_nan=False).encode()
    return json.dumps({"v": PROTOCOL, **fields_of(message)}, separators=(",", ":"), allow_nan=False).encode()


def _read_json(kind: type[Any], payload: bytes) -> Any:
    try:
        # The validator's own parser would do, but would not show the version before it stumbles over a new field.
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{kind.__name__} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Malformed(f"{kind.__name__} is not a JSON object")
    if kind is Metrics:
        fields = {"v": PROTOCOL, "values": fields}
    _check_version(fields)
    return _validate(kind, fields)


def _pack(value: Any) -> bytes:
    fields = _ADAPTERS[type(value)].dump_python(value, mode="python", exclude_defaults=True)
    for name in _DIGESTS & fields.keys():
        fields[name] = bytes.fromhex(fields[name])
    if type(value) in _PART_TYPES and value.count == 1 and value.size == len(value.data):
        del fields["size"]
    return msgpack.packb({"v": PROTOCOL, **fields}, use_bin_type=True)  # type: ignore[no-any-return]


def _pack_part(part: UpdatePart | KeyPart | ModelPart) -> tuple[bytes, Piece | None]:
    """Return a part's envelope with all that it holds, or up to the bytes of a `Piece`, which stand last in it."""
    piece = part.data
    if not isinstance(piece, Piece):
        return _pack(part), None
    empty = _pack(replace(part, data=b"\0"))
    size = len(piece)
    code, width = next((code, width) for code, width in _BIN_HEADS if size < 256**width)
    return empty[:-3] + bytes([code]) + size.to_bytes(width, "big"), piece


def _unpack(payload: bytes, kind: type[T], limit: int) -> T:
    if len(payload) > limit:
        raise Malformed(f"{kind.__name__} of {len(payload)} bytes, at most {limit}")
    fields, rest = _unpack_head(payload, kind, limit)
    if "size" not in fields and "count" not in fields and isinstance(fields.get("data"), bytes):
        fields["size"] = len(fields["data"])
    if rest:
        raise Malformed(f"{kind.__name__}: {len(rest)} bytes stand behind it")
    result: T = _validate(kind, fields)
    return result


def _unpack_head(payload: Buffer, kind: type[Any], limit: int = MAX_HEAD) -> tuple[dict[str, Any], memoryview]:
    """Return the fields of the msgpack map that a payload begins with, and a view of what stands behind it."""
    left = MAX_CONTAINERS

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Malformed(f"{kind.__name__} has more than {MAX_CONTAINERS} lists and maps")
        return container

    # A byte of msgpack can be a list of 56 bytes in Python: lists and maps are counted while they are read, and where a
    # blob has hundreds of megabytes, only its head is. Extensions have no place here; nesting is bounded by msgpack.
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=limit,
        max_array_len=MAX_CONTAINERS,
        max_map_len=MAX_CONTAINERS,
        max_str_len=MAX_TEXT,
        max_bin_len=limit,
        max_ext_len=0,
        ext_hook=_no_extension,
        list_hook=counted,
        object_hook=counted,
    )
    try:
        unpacker.feed(memoryview(payload)[:limit])
        fields = unpacker.unpack()
    except Malformed:
        raise
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise Malformed(f"{kind.__name__} is not msgpack: {error or type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise Malformed(f"{kind.__name__} is not a msgpack map")
    _check_version(fields)
    for name in _DIGESTS & fields.keys():
        if not isinstance(fields[name], bytes):
            raise Malformed(f"{kind.__name__}.{name}: a digest is bytes")
        fields[name] = fields[name].hex()
    return fields, memoryview(payload)[unpacker.tell() :]


def _validate(kind: type[Any], fields: dict[Any, Any]) -> Any:
    try:
        return _ADAPTERS[kind].validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:4])[:80]
        raise Malformed(f"{kind.__name__}.{where}: {first['msg'][:120]}") from None


def _check_version(fields: dict[Any, Any]) -> None:
    version = fields.get("v")
    if version != PROTOCOL:
        raise Malformed(f"speaks protocol {str(version)[:20]!r}, this node speaks {PROTOCOL}: update the older agent")


def _no_extension(code: int, _data: bytes) -> Any:
    raise Malformed(f"msgpack extension {code} has no place in this protocol")
