"""Who could wait for ever: for a slot of somebody dead, for a round called again, for a model that never fits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hfl_mqtt.protocol.messages import Announce, Late, ModelPart, Phase, RoundCall, UpdatePart, Want, WantModel
from hfl_mqtt.rounds.actions import Action, Fetch, Send
from hfl_mqtt.rounds.aggregator import Aggregator
from hfl_mqtt.rounds.following import Following
from tests.unit.rounds.trees import (
    LOST,
    MATH,
    PLAN,
    READY,
    delta_parts,
    key_parts,
    keyframe,
    notes,
    of,
    offered,
    quick,
    said,
    update_parts,
    weights,
)

A, B, C = (f"cloud/{name}" for name in "abc")
DELTA = {"w": np.random.default_rng(0).standard_normal(500).astype(np.float32)}


def aggregator(*children: str) -> Aggregator:
    """One with a model of 500 numbers and with these children."""
    found = Aggregator(path="cloud", arithmetic=MATH)
    for child in children:
        found.hear(READY, child, 0.0)
    found.downlink.begin(keyframe({"w": np.zeros(500, np.float32)}))
    return found


def begin(cloud: Aggregator, now: float = 0.0, **tier: Any) -> RoundCall:
    return said(cloud.open(run="r", round_id=(1,), plan=PLAN, tier=quick(**tier), seed=0, now=now), RoundCall)[-1]


def announced(parts: list[UpdatePart]) -> Announce:
    first = parts[0]
    return Announce(
        run=first.run, round=first.round, base=first.base[:16], blob=first.blob, size=first.size, count=first.count
    )


def granted(actions: list[Action]) -> list[str | None]:
    return [action.to for action in of(actions, Send) if isinstance(action.message, Want)]


def with_room_for_one(*children: str, **tier: Any) -> tuple[Aggregator, list[UpdatePart]]:
    """A cloud with an open round and room for one update at a time, and an update."""
    cloud = aggregator(*children)
    parts = update_parts(begin(cloud, **tier), DELTA, 1, part_size=200)
    cloud._updates._max_total = parts[0].size
    return cloud, parts


# ------------------------------------------------------------------ slots


def test_the_slot_of_a_child_that_was_lost_while_nobody_waited_is_there_for_the_next() -> None:
    cloud, parts = with_room_for_one(A, B, quorum=2)
    assert granted(cloud.hear(announced(parts), A, 1.0)) == [A]
    cloud.hear(parts[0], A, 2.0)
    cloud.hear(LOST, A, 3.0)
    assert granted(cloud.hear(announced(parts), B, 4.0)) == [B]


def test_what_was_under_way_when_a_run_ended_takes_no_slot_in_the_next() -> None:
    cloud, parts = with_room_for_one(A, B, quorum=2, late=Late.NEXT)
    cloud.hear(announced(parts), A, 1.0)
    assert granted(cloud.hear(announced(parts), B, 2.0)) == []
    cloud.finish("r")
    assert cloud.received is None
    call = said(
        cloud.open(run="s", round_id=(1,), plan=PLAN, tier=quick(quorum=2, late=Late.NEXT), seed=0, now=3.0), RoundCall
    )[-1]
    parts = update_parts(call, DELTA, 1, part_size=200)
    cloud._updates._max_total = parts[0].size
    assert granted(cloud.hear(announced(parts), B, 4.0)) == [B]


def test_an_update_for_which_there_is_no_room_stands_in_line_and_is_asked_for() -> None:
    cloud, parts = with_room_for_one(A, B, quorum=2)
    cloud.hear(parts[0], A, 1.0)
    assert notes(cloud.hear(parts[0], B, 1.0)) == ["no_room"]
    actions = [action for part in parts[1:] for action in cloud.hear(part, A, 2.0)]
    assert granted(actions)[-1] == B


def test_who_stood_in_line_is_not_late_while_its_parts_come_however_long_it_takes() -> None:
    cloud, parts = with_room_for_one(A, B, C, quorum=1, grace_s=5.0, open_for_s=60.0)
    for child in (A, B):
        cloud.hear(announced(parts), child, 1.0)
    for part in parts:
        cloud.hear(part, A, 2.0)  # the quorum is in, and B has its slot only now
    now, left = 2.0, list(parts)
    while left:
        now += 20.0
        while (due := cloud.next_deadline) is not None and due < now:
            assert "closed" not in notes(cloud.tick(due))
        cloud.hear(left.pop(0), B, now)
    assert now > 60.0
    while (due := cloud.next_deadline) is not None:  # nobody waits longer for C, who did not stand in line
        assert due <= now + 6.0
        cloud.tick(due)
    outcome = cloud.take_outcome()
    assert outcome is not None
    assert (outcome.accepted, outcome.missing) == ({A: 1, B: 1}, (C,))


def test_who_stood_in_line_and_then_sends_nothing_is_late_after_half_a_minute() -> None:
    cloud, parts = with_room_for_one(A, B, quorum=1, grace_s=5.0, open_for_s=60.0)
    for child in (A, B):
        cloud.hear(announced(parts), child, 1.0)
    for part in parts:
        cloud.hear(part, A, 2.0)
    said_of: dict[str, float] = {}
    while (due := cloud.next_deadline) is not None:
        said_of |= dict.fromkeys(notes(cloud.tick(due)), due)
    assert 32.0 < said_of["closed"] <= 40.0


# ------------------------------------------------------------------ a round called again


def test_a_round_that_is_opened_again_is_first_said_to_be_closed_to_those_who_were_accepted() -> None:
    cloud = aggregator(A)
    call = begin(cloud, quorum=2, open_for_s=10.0, retries=0)
    (part,) = update_parts(call, DELTA, 1)
    cloud.hear(part, A, 1.0)
    missed = cloud.tick(10.0)
    assert (notes(missed), said(missed, RoundCall)) == (["missed"], [])  # all have answered: nobody needs to hear it
    again = cloud.open(run="r", round_id=(1,), plan=PLAN, tier=quick(), seed=0, now=20.0)
    assert [(told.phase, told.attempt) for told in said(again, RoundCall)] == [(Phase.CLOSED, 0), (Phase.OPEN, 1)]


# ------------------------------------------------------------------ a model


@pytest.mark.parametrize(("steps", "at"), [(1, 1), (12, 11)])
def test_a_wrong_delta_that_lies_in_its_slot_is_not_fetched_over_and_over_but_the_parent_is_asked(
    steps: int, at: int
) -> None:
    offer = offered(weights(1.0), *(weights(2.0) for _ in range(steps)))
    right = [delta_parts(offer, version)[0] for version in range(1, steps + 1)]
    slots = {str(frame): part for frame, part in enumerate(right)}
    slots[str(at - 1)] = delta_parts(offered(weights(1.0), *(weights(3.0) for _ in range(steps))), at)[0]
    (key,) = key_parts(offer)
    following, now, fetches = Following(2**20), 0.0, 0
    actions = following.want("r", offer.manifest, now)
    while not following.has_arrived and now < 60.0:
        for asked in said(actions, WantModel):
            if not asked.is_key:
                slots[str(asked.version - 1)] = right[asked.version - 1]
        parts = [key if fetch.is_key else slots[name] for fetch in of(actions, Fetch) for name in fetch.slots]
        fetches += len(parts)
        assert fetches <= 9 * (steps + 1)
        actions = [action for part in parts for action in following.hear(part, now)]
        if not parts and not following.has_arrived:
            assert following.next_deadline is not None
            now = following.next_deadline
            actions = following.tick(now)
    assert following.has_arrived


def test_a_keyframe_of_an_earlier_run_that_still_lies_in_its_slot_is_not_fetched_over_and_over() -> None:
    old, offer = offered(weights(5.0), run="q"), offered(weights(1.0), run="r")
    following, now, fetches = Following(2**20), 0.0, 0
    (slot,) = key_parts(old)
    actions = following.want("r", offer.manifest, now)
    while not following.has_arrived and now < 60.0:
        if said(actions, WantModel):
            (slot,) = key_parts(offer)
        asked = len(of(actions, Fetch))
        fetches += asked
        assert fetches <= 8
        actions = [action for _ in range(asked) for action in following.hear(slot, now)]
        if not asked:
            assert following.next_deadline is not None
            now = following.next_deadline
            actions = following.tick(now)
    assert following.has_arrived
    assert now < 10.0


def test_a_keyframe_that_its_call_overtook_is_there_as_soon_as_it_has_crossed() -> None:
    old, offer = offered(weights(5.0), run="q"), offered(weights(1.0), run="r")
    following = Following(2**20)
    following.want("r", offer.manifest, 0.0)
    now = 0.0
    for _ in range(3):
        assert notes(following.hear(key_parts(old)[0], now)) == ["malformed"]
        assert following.next_deadline is not None
        now = following.next_deadline
        looked = following.tick(now)
        assert (len(of(looked, Fetch)), said(looked, WantModel)) == (1, [])
    assert now < 1.0
    following.hear(key_parts(offer)[0], 1.2)
    assert following.has_arrived


@pytest.mark.parametrize("kept", [1, 5])
def test_what_came_in_part_of_deltas_that_are_past_takes_no_room(kept: int) -> None:
    following = Following(max_model=100_000)
    offer = offered(weights(1.0), *(weights(2.0) for _ in range(kept)))
    following.want("r", offered(weights(1.0)).manifest, 0.0)
    following.hear(key_parts(offer)[0], 0.0)
    for version in range(1, kept + 1):
        half = ModelPart(
            frame=0, version=version, blob=f"{version:016x}", index=0, count=2, size=50_000, data=bytes(25_000)
        )
        following.hear(half, 0.0)
    following.want("r", offer.manifest, 1.0)
    for version in range(1, kept + 1):
        following.hear(delta_parts(offer, version)[0], 1.0)
    assert following.has_arrived
    assert following.progress() is None


def test_parts_of_a_keyframe_that_is_no_longer_called_for_take_no_room() -> None:
    following, offer = Following(max_model=100_000), offered(weights(1.0), weights(2.0))
    following.want("r", replace(offer.manifest, key=0), 0.0)
    (key,) = key_parts(offer)
    following.hear(replace(key, blob="5" * 16, count=2, size=150_000, data=bytes(75_000)), 1.0)
    assert following.progress() is not None
    following.want("r", replace(offer.manifest, version=9, key=9), 2.0)
    assert following.progress() is None


def test_deltas_that_an_idle_node_hears_take_no_more_room_than_a_keyframe_in_their_place_would() -> None:
    following, offer = Following(max_model=2**30), offered(weights(1.0))
    following.want("r", offer.manifest, 0.0)
    following.hear(key_parts(offer)[0], 0.0)
    following.rest()
    for version in range(1, 20):
        offer.push(np.random.default_rng(version).bytes(250_000))
        following.hear(delta_parts(offer, version)[0], float(version))
    assert sum(cut.size for cut in following._loose.values()) <= 2**21
    fetched = [name for fetch in of(following.want("r", offer.manifest, 20.0), Fetch) for name in fetch.slots]
    assert fetched == [str(frame) for frame in range(8, 16)]  # the others as soon as these are here
