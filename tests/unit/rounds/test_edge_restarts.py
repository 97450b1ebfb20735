"""An edge that is killed goes on where it was: the run ends with the very bits of one that nothing happened to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hfl_mqtt.protocol.messages import Tier
from hfl_mqtt.sim.simulation import Moment
from tests.unit.rounds.farms import TREE, Deaths, Farms, reap

#: A region above a farm.
LINE: Mapping[str, Sequence[str]] = {"cloud": ["n"], "cloud/n": ["a"], "cloud/n/a": ["1", "2"]}
TREES = {"farms": TREE, "region": LINE}
#: Up and down. Of 60 numbers without loss, two deltas make a keyframe, so nobody finds those it missed.
CODECS = [("raw", "raw"), ("stc(0.1)", "stc(0.1)"), ("int8", "rot1"), ("raw | zstd", "int8"), ("rot1", "raw")]


def farms_of(tree: str, codecs: tuple[str, str], edge_rounds: int) -> Farms:
    codec, downlink = codecs
    children = TREES[tree]
    # As a count: of those asked it would be less while one is away, and this is about the same accepted updates.
    top = Tier(open_for_s=600.0, quorum=len(children["cloud"]), retries=50, grace_s=5.0, codec=codec, downlink=downlink)
    return Farms(
        children,
        codec=codec,
        downlink=downlink,
        edge_rounds=edge_rounds,
        rounds=4,
        size=60,
        tier={"quorum": 1.0, "retries": 50},
        schedule={"tier": top, "is_scored": True},
    )


def finished(farms: Farms) -> Farms:
    end = farms.run(until_s=20_000)
    assert end is not None, "the run hangs"
    assert end.failure is None
    return farms


@cache
def undisturbed(tree: str, codecs: tuple[str, str], edge_rounds: int) -> bytes:
    farms = farms_of(tree, codecs, edge_rounds)
    farms.start()
    return model_of(finished(farms))


def model_of(farms: Farms) -> bytes:
    bits: bytes = farms.cloud.weights["w"].tobytes()
    return bits


@settings(max_examples=25, deadline=None)
@given(
    tree=st.sampled_from(sorted(TREES)),
    codecs=st.sampled_from(CODECS),
    edge_rounds=st.integers(1, 3),
    deaths=st.lists(
        st.tuples(st.integers(0, 1), st.floats(0, 14), st.sampled_from([0.01, 0.3, 2.0])), min_size=1, max_size=5
    ),
)
# It forgets a receipt, which is put down later, and hears it once more when the next round has begun.
@example(tree="farms", codecs=("stc(0.1)", "stc(0.1)"), edge_rounds=1, deaths=[(0, 1.25, 0.3), (1, 0.0, 0.3)])
def test_whenever_edges_are_killed_the_model_has_the_same_bits(
    tree: str, codecs: tuple[str, str], edge_rounds: int, deaths: list[tuple[int, float, float]]
) -> None:
    farms = farms_of(tree, codecs, edge_rounds)
    edges = [path for path in TREES[tree] if path != "cloud"]
    named: Deaths = [(edges[edge % len(edges)], at_s, back_s) for edge, at_s, back_s in deaths]
    farms.start()
    reap(farms, named)
    assert model_of(finished(farms)) == undisturbed(tree, codecs, edge_rounds)
    assert not farms.notes("unreadable")


@pytest.mark.parametrize("moment", [Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT])
@pytest.mark.parametrize("at_s", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
@pytest.mark.parametrize("codecs", [("raw", "raw"), ("stc(0.1)", "rot1")])
def test_killed_between_what_it_wants_and_what_it_says_an_edge_goes_on(
    moment: Moment, at_s: float, codecs: tuple[str, str]
) -> None:
    farms = farms_of("farms", codecs, 2)
    farms.start()
    farms.at(at_s, lambda: farms.kill_at("cloud/a", moment, lambda: farms.at(farms.now_s + 0.2, again)))

    def again() -> None:
        farms.start_node("cloud/a")

    assert model_of(finished(farms)) == undisturbed("farms", codecs, 2)
    assert [entry.fields["round"] for path, entry in farms.notes("resumed") if path == "cloud/a"] != []


def test_the_children_of_an_edge_that_is_killed_train_nothing_twice() -> None:
    farms = farms_of("farms", ("raw", "raw"), 2)
    farms.start()
    reap(farms, [("cloud/a", 1.5, 0.1), ("cloud/a", 4.2, 2.0), ("cloud/b", 5.5, 0.1)])
    finished(farms)
    worked = [(path, entry.fields["round"]) for path, entry in farms.notes("worked") if path in farms.clients]
    assert len(worked) == len(set(worked)) == 5 * (4 * 2 + 1)


def test_an_edge_that_lost_its_disk_begins_the_round_again_and_its_children_go_on() -> None:
    farms = farms_of("farms", ("raw", "raw"), 2)
    farms.start()
    farms.at(2.5, lambda: farms.wipe("cloud/a"))
    farms.at(2.6, lambda: farms.start_node("cloud/a"))
    finished(farms)


def test_what_an_edge_keeps_does_not_grow_with_the_rounds_and_is_swept_with_the_run() -> None:
    farms = farms_of("farms", ("stc(0.1)", "stc(0.1)"), 2)
    farms.start()
    sizes: list[int] = []
    for moment_s in range(3, 9):
        farms.at(moment_s + 0.5, lambda: sizes.append(len(farms.vaults["cloud/a"])))
    finished(farms)
    assert max(sizes) <= 40
    assert len([key for key in farms.vaults["cloud/a"] if key.startswith("edge/left/")]) <= 2
