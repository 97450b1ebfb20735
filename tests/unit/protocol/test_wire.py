import contextlib
import json
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.messages import (
    MAX_PARTS,
    PART_SIZE,
    Decline,
    Draw,
    Info,
    Kind,
    Manifest,
    Message,
    Metrics,
    ModelPart,
    Phase,
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

A, B = "a" * 64, "b" * 64
MANIFEST = Manifest(run="r", version=3, digest=A, blob=B, size=10, parts=1, codec="raw | zstd")
CALL = RoundCall(
    run="r",
    round=(12, 3),
    phase=Phase.OPEN,
    asked=4,
    quorum=2,
    open_for_s=60.0,
    codec="raw | zstd",
    draw=Draw(seed=7, threshold=2**53),
    plan=Plan(kind=Kind.TRAIN, task="mnist", epochs=None, steps=5, tiers=(Tier(quorum=1), Tier(quorum=1.0))),
    model=MANIFEST,
    boot=5,
)
UPDATE_PART = UpdatePart(run="r", round=(1, 2), base=A, blob=B, index=5, count=9, size=9, data=b"\x00")
MODEL_PART = ModelPart(blob=B, index=8, count=9, size=9, data=b"\xff")
UPDATE = Update(
    run="r",
    round=(1,),
    sender="cloud/a",
    base=A,
    weight=3,
    payload=b"\x00\xff",
    tallies={"loss": Tally(total=1.5, count=3), "rmse": Tally(total=2.0, count=3, is_root=True)},
)
MESSAGES: list[Message] = [
    State(state=StateName.LOST, boot=2),
    Info(role="client", boot=2, parent="cloud", hardware="Pi 4 – 1 GB", samples=40),
    Metrics(values={"round": "g1", "loss": 0.25, "in": 3, "rmse": None}),
    MANIFEST,
    CALL,
    Receipt(run="r", round=(1,), base=A, accepted=False, reason="foreign base"),
    Want(blob=A, parts=(0, 4095)),
    WantModel(blob=A, parts=()),
    Decline(run="r", round=(1,), reason="no data"),
    UPDATE_PART,
    MODEL_PART,
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    frame = encode(message, "f", "cloud/a")
    again, topic = decode(frame)
    assert again == message
    assert type(again) is type(message)
    assert (topic.federation, topic.path) == ("f", "cloud/a")


def test_an_update_comes_back_as_it_was() -> None:
    assert wire.unpack_update(wire.pack_update(UPDATE)) == UPDATE


def test_the_kind_of_a_quorum_survives_the_wire() -> None:
    call, _ = decode(encode(CALL, "f", "cloud"))
    assert isinstance(call, RoundCall)
    assert [type(tier.quorum) for tier in call.plan.tiers] == [int, float]


@pytest.mark.parametrize(
    ("message", "topic", "retain"),
    [
        (CALL, "hfl/f/cloud/@/stat/round", True),
        (MESSAGES[0], "hfl/f/cloud/@/stat/state", True),
        (MANIFEST, "hfl/f/cloud/@/stat/model", True),
        (MESSAGES[2], "hfl/f/cloud/@/stat/metrics", True),
        (MESSAGES[5], "hfl/f/cloud/@/cmnd/receipt", False),
        (MESSAGES[6], "hfl/f/cloud/@/cmnd/resend", False),
        (MESSAGES[7], "hfl/f/cloud/@/tele/resend", False),
        (MESSAGES[8], "hfl/f/cloud/@/tele/decline", False),
        (MODEL_PART, "hflb/f/cloud/@/down/8", True),
        (UPDATE_PART, "hflb/f/cloud/@/up/1", False),
    ],
)
def test_every_message_has_its_topic_and_state_is_retained(message: Message, topic: str, retain: bool) -> None:
    frame = encode(message, "f", "cloud")
    assert (frame.topic, frame.retain, frame.qos) == (topic, retain, 1)


def test_metrics_on_the_wire_are_the_bare_mapping() -> None:
    assert json.loads(encode(Metrics(values={"loss": 0.5}), "f", "cloud").payload) == {"loss": 0.5}


def test_the_largest_call_can_be_read_by_a_viewer() -> None:
    tier = Tier(codec="\u20ac" * 120, open_for_s=1e7 / 3, grace_s=1e7 / 3, quorum=1 / 3, fraction=1 / 3)
    plan = Plan(
        task="\u20ac" * 64, seed=2**53, learning_rate=1 / 3, momentum=1 / 3, weight_decay=1 / 3, tiers=(tier,) * 8
    )
    manifest = Manifest(
        run="r" * 64, version=2**53, digest=A, blob=A, size=2**30, parts=MAX_PARTS, codec="\u20ac" * 120
    )
    call = RoundCall(
        run="r" * 64,
        round=(2**31,) * 8,
        phase=Phase.FINISHED,
        asked=2**53,
        quorum=2**53,
        open_for_s=1e7 / 3,
        codec="\u20ac" * 120,
        draw=Draw(seed=2**53, threshold=2**53),
        plan=plan,
        model=manifest,
    )
    assert len(encode(call, "f", "cloud").payload) < wire.MAX_JSON


def test_the_largest_part_can_be_read_by_its_receiver() -> None:
    part = UpdatePart(
        run="r" * 64,
        round=(2**31,) * 8,
        base=A,
        blob=B,
        index=MAX_PARTS - 1,
        count=MAX_PARTS,
        size=2**30,
        data=bytes(PART_SIZE),
    )
    frame = encode(part, "f", "cloud")
    assert len(frame.payload) < wire.MAX_BINARY
    assert decode(frame)[0] == part


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
    payload = encode(MESSAGES[0], "f", "cloud").payload
    with pytest.raises(Malformed, match="no message is called tele/state"):
        decode(json_frame(payload, "tele/state"))


@pytest.mark.parametrize(
    "payload", [b'{"a":NaN}', b'{"a":Infinity}', b'{"a":[1]}', b'{"a":"\\ud800"}', b'{"\\ud800":1}']
)
def test_metrics_are_flat_finite_and_unicode(payload: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        decode(json_frame(payload, "stat/metrics"))
    str(caught.value).encode()


def envelope(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "type": "Update", **fields})
    return packed


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "is not msgpack"),
        (b"\xc1", "is not msgpack"),
        (b"\x81\xa1v", "is not msgpack"),
        (msgpack.packb([1]), "is not a msgpack map"),
        (msgpack.packb({"v": 2}), "speaks protocol '2'"),
        (msgpack.packb({"v": 1, "type": "ModelPart"}), "expected Update, got 'ModelPart'"),
        (msgpack.packb({"v": 1, "type": ["Update"]}), "expected Update"),
        (msgpack.packb({1: 2}), "is not msgpack"),
        (envelope(), "Update.run: Field required"),
        (envelope() + b"\x00", "is not msgpack"),
        (envelope(at=msgpack.Timestamp(1, 2)), "is not msgpack"),
        (envelope(ext=msgpack.ExtType(5, b"")), "extension 5 has no place"),
        (envelope(ext=msgpack.ExtType(5, b"12345678")), "is not msgpack"),
    ],
)
def test_what_is_no_update_is_malformed_with_a_reason(blob: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        wire.unpack_update(blob)


def test_a_part_longer_than_a_packet_is_refused_unread() -> None:
    with pytest.raises(Malformed, match="at most"):
        decode(Frame(topic="hflb/f/cloud/@/up/0", payload=bytes(wire.MAX_BINARY + 1)))


OPENING = b"\x83\xa1v\x01\xa4type\xa6Update\xa1x"
MILLION = b"\x00\x0f\x42\x40"


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd" + MILLION + b"\x80" * 10**6,  # a list of maps: a byte here, 64 bytes in Python
        b"\xdd" + MILLION + b"\xc0" * 10**6,
        b"\x9f" * 400 + b"\x90" * 10**6,  # lists of 15 in lists of 15
        b"\x91" * 10**6,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\xdb" + MILLION + b"a" * 10**6,
    ],
    ids=["maps", "nils", "tree", "deep", "long list", "long map", "long text", "long bytes", "long ext", "text"],
)
def test_a_bomb_is_refused_before_it_takes_memory(bomb: bytes) -> None:
    blob = OPENING + bomb
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            wire.unpack_update(blob)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 300_000


def test_a_version_is_shown_shortly_however_long_it_is() -> None:
    with pytest.raises(Malformed) as caught:
        decode(json_frame(json.dumps({"v": "x" * 15_000}).encode()))
    assert len(str(caught.value)) < 150


# ------------------------------------------------------------------ any bytes

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
