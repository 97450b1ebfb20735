import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import limits, messages, topics
from hfl_mqtt.protocol.topics import Channel, Topic
from hfl_mqtt.protocol.wire import encode

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


@given(st.text(alphabet="/@hflbupstadownkey+#$%.\n\0 a1", max_size=60))
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
        "hfl/f/cloud/@/key/0",
        "hflb/f/cloud/@/stat/state",
        "hflb/f/cloud/@/down/3/1",
        "hflb/f/cloud/@/down/3P1",
        "hflb/f/cloud/@/down/-1",
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
        hits = [one.topic for one in filters if matches(one.topic, str(topic))]
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
    assert not any(matches(pattern, str(Topic("f", "cloud/a", kind, "0"))) for kind in Channel if kind.is_binary)
    assert not matches(pattern, str(Topic("g", "cloud", Channel.STAT, "metrics")))


def may(user: str, access: str, topic: Topic, *, has_children: bool = False) -> bool:
    rights = topics.acl_node("f", user, has_children=has_children)
    return any(access in kind and matches(pattern, str(topic)) for kind, pattern in rights)


def test_a_device_may_speak_for_itself_and_read_only_its_parent() -> None:
    pi, other, edge = "cloud/a/pi", "cloud/a/pj", "cloud/a"
    assert may(pi, "write", Topic("f", pi, Channel.UP, "0"))
    assert may(pi, "write", Topic("f", pi, Channel.STAT, "state"))
    assert may(pi, "write", Topic("f", pi, Channel.TELE, "decline"))
    assert may(pi, "read", Topic("f", edge, Channel.STAT, "identity"))
    assert may(pi, "read", Topic("f", edge, Channel.DOWN, "0"))
    assert may(pi, "read", Topic("f", edge, Channel.KEY, "0"))
    assert not may(pi, "read", Topic("f", "cloud", Channel.KEY, "0"))
    assert not may(pi, "write", Topic("f", edge, Channel.KEY, "0"))
    assert may(pi, "read", Topic("f", pi, Channel.CMND, "receipt"))
    assert not may(pi, "write", Topic("f", other, Channel.UP, "0"))
    assert not may(pi, "read", Topic("f", other, Channel.UP, "0"))
    assert not may(pi, "write", Topic("f", edge, Channel.STAT, "round"))
    assert not may(pi, "write", Topic("f", other, Channel.CMND, "receipt"))
    assert not may(pi, "write", Topic("f", pi, Channel.CMND, "receipt"))


def test_what_a_device_may_leave_at_its_broker_has_sixteen_names() -> None:
    written = [pattern for kind, pattern in topics.acl_node("f", "cloud/a/pi", has_children=False) if kind == "write"]
    assert (len(written), len(set(written))) == (16, 16)
    assert not [pattern for pattern in written if set(pattern) & set("+#")]


def test_what_an_aggregator_may_write_has_no_open_end() -> None:
    for path in ("cloud", "cloud/a"):
        rights = topics.acl_node("f", path, has_children=True)
        assert not [pattern for kind, pattern in rights if kind != "read" and "#" in pattern]


def test_every_message_has_the_right_to_its_topic_where_it_is_said() -> None:
    kinds = [
        one for one in vars(messages).values() if isinstance(one, type) and {"channel", "name"} <= vars(one).keys()
    ]
    everything = {(vars(one)["channel"], vars(one)["name"]) for one in kinds}
    assert len(everything) > 10
    for channel, name in everything:
        match channel:
            case Channel.CMND if name == "control":
                assert may("cloud", "write", Topic("f", "cloud", channel, name), has_children=True)
            case Channel.CMND:
                assert may("cloud/a", "write", Topic("f", "cloud/a/pi", channel, name), has_children=True)
            case _:
                assert may("cloud/a", "write", Topic("f", "cloud/a", channel, name), has_children=True)


@given(st.integers(0, limits.MAX_PARTS - 1))
def test_every_part_of_an_update_has_the_right_to_its_topic_and_crosses(index: int) -> None:
    part = messages.UpdatePart(
        run="r", round=(1,), base="0" * 16, blob="0" * 16, index=index, count=limits.MAX_PARTS, size=1, data=b"x"
    )
    topic = Topic.parse(encode(part, "f", "cloud/a").topic)
    assert may("cloud/a", "write", topic, has_children=True)
    assert crosses("out", topic)


@pytest.mark.parametrize("channel", [Channel.DOWN, Channel.KEY])
def test_a_device_offers_no_model_and_has_no_children(channel: Channel) -> None:
    pi = "cloud/a/pi"
    assert not may(pi, "write", Topic("f", pi, channel, "0"))
    assert not may(pi, "write", Topic("f", f"{pi}/x", Channel.CMND, "receipt"))
    assert not may(pi, "write", Topic("f", pi, Channel.CMND, "control"))
    assert not may(pi, "read", Topic("f", f"{pi}/x", Channel.STAT, "state"))
    assert not may(pi, "read", Topic("f", pi, Channel.STAT, "state"))


def test_the_cloud_is_asked_in_its_own_name_and_hands_nothing_up() -> None:
    assert may("cloud", "write", Topic("f", "cloud", Channel.CMND, "control"), has_children=True)
    assert may("cloud", "read", Topic("f", "cloud", Channel.CMND, "control"), has_children=True)
    for channel in (Channel.UP, Channel.TELE):
        assert not may("cloud", "write", Topic("f", "cloud", channel, "0"), has_children=True)
    assert not may("cloud/a", "write", Topic("f", "cloud/a", Channel.CMND, "control"), has_children=True)


def test_an_edge_hears_whether_its_bridge_is_up_and_who_holds_its_lease_and_no_one_elses() -> None:
    edge = "cloud/a"
    readable = [pattern for kind, pattern in topics.acl_node("f", edge, has_children=True) if "read" in kind]
    assert any(matches(pattern, topics.bridge_state(edge)) for pattern in readable)
    assert not any(matches(pattern, topics.bridge_state("cloud/b")) for pattern in readable)
    own = [each.topic for each in [*topics.lease_filters("f", edge), *topics.edge_filters(edge)]]
    assert own == [
        "hfl/f/cloud/a/@/stat/lease",
        "hfl/f/cloud/a/@/stat/state",
        "$SYS/broker/connection/_bridge/cloud/a/ctl/state",
    ]
    assert all(any(matches(pattern, topic) for pattern in readable) for topic in own)


@pytest.mark.parametrize("path", ["cloud", "cloud/a", "cloud/a/b"])
@pytest.mark.parametrize("has_children", [False, True])
def test_every_node_may_read_what_it_subscribes_to(path: str, has_children: bool) -> None:
    filters = topics.identity_filters("f", path, has_children=has_children)
    if topics.parent(path) is not None:
        filters += topics.participant_filters("f", path)
    if has_children:
        filters += topics.aggregator_filters("f", path)
    readable = [pattern for kind, pattern in topics.acl_node("f", path, has_children=has_children) if "read" in kind]
    for one in filters:
        assert any(matches(pattern, one.topic) for pattern in readable), one


def test_the_cards_that_a_node_reads_are_its_parents_and_its_childrens() -> None:
    def read(path: str, *, has_children: bool) -> list[str]:
        return [one.topic for one in topics.identity_filters("f", path, has_children=has_children)]

    assert read("cloud/a/pi", has_children=False) == ["hfl/f/cloud/a/@/stat/identity"]
    assert read("cloud/a", has_children=True) == ["hfl/f/cloud/@/stat/identity", "hfl/f/cloud/a/+/@/stat/identity"]
    assert read("cloud", has_children=True) == ["hfl/f/cloud/+/@/stat/identity"]


def test_a_lease_never_crosses_a_bridge() -> None:
    for path in ("cloud/a", "cloud/r/a"):
        carried = [*topics.bridge_control("f", path, device_metrics=True), *topics.bridge_data("f", path)]
        assert not any(matches(pattern, f"hfl/f/{path}/@/stat/lease") for pattern, _, _ in carried)
        assert not any(matches(pattern, f"hfl/f/{path}/b/@/stat/lease") for pattern, _, _ in carried)


def test_an_edge_hears_its_children_and_commands_them() -> None:
    def edge_may(access: str, topic: Topic) -> bool:
        return may("cloud/a", access, topic, has_children=True)

    edge, pi = "cloud/a", "cloud/a/pi"
    assert edge_may("read", Topic("f", pi, Channel.UP, "0"))
    assert edge_may("read", Topic("f", pi, Channel.STAT, "identity"))
    assert edge_may("write", Topic("f", pi, Channel.CMND, "receipt"))
    assert edge_may("write", Topic("f", edge, Channel.DOWN, "0"))
    assert edge_may("write", Topic("f", edge, Channel.KEY, "0"))
    assert edge_may("write", Topic("f", edge, Channel.UP, "0"))
    assert edge_may("read", Topic("f", "cloud", Channel.KEY, "0"))
    assert not edge_may("read", Topic("f", "cloud/b/pi", Channel.UP, "0"))
    assert not edge_may("write", Topic("f", pi, Channel.UP, "0"))


def carried(way: str, path: str = "cloud/a") -> list[str]:
    rules = topics.bridge_control("f", path) + topics.bridge_data("f", path)
    return [pattern for pattern, direction, _ in rules if direction == way]


def crosses(way: str, topic: Topic, path: str = "cloud/a") -> bool:
    hits = [pattern for pattern in carried(way, path) if matches(pattern, str(topic))]
    assert len(hits) <= 1, "a topic carried twice would arrive twice"
    return bool(hits)


def test_a_bridge_carries_what_a_farm_says_of_itself_and_to_the_cloud() -> None:
    edge = "cloud/a"
    assert crosses("out", Topic("f", edge, Channel.UP, "0"))
    assert crosses("out", Topic("f", edge, Channel.TELE, "decline"))
    for name in ("metrics", "identity", "quarantine"):
        assert crosses("out", Topic("f", edge, Channel.STAT, name)), name
    assert crosses("in", Topic("f", edge, Channel.CMND, "receipt"))
    assert crosses("in", Topic("f", "cloud", Channel.STAT, "round"))
    assert crosses("in", Topic("f", "cloud", Channel.STAT, "identity"))
    assert crosses("in", Topic("f", "cloud", Channel.DOWN, "3p1"))
    assert crosses("in", Topic("f", "cloud", Channel.KEY, "0"))


@pytest.mark.parametrize("below", ["pi", "b/pi", "b/c/d/e/f/g"])
def test_of_everybody_below_a_bridge_carries_who_and_how_they_are_and_nothing_else(below: str) -> None:
    path = f"cloud/a/{below}"
    assert topics.is_path(path)
    assert crosses("out", Topic("f", path, Channel.STAT, "state"))
    assert crosses("out", Topic("f", path, Channel.STAT, "info"))
    assert not crosses("out", Topic("f", path, Channel.STAT, "metrics"))
    for channel in (Channel.TELE, Channel.CMND, Channel.UP, Channel.DOWN, Channel.KEY):
        assert not crosses("out", Topic("f", path, channel, "x")), channel
        assert not crosses("in", Topic("f", path, channel, "x")), channel


@pytest.mark.parametrize("below", ["pi", "b/pi", "b/c/d/e/f/g"])
def test_where_it_is_wanted_a_bridge_carries_what_everybody_below_measures_too(below: str) -> None:
    metrics = str(Topic("f", f"cloud/a/{below}", Channel.STAT, "metrics"))
    rules = topics.bridge_control("f", "cloud/a", device_metrics=True)
    assert set(topics.bridge_control("f", "cloud/a")) < set(rules)
    assert len([pattern for pattern, _, _ in rules if matches(pattern, metrics)]) == 1


@pytest.mark.parametrize("path", ["cloud/a", "cloud/a/b"])
def test_the_call_of_a_farms_edge_to_its_devices_does_not_leave_the_farm(path: str) -> None:
    assert not crosses("out", Topic("f", path, Channel.STAT, "round"))


def test_a_bridge_carries_nothing_of_another_farm_and_nothing_both_ways() -> None:
    for channel in Channel:
        for path in ("cloud", "cloud/a", "cloud/a/pi", "cloud/b", "cloud/b/pi"):
            topic = Topic("f", path, channel, "x")
            assert not (crosses("out", topic) and crosses("in", topic)), f"{topic} would go round"
            if path.startswith("cloud/b"):
                assert not crosses("out", topic)
                assert not crosses("in", topic)


def test_what_an_edge_offers_its_devices_does_not_leave_the_farm() -> None:
    assert not crosses("out", Topic("f", "cloud/a", Channel.DOWN, "0"))
    assert not crosses("out", Topic("f", "cloud/a", Channel.KEY, "0"))


def test_a_bridge_has_a_line_for_every_level_that_there_may_be_below_it() -> None:
    for depth in range(2, limits.MAX_DEPTH + 1):
        path = "/".join(["x"] * depth)
        states = [pattern for pattern in carried("out", path) if pattern.endswith("/stat/state")]
        assert len(states) == 1 + limits.MAX_DEPTH - depth
        assert not any(f"/{'+/' * limits.MAX_DEPTH}" in pattern for pattern in states)


@given(paths.filter(lambda path: path.count("/") >= 1), paths, st.sampled_from(Channel), names)
def test_whatever_lies_below_crosses_at_most_once(own: str, below: str, channel: Channel, name: str) -> None:
    path = f"{own}/{below}"
    if topics.is_path(path):
        is_shown = channel is Channel.STAT and name in ("state", "info")
        assert crosses("out", Topic("f", path, channel, name), own) == is_shown


def test_what_a_bridge_carries_it_has_the_right_to() -> None:
    rights = topics.acl_bridge("f", "cloud/a")
    for way, access in (("out", "write"), ("in", "read")):
        granted = [pattern for kind, pattern in rights if kind == access]
        for pattern in carried(way):
            # A right covers a wildcard as it covers a level of that name.
            assert any(matches(right, pattern) for right in granted), pattern


def test_a_bridge_has_no_right_to_what_it_does_not_carry() -> None:
    rights = [pattern for _, pattern in topics.acl_bridge("f", "cloud/a")]
    assert set(rights) - {*carried("out"), *carried("in")} == {"hfl/f/cloud/a/@/cmnd/doctor/echo"}
    metrics = "hfl/f/cloud/a/+/@/stat/metrics"
    wanted = [pattern for _, pattern in topics.acl_bridge("f", "cloud/a", device_metrics=True)]
    assert (metrics in rights, metrics in wanted) == (False, True)


def test_a_bridge_may_speak_for_its_own_subtree_alone() -> None:
    rights = [pattern for kind, pattern in topics.acl_bridge("f", "cloud/a") if kind == "write"]
    for path in ("cloud", "cloud/b", "cloud/b/pi", "cloud/ab"):
        for channel in Channel:
            assert not any(matches(right, str(Topic("f", path, channel, "x"))) for right in rights)


# ------------------------------------------------------------------ slots and subscriptions


@given(st.integers(0, 4096), st.integers(0, 4095))
def test_every_slot_is_the_name_of_a_topic_and_no_two_are_alike(frame: int, part: int) -> None:
    name = topics.slot(frame, part)
    topic = Topic("f", "cloud", Channel.DOWN, name)
    assert Topic.parse(str(topic)) == topic
    read_frame, _, read_part = name.partition("p")
    assert (int(read_frame), int(read_part or 0)) == (frame, part)


def test_a_delta_of_one_part_stands_in_the_plain_slot_of_its_frame() -> None:
    assert [topics.slot(3, part) for part in range(3)] == ["3", "3p1", "3p2"]


def test_deltas_are_heard_live_and_never_brought_by_a_subscription() -> None:
    called, deltas, commands = topics.participant_filters("f", "cloud/a")
    assert (called.topic, called.qos, called.wants_retained) == ("hfl/f/cloud/@/stat/round", 0, True)
    assert (deltas.topic, deltas.qos, deltas.wants_retained) == ("hflb/f/cloud/@/down/+", 0, False)
    assert (commands.topic, commands.qos) == ("hfl/f/cloud/a/@/cmnd/+", 1)


def test_keyframes_are_read_by_name_and_nobody_subscribes_to_them() -> None:
    assert subscribers(Topic("f", "cloud", Channel.KEY, "0")) == set()


def test_only_what_is_retained_is_taken_at_qos_0() -> None:
    filters = topics.participant_filters("f", "cloud/a") + topics.aggregator_filters("f", "cloud/a")
    for one in filters:
        topic = Topic.parse(one.topic.replace("+/@", "pi/@").replace("/+", "/x"))
        assert (one.qos == 0) == topic.channel.is_retained, one


@pytest.mark.parametrize(
    ("channel", "is_binary", "is_retained"),
    [
        (Channel.STAT, False, True),
        (Channel.TELE, False, False),
        (Channel.CMND, False, False),
        (Channel.UP, True, False),
        (Channel.DOWN, True, True),
        (Channel.KEY, True, True),
    ],
)
def test_a_channel_says_who_reads_it_and_whether_it_stays(channel: Channel, is_binary: bool, is_retained: bool) -> None:
    assert (channel.is_binary, channel.is_retained) == (is_binary, is_retained)
