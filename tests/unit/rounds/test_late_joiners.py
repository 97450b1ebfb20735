"""Who comes late, sleeps or wakes to a broker that lost everything has the right model, and its aggregator no work."""

from collections import Counter
from typing import Any

import pytest

from hfl_mqtt.protocol.messages import KeyPart, ModelPart, WantModel
from hfl_mqtt.protocol.topics import Channel
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.rounds.edge import EdgeNode
from tests.unit.rounds.farms import Farms

DOWN, KEY = "hflb/sim/cloud/a/@/down/+", "hflb/sim/cloud/a/@/key/+"
ASKED = "hfl/sim/cloud/a/+/@/tele/resend"
TREE = {"cloud": ["a"], "cloud/a": ["1", "2"]}
LATE = "cloud/a/2"


def farm(**options: Any) -> Farms:
    return Farms(TREE, **{"codec": "stc(0.1)", "downlink": "rot1", "rounds": 8, **options})


def had_the_clouds_model(farms: Farms) -> set[int]:
    """Return the rounds that the late one took part in, each with the very bits of the cloud's model."""
    versions = {save.version: save.weights["w"].tobytes() for save in farms.saved}
    for path, round_id, _, bits in farms.seen:
        assert bits == versions[round_id[0] - 1], (path, round_id)
    return {round_id[0] for path, round_id, _, _ in farms.seen if path == LATE}


def said_by_the_edge(farms: Farms) -> Counter[str]:
    """Run a federation; return what its edge said of its model, and what it was asked for."""
    heard = farms.watch("cloud/a", DOWN, KEY, ASKED)
    end = farms.run(until_s=100_000)
    assert end is not None
    assert end.failure is None
    return Counter(type(decode(frame)[0]).__name__ for frame in heard if frame.payload)


def test_a_late_joiner_takes_part_at_once_and_costs_its_aggregator_nothing() -> None:
    all_there, late = farm(), farm()
    all_there.start()
    late.start(LATE)
    late.at(4.5, lambda: late.start_node(LATE))
    assert said_by_the_edge(late) == said_by_the_edge(all_there) == {"KeyPart": 1, "ModelPart": 7}
    assert had_the_clouds_model(late) == {5, 6, 7, 8}


def test_a_sleeper_that_missed_deltas_fetches_them_and_costs_its_aggregator_nothing() -> None:
    farms = farm()
    farms.start()
    link = farms.places[LATE].link
    assert link is not None
    farms.at(2.5, link.cut)
    farms.at(5.5, link.restore)
    assert said_by_the_edge(farms) == {"KeyPart": 1, "ModelPart": 7}
    assert had_the_clouds_model(farms) == {1, 2, 3, 6, 7, 8}


def test_a_late_joiner_starts_from_a_keyframe_made_on_the_way_and_has_the_same_bits() -> None:
    farms = farm(codec="raw", downlink="raw", rounds=9)  # a keyframe every two deltas
    farms.start(LATE)
    farms.at(6.5, lambda: farms.start_node(LATE))
    assert said_by_the_edge(farms)["KeyPart"] == 5
    assert had_the_clouds_model(farms) == {7, 8, 9}
    assert len(farms.notes("keyframe")) == 8  # the cloud and its edge, each for its own children


@pytest.mark.parametrize("forgetful", ["cloud", "cloud/a"])
def test_a_late_joiner_whose_broker_lost_the_model_asks_its_parent_for_what_is_missing(forgetful: str) -> None:
    farms = farm(tier={"quorum": 1.0}, rounds=6)
    farms.start(LATE)
    farms.at(3.2, farms.brokers[forgetful].forget)
    farms.at(3.3, lambda: farms.start_node(LATE))
    said = said_by_the_edge(farms)
    assert had_the_clouds_model(farms) >= {5, 6}
    assert (said["WantModel"] > 0) == (forgetful == "cloud/a")
    assert said["KeyPart"] <= 1 + said["WantModel"]


def test_a_restarted_edge_offers_another_chain_that_leads_to_the_same_model() -> None:
    farms = farm(tier={"quorum": 1.0}, rounds=8, downlink="raw", codec="raw")
    farms.start()
    farms.at(4.5, lambda: farms.kill("cloud/a"))
    farms.at(5.0, lambda: farms.start_node("cloud/a"))
    assert said_by_the_edge(farms)["WantModel"] == 0
    assert had_the_clouds_model(farms) == set(range(1, 9))


def test_an_edge_that_coded_its_own_deltas_and_lost_its_disk_breaks_the_chain_and_mends_it() -> None:
    farms = farm(edge_rounds=2, rounds=6)
    farms.start()
    farms.at(4.5, lambda: farms.kill("cloud/a"))
    farms.at(4.6, lambda: farms.wipe("cloud/a"))
    farms.at(5.0, lambda: farms.start_node("cloud/a"))
    end = farms.run(until_s=100_000)
    assert end is not None
    assert end.failure is None
    assert {path for path, _ in farms.notes("chain_broken")} == {"cloud/a/1", LATE}
    by_name: dict[str, set[bytes]] = {}
    for _, _, name, bits in farms.seen:
        by_name.setdefault(name, set()).add(bits)
    assert {len(bits) for bits in by_name.values()} == {1}


def test_an_edge_with_one_round_passes_the_clouds_deltas_on_as_they_are() -> None:
    farms = farm(rounds=5)
    farms.start()
    above = farms.watch("cloud", DOWN.replace("/a/", "/"))
    below = farms.watch("cloud/a", DOWN)
    assert farms.run(until_s=100_000) is not None
    parts = [[decode(frame)[0] for frame in frames if frame.payload] for frames in (above, below)]
    deltas = [[part.data for part in said if isinstance(part, ModelPart)] for said in parts]
    assert len(deltas[1]) == 4  # the fifth was for nobody
    assert deltas[0][:4] == deltas[1]


def test_an_edge_with_several_rounds_codes_deltas_of_its_own() -> None:
    farms = farm(rounds=3, edge_rounds=2)
    farms.start()
    above = farms.watch("cloud", DOWN.replace("/a/", "/"))
    below = farms.watch("cloud/a", DOWN)
    assert farms.run(until_s=100_000) is not None
    own = {frame.payload for frame in below} - {frame.payload for frame in above}
    assert len(own) == 5  # after each first round, and before each round of the cloud but the first
    node = farms.places["cloud/a"].shell
    assert node is not None
    assert isinstance(node.node, EdgeNode)
    assert node.node.aggregator.downlink.lag is not None


def test_what_is_retained_of_a_long_run_is_one_keyframe_and_the_deltas_since() -> None:
    farms = farm(codec="raw", downlink="raw", rounds=10)
    farms.start()
    assert farms.run(until_s=100_000) is not None
    for path in ("cloud", "cloud/a"):
        kept = [decode(frame) for frame in farms.brokers[path].retained(f"hflb/sim/{path}/@/#")]
        keys = [message for message, topic in kept if topic.channel is Channel.KEY]
        deltas = [message for message, topic in kept if topic.channel is Channel.DOWN]
        assert [type(key) for key in keys] == [KeyPart]
        assert isinstance(keys[0], KeyPart)
        assert len(deltas) <= 1
        assert keys[0].version >= 8


def test_nobody_asks_a_parent_for_what_its_broker_has() -> None:
    farms = farm()
    heard = farms.watch("cloud/a", ASKED)
    farms.start()
    assert farms.run() is not None
    assert [decode(frame)[0] for frame in heard if isinstance(decode(frame)[0], WantModel)] == []
