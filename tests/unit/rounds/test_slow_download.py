"""Who waits long for the model is not given up, in a tree of three tiers whose deadlines are shorter than the wait."""

import numpy as np

from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.protocol.messages import Plan, Tier
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.rounds.actions import Contribution, Work
from hfl_mqtt.rounds.cloud import Schedule
from hfl_mqtt.sim import FEDERATION, Simulation
from hfl_mqtt.transport.faults import Faults
from hfl_mqtt.transport.link import Arrived, LinkEvent
from hfl_mqtt.transport.memory import MemoryLink
from tests.unit.rounds.trees import MATH

REGION, FARM, DEVICE = "cloud/north", "cloud/north/a", "cloud/north/a/1"
TREE = {"cloud": ["north"], REGION: ["a"], FARM: ["1"]}
#: Noise, which does not pack: a keyframe of 31 parts.
MODEL = {"w": np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)}
OPEN_FOR_S = 35.0


def slow_device(way_s: float, work_s: float = 1.0) -> tuple[Simulation, list[str]]:
    """Return a federation that gives up after 35 s without a second try, and who says in it that parts keep coming.

    What the device asks for takes `way_s` to its broker, and every part of its model as long back.
    """

    def train(_path: str, work: Work) -> Contribution:
        payload = MATH.encode({"w": np.zeros_like(MODEL["w"])}, work.codec, 0)
        return Contribution(payload=payload if not work.is_central else b"", weight=0 if work.is_central else 1)

    tiers = [Tier(open_for_s=OPEN_FOR_S, retries=0, quorum=1.0) for _ in range(3)]
    sim = Simulation(
        TREE,
        schedule=Schedule(run="r", rounds=1, plan=Plan(task="t", tiers=(tiers[1], tiers[2])), tier=tiers[0], seed=0),
        weights=MODEL,
        start=of_weights(MODEL),
        arithmetic=MATH,
        train=train,
        work_s=lambda _path: work_s,
        faults=Faults(
            latency_s=(way_s, way_s),
            where=lambda link, topic: link == DEVICE and topic.startswith(f"hflb/{FEDERATION}/{FARM}/@/key/"),
        ),
    )
    said: list[str] = []

    def hear(event: LinkEvent) -> None:
        if isinstance(event, Arrived):
            said.append(event.frame.topic.removeprefix(f"hfl/{FEDERATION}/").partition("/@/")[0])

    for path, broker in sim.brokers.items():
        # What a bridge brings up is heard below already.
        MemoryLink(broker, "watcher", [Filter(topic=f"hfl/{FEDERATION}/{path}/+/@/tele/moving", qos=0)], hear).open()
    return sim, said


def test_a_device_that_fetches_for_longer_than_anybody_waits_still_counts() -> None:
    sim, said = slow_device(way_s=8.0)
    sim.start()
    end = sim.run(until_s=1000.0)
    assert end is not None
    assert end.failure is None
    assert sim.now_s > 2 * OPEN_FOR_S
    assert [path for path, _ in sim.notes("accepted")].count("cloud") >= 1
    assert sim.notes("extended") == sim.notes("missed") == sim.notes("given_up") == []
    assert set(said) == {DEVICE, FARM, REGION}
    assert len(said) < 3 * sim.now_s / 10


def test_where_nothing_is_slow_nobody_says_that_it_moves() -> None:
    sim, said = slow_device(way_s=0.5)
    sim.start()
    end = sim.run(until_s=1000.0)
    assert end is not None
    assert end.failure is None
    assert said == []


def test_a_device_that_dies_while_it_fetches_holds_nobody_up_for_long() -> None:
    sim, said = slow_device(way_s=8.0)
    sim.at(60.0, lambda: sim.kill(DEVICE))
    sim.start()
    sim.run(until_s=300.0)
    assert set(said) == {DEVICE, FARM, REGION}
    missed_at_s = [at for at, note in sim.places[FARM].notes if note.event == "missed"]
    assert missed_at_s
    assert missed_at_s[0] < 60.0 + 30.0 + OPEN_FOR_S


def test_who_has_fetched_for_long_has_as_long_to_work_as_the_others() -> None:
    sim, _ = slow_device(way_s=8.0, work_s=OPEN_FOR_S - 5.0)
    sim.start()
    end = sim.run(until_s=1000.0)
    assert end is not None
    assert end.failure is None
    assert sim.notes("missed") == []
