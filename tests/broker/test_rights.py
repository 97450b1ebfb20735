"""Who may say and hear what, on real Mosquittos run on the rendered files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.locked import LockedSite, locked_site
from tests.broker.sites import LIMIT_S, WITNESS, RunningSite, running_site

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    with running_site(tmp_path_factory.mktemp("site"), farm_a=["pi-1", "pi-2"], farm_b=["pi-1"]) as one:
        yield one


Site = RunningSite | LockedSite
JSON, BINARY = "hfl/fed1", "hflb/fed1"
#: Every node of the site, a sibling that is not in it, and one beyond the farm's own devices.
NODES = [
    "cloud",
    "cloud/farm-a",
    "cloud/farm-a/pi-1",
    "cloud/farm-a/pi-2",
    "cloud/farm-a/pi-1/below",
    "cloud/farm-b",
    "cloud/farm-b/pi-1",
    "cloud/farm-c",
    "viewer",
]
SAID = ["state", "info", "metrics", "identity"]
TOLD = ["update", "decline", "resend", "moving"]
ASKED = ["receipt", "resend", "assign", "quarantine"]
JSON_NAMES = [
    *(f"stat/{name}" for name in (*SAID, "round", "quarantine", "lease", "doctor/try", "doctor/echo")),
    *(f"tele/{name}" for name in (*TOLD, "doctor/try")),
    *(f"cmnd/{name}" for name in (*ASKED, "control", "doctor/try", "doctor/part", "doctor/echo")),
    # Nobody's: a name more is a message more that a broker keeps, and the last would cross bridges as a node's state.
    *("stat/model", "stat/x/y", "tele/join", "cmnd/x", "stat/x/@/stat/state"),
]
BINARY_NAMES = [
    *(f"up/{name}" for name in ("0", "3", "doctor/try", "doctor/part")),
    *(f"{channel}/{name}" for channel in ("down", "key") for name in ("0", "3p1", "doctor/try")),
    *("up/4", "up/x/y", "down/x/y", "key/x/y"),
]
TOPICS = [
    *(f"{JSON}/{node}/@/{name}" for node in NODES for name in JSON_NAMES),
    *(f"{BINARY}/{node}/@/{name}" for node in NODES for name in BINARY_NAMES),
    *(f"$SYS/broker/connection/_bridge/{node}/ctl/state" for node in NODES),
    "hfl/fed2/cloud/farm-a/pi-1/@/stat/state",
    "hflb/fed2/cloud/farm-a/pi-1/@/up/0",
    "hfl/fed1",
    "sensors/field-1/moisture",
    "$SYS/broker/uptime",
]
ACCOUNTS = [
    ("cloud", "cloud"),
    ("cloud", "_bridge/cloud/farm-a"),
    ("cloud", "_bridge/cloud/farm-b"),
    ("cloud", "viewer"),
    ("farm-a", "cloud/farm-a"),
    ("farm-a", "cloud/farm-a/pi-1"),
    ("farm-a", "cloud/farm-a/pi-2"),
    ("farm-a", "viewer"),
    ("farm-b", "cloud/farm-b"),
    ("farm-b", "cloud/farm-b/pi-1"),
    ("farm-b", "viewer"),
]


def channels(path: str, *names: str) -> list[str]:
    """What begins so is granted: `own/@/stat/`."""
    return [f"{BINARY if name in ('up', 'down', 'key') else JSON}/{path}/@/{name}/" for name in names]


def named(path: str, channel: str, *names: str) -> list[str]:
    """What is granted is just that: `own/@/stat/state`."""
    return [f"{one}{name}" for one in channels(path, channel) for name in names]


def own_word(path: str) -> list[str]:
    """What every node but the cloud says."""
    told = [*named(path, "tele", *TOLD, "doctor/try"), *named(path, "up", "0", "3", "doctor/try")]
    return [*named(path, "stat", *SAID, "doctor/try"), *told]


def broadcast(path: str) -> list[str]:
    """What an aggregator says besides."""
    slots = [named(path, channel, "0", "3p1", "doctor/try") for channel in ("down", "key")]
    return [*named(path, "stat", "round", "quarantine", "lease"), *slots[0], *slots[1]]


def grants(account: str) -> tuple[list[str], list[str]]:
    """What an account may write, by name, and read, by beginning: said here once more, not taken from the package."""
    children = [node for node in NODES if node.rpartition("/")[0] == account]
    below = [one for child in children for one in named(child, "cmnd", *ASKED, "doctor/try", "doctor/part")]
    heard = [one for child in children for one in channels(child, "stat", "tele", "up")]
    match account.split("/"):
        case ["viewer"]:
            return [], ["hfl/", "$SYS/"]
        case ["_bridge", "cloud", farm]:
            path = f"cloud/{farm}"
            own = [*named(path, "stat", *SAID, "quarantine"), *named(path, "tele", *TOLD), *named(path, "up", "0", "3")]
            own += [
                one for node in NODES if node.startswith(f"{path}/") for one in named(node, "stat", "state", "info")
            ]
            own += named(path, "cmnd", "doctor/echo")
            # To a pattern with `+` this is a node further down. Nobody at the farm can say it, see the device's names.
            own += [f"{JSON}/{node}/@/stat/x/@/stat/state" for node in NODES if f"{node}/".startswith(f"{path}/")]
            said = [f"{JSON}/cloud/@/stat/{name}" for name in ("round", "state", "identity")]
            return own, [*said, *channels("cloud", "down", "key"), *channels(path, "cmnd")]
        case ["cloud"]:
            own = [
                *named("cloud", "stat", *SAID, "doctor/try"),
                *named("cloud", "cmnd", "control"),
                *broadcast("cloud"),
            ]
            return [*own, *below], [
                *channels("cloud", "stat", "cmnd"),
                *heard,
            ]
        case ["cloud", _farm]:
            told = channels("cloud", "stat", "down", "key")
            bridge = f"$SYS/broker/connection/_bridge/{account}/ctl/state"
            own = [*own_word(account), *broadcast(account), *named(account, "stat", "doctor/echo")]
            return [*own, *below], [*channels(account, "stat", "cmnd"), *told, *heard, bridge]
        case ["cloud", farm, _device]:
            return [*own_word(account), *named(account, "up", "doctor/part")], [
                *channels(account, "cmnd"),
                *channels(f"cloud/{farm}", "stat", "down", "key"),
            ]
    raise AssertionError(account)


def granted(topics: list[str], beginnings: list[str]) -> set[str]:
    return {topic for topic in topics if any(topic.startswith(one) for one in beginnings)}


@pytest.fixture(scope="module", params=["passwords", "mtls"])
def any_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both profiles: their rights are the same."""
    running = running_site if request.param == "passwords" else locked_site
    with running(tmp_path_factory.mktemp("any"), farm_a=["pi-1", "pi-2"], farm_b=["pi-1"]) as one:
        yield one


@pytest.mark.parametrize(("broker", "account"), ACCOUNTS)
def test_an_account_writes_what_it_may_and_nothing_else(any_site: Site, broker: str, account: str) -> None:
    one = any_site.person(broker, account).ready()
    answers = {topic: one.say(topic, "{}") for topic in TOPICS}
    taken = {topic for topic, answer in answers.items() if answer in ("Success", "No matching subscribers")}
    assert taken == {topic for topic in TOPICS if topic in grants(account)[0]}
    assert {answers[topic] for topic in TOPICS if topic not in taken} == {"Not authorized"}


@pytest.mark.parametrize(("broker", "account"), ACCOUNTS)
def test_an_account_that_asks_for_everything_hears_what_it_may_and_nothing_else(
    any_site: Site, broker: str, account: str
) -> None:
    one = any_site.person(broker, account, "#", "$SYS/#").ready()
    witness = any_site.person(broker, WITNESS).ready()
    # Below $SYS nobody speaks but the broker.
    said = [topic for topic in TOPICS if not topic.startswith("$SYS/")]
    readable = granted(said, grants(account)[1])
    last = next(topic for topic in said if topic in readable)
    for topic in said:
        witness.say(topic, "said by the witness")
    # The same publisher at the same broker: what came before this has been dealt with.
    witness.say(last, "the last")
    heard = one.hear(last, "the last")
    assert {each.topic for each in heard if each.payload == b"said by the witness"} == readable
    assert {each.topic for each in heard if not each.topic.startswith("$SYS/")} <= readable
    figures = {each.topic for each in heard if each.topic.startswith("$SYS/")}
    assert granted([*figures], grants(account)[1]) == figures
    assert bool(figures) == ("$SYS" in "".join(grants(account)[1]))


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


def test_what_a_stolen_device_retains_under_many_names_stays_nowhere(site: RunningSite) -> None:
    clouds = site.person("cloud", WITNESS, "hfl/#").ready()
    farms = site.person("farm-a", WITNESS, "hfl/#", "hflb/#").ready()
    device = site.person("farm-a", "cloud/farm-a/pi-1").ready()
    own = "cloud/farm-a/pi-1/@"
    for number in range(5):
        # The second is below its own `stat` and looks to a bridge like the state of a node further down.
        for topic in (
            f"{JSON}/{own}/stat/x{number}",
            f"{JSON}/{own}/stat/x{number}/@/stat/state",
            f"{BINARY}/{own}/up/{4 + number}",
        ):
            assert device.say(topic, b"flood", retain=True) == "Not authorized"
    device.say(f"{JSON}/{own}/stat/state", "the last", retain=True)
    for place in (farms, clouds):
        heard = place.hear(f"{JSON}/{own}/stat/state", "the last")
        assert not [one.topic for one in heard if one.payload == b"flood"]


@pytest.mark.parametrize("guess", ["{}", "local.{}", "{}~", "{}~CHANGE-ME"])
def test_nobody_takes_a_bridges_session_who_does_not_know_its_secret(site: RunningSite, guess: str) -> None:
    # A broker goes by the client id alone, so the second who comes under one ends the connection of the first.
    state = "$SYS/broker/connection/_bridge/cloud/farm-a/ctl/state"
    watch = site.person("farm-a", "cloud/farm-a", state).ready()
    assert watch.hear(state)[-1].payload == b"1"
    for broker, account in (("cloud", "viewer"), ("farm-a", "cloud/farm-a/pi-1")):
        for kind in ("ctl", "data"):
            thief = site.person(broker, account, name=guess.format(f"_bridge/cloud/farm-a/{kind}")).ready()
            thief.leave()
    site.wait_for_bridge("farm-a")
    assert watch.heard.empty()


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
