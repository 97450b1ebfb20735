"""Many links of one process on one thread, against a real Mosquitto."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Up
from hfl_mqtt.transport.mqtt import MqttLink
from hfl_mqtt.transport.network import MAX_ASIDE

pytestmark = pytest.mark.broker
WAIT_S = 60.0
MANY = 200


@pytest.fixture
def open_broker(start_broker: Callable[..., Mosquitto]) -> Mosquitto:
    """A broker without passwords, of which two hundred would take their time to make."""
    broker = start_broker()
    broker.stop()
    lines = broker.conf_path.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("password_file", "acl_file", "allow_anonymous"))]
    broker.conf_path.write_text("\n".join([*kept, "allow_anonymous true"]) + "\n")
    broker.start()
    return broker


class Crowd:
    """Links that share one inbox."""

    def __init__(self, port: int, count: int) -> None:
        self.events: queue.Queue[tuple[int, LinkEvent]] = queue.Queue()
        self.links = [self._link(port, number) for number in range(count)]
        for link in self.links:
            link.open()

    def _link(self, port: int, number: int) -> MqttLink:
        account = Account(host="127.0.0.1", port=port, user=f"link-{number}")
        own = Filter(topic=f"to/{number}", qos=1)
        will = Frame(topic=f"state/{number}", payload=b"lost", retain=True)
        return MqttLink(account, [own], lambda event: self.events.put((number, event)), will=will, retry_s=(0.1, 0.4))

    def wait_for_all(self, kind: type[LinkEvent]) -> None:
        """Wait until each link has said so once."""
        missing = set(range(len(self.links)))
        while missing:
            number, event = self.events.get(timeout=WAIT_S)
            if isinstance(event, kind):
                missing.discard(number)

    def close(self) -> None:
        for link in self.links:
            link.hang_up()
        for link in self.links:
            link.close()


@pytest.fixture
def crowd(open_broker: Mosquitto) -> Iterator[Crowd]:
    crowd = Crowd(open_broker.port, MANY)
    yield crowd
    crowd.close()


def test_two_hundred_links_need_one_thread_and_each_hears_what_is_for_it(crowd: Crowd) -> None:
    before = {thread.name for thread in threading.enumerate()}
    crowd.wait_for_all(Up)
    assert {name for name in before if name.startswith("network")} == {"network"}
    for number, link in enumerate(crowd.links):
        link.publish(Frame(topic=f"to/{(number + 1) % MANY}", payload=str(number).encode()))
    came: dict[int, bytes] = {}
    while len(came) < MANY:
        number, event = crowd.events.get(timeout=WAIT_S)
        assert isinstance(event, Arrived)
        came[number] = event.frame.payload
        crowd.links[number].done(event)
    assert came == {(number + 1) % MANY: str(number).encode() for number in range(MANY)}


def test_they_all_come_back_when_the_broker_does(open_broker: Mosquitto, crowd: Crowd) -> None:
    crowd.wait_for_all(Up)
    open_broker.stop()
    crowd.wait_for_all(Down)
    for number, link in enumerate(crowd.links):
        link.publish(Frame(topic=f"to/{number}", payload=b"waited"))
    open_broker.start()
    heard: set[int] = set()
    while len(heard) < MANY:
        number, event = crowd.events.get(timeout=WAIT_S)
        if isinstance(event, Arrived):
            heard.add(number)


def test_what_all_of_them_have_to_say_of_their_broker_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    crowd = Crowd(port := free_port(), 50)
    crowd.wait_for_all(Down)
    crowd.close()
    assert [f"no broker at 127.0.0.1:{port}" in record.getMessage() for record in caplog.records] == [True]


def test_two_hundred_farewells_are_delivered_in_a_moment(open_broker: Mosquitto, crowd: Crowd) -> None:
    crowd.wait_for_all(Up)
    for number, link in enumerate(crowd.links):
        link.publish(Frame(topic=f"state/{number}", payload=b"disconnected", retain=True))
    start_s = time.monotonic()
    crowd.close()
    assert time.monotonic() - start_s < 5.0
    assert sum(link.pending for link in crowd.links) == 0
    said: queue.Queue[LinkEvent] = queue.Queue()
    account = Account(host="127.0.0.1", port=open_broker.port, user="reader")
    reader = MqttLink(account, [Filter(topic="state/+", qos=0)], said.put)
    reader.open()
    assert isinstance(said.get(timeout=WAIT_S), Up)
    states = [said.get(timeout=WAIT_S) for _ in range(MANY)]
    assert all(isinstance(event, Arrived) and event.frame.payload == b"disconnected" for event in states)
    reader.close()


def test_a_peer_that_takes_connections_and_says_nothing_delays_no_other_link_and_no_close(
    open_broker: Mosquitto,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stuck = Crowd(silent.getsockname()[1], 2 * MAX_ASIDE)
        good = Crowd(open_broker.port, 5)
        good.wait_for_all(Up)
        good.close()
        start_s = time.monotonic()
        stuck.close()
        # Connected but never answered: there is nothing to deliver, so the goodbye is all there is to wait for.
        assert time.monotonic() - start_s < 5.0


def test_closing_many_without_a_broker_takes_no_time_for_each() -> None:
    crowd = Crowd(free_port(), 50)
    crowd.wait_for_all(Down)
    for link in crowd.links:
        link.publish(Frame(topic="x", payload=b"never"))
    start_s = time.monotonic()
    crowd.close()
    assert time.monotonic() - start_s < 2.0
    assert [link.pending for link in crowd.links] == [1] * 50
