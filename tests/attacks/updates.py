"""What is sent to be counted, and what is sent in place of a model."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import zstandard

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.protocol.blobs import Cut, in_memory
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import (
    Announce,
    Decline,
    Phase,
    RoundCall,
    State,
    StateName,
    Tally,
    Update,
    UpdatePart,
)
from hfl_mqtt.protocol.wire import Frame, decode, encode, pack_update
from hfl_mqtt.rounds.signing import update_seal
from tests.attacks.rows import Seen, row
from tests.attacks.stage import FARM, FEDERATION, PI, QUARANTINE_S, Enemy, Stage
from tests.broker.processes import LIMIT_S
from tests.broker.sites import Person

SHAPES = {"weight": (100, 100), "bias": (100,)}
NUMBERS = TensorArithmetic()
CALL_TOPIC = f"hfl/{FEDERATION}/{FARM}/@/stat/round"


def delta(value: float = 1.0) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return an update of the stage's model."""
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def parts_of(call: RoundCall, enemy: Enemy, update: Update | bytes) -> list[UpdatePart]:
    """Return an update, or any bytes in its place, signed and cut as an honest device does it."""
    body = update if isinstance(update, bytes) else pack_update(update)
    cut = Cut.kept([body], in_memory, seal=update_seal(enemy.signer, call.run, call.round, call.model.base))
    return [
        UpdatePart(
            run=call.run,
            round=call.round,
            base=call.model.base,
            blob=cut.name,
            index=index,
            count=cut.count,
            size=cut.size,
            data=cut.part(index),
        )
        for index in range(cut.count)
    ]


def next_call(listener: Person) -> RoundCall:
    """Wait for a call that opens a round, and return it the moment it comes."""
    while not listener.heard.empty():
        listener.heard.get()
    while True:
        message, _ = decode(Frame(topic=CALL_TOPIC, payload=bytes(listener.hear(CALL_TOPIC)[-1].payload)))
        assert isinstance(message, RoundCall)
        if message.phase is Phase.OPEN and message.attempt == 0:
            return message


def payload(value: float = 1.0) -> bytes:
    return NUMBERS.encode(delta(value), "raw | zstd", 0)


def true_update(stage: Stage, enemy: Enemy) -> list[UpdatePart]:
    """Return an update as it should be, for the round that is open now."""
    return parts_of(next_call(stage.rogue(CALL_TOPIC)), enemy, Update(weight=10, payload=payload()))


def refused(enemy: Enemy, part: str) -> str:
    """Wait for the receipt, which must refuse, and say this."""
    receipt = enemy.receipt()
    assert not receipt.accepted
    assert part in receipt.reason, receipt
    return receipt.reason


def handing_in(enemy: Enemy, said: Update | bytes) -> Callable[[RoundCall], None]:
    """Return what hands this in for a call, signed with the enemy's own key."""
    return lambda call: enemy.send_parts(parts_of(call, enemy, said))


def refused_in_time(enemy: Enemy, listener: Person, send: Callable[[RoundCall], object], part: str) -> str:
    """Send something for call after call until it is refused for this: on a busy machine a round may be over before."""
    for _ in range(20):
        send(next_call(listener))
        receipt = enemy.receipt()
        assert not receipt.accepted
        if not receipt.reason.startswith("too late"):
            assert part in receipt.reason, receipt
            return receipt.reason
    raise AssertionError("twenty rounds were over before it came")


# -------------------------------------------------------------- signatures


@row(
    "forged update",
    "a broker that was taken over hands in an update as an honest device's, signed by a thief",
    "m-forge",
)
def forged(stage: Stage) -> Seen:
    thief, rogue = stage.enemy("m-forge"), stage.rogue(CALL_TOPIC)
    before = len(stage.notes(FARM, "refused", sender=PI))
    call = next_call(rogue)
    for part in parts_of(call, thief, Update(weight=10**6, payload=payload(1000.0))):
        rogue.say(f"hflb/{FEDERATION}/{PI}/@/up/0", encode(part, FEDERATION, PI).whole().payload)
    told = stage.note(FARM, "refused", sender=PI, after=before)["reason"]
    assert told.startswith(f"the signature is not {PI}'s"), told
    stage.goes_on()
    return Seen(
        happened="refused; the honest update of the same device counts, in this round or the next",
        reported=f"receipt, the edge's journal and `refused` in its metrics: {told}",
    )


@row("unsigned update", "the same without any signature", "m-bare")
def unsigned(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-bare").join(), stage.rogue(CALL_TOPIC)
    cut = Cut.of(pack_update(Update(weight=10, payload=payload())))

    def send(call: RoundCall) -> None:
        part = UpdatePart(
            run=call.run, round=call.round, base=call.model.base, blob=cut.name, size=cut.size, data=cut.part(0)
        )
        enemy.send(part)

    told = refused_in_time(enemy, listener, send, "signature")
    enemy.part()
    return Seen(happened="refused", reported=f"receipt, the edge's journal: {told}")


@row(
    "replayed update",
    "an honest device's true update of an earlier round, as it was, and with the new round's name on it",
)
def replayed(stage: Stage) -> Seen:
    up = f"hflb/{FEDERATION}/{PI}/@/up/0"
    rogue, listener = stage.rogue(up), stage.rogue(CALL_TOPIC)
    old, _ = decode(Frame(topic=up, payload=bytes(rogue.hear(up)[-1].payload)))
    assert isinstance(old, UpdatePart)
    before, accepted = len(stage.notes(FARM, "refused", sender=PI)), len(stage.notes(FARM, "accepted", sender=PI))
    call = next_call(listener)
    for part in (old, replace(old, run=call.run, round=call.round, base=call.model.base)):
        rogue.say(up, encode(part, FEDERATION, PI).whole().payload)
    told = stage.note(FARM, "refused", sender=PI, after=before)["reason"]
    assert "meant for another round" in told, told
    stage.goes_on()
    by_round = [note["round"] for note in stage.notes(FARM, "accepted", sender=PI)]
    assert len(by_round) == len(set(by_round)), "no round has it twice"
    assert accepted
    return Seen(
        happened="as it was, it is known and does not count again; under another round its signature does not hold",
        reported=f"the edge's journal: `duplicate`, and {told}",
    )


@row("altered update", "a bridge turns one byte of a signed update, and corrects its digest", "m-alter")
def altered(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-alter").join(), stage.rogue(CALL_TOPIC)

    def send(call: RoundCall) -> None:
        (part,) = parts_of(call, enemy, Update(weight=10, payload=payload()))
        body = bytearray(part.data)
        body[len(body) // 2] ^= 1
        enemy.send(replace(part, blob=Cut.of(bytes(body)).name, data=bytes(body)))

    told = refused_in_time(enemy, listener, send, "altered on its way")
    enemy.part()
    return Seen(happened="refused", reported=f"receipt, the edge's journal: {told}")


@row(
    "altered model", "a broker that was taken over puts an altered delta, keyframe and call in the place of the edge's"
)
def altered_model(stage: Stage) -> Seen:
    down, key = f"hflb/{FEDERATION}/{FARM}/@/down/+", f"hflb/{FEDERATION}/{FARM}/@/key/0"
    rogue = stage.rogue(down, CALL_TOPIC)
    before = len(stage.notes(PI, "call_refused"))
    call = next_call(rogue)
    evil = replace(call, plan=replace(call.plan, learning_rate=1e6), attempt=1)
    rogue.say(CALL_TOPIC, encode(evil, FEDERATION, FARM).payload, retain=True)
    told = stage.note(PI, "call_refused", after=before)["reason"]
    assert "signature" in told, told
    spoilt: set[bytes] = set()
    end_s = time.monotonic() + 4.0
    while time.monotonic() < end_s:  # every delta is said once more, altered, as soon as it is there
        message = rogue.heard.get(timeout=LIMIT_S)
        if "/down/" in message.topic and message.payload and bytes(message.payload) not in spoilt:
            spoilt.add(_spoilt(message.payload))
            rogue.say(message.topic, _spoilt(message.payload), retain=True)
    true = bytes(stage.rogue(key).hear(key)[-1].payload)
    rogue.say(key, _spoilt(true), retain=True)
    assert spoilt
    stage.goes_on()
    rogue.say(key, true, retain=True)
    return Seen(
        happened=f"no device works for the call, nor from a model that does not lead to the digest which the edge has "
        f"signed ({len(spoilt)} deltas altered); the true one is fetched again",
        reported=f"the devices' journals, and the reason in their state: {told}",
    )


def _spoilt(payload: bytes | bytearray) -> bytes:
    """Return a part with its last bit turned."""
    return bytes(payload[:-1]) + bytes([payload[-1] ^ 1])


# -------------------------------------------------------------- sizes and bombs


@row("oversize", "a packet of 2 MB, an announcement of 1 GiB, a message of 20 kB", "m-size", "m-packet")
def oversize(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-size").join(), stage.rogue(CALL_TOPIC)
    topic = f"hfl/{FEDERATION}/{enemy.path}/@/tele/decline"
    enemy.say(topic, b" " * 20_000)
    malformed = stage.note(FARM, "malformed", topic=topic)["reason"]
    assert "20000 bytes, at most 16000" in malformed, malformed
    call = next_call(listener)
    base, most = call.model.base, MAX_BLOB
    enemy.send(Announce(run=call.run, round=call.round, base=base, blob="0" * 16, size=most, count=4096))
    told = refused(enemy, "make sense here")
    giant = stage.enemy("m-packet")
    giant.client.publish(f"hflb/{FEDERATION}/{giant.path}/@/up/0", bytes(2_000_000), qos=1)
    line = re.sub("-[0-9]{9,}", "", stage.said_by_broker("oversize packet"))
    enemy.part()
    return Seen(
        happened="the broker ends the connection of the first; the others are refused before anything is allocated",
        reported=f"mosquitto.log: {line}; receipt and the edge's journal: {told}; {malformed}",
    )


@row(
    "zip bomb",
    "signed updates of 90 kB that unpack to 3 GB: of unknown size, of their true size, of a false one",
    "m-zip",
)
def zip_bomb(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-zip").join(), stage.rogue(CALL_TOPIC)
    true = payload()
    at = true.index(b"\x28\xb5\x2f\xfd")
    zeros, count = bytes(2**24), 180
    bombs = []
    for size in (-1, len(zeros) * count):
        packer = zstandard.ZstdCompressor(level=1).compressobj(size=size)
        bombs.append(b"".join([packer.compress(zeros) for _ in range(count)]) + packer.flush())
    head = true[at : at + zstandard.frame_header_size(true[at:])]
    bombs.append(head + bombs[0][zstandard.frame_header_size(bombs[0]) :])
    before, told = stage.edge_memory_mb(), []
    for bomb in bombs:
        update = Update(weight=10, payload=true[:at] + bomb)
        told.append(refused_in_time(enemy, listener, handing_in(enemy, update), "zstd"))
    grown = stage.edge_memory_mb() - before
    assert grown < 20, f"{grown} MB"
    enemy.part()
    return Seen(
        happened=f"refused before they are unpacked further than the model is large; the edge's memory grew by "
        f"{max(grown, 0):.1f} MB",
        reported=f"receipts, the edge's journal: {'; '.join(told)}",
    )


@row(
    "msgpack bomb", "parts and a signed update of nested lists, each of 256 KiB that would be 14 MB in Python", "m-pack"
)
def msgpack_bomb(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-pack").join(), stage.rogue(CALL_TOPIC)
    up = f"hflb/{FEDERATION}/{enemy.path}/@/up/0"
    head, before = b"\x82\xa1v\x01\xa1x", stage.edge_memory_mb()
    bombs = (
        b"\x91" * 260_000,
        b"\xdd\x00\x03\xf0\x00" + b"\x90" * 258_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    )
    for bomb in bombs:
        enemy.say(up, head + bomb)
    stage.note(FARM, "malformed", topic=up, after=len(bombs) - 1)
    reasons = {note["reason"] for note in stage.notes(FARM, "malformed", topic=up)}
    told = refused_in_time(
        enemy,
        listener,
        handing_in(enemy, head + b"\x91" * 100_000),
        "Update",
    )
    grown = stage.edge_memory_mb() - before
    assert grown < 20, f"{grown} MB"
    enemy.part()
    return Seen(
        happened=f"{len(bombs)} parts and an update refused; the edge's memory grew by {max(grown, 0):.1f} MB",
        reported=f"the edge's journal: {'; '.join(sorted(reasons))}; receipt: {told}",
    )


# -------------------------------------------------------------- floods and lies


@row("flood", "2,000 messages a second for eight seconds, by one device", "m-flood")
def flood(stage: Stage) -> Seen:
    usual_s = stage.goes_on(6)
    enemy = stage.enemy("m-flood").join()
    stage.note(FARM, "joined", sender=enemy.path)
    frame = encode(Decline(run="r", round=(1,), reason="x" * 100), FEDERATION, enemy.path)
    began_s = time.monotonic()

    def send() -> None:
        pause = threading.Event()
        for number in range(16_000):
            enemy.client.publish(frame.topic, frame.payload, qos=1)
            if number % 20 == 0:
                pause.wait(max(began_s + number / 2000 - time.monotonic(), 0))

    sender = threading.Thread(target=send)
    sender.start()
    told = stage.note(FARM, "quarantined", sender=enemy.path)
    after_s = time.monotonic() - began_s
    shown = stage.retained(f"{FARM}/@/stat/quarantine")["children"]
    during_s = stage.goes_on(6)
    sender.join()
    assert shown == {enemy.path: told["reason"]}
    assert (
        f'"reason":"{told["reason"]}"'.encode()
        in enemy.hear(f"hfl/{FEDERATION}/{enemy.path}/@/cmnd/quarantine")[-1].payload
    )
    assert during_s < 3 * usual_s + 1.0, (usual_s, during_s)
    enemy.leave()
    return Seen(
        happened=f"in quarantine after {after_s:.1f} s; a round of the others takes {during_s:.2f} s, "
        f"{usual_s:.2f} s before",
        reported=f"stat/quarantine, cmnd/quarantine, the edge's journal: {told['reason']}",
    )


@row("lies", "five updates of NaN and of more samples than can be, and sixteen junk metrics in each", "m-lie")
def lies(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-lie").join(), stage.rogue(CALL_TOPIC)
    junk = {f"0junk{number:02}": Tally(total=1e300, count=1) for number in range(16)}
    nan = bytearray(NUMBERS.encode(delta(), "raw", 0))
    nan[-4:] = np.float32(np.nan).tobytes()
    reasons = []
    for number in range(5):
        body = Update(weight=2**40 if number % 2 else 10, payload=payload(), tallies=junk)
        if not number % 2:
            packed = zstandard.ZstdCompressor().compress(bytes(nan[-40_400:]))
            true = payload()
            body = replace(body, payload=true[: true.index(b"\x28\xb5\x2f\xfd")] + packed)
        reasons.append(refused_in_time(enemy, listener, handing_in(enemy, body), ""))
    told = stage.note(FARM, "quarantined", sender=enemy.path)
    stage.goes_on()
    assert "0junk00" not in stage.retained(f"{FARM}/@/stat/metrics")
    stage.note(FARM, "released", sender=enemy.path)
    enemy.send(State(state=StateName.READY, boot=1))
    stage.note(FARM, "joined", sender=enemy.path, after=1)
    enemy.part()
    return Seen(
        happened=f"each is refused, the fifth brings it into quarantine; after {QUARANTINE_S:g} s (here) it is heard",
        reported=f"receipts, stat/quarantine, the edge's journal: {told['reason']}",
    )
