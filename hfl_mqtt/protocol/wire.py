"""Messages to bytes on a topic and back: JSON for what people read, a msgpack envelope with a version for weights.

This is the border. `decode` bounds a payload before it parses it, validates it once, and raises `Malformed` with a
reason for anything that is not exactly a message of this protocol on a topic where it may stand. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.messages import (
    MAX_BLOB,
    PART_SIZE,
    PROTOCOL,
    Decline,
    Info,
    Manifest,
    Message,
    Metrics,
    ModelPart,
    Receipt,
    RoundCall,
    State,
    Update,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.topics import Channel, Topic

#: MQTT Explorer cuts at 20,000 bytes; a JSON message stays under this, both ways.
MAX_JSON = 16_000
#: A part and its envelope.
MAX_BINARY = PART_SIZE + 4096
#: Lists and maps in one binary envelope; an update of 16 metrics has 19.
MAX_CONTAINERS = 64
#: Bytes of one text in a binary envelope.
MAX_TEXT = 1024

_JSON_TYPES: dict[tuple[Channel, str], type[Any]] = {
    (kind.channel, kind.name): kind
    for kind in (State, Info, Metrics, Manifest, RoundCall, Receipt, Want, WantModel, Decline)
}
_BINARY_TYPES: dict[Channel, type[Any]] = {Channel.UP: UpdatePart, Channel.DOWN: ModelPart}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (*_JSON_TYPES.values(), *_BINARY_TYPES.values(), Update)
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A payload on a topic, as a link carries it."""

    topic: str
    payload: bytes = dataclasses.field(repr=False)
    retain: bool = False
    qos: int = 1


def encode(message: Message, federation: str, path: str) -> Frame:
    """Put a message on its topic.

    Args:
        message: what to say.
        federation: in which federation.
        path: the node it stands on: the speaker's own, or for `Receipt` and `Want` the addressed child's.
    """
    channel = message.channel
    if isinstance(message, UpdatePart | ModelPart):
        # An update's slot is one of a few shards; a model's slot is its part number, so that a retained part stays put.
        name = str(message.index if isinstance(message, ModelPart) else message.index % 4)
        payload = _pack(message)
    else:
        name = message.name
        payload = _json(message)
    return Frame(topic=str(Topic(federation, path, channel, name)), payload=payload, retain=channel.is_retained)


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
    """Return the blob of an update."""
    return _pack(update)


def unpack_update(blob: bytes) -> Update:
    """Read the blob of an update.

    Raises:
        Malformed: it is not one.
    """
    return _unpack(blob, Update, MAX_BLOB)


def _json(message: Message) -> bytes:
    if isinstance(message, Metrics):
        return json.dumps(message.values, separators=(",", ":"), allow_nan=False).encode()
    fields: dict[str, Any] = _ADAPTERS[type(message)].dump_python(message, mode="json")
    return json.dumps({"v": PROTOCOL, **fields}, separators=(",", ":"), allow_nan=False).encode()


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
    return _validate(kind, fields, strict=False)


def _pack(value: Any) -> bytes:
    fields = _ADAPTERS[type(value)].dump_python(value, mode="python")
    return msgpack.packb({"v": PROTOCOL, "type": type(value).__name__, **fields}, use_bin_type=True)  # type: ignore[no-any-return]


def _unpack(payload: bytes, kind: type[T], limit: int) -> T:
    if len(payload) > limit:
        raise Malformed(f"{kind.__name__} of {len(payload)} bytes, at most {limit}")
    left = MAX_CONTAINERS

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Malformed(f"{kind.__name__} has more than {MAX_CONTAINERS} lists and maps")
        return container

    try:
        # A byte of msgpack can be a list of 56 bytes in Python, and a blob has hundreds of megabytes: lists and maps
        # are counted while they are read. Extensions have no place here; nesting is bounded by msgpack itself.
        fields = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_CONTAINERS,
            max_map_len=MAX_CONTAINERS,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
            ext_hook=_no_extension,
            list_hook=counted,
            object_hook=counted,
        )
    except Malformed:
        raise
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise Malformed(f"{kind.__name__} is not msgpack: {error}") from None
    if not isinstance(fields, dict):
        raise Malformed(f"{kind.__name__} is not a msgpack map")
    _check_version(fields)
    if fields.get("type") != kind.__name__:
        raise Malformed(f"expected {kind.__name__}, got {str(fields.get('type'))[:40]!r}")
    result: T = _validate(kind, fields, strict=False)
    return result


def _validate(kind: type[Any], fields: dict[Any, Any], *, strict: bool) -> Any:
    try:
        return _ADAPTERS[kind].validate_python(fields, strict=strict)
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
