"""Models as chains of deltas, and the slots that an aggregator keeps them in."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.shelf import Shelf
from hfl_mqtt.learning.weights import digest
from hfl_mqtt.protocol.blobs import Cut, next_digest
from hfl_mqtt.protocol.messages import AUTO, KeyPart, ModelPart, Piece, Tier, WantModel
from hfl_mqtt.protocol.wire import decode, encode, unpack_keyframe
from hfl_mqtt.rounds.actions import Action, ClearSlots, Persist
from hfl_mqtt.rounds.arithmetic import MAX_DELTAS
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.downlink import Downlink
from hfl_mqtt.rounds.ladder import choose
from hfl_mqtt.rounds.offer import Offer
from tests.unit.rounds.trees import MATH, keyframe, noted, notes, of, offered, said, values, weights

RAW = Tier(downlink="raw")
FLOATS_A_PART = 256 * 1024 // 4


def noise(seed: int, floats: int = 500) -> Weights:
    return {"w": np.random.default_rng(seed).standard_normal(floats).astype(np.float32)}


def begun(model: Weights, run: str = "r") -> Downlink:
    downlink = Downlink(MATH)
    downlink.begin(keyframe(model, run=run))
    return downlink


def chain_of(downlink: Downlink) -> Chain:
    assert downlink.chain is not None
    return downlink.chain


def model_of(downlink: Downlink) -> Weights:
    """The model as the children know it."""
    return MATH.weights(chain_of(downlink).model)


def slots(actions: Iterable[Action]) -> list[tuple[int, int, int]]:
    """The deltas that were said: (frame, version, part)."""
    return [(part.frame, part.version, part.index) for part in said(actions, ModelPart)]


# ------------------------------------------------------------------ chains


def test_a_chain_is_named_by_all_that_led_to_it() -> None:
    chain = Chain(keyframe(weights(1.0)))
    assert (chain.version, chain.digest) == (0, digest(weights(1.0)))
    first = Cut.of(b"first")
    assert chain.push(first).digest == next_digest(digest(weights(1.0)), first.digest)
    chain.push(b"second")
    other = Chain(keyframe(weights(1.0)))
    other.push(b"second")
    other.push(b"first")
    assert chain.version == other.version == 2
    assert chain.digest != other.digest


def test_what_came_since_a_model_is_told_by_its_digest() -> None:
    chain = Chain(keyframe(weights(1.0)))
    start, one, two = chain.digest, chain.push(b"one"), chain.push(b"two")
    assert chain.since(start) == [one, two]
    assert chain.since(one.digest) == [two]
    assert chain.since(two.digest) == []
    assert chain.since("0" * 64) is None


def test_a_chain_that_forgot_its_links_goes_on_from_where_it_is() -> None:
    chain = Chain(keyframe(weights(1.0)))
    before = chain.push(b"one").digest
    chain.forget_links()
    assert (chain.version, chain.digest, chain.links, chain.keyframe.start) == (1, before, [], chain.keyframe.start)
    assert chain.since(before) == []
    two = chain.push(b"two")
    assert (two.version, chain.since(before)) == (2, [two])


@pytest.mark.parametrize(("version", "left"), [(1, 2), (2, 1), (3, 0)])
def test_a_chain_starts_from_a_newer_keyframe_of_its_own(version: int, left: int) -> None:
    chain = offered(weights(1.0), weights(1.0), weights(2.0), weights(4.0)).chain
    before, whole = chain.digest, values(MATH.weights(chain.model))
    part = replace(
        chain.model, deltas=chain.model.deltas[:version], version=version, digest=chain.links[version - 1].digest
    )
    assert chain.rebase(MATH.shorten(part))
    assert (chain.digest, chain.version, len(chain.links)) == (before, 3, left)
    assert values(MATH.weights(chain.model)) == whole == [8.0]


def test_a_chain_does_not_start_from_a_keyframe_of_another() -> None:
    chain = offered(weights(1.0), weights(1.0)).chain
    before = chain.model
    assert not chain.rebase(offered(weights(5.0), weights(1.0)).chain.keyframe)
    assert not chain.rebase(replace(MATH.shorten(before), version=7))
    assert chain.model == before


# ------------------------------------------------------------------ slots


def test_keyframe_and_deltas_lie_in_slots_of_their_own() -> None:
    offer = Offer(keyframe(weights(1.0)))
    (key,) = said(offer.show(), KeyPart)
    assert unpack_keyframe(key.data) == keyframe(weights(1.0))
    assert slots(offer.push(b"one")) == [(0, 1, 0)]
    assert slots(offer.push(b"two")) == [(1, 2, 0)]
    assert slots(offer.show()) == [(0, 1, 0), (1, 2, 0)]
    assert (offer.manifest.version, offer.manifest.key, offer.manifest.digest) == (2, 0, offer.chain.digest[:16])


def test_what_is_larger_than_a_part_lies_in_several_slots() -> None:
    offer = offered(noise(0, 3 * FLOATS_A_PART))
    key = said(offer.show(), KeyPart)
    assert [part.index for part in key] == [0, 1, 2]
    blob = b"".join(bytes(part.data) for part in key)
    assert np.array_equal(MATH.start(unpack_keyframe(blob).start).weights()["w"], noise(0, 3 * FLOATS_A_PART)["w"])
    assert slots(offer.push(MATH.encode(noise(1, 3 * FLOATS_A_PART), "raw", 0))) == [
        (0, 1, index) for index in range(4)
    ]


def test_what_lies_in_files_is_read_part_by_part_when_it_is_sent(tmp_path: Path) -> None:
    offer = Offer(keyframe(noise(0, 3 * FLOATS_A_PART)), keep=Shelf(tmp_path).keep)
    offer.push(MATH.encode(noise(1, 3 * FLOATS_A_PART), "raw", 0))
    actions = [*offer.show(), *offer.rebase(MATH.shorten(offer.chain.model))]
    parts = [part for part in said(actions, KeyPart) + said(actions, ModelPart) if part.count > 1]
    assert len(parts) == 3 + 4 + 6
    assert all(isinstance(part.data, Piece) for part in parts)
    frames = [encode(part, "f", "cloud") for part in parts]
    assert max(len(frame.payload) for frame in frames) < 200
    assert [decode(frame.whole())[0] for frame in frames] == [replace(part, data=bytes(part.data)) for part in parts]


def test_a_new_chain_takes_the_slots_of_the_old_one_and_those_left_over_are_cleared() -> None:
    before = offered(noise(0, 3 * FLOATS_A_PART), noise(1, 2 * FLOATS_A_PART), codec="raw")
    after = Offer(keyframe(weights(1.0)), before)
    actions = after.show()
    assert [part.index for part in said(actions, KeyPart)] == [0]
    assert of(actions, ClearSlots) == [
        ClearSlots(slots=("1", "2"), is_key=True),
        ClearSlots(slots=("0", "0p1", "0p2")),
    ]
    assert of(after.show(), ClearSlots) == [], "once is enough"


def test_a_keyframe_in_between_frees_the_slots_of_the_deltas_before_it() -> None:
    offer = offered(weights(1.0), weights(1.0), weights(2.0))
    actions = offer.rebase(MATH.shorten(offer.chain.model))
    assert [part.version for part in said(actions, KeyPart)] == [2]
    assert of(actions, ClearSlots) == [ClearSlots(slots=("0", "1"))]
    assert slots(offer.push(b"three")) == [(0, 3, 0)]
    assert (offer.manifest.version, offer.manifest.key) == (3, 2)


def test_a_child_that_misses_parts_gets_them_again_and_no_others() -> None:
    offer = offered(noise(0, 3 * FLOATS_A_PART), noise(1, 3 * FLOATS_A_PART), codec="raw")
    again = said(offer.again(WantModel(version=0, parts=(2, 0, 2, 9), is_key=True), 1.0), KeyPart)
    assert [part.index for part in again] == [0, 2]
    assert slots(offer.again(WantModel(version=1, parts=(3, 1)), 1.0)) == [(0, 1, 1), (0, 1, 3)]
    for version, is_key in ((0, False), (2, False), (1, True)):
        assert offer.again(WantModel(version=version, parts=(0,), is_key=is_key), 1.0) == []


def test_a_part_is_put_into_its_slot_again_once_in_two_seconds_however_many_ask() -> None:
    offer = offered(weights(1.0), weights(2.0))
    delta, key = WantModel(version=1, parts=(0,) * 64), WantModel(version=0, parts=(0,), is_key=True)
    assert [len(offer.again(delta, at)) for at in (10.0, 11.9, 12.0)] == [1, 0, 1]
    assert [len(offer.again(key, at)) for at in (12.0, 13.9, 14.0)] == [1, 0, 1]


# ------------------------------------------------------------------ what the way down carries


def test_where_nothing_is_lost_the_children_know_the_model_at_once() -> None:
    downlink = begun(weights(1.0))
    downlink.move(weights(2.0))
    actions, moved = downlink.show(RAW, 0)
    assert [part.version for part in said(actions, ModelPart)] == [1]
    assert (values(moved), values(model_of(downlink)), downlink.lag) == ([2.0], [3.0], None)


def test_where_the_model_did_not_move_nothing_is_said() -> None:
    downlink = begun(weights(1.0))
    assert downlink.show(RAW, 0) == ([], None)
    assert chain_of(downlink).version == 0


@pytest.mark.parametrize("codec", ["stc(0.1)", "rot1", "int8", "topk(0.05) | int8 | zstd"])
def test_what_coding_cuts_off_is_carried_by_the_next_delta(codec: str) -> None:
    tier, downlink = Tier(downlink=codec), begun(noise(0))
    total: Weights = {"w": np.zeros(500, np.float32)}
    for step in range(8):
        downlink.move(noise(step + 1))
        total = MATH.add(total, noise(step + 1))
        _, moved = downlink.show(tier, step)
        assert moved is not None
        known = MATH.subtract(model_of(downlink), noise(0))
        np.testing.assert_allclose(known["w"] + downlink.lag["w"], total["w"], atol=1e-4)
    assert np.abs(downlink.lag["w"]).max() > 0.01, "this codec loses something"


def test_what_the_children_moved_by_is_what_decoding_gives_them() -> None:
    downlink = begun(noise(0))
    downlink.move(noise(1))
    _, moved = downlink.show(Tier(downlink="rot1"), 0)
    placed = MATH.place(noise(0), moved)
    assert np.array_equal(placed["w"], model_of(downlink)["w"])


def test_a_new_chain_drops_what_the_old_one_had_not_carried() -> None:
    downlink = begun(noise(0))
    downlink.move(noise(1))
    downlink.show(Tier(downlink="stc(0.1)"), 0)
    assert downlink.lag is not None
    downlink.begin(keyframe(noise(2), run="s"))
    assert downlink.lag is None


def test_where_the_way_down_is_auto_the_choice_is_noted_and_keeps_within_the_budget() -> None:
    downlink = begun(noise(0, 10_000))
    downlink.move(noise(1, 10_000))
    downlink.show(Tier(downlink=AUTO, budget=2000), 0)
    assert downlink.choice is not None
    assert downlink.choice == choose(40_000, None, 2000)
    assert chain_of(downlink).deltas_bytes <= 2000


# ------------------------------------------------------------------ a keyframe now and then


def test_when_the_deltas_have_twice_the_bytes_of_the_model_a_keyframe_takes_their_place() -> None:
    downlink, keys = begun(noise(0)), []
    for step in range(6):
        downlink.move(noise(step + 1))
        actions, _ = downlink.show(RAW, 0)
        keys += [part.version for part in said(actions, KeyPart)]
        if "keyframe" in notes(actions):
            assert [len(clear.slots) for clear in of(actions, ClearSlots)] == [2]
    assert keys == [2, 4, 6]  # a raw delta of 500 floats has a little more than 2,000 bytes
    assert (chain_of(downlink).keyframe.version, chain_of(downlink).links) == (6, [])


def test_of_tiny_deltas_a_keyframe_is_made_of_so_many() -> None:
    downlink = begun({"w": np.zeros(100_000, np.float32)})
    step: Weights = {"w": np.zeros(100_000, np.float32)}
    step["w"][7] = 1.0
    delta = Cut.of(MATH.encode(step, "raw | zstd", 0))
    keys = []
    for _ in range(MAX_DELTAS + 1):
        keys += [part.version for part in said(downlink.follow(delta), KeyPart)]
    assert keys == [MAX_DELTAS]
    assert chain_of(downlink).keyframe.version == MAX_DELTAS
    assert model_of(downlink)["w"][7] == MAX_DELTAS + 1


@pytest.mark.parametrize("codec", ["raw", "rot1", "stc(0.1)"])
def test_whoever_starts_from_a_later_keyframe_has_the_very_same_bits(codec: str) -> None:
    downlink, chain = begun(noise(0)), Chain(keyframe(noise(0)))
    for step in range(12):
        downlink.move(noise(step + 1))
        actions, _ = downlink.show(Tier(downlink=codec), step)
        chain.push(b"".join(part.data for part in said(actions, ModelPart)))
        assert chain.digest == chain_of(downlink).digest
        if step % 4 == 3 and codec != "raw":
            downlink._offer.rebase(MATH.shorten(chain_of(downlink).model))  # type: ignore[union-attr]
        assert MATH.weights(chain.model)["w"].tobytes() == model_of(downlink)["w"].tobytes()
    assert chain_of(downlink).keyframe.version > 0
    assert len(chain_of(downlink).links) < len(chain.links) == 12


def test_a_parents_delta_is_passed_on_as_it_is() -> None:
    downlink = begun(weights(1.0))
    cut = Cut.of(MATH.encode(weights(2.0), "raw", 0))
    (part,) = said(downlink.follow(cut), ModelPart)
    assert (part.blob, part.data) == (cut.name, cut.blob)


# ------------------------------------------------------------------ from one life to the next


def put_down(held: dict[str, bytes], actions: Iterable[Action]) -> None:
    for action in of(actions, Persist):
        for key, value in action.changes.items():
            held.pop(key, None)
            held |= {key: bytes(value)} if value is not None else {}


def lived(steps: int, tier: Tier) -> tuple[Downlink, dict[str, bytes]]:
    """Return a way down after some steps, and what it persisted."""
    downlink, held = Downlink(MATH), dict[str, bytes]()
    put_down(held, downlink.begin(keyframe(noise(0))))
    for step in range(steps):
        downlink.move(noise(step + 1))
        put_down(held, downlink.show(tier, step)[0])
    return downlink, held


@pytest.mark.parametrize("steps", [0, 1, 5, 30])
def test_a_next_life_has_the_same_chain_and_goes_on_to_the_same_bits(steps: int) -> None:
    tier = Tier(downlink="int8 | zstd")
    before, held = lived(steps, tier)
    after = Downlink(MATH, saved=held)
    for downlink in (before, after):
        downlink.move(noise(99))
        downlink.show(tier, 99)
    assert chain_of(after).manifest == chain_of(before).manifest
    assert model_of(after)["w"].tobytes() == model_of(before)["w"].tobytes()
    assert after.lag["w"].tobytes() == before.lag["w"].tobytes()


def test_what_a_keyframe_takes_the_place_of_is_put_down_no_longer() -> None:
    few, many = (lived(steps, RAW)[1] for steps in (3, 100))
    assert len(many) <= 4
    assert sum(map(len, many.values())) < 2 * sum(map(len, few.values()))


def test_a_lag_that_was_dropped_from_outside_is_put_down_with_the_next_delta() -> None:
    downlink, held = lived(1, Tier(downlink="int8"))
    assert "chain/lag" in held
    downlink.lag = None
    put_down(held, downlink.follow(Cut.of(MATH.encode(noise(7), "raw", 0))))
    assert "chain/lag" not in held


@pytest.mark.parametrize("lost", ["chain/key", "chain/link/000001"])
def test_a_chain_with_a_gap_is_none_and_what_is_left_of_it_is_deleted(lost: str) -> None:
    _, held = lived(2, Tier(downlink="int8"))
    del held[lost]
    after = Downlink(MATH, saved=held)
    assert after.chain is None
    assert len(after.unreadable) == 1
    put_down(held, after.flush())
    assert held == {}


def test_a_delta_says_what_it_leads_from_and_to() -> None:
    downlink = begun(noise(0))
    downlink.move(noise(1))
    fields = noted(downlink.show(RAW, 0)[0], "delta")
    assert (fields["base"], fields["digest"]) == (keyframe(noise(0)).digest[:16], chain_of(downlink).digest[:16])
