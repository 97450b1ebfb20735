"""Records that a card has damaged: what was accepted and cannot be read any more is called for again."""

import pytest

from hfl_mqtt.protocol.messages import Late, Receipt, RoundCall, UpdatePart
from hfl_mqtt.rounds.actions import Action, Connected, Contribution, Persist, Received, Work, Worked
from hfl_mqtt.rounds.aggregator import Aggregator
from hfl_mqtt.rounds.client import ClientNode
from tests.unit.rounds.trees import (
    MATH,
    PLAN,
    READY,
    info,
    key_parts,
    keyframe,
    noted,
    notes,
    of,
    offered,
    quick,
    said,
    update_parts,
    values,
    weights,
)

A, B = "cloud/a", "cloud/b"
Held = dict[str, bytes]


def take(held: Held, actions: list[Action]) -> list[Action]:
    for persist in of(actions, Persist):
        for key, value in persist.changes.items():
            held.pop(key, None)
            held |= {key: bytes(value)} if value is not None else {}
    return actions


def opened(held: Held, late: Late = Late.DROP) -> tuple[Aggregator, RoundCall]:
    """A round of two children, all of whom must answer, with the answer of the first."""
    aggregator = Aggregator(path="cloud", arithmetic=MATH, boot=1)
    for child in (A, B):
        aggregator.hear(READY, child, 0.0)
    take(held, aggregator.downlink.begin(keyframe(weights(1.0))))
    tier = quick(quorum=1.0, late=late)
    (call,) = said(
        take(held, aggregator.open(run="r", round_id=(1,), plan=PLAN, tier=tier, seed=0, now=0.0)), RoundCall
    )
    take(held, aggregator.hear(*answer(call, A), 1.0))
    return aggregator, call


def answer(call: RoundCall, child: str) -> tuple[UpdatePart, str]:
    (part,) = update_parts(call, weights(3.0 if child == A else 5.0), 1)
    return part, child


def next_life(held: Held) -> tuple[Aggregator, list[Action]]:
    aggregator = Aggregator(path="cloud", arithmetic=MATH, boot=2, saved=dict(held))
    return aggregator, take(held, aggregator.start(10.0))


DAMAGES = {
    "flipped": lambda data: data[:35] + bytes([data[35] ^ 1]) + data[36:],
    "cut off": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("late", list(Late))
@pytest.mark.parametrize("key", [f"down/update/{A}", f"down/accepted/{A}"])
@pytest.mark.parametrize("damage", ["gone", *DAMAGES])
def test_an_accepted_update_that_cannot_be_read_is_called_for_again_and_counts_once(
    key: str, damage: str, late: Late
) -> None:
    held: Held = {}
    _, call = opened(held, late)
    if damage == "gone":
        del held[key]
    else:
        held[key] = DAMAGES[damage](held[key])
    aggregator, begun = next_life(held)
    assert "unreadable" in notes(begun)
    (again,) = said(aggregator.connected(session_present=True, now=11.0), RoundCall)
    assert (again.round, again.boot) == (call.round, call.boot)
    assert again.number > call.number  # so whoever was accepted hears that it does not count any more
    take(held, aggregator.hear(*answer(again, A), 12.0))
    take(held, aggregator.hear(*answer(again, A), 12.0))  # sent twice
    take(held, aggregator.hear(*answer(again, B), 13.0))
    outcome = aggregator.take_outcome()
    assert outcome is not None
    assert outcome.accepted == {A: 1, B: 1}
    assert values(outcome.step) == [4.0]


def test_whatever_byte_of_a_record_is_another_each_update_counts_once() -> None:
    held: Held = {}
    opened(held)
    for key in (f"down/accepted/{A}", f"down/receipts/{A}"):
        for place in range(len(held[key])):
            data = bytearray(held[key])
            data[place] ^= 1
            worn = {**held, key: bytes(data)}
            aggregator, _ = next_life(worn)
            (again,) = said(aggregator.connected(session_present=True, now=11.0), RoundCall)
            for child in (A, A, B):
                take(worn, aggregator.hear(*answer(again, child), 12.0))
            outcome = aggregator.take_outcome()
            assert outcome is not None, (key, place)
            assert values(outcome.step) == [4.0], (key, place)


@pytest.mark.parametrize("late", list(Late))
def test_an_update_whose_receipt_cannot_be_read_does_not_count_twice(late: Late) -> None:
    held: Held = {}
    opened(held, late)
    held[f"down/receipts/{A}"] = b"worn out"
    aggregator, begun = next_life(held)
    assert noted(begun, "unreadable")["key"] == f"down/receipts/{A}"
    (again,) = said(aggregator.connected(session_present=True, now=11.0), RoundCall)
    (receipt,) = said(take(held, aggregator.hear(*answer(again, A), 12.0)), Receipt)
    assert receipt.accepted
    take(held, aggregator.hear(*answer(again, B), 13.0))
    outcome = aggregator.take_outcome()
    assert outcome is not None
    assert values(outcome.step) == [4.0]


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_where_the_open_round_is_not_known_any_more_all_its_updates_are_asked_for_again(damage: str) -> None:
    held: Held = {}
    opened(held)
    if damage == "gone":
        del held["down/round"]
    else:
        held["down/round"] = DAMAGES[damage](held["down/round"])
    aggregator, begun = next_life(held)
    assert ("unreadable" in notes(begun)) == (damage != "gone")
    assert not aggregator.is_open
    assert not [key for key in held if key.startswith("down/")]
    for child in (A, B):
        aggregator.hear(READY, child, 11.0)
    actions = aggregator.open(run="r", round_id=(1,), plan=PLAN, tier=quick(quorum=1.0), seed=0, now=12.0)
    (call,) = said(take(held, actions), RoundCall)
    for child in (A, B):
        take(held, aggregator.hear(*answer(call, child), 13.0))
    outcome = aggregator.take_outcome()
    assert outcome is not None
    assert values(outcome.step) == [4.0]


def test_a_device_whose_update_was_lost_by_its_parent_sends_it_again_without_training_again() -> None:
    held: Held = {}
    aggregator = Aggregator(path="cloud", arithmetic=MATH, boot=1)
    take(held, aggregator.downlink.begin(keyframe(weights(1.0))))
    for child in (A, B):
        aggregator.hear(READY, child, 0.0)
    opening = aggregator.open(run="r", round_id=(1,), plan=PLAN, tier=quick(quorum=1.0), seed=0, now=0.0)
    (call,) = said(take(held, opening), RoundCall)
    device = ClientNode(path=A, boot=1, info=info())
    device.start(0.0)
    device.handle(Connected(), 0.0)
    actions = device.handle(Received(message=call, sender="cloud"), 1.0)
    for frame in key_parts(offered(weights(1.0))):
        actions += device.handle(Received(message=frame, sender="cloud"), 1.0)
    (work,) = of(actions, Work)
    result = Contribution(payload=MATH.encode(weights(3.0), work.codec, 0), weight=1)
    (part,) = said(device.handle(Worked(work_id=work.work_id, result=result), 2.0), UpdatePart)
    (receipt,) = said(take(held, aggregator.hear(part, A, 2.0)), Receipt)
    device.handle(Received(message=receipt, sender="cloud"), 2.0)
    del held[f"down/update/{A}"]
    after, _ = next_life(held)
    (again,) = said(after.connected(session_present=True, now=11.0), RoundCall)
    resent = device.handle(Received(message=again, sender="cloud"), 11.0)
    assert said(resent, UpdatePart) == [part]
    assert not of(resent, Work)
