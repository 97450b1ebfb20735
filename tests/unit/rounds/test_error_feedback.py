"""Lossy codecs on every hop and in both directions: all nodes have one model, and nothing is lost for good."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.protocol.messages import Buffer, Phase, Plan, Receipt, RoundCall, UpdatePart
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds.actions import Action, Connected, Persist, Received
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.transport.faults import Faults
from tests.unit.rounds.farms import DEEP, LOSSY, TREE, Deaths, Farms, reap
from tests.unit.rounds.trees import MATH, READY, info, key_parts, noted, of, offered, quick, said, update_parts

CODEC = "stc(0.1)"
#: Up and down.
CODECS = [("stc(0.1)", "stc(0.1)"), ("int8", "rot1"), ("rot1", "int8"), ("topk(0.1) | int8 | zstd", "int4 | zstd")]


#: One client behind one edge, and three behind two.
LINE = {"cloud": ["a"], "cloud/a": ["1"]}
SMALL = {"cloud": ["a", "b"], "cloud/a": ["1", "2"], "cloud/b": ["3"]}


def finished(farms: Farms) -> Farms:
    farms.start()
    end = farms.run(until_s=200_000)
    assert end is not None, "the run hangs"
    assert end.failure is None
    farms.settle()
    return farms


def every_model_was_the_clouds(farms: Farms) -> None:
    """With one round per edge all clients have the cloud's own weights, to the last bit."""
    versions = {save.version: save.weights["w"].tobytes() for save in farms.saved}
    assert farms.seen
    for path, round_id, _, bits in farms.seen:
        assert bits == versions[round_id[0] - 1], (path, round_id)


def siblings_had_one_model(farms: Farms) -> None:
    """What children of one aggregator start a round from is the same to the last bit, as its name says."""
    models: dict[tuple[str | None, tuple[int, ...]], set[bytes]] = defaultdict(set)
    named: dict[str, set[bytes]] = defaultdict(set)
    for path, round_id, name, bits in farms.seen:
        models[parent(path), round_id].add(bits)
        named[name].add(bits)
    assert {len(bits) for bits in models.values()} == {1}
    assert {len(bits) for bits in named.values()} == {1}


# ------------------------------------------------------------------ one model everywhere


@pytest.mark.parametrize(("codec", "downlink"), CODECS)
@pytest.mark.parametrize("tree", [TREE, DEEP])
def test_all_clients_have_the_clouds_model_to_the_last_bit(
    tree: Mapping[str, Sequence[str]], codec: str, downlink: str
) -> None:
    farms = finished(Farms(tree, codec=codec, downlink=downlink, schedule={"is_scored": True}))
    every_model_was_the_clouds(farms)
    assert len(farms.seen) == 5 * 5  # four rounds and an evaluation
    assert farms.cloud.aggregator.downlink.lag is not None, "this way down loses something"


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    codecs=st.sampled_from(CODECS),
    deaths=st.lists(
        st.tuples(
            st.sampled_from(["cloud/a/1", "cloud/b/4", "cloud/a", "cloud/b"]),
            st.floats(0, 30),
            st.floats(0.1, 100),
        ),
        max_size=4,
    ),
)
def test_whatever_the_network_and_the_reaper_do_all_clients_have_the_clouds_model(
    seed: int, codecs: tuple[str, str], deaths: Deaths
) -> None:
    farms = Farms(codec=codecs[0], downlink=codecs[1], seed=seed, faults=LOSSY)
    farms.start()
    reap(farms, deaths)
    assert farms.run(until_s=200_000) is not None, "the run hangs"
    every_model_was_the_clouds(farms)


@pytest.mark.parametrize(("codec", "downlink"), CODECS)
def test_with_several_edge_rounds_the_children_of_an_edge_have_one_model(codec: str, downlink: str) -> None:
    farms = finished(Farms(DEEP, codec=codec, downlink=downlink, edge_rounds=2, schedule={"is_scored": True}))
    siblings_had_one_model(farms)
    assert len(farms.seen) == 5 * (4 * 2 * 2 + 1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), codecs=st.sampled_from(CODECS), edge_rounds=st.integers(1, 3))
def test_with_several_edge_rounds_losses_do_not_make_siblings_drift_apart(
    seed: int, codecs: tuple[str, str], edge_rounds: int
) -> None:
    farms = Farms(codec=codecs[0], downlink=codecs[1], edge_rounds=edge_rounds, seed=seed, faults=LOSSY)
    farms.start()
    assert farms.run(until_s=200_000) is not None, "the run hangs"
    siblings_had_one_model(farms)


def test_the_order_of_arrival_does_not_change_a_bit_though_all_hops_lose() -> None:
    models = set()
    for seed in range(3):
        late = Faults(latency_s=(0.0, 3.0))
        farms = Farms(codec="stc(0.1)", downlink="rot1", edge_rounds=2, seed=seed, faults=late, tier={"grace_s": 600.0})
        models.add(finished(farms).cloud.weights["w"].tobytes())
    assert len(models) == 1


# ------------------------------------------------------------------ nothing is lost for good


def test_with_feedback_a_tenth_of_the_numbers_is_enough_and_without_it_the_model_stays_away() -> None:
    coarse, blind = (
        finished(Farms(SMALL, size=100, codec=CODEC, downlink=CODEC, rounds=80, share=0.05, has_feedback=has_feedback))
        for has_feedback in (True, False)
    )
    assert coarse.error < 0.25
    assert blind.error > 0.75


def test_with_feedback_several_edge_rounds_converge_too() -> None:
    errors = [
        finished(Farms(SMALL, size=100, codec=codec, downlink="rot1", rounds=30, edge_rounds=2, share=0.1)).error
        for codec in ("int8", "rot1")
    ]
    assert errors[0] < 0.02
    assert errors[1] < 0.3


@pytest.mark.parametrize("edge_rounds", [1, 3])
@pytest.mark.parametrize("faults", [None, Faults(latency_s=(0.0, 0.7), duplication=0.3)])
def test_all_that_was_learned_is_in_the_model_in_a_residual_or_still_to_come(
    edge_rounds: int, faults: Faults | None
) -> None:
    farms = finished(Farms(LINE, codec=CODEC, downlink=CODEC, rounds=6, edge_rounds=edge_rounds, faults=faults, seed=4))
    assert [len(farms.notes(event)) for event in ("refused", "missed", "extended")] == [0, 0, 0]
    lag = farms.cloud.aggregator.downlink.lag
    learned = np.zeros(200)
    for _, _, _, bits in farms.seen:
        learned += 0.5 * (farms.goal("cloud/a/1")["w"] - np.frombuffer(bits, np.float32).astype(np.float64))
    assert len(farms.seen) == 6 * edge_rounds
    held = farms.cloud.weights["w"] + lag["w"] + farms.left["cloud/a/1"]["w"] + residual(farms, "cloud/a")["w"]
    np.testing.assert_allclose(held, learned, atol=1e-4)


@pytest.mark.parametrize("edge_rounds", [2, 3])
def test_what_an_edge_has_not_told_its_children_of_the_clouds_model_is_still_to_come(edge_rounds: int) -> None:
    farms = finished(
        Farms(codec=CODEC, downlink=CODEC, rounds=5, edge_rounds=edge_rounds, schedule={"is_scored": True})
    )
    for path in ("cloud/a", "cloud/b"):
        shell = farms.places[path].shell
        assert shell is not None
        assert isinstance(shell.node, EdgeNode)
        downlink = shell.node.aggregator.downlink
        assert downlink.chain is not None
        told = MATH.weights(downlink.chain.model)["w"]
        assert np.abs(downlink.lag["w"]).max() > 0.01
        np.testing.assert_allclose(told + downlink.lag["w"], farms.cloud.weights["w"], atol=1e-5)


# ------------------------------------------------------------------ the residual of an edge


def residual(farms: Farms, path: str) -> Weights:
    """Return what coding cut off from an edge's updates so far."""
    shell = farms.places[path].shell
    assert shell is not None
    assert isinstance(shell.node, EdgeNode)
    left: Weights = shell.node.drift.residual
    return left


EDGE, PI = "cloud/a", "cloud/a/i"
START = offered({"w": np.zeros(100, np.float32)})
LAYOUT = MATH.layout(START.chain.keyframe.start)


def noise(seed: int) -> Weights:
    """Return numbers of few bits, so that a mean of one is exact."""
    return {"w": (np.random.default_rng(seed).integers(-255, 256, 100) / 128).astype(np.float32)}


def coded(delta: Weights) -> Weights:
    return MATH.decode(MATH.encode(delta, CODEC, 0), LAYOUT)


def cut_off(delta: Weights) -> Weights:
    return MATH.subtract(delta, coded(delta))


class Farm:
    """An edge with one child that sends exactly, under a cloud that wants a tenth of the numbers."""

    def __init__(self, vault: dict[str, Buffer] | None = None) -> None:
        self.vault: dict[str, Buffer] = dict(vault or {})
        self.node = EdgeNode(path=EDGE, boot=1, info=info("edge"), arithmetic=MATH, saved=dict(self.vault))
        self.keep(self.node.start(0.0))
        self.keep(self.node.handle(Connected(), 0.0))
        self.hear(READY, PI)
        self.call: RoundCall | None = None

    @property
    def residual(self) -> Weights | None:
        left: Weights | None = self.node.drift.residual
        return left

    def keep(self, actions: list[Action]) -> list[Action]:
        for persist in of(actions, Persist):
            self.vault.update({key: value for key, value in persist.changes.items() if value is not None})
            for key in [key for key, value in persist.changes.items() if value is None]:
                self.vault.pop(key, None)
        return actions

    def hear(self, message: Any, sender: str = "cloud") -> list[Action]:
        return self.keep(self.node.handle(Received(message=message, sender=sender), 0.0))

    def learn(self, number: int, delta: Weights, run: str = "r", codec: str = CODEC) -> Weights:
        """Let the child learn so much in a round; return what goes up of it."""
        offer = offered({"w": np.zeros(100, np.float32)}, run=run)
        self.call = RoundCall(
            run=run,
            round=(number,),
            phase=Phase.OPEN,
            asked=1,
            quorum=1,
            open_for_s=60.0,
            codec=codec,
            plan=Plan(task="t", tiers=(quick(codec="raw", downlink="raw"),)),
            model=offer.manifest,
        )
        actions = self.hear(self.call) + self.hear(key_parts(offer)[0])
        (opened,) = [call for call in said(actions, RoundCall) if call.phase is Phase.OPEN]
        (part,) = update_parts(opened, delta, 1)
        (sent,) = said(self.hear(part, PI), UpdatePart)
        return MATH.decode(unpack_update(sent.data).payload, LAYOUT)

    def receipt(self, accepted: bool = True) -> list[Action]:
        call = self.call
        assert call is not None
        return self.hear(Receipt(run=call.run, round=call.round, base=call.model.digest[:16], accepted=accepted))


def same(a: Weights, b: Weights) -> bool:
    return np.array_equal(a["w"], b["w"])


def is_cut_off(left: Weights | None, delta: Weights) -> bool:
    return left is not None and same(left, cut_off(delta))


def test_what_an_edge_cuts_off_goes_up_with_its_next_update() -> None:
    farm = Farm()
    assert same(farm.learn(1, noise(1)), coded(noise(1)))
    assert farm.residual is None, "it has no receipt yet"
    farm.receipt()
    assert is_cut_off(farm.residual, noise(1))
    assert same(farm.learn(2, noise(2)), coded(MATH.add(noise(2), cut_off(noise(1)))))


@pytest.mark.parametrize("how", ["refused", "closed", "overtaken"])
def test_an_update_that_did_not_count_leaves_the_residual_as_it_was(how: str) -> None:
    farm = Farm()
    farm.learn(1, noise(1))
    farm.receipt()
    farm.learn(2, noise(2))
    assert farm.call is not None
    if how == "refused":
        farm.receipt(accepted=False)
    elif how == "closed":
        farm.hear(replace(farm.call, phase=Phase.CLOSED))
    assert is_cut_off(farm.residual, noise(1))
    assert same(farm.learn(3, noise(3)), coded(MATH.add(noise(3), cut_off(noise(1)))))


def test_a_receipt_heard_twice_keeps_the_residual_once() -> None:
    farm = Farm()
    farm.learn(1, noise(1))
    farm.receipt()
    farm.receipt()
    assert same(farm.learn(2, noise(2)), coded(MATH.add(noise(2), cut_off(noise(1)))))


def test_a_new_run_begins_without_a_residual() -> None:
    farm = Farm()
    farm.learn(1, noise(1))
    farm.receipt()
    assert same(farm.learn(1, noise(2), run="s"), coded(noise(2)))
    farm.receipt()
    assert is_cut_off(farm.residual, noise(2))
    assert len([key for key in farm.vault if key.startswith("edge/left/")]) == 1, "the other run's is swept"


def test_an_edge_that_was_killed_goes_on_with_the_residual_that_it_kept() -> None:
    farm = Farm()
    farm.learn(1, noise(5))
    farm.receipt()
    assert same(Farm(farm.vault).learn(2, noise(1)), coded(MATH.add(noise(1), cut_off(noise(5)))))


def test_an_edge_that_was_killed_before_the_receipt_keeps_what_was_cut_off_when_it_comes() -> None:
    farm = Farm()
    farm.learn(1, noise(5))
    again = Farm(farm.vault)
    again.call = farm.call
    assert again.residual is None
    again.receipt()
    assert is_cut_off(again.residual, noise(5))


def test_numbers_that_cannot_be_read_are_dropped_and_said_so() -> None:
    farm = Farm()
    farm.learn(1, noise(5))
    farm.receipt()
    (name,) = [key for key in farm.vault if key.startswith("edge/left/")]
    damaged = EdgeNode(path=EDGE, boot=2, info=info("edge"), arithmetic=MATH, saved={**farm.vault, name: b"no delta"})
    actions = damaged.start(0.0)
    assert noted(actions, "unreadable")["key"].startswith("edge: ")
    assert of(actions, Persist)[-1].changes[name] is None
    assert damaged.drift.residual is None


def test_an_update_that_loses_nothing_takes_the_residual_with_it() -> None:
    farm = Farm()
    farm.learn(1, noise(5))
    farm.receipt()
    left = MATH.add(noise(1), cut_off(noise(5)))
    assert same(farm.learn(2, noise(1), codec="raw"), left)
    farm.receipt()
    assert farm.residual is None
    assert same(farm.learn(3, noise(2), codec="raw"), noise(2))


def test_in_a_whole_federation_a_killed_edge_takes_up_its_residual_again() -> None:
    """Killed right after a round, an edge loses nothing: what it had cut off is in its next update."""
    farms = Farms(LINE, codec=CODEC, downlink="raw", rounds=6)
    reap(farms, [("cloud/a", 3.5, 0.1)])
    finished(farms)
    learned = np.zeros(200)
    counted = {(path, work_id) for path, work_id in farms.counted_work}
    for number, (path, round_id, _, bits) in enumerate(farms.seen):
        is_last = all(later[1] != round_id for later in farms.seen[number + 1 :])
        assert (path, f"r/g{round_id[0]}.e1") in counted
        if is_last:  # what was done for the edge that died was done again for the new one
            learned += 0.5 * (farms.goal("cloud/a/1")["w"] - np.frombuffer(bits, np.float32).astype(np.float64))
    held = farms.cloud.weights["w"] + farms.left["cloud/a/1"]["w"] + residual(farms, "cloud/a")["w"]
    np.testing.assert_allclose(held, learned, atol=1e-4)
