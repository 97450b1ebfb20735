"""The papers of a fleet's authority at real brokers: who gets in, as whom, who does not, and when revoking counts."""

from __future__ import annotations

import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.fleet.authority import Authority, Papers
from hfl_mqtt.fleet.requests import read_request_file, sign, write_request
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.trust.cards import BELIEVABLE_FROM_S
from tests.broker.processes import until

pytestmark = pytest.mark.broker

LIMIT_S = 15.0
FARM, PI_1, PI_2 = "cloud/farm-a", "cloud/farm-a/pi-1", "cloud/farm-a/pi-2"
#: Each node may write under its own name, and reads all.
RIGHTS = "pattern write x/%u\npattern read x/#\nuser _bridge/cloud/farm-a\ntopic readwrite x/#\n"
LET_IN, RESUMED = "let in", "let in, and its certificate not looked at again"


class Place:
    """A broker with its papers, as a farm or a cloud has it: the account is the certificate's name."""

    def __init__(self, home: Path, authority: Authority, papers: Papers, *more: str) -> None:
        home.mkdir()
        self.home, self.port = home, free_port()
        texts = {
            "ca.crt": authority.ca_pem,
            "crl.pem": authority.crl_pem,
            "broker.crt": papers.certificate,
            "broker.key": papers.key,
            "acl": RIGHTS,
        }
        for name, text in texts.items():
            (home / name).touch(0o600)
            (home / name).write_text(text)
        settings = (
            f"listener {self.port} 127.0.0.1",
            "user root",
            f"cafile {home}/ca.crt",
            f"certfile {home}/broker.crt",
            f"keyfile {home}/broker.key",
            f"crlfile {home}/crl.pem",
            "require_certificate true",
            "use_identity_as_username true",
            f"acl_file {home}/acl",
            *more,
        )
        (home / "mosquitto.conf").write_text("\n".join(settings) + "\n")
        self.broker = Mosquitto(home / "mosquitto.conf", self.port)

    def renew_revoked(self, authority: Authority) -> None:
        (self.home / "crl.pem").write_text(authority.crl_pem)


def context(
    home: Path, authority: Authority, papers: Papers | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
) -> ssl.SSLContext:
    """What a client shows and trusts, with the strict checks that Python has switched on in 3.13.

    In TLS 1.2 the handshake ends with a reason; in 1.3 the connection may be gone before it is heard.
    """
    shown = ssl.create_default_context(cadata=authority.ca_pem)
    shown.maximum_version = version
    shown.verify_flags |= ssl.VERIFY_X509_STRICT
    if papers is not None:
        certificate, key = home / f"{papers.serial}.crt", home / f"{papers.serial}.key"
        certificate.write_text(papers.certificate)
        key.touch(0o600)
        key.write_text(papers.key)
        shown.load_cert_chain(certificate, key)
    return shown


def answer(
    port: int, shown: ssl.SSLContext, host: str = "localhost", session: ssl.SSLSession | None = None
) -> tuple[str, ssl.SSLSession | None]:
    """What a broker answers who connects: that it lets him in, or why not; and what would resume the session."""
    with suppress(ConnectionResetError), socket.create_connection(("127.0.0.1", port), LIMIT_S) as plain:
        try:
            with shown.wrap_socket(plain, server_hostname=host, session=session) as secure:
                secure.sendall(bytes.fromhex("100d00044d51545404020000000178"))
                got = secure.recv(4)
                word = RESUMED if secure.session_reused else LET_IN
                return word if got == bytes.fromhex("20020000") else got.hex(), secure.session
        except ssl.SSLError as error:
            return str(error), None
    return "reset", None


class Node:
    """A paho client with its papers; all that it hears lies in `heard`, the broker's answers in `told`."""

    def __init__(self, port: int, shown: ssl.SSLContext, *topics: str) -> None:
        self.heard: queue.Queue[MQTTMessage] = queue.Queue()
        self.told: queue.Queue[str] = queue.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.tls_set_context(shown)
        self._client.on_connect = self._connected
        self._client.on_message = lambda _client, _data, message: self.heard.put(message)
        self._client.on_publish = lambda _client, _data, _id, reason, _more: self.told.put(str(reason))
        self._client.on_subscribe = lambda *_: self.told.put("subscribed")
        self._topics = topics
        self._client.connect("localhost", port)
        self._client.loop_start()

    def _connected(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self.told.put(str(reason))
        if self._topics:
            client.subscribe([(topic, 1) for topic in self._topics])

    def say(self, topic: str, text: str) -> str:
        self._client.publish(topic, text, qos=1)
        return self.told.get(timeout=LIMIT_S)

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        del self._client  # paho closes its last sockets when it is let go of


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "fed1")


@pytest.fixture
def start(tmp_path: Path, authority: Authority, stack: ExitStack) -> Callable[..., Place]:
    def start(name: str, *more: str, papers: Papers | None = None) -> Place:
        place = Place(tmp_path / name, authority, papers or authority.issue("broker", f"cloud/{name}"), *more)
        stack.enter_context(place.broker)
        return place

    return start


@pytest.fixture
def node(tmp_path: Path, authority: Authority, stack: ExitStack) -> Callable[..., Node]:
    def connect(place: Place, papers: Papers, *topics: str) -> Node:
        one = Node(place.port, context(tmp_path, authority, papers, ssl.TLSVersion.TLSv1_3), *topics)
        stack.callback(one.leave)
        assert one.told.get(timeout=LIMIT_S) == "Success"
        if topics:
            assert one.told.get(timeout=LIMIT_S) == "subscribed"
        return one

    return connect


def test_a_nodes_account_is_its_path_and_it_has_that_ones_rights(
    start: Callable[..., Place], node: Callable[..., Node], authority: Authority
) -> None:
    place = start("farm-a")
    listener = node(place, authority.issue("node", PI_2), "x/#")
    one = node(place, authority.issue("node", PI_1))
    assert one.say(f"x/{PI_2}", "stolen") == "Not authorized"
    assert one.say(f"x/{PI_1}", "own") == "Success"
    heard = listener.heard.get(timeout=LIMIT_S)
    assert (heard.topic, heard.payload) == (f"x/{PI_1}", b"own")


def test_a_device_that_keeps_its_own_key_gets_in_with_papers_that_have_none(
    start: Callable[..., Place], node: Callable[..., Node], authority: Authority, tmp_path: Path
) -> None:
    place = start("farm-a")
    request = read_request_file(write_request("fed1", PI_1, tmp_path / "board"))
    papers = sign(authority, request)
    assert papers.key == ""
    own = (tmp_path / "board" / "node.key").read_text()
    assert node(place, replace(papers, key=own), f"x/{PI_1}").say(f"x/{PI_1}", "own") == "Success"


def test_a_bridge_gets_in_with_its_papers_and_trusts_the_broker_above_by_its_host(
    start: Callable[..., Place], node: Callable[..., Node], authority: Authority, tmp_path: Path
) -> None:
    cloud = start("cloud")
    papers = authority.issue("bridge", FARM)
    context(tmp_path, authority, papers)
    farm = start(
        "farm-a",
        "connection farm-a",
        f"address localhost:{cloud.port}",
        f"bridge_cafile {tmp_path}/farm-a/ca.crt",
        f"bridge_certfile {tmp_path}/{papers.serial}.crt",
        f"bridge_keyfile {tmp_path}/{papers.serial}.key",
        "remote_clientid farm-a",
        "bridge_protocol_version mqttv311",
        "topic x/# out 1",
    )
    above = node(cloud, authority.issue("node", "cloud"), "x/#")
    assert node(farm, authority.issue("node", PI_1)).say(f"x/{PI_1}", "up") == "Success"
    assert above.heard.get(timeout=LIMIT_S).payload == b"up"


def test_who_is_not_of_this_fleet_or_out_of_time_is_not_let_in(
    start: Callable[..., Place], authority: Authority, tmp_path: Path
) -> None:
    place = start("farm-a")
    other = Authority.create(tmp_path / "other", "fed1")
    past = Authority.open(tmp_path / "authority", clock=lambda: BELIEVABLE_FROM_S)
    strangers = [
        (other.issue("node", PI_1), "unknown ca"),
        (past.issue("node", PI_1, days=1), "certificate expired"),
        (authority.issue("broker", FARM), "unsupported certificate"),
        (None, "handshake failure"),
    ]
    for papers, reason in strangers:
        assert reason in answer(place.port, context(tmp_path, authority, papers))[0]
    assert answer(place.port, context(tmp_path, authority, authority.issue("node", PI_1)))[0] == LET_IN


def test_a_broker_that_is_not_of_this_fleet_out_of_time_elsewhere_or_a_stolen_node_is_not_trusted(
    start: Callable[..., Place], authority: Authority, tmp_path: Path
) -> None:
    papers = authority.issue("node", PI_1)
    shown = context(tmp_path, authority, papers)
    past = Authority.open(tmp_path / "authority", clock=lambda: BELIEVABLE_FROM_S)
    false = [
        (Authority.create(tmp_path / "other", "fed1").issue("broker", FARM), "unable to get local issuer certificate"),
        (past.issue("broker", FARM, days=1), "certificate has expired"),
        (authority.issue("node", PI_2), "unsuitable certificate purpose"),
        (authority.issue("bridge", FARM), "unsuitable certificate purpose"),
    ]
    for number, (broker, reason) in enumerate(false):
        assert reason in answer(start(f"false-{number}", papers=broker).port, shown)[0]
    real = start("farm-a", papers=authority.issue("broker", FARM, hosts=["farm-a.local", "10.0.0.7"]))
    for host in ("localhost", "127.0.0.1", "farm-a.local", "10.0.0.7"):
        assert answer(real.port, shown, host)[0] == LET_IN
    assert "Hostname mismatch" in answer(real.port, shown, "farm-b.local")[0]
    assert "IP address mismatch" in answer(real.port, shown, "10.0.0.8")[0]


def test_revoking_counts_for_who_connects_once_the_broker_reads_the_list_and_a_restart_ends_who_is_in(
    start: Callable[..., Place], node: Callable[..., Node], authority: Authority, tmp_path: Path
) -> None:
    place = start("farm-a")
    lost, good = authority.issue("node", PI_1), authority.issue("node", PI_2)
    thief, listener = node(place, lost), node(place, good, "x/#")
    authority.revoke(PI_1)
    place.renew_revoked(authority)
    shown = context(tmp_path, authority, lost)
    assert answer(place.port, shown)[0] == LET_IN  # the file alone does nothing
    place.broker.reload()
    until(lambda: "certificate revoked" in answer(place.port, shown)[0], "the revoked one to be refused")
    assert answer(place.port, context(tmp_path, authority, good))[0] == LET_IN
    assert thief.say(f"x/{PI_1}", "still in") == "Success"  # so its rights are taken from it as well
    assert listener.heard.get(timeout=LIMIT_S).payload == b"still in"
    (place.home / "acl").write_text(RIGHTS.replace("pattern write x/%u", f"user {PI_2}\ntopic write x/{PI_2}"))
    place.broker.reload()
    until(lambda: thief.say(f"x/{PI_1}", "and now") == "Not authorized", "the revoked one to lose its rights")
    place.broker.stop()
    place.broker.start()
    assert "certificate revoked" in answer(place.port, shown)[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_node_does_not_get_in_by_resuming_its_session(
    start: Callable[..., Place], authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    place = start("farm-a")
    papers = authority.issue("node", PI_1)
    shown = context(tmp_path, authority, papers, version)
    said, session = answer(place.port, shown)
    assert said == LET_IN
    assert answer(place.port, shown, session=session)[0] == RESUMED
    authority.revoke(PI_1)
    place.renew_revoked(authority)
    place.broker.reload()
    fresh = context(tmp_path, authority, papers)
    until(lambda: "certificate revoked" in answer(place.port, fresh)[0], "the revoked one to be refused")
    assert answer(place.port, shown, session=session)[0] not in (LET_IN, RESUMED)


@pytest.mark.parametrize("damage", ["junk", "", None])
def test_a_damaged_list_lets_the_revoked_in_after_a_reload_so_their_rights_go_too_and_lists_are_put_there_whole(
    start: Callable[..., Place], authority: Authority, tmp_path: Path, damage: str | None
) -> None:
    """What Mosquitto 2.0 does, not what anybody wants: once this fails, the guide has a warning too many."""
    lost = context(tmp_path, authority, authority.issue("node", PI_1))
    authority.revoke(PI_1)
    place = start("farm-a")
    assert "certificate revoked" in answer(place.port, lost)[0]
    if damage is None:
        (place.home / "crl.pem").unlink()
    else:
        (place.home / "crl.pem").write_text(damage)
    place.broker.reload()
    until(lambda: answer(place.port, lost)[0] == LET_IN, "the broker to forget who is revoked")
    place.renew_revoked(authority)
    place.broker.reload()
    until(lambda: "certificate revoked" in answer(place.port, lost)[0], "the broker to know again")
