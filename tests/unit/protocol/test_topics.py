import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import topics
from hfl_mqtt.protocol.topics import Channel, Topic

segments = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,15}", fullmatch=True)
paths = st.lists(segments, min_size=1, max_size=8).map("/".join)
names = st.from_regex(r"[a-z0-9]{1,32}", fullmatch=True)


@given(segments, paths, st.sampled_from(Channel), names)
def test_a_topic_reads_back_as_what_it_was(federation: str, path: str, channel: Channel, name: str) -> None:
    topic = Topic(federation, path, channel, name)
    assert Topic.parse(str(topic)) == topic


@given(st.text(max_size=80))
def test_any_text_is_a_topic_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        assert str(Topic.parse(text)) == text


@given(st.text(alphabet="/@hflbupstadown+#$%.\n\0 a1", max_size=60))
def test_text_that_looks_like_a_topic_is_one_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        assert str(Topic.parse("hfl/" + text)) == "hfl/" + text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "hfl/f/cloud",
        "hfl/f/@/stat/state",
        "hfl/f//@/stat/state",
        "hfl/f/cloud/@/stat",
        "hfl/f/cloud/@/stat/",
        "hfl/f/cloud/@/stat/state/more",
        "hfl/f/cloud/@/stat/State",
        "hfl/f/cloud/@/stat/state\n",
        "hfl/f\n/cloud/@/stat/state",
        "hfl/f/cloud\n/@/stat/state",
        "hfl/f/cloud/@/@/stat/state",
        "hfl/f/cloud/@/nothing/state",
        "hfl/f/cloud/@/up/0",  # weights never stand under the root that people read
        "hflb/f/cloud/@/stat/state",
        "mqtt/f/cloud/@/stat/state",
        "hfl/f/cloud/+/@/stat/state",
        "hfl/f/#/@/stat/state",
        "hfl/+/cloud/@/stat/state",
        "hfl/f/cloud/../cloud/@/stat/state",
        "hfl/f/cloud/-x/@/stat/state",
        "hfl/f/clöud/@/stat/state",
        "hfl/f/cloud/٣/@/stat/state",  # a digit, but no ASCII one
        "$SYS/broker/uptime",
    ],
)
def test_what_is_not_a_topic_of_this_protocol_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="not a topic of this protocol"):
        Topic.parse(text)


def test_a_reason_shows_only_the_beginning_of_a_long_topic() -> None:
    with pytest.raises(Malformed) as caught:
        Topic.parse("x" * 60_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("path", ["cloud", "cloud/farm-a", "a/b/c/d/e/f/g/h", "cloud/pi_07.lan", "x" * 63])
def test_these_are_names_of_nodes(path: str) -> None:
    assert topics.is_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "cloud/",
        "/cloud",
        "cloud//pi",
        "a/b/c/d/e/f/g/h/i",
        "x" * 64,
        "/".join(["x" * 40] * 5),
        "@",
        "a\n",
        "a b",
    ],
)
def test_these_are_not(path: str) -> None:
    assert not topics.is_path(path)


def test_a_child_is_right_below_its_parent_and_nothing_else_is() -> None:
    assert topics.parent("cloud/farm/pi") == "cloud/farm"
    assert topics.parent("cloud") is None
    assert topics.is_child("cloud/farm", "cloud")
    assert not topics.is_child("cloud/farm/pi", "cloud")
    assert not topics.is_child("cloud", "cloud")
    assert not topics.is_child("cloudy/farm", "cloud")
    assert not topics.is_child("cloud", "")


def matches(pattern: str, topic: str) -> bool:
    """MQTT's rule for filters."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))


def subscribers(topic: Topic) -> set[str]:
    """Who of a small tree hears this topic."""
    tree = ["cloud", "cloud/a", "cloud/a/pi", "cloud/b", "cloud/b/pi"]
    heard = set()
    for path in tree:
        filters = topics.aggregator_filters("f", path)
        if topics.parent(path) is not None:
            filters += topics.participant_filters("f", path)
        hits = [pattern for pattern, _ in filters if matches(pattern, str(topic))]
        assert len(hits) <= 1, "filters of one node are disjoint, or it would hear things twice"
        heard |= {path} if hits else set()
    return heard


def test_a_call_and_a_model_go_to_the_children_and_no_further() -> None:
    assert subscribers(Topic("f", "cloud/a", Channel.STAT, "round")) == {"cloud/a/pi"}
    assert subscribers(Topic("f", "cloud/a", Channel.DOWN, "7")) == {"cloud/a/pi"}
    assert subscribers(Topic("f", "cloud", Channel.STAT, "round")) == {"cloud/a", "cloud/b"}


def test_an_update_and_a_decline_go_to_the_parent_only() -> None:
    assert subscribers(Topic("f", "cloud/a/pi", Channel.UP, "0")) == {"cloud/a"}
    assert subscribers(Topic("f", "cloud/a/pi", Channel.TELE, "decline")) == {"cloud/a"}
    assert subscribers(Topic("f", "cloud/a/pi", Channel.STAT, "state")) == {"cloud/a"}
    assert subscribers(Topic("f", "cloud/a", Channel.UP, "0")) == {"cloud"}


def test_a_command_goes_to_the_one_it_names() -> None:
    assert subscribers(Topic("f", "cloud/a/pi", Channel.CMND, "receipt")) == {"cloud/a/pi"}


def test_another_federation_is_not_heard() -> None:
    assert subscribers(Topic("g", "cloud/a", Channel.STAT, "round")) == set()


def test_a_viewer_reads_all_json_of_one_federation_and_no_weights() -> None:
    pattern = topics.viewer_filter("f")
    assert matches(pattern, str(Topic("f", "cloud/a/pi", Channel.STAT, "metrics")))
    assert not matches(pattern, str(Topic("f", "cloud/a", Channel.DOWN, "0")))
    assert not matches(pattern, str(Topic("g", "cloud", Channel.STAT, "metrics")))


def may(user: str, access: str, topic: Topic) -> bool:
    rights = topics.acl_patterns("f") + topics.acl_broadcast("f", user)
    return any(kind == access and matches(pattern.replace("%u", user), str(topic)) for kind, pattern in rights)


def test_a_device_may_speak_for_itself_and_read_only_its_parent() -> None:
    pi, other, edge = "cloud/a/pi", "cloud/a/pj", "cloud/a"
    assert may(pi, "write", Topic("f", pi, Channel.UP, "0"))
    assert may(pi, "write", Topic("f", pi, Channel.STAT, "state"))
    assert may(pi, "read", Topic("f", edge, Channel.DOWN, "0"))
    assert may(pi, "read", Topic("f", pi, Channel.CMND, "receipt"))
    assert not may(pi, "write", Topic("f", other, Channel.UP, "0"))
    assert not may(pi, "read", Topic("f", other, Channel.UP, "0"))
    assert not may(pi, "write", Topic("f", edge, Channel.STAT, "round"))
    assert not may(pi, "write", Topic("f", other, Channel.CMND, "receipt"))
    assert not may(pi, "write", Topic("f", pi, Channel.CMND, "receipt"))


def test_an_edge_hears_its_children_and_commands_them() -> None:
    edge, pi = "cloud/a", "cloud/a/pi"
    assert may(edge, "read", Topic("f", pi, Channel.UP, "0"))
    assert may(edge, "write", Topic("f", pi, Channel.CMND, "receipt"))
    assert may(edge, "write", Topic("f", edge, Channel.DOWN, "0"))
    assert not may(edge, "read", Topic("f", "cloud/b/pi", Channel.UP, "0"))
    assert topics.acl_broadcast("f", "cloud") == []


def test_a_bridge_carries_no_update_of_a_device() -> None:
    patterns = [pattern for pattern, direction in topics.bridge_data("f", "cloud/a") if direction == "out"]
    assert any(matches(pattern, str(Topic("f", "cloud/a", Channel.UP, "0"))) for pattern in patterns)
    assert not any(matches(pattern, str(Topic("f", "cloud/a/pi", Channel.UP, "0"))) for pattern in patterns)


def test_what_a_bridge_carries_it_has_the_right_to() -> None:
    for pattern, direction in topics.bridge_control("f", "cloud/a") + topics.bridge_data("f", "cloud/a"):
        assert ("write" if direction == "out" else "read", pattern) in topics.acl_bridge("f", "cloud/a")
