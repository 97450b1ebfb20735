"""The link over paho against a real Mosquitto."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hfl_mqtt.errors import ConfigError, Misuse
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.ops.relay import Relay
from hfl_mqtt.protocol.messages import Piece
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Rejected, Up
from hfl_mqtt.transport.mqtt import MqttLink

WAIT_S = 15.0
#: `connect(port, user, *filters, **options)`; the second is an `Inbox` of conftest, or the sink that was given.
Connect = Callable[..., tuple[MqttLink, Any]]
pytestmark = pytest.mark.broker

CALL = "hfl/fed1/cloud/@/stat/round"  # the cloud writes it, its children read it
COMMAND = "hfl/fed1/cloud/a/@/cmnd/receipt"  # the cloud to its child a
UPDATE = "hflb/fed1/cloud/a/@/up/0"  # the child a to the cloud
STATE = "hfl/fed1/cloud/a/@/stat/state"
COMMANDS = Filter(topic="hfl/fed1/cloud/a/@/cmnd/+", qos=1)
UPDATES = Filter(topic="hflb/fed1/cloud/+/@/up/+", qos=1)
STATES = Filter(topic="hfl/fed1/cloud/+/@/stat/state", qos=1)


def said(topic: str, payload: str, *, qos: int = 1, retain: bool = False) -> Frame:
    return Frame(topic=topic, payload=payload.encode(), qos=qos, retain=retain)


@pytest.fixture
def relay(broker: Mosquitto) -> Iterator[Relay]:
    with Relay("127.0.0.1", "127.0.0.1", broker.port) as relay:
        yield relay


def test_a_message_goes_from_one_link_to_another(broker: Mosquitto, connect: Connect) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    child, child_inbox = connect(broker.port, "cloud/a", COMMANDS)
    assert cloud_inbox.next(Up) == Up(session_present=False)
    child_inbox.next(Up)
    child.publish(said(UPDATE, "weights"))
    arrived = cloud_inbox.next(Arrived)
    assert arrived.frame == Frame(topic=UPDATE, payload=b"weights", retain=False, qos=1)
    cloud.publish(said(COMMAND, "thanks", qos=0))
    assert child_inbox.next(Arrived).frame == Frame(topic=COMMAND, payload=b"thanks", retain=False, qos=0)
    assert (child.traffic.payload_out, child.traffic.payload_in) == (7, 6)


def test_what_is_retained_comes_after_up(broker: Mosquitto, connect: Connect) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud")
    cloud_inbox.next(Up)
    cloud.publish(said(CALL, "open", retain=True))
    cloud.close()
    _, inbox = connect(broker.port, "cloud/a", Filter(topic=CALL, qos=1))
    inbox.next(Up)
    assert inbox.next(Arrived).frame.retain


def test_a_wrong_password_is_fatal_and_says_what_to_do(broker: Mosquitto, connect: Connect) -> None:
    _, inbox = connect(broker.port, "cloud/a", COMMANDS, password="wrong", retry_s=(0.05, 0.05))
    down = inbox.next(Down)
    assert down.is_fatal
    assert down.reason == (
        f"the broker at 127.0.0.1:{broker.port} refuses 'cloud/a': Not authorized; "
        "check user name and password here and in the broker's password file, then reload the broker"
    )
    assert inbox.is_empty_after(), "it goes on trying, and says it once"


def test_after_a_wrong_password_it_waits_the_longest_time_at_once(broker: Mosquitto, connect: Connect) -> None:
    with Relay("127.0.0.1", "127.0.0.1", broker.port) as relay:
        _, inbox = connect(relay.port, "cloud/a", COMMANDS, password="wrong", retry_s=(0.01, 60.0))
        inbox.next(Down)
        before = relay.up_bytes
        assert inbox.is_empty_after(0.5)
        assert relay.up_bytes == before


def test_without_a_broker_it_waits_until_there_is_one(start_broker: Callable[..., Mosquitto], connect: Connect) -> None:
    port = free_port()
    link, inbox = connect(port, "cloud/a", COMMANDS)
    reason = f"no broker at 127.0.0.1:{port}: nothing listens there; is Mosquitto running, and is the port right?"
    assert inbox.next(Down) == Down(reason=reason, is_fatal=False)
    assert inbox.is_empty_after(), "one reason is said once, not at every attempt"
    link.publish(said(UPDATE, "early"))
    link.publish(said(UPDATE, "dropped", qos=0))
    assert link.pending == 1
    start_broker(port=port)
    inbox.next(Up)
    _, cloud_inbox = connect(port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    link.publish(said(UPDATE, "late"))
    assert cloud_inbox.next(Arrived).frame.payload == b"late", "the early one came when nobody listened"


def test_an_unknown_host_is_named(connect: Connect) -> None:
    _, inbox = connect(1883, "cloud/a", host="no-such-host.invalid")
    down = inbox.next(Down)
    assert down.reason.startswith("no broker at no-such-host.invalid:1883: ")
    assert not down.is_fatal


def test_a_port_that_is_no_broker_is_named(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, inbox = connect(port, "cloud/a")
        server.accept()[0].close()
        reason = inbox.next(Down).reason
    assert "accepts connections but ends them without an answer" in reason or "nothing listens there" in reason


@pytest.mark.parametrize(("host", "port"), [("", 1883), ("a..b", 1883), ("broker", 0), ("broker", 65536)])
def test_an_address_that_cannot_be_is_refused_before_a_thread_stumbles(host: str, port: int) -> None:
    with pytest.raises(ConfigError):
        Account(host=host, port=port, user="cloud")


def test_a_topic_without_the_right_to_it_is_rejected(broker: Mosquitto, connect: Connect) -> None:
    link, inbox = connect(broker.port, "cloud/a", COMMANDS)
    inbox.next(Up)
    link.publish(said(CALL, "I am the cloud"))
    rejected = inbox.next(Rejected)
    assert rejected.topic == CALL
    assert rejected.reason == (
        f"Not authorized: 'cloud/a' has no right to it at 127.0.0.1:{broker.port}; check the broker's ACL file"
    )
    assert link.pending == 0, "it is not sent again"


def test_a_topic_that_cannot_be_is_rejected(broker: Mosquitto, connect: Connect) -> None:
    link, inbox = connect(broker.port, "cloud/a")
    inbox.next(Up)
    link.publish(said("hfl/+/x", "?"))
    assert inbox.next(Rejected).topic == "hfl/+/x"
    link.publish(said(UPDATE, "goes on"))
    link.close()
    assert link.pending == 0


def test_a_packet_larger_than_the_broker_takes_is_rejected_and_the_link_stays(
    start_broker: Callable[..., Mosquitto], connect: Connect
) -> None:
    broker = start_broker("max_packet_size 1000")
    link, inbox = connect(broker.port, "cloud/a", COMMANDS)
    link.publish(said(UPDATE, "x" * 1000))  # before the limit is known
    inbox.next(Up)
    rejected = inbox.next(Rejected)
    assert rejected.reason.startswith("a packet of 1034 bytes, the broker takes 1000; ")
    assert link.maximum_packet_size == 1000
    # The whole packet of 1000 bytes: header 1 + 2, topic 2 + 24, packet id 2, properties 1.
    _, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    link.publish(said(UPDATE, "x" * (1000 - 34)))
    assert len(cloud_inbox.next(Arrived).frame.payload) == 966
    assert inbox.is_empty_after(0.1)


def test_a_broker_that_restarts_gets_the_subscriptions_and_what_waited(broker: Mosquitto, connect: Connect) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    child, child_inbox = connect(broker.port, "cloud/a", COMMANDS)
    cloud_inbox.next(Up)
    child_inbox.next(Up)
    broker.stop()
    lost = child_inbox.next(Down)
    assert lost.reason == (f"lost the connection to the broker at 127.0.0.1:{broker.port}: it or the network went away")
    assert not lost.is_fatal
    assert "nothing listens there" in child_inbox.next(Down).reason
    child.publish(said(UPDATE, "waited"))
    cloud_inbox.next(Down)
    cloud_inbox.next(Down)
    broker.start()
    child_inbox.next(Up)
    assert cloud_inbox.next(Up).session_present, "the broker saved the session"
    assert cloud_inbox.next(Arrived).frame.payload == b"waited"
    cloud.publish(said(COMMAND, "thanks"))
    assert child_inbox.next(Arrived).frame.payload == b"thanks"


def test_a_broker_that_forgot_everything_is_subscribed_to_again(broker: Mosquitto, connect: Connect) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud")
    _, child_inbox = connect(broker.port, "cloud/a", COMMANDS)
    cloud_inbox.next(Up)
    child_inbox.next(Up)
    broker.kill()
    child_inbox.next(Down)
    child_inbox.next(Down)
    broker.start()
    assert child_inbox.next(Up) == Up(session_present=False)
    cloud.publish(said(COMMAND, "still there?"))
    assert child_inbox.next(Arrived).frame.payload == b"still there?"


def test_a_sink_that_raises_does_not_kill_the_network_thread(
    broker: Mosquitto, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    good: queue.Queue[LinkEvent] = queue.Queue()

    def sink(event: LinkEvent) -> None:
        if isinstance(event, Arrived) and event.frame.payload == b"bad":
            raise RuntimeError("the sink trips")
        good.put(event)

    connect(broker.port, "cloud/a", COMMANDS, sink=sink)
    assert isinstance(good.get(timeout=WAIT_S), Up)
    cloud, _ = connect(broker.port, "cloud")
    cloud.publish(said(COMMAND, "bad"))
    cloud.publish(said(COMMAND, "good"))
    arrived = good.get(timeout=WAIT_S)
    assert isinstance(arrived, Arrived)
    assert arrived.frame.payload == b"good"
    assert "the sink trips" in caplog.text


def test_the_broker_holds_back_what_receive_maximum_forbids_until_it_is_done(
    broker: Mosquitto, connect: Connect
) -> None:
    child, inbox = connect(broker.port, "cloud/a", COMMANDS, receive_maximum=2)
    inbox.next(Up)
    cloud, _ = connect(broker.port, "cloud")
    for number in range(4):
        cloud.publish(said(COMMAND, str(number)))
    first, second = inbox.next(Arrived), inbox.next(Arrived)
    assert inbox.is_empty_after()
    worker = threading.Thread(target=child.done, args=(second,))  # from another thread, in any order
    worker.start()
    worker.join()
    child.done(second)  # twice changes nothing
    third = inbox.next(Arrived)
    assert inbox.is_empty_after()
    child.done(first)
    fourth = inbox.next(Arrived)
    assert [one.frame.payload for one in (first, second, third, fourth)] == [b"0", b"1", b"2", b"3"]


def test_a_token_of_an_earlier_connection_acknowledges_nothing(
    broker: Mosquitto, relay: Relay, connect: Connect
) -> None:
    child, inbox = connect(relay.port, "cloud/a", COMMANDS, receive_maximum=1)
    inbox.next(Up)
    cloud, _ = connect(broker.port, "cloud")
    cloud.publish(said(COMMAND, "0"))
    cloud.publish(said(COMMAND, "1"))
    old = inbox.next(Arrived)
    relay.cut()
    inbox.next(Down)
    relay.restore()
    while not isinstance(event := inbox.next(object), Up):
        assert isinstance(event, Down)
    again = inbox.next(Arrived)
    assert again.frame.payload == b"0", "it was never done"
    child.done(old)
    assert inbox.is_empty_after(), "the old token has the same packet id, and must not release the next message"
    child.done(again)
    assert inbox.next(Arrived).frame.payload == b"1"


def test_a_session_keeps_messages_for_a_node_that_is_away(broker: Mosquitto, connect: Connect) -> None:
    child, inbox = connect(broker.port, "cloud/a", COMMANDS)
    assert not inbox.next(Up).session_present
    child.close()
    cloud, cloud_inbox = connect(broker.port, "cloud")
    cloud_inbox.next(Up)
    cloud.publish(said(COMMAND, "while you slept"))
    cloud.publish(said(COMMAND, "not kept", qos=0))
    cloud.close()
    _, inbox = connect(broker.port, "cloud/a", COMMANDS)
    assert inbox.next(Up).session_present
    assert inbox.next(Arrived).frame.payload == b"while you slept"
    assert inbox.is_empty_after(0.1)


def test_a_clean_link_leaves_no_session(broker: Mosquitto, connect: Connect) -> None:
    for _ in range(2):
        link, inbox = connect(broker.port, "cloud/a", COMMANDS, clean=True)
        assert not inbox.next(Up).session_present
        link.close()


def test_the_will_is_said_when_the_connection_is_cut(broker: Mosquitto, relay: Relay, connect: Connect) -> None:
    _, cloud_inbox = connect(broker.port, "cloud", STATES)
    cloud_inbox.next(Up)
    _, inbox = connect(relay.port, "cloud/a", will=said(STATE, "lost", retain=True))
    inbox.next(Up)
    relay.cut()
    assert cloud_inbox.next(Arrived).frame.payload == b"lost"
    inbox.next(Down)


def test_the_will_is_not_said_on_close_but_the_farewell_is(broker: Mosquitto, connect: Connect) -> None:
    _, cloud_inbox = connect(broker.port, "cloud", STATES)
    cloud_inbox.next(Up)
    link, inbox = connect(broker.port, "cloud/a", will=said(STATE, "lost", retain=True))
    inbox.next(Up)
    link.publish(said(STATE, "disconnected", retain=True))
    link.close()
    assert cloud_inbox.next(Arrived).frame.payload == b"disconnected"
    assert cloud_inbox.is_empty_after()
    assert inbox.is_empty_after(0.1), "close is no surprise: no Down"


def test_close_waits_until_everything_is_acknowledged(broker: Mosquitto, connect: Connect) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    link, _ = connect(broker.port, "cloud/a")
    for number in range(300):
        link.publish(said(UPDATE, str(number)))
    link.close()
    assert link.pending == 0
    for number in range(300):
        arrived = cloud_inbox.next(Arrived)
        cloud.done(arrived)
        assert arrived.frame.payload == str(number).encode()


def test_a_tail_is_read_when_its_turn_comes_and_no_sooner(broker: Mosquitto, relay: Relay, connect: Connect) -> None:
    _, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    link, inbox = connect(relay.port, "cloud/a", retry_s=(0.05, 0.05))
    inbox.next(Up)
    relay.cut()
    inbox.next(Down)
    reads: list[int] = []

    def piece(number: int) -> Piece:
        def read() -> bytes:
            reads.append(number)
            return str(number).encode()

        return Piece(1, read)

    for number in range(3):
        link.publish(Frame(topic=UPDATE, payload=b"number ", tail=piece(number)))
    assert (link.pending, reads) == (3, [])
    relay.restore()
    arrived = [cloud_inbox.next(Arrived).frame.payload for _ in range(3)]
    assert arrived == [b"number 0", b"number 1", b"number 2"]
    assert reads == [0, 1, 2]
    assert link.traffic.payload_out == 3 * len(b"number 0")


def test_a_link_is_opened_once_and_closed_for_good(broker: Mosquitto, connect: Connect) -> None:
    link, inbox = connect(broker.port, "cloud/a")
    with pytest.raises(Misuse):
        link.open()
    inbox.next(Up)
    link.close()
    link.close()
    with pytest.raises(Misuse):
        link.publish(said(UPDATE, "after"))
    assert not any(thread.name == "paho-mqtt-client-cloud/a" for thread in threading.enumerate())


def test_close_without_a_broker_does_not_wait_for_what_cannot_go(connect: Connect) -> None:
    link, inbox = connect(free_port(), "cloud/a", retry_s=(60.0, 60.0))
    inbox.next(Down)
    link.publish(said(UPDATE, "never"))
    link.close()
    assert link.pending == 1
    assert not any(thread.name == "paho-mqtt-client-cloud/a" for thread in threading.enumerate())


def test_two_programs_with_one_name_are_told_so_and_stay_away_for_ever_longer(
    broker: Mosquitto, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    inboxes = [connect(broker.port, "cloud/a", pauses_s=(0.02, 0.2))[1] for _ in range(2)]
    for inbox in inboxes:
        for number in range(1, 9):
            inbox.next(Up)
            down = inbox.next(Down)
            assert (down.is_cloned, down.is_fatal) == (number >= 3, False)
        # This broker only hangs up, so it may be the network too.
        told = f"another program keeps connecting to 127.0.0.1:{broker.port} as 'cloud/a', or something on the way cuts"
        assert down.reason.startswith(told)
    assert {record.levelname for record in caplog.records if "keeps connecting" in record.message} == {"WARNING"}


def test_a_broker_that_says_taken_over_is_believed(connect: Connect) -> None:
    # As Mosquitto 2.0.11 never says it: CONNACK and DISCONNECT 142 by hand.
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, inbox = connect(server.getsockname()[1], "cloud/a", retry_s=(60.0, 60.0))
        peer, _ = server.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(bytes.fromhex("20 03 00 00 00  e0 01 8e"))
            inbox.next(Up)
            down = inbox.next(Down)
    assert not down.is_fatal, "the other board may be switched off again"
    assert down.reason.endswith("as 'cloud/a'; stop one of the two")


def test_nothing_is_lost_when_the_connection_is_cut_again_and_again(
    broker: Mosquitto, relay: Relay, connect: Connect
) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    events: queue.Queue[LinkEvent] = queue.Queue()
    link, _ = connect(relay.port, "cloud/a", sink=events.put)
    for number in range(400):
        link.publish(said(UPDATE, str(number)))
        if number % 100 == 50:
            while not isinstance(events.get(timeout=WAIT_S), Up):
                pass
            relay.cut()
            relay.restore()
    seen: list[int] = []
    while len(set(seen)) < 400:
        arrived = cloud_inbox.next(Arrived)
        cloud.done(arrived)
        seen.append(int(arrived.frame.payload))
    assert len(seen) <= 400 + 4 * 20, "at most the window is sent twice per cut"
    link.close()
    assert link.pending == 0


def test_socket_bytes_are_those_on_the_wire_over_all_connections(
    broker: Mosquitto, relay: Relay, connect: Connect
) -> None:
    cloud, cloud_inbox = connect(broker.port, "cloud", UPDATES)
    cloud_inbox.next(Up)
    link, inbox = connect(relay.port, "cloud/a", COMMANDS)
    inbox.next(Up)
    for _ in range(2):
        cloud.publish(said(COMMAND, "y" * 5_000))
        link.done(inbox.next(Arrived))
        link.publish(said(UPDATE, "x" * 50_000))
        cloud.done(cloud_inbox.next(Arrived))
        # Whatever the broker had to say to the link stands before this, so nothing is on its way when it is cut.
        cloud.publish(said(COMMAND, "z", qos=0))
        inbox.next(Arrived)
        relay.cut()
        relay.restore()
        while not isinstance(inbox.next(object), Up):
            pass
    traffic = link.traffic
    assert (traffic.payload_out, traffic.payload_in) == (100_000, 10_002)
    assert (traffic.socket_out, traffic.socket_in) == (relay.up_bytes, relay.down_bytes)
    assert 100_000 < relay.up_bytes < 100_600
    link.close()
    assert link.traffic.socket_in == relay.down_bytes, "the count stays after close"
