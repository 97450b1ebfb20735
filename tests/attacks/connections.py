"""Who is let in, as whom, and what they may say and hear."""

from __future__ import annotations

import queue
import socket
import ssl
from contextlib import closing
from pathlib import Path

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from hfl_mqtt.fleet.authority import Authority as FleetAuthority
from hfl_mqtt.fleet.holdings import put
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.transport.link import Account, Down, LinkEvent, TlsFiles
from hfl_mqtt.transport.mqtt import MqttLink
from hfl_mqtt.transport.tls import context_of
from tests.attacks.rows import Seen, row
from tests.attacks.stage import FARM, FEDERATION, PI, Stage
from tests.attacks.updates import true_update
from tests.broker.certificates import Authority
from tests.broker.processes import LIMIT_S
from tests.broker.sites import Person

#: What Mosquitto 2.0 says of a right that somebody has not.
_ONLY_ITSELF = "the broker answers 'Not authorized'; mosquitto.log has it with `log_type debug` alone, beside all else"
#: MQTT 3.1.1's CONNECT of a client called x.
_CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x"
#: 2025-02-01: a paper that was made then for a day is out of date.
_LONG_AGO_S = 1_738_368_000.0


def knock(port: int, context: ssl.SSLContext) -> str:
    """Connect and say CONNECT; return why that was refused, as TLS tells it."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(_CONNECT)
            answer = secure.recv(4)
    except ssl.SSLError as error:
        return str(error.reason)
    except ConnectionResetError:
        return "reset"
    return "let in" if answer else "hung up"


def context_with(stage: Stage, certificate: Path, key: Path) -> ssl.SSLContext:
    """Return how somebody connects who knows the fleet's authority, and shows this.

    In TLS 1.2 a client hears of its refusal before it may say a word; in 1.3 its word and the refusal can cross.
    """
    context = ssl.create_default_context(cafile=str(stage.papers_dir(PI) / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


@row("wrong CA", "a certificate for an honest device's name, made by another CA")
def wrong_ca(stage: Stage) -> Seen:
    pair = Authority(stage.directory / "stranger", "stranger").issue(PI)
    answer = knock(stage.brokers[FARM].port, context_with(stage, pair.certificate, pair.key))
    assert answer == "TLSV1_ALERT_UNKNOWN_CA", answer
    line = stage.said_by_broker("certificate verify failed")
    return Seen(happened=f"the broker ends the handshake: {answer}", reported=f"mosquitto.log: {line}")


@row("wrong CA of a broker", "a broker with another CA's certificate in the place of the farm's")
def rogue_broker(stage: Stage) -> Seen:
    other = Authority(stage.directory / "impostor", "impostor")
    port = free_port()
    conf = other.folder / "mosquitto.conf"
    lines = other.listener(port, other.issue("broker", hosts=("127.0.0.1",)), is_mutual=False)
    conf.write_text("\n".join(["user root", "allow_anonymous true", *lines]) + "\n")
    events: queue.Queue[LinkEvent] = queue.Queue()
    with Mosquitto(conf, port):
        own = stage.papers_dir(PI)
        files = TlsFiles(ca=own / "ca.crt", certificate=own / "node.crt", key=own / "node.key")
        link = MqttLink(Account(host="127.0.0.1", port=port, user=PI, tls=files), [], events.put, client_id="x")
        with closing(link):
            link.open()
            event = events.get(timeout=LIMIT_S)
    assert isinstance(event, Down), event
    assert "not from the authority" in event.reason, event
    told = event.reason.replace(str(stage.directory), "").replace(str(port), "PORT")
    return Seen(happened="the device hangs up before it says a word", reported=f"the device's journal: {told}")


@row("expired", "a stolen board's certificate and card, a year and a half out of date", "m-expired")
def expired(stage: Stage) -> Seen:
    path, folder = f"{FARM}/m-expired", stage.directory / "expired"
    authority = FleetAuthority.open(stage.directory / "authority", clock=lambda: _LONG_AGO_S)
    papers = authority.issue("node", path, days=1)
    put("node", folder, papers)
    answer = knock(stage.brokers[FARM].port, context_with(stage, folder / "node.crt", folder / "node.key"))
    assert answer == "SSLV3_ALERT_CERTIFICATE_EXPIRED", answer
    rogue = stage.rogue()  # and where the broker is of no help, the card alone
    rogue.say(f"hfl/{FEDERATION}/{path}/@/stat/identity", f'{{"v":1,"card":"{papers.card}"}}')
    told = stage.note(FARM, "identity_refused", sender=path)
    assert "out of date" in told["reason"], told
    return Seen(
        happened=f"the broker ends the handshake: {answer}; the edge does not take the card",
        reported=f"mosquitto.log; the edge's journal: {told['reason']}",
    )


@row("revoked", "a board that was reported stolen: on the connection that stands, and on a new one", "m-revoked")
def revoked(stage: Stage) -> Seen:
    path = f"{FARM}/m-revoked"
    enemy = stage.enemy("m-revoked").join()
    stage.note(FARM, "joined", sender=path)
    stage.rehearsal.authority.revoke(path)
    broker = stage.brokers[FARM].conf_path.parent
    write_private(broker / "crl.pem", stage.rehearsal.authority.crl_pem.encode())
    write_private(stage.papers_dir(FARM) / "revoked", f"{stage.rehearsal.authority.revoked_text}\n".encode())
    stage.brokers[FARM].reload()
    stage.note(FARM, "revoked")
    enemy.send_parts(true_update(stage, enemy))
    receipt = enemy.receipt()
    assert not receipt.accepted
    assert "is revoked" in receipt.reason, receipt
    own = stage.papers_dir(path)
    answer = knock(stage.brokers[FARM].port, context_with(stage, own / "node.crt", own / "node.key"))
    assert answer == "SSLV3_ALERT_CERTIFICATE_REVOKED", answer
    told = stage.note(FARM, "refused", sender=path)["reason"]
    enemy.part()
    return Seen(
        happened=f"its update is refused on the connection that stands; a new one is not made: {answer}",
        reported=f"receipt to it and the edge's journal: {told}; mosquitto.log",
    )


@row("other's identity", "an own certificate, and the user name and client id of an honest device", "m-name")
def other_identity(stage: Stage) -> Seen:
    before = len(stage.notes(PI, "connected"))
    account = stage.account(f"{FARM}/m-name", FARM)
    assert account.tls is not None
    person = Person(account.port, PI, "guessed", tls=context_of(account.tls)).ready()
    try:
        answer = person.say(f"hfl/{FEDERATION}/{PI}/@/tele/decline", "{}")
        own = person.say(f"hfl/{FEDERATION}/{FARM}/m-name/@/stat/info", "{}")
    finally:
        person.leave()
    assert (answer, own) == ("Not authorized", "Success")
    assert len(stage.notes(PI, "connected")) == before
    return Seen(
        happened="the broker goes by the certificate, not by the name that is said: no right to the other's topics",
        reported=_ONLY_ITSELF,
    )


@row("other's session", "a stolen board connects under the session names of an honest device and the edge", "m-session")
def other_session(stage: Stage) -> Seen:
    before = {path: len(stage.notes(path, "disconnected")) for path in (PI, FARM)}
    account = stage.account(f"{FARM}/m-session", FARM)
    assert account.tls is not None
    thieves = []
    for name in (PI, FARM, f"{FARM}@a", account.session(PI), account.session(FARM)):
        thief = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)
        thief.tls_set_context(context_of(account.tls))
        thief.connect("127.0.0.1", account.port, clean_start=False)
        thief.loop_start()
        thieves.append(thief)
    stage.goes_on(5)
    for thief in thieves:
        thief.disconnect()
        thief.loop_stop()
    assert {path: len(stage.notes(path, "disconnected")) for path in (PI, FARM)} == before
    line = stage.said_by_broker(f"u'{FARM}/m-session'")
    return Seen(
        happened="it is let in as itself and ends nobody's connection: sessions have names that only their owners know",
        reported="mosquitto.log: the name, and behind it the true account" if line else "",
    )


@row("other's topics, write", "a stolen board says something on every topic that is not its own", "m-write")
def other_topics_write(stage: Stage) -> Seen:
    enemy = stage.enemy("m-write")
    json_topics = [
        f"{who}/@/{channel}"
        for who in (PI, FARM, "cloud", "cloud/farm-b")
        for channel in (
            "stat/state", "stat/round", "stat/identity", "stat/quarantine", "stat/lease", "tele/decline",
            "cmnd/receipt", "cmnd/assign", "cmnd/control",
        )
    ]  # fmt: skip
    json_topics += [f"{FARM}/m-write/@/cmnd/receipt", f"{FARM}/m-write/x/@/stat/state", f"{FARM}/@/stat/x/y"]
    binary_topics = [f"{who}/@/{channel}" for who in (PI, FARM, "cloud") for channel in ("up/0", "down/0", "key/0")]
    binary_topics += [f"{FARM}/m-write/@/down/0", f"{FARM}/m-write/@/key/0"]
    topics = [f"hfl/{FEDERATION}/{topic}" for topic in json_topics]
    topics += [f"hflb/{FEDERATION}/{topic}" for topic in binary_topics]
    topics += [f"hfl/other/{FARM}/m-write/@/stat/state", "x", "$SYS/broker/connection/x/state"]
    taken = {topic for topic in topics if enemy.say(topic, "{}") == "Success"}
    assert taken == set()
    enemy.leave()
    return Seen(
        happened=f"{len(topics)} topics tried, {len(topics)} times 'Not authorized'",
        reported=_ONLY_ITSELF,
    )


@row("other's topics, read", "a stolen board subscribes to everything, and to each other's topics by name", "m-read")
def other_topics_read(stage: Stage) -> Seen:
    wanted = [
        "#", "hfl/#", "hflb/#", f"hfl/{FEDERATION}/{PI}/@/cmnd/#", f"hfl/{FEDERATION}/{PI}/@/stat/#",
        f"hflb/{FEDERATION}/{PI}/@/up/#", f"hflb/{FEDERATION}/{FARM}/@/up/#", f"hfl/{FEDERATION}/{FARM}/@/cmnd/#",
        f"hfl/{FEDERATION}/cloud/@/stat/#", "$SYS/#",
    ]  # fmt: skip
    enemy = stage.enemy("m-read", *wanted)
    stage.goes_on(3)
    heard: set[str] = set()
    while not enemy.heard.empty():
        heard.add(enemy.heard.get().topic)
    enemy.leave()
    parents = (
        f"hfl/{FEDERATION}/{FARM}/@/stat/",
        f"hflb/{FEDERATION}/{FARM}/@/down/",
        f"hflb/{FEDERATION}/{FARM}/@/key/",
    )
    others = {topic for topic in heard if not topic.startswith((*parents, f"hfl/{FEDERATION}/{FARM}/m-read/"))}
    assert heard, "its parent's broadcast it may hear"
    assert others == set()
    return Seen(
        happened="in three rounds it heard its parent's broadcast, as any device may, and nothing else",
        reported="nowhere: a subscription without a right brings nothing",
    )
