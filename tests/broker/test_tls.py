"""Links over TLS, against a real Mosquitto that wants certificates, and against peers that are none."""

from __future__ import annotations

import hashlib
import os
import queue
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto, free_ports
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, TlsFiles, Up
from hfl_mqtt.transport.mqtt import MqttLink
from tests.broker.certificates import FUTURE, HOSTS, PAST, Authority, Pair

pytestmark = pytest.mark.broker
WAIT_S = 60.0
Connect = Callable[..., tuple[MqttLink, Any]]
#: A packet as large as brokers here take, and as many links as share the loop with it.
LARGE, MANY = 950_000, 40


@pytest.fixture
def fleet(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "fleet")


class Broker:
    """A Mosquitto with a port for certificates, one for TLS with no certificate asked, and a plain one."""

    def __init__(self, home: Path, fleet: Authority, pair: Pair | None = None) -> None:
        home.mkdir()
        self.fleet, self.pair = fleet, pair or fleet.issue("broker cloud", hosts=HOSTS)
        self.plain, self.tls, self.mutual = free_ports(3)
        lines = [
            *(["user root"] if os.geteuid() == 0 else []),
            "allow_anonymous true",
            "max_packet_size 1000000",
            "max_queued_messages 100000",
            f"listener {self.plain} 127.0.0.1",
            *fleet.listener(self.tls, self.pair, is_mutual=False),
            *fleet.listener(self.mutual, self.pair),
        ]
        conf = home / "mosquitto.conf"
        conf.write_text("\n".join(lines) + "\n")
        self.process = Mosquitto(conf, self.plain)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    running: list[Broker] = []

    def start(fleet: Authority, pair: Pair | None = None) -> Broker:
        broker = Broker(tmp_path / f"broker-{len(running)}", fleet, pair)
        broker.process.start()
        running.append(broker)
        return broker

    yield start
    for broker in running:
        broker.process.stop()


@pytest.fixture
def secure(start: Callable[..., Broker], fleet: Authority) -> Broker:
    return start(fleet)


# ---- bytes


def payload_of(number: int) -> bytes:
    return random.Random(number).randbytes(LARGE)


def test_large_packets_of_many_links_on_one_loop_arrive_whole(secure: Broker) -> None:
    events: queue.Queue[tuple[int, LinkEvent]] = queue.Queue()

    def link(number: int) -> MqttLink:
        papers = secure.fleet.papers(secure.fleet.issue(f"cloud/a/pi-{number}"))
        account = Account(host="localhost", port=secure.mutual, user=f"cloud/a/pi-{number}", tls=papers)
        own = Filter(topic=f"to/{number}", qos=1)
        return MqttLink(account, [own], lambda event: events.put((number, event)))

    links = [link(number) for number in range(MANY)]
    try:
        for each in links:
            each.open()
        while not all(isinstance(events.get(timeout=WAIT_S)[1], Up) for _ in range(MANY)):
            pytest.fail("a link is not up")
        for number, each in enumerate(links):
            each.publish(Frame(topic=f"to/{(number + 1) % MANY}", payload=payload_of(number)))
        came: dict[int, str] = {}
        while len(came) < MANY:
            number, event = events.get(timeout=WAIT_S)
            assert isinstance(event, Arrived)
            came[number] = hashlib.sha256(event.frame.payload).hexdigest()
            links[number].done(event)
        assert came == {(n + 1) % MANY: hashlib.sha256(payload_of(n)).hexdigest() for n in range(MANY)}
        assert all(each.traffic.payload_out == LARGE for each in links)
    finally:
        for each in links:
            each.hang_up()
        for each in links:
            each.close()


class Peer:
    """One connection to a broker that is none: it does what a test says, in TLS."""

    def __init__(self, pair: Pair, **options: Any) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.certificate, pair.key)
        for name, value in options.items():
            setattr(self.context, name, value)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(WAIT_S)
        self.port = self.server.getsockname()[1]

    @contextmanager
    def connection(self) -> Iterator[ssl.SSLSocket]:
        """Take the connection, its CONNECT, and grant it."""
        raw, _ = self.server.accept()
        raw.settimeout(WAIT_S)
        with self.context.wrap_socket(raw, server_side=True) as sock:
            assert sock.recv(65536)[0] == 0x10
            sock.sendall(bytes.fromhex("20 03 00 00 00"))
            yield sock


@pytest.fixture
def peer(fleet: Authority) -> Iterator[Peer]:
    peer = Peer(fleet.issue("broker cloud", hosts=HOSTS))
    yield peer
    peer.server.close()


def published(topic: str, payload: bytes) -> bytes:
    """Return a PUBLISH of QoS 0."""
    body = len(topic).to_bytes(2, "big") + topic.encode() + b"\0" + payload
    size, length = len(body), b""
    while size > 127:
        length, size = length + bytes([size % 128 | 128]), size // 128
    return b"\x30" + length + bytes([size]) + body


def test_what_lies_decrypted_in_the_socket_is_read_though_no_selector_tells_of_it(
    fleet: Authority, peer: Peer, connect: Connect
) -> None:
    _, inbox = connect(peer.port, "cloud/a", tls=fleet.papers())
    with peer.connection() as sock:
        inbox.next(Up)
        # One record of TLS, 16 kB at most, with more packets than the link reads in one turn; and then silence.
        sock.sendall(b"".join(published("t", str(number).encode()) for number in range(1500)))
        assert [int(inbox.next(Arrived).frame.payload) for _ in range(1500)] == list(range(1500))


def test_a_packet_of_many_records_and_one_that_ends_within_a_record_are_whole(
    fleet: Authority, peer: Peer, connect: Connect
) -> None:
    _, inbox = connect(peer.port, "cloud/a", tls=fleet.papers())
    large = random.Random(7).randbytes(3_000_000)  # more records than paho reads in one go
    stream = published("large", large) + published("small", b"x") * 3
    with peer.connection() as sock:
        inbox.next(Up)
        for start in range(0, len(stream), 9_999):
            sock.sendall(stream[start : start + 9_999])
        assert inbox.next(Arrived).frame.payload == large
        assert [inbox.next(Arrived).frame.payload for _ in range(3)] == [b"x"] * 3


def test_a_peer_that_does_not_read_holds_up_no_other_link_and_gets_everything_later(
    secure: Broker, peer: Peer, connect: Connect
) -> None:
    slow, slow_inbox = connect(peer.port, "cloud/a", tls=secure.fleet.papers())
    with peer.connection() as sock:
        slow_inbox.next(Up)
        frame = Frame(topic="t", payload=bytes(1_000_000), qos=0)
        for _ in range(20):  # far more than both sockets' buffers take
            slow.publish(frame)
        _, own = connect(secure.mutual, "b", Filter(topic="t", qos=1), tls=secure.fleet.papers(secure.fleet.issue("b")))
        own.next(Up)
        expected = 20 * len(published("t", frame.payload))
        got = 0
        while got < expected:
            got += len(sock.recv(1_000_000))
        assert got == expected


# ---- reasons


def fatal(down: Down) -> str:
    assert down.is_fatal
    return down.reason


def mendable(down: Down) -> str:
    assert not down.is_fatal
    return down.reason


def test_a_node_with_its_papers_is_let_in_by_name_and_by_address(secure: Broker, connect: Connect) -> None:
    papers = secure.fleet.papers(secure.fleet.issue("cloud/a"))
    for host in HOSTS:
        _, inbox = connect(secure.mutual, f"cloud/{host}", host=host, tls=papers)
        inbox.next(Up)
    _, inbox = connect(secure.tls, "viewer", tls=secure.fleet.papers())
    inbox.next(Up)


def test_a_broker_of_another_authority_is_not_trusted(secure: Broker, tmp_path: Path, connect: Connect) -> None:
    other = Authority(tmp_path / "other", "other")
    _, inbox = connect(secure.mutual, "cloud/a", tls=other.papers(other.issue("cloud/a")))
    assert mendable(inbox.next(Down)) == (
        f"no broker at 127.0.0.1:{secure.mutual} that we trust: its certificate is not from the authority in "
        f"{other.certificate}; name the ca.crt of the fleet that this broker belongs to, or look who answers there"
    )
    assert inbox.is_empty_after(), "it goes on trying, and says it once"


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        ({"not_after": PAST}, "its certificate has expired, says the clock here, 20"),
        ({"not_before": FUTURE}, "its certificate is not valid yet, says the clock here, 20"),
    ],
)
def test_the_dates_of_a_brokers_certificate_are_looked_at(
    dates: dict[str, Any], said: str, start: Callable[..., Broker], fleet: Authority, connect: Connect
) -> None:
    broker = start(fleet, fleet.issue("broker cloud", hosts=HOSTS, **dates))
    _, inbox = connect(broker.mutual, "cloud/a", tls=fleet.papers(fleet.issue("cloud/a")))
    reason = mendable(inbox.next(Down))
    assert said in reason
    assert "clock" in reason.partition(said)[2], "a board without a battery boots in 1970"


def test_a_broker_must_have_the_name_that_it_is_called_by(
    start: Callable[..., Broker], fleet: Authority, connect: Connect
) -> None:
    broker = start(fleet, fleet.issue("broker farm-b", hosts=("farm-b.local",)))
    papers = fleet.papers(fleet.issue("cloud/a"))
    for host in HOSTS:
        _, inbox = connect(broker.mutual, "cloud/a", host=host, tls=papers)
        assert f"its certificate is not for {host!r}; connect by a name that it has" in mendable(inbox.next(Down))
    _, inbox = connect(broker.mutual, "cloud/a", tls=replace(papers, server_name="farm-b.local"))
    inbox.next(Up)


def test_a_stolen_node_cannot_play_the_broker(start: Callable[..., Broker], fleet: Authority, connect: Connect) -> None:
    broker = start(fleet, fleet.issue("localhost"))
    _, inbox = connect(broker.mutual, "cloud/a", host="localhost", tls=fleet.papers(fleet.issue("cloud/a")))
    assert "its certificate is not a broker's" in mendable(inbox.next(Down))


def test_a_revoked_certificate_is_refused_and_that_is_fatal_as_a_wrong_password_is(
    fleet: Authority, start: Callable[..., Broker], connect: Connect
) -> None:
    pair = fleet.issue("cloud/a")
    fleet.revoke(pair)
    broker = start(fleet)
    _, inbox = connect(broker.mutual, "cloud/a", tls=fleet.papers(pair))
    assert fatal(inbox.next(Down)) == (
        f"the broker at 127.0.0.1:{broker.mutual} refuses {pair.certificate}: it has been told that this certificate "
        "is revoked; issue the node a new one"
    )
    assert inbox.is_empty_after(), "in TLS 1.3 the refusal comes after the handshake, and is never lost"


def test_a_node_without_a_certificate_is_told_that_one_is_wanted(secure: Broker, connect: Connect) -> None:
    _, inbox = connect(secure.mutual, "cloud/a", tls=secure.fleet.papers())
    assert fatal(inbox.next(Down)).endswith(
        "refuses 'cloud/a': it asks for a certificate; set broker.tls.cert_file and key_file"
    )


def test_a_node_of_another_fleet_is_refused(secure: Broker, tmp_path: Path, connect: Connect) -> None:
    pair = Authority(tmp_path / "other", "other").issue("cloud/a")
    _, inbox = connect(secure.mutual, "cloud/a", tls=secure.fleet.papers(pair))
    assert "it does not know the authority of this certificate" in fatal(inbox.next(Down))


def test_a_brokers_certificate_is_no_nodes(secure: Broker, connect: Connect) -> None:
    _, inbox = connect(secure.mutual, "cloud/a", tls=secure.fleet.papers(secure.pair))
    assert "it takes no certificate of this kind" in fatal(inbox.next(Down))


def test_who_speaks_tls_to_a_plain_port_is_told_so_and_has_said_nothing_in_the_clear(
    secure: Broker, connect: Connect
) -> None:
    _, inbox = connect(secure.plain, "cloud/a", tls=secure.fleet.papers())
    said = f"no broker at 127.0.0.1:{secure.plain} that speaks TLS: "
    assert mendable(inbox.next(Down)).startswith(said)
    assert inbox.is_empty_after()
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, inbox = connect(server.getsockname()[1], "a name", tls=secure.fleet.papers())
        sock, _ = server.accept()
        with sock:
            hello = sock.recv(65536)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert "is its port for TLS" in mendable(inbox.next(Down)).replace(str(server.getsockname()[1]), "is")
    assert hello[0] == 0x16
    assert b"a name" not in hello


def test_who_speaks_plainly_to_a_port_for_tls_is_told_so(secure: Broker, connect: Connect) -> None:
    _, inbox = connect(secure.mutual, "cloud/a")
    reason = mendable(inbox.next(Down))
    assert reason.endswith("does this port want TLS? Then its configuration here needs broker.tls")
    assert inbox.is_empty_after()


def test_a_peer_that_speaks_only_old_tls_is_refused(fleet: Authority, connect: Connect) -> None:
    pair = fleet.issue("broker cloud", hosts=HOSTS)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old = Peer(pair, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
    old.context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with old.server:
        _, inbox = connect(old.port, "cloud/a", tls=fleet.papers())
        raw, _ = old.server.accept()
        with raw, pytest.raises(ssl.SSLError):
            old.context.wrap_socket(raw, server_side=True)
        assert f"127.0.0.1:{old.port}" in mendable(inbox.next(Down))


# ---- papers that change


def until_up(inbox: Any) -> list[str]:
    """Wait for `Up`; what was said before it."""
    reasons = []
    while not isinstance(event := inbox.next(object), Up):
        assert isinstance(event, Down)
        reasons.append(event.reason)
    return reasons


def test_a_new_certificate_is_taken_at_the_next_try(secure: Broker, connect: Connect) -> None:
    papers = secure.fleet.papers(secure.fleet.issue("cloud/a", not_after=PAST))
    _, inbox = connect(secure.mutual, "cloud/a", tls=papers)
    assert "by the broker's clock it has expired; lay down a new one" in mendable(inbox.next(Down))
    secure.fleet.issue("cloud/a")
    assert all("is not the key of" in reason for reason in until_up(inbox)), "read when only half was there"


def test_half_a_pair_is_told_and_mends_itself(secure: Broker, connect: Connect) -> None:
    pair, other = secure.fleet.issue("cloud/a"), secure.fleet.issue("cloud/b")
    key = pair.key.read_bytes()
    pair.key.write_bytes(other.key.read_bytes())
    _, inbox = connect(secure.mutual, "cloud/a", tls=secure.fleet.papers(pair))
    assert mendable(inbox.next(Down)) == (
        f"cannot connect to 127.0.0.1:{secure.mutual}: {pair.key} is not the key of {pair.certificate}: "
        "lay both down again, as one pair"
    )
    pair.key.write_bytes(key)
    assert until_up(inbox) == []


def test_a_new_authority_is_taken_and_the_old_one_trusted_no_more(
    start: Callable[..., Broker], tmp_path: Path, connect: Connect
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    broker = start(new)
    pair = new.issue("cloud/a")
    papers = TlsFiles(ca=tmp_path / "ca.crt", certificate=pair.certificate, key=pair.key)
    papers.ca.write_bytes(old.certificate.read_bytes())
    _, inbox = connect(broker.mutual, "cloud/a", tls=papers)
    assert "not from the authority" in mendable(inbox.next(Down))
    papers.ca.write_bytes(new.certificate.read_bytes())
    assert until_up(inbox) == []
    papers.ca.write_bytes(old.certificate.read_bytes())
    broker.process.stop()
    broker.process.start()
    while "not from the authority" not in inbox.next(Down).reason:
        pass


def test_links_that_wait_for_handshakes_hold_up_nobody_who_is_connected(secure: Broker, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        papers = secure.fleet.papers(secure.fleet.issue("cloud/a"))
        link, inbox = connect(secure.mutual, "cloud/a", Filter(topic="t", qos=1), tls=papers)
        inbox.next(Up)
        for number in range(4):
            connect(silent.getsockname()[1], f"stuck-{number}", tls=papers)
        link.publish(Frame(topic="t", payload=b"x"))
        assert inbox.next(Arrived).frame.payload == b"x"
