import contextlib
import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.limits import MAX_BINARY, MAX_FRAMES, MAX_HEAD, MAX_JSON, MAX_PARTS, PART_SIZE
from hfl_mqtt.protocol.messages import (
    Announce,
    Decline,
    Draw,
    Identity,
    Info,
    Keyframe,
    KeyPart,
    Kind,
    Late,
    Manifest,
    Message,
    Metrics,
    ModelPart,
    Moving,
    Phase,
    Piece,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    Update,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.topics import Topic
from hfl_mqtt.protocol.wire import Frame, decode, encode

A = "a" * 64
#: Names: a digest's first eight bytes.
HALF, B = "a" * 16, "b" * 16
#: As `roles.cloud.new_run` names them.
RUN = "20260314-092653-58979a"
MANIFEST = Manifest(version=3, digest=HALF, key=2)
TIER = Tier(
    rounds=2,
    quorum=1,
    fraction=0.5,
    open_for_s=30.0,
    grace_s=1.0,
    retries=0,
    codec="auto",
    downlink="int8",
    budget=9,
    late=Late.DISCOUNT,
    staleness_exponent=1.0,
    max_staleness=3,
    offline_rounds=7,
)
#: Every field of every message is another than it usually is: what is usual is left out on the wire.
PLAN = Plan(
    kind=Kind.EVALUATE,
    task="mnist",
    epochs=None,
    steps=5,
    learning_rate=0.125,
    momentum=0.5,
    weight_decay=0.25,
    batch_size=1,
    seed=9,
    tiers=(TIER, Tier(quorum=1.0)),
)
CALL = RoundCall(
    run="r",
    round=(12, 3),
    phase=Phase.CLOSED,
    asked=4,
    quorum=2,
    open_for_s=60.0,
    codec="rot1",
    draw=Draw(seed=7, threshold=2**52),
    plan=PLAN,
    model=MANIFEST,
    unasked=0,
    budget=0,
    attempt=1,
    boot=5,
    late=Late.NEXT,
    number=6,
    signature="-_" * 43,
)
STATE = State(state=StateName.HALTED, boot=2, reason="the disk is full")
INFO = Info(
    role="client",
    boot=2,
    parent="cloud",
    protocol=2,
    software="0.1",
    hardware="Pi 4 – 1 GB",
    task="mnist",
    samples=0,
)
METRICS = Metrics(values={"round": "g1", "loss": 0.25, "in": 3, "rmse": None})
RECEIPT = Receipt(run="r", round=(1,), base=HALF, accepted=False, reason="foreign base", joined=(2,))
WANT = Want(blob=HALF, parts=(0, 4095))
WANT_MODEL = WantModel(version=4, parts=(), is_key=True)
ANNOUNCE = Announce(run="r", round=(1,), base=HALF, blob=B, size=2_000_000, count=8)
DECLINE = Decline(run="r", round=(1,), reason="no data")
UPDATE_PART = UpdatePart(run="r", round=(1, 2), base=HALF, blob=B, index=5, count=9, size=9, data=b"\x00")
MODEL_PART = ModelPart(frame=7, version=11, blob=B, index=8, count=9, size=9, data=b"\xff")
KEY_PART = KeyPart(version=3, blob=B, index=8, count=9, size=9, data=b"\xff")
MESSAGES: list[Message] = [
    STATE,
    INFO,
    METRICS,
    CALL,
    RECEIPT,
    WANT,
    WANT_MODEL,
    ANNOUNCE,
    DECLINE,
    Moving(),
    Identity(card="eyJ.c2ln-_"),
    UPDATE_PART,
    MODEL_PART,
    KEY_PART,
]
UPDATE = Update(
    weight=3,
    payload=b"\x00\xff",
    tallies={"loss": Tally(total=1.5, count=3), "rmse": Tally(total=2.0, count=3, is_root=True)},
    sent=40_000,
    received=50_000,
)
KEYFRAME = Keyframe(run="r", version=3, digest=A, size=16, start=b"\x00start", plus=b"\xffplus")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    frame = encode(message, "f", "cloud/a")
    again, topic = decode(frame)
    assert again == message
    assert type(again) is type(message)
    assert (topic.federation, topic.path) == ("f", "cloud/a")


def optional(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields that have a usual value."""
    nothing = dataclasses.MISSING
    return [one for one in dataclasses.fields(kind) if (one.default, one.default_factory) != (nothing, nothing)]


def usual(one: dataclasses.Field[Any]) -> Any:
    factory = one.default_factory
    return one.default if factory is dataclasses.MISSING else factory()


def thinned(value: Any) -> Iterator[Any]:
    """`value` with each of its unusual fields as usual, alone, and with all of them."""
    fields = {one.name: usual(one) for one in optional(type(value))}
    for name, default in fields.items():
        if not (isinstance(value, Plan) and name in ("epochs", "steps")):  # a plan says one of the two
            yield dataclasses.replace(value, **{name: default})
    yield dataclasses.replace(value, **fields)


@pytest.mark.parametrize("value", [*MESSAGES, PLAN, TIER, MANIFEST, CALL.draw], ids=lambda value: type(value).__name__)
def test_what_is_tried_here_is_unusual_in_every_field(value: Any) -> None:
    assert [one.name for one in optional(type(value)) if getattr(value, one.name) == usual(one)] == []


CALLS = [
    *(dataclasses.replace(CALL, plan=plan) for plan in thinned(PLAN)),
    *(dataclasses.replace(CALL, plan=dataclasses.replace(PLAN, tiers=(tier,))) for tier in thinned(TIER)),
    *(dataclasses.replace(CALL, model=model) for model in thinned(MANIFEST)),
    *(dataclasses.replace(CALL, draw=draw) for draw in thinned(CALL.draw)),
]


@pytest.mark.parametrize("message", [*CALLS, *(thin for message in MESSAGES for thin in thinned(message))])
def test_what_is_left_out_comes_back_as_what_is_usual(message: Message) -> None:
    assert decode(encode(message, "f", "cloud"))[0] == message


def test_what_is_usual_is_left_out_and_nothing_else() -> None:
    plain = Receipt(run="r", round=(1,), base=HALF)
    assert json.loads(encode(plain, "f", "cloud").payload) == {"v": 1, "run": "r", "round": [1], "base": HALF}
    refused = json.loads(encode(RECEIPT, "f", "cloud").payload)
    assert refused == {
        "v": 1,
        "run": "r",
        "round": [1],
        "base": HALF,
        "accepted": False,
        "reason": "foreign base",
        "joined": [2],
    }


def test_an_update_comes_back_as_it_was() -> None:
    assert wire.unpack_update(wire.pack_update(UPDATE)) == UPDATE


@pytest.mark.parametrize("update", list(thinned(UPDATE)))
def test_an_update_with_something_usual_comes_back_too(update: Update) -> None:
    assert wire.unpack_update(wire.pack_update(update)) == update


@pytest.mark.parametrize("plus", [None, b"\xffplus"])
def test_a_keyframe_comes_back_as_it_was(plus: bytes | None) -> None:
    keyframe = dataclasses.replace(KEYFRAME, plus=plus)
    assert wire.unpack_keyframe(wire.pack_keyframe(keyframe)) == keyframe


@pytest.mark.parametrize("holder", [bytes, bytearray, lambda blob: memoryview(bytearray(blob))])
def test_what_stands_in_a_blob_is_a_view_of_it_and_no_copy(holder: Callable[[bytes], Any]) -> None:
    blob = holder(wire.pack_update(UPDATE))
    assert memoryview(wire.unpack_update(blob).payload).obj is memoryview(blob).obj
    blob = holder(wire.pack_keyframe(KEYFRAME))
    keyframe = wire.unpack_keyframe(blob)
    assert (bytes(keyframe.start), bytes(keyframe.plus)) == (b"\x00start", b"\xffplus")  # type: ignore[arg-type]
    assert memoryview(keyframe.start).obj is memoryview(blob).obj


def test_a_large_payload_costs_no_copy_when_it_is_read() -> None:
    blob = wire.pack_update(dataclasses.replace(UPDATE, payload=bytes(10_000_000)))
    assert traced_bytes(lambda: wire.unpack_update(blob)) < 300_000


def traced_bytes(action: Callable[[], object]) -> int:
    """The most memory that Python took meanwhile."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_digest_is_bytes_and_not_hexadecimal_digits_where_people_do_not_read_it() -> None:
    fields = msgpack.unpackb(encode(UPDATE_PART, "f", "cloud").payload)
    assert (fields["base"], fields["blob"]) == (bytes.fromhex(HALF), bytes.fromhex(B))
    assert msgpack.unpackb(wire.pack_keyframe(KEYFRAME)[: -len(b"\x00start\xffplus")])["digest"] == bytes.fromhex(A)


@pytest.mark.parametrize(
    "part",
    [
        UpdatePart(run="r", round=(1,), base=HALF, blob=B, size=3, data=b"abc"),
        ModelPart(frame=0, version=1, blob=B, size=3, data=b"abc"),
        KeyPart(version=0, blob=B, size=3, data=b"abc"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_of_what_is_one_part_neither_its_size_nor_its_place_is_said(part: UpdatePart | ModelPart | KeyPart) -> None:
    frame = encode(part, "f", "cloud")
    assert not {"size", "index", "count"} & msgpack.unpackb(frame.payload).keys()
    assert decode(frame)[0] == part


def test_the_kind_of_a_quorum_survives_the_wire() -> None:
    call, _ = decode(encode(CALL, "f", "cloud"))
    assert isinstance(call, RoundCall)
    assert [type(tier.quorum) for tier in call.plan.tiers] == [int, float]


@pytest.mark.parametrize(
    ("message", "topic", "retain"),
    [
        (CALL, "hfl/f/cloud/@/stat/round", True),
        (STATE, "hfl/f/cloud/@/stat/state", True),
        (INFO, "hfl/f/cloud/@/stat/info", True),
        (METRICS, "hfl/f/cloud/@/stat/metrics", True),
        (RECEIPT, "hfl/f/cloud/@/cmnd/receipt", False),
        (WANT, "hfl/f/cloud/@/cmnd/resend", False),
        (WANT_MODEL, "hfl/f/cloud/@/tele/resend", False),
        (ANNOUNCE, "hfl/f/cloud/@/tele/update", False),
        (DECLINE, "hfl/f/cloud/@/tele/decline", False),
        (Moving(), "hfl/f/cloud/@/tele/moving", False),
        (MODEL_PART, "hflb/f/cloud/@/down/7p8", True),
        (dataclasses.replace(MODEL_PART, index=0), "hflb/f/cloud/@/down/7", True),
        (KEY_PART, "hflb/f/cloud/@/key/8", True),
        (UPDATE_PART, "hflb/f/cloud/@/up/1", False),
    ],
)
def test_every_message_has_its_topic_and_state_is_retained(message: Message, topic: str, retain: bool) -> None:
    frame = encode(message, "f", "cloud")
    assert (frame.topic, frame.retain, frame.qos) == (topic, retain, 1)


def test_metrics_on_the_wire_are_the_bare_mapping() -> None:
    assert json.loads(encode(Metrics(values={"loss": 0.5}), "f", "cloud").payload) == {"loss": 0.5}


# ------------------------------------------------------------------ sizes


def test_the_messages_of_a_usual_round_are_small() -> None:
    call = RoundCall(
        run=RUN,
        round=(12, 3),
        phase=Phase.OPEN,
        asked=20,
        quorum=10,
        open_for_s=120.0,
        codec="rot1 | zstd",
        plan=Plan(task="mnist", momentum=0.9),
        model=Manifest(version=36, digest=HALF, key=24),
        boot=3,
    )
    receipt = Receipt(run=RUN, round=(12, 3), base=HALF)
    assert len(encode(call, "f", "cloud").payload) < 300
    assert len(encode(receipt, "f", "cloud").payload) < 130
    assert len(encode(State(state=StateName.TRAINING, boot=3), "f", "cloud").payload) < 50


def test_what_is_wrapped_around_weights_is_small() -> None:
    data = bytes(6000)  # a model of 44,000 weights at one bit each
    whole: dict[str, Any] = {"blob": B, "index": 0, "count": 1, "size": len(data), "data": data}
    up = UpdatePart(run=RUN, round=(12, 3), base=HALF, **whole)
    down = ModelPart(frame=3, version=36, **whole)
    assert len(encode(up, "f", "cloud").payload) - len(data) < 150
    assert len(encode(down, "f", "cloud").payload) - len(data) < 100
    tallies = {"loss": Tally(total=1 / 3, count=2500), "accuracy": Tally(total=2345.0, count=2500)}
    update = Update(weight=2500, payload=data, tallies=tallies, sent=6000, received=6000)
    assert len(wire.pack_update(update)) - len(data) < 150
    keyframe = Keyframe(run=RUN, version=0, digest=A, size=177_704, start=data)
    assert len(wire.pack_keyframe(keyframe)) - len(data) < 130


def test_the_largest_call_can_be_read_by_a_viewer() -> None:
    third = 1e7 / 3
    codec = "\u20ac" * 120
    tier = Tier(
        rounds=9_999,
        quorum=1 / 3,
        fraction=1 / 3,
        open_for_s=third,
        grace_s=third,
        retries=999,
        codec=codec,
        downlink=codec,
        budget=2**53,
    )
    plan = Plan(
        task="\u20ac" * 64, seed=2**53, learning_rate=1 / 3, momentum=1 / 3, weight_decay=1 / 3, tiers=(tier,) * 8
    )
    call = RoundCall(
        run="r" * 64,
        round=(2**31,) * 8,
        phase=Phase.FINISHED,
        asked=2**53,
        quorum=2**53,
        open_for_s=third,
        codec=codec,
        draw=Draw(seed=2**53 - 1, threshold=2**53 - 1),
        plan=plan,
        model=Manifest(version=2**53, digest=HALF, key=2**53),
        unasked=2**53,
        budget=2**53,
        attempt=2**53,
        boot=2**53,
    )
    frame = encode(call, "f", "cloud")
    assert len(frame.payload) < MAX_JSON
    assert decode(frame)[0] == call


WHOLE: dict[str, Any] = {
    "blob": B,
    "index": MAX_PARTS - 1,
    "count": MAX_PARTS,
    "size": PART_SIZE * MAX_PARTS,
    "data": bytes(PART_SIZE),
}


@pytest.mark.parametrize(
    "part",
    [
        UpdatePart(run="r" * 64, round=(2**31,) * 8, base=HALF, **WHOLE),
        ModelPart(frame=MAX_FRAMES, version=2**53, **WHOLE),
        KeyPart(version=2**53, **WHOLE),
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_largest_part_can_be_read_by_its_receiver(part: Message) -> None:
    frame = encode(part, "f", "cloud")
    assert len(frame.payload) < MAX_BINARY
    assert decode(frame)[0] == part


def test_the_heads_of_the_largest_blobs_can_be_read_by_their_receivers() -> None:
    tallies = {f"{number:064}": Tally(total=-1e300, count=1 / 3, is_root=True) for number in range(16)}
    update = Update(weight=2**40, payload=b"x", tallies=tallies, sent=2**53, received=2**53)
    assert wire.unpack_update(wire.pack_update(update)) == update
    keyframe = Keyframe(run="r" * 64, version=2**53, digest=A, size=2**53, start=b"s", plus=b"p")
    assert wire.unpack_keyframe(wire.pack_keyframe(keyframe)) == keyframe


# ------------------------------------------------------------------ what is refused


def json_frame(payload: bytes, name: str = "stat/state") -> Frame:
    return Frame(topic=f"hfl/f/cloud/@/{name}", payload=payload)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 15_000, "is not JSON"),
        (b"1" * 15_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"state":"ready","boot":1}', "speaks protocol 'None', this node speaks 1"),
        (b'{"v":2,"state":"ready","boot":1}', "speaks protocol '2'"),
        (b'{"v":1,"state":"ready"}', "State.boot: Field required"),
        (b'{"v":1,"state":"ready","boot":NaN}', "State.boot"),
        (b'{"v":1,"state":"ready","boot":1e999}', "State.boot"),
        (b'{"v":1,"state":["ready"],"boot":1}', "State.state"),
        (b" " * 16_001, "at most 16000"),
    ],
)
def test_what_is_no_state_is_malformed_with_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode(json_frame(payload))


def test_a_field_that_a_newer_agent_may_send_is_ignored() -> None:
    message, _ = decode(json_frame(b'{"v":1,"state":"ready","boot":1,"mood":"fine"}'))
    assert message == State(state=StateName.READY, boot=1)


def test_a_message_stands_only_where_it_may() -> None:
    payload = encode(STATE, "f", "cloud").payload
    with pytest.raises(Malformed, match="no message is called tele/state"):
        decode(json_frame(payload, "tele/state"))


@pytest.mark.parametrize(
    "payload", [b'{"a":NaN}', b'{"a":Infinity}', b'{"a":[1]}', b'{"a":"\\ud800"}', b'{"\\ud800":1}']
)
def test_metrics_are_flat_finite_and_unicode(payload: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        decode(json_frame(payload, "stat/metrics"))
    str(caught.value).encode()


def test_a_manifest_has_no_topic_of_its_own_any_more() -> None:
    with pytest.raises(Malformed, match="no message is called stat/model"):
        decode(json_frame(b'{"v":1}', "stat/model"))


def envelope(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, **fields})
    return packed


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "is not msgpack"),
        (b"\xc1", "is not msgpack"),
        (b"\x81\xa1v", "is not msgpack"),
        (msgpack.packb([1]), "is not a msgpack map"),
        (msgpack.packb({"v": 2}), "speaks protocol '2'"),
        (msgpack.packb({1: 2}), "is not msgpack"),
        (envelope(), "Update.weight: Field required"),
        (envelope(weight=1.5), r"Update.weight"),
        (envelope(weight=2**40 + 1), "Update.weight"),
        (envelope(weight=-1), "Update.weight"),
        (envelope(weight=1, sent=-1), "Update.sent"),
        (envelope(weight=1, payload=b"inside"), "Update.payload: stands behind the map"),
        (envelope(weight=1, tallies={"x": {"total": float("nan"), "count": 1}}), "Update.tallies"),
        (envelope(weight=1, tallies={"x": {"total": 1.0}}), "Update.tallies.x.count"),
        (envelope(weight=1, tallies={str(one): {"total": 1.0, "count": 1} for one in range(17)}), "Update.tallies"),
        (envelope(weight=1, tallies=[]), "Update.tallies"),
        (envelope(at=msgpack.Timestamp(1, 2)), "is not msgpack"),
        (envelope(ext=msgpack.ExtType(5, b"")), "extension 5 has no place"),
        (envelope(ext=msgpack.ExtType(5, b"12345678")), "is not msgpack"),
    ],
)
def test_what_is_no_update_is_malformed_with_a_reason(blob: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        wire.unpack_update(blob)


KEY_FIELDS: dict[str, Any] = {"run": "r", "version": 0, "digest": bytes.fromhex(A), "size": 4}


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "is not msgpack"),
        (wire.pack_update(UPDATE), "Keyframe.start: does not stand behind the map"),
        (envelope(**KEY_FIELDS) + b"start", "Keyframe.start: does not stand behind the map"),
        (envelope(**KEY_FIELDS, start=5) + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\0\0\5") + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\0\0\0\0\5") + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\0\0\0\0") + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\0\0\0\6") + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\xff\xff\xff\xff") + b"start", "Keyframe.start"),
        (envelope(**KEY_FIELDS, start=b"\0\0\0\1"), "Keyframe.start"),
        (envelope(**KEY_FIELDS | {"digest": A}, start=b"\0\0\0\5") + b"start", "a digest is bytes"),
        (envelope(**KEY_FIELDS | {"digest": b"x" * 31}, start=b"\0\0\0\5") + b"start", "Keyframe.digest"),
        (envelope(**KEY_FIELDS | {"run": "../r"}, start=b"\0\0\0\5") + b"start", "Keyframe.run"),
        (envelope(**KEY_FIELDS | {"size": -1}, start=b"\0\0\0\5") + b"start", "Keyframe.size"),
    ],
)
def test_what_is_no_keyframe_is_malformed_with_a_reason(blob: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        wire.unpack_keyframe(blob)


def test_what_a_keyframe_claims_in_its_head_is_not_what_stands_behind_it() -> None:
    blob = envelope(**KEY_FIELDS, start=b"\0\0\0\5", plus=b"a lie") + b"start"
    assert wire.unpack_keyframe(blob).plus is None


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_head_that_breaks_off_is_malformed(cut: int) -> None:
    for whole, read in ((wire.pack_update(UPDATE), wire.unpack_update), (wire.pack_keyframe(KEYFRAME), keyframe_of)):
        with pytest.raises(Malformed):
            read(whole[:cut])


def keyframe_of(blob: bytes) -> Keyframe:
    return wire.unpack_keyframe(blob)


def test_a_head_larger_than_any_is_not_read_however_long_the_blob_is() -> None:
    blob = envelope(weight=1, junk=b"x" * MAX_HEAD) + bytes(1_000_000)
    with pytest.raises(Malformed, match="is not msgpack"):
        wire.unpack_update(blob)


PARTS = {"up": UPDATE_PART, "down": MODEL_PART, "key": KEY_PART}


@pytest.mark.parametrize("channel", PARTS)
def test_a_part_longer_than_a_packet_is_refused_unread(channel: str) -> None:
    with pytest.raises(Malformed, match="at most"):
        decode(Frame(topic=f"hflb/f/cloud/@/{channel}/0", payload=bytes(MAX_BINARY + 1)))


@pytest.mark.parametrize("channel", PARTS)
def test_nothing_stands_behind_a_part(channel: str) -> None:
    frame = encode(PARTS[channel], "f", "cloud")  # type: ignore[arg-type]
    with pytest.raises(Malformed, match="1 bytes stand behind it"):
        decode(dataclasses.replace(frame, payload=frame.payload + b"\x00"))


@pytest.mark.parametrize("channel", PARTS)
def test_a_part_that_breaks_off_is_malformed(channel: str) -> None:
    frame = encode(PARTS[channel], "f", "cloud")  # type: ignore[arg-type]
    for length in range(len(frame.payload)):
        with pytest.raises(Malformed):
            decode(dataclasses.replace(frame, payload=frame.payload[:length]))


@pytest.mark.parametrize("channel", PARTS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blob", b"x" * 31),
        ("blob", B),
        ("blob", None),
        ("index", -1),
        ("index", MAX_PARTS),
        ("index", 0.5),
        ("count", 0),
        ("count", MAX_PARTS + 1),
        ("size", 0),
        ("size", PART_SIZE * MAX_PARTS + 1),
        ("size", 2**64 - 1),
        ("data", b""),
        ("data", bytes(PART_SIZE + 1)),
        ("data", None),
        ("data", ["x"]),
    ],
)
def test_a_part_out_of_bounds_is_malformed_and_the_field_is_named(channel: str, field: str, value: object) -> None:
    frame = encode(PARTS[channel], "f", "cloud")  # type: ignore[arg-type]
    payload = msgpack.packb({**msgpack.unpackb(frame.payload), field: value})
    with pytest.raises(Malformed, match=field):
        decode(dataclasses.replace(frame, payload=payload))


@pytest.mark.parametrize("frame", [-1, MAX_FRAMES + 1, None])
def test_a_slot_out_of_bounds_is_malformed(frame: object) -> None:
    said = encode(MODEL_PART, "f", "cloud")
    payload = msgpack.packb({**msgpack.unpackb(said.payload), "frame": frame})
    with pytest.raises(Malformed, match=r"ModelPart\.frame"):
        decode(dataclasses.replace(said, payload=payload))


def test_a_blob_is_not_taken_for_one_of_another_kind() -> None:
    with pytest.raises(Malformed, match=r"Update\.weight: Field required"):
        wire.unpack_update(wire.pack_keyframe(KEYFRAME))


MILLION = b"\x00\x0f\x42\x40"
BOMBS = {
    "maps": b"\xdd" + MILLION + b"\x80" * 10**6,  # a list of maps: a byte here, 64 bytes in Python
    "nils": b"\xdd" + MILLION + b"\xc0" * 10**6,
    "short list": b"\xdc\xff\xff" + b"\xc0" * 65_535,
    "tree": b"\x9f" * 400 + b"\x90" * 10**6,  # lists of 15 in lists of 15
    "deep": b"\x91" * 10**6,
    "deep maps": b"\x81\xa1x" * 10**5,
    "long list": b"\xdd\xff\xff\xff\xff",
    "long map": b"\xdf\xff\xff\xff\xff",
    "long text": b"\xdb\xff\xff\xff\xff",
    "long bytes": b"\xc6\xff\xff\xff\xff",
    "long ext": b"\xc9\xff\xff\xff\xff\x05",
    "text": b"\xdb" + MILLION + b"a" * 10**6,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("kind", ["Update", "Keyframe"])
def test_a_bomb_in_a_blob_is_refused_before_it_takes_memory(kind: str, bomb: bytes) -> None:
    read: Callable[[bytes], object] = wire.unpack_update if kind == "Update" else wire.unpack_keyframe
    blob = b"\x83\xa1v\x01\xa4type" + msgpack.packb(kind) + b"\xa1x" + bomb

    def refused() -> None:
        with pytest.raises(Malformed):
            read(blob)

    assert traced_bytes(refused) < 300_000


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("channel", PARTS)
def test_a_bomb_in_a_part_is_refused_before_it_takes_memory(channel: str, bomb: bytes) -> None:
    payload = (b"\x82\xa1v\x01\xa1x" + bomb)[:MAX_BINARY]

    def refused() -> None:
        with pytest.raises(Malformed):
            decode(Frame(topic=f"hflb/f/cloud/@/{channel}/0", payload=payload))

    assert traced_bytes(refused) < 1_000_000  # it is read at once: a part is 256 KiB


def test_a_version_is_shown_shortly_however_long_it_is() -> None:
    with pytest.raises(Malformed) as caught:
        decode(json_frame(json.dumps({"v": "x" * 15_000}).encode()))
    assert len(str(caught.value)) < 150


# ------------------------------------------------------------------ any bytes


@given(st.binary(max_size=200))
def test_any_bytes_are_a_blob_or_malformed(blob: bytes) -> None:
    for read in (wire.unpack_update, wire.unpack_keyframe):
        with contextlib.suppress(Malformed):
            read(blob)


@settings(max_examples=300)
@given(st.sampled_from([wire.pack_update(UPDATE), wire.pack_keyframe(KEYFRAME)]), st.data())
def test_a_blob_that_was_tampered_with_is_a_blob_or_malformed(whole: bytes, data: st.DataObject) -> None:
    blob = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob)))
        blob[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(Malformed):
        update = wire.unpack_update(blob)
        assert wire.unpack_update(wire.pack_update(update)) == update
    with contextlib.suppress(Malformed):
        keyframe = wire.unpack_keyframe(blob)
        assert wire.unpack_keyframe(wire.pack_keyframe(keyframe)) == keyframe


FRAMES = [encode(message, "f", "cloud/a") for message in MESSAGES]
TOPICS = [frame.topic for frame in FRAMES]


def decode_or_malformed(frame: Frame) -> None:
    with contextlib.suppress(Malformed):
        message, topic = decode(frame)
        assert decode(encode(message, topic.federation, topic.path))[0] == message


@given(st.sampled_from(TOPICS), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(topic: str, payload: bytes) -> None:
    decode_or_malformed(Frame(topic=topic, payload=payload))


@settings(max_examples=200)
@given(st.sampled_from(FRAMES), st.sampled_from(TOPICS), st.data())
def test_a_message_that_was_tampered_with_is_a_message_or_malformed(
    frame: Frame, topic: str, data: st.DataObject
) -> None:
    payload = bytearray(frame.payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not payload:
            return
    decode_or_malformed(Frame(topic=data.draw(st.sampled_from([frame.topic, topic])), payload=bytes(payload)))


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(FRAMES), st.data())
def test_a_field_of_any_other_kind_is_read_or_malformed(frame: Frame, data: st.DataObject) -> None:
    is_binary = Topic.parse(frame.topic).channel.is_binary
    fields = msgpack.unpackb(frame.payload) if is_binary else json.loads(frame.payload)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values)
    payload = msgpack.packb(fields) if is_binary else json.dumps(fields, default=repr).encode()
    decode_or_malformed(Frame(topic=frame.topic, payload=payload))


# ------------------------------------------------------------------ what waits in line


@pytest.mark.parametrize("size", [1, 255, 256, 65_535, 65_536, PART_SIZE])
def test_a_part_whose_bytes_are_read_later_is_the_same_on_the_wire(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    now = ModelPart(frame=7, version=11, blob=B, index=1, count=2, size=2 * size, data=data)
    later = dataclasses.replace(now, data=Piece(size, lambda: data))
    frame = encode(later, "fed1", "cloud")
    assert len(frame.payload) < 200
    assert frame.size == len(encode(now, "fed1", "cloud").payload)
    assert frame.whole() == encode(now, "fed1", "cloud")
    assert decode(frame.whole())[0] == now


def test_a_frame_without_a_tail_is_whole() -> None:
    frame = encode(STATE, "fed1", "cloud/a")
    assert frame.whole() is frame
    assert frame.size == len(frame.payload)
