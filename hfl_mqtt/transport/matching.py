"""Topics and filters as trees of levels, so that a broker with thousands of links finds the few that match at once.

`+` stands for one level, a last `#` for any number of levels, none included; neither matches a first level with `$`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: Topics whose filters are remembered.
_MOST_KNOWN = 100_000


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter matches a topic.

    >>> matches("hfl/+/x", "hfl/a/x"), matches("hfl/#", "hfl"), matches("#", "$SYS/x"), matches("hfl/+", "hfl/a/x")
    (True, True, False, False)
    """
    filters: FilterTree[bool] = FilterTree()
    filters.at(pattern)[""] = True
    return any(True for _ in filters.matching(topic))


class _Node(Generic[T]):
    __slots__ = ("below", "entries")

    def __init__(self) -> None:
        self.below: dict[str, _Node[T]] = {}
        self.entries: dict[str, T] = {}

    def reach(self, path: str) -> _Node[T]:
        """Return the node at a path below this one, made where there is none."""
        node = self
        for level in path.split("/"):
            below = node.below.get(level)
            if below is None:
                below = node.below[level] = _Node()
            node = below
        return node


class FilterTree(Generic[T]):
    """Filters, each with entries under names; found by topic, in the order in which they were added per filter."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        #: What each topic was found to match, until there is a new filter: the same topics come again and again.
        self._known: dict[str, list[dict[str, T]]] = {}
        self._filters: set[str] = set()

    def at(self, pattern: str) -> dict[str, T]:
        """Return the entries of one filter, to read and to change."""
        if pattern not in self._filters:
            self._filters.add(pattern)
            self._known.clear()
        return self._root.reach(pattern).entries

    def matching(self, topic: str) -> Iterator[T]:
        """Give the entries of every filter that matches; an entry under two such filters comes twice."""
        found = self._known.get(topic)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[topic] = list(self._find(topic))
        for entries in found:
            yield from entries.values()

    def _find(self, topic: str) -> Iterator[dict[str, T]]:
        nodes = [self._root]
        for depth, level in enumerate(topic.split("/")):
            wild = ("+", "#") if depth or not topic.startswith("$") else ()
            reached = []
            for node in nodes:
                for name in (level, *wild):
                    found = node.below.get(name)
                    if found is None:
                        continue
                    if name == "#":
                        yield found.entries
                    else:
                        reached.append(found)
            nodes = reached
        for node in nodes:
            yield node.entries
            # "a/#" matches "a" too.
            if (rest := node.below.get("#")) is not None:
                yield rest.entries


class TopicTree(Generic[T]):
    """One value per topic; found by filter, in the order in which the levels were first seen."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def set(self, topic: str, value: T) -> None:
        """Put a value on a topic, in place of the one before."""
        self._root.reach(topic).entries[""] = value

    def drop(self, topic: str) -> None:
        """Take the value off a topic, if there is one."""
        node: _Node[T] | None = self._root
        for level in topic.split("/"):
            node = node.below.get(level) if node is not None else None
        if node is not None:
            node.entries.clear()

    def matching(self, pattern: str) -> Iterator[T]:
        """Give the value of every topic that a filter matches."""
        nodes = [self._root]
        for depth, level in enumerate(pattern.split("/")):
            if level == "#":
                for node in nodes:
                    yield from _all_below(node, with_dollar=depth > 0)
                return
            if level == "+":
                nodes = [
                    below for node in nodes for name, below in node.below.items() if depth or not name.startswith("$")
                ]
            else:
                nodes = [node.below[level] for node in nodes if level in node.below]
        for node in nodes:
            yield from node.entries.values()


def _all_below(node: _Node[T], *, with_dollar: bool) -> Iterator[T]:
    yield from node.entries.values()
    for name, below in node.below.items():
        if with_dollar or not name.startswith("$"):
            yield from _all_below(below, with_dollar=True)
