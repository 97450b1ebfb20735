"""A parent's model, heard and fetched: whatever is missed, late or broken, the right one arrives or is asked for."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.protocol.limits import MAX_HEAD
from hfl_mqtt.protocol.messages import KeyPart, ModelPart, WantModel
from hfl_mqtt.rounds.actions import Action, Fetch
from hfl_mqtt.rounds.following import Following
from hfl_mqtt.rounds.offer import Offer
from tests.unit.rounds.trees import MATH, delta_parts, key_parts, noted, notes, of, offered, said, values, weights

Part = KeyPart | ModelPart


def offer_of(steps: int, run: str = "r", first: float = 1.0) -> Offer:
    return offered(weights(first), *(weights(10.0**step) for step in range(steps)), run=run)


def follower(max_model: int = 2**20) -> Following:
    return Following(max_model)


def at(steps: int) -> Following:
    """Return one that knows the model after so many steps, and rests."""
    offer, following = offer_of(steps), follower()
    following.want("r", offer.manifest, 0.0)
    for part in all_parts(offer):
        following.hear(part, 0.0)
    assert following.has_arrived
    following.rest()
    return following


def all_parts(offer: Offer) -> list[Part]:
    """What lies in the slots, and each part once."""
    return [*key_parts(offer), *(part for link in offer.chain.links for part in delta_parts(offer, link.version))]


def model_of(following: Following) -> list[float]:
    assert following.chain is not None
    return values(MATH.weights(following.chain.model))


def fetched(actions: list[Action]) -> list[tuple[str, ...]]:
    """What was asked of the broker; a keyframe's slots begin with a k."""
    return [tuple(f"k{slot}" for slot in fetch.slots) if fetch.is_key else fetch.slots for fetch in of(actions, Fetch)]


# ------------------------------------------------------------------ what is fetched


def test_whoever_comes_late_fetches_the_keyframe_and_the_deltas_since_and_asks_nobody_for_anything() -> None:
    offer, following = offer_of(3), follower()
    actions = following.want("r", offer.manifest, 0.0)
    assert fetched(actions) == [("k0",), ("0", "1", "2")]
    assert len(actions) == 2
    keyed, first, second, third = all_parts(offer)
    for part in (third, first, keyed):
        assert following.hear(part, 0.1) == []
        assert not following.has_arrived
    following.hear(second, 0.1)
    assert following.has_arrived
    assert model_of(following) == [112.0]
    assert following.next_deadline is None


def test_whoever_is_one_behind_hears_the_next_and_fetches_nothing() -> None:
    following, offer = at(2), offer_of(3)
    assert following.want("r", offer.manifest, 10.0) == []
    assert following.hear(delta_parts(offer, 3)[0], 10.5) == []
    assert following.has_arrived
    assert model_of(following) == [112.0]


def test_a_delta_that_does_not_come_by_itself_is_fetched_after_two_seconds() -> None:
    following, offer = at(2), offer_of(3)
    following.want("r", offer.manifest, 10.0)
    assert following.next_deadline == 12.0
    assert fetched(following.tick(11.9)) == []
    assert following.tick(12.0) == [Fetch(slots=("2",))]


def test_a_sleeper_fetches_only_the_deltas_that_it_missed() -> None:
    following, offer = at(2), offer_of(5)
    following.hear(delta_parts(offer, 4)[0], 5.0)  # heard while nothing was called
    assert fetched(following.want("r", offer.manifest, 10.0)) == [("2", "4")]
    following.hear(delta_parts(offer, 3)[0], 10.1)
    following.hear(delta_parts(offer, 5)[0], 10.1)
    assert model_of(following) == [11112.0]


def test_where_a_newer_keyframe_stands_between_it_is_fetched_in_place_of_the_deltas() -> None:
    following, offer = at(1), offer_of(4)
    offer.rebase(MATH.shorten(offer.chain.model))
    offer.push(MATH.encode(weights(0.5), "raw", 0))
    assert (offer.manifest.version, offer.manifest.key) == (5, 4)
    assert fetched(following.want("r", offer.manifest, 10.0)) == [("k0",), ("0",)]
    for part in all_parts(offer):
        following.hear(part, 10.1)
    assert model_of(following) == [1112.5]


def test_whoever_heard_all_deltas_does_not_need_the_new_keyframe() -> None:
    following, offer = at(1), offer_of(3)
    heard = [*delta_parts(offer, 2), *delta_parts(offer, 3)]
    offer.rebase(MATH.shorten(offer.chain.model))
    for part in heard:
        following.hear(part, 5.0)
    assert following.want("r", offer.manifest, 10.0) == []
    assert following.has_arrived


def test_no_more_than_eight_parts_are_asked_for_at_a_time_and_the_next_when_half_of_them_came() -> None:
    offer, following = offer_of(12), follower()
    first = following.want("r", offer.manifest, 0.0)
    assert fetched(first) == [("k0",), ("0", "1", "2", "3", "4", "5", "6")]
    asked = [fetched(following.hear(part, 0.1)) for part in all_parts(offer)]
    assert asked == [[], [], [], [("7", "8", "9", "10")], [], [], [], [("11",)], [], [], [], [], []]
    assert following.has_arrived


def test_the_parts_of_a_large_delta_are_named_in_its_slots() -> None:
    offer = offered({"w": np.zeros(200_000, np.float32)}, {"w": np.arange(200_000, dtype=np.float32)}, codec="raw")
    following = follower()
    following.want("r", offer.manifest, 0.0)
    following.hear(key_parts(offer)[0], 0.1)
    parts = delta_parts(offer, 1)
    following.hear(parts[0], 0.1)
    assert len(parts) == 4
    (want,) = said(following.tick(10.0), WantModel)
    assert want == WantModel(version=1, parts=(1, 2, 3))
    assert fetched(following.tick(20.0)) == [("0p1", "0p2", "0p3")]


# ------------------------------------------------------------------ what a broker has lost


def test_what_the_broker_does_not_have_the_parent_is_asked_for_ever_more_seldom() -> None:
    offer, following = offer_of(1), follower()
    following.want("r", offer.manifest, 0.0)
    asked = []
    for _ in range(6):
        now = following.next_deadline
        assert now is not None
        actions = following.tick(now)
        assert said(actions, WantModel) == [
            WantModel(version=0, parts=(0,), is_key=True),
            WantModel(version=1, parts=(0,)),
        ]
        assert fetched(actions) == [("k0",), ("0",)], "the broker is asked again as well"
        asked.append(now)
    assert asked == [3.0, 9.0, 21.0, 45.0, 93.0, 153.0]


def test_the_parent_is_asked_for_eight_frames_at_a_time_and_for_the_next_as_soon_as_they_came() -> None:
    following, offer = at(0), offer_of(12)
    following.want("r", offer.manifest, 1000.0)
    first = said(following.tick(1003.0), WantModel)
    assert first == [WantModel(version=version, parts=(0,)) for version in range(1, 9)]
    for want in first:
        following.hear(delta_parts(offer, want.version)[0], 1003.1)
    now = following.next_deadline
    assert now is not None
    assert now <= 1013.0
    assert [want.version for want in said(following.tick(now), WantModel)] == [9, 10, 11, 12]


def test_a_long_pause_before_a_call_does_not_make_it_patient() -> None:
    following, offer = at(2), offer_of(4)
    following.want("r", offer.manifest, 5000.0)
    following.hear(delta_parts(offer, 3)[0], 5000.1)
    assert following.next_deadline == 5003.1


def test_an_aggregator_that_began_anew_has_another_chain_which_is_fetched_from_its_start() -> None:
    following, other = at(2), offer_of(2, first=5.0)
    actions = following.want("r", other.manifest, 10.0)
    assert notes(actions) == ["chain_broken"]
    assert fetched(actions) == [("k0",), ("0", "1")]
    for part in all_parts(other):
        following.hear(part, 10.1)
    assert model_of(following) == [16.0]


def test_a_delta_of_a_chain_that_is_gone_breaks_nothing_for_good() -> None:
    following, offer = at(2), offer_of(3)
    stale = delta_parts(offered(*(weights(float(value)) for value in (7, 8, 9, 10))), 3)[0]
    following.hear(stale, 5.0)
    actions = following.want("r", offer.manifest, 10.0)
    assert notes(actions) == ["chain_broken"]
    for part in all_parts(offer):
        following.hear(part, 10.1)
    assert model_of(following) == [112.0]


def test_a_new_run_begins_with_nothing() -> None:
    following, other = at(2), offer_of(0, run="s", first=5.0)
    assert fetched(following.want("s", other.manifest, 10.0)) == [("k0",)]
    following.hear(key_parts(other)[0], 10.1)
    assert model_of(following) == [5.0]


# ------------------------------------------------------------------ parts


LARGE: Weights = weights(*range(100))


def test_a_model_of_many_parts_is_asked_for_part_by_part_once_one_is_here() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    assert len(parts) > 8
    following.want("r", offer.manifest, 0.0)
    first = following.hear(parts[3], 0.1)
    assert fetched(first) == [("k1", "k2", "k4", "k5", "k6", "k7", "k8")]
    for part in parts:
        following.hear(part, 0.2)
    assert model_of(following) == list(range(100))


def test_a_blob_that_does_not_hash_to_its_name_is_noted_and_fetched_again() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 0.0)
    for part in parts[:-1]:
        following.hear(part, 0.1)
    actions = following.hear(replace(parts[-1], data=bytes(len(parts[-1].data))), 0.1)
    assert "does not hash" in noted(actions, "malformed")["reason"]
    assert not following.has_arrived
    assert fetched(following.tick(following.next_deadline or 0.0)) == [("k0",)]
    for part in parts:
        following.hear(part, 5.0)
    assert following.has_arrived


def test_a_malformed_part_leaves_the_others_alone() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 0.0)
    following.hear(parts[0], 0.0)
    assert notes(following.hear(replace(parts[1], data=b"x"), 0.0)) == ["malformed"]
    for part in parts[1:]:
        following.hear(part, 0.0)
    assert following.has_arrived


@pytest.mark.parametrize(("run", "version"), [("s", 0), ("r", 1)])
def test_a_keyframe_that_says_it_is_another_one_is_not_taken(run: str, version: int) -> None:
    offer, following = offered(LARGE), follower()
    offer.chain.keyframe = replace(offer.chain.keyframe, run=run, version=version)
    other = key_parts(Offer(offer.chain.keyframe))[0]
    following.want("r", offered(LARGE).manifest, 0.0)
    actions = following.hear(replace(other, version=0), 0.1)
    assert notes(actions) == ["malformed"]
    assert following.chain is None


def test_while_parts_keep_coming_nothing_is_asked_for_twice() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 0.0)
    now, asked = 0.0, []
    for part in parts:
        now += 4.0  # a slow link: longer than the patience for the first
        if (due := following.next_deadline) is not None and due <= now and part.index > 1:
            asked.append(due)
        following.hear(part, now)
    assert (following.has_arrived, asked) == (True, [])


def test_what_was_lost_of_a_slow_model_is_asked_for_again_soon() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 0.0)
    for part in parts[:-2] + parts[-1:]:
        following.hear(part, 1.0)
    now = following.next_deadline
    assert now is not None
    assert now <= 10.0
    assert fetched(following.tick(now)) == [(f"k{len(parts) - 2}",)]


def test_it_is_never_without_a_deadline_while_something_is_called_for() -> None:
    offer, following = offered(LARGE), follower()
    following.want("r", offer.manifest, 0.0)
    following.hear(KeyPart(version=0, blob="0" * 16, index=1, count=2, size=3, data=b"x"), 1.0)
    for _ in range(100):
        now = following.next_deadline
        assert now is not None
        following.tick(now)
        after = following.next_deadline
        assert after is not None
        assert after > now


def test_a_clock_that_jumps_back_only_makes_it_wait() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 1000.0)
    following.hear(parts[0], 1000.0)
    assert following.tick(0.0) == []
    for part in parts[1:]:
        following.hear(part, 1.0)
    assert following.has_arrived


def test_deltas_that_nobody_called_for_take_no_more_room_than_three_models() -> None:
    following = follower(max_model=100_000)
    for version in range(1, 20):
        name = f"{version:016x}"
        part = ModelPart(frame=0, version=version, blob=name, index=0, count=2, size=90_000, data=bytes(45_000))
        following.hear(part, float(version))
    progress = following.progress()
    assert progress is not None
    assert progress[1] <= 300_000 + MAX_HEAD


def test_a_keyframe_may_be_twice_as_large_as_a_model_may() -> None:
    # The weights that a run began with, and how far the model has come since, each as large as the model.
    offer, following = offered(LARGE, LARGE, codec="raw"), follower(max_model=100_000)
    parts = key_parts(offer)
    (part,) = parts
    large = replace(part, size=200_000 + MAX_HEAD, count=2, data=bytes(100_000 + MAX_HEAD // 2))
    following.want("r", offer.manifest, 0.0)
    assert "malformed" not in notes(following.hear(large, 0.0))
    larger = replace(large, blob="f" * 16, size=large.size + 2, data=bytes(len(large.data) + 1))
    assert "at most 265536" in noted(following.hear(larger, 0.0), "malformed")["reason"]


def test_parts_keep_coming_until_all_is_here_or_none_came_for_a_minute() -> None:
    offer, following = offered(LARGE), follower()
    parts = key_parts(offer, 20)
    following.want("r", offer.manifest, 1.0)
    assert following.arriving_since(2.0) is None
    following.hear(parts[0], 5.0)
    assert [following.arriving_since(now) for now in (5.0, 65.0, 65.1)] == [1.0, 1.0, None]
    for part in parts[1:]:
        following.hear(part, 70.0)
    assert following.arriving_since(70.0) is None


def test_a_delta_that_comes_before_its_call_keeps_coming_from_its_first_part_on() -> None:
    first, offer, following = offered(LARGE), offered(LARGE, LARGE), follower()
    following.want("r", first.manifest, 0.0)
    for part in key_parts(first):
        following.hear(part, 0.0)
    following.rest()
    begun, more, *others = delta_parts(offer, 1, 20)
    following.hear(begun, 10.0)
    following.hear(more, 12.0)
    assert following.arriving_since(12.0) == 10.0
    for delta in others:
        following.hear(delta, 14.0)
    assert following.arriving_since(14.0) is None


# ------------------------------------------------------------------ any order, any losses


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 6), known=st.none() | st.integers(0, 6), is_short=st.booleans())
def test_whatever_is_lost_repeated_or_late_the_same_bits_arrive(
    seed: int, steps: int, known: int | None, is_short: bool
) -> None:
    dice, offer = Random(seed), offer_of(steps)
    if is_short:
        offer.rebase(MATH.shorten(offer.chain.model))
        offer.push(MATH.encode(weights(0.25), "raw", 0))
    following = follower() if known is None else at(min(known, steps))
    slots: dict[str, Part] = {"k0": key_parts(offer)[0]}
    slots |= {str(frame): delta_parts(offer, link.version)[0] for frame, link in enumerate(offer.chain.links)}
    now = 100.0
    actions = following.want("r", offer.manifest, now)
    for _ in range(1000):
        if following.has_arrived:
            break
        on_their_way = [slots[name] for names in fetched(actions) for name in names if dice.random() < 0.6]
        dice.shuffle(on_their_way)
        actions = [action for part in on_their_way for action in following.hear(part, now)]
        if not actions and not following.has_arrived:
            assert following.next_deadline is not None
            now = following.next_deadline
            actions = following.tick(now)
    assert following.chain is not None
    assert (following.chain.version, following.chain.digest[:16]) == (offer.manifest.version, offer.manifest.digest)
    assert np.array_equal(MATH.weights(following.chain.model)["w"], MATH.weights(offer.chain.model)["w"])
