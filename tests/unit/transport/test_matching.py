"""The trees of topics and filters find what the rule of MQTT says, level by level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.transport.matching import FilterTree, TopicTree, matches


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+/b", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_the_wildcards(pattern: str, topic: str, is_match: bool) -> None:
    assert matches(pattern, topic) == is_match
    topics: TopicTree[str] = TopicTree()
    topics.set(topic, "here")
    assert list(topics.matching(pattern)) == (["here"] if is_match else [])


def naive(pattern: list[str], topic: list[str]) -> bool:
    if pattern == ["#"]:
        return True
    if not pattern or not topic:
        return pattern == topic
    return pattern[0] in ("+", topic[0]) and naive(pattern[1:], topic[1:])


LEVELS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4)
PATTERNS = st.builds(
    lambda head, tail: head + tail, st.lists(st.sampled_from(["a", "b", "", "+"]), max_size=3), st.just(["#"])
)


@given(
    patterns=st.lists(PATTERNS | LEVELS, max_size=6, unique_by=tuple),
    topics=st.lists(LEVELS, max_size=6, unique_by=tuple),
)
def test_a_tree_finds_what_comparing_one_by_one_finds(patterns: list[list[str]], topics: list[list[str]]) -> None:
    filters: FilterTree[str] = FilterTree()
    values: TopicTree[str] = TopicTree()
    for pattern in patterns:
        filters.at("/".join(pattern))["x"] = "/".join(pattern)
    for topic in topics:
        values.set("/".join(topic), "/".join(topic))
    for topic in topics:
        expected = sorted("/".join(pattern) for pattern in patterns if naive(pattern, topic))
        assert sorted(filters.matching("/".join(topic))) == expected
    for pattern in patterns:
        expected = sorted("/".join(topic) for topic in topics if naive(pattern, topic))
        assert sorted(values.matching("/".join(pattern))) == expected
