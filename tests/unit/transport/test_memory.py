"""The broker in memory keeps what MQTT promises, and breaks only what it is told to."""

from __future__ import annotations

from typing import Any

import pytest

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol import topics
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.bridges import bridge
from hfl_mqtt.transport.link import Arrived, Down, Link, LinkEvent, Up
from hfl_mqtt.transport.memory import Faults, MemoryBroker, MemoryLink


class Inbox(list[LinkEvent]):
    """A sink whose messages read as (topic, text)."""

    def __call__(self, event: LinkEvent) -> None:
        self.append(event)

    @property
    def messages(self) -> list[Arrived]:
        return [event for event in self if isinstance(event, Arrived)]

    @property
    def texts(self) -> list[str]:
        return [event.frame.payload.decode() for event in self.messages]


def joined(broker: MemoryBroker, name: str, *filters: tuple[str, int], **options: Any) -> tuple[MemoryLink, Inbox]:
    inbox = Inbox()
    link = MemoryLink(broker, name, [Filter(topic=topic, qos=qos) for topic, qos in filters], inbox, **options)
    link.open()
    broker.deliver_due(broker.wire.now_s)
    return link, inbox


def said(topic: str, text: str, *, qos: int = 1, retain: bool = False) -> Frame:
    return Frame(topic=topic, payload=text.encode(), qos=qos, retain=retain)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def test_it_is_a_link(broker: MemoryBroker) -> None:
    link: Link = MemoryLink(broker, "a", [], Inbox())
    assert link.pending == 0


def test_a_message_goes_to_who_listens_when_it_is_due_and_not_before(broker: MemoryBroker) -> None:
    _, far = joined(broker, "far", ("x/+", 1))
    _, deaf = joined(broker, "deaf", ("y/+", 1))
    near, _ = joined(broker, "near")
    near.publish(said("x/1", "hello"))
    assert far.texts == []
    broker.deliver_due(0.0)
    assert far.messages[0].frame == said("x/1", "hello")
    assert deaf.texts == []
    assert broker.next_due is None


def test_the_qos_is_the_lower_of_what_was_published_and_what_was_subscribed_to(broker: MemoryBroker) -> None:
    _, inbox = joined(broker, "far", ("zero", 0), ("one", 1))
    near, _ = joined(broker, "near")
    for topic in ("zero", "one"):
        for qos in (0, 1):
            near.publish(said(topic, topic, qos=qos))
    broker.deliver_due(0.0)
    assert [(event.frame.topic, event.frame.qos) for event in inbox.messages] == [
        ("zero", 0), ("zero", 0), ("one", 0), ("one", 1),
    ]  # fmt: skip


def test_what_is_retained_comes_with_every_subscription_until_an_empty_payload_deletes_it(broker: MemoryBroker) -> None:
    near, _ = joined(broker, "near")
    _, first = joined(broker, "first", ("x", 1))
    near.publish(said("x", "old", retain=True))
    near.publish(said("x", "new", retain=True))
    broker.deliver_due(0.0)
    link, late = joined(broker, "late", ("x", 1))
    assert [event.frame.retain for event in first.messages] == [False, False], "to who listens it is news"
    assert [(event.frame.payload, event.frame.retain) for event in late.messages] == [(b"new", True)]
    link.done(late.messages[0])
    link.cut()
    link.restore()
    broker.deliver_due(0.0)
    assert late.texts == ["new", "new"], "a link subscribes again whenever it connects"
    near.publish(said("x", "", retain=True))
    broker.deliver_due(0.0)
    assert joined(broker, "later", ("x", 1))[1].texts == []
    assert broker.retained() == []


def test_the_broker_says_the_will_of_a_link_that_crashes_and_not_of_one_that_closes(broker: MemoryBroker) -> None:
    _, inbox = joined(broker, "watcher", ("state/+", 1))
    crashes, _ = joined(broker, "a", will=said("state/a", "lost", retain=True))
    closes, _ = joined(broker, "b", will=said("state/b", "lost", retain=True))
    crashes.publish(said("state/a", "ready"))
    closes.publish(said("state/b", "disconnected"))
    crashes.crash()
    closes.close()
    broker.deliver_due(0.0)
    assert inbox.texts == ["ready", "disconnected", "lost"]
    assert [frame.topic for frame in broker.retained()] == ["state/a"]


def test_a_session_keeps_qos_1_and_not_qos_0_while_its_client_is_away(broker: MemoryBroker) -> None:
    link, inbox = joined(broker, "sleeper", ("x", 1))
    assert inbox == [Up(session_present=False)]
    link.crash()
    near, _ = joined(broker, "near")
    near.publish(said("x", "kept"))
    near.publish(said("x", "dropped", qos=0))
    broker.deliver_due(0.0)
    _, inbox = joined(broker, "sleeper", ("x", 1))
    assert inbox[0] == Up(session_present=True)
    assert inbox.texts == ["kept"]


def test_a_clean_link_leaves_no_session(broker: MemoryBroker) -> None:
    link, _ = joined(broker, "viewer", ("x", 1), clean=True)
    link.close()
    near, _ = joined(broker, "near")
    near.publish(said("x", "unheard"))
    broker.deliver_due(0.0)
    _, inbox = joined(broker, "viewer", ("x", 1), clean=True)
    assert inbox == [Up(session_present=False)]


def test_what_was_not_done_comes_again_and_an_old_token_does_nothing(broker: MemoryBroker) -> None:
    link, inbox = joined(broker, "a", ("x", 1), receive_maximum=1)
    near, _ = joined(broker, "near")
    near.publish(said("x", "1"))
    near.publish(said("x", "2"))
    broker.deliver_due(0.0)
    assert inbox.texts == ["1"]
    link.cut()
    link.restore()
    broker.deliver_due(0.0)
    assert inbox.texts == ["1", "1"]
    old, new = inbox.messages
    link.done(old)
    broker.deliver_due(0.0)
    assert inbox.texts == ["1", "1"]
    link.done(new)
    link.done(new)
    broker.deliver_due(0.0)
    assert inbox.texts == ["1", "1", "2"]


def test_twenty_messages_may_wait_for_done_as_with_mosquitto(broker: MemoryBroker) -> None:
    _, inbox = joined(broker, "a", ("x", 1))
    near, _ = joined(broker, "near")
    for number in range(30):
        near.publish(said("x", str(number)))
    broker.deliver_due(0.0)
    assert len(inbox.texts) == 20


def test_a_link_that_is_cut_keeps_qos_1_and_comes_back(broker: MemoryBroker) -> None:
    _, far = joined(broker, "far", ("x", 1), ("will", 1))
    link, inbox = joined(broker, "near", will=said("will", "lost"))
    link.cut()
    assert inbox[-1:] == [Down(reason="the link was cut")]
    assert not link.is_up
    link.publish(said("x", "kept"))
    link.publish(said("x", "dropped", qos=0))
    assert link.pending == 1
    broker.deliver_due(1.0)
    assert far.texts == ["lost"]
    link.restore()
    broker.deliver_due(2.0)
    assert far.texts == ["lost", "kept"]
    assert inbox[-1:] == [Up(session_present=True)]
    assert link.pending == 0


def test_what_was_on_its_way_when_a_connection_ended_does_not_arrive_by_the_next(broker: MemoryBroker) -> None:
    link, inbox = joined(broker, "a", ("x", 1), ("y", 0), faults=Faults(latency_s=(2.0, 2.0)))
    broker.deliver_due(2.0)
    assert link.is_up
    near, _ = joined(broker, "near")
    near.publish(said("x", "again"))
    near.publish(said("y", "gone", qos=0))
    broker.deliver_due(3.0)
    link.cut()
    link.restore()
    broker.deliver_due(10.0)
    assert inbox.texts == ["again"], "QoS 1 by the new connection, QoS 0 not at all"


def test_a_second_link_of_the_same_name_takes_over(broker: MemoryBroker) -> None:
    first, first_inbox = joined(broker, "a", ("x", 1))
    joined(broker, "a", ("x", 1))
    last = first_inbox[-1]
    assert isinstance(last, Down)
    assert last.is_fatal
    assert not first.is_up


def test_a_link_is_opened_once_and_closed_for_good(broker: MemoryBroker) -> None:
    link, _ = joined(broker, "a")
    with pytest.raises(Misuse):
        link.open()
    link.close()
    link.close()
    with pytest.raises(Misuse):
        link.publish(said("x", "after"))


def test_a_broker_that_forgets_has_no_session_for_who_was_away(broker: MemoryBroker) -> None:
    away, _ = joined(broker, "away", ("x", 1))
    away.crash()
    near, _ = joined(broker, "near")
    near.publish(said("x", "lost", retain=True))
    broker.deliver_due(0.0)
    broker.forget()
    assert joined(broker, "away", ("x", 1))[1] == [Up(session_present=False)]


def test_payload_bytes_are_counted_and_there_is_no_socket(broker: MemoryBroker) -> None:
    far, _ = joined(broker, "far", ("x", 1))
    near, _ = joined(broker, "near")
    near.publish(said("x", "12345"))
    broker.deliver_due(0.0)
    assert (near.traffic.payload_out, far.traffic.payload_in, far.traffic.socket_in) == (5, 5, None)


# ---- faults


def through(faults: Faults | None, numbers: int = 200, *, seed: int = 7) -> tuple[MemoryBroker, list[int]]:
    """Send numbers through a broker with faults on the sender's side only; return it and what came."""
    broker = MemoryBroker(seed=seed)
    _, inbox = joined(broker, "far", ("x", 1), receive_maximum=10_000)
    near, _ = joined(broker, "near")
    near.faults = faults
    for number in range(numbers):
        near.publish(said("x", str(number)))
    broker.deliver_due(100.0)
    return broker, [int(text) for text in inbox.texts]


def test_without_faults_everything_comes_once_and_in_order() -> None:
    assert through(None)[1] == list(range(200))
    assert through(Faults())[1] == list(range(200))


def test_loss_loses_about_as_much_as_it_says() -> None:
    came = through(Faults(loss=0.25))[1]
    assert 120 < len(came) < 180
    assert came == sorted(came)
    assert through(Faults(loss=1.0))[1] == []


def test_duplication_brings_some_twice() -> None:
    came = through(Faults(duplication=0.25))[1]
    assert 220 < len(came) < 280
    assert sorted(set(came)) == list(range(200))
    assert through(Faults(duplication=1.0), 2)[1] == [0, 0, 1, 1]


def test_latency_keeps_the_order_and_reordering_does_not() -> None:
    assert through(Faults(latency_s=(0.0, 5.0)))[1] == list(range(200))
    came = through(Faults(reordering=0.1, latency_s=(0.0, 1.0), held_s=(1.0, 2.0)))[1]
    assert came != list(range(200))
    assert sorted(came) == list(range(200))


def test_the_clock_stands_at_the_time_of_each_arrival() -> None:
    broker = MemoryBroker(faults=Faults(latency_s=(3.0, 3.0)))
    inbox = Inbox()
    far = MemoryLink(broker, "far", [Filter(topic="x", qos=1)], inbox)
    near = MemoryLink(broker, "near", [], Inbox())
    far.open()
    near.open()
    near.publish(said("x", "hello"))
    steps = []
    while (due := broker.next_due) is not None:
        broker.deliver_due(due)
        steps.append((due, inbox.texts == ["hello"]))
    assert steps[-1] == (9.0, True), "connected at 3, published at 6, delivered at 9"


def test_faults_strike_only_where_they_should() -> None:
    broker = MemoryBroker(faults=Faults(loss=1.0, where=lambda link, topic: link == "poor" and topic == "x"))
    _, inbox = joined(broker, "far", ("+", 1))
    for name in ("poor", "rich"):
        link, _ = joined(broker, name)
        for topic in ("x", "y"):
            link.publish(said(topic, f"{name} {topic}"))
    broker.deliver_due(0.0)
    assert inbox.texts == ["poor y", "rich x", "rich y"]


def test_equal_seeds_break_the_same_messages() -> None:
    faults = Faults(loss=0.2, duplication=0.2, reordering=0.2, latency_s=(0.1, 0.9))
    assert through(faults, seed=1)[1] == through(faults, seed=1)[1]
    assert through(faults, seed=1)[1] != through(faults, seed=2)[1]


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.1}, {"duplication": -0.1}, {"latency_s": (2.0, 1.0)}, {"held_s": (-1.0, 1.0)}]
)
def test_faults_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Faults(**wrong)


# ---- bridges


RULES = topics.bridge_control("f", "cloud/a") + topics.bridge_data("f", "cloud/a")
CALL = "hfl/f/cloud/@/stat/round"
UPDATE = "hflb/f/cloud/a/@/up/0"


def farm(**options: Any) -> tuple[MemoryBroker, MemoryBroker, Any]:
    cloud = MemoryBroker("cloud")
    farm = MemoryBroker("farm", wire=cloud.wire)
    return cloud, farm, bridge(farm, cloud, RULES, **options)


def test_a_bridge_carries_what_its_rules_say_both_ways_once_and_retained() -> None:
    cloud_broker, farm_broker, _ = farm()
    cloud, cloud_inbox = joined(cloud_broker, "cloud", ("#", 1))
    edge, edge_inbox = joined(farm_broker, "cloud/a", (CALL, 1))
    cloud.publish(said(CALL, "open", retain=True))
    edge.publish(said(UPDATE, "weights"))
    edge.publish(said("hflb/f/cloud/a/pi/@/up/0", "stays on the farm"))
    cloud_broker.deliver_due(0.0)
    assert cloud_inbox.texts == ["open", "weights"]
    assert edge_inbox.texts == ["open"]
    assert [frame.topic for frame in farm_broker.retained()] == [CALL]


def test_a_message_does_not_come_back_over_the_bridge_it_came_by() -> None:
    cloud_broker, farm_broker, _ = farm()
    cloud, cloud_inbox = joined(cloud_broker, "cloud", ("#", 1))
    _, edge_inbox = joined(farm_broker, "cloud/a", ("#", 1))
    # "in" by its own rule, and "out" by the rule for the farm's whole subtree.
    cloud.publish(said("hfl/f/cloud/a/@/cmnd/receipt", "thanks"))
    cloud_broker.deliver_due(0.0)
    assert cloud_inbox.texts == ["thanks"]
    assert edge_inbox.texts == ["thanks"]


def test_what_was_retained_before_the_bridge_crosses_when_it_is_made() -> None:
    cloud_broker, farm_broker = (first := MemoryBroker("cloud")), MemoryBroker("farm", wire=first.wire)
    edge, _ = joined(farm_broker, "cloud/a")
    edge.publish(said("hfl/f/cloud/a/@/stat/state", "ready", retain=True))
    cloud_broker.deliver_due(0.0)
    bridge(farm_broker, cloud_broker, RULES)
    cloud_broker.deliver_due(0.0)
    assert [frame.payload for frame in cloud_broker.retained()] == [b"ready"]


def test_a_bridge_that_is_cut_keeps_qos_1_and_passes_deletions_on() -> None:
    cloud_broker, farm_broker, wan = farm()
    _, cloud_inbox = joined(cloud_broker, "cloud", ("#", 1))
    edge, _ = joined(farm_broker, "cloud/a")
    edge.publish(said("hfl/f/cloud/a/@/stat/state", "ready", retain=True))
    cloud_broker.deliver_due(0.0)
    wan.cut()
    edge.publish(said(UPDATE, "weights"))
    edge.publish(said("hfl/f/cloud/a/@/tele/log", "dropped", qos=0))
    edge.publish(said("hfl/f/cloud/a/@/stat/state", "", retain=True))
    cloud_broker.deliver_due(1.0)
    assert cloud_inbox.texts == ["ready"]
    wan.restore()
    cloud_broker.deliver_due(1.0)
    assert cloud_inbox.texts == ["ready", "weights", ""]
    assert cloud_broker.retained() == []


def test_after_a_cut_a_bridge_brings_the_newest_call_alone_and_every_receipt() -> None:
    cloud_broker, farm_broker, wan = farm()
    cloud, _ = joined(cloud_broker, "cloud")
    _, edge_inbox = joined(farm_broker, "cloud/a", ("#", 1))
    wan.cut()
    for number in range(3):
        cloud.publish(said(CALL, f"call {number}", retain=True))
        cloud.publish(said("hfl/f/cloud/a/@/cmnd/receipt", f"receipt {number}"))
    cloud_broker.deliver_due(0.0)
    assert edge_inbox.texts == []
    wan.restore()
    cloud_broker.deliver_due(0.0)
    assert edge_inbox.texts == ["receipt 0", "receipt 1", "receipt 2", "call 2"]


def test_a_will_crosses_two_bridges() -> None:
    cloud = MemoryBroker("cloud")
    region, local = MemoryBroker("region", wire=cloud.wire), MemoryBroker("farm", wire=cloud.wire)
    bridge(region, cloud, topics.bridge_control("f", "cloud/r"))
    bridge(local, region, topics.bridge_control("f", "cloud/r/a"))
    _, inbox = joined(cloud, "cloud", (topics.viewer_filter("f"), 1))
    device, _ = joined(local, "cloud/r/a/pi", will=said("hfl/f/cloud/r/a/pi/@/stat/state", "lost", retain=True))
    device.crash()
    cloud.deliver_due(0.0)
    assert inbox.texts == ["lost"]


def test_a_bridge_has_faults_of_its_own() -> None:
    cloud_broker, farm_broker, wan = farm(faults=Faults(duplication=1.0, latency_s=(4.0, 4.0)))
    _, inbox = joined(cloud_broker, "cloud", ("#", 1))
    edge, _ = joined(farm_broker, "cloud/a")
    edge.publish(said(UPDATE, "weights"))
    cloud_broker.deliver_due(3.9)
    assert inbox.texts == []
    cloud_broker.deliver_due(4.0)
    assert inbox.texts == ["weights", "weights"]
    wan.faults = Faults(loss=1.0)
    edge.publish(said(UPDATE, "lost"))
    cloud_broker.deliver_due(9.0)
    assert inbox.texts == ["weights", "weights"]


def test_brokers_of_a_bridge_need_one_clock() -> None:
    with pytest.raises(Misuse, match="the same wire"):
        bridge(MemoryBroker("farm"), MemoryBroker("cloud"), RULES)


def test_a_broker_that_is_killed_says_no_wills_and_comes_back_with_what_it_had_on_disk(broker: MemoryBroker) -> None:
    _, away = joined(broker, "away", ("x/#", 1))
    near, near_inbox = joined(broker, "near", will=said("x/will", "near is gone"))
    near.publish(said("x/kept", "old", retain=True))
    broker.deliver_due(0.0)
    on_disk = broker.kept()
    near.publish(said("x/kept", "new", retain=True))
    broker.deliver_due(0.0)
    broker.kill()
    near.publish(said("x/1", "while it was dead"))
    assert isinstance(near_inbox[-1], Down)
    away.clear()
    broker.begin(on_disk)
    broker.deliver_due(0.0)
    assert away[0] == Up(session_present=True)
    # Once more what had no PUBACK, and what is retained; the newer one was not on disk.
    assert away.texts == ["old", "old", "while it was dead"]


def test_a_broker_without_persistence_has_forgotten_sessions_and_what_it_retained(broker: MemoryBroker) -> None:
    _, inbox = joined(broker, "a", ("x/#", 1))
    near, _ = joined(broker, "near")
    near.publish(said("x/kept", "old", retain=True))
    broker.deliver_due(0.0)
    broker.kill()
    inbox.clear()
    broker.begin()
    broker.deliver_due(0.0)
    assert inbox == [Up(session_present=False)]


def test_what_was_under_way_to_a_broker_that_died_is_sent_again_at_qos_1(broker: MemoryBroker) -> None:
    _, inbox = joined(broker, "far", ("x/+", 1))
    near, _ = joined(broker, "near")
    near.publish(said("x/0", "lost", qos=0))
    near.publish(said("x/1", "kept"))
    broker.kill()
    broker.deliver_due(0.0)
    broker.begin(broker.kept())
    broker.deliver_due(1.0)
    assert inbox.texts == ["kept"]


def test_the_lower_broker_is_told_whether_its_bridge_is_up() -> None:
    lower = MemoryBroker("lower")
    upper = MemoryBroker("upper", wire=lower.wire)
    joint = bridge(lower, upper, [("x/#", "out", 1)], state="$SYS/bridge")
    _, inbox = joined(lower, "edge", ("$SYS/bridge", 0))
    joint.cut()
    lower.deliver_due(0.0)
    upper.kill()
    joint.restore()
    lower.deliver_due(0.0)
    upper.begin()
    lower.deliver_due(0.0)
    assert inbox.texts == ["1", "0", "1"]


def test_a_bridge_keeps_qos_1_for_a_broker_that_is_dead() -> None:
    lower = MemoryBroker("lower")
    upper = MemoryBroker("upper", wire=lower.wire)
    bridge(lower, upper, [("x/#", "out", 1)])
    near, _ = joined(lower, "near")
    _, inbox = joined(upper, "cloud", ("x/#", 1))
    upper.kill()
    near.publish(said("x/1", "for later"))
    lower.deliver_due(0.0)
    upper.begin()
    lower.deliver_due(0.0)
    assert inbox.texts == ["for later"]


def test_a_slow_link_carries_one_after_the_other() -> None:
    broker = MemoryBroker(faults=Faults(bytes_per_s=10.0))
    _, inbox = joined(broker, "far", ("x/+", 1), faults=Faults())
    near, _ = joined(broker, "near")
    for text in ("ten bytes!", "and twenty of them.."):
        near.publish(said("x/1", text))
    broker.deliver_due(0.99)
    assert inbox.texts == []
    broker.deliver_due(2.99)
    assert inbox.texts == ["ten bytes!"]
    broker.deliver_due(3.0)
    assert len(inbox.texts) == 2


def test_corruption_changes_a_byte_or_cuts_the_end_off() -> None:
    broker = MemoryBroker(seed=1)
    inbox = joined(broker, "far", ("x/+", 0))[1]
    near, _ = joined(broker, "near", faults=Faults(corruption=1.0))
    for _ in range(50):
        near.publish(said("x/1", "0123456789"))
    broker.deliver_due(0.0)
    payloads = [arrived.frame.payload for arrived in inbox.messages]
    assert len(payloads) == 50
    assert all(payload != b"0123456789" or len(payload) == 10 for payload in payloads)
    whole = [payload for payload in payloads if len(payload) == 10]
    assert len({len(payload) for payload in payloads}) > 3
    assert all(sum(a != b for a, b in zip(payload, b"0123456789", strict=True)) <= 1 for payload in whole)


def test_a_cut_is_noticed_after_a_while_and_one_that_is_over_by_then_is_not() -> None:
    lower = MemoryBroker("lower")
    upper = MemoryBroker("upper", wire=lower.wire)
    joint = bridge(lower, upper, [("x/#", "out", 1)], state="$SYS/bridge", notice_s=20.0)
    _, inbox = joined(lower, "edge", ("$SYS/bridge", 0))
    joint.cut()
    lower.deliver_due(19.0)
    joint.restore()
    lower.deliver_due(30.0)
    assert inbox.texts == ["1", "1"]
    joint.cut()
    lower.deliver_due(50.0)
    assert inbox.texts == ["1", "1", "0"]
