"""What Mosquitto keeps is brought when it is asked for, beside filters that want only news."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.ops.relay import Relay
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Arrived, Down, Up
from hfl_mqtt.transport.mqtt import MqttLink

Connect = Callable[..., tuple[MqttLink, Any]]
pytestmark = pytest.mark.broker

DOWN = "hflb/fed1/cloud/@/down/"
CALL = "hfl/fed1/cloud/@/stat/round"
NEWS_ONLY = Filter(topic=f"{DOWN}+", qos=0, wants_retained=False)


def kept(slot: int, payload: str) -> Frame:
    return Frame(topic=f"{DOWN}{slot}", payload=payload.encode(), retain=True)


class Cloud:
    """The cloud, which keeps a message in each slot that is given, and hears what its nodes send up."""

    def __init__(self, connect: Connect, broker: Mosquitto, *slots: str) -> None:
        self._link, self._inbox = connect(broker.port, "cloud", Filter(topic="hflb/fed1/cloud/+/@/up/+", qos=1))
        self._inbox.next(Up)
        for slot, payload in enumerate(slots):
            self.publish(kept(slot, payload))
        # The broker answers in order: what it says to a second link of ours comes after what the first said.
        self.publish(Frame(topic=CALL, payload=b"open", retain=True))
        reader, inbox = connect(broker.port, "cloud/b", Filter(topic=CALL, qos=0))
        inbox.next(Up)
        inbox.next(Arrived)
        reader.close()

    def publish(self, frame: Frame) -> None:
        self._link.publish(frame)

    def hears(self, node: MqttLink) -> bool:
        """Wait until the broker has done what cloud/a has asked for and taken back: it goes by the order."""
        node.publish(Frame(topic="hflb/fed1/cloud/a/@/up/0", payload=b"", qos=1))
        return not self._inbox.next(Arrived).frame.payload


def come_back(inbox: Any) -> Up:
    while not isinstance(event := inbox.next(object), Up):
        assert isinstance(event, Down)
    return event


def test_a_filter_that_wants_nothing_retained_brings_only_news(broker: Mosquitto, connect: Connect) -> None:
    cloud = Cloud(connect, broker, "old")
    _, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    inbox.next(Up)
    cloud.publish(kept(0, "new"))
    assert inbox.next(Arrived).frame.payload == b"new"


def test_what_is_fetched_comes_once_beside_a_filter_that_matches_it(broker: Mosquitto, connect: Connect) -> None:
    cloud = Cloud(connect, broker, "zero", "one", "two")
    link, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    inbox.next(Up)
    link.fetch([f"{DOWN}2", f"{DOWN}0"])
    came = [inbox.next(Arrived).frame for _ in range(2)]
    assert {(frame.topic, frame.payload, frame.retain, frame.qos) for frame in came} == {
        (f"{DOWN}2", b"two", True, 0),
        (f"{DOWN}0", b"zero", True, 0),
    }
    link.fetch([f"{DOWN}2"])
    assert inbox.next(Arrived).frame.payload == b"two", "asked again, told again"
    assert cloud.hears(link)
    cloud.publish(kept(2, "news"))
    assert inbox.next(Arrived).frame.payload == b"news"
    assert inbox.is_empty_after(), "by the filter alone: the fetch is over"


def test_asking_again_while_it_is_open_asks_the_broker_again(broker: Mosquitto, connect: Connect) -> None:
    cloud = Cloud(connect, broker)
    link, inbox = connect(broker.port, "cloud/a")
    inbox.next(Up)
    link.fetch([f"{DOWN}7"])
    assert cloud.hears(link)
    cloud.publish(kept(7, "first"))
    assert inbox.next(Arrived).frame.payload == b"first", "nothing was kept, so the next that is said ends it"
    assert cloud.hears(link)
    cloud.publish(kept(7, "second"))
    assert inbox.is_empty_after()
    for _ in range(3):
        link.fetch([f"{DOWN}7"])
    assert inbox.next(Arrived).frame.payload == b"second"


def test_a_fetch_is_lost_with_the_connection_and_leaves_nothing_in_the_session(
    broker: Mosquitto, connect: Connect
) -> None:
    cloud = Cloud(connect, broker)
    with Relay("127.0.0.1", "127.0.0.1", broker.port) as relay:
        link, inbox = connect(relay.port, "cloud/a", NEWS_ONLY)
        inbox.next(Up)
        link.fetch([f"{DOWN}0"])
        assert cloud.hears(link), "and nothing is kept there"
        relay.cut()
        inbox.next(Down)
        link.fetch([f"{DOWN}0"])
        relay.restore()
        assert come_back(inbox).session_present
        cloud.publish(kept(0, "news"))
        assert inbox.next(Arrived).frame.payload == b"news"
        assert cloud.hears(link)
        assert inbox.is_empty_after(), "once, by the filter"
        link.fetch([f"{DOWN}0"])
        again = inbox.next(Arrived).frame
        assert (again.payload, again.retain) == (b"news", True)
        assert inbox.is_empty_after()


def test_what_a_killed_process_had_asked_for_is_taken_back_by_the_next(broker: Mosquitto, connect: Connect) -> None:
    cloud = Cloud(connect, broker)
    with Relay("127.0.0.1", "127.0.0.1", broker.port) as relay:
        killed, inbox = connect(relay.port, "cloud/a", NEWS_ONLY, retry_s=(60.0, 60.0))
        inbox.next(Up)
        killed.fetch([f"{DOWN}0"])
        assert cloud.hears(killed)
        relay.cut()
        inbox.next(Down)
    again, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    assert inbox.next(Up).session_present
    cloud.publish(kept(0, "first"))
    assert [inbox.next(Arrived).frame.payload for _ in range(2)] == [b"first", b"first"]
    assert cloud.hears(again)
    cloud.publish(kept(0, "second"))
    assert inbox.next(Arrived).frame.payload == b"second"
    assert inbox.is_empty_after(), "the doubled message said what was left over"


def test_an_orderly_close_takes_back_what_is_still_open(broker: Mosquitto, connect: Connect) -> None:
    cloud = Cloud(connect, broker)
    link, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    inbox.next(Up)
    link.fetch([f"{DOWN}0"])
    link.close()
    _, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    assert inbox.next(Up).session_present
    cloud.publish(kept(0, "news"))
    assert inbox.next(Arrived).frame.payload == b"news"
    assert inbox.is_empty_after()


def test_four_hundred_parts_are_fetched_at_once(broker: Mosquitto, connect: Connect) -> None:
    Cloud(connect, broker, *(f"part {slot}" for slot in range(400)))
    link, inbox = connect(broker.port, "cloud/a", NEWS_ONLY)
    inbox.next(Up)
    link.fetch([f"{DOWN}{slot}" for slot in range(400)])
    came = {inbox.next(Arrived).frame.payload for _ in range(400)}
    assert came == {b"part %d" % slot for slot in range(400)}
    assert inbox.is_empty_after(0.1)
