"""Who hears what while twelve devices, three edges and a cloud run: told by a witness at every broker."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import psutil
import pytest
from paho.mqtt.client import MQTTMessage

from hfl_mqtt.learning.tasks import soil_moisture
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.protocol.messages import RoundCall
from hfl_mqtt.protocol.topics import Channel, Topic, parent
from hfl_mqtt.protocol.wire import Frame, decode
from tests.broker.federations import LIMIT_S, ended_within, family, running_brokers, until
from tests.broker.sites import WITNESS, Person

pytestmark = pytest.mark.broker

SEED, FARMS, CLIENTS = 0, 3, 12
BARRIER = "hfl/barrier"
#: How large a payload may be that people read.
JSON_LIMIT_BYTES = 16_000
#: `g12`, `g12.e3`, `12`: a round or a part as a level of a topic.
NUMBER = re.compile(r"(g?\d+)(\.e\d+)*\Z")


@dataclass(kw_only=True)
class Story:
    """All that was heard at each broker, by the broker's path; what it retained at the end; who spoke to which port."""

    plan: RunPlan
    heard: dict[str, list[MQTTMessage]] = field(default_factory=dict)
    viewed: dict[str, list[MQTTMessage]] = field(default_factory=dict)
    retained: dict[str, list[MQTTMessage]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    peers: dict[str, set[int]] = field(default_factory=dict)

    @property
    def farms(self) -> list[str]:
        return [f"cloud/{farm.name}" for farm in self.plan.farms]

    def clients_of(self, farm: str) -> set[str]:
        return {path for path in self.plan.clients if parent(path) == farm}

    def senders(self, broker: str, channel: Channel) -> set[str]:
        """The nodes on whose topics of this channel something was heard."""
        topics = {Topic.parse(one.topic) for one in self.heard[broker]}
        return {topic.path for topic in topics if topic.channel is channel}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    layout = soil_moisture.layout(SEED, FARMS, CLIENTS)
    plan = RunPlan(
        farms=tuple(
            FarmPlan(name=name, devices=tuple(Device(name=f"pi-{one}", data={"station": one}) for one in stations))
            for name, stations in layout.farms
        ),
        task={"name": "soil-moisture", "unseen": list(layout.unseen)},
        rounds=2,
        seed=SEED,
        plan={"steps": 3, "learning_rate": 0.01, "batch_size": 16},
        tiers=({"quorum": "100 %", "open_for": "120 s"}, {"quorum": "100 %", "open_for": "60 s", "rounds": 2}),
    )
    with running_brokers(plan, tmp_path_factory.mktemp("federation")) as federation:
        yield told(plan, federation)


def told(plan: RunPlan, federation: LocalFederation) -> Story:
    """Run the plan, listening."""
    story = Story(plan=plan, ports={path: broker.port for path, broker in federation.brokers.items()})
    secret = federation.secret_path("viewer").read_text().strip()
    people: dict[str, tuple[Person, Person]] = {}
    try:
        for path, port in story.ports.items():
            witness, viewer = Person(port, WITNESS, WITNESS, "#"), Person(port, "viewer", secret, "#")
            people[path] = witness.ready(), viewer.ready()
        federation.start_nodes()
        for _ in until(LIMIT_S, "the cloud has a result"):
            note_peers(federation, story.peers)
            if ended_within(federation.processes["cloud"], 0.3):
                break
        federation.check_cloud()
        federation.stop_nodes()
        for path, (witness, viewer) in people.items():
            witness.say(BARRIER, path)
            story.heard[path] = witness.hear(BARRIER)[:-1]
            story.viewed[path] = viewer.hear(BARRIER)[:-1]
        for path, port in story.ports.items():
            late = Person(port, WITNESS, WITNESS, "#").ready()
            people[f"late {path}"] = late, late
            late.say(BARRIER, path)
            story.retained[path] = [one for one in late.hear(BARRIER) if one.retain]
    finally:
        for both in people.values():
            for one in both:
                one.leave()
    return story


def note_peers(federation: LocalFederation, peers: dict[str, set[int]]) -> None:
    """Write down to which ports each process of ours is connected now, its training process included."""
    owners: dict[int, str] = {}
    for name, process in federation.processes.items():
        owners |= {one.pid: name for one in [*family(process.pid), psutil.Process(process.pid)]}
    connections = [one for one in psutil.net_connections(kind="tcp") if one.pid in owners]
    # paho wakes its own thread through a pair of sockets that are connected to each other.
    own = {(one.pid, one.laddr.port) for one in connections if one.laddr}
    for one in connections:
        if one.raddr and one.pid is not None and (one.pid, one.raddr.port) not in own:
            assert one.raddr.ip == "127.0.0.1"
            peers.setdefault(owners[one.pid], set()).add(one.raddr.port)


def test_every_process_speaks_to_its_own_broker_and_to_nobody_else(story: Story) -> None:
    expected = {"cloud": {story.ports["cloud"]}}
    for farm in story.farms:
        expected[farm] = expected[f"{farm}/*"] = {story.ports[farm]}
    assert story.peers == expected


def test_the_cloud_hears_the_edges_updates_and_no_clients(story: Story) -> None:
    assert story.senders("cloud", Channel.UP) == set(story.farms)
    assert story.senders("cloud", Channel.DOWN) == story.senders("cloud", Channel.KEY) == {"cloud"}


def test_a_farm_hears_its_own_clients_updates_and_no_other_farms(story: Story) -> None:
    for farm in story.farms:
        clients = story.clients_of(farm)
        assert len(clients) == 4
        assert story.senders(farm, Channel.UP) == clients | {farm}
        assert story.senders(farm, Channel.DOWN) == story.senders(farm, Channel.KEY) == {"cloud", farm}
        assert story.senders(farm, Channel.STAT) == clients | {farm, "cloud"}


def test_the_cloud_sees_how_everybody_is(story: Story) -> None:
    assert story.senders("cloud", Channel.STAT) == {"cloud", *story.farms, *story.plan.clients}


def test_what_a_farm_says_among_itself_does_not_cross(story: Story) -> None:
    crossed = {(topic.path, topic.channel) for topic in (Topic.parse(one.topic) for one in story.heard["cloud"])}
    for farm in story.farms:
        for client in story.clients_of(farm):
            assert {channel for path, channel in crossed if path == client} == {Channel.STAT}
            assert client in story.senders(farm, Channel.CMND), "receipts are heard where they belong"


def test_what_a_farm_says_to_the_cloud_crosses_once(story: Story) -> None:
    for farm in story.farms:
        here, there = said_for_above(story.heard[farm], farm), said_for_above(story.heard["cloud"], farm)
        assert {topic for topic, _ in there} == {topic for topic, _ in here}
        assert not there - here, "a message came twice"


def test_what_devices_measure_and_an_edge_calls_for_stays_at_the_farm(story: Story) -> None:
    for farm in story.farms:
        here, there = ({one.topic for one in story.heard[broker]} for broker in (farm, "cloud"))
        for client in story.clients_of(farm):
            assert f"hfl/demo/{client}/@/stat/metrics" in here - there
        assert f"hfl/demo/{farm}/@/stat/round" in here - there


def said_for_above(heard: list[MQTTMessage], farm: str) -> Counter[tuple[str, bytes]]:
    """What a farm's broker is to carry up, and how often it was heard."""
    said: Counter[tuple[str, bytes]] = Counter()
    for one in heard:
        topic = Topic.parse(one.topic)
        is_shown = topic.channel is Channel.STAT and topic.name in ("state", "info")
        is_figures = topic.channel is Channel.STAT and topic.name == "metrics"
        is_own = topic.path == farm and (is_shown or is_figures or topic.channel in (Channel.TELE, Channel.UP))
        if is_own or (is_shown and topic.path.startswith(f"{farm}/")):
            said[one.topic, bytes(one.payload)] += 1
    return said


def test_a_viewer_who_asks_for_everything_sees_only_json_while_weights_flow(story: Story) -> None:
    for broker, heard in story.heard.items():
        weights = [one for one in heard if one.topic.startswith("hflb/")]
        assert sum(len(one.payload) for one in weights) > 50_000
        assert {one.topic for one in story.viewed[broker]} == {one.topic for one in heard} - {
            one.topic for one in weights
        }
        assert all(one.topic.startswith("hfl/") for one in story.viewed[broker])


def test_no_topic_has_a_round_in_its_name(story: Story) -> None:
    for topic in {one.topic for heard in story.heard.values() for one in heard}:
        levels = topic.split("/")
        if topic.startswith("hflb/"):
            pattern = r"\d+(p\d+)?" if levels[-2] == "down" else r"\d"
            assert re.fullmatch(pattern, levels.pop()), f"{topic}: a slot is one of a few"
        assert not any(NUMBER.match(level) for level in levels), topic


def test_the_second_round_adds_no_topic_to_the_first_but_a_slot_for_each_delta(story: Story) -> None:
    for broker, heard in story.heard.items():
        second = next(index for index, one in enumerate(heard) if is_clouds_call(one, 2))
        first = {one.topic for one in heard[:second]}
        added = {Topic.parse(one.topic) for one in heard[second:] if one.topic not in first}
        # The cloud's figures of the first round stand behind the call of the second, for which all devices wait.
        added = {
            topic for topic in added if (topic.path, topic.channel, topic.name) != ("cloud", Channel.STAT, "metrics")
        }
        assert {topic.channel for topic in added} <= {Channel.DOWN}, broker
        # Two rounds of the cloud and four of an edge; each has one delta at most, small enough for one part.
        assert {topic.name for topic in added if topic.path == "cloud"} <= {"0", "1"}
        assert {topic.name for topic in added} <= {"0", "1", "2", "3"}


def is_clouds_call(message: MQTTMessage, number: int) -> bool:
    if not message.topic.endswith("/cloud/@/stat/round"):
        return False
    call, _ = decode(Frame(topic=message.topic, payload=bytes(message.payload), retain=message.retain, qos=1))
    assert isinstance(call, RoundCall)
    return call.round == (number,)


def test_whatever_people_read_is_small_and_strict_json(story: Story) -> None:
    largest = 0
    for heard in story.heard.values():
        for one in heard:
            if one.topic.startswith("hfl/"):
                largest = max(largest, len(one.payload))
                assert isinstance(json.loads(one.payload, parse_constant=refuse), dict), one.topic
    assert 0 < largest < JSON_LIMIT_BYTES


def refuse(word: str) -> NoReturn:
    raise AssertionError(f"{word} is no JSON")


def test_brokers_retain_states_and_models_and_nothing_else(story: Story) -> None:
    for broker, retained in story.retained.items():
        kept = {Topic.parse(one.topic) for one in retained}
        assert {topic.channel for topic in kept} == {Channel.STAT, Channel.DOWN, Channel.KEY}
        for channel in (Channel.DOWN, Channel.KEY):
            assert {topic.path for topic in kept if topic.channel is channel} == {"cloud", broker}
        sizes = {str(topic): 0 for topic in kept} | {one.topic: len(one.payload) for one in retained}
        assert all(sizes.values())
