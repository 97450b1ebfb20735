"""What a broker keeps is brought when it is asked for, in memory as with Mosquitto (see tests/broker)."""

from __future__ import annotations

from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Arrived, LinkEvent
from hfl_mqtt.transport.memory import Faults, MemoryBroker, MemoryLink

NEWS_ONLY = Filter(topic="down/+", qos=0, wants_retained=False)


def joined(broker: MemoryBroker, name: str, *filters: Filter, clean: bool = False) -> tuple[MemoryLink, list[Frame]]:
    heard: list[Frame] = []

    def sink(event: LinkEvent) -> None:
        if isinstance(event, Arrived):
            heard.append(event.frame)

    link = MemoryLink(broker, name, filters, sink, clean=clean)
    link.open()
    broker.deliver_due(broker.wire.now_s)
    return link, heard


def kept(topic: str, payload: str) -> Frame:
    return Frame(topic=topic, payload=payload.encode(), retain=True)


def texts(frames: list[Frame]) -> list[str]:
    return [frame.payload.decode() for frame in frames]


def test_a_filter_that_wants_nothing_retained_brings_only_news() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    cloud.publish(kept("down/0", "old"))
    broker.deliver_due(0.0)
    _, heard = joined(broker, "a", NEWS_ONLY)
    cloud.publish(kept("down/0", "new"))
    broker.deliver_due(0.0)
    assert texts(heard) == ["new"]


def test_what_is_fetched_comes_once_as_often_as_it_is_asked_for() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    for slot in range(3):
        cloud.publish(kept(f"down/{slot}", str(slot)))
    link, heard = joined(broker, "a", NEWS_ONLY)
    link.fetch(["down/2", "down/0"])
    broker.deliver_due(0.0)
    assert [(frame.topic, frame.payload, frame.retain, frame.qos) for frame in heard] == [
        ("down/2", b"2", True, 0),
        ("down/0", b"0", True, 0),
    ]
    link.fetch(["down/2"])
    broker.deliver_due(0.0)
    cloud.publish(kept("down/2", "news"))
    broker.deliver_due(0.0)
    assert texts(heard) == ["2", "0", "2", "news"], "news come by the filter, once"


def test_where_nothing_is_kept_the_next_message_ends_the_fetch() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    link, heard = joined(broker, "a")
    link.fetch(["key/0"])
    broker.deliver_due(0.0)
    assert heard == []
    for text in ("first", "second"):
        cloud.publish(kept("key/0", text))
    broker.deliver_due(0.0)
    assert texts(heard) == ["first"]


def test_a_message_that_a_filter_matches_too_comes_twice() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    link, heard = joined(broker, "a", NEWS_ONLY)
    link.fetch(["down/0"])
    broker.deliver_due(0.0)
    for text in ("first", "second"):
        cloud.publish(kept("down/0", text))
    broker.deliver_due(0.0)
    assert texts(heard) == ["first", "first", "second"]


def test_what_was_asked_for_is_forgotten_with_the_connection() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    link, heard = joined(broker, "a")
    link.fetch(["key/0"])
    broker.deliver_due(0.0)
    link.fetch(["key/1"])  # still on its way
    link.cut()
    link.fetch(["key/2"])
    link.restore()
    broker.deliver_due(0.0)
    for slot in range(3):
        cloud.publish(kept(f"key/{slot}", str(slot)))
    broker.deliver_due(0.0)
    assert heard == []
    link.fetch(["key/1"])
    broker.deliver_due(0.0)
    assert texts(heard) == ["1"]


def test_a_session_that_ends_asks_for_nothing_more() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    link, heard = joined(broker, "a", clean=True)
    link.fetch(["key/0"])
    broker.deliver_due(0.0)
    link.close()
    cloud.publish(kept("key/0", "late"))
    broker.deliver_due(0.0)
    assert heard == []


def test_faults_delay_the_question_and_strike_the_answer_alone() -> None:
    broker = MemoryBroker()
    cloud, _ = joined(broker, "cloud")
    cloud.publish(kept("key/0", "weights"))
    broker.deliver_due(0.0)
    link, heard = joined(broker, "a")
    link.faults = Faults(latency_s=(2.0, 2.0))
    link.fetch(["key/0"])
    broker.deliver_due(3.9)
    assert heard == []
    broker.deliver_due(4.0)
    assert texts(heard) == ["weights"]
    link.faults = Faults(loss=1.0)
    link.fetch(["key/0"])
    broker.deliver_due(9.0)
    assert len(heard) == 1, "lost on the way down: who needs it asks again"
    link.faults = None
    link.fetch(["key/0"])
    broker.deliver_due(9.0)
    assert len(heard) == 2
