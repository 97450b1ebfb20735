"""Runs that end early, links that choose their own codec, rounds that are called once more."""

import pytest

from hfl_mqtt.protocol.messages import AUTO, Tier
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.stopping import Stop
from tests.unit.rounds.farms import DEEP, Farms

LINE = {"cloud": ["a"], "cloud/a": ["1"]}


def finished(farms: Farms) -> Farms:
    farms.start()
    end = farms.run(until_s=100_000)
    assert end is not None
    assert end.failure is None
    return farms


def stopped(stop: Stop, *, rounds: int = 30, codec: str = "raw") -> Farms:
    return finished(Farms(LINE, rounds=rounds, codec=codec, downlink=codec, schedule={"stop": stop, "is_scored": True}))


def test_a_run_ends_when_its_target_is_reached_and_scores_the_last_model() -> None:
    # Half the way in each round: the squared distance is a quarter of what it was.
    farms = stopped(Stop(metric="distance", higher_is_better=False, target=1.0))
    scores = [scores["distance"] for scores in farms.cloud.history]
    assert [score <= 1.0 for score in scores].index(True) == len(scores) - 2  # known when the next round closes
    ((_, why),) = farms.notes("stopping")
    assert "reaches the target 1" in why.fields["reason"]


def test_a_run_ends_when_nothing_improves() -> None:
    farms = stopped(Stop(metric="distance", higher_is_better=True, patience=3))
    assert farms.cloud.version == 4  # the score of version 3 is known when the round of version 4 closes
    assert "has not improved for 3 versions" in farms.notes("stopping")[0][1].fields["reason"]


@pytest.mark.parametrize("codec", ["raw", "rot1"])
def test_a_run_ends_when_its_bytes_are_spent(codec: str) -> None:
    farms = stopped(Stop(budget_bytes=20_000), codec=codec)
    assert sum(map(sum, farms.cloud.moved.values())) >= 20_000
    assert "budget" in farms.notes("stopping")[0][1].fields["reason"]
    assert farms.cloud.version < 30


def test_with_a_smaller_codec_the_same_bytes_last_longer() -> None:
    versions = [stopped(Stop(budget_bytes=30_000), codec=codec).cloud.version for codec in ("raw", "rot1")]
    assert versions[1] > versions[0]


def test_without_a_rule_that_holds_all_rounds_are_done() -> None:
    farms = stopped(Stop(metric="distance", higher_is_better=False, target=-1.0, budget_bytes=10**12), rounds=3)
    assert (farms.cloud.version, farms.notes("stopping")) == (3, [])


def test_where_links_choose_their_codecs_all_are_taken_and_the_way_down_says_which() -> None:
    farms = finished(Farms(DEEP, codec=AUTO, downlink=AUTO, rounds=5, size=2000, tier={"budget": 700}))
    assert farms.notes("refused") == []
    assert farms.codecs == {ladder.choose(2000 * 4 + 8, None, 700).codec}
    chosen = [note.fields for path, note in farms.notes("delta") if path == "cloud"]
    choices = {(fields["codec"], "budget 0.7 kB" in fields["reason"]) for fields in chosen}
    assert choices == {(ladder.choose(2000 * 4 + 8, None, 700).codec, True)}


def test_without_a_budget_a_link_begins_in_the_middle_and_then_knows_how_fast_it_is() -> None:
    farms = finished(Farms(LINE, codec=AUTO, downlink="raw", rounds=3))
    assert farms.codecs == {ladder.FIRST, ladder.CODECS[0]}


def test_an_edge_that_came_to_nothing_is_called_again_and_all_its_children_answer_again() -> None:
    """One of two is lost in the edge's first try, which had accepted the other; in the second try that one does."""
    farms = Farms(
        {"cloud": ["a"], "cloud/a": ["1", "2"]},
        rounds=2,
        tier={"quorum": 1.0, "retries": 0},
        schedule={"tier": Tier(open_for_s=600.0, retries=3, codec="raw", downlink="raw")},
    )
    farms.start("cloud/a/2")
    farms.at(0.5, lambda: farms.start_node("cloud/a/2"))
    farms.at(1.2, lambda: farms.kill("cloud/a/2"))
    farms.at(90.0, lambda: farms.start_node("cloud/a/2"))
    end = farms.run(until_s=100_000)
    assert end is not None
    assert end.failure is None
    assert [note.fields["round"] for _, note in farms.notes("missed")] == ["g1.e1"]
    accepted = [
        note.fields["sender"]
        for path, note in farms.notes("accepted")
        if path == "cloud/a" and note.fields["round"] == "g1.e1"
    ]
    assert accepted == ["cloud/a/1", "cloud/a/1"]
