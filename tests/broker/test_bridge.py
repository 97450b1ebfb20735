"""What crosses the bridges between real Mosquittos, what does not, and what an outage does to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hfl_mqtt.config.site import Site
from hfl_mqtt.ops.brokers import Layout, render_to, secret_path
from hfl_mqtt.ops.mosquitto import Mosquitto, free_ports
from tests.broker.sites import WITNESS, Person, RunningSite, running_site

pytestmark = pytest.mark.broker

JSON, BINARY = "hfl/fed1", "hflb/fed1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    with running_site(tmp_path_factory.mktemp("site"), farm_a=["pi-1", "pi-2"], farm_b=["pi-1"]) as one:
        yield one


def test_a_clients_update_reaches_its_edge_and_never_leaves_its_farm(site: RunningSite) -> None:
    cloud = site.person("cloud", WITNESS, "hflb/#").ready()
    edge = site.person("farm-a", "cloud/farm-a", f"{BINARY}/cloud/farm-a/+/@/up/#").ready()
    client = site.person("farm-a", "cloud/farm-a/pi-1").ready()
    client.say(f"{BINARY}/cloud/farm-a/pi-1/@/up/0", b"part of a client")
    edge.hear(f"{BINARY}/cloud/farm-a/pi-1/@/up/0", b"part of a client")
    # Through the same bridge, later: had the client's part crossed, the cloud would have heard it before this one.
    edge.say(f"{BINARY}/cloud/farm-a/@/up/0", b"barrier")
    heard = [one.topic for one in cloud.hear(f"{BINARY}/cloud/farm-a/@/up/0", b"barrier") if not one.retain]
    assert heard == [f"{BINARY}/cloud/farm-a/@/up/0"]


def test_an_edges_update_reaches_the_cloud_and_no_other_farm(site: RunningSite) -> None:
    cloud = site.person("cloud", "cloud", f"{BINARY}/cloud/+/@/up/#").ready()
    other = site.person("farm-b", WITNESS, "hflb/#").ready()
    edge = site.person("farm-a", "cloud/farm-a").ready()
    edge.say(f"{BINARY}/cloud/farm-a/@/up/1", b"an edge's part")
    cloud.hear(f"{BINARY}/cloud/farm-a/@/up/1", b"an edge's part")
    cloud.say(f"{BINARY}/cloud/@/down/7", b"barrier")
    heard = [one.topic for one in other.hear(f"{BINARY}/cloud/@/down/7", b"barrier") if not one.retain]
    assert heard == [f"{BINARY}/cloud/@/down/7"]


def test_an_edges_model_for_its_devices_stays_at_its_farm(site: RunningSite) -> None:
    cloud = site.person("cloud", WITNESS, "hflb/#").ready()
    device = site.person("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-a/@/down/+").ready()
    edge = site.person("farm-a", "cloud/farm-a").ready()
    edge.say(f"{BINARY}/cloud/farm-a/@/key/0", b"the farm's keyframe", retain=True)
    edge.say(f"{BINARY}/cloud/farm-a/@/down/0", b"the farm's model", retain=True)
    device.hear(f"{BINARY}/cloud/farm-a/@/down/0", b"the farm's model")
    edge.say(f"{BINARY}/cloud/farm-a/@/up/2", b"barrier")
    heard = [one.topic for one in cloud.hear(f"{BINARY}/cloud/farm-a/@/up/2", b"barrier") if not one.retain]
    assert heard == [f"{BINARY}/cloud/farm-a/@/up/2"]


def test_the_clouds_call_and_model_reach_every_farm(site: RunningSite) -> None:
    filters = (f"{JSON}/cloud/@/stat/round", f"{BINARY}/cloud/@/down/+")
    edges = [site.person(farm, f"cloud/{farm}", *filters).ready() for farm in ("farm-a", "farm-b")]
    cloud = site.person("cloud", "cloud").ready()
    cloud.say(f"{JSON}/cloud/@/stat/round", "round 1", retain=True)
    cloud.say(f"{BINARY}/cloud/@/down/0", b"m" * 256 * 1024, retain=True)
    for edge in edges:
        heard = {edge.heard.get(timeout=20).topic, edge.heard.get(timeout=20).topic}
        while f"{BINARY}/cloud/@/down/0" not in heard or f"{JSON}/cloud/@/stat/round" not in heard:
            heard.add(edge.heard.get(timeout=20).topic)


def test_a_late_edge_finds_the_clouds_call_retained_at_its_own_broker(site: RunningSite) -> None:
    call = f"{JSON}/cloud/@/stat/round"
    cloud = site.person("cloud", "cloud").ready()
    early = site.person("farm-a", WITNESS, call).ready()
    cloud.say(call, "version 3", retain=True)
    early.hear(call, "version 3")
    late = site.person("farm-a", "cloud/farm-a", call).ready()
    assert late.hear(call, "version 3")[-1].retain


def test_a_late_edge_finds_keyframe_and_deltas_retained_at_its_own_broker(site: RunningSite) -> None:
    slots = [
        f"{BINARY}/cloud/@/key/0",
        f"{BINARY}/cloud/@/key/1",
        f"{BINARY}/cloud/@/down/4",
        f"{BINARY}/cloud/@/down/4p1",
    ]
    cloud = site.person("cloud", "cloud").ready()
    early = site.person("farm-a", WITNESS, *slots).ready()
    for slot in slots:
        cloud.say(slot, f"part of {slot}", retain=True)
        early.hear(slot, f"part of {slot}")
    late = site.person("farm-a", "cloud/farm-a", *slots).ready()
    heard = {one.topic: (one.payload.decode(), one.retain) for one in (late.heard.get(timeout=20) for _ in slots)}
    assert heard == {slot: (f"part of {slot}", True) for slot in slots}


def test_what_an_edge_and_its_devices_say_to_each_other_stays_at_the_farm(site: RunningSite) -> None:
    cloud = site.person("cloud", WITNESS, "hfl/#").ready()
    edge = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-a/+/@/tele/+").ready()
    device = site.person("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/pi-1/@/cmnd/+").ready()
    edge.say(f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt", "accepted")
    device.hear(f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt", "accepted")
    device.say(f"{JSON}/cloud/farm-a/pi-1/@/tele/decline", "no data")
    edge.hear(f"{JSON}/cloud/farm-a/pi-1/@/tele/decline", "no data")
    device.say(f"{JSON}/cloud/farm-a/pi-1/@/stat/metrics", '{"loss":1}')
    device.say(f"{JSON}/cloud/farm-a/pi-1/@/stat/info", '{"role":"client"}')
    edge.say(f"{JSON}/cloud/farm-a/@/tele/decline", "barrier")
    # The same bridge, later: what was to cross before this has crossed.
    heard = [one.topic for one in cloud.hear(f"{JSON}/cloud/farm-a/@/tele/decline", "barrier") if not one.retain]
    assert heard == [f"{JSON}/cloud/farm-a/pi-1/@/stat/info", f"{JSON}/cloud/farm-a/@/tele/decline"]


def test_a_command_reaches_its_farm_only(site: RunningSite) -> None:
    edge = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-a/@/cmnd/+").ready()
    other = site.person("farm-b", WITNESS, "hfl/#").ready()
    cloud = site.person("cloud", "cloud").ready()
    cloud.say(f"{JSON}/cloud/farm-a/@/cmnd/receipt", "accepted")
    edge.hear(f"{JSON}/cloud/farm-a/@/cmnd/receipt", "accepted")
    cloud.say(f"{JSON}/cloud/farm-b/@/cmnd/receipt", "barrier")
    heard = [one.topic for one in other.hear(f"{JSON}/cloud/farm-b/@/cmnd/receipt", "barrier") if not one.retain]
    assert heard == [f"{JSON}/cloud/farm-b/@/cmnd/receipt"]


def test_commands_arrive_once_and_in_their_order(site: RunningSite) -> None:
    edge = site.person("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-a/@/cmnd/+").ready()
    cloud = site.person("cloud", "cloud").ready()
    for count in range(20):
        cloud.say(f"{JSON}/cloud/farm-a/@/cmnd/resend", f"want {count}")
    heard = [one.payload.decode() for one in edge.hear(f"{JSON}/cloud/farm-a/@/cmnd/resend", "want 19")]
    assert heard == [f"want {count}" for count in range(20)]


def test_a_devices_state_shows_at_the_cloud_and_its_will_after_it_was_killed(site: RunningSite) -> None:
    topic = f"{JSON}/cloud/farm-a/pi-2/@/stat/state"
    viewer = site.person("cloud", "viewer", topic).ready()
    device = site.person("farm-a", "cloud/farm-a/pi-2", will=topic).ready()
    device.say(topic, '{"state":"ready"}', retain=True)
    viewer.hear(topic, '{"state":"ready"}')
    device.vanish()
    viewer.hear(topic, '{"state":"lost"}')
    later = site.person("cloud", WITNESS, topic).ready()
    assert later.hear(topic, '{"state":"lost"}')[-1].retain


def test_a_part_as_large_as_they_come_crosses(site: RunningSite) -> None:
    cloud = site.person("cloud", "cloud", f"{BINARY}/cloud/+/@/up/#").ready()
    edge = site.person("farm-a", "cloud/farm-a").ready()
    part = bytes(266_240)
    assert edge.say(f"{BINARY}/cloud/farm-a/@/up/3", part) == "Success"
    cloud.hear(f"{BINARY}/cloud/farm-a/@/up/3", part)


def test_the_largest_packet_a_broker_takes_does_not_stop_its_bridge(site: RunningSite) -> None:
    cloud = site.person("cloud", "cloud", f"{BINARY}/cloud/+/@/up/#").ready()
    edge = site.person("farm-a", "cloud/farm-a").ready()
    topic = f"{BINARY}/cloud/farm-a/@/up/3"
    # Fixed header 1 + 3, topic 2 + n, packet id 2, no properties 1: a packet of exactly `max_packet_size`.
    largest = 1_000_000 - 9 - len(topic)
    assert edge.say(topic, bytes(largest)) == "Success"
    edge.say(topic, b"behind it")
    assert [len(one.payload) for one in cloud.hear(topic, b"behind it")] == [largest, len(b"behind it")]


def test_what_was_said_while_the_link_was_cut_arrives_after_it_both_ways(site: RunningSite) -> None:
    up, down = f"{BINARY}/cloud/farm-a/@/up/0", f"{JSON}/cloud/farm-a/@/cmnd/receipt"
    cloud = site.person("cloud", "cloud", up).ready()
    edge = site.person("farm-a", "cloud/farm-a", down).ready()
    site.relays["farm-a"].cut()
    parts = [f"part {count}".encode() for count in range(50)]
    for part in parts:
        assert edge.say(up, part) == "Success"
    # Not answered as unheard: the bridge's own session still subscribes at the cloud.
    assert cloud.say(down, "said meanwhile") == "Success"
    site.relays["farm-a"].restore()
    heard = [one.payload for one in cloud.hear(up, parts[-1]) if one.topic == up]
    assert set(parts) <= set(heard)
    edge.hear(down, "said meanwhile")


def test_after_a_cut_the_newest_call_and_model_arrive_and_no_older_ones(site: RunningSite) -> None:
    call, model = f"{JSON}/cloud/@/stat/round", f"{BINARY}/cloud/@/down/0"
    cloud = site.person("cloud", "cloud").ready()
    edge = site.person("farm-a", "cloud/farm-a", call, model).ready()
    site.relays["farm-a"].cut()
    for number in range(20):
        cloud.say(model, f"model {number}", retain=True)
        cloud.say(call, f"call {number}", retain=True)
    site.relays["farm-a"].restore()
    # Two connections, so in either order.
    heard = edge.hear(call, "call 19")
    if "model 19" not in {one.payload.decode() for one in heard}:
        heard += edge.hear(model, "model 19")
    said = {one.payload.decode() for one in heard}
    assert {"call 19", "model 19"} <= said
    assert not said & {f"{what} {number}" for what in ("call", "model") for number in range(19)}


def test_the_cloud_restarts_and_the_farms_backlog_finds_the_aggregator_again(site: RunningSite) -> None:
    up = f"{BINARY}/cloud/farm-b/@/up/0"
    cloud = site.person("cloud", "cloud", up, is_kept=True).ready()
    edge = site.person("farm-b", "cloud/farm-b").ready()
    edge.say(up, b"before")
    cloud.hear(up, b"before")
    site.brokers["cloud"].stop()
    for count in range(20):
        edge.say(up, f"while away {count}".encode())
    site.brokers["cloud"].start()
    heard = {one.payload for one in cloud.hear(up, b"while away 19")}
    assert {f"while away {count}".encode() for count in range(20)} <= heard


def test_in_a_chain_of_three_brokers_a_will_goes_up_two_hops_and_a_model_down_one(tmp_path: Path) -> None:
    ports = dict(zip(("cloud", "north", "north-farm-a"), free_ports(3), strict=True))
    here = {"host": "127.0.0.1", "bind": "127.0.0.1"}
    farm = {"name": "farm-a", "port": ports["north-farm-a"], "devices": ["pi-1"], **here}
    north = {"name": "north", "port": ports["north"], "farms": [farm], **here}
    tree = {"federation": "fed1", "cloud": {"port": ports["cloud"], **here}, "farms": [north]}
    render_to(Site.model_validate(tree), tmp_path, Layout.beside(tmp_path))
    with ExitStack() as stack:
        for name, port in ports.items():
            stack.enter_context(Mosquitto(tmp_path / name / "mosquitto.conf", port))

        def person(broker: str, account: str, *filters: str, will: str | None = None) -> Person:
            password = secret_path(tmp_path, account).read_text().strip()
            one = Person(ports[broker], account, password, *filters, will=will).ready()
            stack.callback(one.leave)
            return one

        state = f"{JSON}/cloud/north/farm-a/pi-1/@/stat/state"
        viewer = person("cloud", "viewer", f"{JSON}/cloud/north/#")
        device = person("north-farm-a", "cloud/north/farm-a/pi-1", will=state)
        device.say(state, '{"state":"ready"}', retain=True)
        viewer.hear(state, '{"state":"ready"}')
        device.vanish()
        viewer.hear(state, '{"state":"lost"}')
        # What a farm says to its region, and measures, is for the region, and for nobody above.
        farm_edge = person("north-farm-a", "cloud/north/farm-a")
        farm_edge.say(f"{JSON}/cloud/north/farm-a/@/tele/decline", "for the region")
        farm_edge.say(f"{JSON}/cloud/north/farm-a/@/stat/metrics", '{"in":3}')
        farm_edge.say(f"{JSON}/cloud/north/farm-a/@/stat/info", '{"role":"edge"}')
        heard = [one.topic for one in viewer.hear(f"{JSON}/cloud/north/farm-a/@/stat/info", '{"role":"edge"}')]
        assert heard == [f"{JSON}/cloud/north/farm-a/@/stat/info"]

        edge = person("north-farm-a", "cloud/north/farm-a", "hflb/#")
        person("cloud", "cloud").say(f"{BINARY}/cloud/@/down/0", b"for regions", retain=True)
        region = person("north", "cloud/north", "hflb/#")
        region.hear(f"{BINARY}/cloud/@/down/0", b"for regions")
        region.say(f"{BINARY}/cloud/north/@/down/0", b"for farms", retain=True)
        heard = [one.topic for one in edge.hear(f"{BINARY}/cloud/north/@/down/0", b"for farms")]
        assert heard == [f"{BINARY}/cloud/north/@/down/0"]
        edge.say(f"{BINARY}/cloud/north/farm-a/@/up/0", b"from a farm")
        region.hear(f"{BINARY}/cloud/north/farm-a/@/up/0", b"from a farm")
