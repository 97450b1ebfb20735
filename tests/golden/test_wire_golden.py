"""Frames of earlier protocol versions stay readable, and today's encoder still writes them.

`python tests/golden/test_wire_golden.py` writes the file of a new `messages.PROTOCOL`; it never touches an old one.
"""

import json
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.messages import (
    PROTOCOL,
    Announce,
    Assign,
    Control,
    Decline,
    Draw,
    Identity,
    Info,
    Keyframe,
    KeyPart,
    Kind,
    Lease,
    Manifest,
    Message,
    Metrics,
    ModelPart,
    Moving,
    Order,
    Phase,
    Plan,
    Quarantine,
    Quarantined,
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
from hfl_mqtt.protocol.wire import Frame

FILE = Path(__file__).parent / f"wire_v{PROTOCOL}.json"
A = "a" * 64
#: Names: a digest's first eight bytes.
HALF, B = A[:16], "0123456789abcdef"
MANIFEST = Manifest(version=12, digest=HALF, key=8)
CALL = RoundCall(
    run="r1",
    round=(12, 3),
    phase=Phase.OPEN,
    asked=7,
    quorum=4,
    open_for_s=90.5,
    codec="int8 | zstd",
    draw=Draw(seed=5, threshold=2**52),
    plan=Plan(
        kind=Kind.TRAIN,
        task="mnist",
        epochs=None,
        steps=20,
        learning_rate=0.125,
        momentum=0.5,
        weight_decay=0.25,
        seed=9,
    ),
    model=MANIFEST,
    unasked=65_536,
    budget=2_000_000,
    attempt=1,
    boot=4,
)
#: By name: a message, and the node whose topic it stands on.
MESSAGES: dict[str, tuple[Message, str]] = {
    "state": (State(state=StateName.READY, boot=3), "cloud/farm-a/pi-07"),
    "state, the will": (State(state=StateName.LOST, boot=3), "cloud/farm-a/pi-07"),
    "info": (
        Info(
            role="client", boot=3, parent="cloud/farm-a", software="0.1.0", hardware="Pi 5", task="mnist", samples=600
        ),
        "cloud/farm-a/pi-07",
    ),
    "info of the cloud": (Info(role="cloud", boot=1), "cloud"),
    "metrics": (Metrics(values={"round": "g12", "in": 5, "loss": 0.5, "accuracy": None}), "cloud"),
    "round call to devices": (CALL, "cloud/farm-a"),
    "round call to edges": (
        RoundCall(
            run="r1",
            round=(12,),
            phase=Phase.CLOSED,
            asked=2,
            quorum=2,
            open_for_s=600,
            codec="raw | zstd",
            draw=Draw(),
            plan=Plan(
                kind=Kind.EVALUATE,
                task="mnist",
                tiers=(
                    Tier(rounds=2, quorum=0.5),
                    Tier(rounds=3, quorum=4, fraction=0.25, codec="fp16", downlink="auto", budget=50_000),
                ),
            ),
            model=MANIFEST,
        ),
        "cloud",
    ),
    "receipt": (Receipt(run="r1", round=(12, 3), base=HALF), "cloud/farm-a/pi-07"),
    "receipt, refused": (
        Receipt(run="r1", round=(12, 3), base=HALF, accepted=False, reason="'w' holds NaN"),
        "cloud/farm-a/pi-07",
    ),
    "want": (Want(blob=B, parts=(0, 3, 4)), "cloud/farm-a/pi-07"),
    "want model": (WantModel(version=13, parts=(1,)), "cloud/farm-a/pi-07"),
    "want model, the keyframe": (WantModel(version=8, parts=(0, 1), is_key=True), "cloud/farm-a/pi-07"),
    "announce": (
        Announce(run="r1", round=(12, 3), base=HALF, blob=B, size=1_600_000, count=7),
        "cloud/farm-a/pi-07",
    ),
    "decline": (Decline(run="r1", round=(12, 3), reason="no data today"), "cloud/farm-a/pi-07"),
    "moving": (Moving(), "cloud/farm-a/pi-07"),
    "update part": (
        UpdatePart(run="r1", round=(12, 3), base=HALF, blob=B, size=3, data=b"\x00\xff\x10"),
        "cloud/farm-a/pi-07",
    ),
    "update part, not the first": (
        UpdatePart(run="r1", round=(12, 3), base=HALF, blob=B, index=6, count=7, size=1_600_000, data=b"\x00\xff\x10"),
        "cloud/farm-a/pi-07",
    ),
    "model part": (
        ModelPart(frame=3, version=12, blob=B, index=0, count=1, size=3, data=b"\x00\xff\x10"),
        "cloud/farm-a",
    ),
    "model part, not the first": (
        ModelPart(frame=3, version=12, blob=B, index=1, count=2, size=300_000, data=b"\x00\xff\x10"),
        "cloud/farm-a",
    ),
    "control": (Control(order=Order.PAUSE, run="r1"), "cloud"),
    "assign": (Assign(to="cloud/farm-b/pi-1"), "cloud/farm-a/pi-1"),
    "lease": (Lease(epoch=7012, holder="box-1", for_s=15.0), "cloud/farm-a"),
    "quarantine": (Quarantine(reason="5 strikes: 'w' holds NaN", for_s=300.0), "cloud/farm-a/pi-07"),
    "quarantine, who is in it": (Quarantined(children={"cloud/farm-a/pi-07": "flood"}, more=2), "cloud/farm-a"),
    "identity": (Identity(card="eyJ.c2ln-_"), "cloud/farm-a/pi-07"),
    "round call, signed": (
        replace(CALL, model=Manifest(version=12, digest=A, key=8), signature="A-_" * 28 + "AA"),
        "cloud/farm-a",
    ),
    "key part": (KeyPart(version=8, blob=B, index=1, count=2, size=300_000, data=b"\x00\xff\x10"), "cloud/farm-a"),
}
BLOBS: dict[str, Update | Keyframe] = {
    "update blob": Update(
        weight=600,
        payload=b"\x00\xff\x10",
        tallies={"loss": Tally(total=12.5, count=600), "rmse": Tally(total=2.25, count=9, is_root=True)},
        sent=70_000,
        received=80_000,
    ),
    "update blob, of an evaluation": Update(weight=0, payload=b"", tallies={"loss": Tally(total=12.5, count=600)}),
    "keyframe blob": Keyframe(run="r1", version=8, digest=A, size=177_704, start=b"\x00start", plus=b"\xffplus"),
    "keyframe blob, of a beginning": Keyframe(run="r1", version=0, digest=A, size=177_704, start=b"\x00start"),
}
GOLDEN: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}


def golden_frame(name: str) -> Frame:
    entry = GOLDEN[name]
    body = bytes.fromhex(entry["hex"]) if "hex" in entry else entry["json"].encode()
    return Frame(topic=entry["topic"], payload=body, retain=entry["retain"], qos=entry["qos"])


def test_every_kind_of_message_has_its_golden_frame() -> None:
    assert {type(message) for message, _ in MESSAGES.values()} == set(typing.get_args(Message))
    assert set(GOLDEN) == {*MESSAGES, *BLOBS}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_old_frame_says_what_it_said(name: str) -> None:
    message, path = MESSAGES[name]
    found, topic = wire.decode(golden_frame(name))
    assert found == message
    assert (topic.federation, topic.path) == ("fed1", path)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_same_frame_is_written_today(name: str) -> None:
    message, path = MESSAGES[name]
    assert wire.encode(message, "fed1", path) == golden_frame(name)


@pytest.mark.parametrize("name", BLOBS)
def test_an_old_blob_says_what_it_said_and_is_written_today(name: str) -> None:
    blob, said = bytes.fromhex(GOLDEN[name]["hex"]), BLOBS[name]
    assert (wire.unpack_update(blob) if isinstance(said, Update) else wire.unpack_keyframe(blob)) == said
    assert packed(said) == blob


def packed(blob: Update | Keyframe) -> bytes:
    return wire.pack_update(blob) if isinstance(blob, Update) else wire.pack_keyframe(blob)


def write() -> None:
    golden: dict[str, dict[str, Any]] = {}
    for name, (message, path) in MESSAGES.items():
        frame = wire.encode(message, "fed1", path)
        is_binary = message.channel.is_binary
        body = {"hex": frame.payload.hex()} if is_binary else {"json": frame.payload.decode()}
        golden[name] = {"topic": frame.topic, "retain": frame.retain, "qos": frame.qos, **body}
    golden |= {name: {"hex": packed(blob).hex()} for name, blob in BLOBS.items()}
    with FILE.open("x") as file:
        file.write(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write()
