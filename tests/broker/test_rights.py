"""Who may say and hear what, on real Mosquittos run on the rendered files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.sites import LIMIT_S, WITNESS, RunningSite, running_site

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    with running_site(tmp_path_factory.mktemp("site"), farm_a=["pi-1", "pi-2"], farm_b=["pi-1"]) as one:
        yield one


JSON, BINARY = "hfl/fed1", "hflb/fed1"
EVERYBODY = [
    ("cloud", "cloud"),
    ("farm-a", "cloud/farm-a"),
    ("farm-a", "cloud/farm-a/pi-1"),
    ("farm-b", "cloud/farm-b"),
    ("farm-b", "cloud/farm-b/pi-1"),
]


@pytest.mark.parametrize(("broker", "account"), EVERYBODY)
def test_every_node_says_its_own(site: RunningSite, broker: str, account: str) -> None:
    node = site.person(broker, account).ready()
    for topic in (
        f"{JSON}/{account}/@/stat/state",
        f"{JSON}/{account}/@/tele/decline",
        f"{BINARY}/{account}/@/up/0",
        f"{BINARY}/{account}/@/down/3p1",
        f"{BINARY}/{account}/@/key/0",
        f"{JSON}/{account}/some-child/@/cmnd/receipt",
        f"{JSON}/{account}/@/cmnd/control",
    ):
        assert node.say(topic, "mine") in ("Success", "No matching subscribers"), topic


@pytest.mark.parametrize(
    ("broker", "account", "topic"),
    [
        ("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-a/pi-2/@/up/0"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/pi-2/@/stat/state"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/pi-2/@/cmnd/receipt"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/@/stat/round"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-a/@/tele/decline"),
        ("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-a/@/down/0"),
        ("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-a/@/key/0"),
        ("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-a/@/up/0"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/@/stat/round"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON}/cloud/farm-b/pi-1/@/stat/state"),
        ("farm-a", "cloud/farm-a/pi-1", f"{BINARY}/cloud/farm-b/pi-1/@/up/0"),
        ("farm-a", "cloud/farm-a/pi-1", f"{JSON.replace('fed1', 'fed2')}/cloud/farm-a/pi-1/@/stat/state"),
        ("farm-a", "cloud/farm-a/pi-1", "anything/else"),
        ("farm-a", "cloud/farm-a", f"{BINARY}/cloud/farm-a/pi-1/@/up/0"),
        ("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-a/pi-1/@/stat/state"),
        ("farm-a", "cloud/farm-a", f"{JSON}/cloud/@/stat/round"),
        ("farm-a", "cloud/farm-a", f"{BINARY}/cloud/@/down/0"),
        ("farm-a", "cloud/farm-a", f"{BINARY}/cloud/@/key/0"),
        ("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-b/@/stat/round"),
        ("farm-a", "cloud/farm-a", f"{BINARY}/cloud/farm-b/@/up/0"),
        ("farm-a", "cloud/farm-a", f"{JSON}/cloud/farm-b/@/cmnd/receipt"),
        ("cloud", "cloud", f"{BINARY}/cloud/farm-a/@/up/0"),
        ("cloud", "cloud", f"{BINARY}/cloud/farm-a/@/down/0"),
        ("farm-a", "viewer", f"{JSON}/cloud/farm-a/@/stat/round"),
        ("cloud", "viewer", f"{JSON}/cloud/farm-a/@/cmnd/receipt"),
        ("cloud", "viewer", f"{JSON}/cloud/@/cmnd/control"),
        ("farm-a", "cloud/farm-a", f"{JSON}/cloud/@/cmnd/control"),
        ("cloud", "viewer", f"{BINARY}/cloud/@/down/0"),
        ("cloud", "viewer", f"{BINARY}/cloud/@/key/0"),
    ],
)
def test_a_wrong_word_is_refused(site: RunningSite, broker: str, account: str, topic: str) -> None:
    assert site.person(broker, account).ready().say(topic, "not mine") == "Not authorized"


@pytest.mark.parametrize(
    ("broker", "account", "why"),
    [
        ("farm-b", "cloud/farm-a/pi-1", "a device at another farm"),
        ("cloud", "cloud/farm-a/pi-1", "a device at the cloud"),
        ("cloud", "cloud/farm-a", "an edge at the cloud"),
        ("farm-a", "cloud", "the cloud at a farm"),
    ],
)
def test_an_account_opens_only_its_own_broker(site: RunningSite, broker: str, account: str, why: str) -> None:
    assert str(site.person(broker, account).answer.get(timeout=LIMIT_S)) == "Not authorized", why


def test_a_device_of_the_same_name_at_another_farm_has_another_password(site: RunningSite) -> None:
    assert site.password("cloud/farm-a/pi-1") != site.password("cloud/farm-b/pi-1")


def test_the_cloud_asks_itself_and_reads_what_it_says_of_itself(site: RunningSite) -> None:
    asking = site.person("cloud", "cloud", f"{JSON}/cloud/@/stat/+").ready()
    itself = site.person("cloud", "cloud", f"{JSON}/cloud/@/cmnd/+").ready()
    asking.say(f"{JSON}/cloud/@/cmnd/control", "pause")
    itself.hear(f"{JSON}/cloud/@/cmnd/control", "pause")
    itself.say(f"{JSON}/cloud/@/stat/state", "paused")
    asking.hear(f"{JSON}/cloud/@/stat/state", "paused")


def test_a_device_hears_its_parent_and_its_commands_and_no_sibling(site: RunningSite) -> None:
    device = site.person("farm-a", "cloud/farm-a/pi-1", "#").ready()
    sibling = site.person("farm-a", "cloud/farm-a/pi-2").ready()
    edge = site.person("farm-a", "cloud/farm-a").ready()
    sibling.say(f"{BINARY}/cloud/farm-a/pi-2/@/up/0", b"weights")
    sibling.say(f"{JSON}/cloud/farm-a/pi-2/@/stat/state", "private")
    edge.say(f"{BINARY}/cloud/farm-a/@/up/0", b"weights")
    edge.say(f"{JSON}/cloud/farm-a/pi-2/@/cmnd/receipt", "for pi-2")
    edge.say(f"{BINARY}/cloud/farm-a/@/down/0", b"model")
    edge.say(f"{BINARY}/cloud/farm-a/@/key/0", b"keyframe")
    edge.say(f"{JSON}/cloud/farm-a/@/stat/round", "call")
    edge.say(f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt", "last")
    heard = {one.topic for one in device.hear(f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt", "last") if not one.retain}
    assert heard == {
        f"{BINARY}/cloud/farm-a/@/down/0",
        f"{BINARY}/cloud/farm-a/@/key/0",
        f"{JSON}/cloud/farm-a/@/stat/round",
        f"{JSON}/cloud/farm-a/pi-1/@/cmnd/receipt",
    }


def test_the_edge_hears_its_devices_and_the_cloud(site: RunningSite) -> None:
    edge = site.person("farm-a", "cloud/farm-a", "#").ready()
    device = site.person("farm-a", "cloud/farm-a/pi-1").ready()
    device.say(f"{BINARY}/cloud/farm-a/pi-1/@/up/0", b"weights")
    edge.hear(f"{BINARY}/cloud/farm-a/pi-1/@/up/0", b"weights")
    site.person("cloud", "cloud").ready().say(f"{BINARY}/cloud/@/down/0", b"model")
    edge.hear(f"{BINARY}/cloud/@/down/0", b"model")
    site.person("cloud", "cloud").ready().say(f"{BINARY}/cloud/@/key/0", b"keyframe")
    edge.hear(f"{BINARY}/cloud/@/key/0", b"keyframe")


@pytest.mark.parametrize("broker", ["cloud", "farm-a", "farm-b"])
def test_a_viewer_who_asks_for_everything_never_pulls_weights(site: RunningSite, broker: str) -> None:
    viewer = site.person(broker, "viewer", "#", "$SYS/#").ready()
    witness = site.person(broker, WITNESS, "hflb/#").ready()
    weights = b"w" * 200_000
    for topic in (
        f"{BINARY}/cloud/@/down/0",
        f"{BINARY}/cloud/@/key/0",
        f"{BINARY}/cloud/farm-a/@/up/0",
        f"{BINARY}/cloud/farm-a/pi-1/@/up/0",
        f"{BINARY}/viewer/@/down/0",
    ):
        witness.say(topic, weights)
        witness.hear(topic, weights)
    # The same publisher at the same broker: what came before this has been dealt with.
    witness.say(f"{JSON}/cloud/@/stat/metrics", f'{{"seen_at":"{broker}"}}')
    heard = viewer.hear(f"{JSON}/cloud/@/stat/metrics", f'{{"seen_at":"{broker}"}}')
    assert {one.topic.partition("/")[0] for one in heard} <= {"hfl", "$SYS"}
    assert any(one.topic.startswith("$SYS/broker/") for one in heard)
