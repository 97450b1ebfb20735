"""From nothing to a locked federation: the fleet commands on real Mosquittos, and what becomes of who is revoked."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.site import Site, node_folder
from hfl_mqtt.fleet.papers import redraw, revoke, rotate
from hfl_mqtt.fleet.render import render
from hfl_mqtt.ops.brokers import CRL_FILE, secret_path
from hfl_mqtt.protocol.topics import Topic
from tests.broker.federations import speakers_of, still_there
from tests.broker.locked import LockedSite, locked_site, rendered
from tests.broker.processes import hfl, running, until
from tests.broker.sites import LIMIT_S, WITNESS, Person

pytestmark = pytest.mark.broker

JSON, BINARY = "hfl/fed1", "hflb/fed1"
PI_1, PI_2 = "cloud/farm-a/pi-1", "cloud/farm-a/pi-2"


# -------------------------------------------------------------- from nothing


def test_seven_commands_lead_from_nothing_to_a_model_of_twelve_locked_clients(tmp_path: Path) -> None:
    began_s = time.monotonic()
    orchard = tmp_path / "orchard"
    for words in (
        ["init", "orchard", "--cloud-host", "127.0.0.1"],
        *(["add", "farm", f"farm-{name}", "--devices", "4", "--dir", "orchard"] for name in "abc"),
        ["render", "--dir", "orchard"],
    ):
        done = hfl("fleet", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with running("fleet", "up", "--dir", orchard) as fleet:
        assert "4 brokers, 3 edges, 12 devices" in fleet.hear("Up: ")
        train = fleet.hear("Train: ").removeprefix("Train: hfl ").split()
        watch = fleet.hear("Watch: ").removeprefix("Watch: hfl ").split()
        fleet.hear("Ctrl-C")
        trained = hfl(*train)
        seconds = time.monotonic() - began_s
        assert trained.returncode == 0, trained.stderr
        assert "children=cloud/farm-a,cloud/farm-b,cloud/farm-c" in trained.stdout
        closed = [line for line in trained.stdout.splitlines() if "closed" in line and "kind=train" in line]
        assert len(closed) == 5
        assert all("accepted=3 asked=3" in line for line in closed)
        assert _journal_says(orchard, "closed", "accepted") == {4}
        # Signed, all of it: whoever spoke has shown by which card he is to be checked.
        assert _signers(orchard) == {*_NODES, "cloud"}
        assert all(_is_locked(port) for port in _ports(orchard))
        seen = json.loads(hfl(*watch, "--json").stdout)
        assert {row["path"] for row in seen["nodes"]} >= {*_NODES, "cloud"}
        assert hfl("fleet", "revoke", PI_1, "--yes", "--dir", orchard).returncode == 0
        assert fleet.hear("Rights have changed: the broker of cloud")
        assert hfl(*watch, "--once", "--json").returncode == 0
        assert hfl("fleet", "rotate", "viewer", "--yes", "--dir", orchard).returncode == 0
        assert fleet.hear("Rights have changed: the broker of cloud")
        until(lambda: hfl(*watch, "--once", "--json").returncode == 0, "the new password to be let in")
        processes = speakers_of(str(orchard))
        assert len(processes) > 8
        status, _ = fleet.end(signal.SIGINT)
    assert status == 130
    assert still_there([one for one in processes if one.pid != psutil.Process().pid], 5.0) == []
    print(f"from nothing to a trained model: {seconds:.1f} s")  # noqa: T201  (the figure is what is asked for)


_FARMS = [f"cloud/farm-{name}" for name in "abc"]
_NODES = [*_FARMS, *(f"{farm}/pi-{number}" for farm in _FARMS for number in range(1, 5))]


def _journal_says(orchard: Path, what: str, key: str) -> set[int]:
    """What the edges' journals say under a key of all notes of a kind."""
    files = [orchard / "local" / node_folder(farm) / "state" / "journal.jsonl" for farm in _FARMS]
    notes = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {note[key] for note in notes if note["event"] == what}


def _signers(orchard: Path) -> set[str]:
    """Who has a card on the brokers, as a viewer sees them over TLS."""
    password = secret_path(orchard, "viewer").read_text().strip()
    found = set()
    for conf in (orchard / "local" / "brokers").glob("*/mosquitto.conf"):
        port = _ports(orchard, conf)[1]
        tls = ssl.create_default_context(cafile=str(conf.parent / "ca.crt"))
        viewer = Person(port, "viewer", password, "hfl/orchard/#", tls=tls).ready()
        # All that is retained has come when the broker's own figures, asked for last, do.
        viewer.listen("$SYS/broker/version")
        heard = viewer.hear("$SYS/broker/version")
        found |= {Topic.parse(one.topic).path for one in heard if one.topic.endswith("/stat/identity")}
        viewer.leave()
    return found


def _ports(orchard: Path, conf: Path | None = None) -> list[int]:
    """The listeners of a broker, or of all."""
    confs = [conf] if conf is not None else (orchard / "local" / "brokers").glob("*/mosquitto.conf")
    lines = [line for each in confs for line in each.read_text().splitlines()]
    return [int(line.split()[1]) for line in lines if line.startswith("listener ")]


def _is_locked(port: int) -> bool:
    """Whether a listener takes no plain MQTT."""
    plain = Client(CallbackAPIVersion.VERSION2)
    try:
        plain.connect("127.0.0.1", port)
        while (ended := plain.loop(1.0)) == 0:
            if plain.is_connected():
                return False
        return ended != 0
    except OSError:
        return True


def test_a_fleet_that_is_up_is_left_alone_by_a_second_one_and_tells_what_ends(tmp_path: Path) -> None:
    home = rendered(tmp_path / "orchard", farm_a=["pi-1"])
    with running("fleet", "up", "--dir", home.folder) as fleet:
        assert "2 brokers, 1 edges, 1 devices" in fleet.hear("Up: ")
        fleet.hear("Ctrl-C")
        # "Up" is said when they are: they have told their state to the cloud's broker.
        before = {path: path.read_bytes() for path in home.local.rglob("mosquitto.conf")}
        second = hfl("fleet", "up", "--dir", home.folder)
        assert (second.returncode, second.stdout) == (2, "")
        assert "this fleet is up already" in " ".join(second.stderr.split())
        assert {path: path.read_bytes() for path in home.local.rglob("mosquitto.conf")} == before
        broker = _child(home.local / "brokers" / "farm-a")
        broker.kill()
        assert "the broker of cloud/farm-a has ended" in fleet.hear("the broker of cloud/farm-a")
        # It is no zombie, and what is rendered now still reaches the broker that is left.
        until(lambda: not broker.is_running(), "the dead broker to be seen off")
        assert hfl("fleet", "revoke", "cloud/farm-a", "--yes", "--dir", home.folder).returncode == 0
        assert "the broker of cloud read" in fleet.hear("Rights have changed: ")
        edge = _child(home.local / "cloud.farm-a" / "agent.yaml")
        edge.kill()
        fleet.hear("cloud/farm-a was killed by SIGKILL; the others go on")
        _child(home.local / "cloud.farm-a._devices" / "agent.yaml").kill()
        fleet.hear("the process of cloud/farm-a's devices was killed by SIGKILL; the others go on")
        assert not any("\\n" in line for line in fleet.lines)
        fleet.end(signal.SIGINT)
    with running("fleet", "up", "--dir", home.folder) as again:
        again.hear("Up: ")


def _child(named: Path) -> psutil.Process:
    """The process whose command line names this."""
    found = [one for one in speakers_of(str(named)) if one.pid != psutil.Process().pid]
    assert len(found) == 1, found
    return found[0]


# -------------------------------------------------------------- locked


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LockedSite]:
    with locked_site(tmp_path / "fleet", farm_a=["pi-1", "pi-2"], farm_b=["pi-1"]) as one:
        yield one


def test_what_is_retained_crosses_both_bridges_and_waits_for_who_comes_late(site: LockedSite) -> None:
    cloud = site.person("cloud", "cloud").ready()
    early = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/@/stat/round", f"{BINARY}/cloud/@/down/0").ready()
    cloud.say(f"{JSON}/cloud/@/stat/round", "call", retain=True)
    early.hear(f"{JSON}/cloud/@/stat/round", "call")
    cloud.say(f"{BINARY}/cloud/@/down/0", b"model", retain=True)
    early.hear(f"{BINARY}/cloud/@/down/0", b"model")
    late = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/@/stat/round", f"{BINARY}/cloud/@/down/0").ready()
    heard = {late.heard.get(timeout=LIMIT_S).topic for _ in range(2)}
    assert heard == {f"{JSON}/cloud/@/stat/round", f"{BINARY}/cloud/@/down/0"}


def test_the_cards_of_edges_and_cloud_and_who_is_in_quarantine_cross_the_bridge(site: LockedSite) -> None:
    cloud = site.person("cloud", "cloud", f"{JSON}/cloud/+/@/stat/#").ready()
    edge = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/@/stat/#").ready()
    cloud.say(f"{JSON}/cloud/@/stat/identity", "the cloud's card", retain=True)
    edge.hear(f"{JSON}/cloud/@/stat/identity", "the cloud's card")
    for name in ("identity", "quarantine"):
        edge.say(f"{JSON}/cloud/farm-a/@/stat/{name}", "the edge's", retain=True)
        cloud.hear(f"{JSON}/cloud/farm-a/@/stat/{name}", "the edge's")


def test_a_farms_brokers_answer_the_doctor_without_any_node(site: LockedSite) -> None:
    edge = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-a/@/cmnd/#").ready()
    edge.say(f"{JSON}/cloud/farm-a/@/stat/doctor/echo", "up by data, down by ctl")
    edge.hear(f"{JSON}/cloud/farm-a/@/cmnd/doctor/echo", "up by data, down by ctl")


def test_a_certificate_opens_the_broker_of_its_fleet_and_gives_rights_only_at_its_own(site: LockedSite) -> None:
    # Unlike a password, a certificate of the fleet is good at every broker; there it has no rights.
    stranger = Person(site.places["farm-b"].place.port, PI_1, None, tls=site.context(site.fleet.config(PI_1).parent))
    stranger.ready()
    assert stranger.say(f"{JSON}/{PI_1}/@/stat/state", "{}") == "Not authorized"
    stranger.leave()


def test_who_is_revoked_loses_all_rights_at_once_and_comes_in_no_more(site: LockedSite) -> None:
    stolen, other = site.person("farm-a", PI_1).ready(), site.person("farm-a", PI_2).ready()
    assert stolen.say(f"{BINARY}/{PI_1}/@/up/0", "mine") in ("Success", "No matching subscribers")
    revoke(site.home, PI_1)
    render(site.home, confirm=lambda _: True)
    deploy(site, "farm-a")
    assert stolen.say(f"{BINARY}/{PI_1}/@/up/0", "mine") == "Not authorized"
    assert other.say(f"{BINARY}/{PI_2}/@/up/0", "mine") in ("Success", "No matching subscribers")
    assert not lets_in(site, "farm-a", PI_1)
    assert lets_in(site, "farm-a", PI_2)


def test_a_list_that_was_damaged_on_its_way_opens_the_door_and_gives_no_rights(site: LockedSite) -> None:
    revoke(site.home, PI_1)
    render(site.home, confirm=lambda _: True)
    (site.home.broker("farm-a") / CRL_FILE).write_text("half a list")
    deploy(site, "farm-a")
    # Mosquitto 2.0.11 goes on without any list; that is why the rights are taken, too.
    stolen = site.person("farm-a", PI_1, "#").ready()
    assert stolen.say(f"{BINARY}/{PI_1}/@/up/0", "mine") == "Not authorized"
    edge = site.person("farm-a", "cloud/farm-a").ready()
    edge.say(f"{JSON}/cloud/farm-a/@/stat/round", "call", retain=True)
    stolen.listen(f"{JSON}/cloud/farm-a/@/stat/#")
    assert stolen.say(f"{JSON}/{PI_1}/@/stat/state", "{}") == "Not authorized"
    assert stolen.heard.empty()


def test_a_farms_stolen_broker_is_cut_off_from_the_cloud(site: LockedSite) -> None:
    bridge = site.person("cloud", "_bridge/cloud/farm-a").ready()
    revoke(site.home, "cloud/farm-a")
    render(site.home, confirm=lambda _: True)
    deploy(site, "cloud")
    assert bridge.say(f"{BINARY}/cloud/farm-a/@/up/0", "mine") == "Not authorized"
    assert site.person("cloud", "_bridge/cloud/farm-b").ready().say(f"{BINARY}/cloud/farm-b/@/up/0", "mine") in (
        "Success",
        "No matching subscribers",
    )


def test_new_papers_are_good_and_the_old_ones_too_until_they_are_revoked(site: LockedSite) -> None:
    old = site.context(site.fleet.config(PI_1).parent)
    rotate(site.home, PI_1, days=30, confirm=lambda _: True)
    render(site.home, confirm=lambda _: True)
    new = site.context(site.home.node(PI_1))
    assert is_let_in(site, "farm-a", old)
    assert is_let_in(site, "farm-a", new)
    assert len(revoke(site.home, PI_1, keep_newest=True)) == 1
    render(site.home, confirm=lambda _: True)
    deploy(site, "farm-a")
    assert not is_let_in(site, "farm-a", old)
    assert is_let_in(site, "farm-a", new)


def test_people_have_a_password_and_no_way_in_as_a_node(site: LockedSite) -> None:
    place = site.places["farm-a"].place
    assert place.viewer_port is not None
    tls = ssl.create_default_context(cafile=str(site.home.broker("cloud") / "ca.crt"))
    password = secret_path(site.home.folder, "viewer").read_text().strip()
    for account in ("cloud/farm-a", PI_1, "_bridge/cloud/farm-a"):
        one = Person(place.viewer_port, account, password, tls=tls)
        assert str(one.answer.get(timeout=LIMIT_S)) == "Not authorized"
        one.leave()


def test_a_rotated_password_opens_every_broker_that_has_read_it_and_the_old_one_none(site: LockedSite) -> None:
    old = secret_path(site.home.folder, "viewer").read_text().strip()
    before, device = site.person("farm-a", "viewer").ready(), site.person("farm-a", PI_1).ready()
    redraw(site.home, "viewer", confirm=lambda _: True)
    render(site.home, confirm=lambda _: True)
    new = secret_path(site.home.folder, "viewer").read_text().strip()
    assert (answer_to(site, "farm-a", old), answer_to(site, "farm-a", new)) == ("Success", "Not authorized")
    deploy(site, "farm-a")
    assert (answer_to(site, "farm-a", old), answer_to(site, "farm-a", new)) == ("Not authorized", "Success")
    # A connection that stood is ended, and comes in no more; all others stand.
    assert str(before.answer.get(timeout=LIMIT_S)) == "Not authorized"
    assert device.say(f"{BINARY}/{PI_1}/@/up/0", "mine") in ("Success", "No matching subscribers")
    assert device.answer.empty()
    # The other broker has yet to be told.
    assert answer_to(site, "cloud", old) == "Success"


def answer_to(site: LockedSite, broker: str, password: str) -> str:
    """What a broker says to `viewer` with this password."""
    port = site.places[broker].place.viewer_port
    assert port is not None
    tls = ssl.create_default_context(cafile=str(site.home.broker("cloud") / "ca.crt"))
    one = Person(port, "viewer", password, tls=tls)
    try:
        return str(one.answer.get(timeout=LIMIT_S))
    finally:
        one.leave()


def test_a_browser_reaches_the_cloud_through_tls(tmp_path: Path) -> None:
    edit = ("  host: 127.0.0.1\n", "  host: 127.0.0.1\n  websockets_port: 9001\n")
    with locked_site(tmp_path / "fleet", edit, farm_a=["pi-1"]) as site:
        port = site.places["cloud"].place.websockets_port
        assert port is not None
        browser = Client(CallbackAPIVersion.VERSION2, transport="websockets")
        browser.tls_set_context(ssl.create_default_context(cafile=str(site.home.broker("cloud") / "ca.crt")))
        browser.username_pw_set("viewer", secret_path(site.home.folder, "viewer").read_text().strip())
        browser.connect("127.0.0.1", port)
        browser.loop_start()
        try:
            until(browser.is_connected, "the browser to be let in")
        finally:
            browser.disconnect()
            browser.loop_stop()


def test_what_sensors_say_is_read_by_the_devices_of_their_farm_and_leaves_it_nowhere(tmp_path: Path) -> None:
    edit = ("- name: farm-a\n", "- name: farm-a\n    sensors: [sensors/#]\n    sensor_accounts: [field-1]\n")
    with locked_site(tmp_path / "fleet", edit, farm_a=["pi-1"], farm_b=["pi-1"]) as site:
        cloud = site.person("cloud", WITNESS, "#").ready()
        device = site.person("farm-a", PI_1, "sensors/+/soil").ready()
        edge = site.person("farm-a", "cloud/farm-a", "#").ready()
        sensor = site.person("farm-a", "field-1", "#").ready()
        assert sensor.say("sensors/1/soil", "0.21") == "Success"
        device.hear("sensors/1/soil", "0.21")
        assert sensor.say(f"{JSON}/{PI_1}/@/stat/state", "{}") == "Not authorized"
        assert device.say("sensors/1/soil", "forged") == "Not authorized"
        # Through both bridges, later: what was to cross before these has crossed.
        for topic in (f"{JSON}/cloud/farm-a/@/tele/decline", f"{BINARY}/cloud/farm-a/@/up/0"):
            edge.say(topic, "the last")
            assert not any("sensors" in one.topic for one in cloud.hear(topic, "the last"))
        assert edge.heard.empty()
        assert sensor.heard.empty()


def test_every_rendered_agent_is_one_that_its_program_takes(site: LockedSite) -> None:
    found = sorted(site.home.folder.glob("nodes/*/agent.yaml"))
    assert [file.parent.name for file in found] == sorted(
        node_folder(path) for broker in site.places.values() for path in broker.nodes
    )
    for file in found:
        assert not isinstance(load_any(file), Site)


def deploy(site: LockedSite, broker: str) -> None:
    """Carry what says who may come in to a broker's machine, and reload it."""
    rendered, live = site.home.broker(broker), site.fleet.folder / "brokers" / broker
    # In place whole: a list that is half there would let everybody in.
    shutil.copy2(rendered / CRL_FILE, live / "new")
    (live / "new").replace(live / CRL_FILE)
    for name, mark in (("acl", "user witness"), ("passwd", "witness:")):
        witness = "".join((live / name).read_text().partition(mark)[1:])
        (live / name).write_text((rendered / name).read_text() + witness)
    log = live / "mosquitto.log"
    before = log.read_text().count("Reloading config")
    site.fleet.brokers[site.places[broker].path].reload()
    until(lambda: log.read_text().count("Reloading config") > before, "the broker to read its files again")


def lets_in(site: LockedSite, broker: str, account: str) -> bool:
    return is_let_in(site, broker, site.context(site.fleet.config(account).parent))


def is_let_in(site: LockedSite, broker: str, tls: ssl.SSLContext) -> bool:
    """Whether a broker lets somebody with these papers in, rather than end the connection."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(tls)
    try:
        client.connect("127.0.0.1", site.places[broker].place.port)
        end_s = time.monotonic() + LIMIT_S
        while not client.is_connected():
            # With TLS 1.3 the refusal comes behind the client's own handshake, as the connection's end.
            if client.loop(0.1) != 0:
                return False
            assert time.monotonic() < end_s
        return True
    except OSError:
        return False
    finally:
        client.disconnect()
