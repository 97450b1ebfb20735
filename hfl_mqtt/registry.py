"""Name -> class, found through entry points and loaded only when asked for.

Extending hfl-mqtt is one class and one entry-point line in the groups `hfl_mqtt.codecs`, `hfl_mqtt.strategies` or
`hfl_mqtt.tasks`; no other file is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from hfl_mqtt.errors import ConfigError

#: What one entry of a group is called.
SINGULAR = {"codecs": "codec", "strategies": "strategy", "tasks": "task"}


def names(group: str) -> list[str]:
    """Return the sorted names registered in `group`, for example `"codecs"`."""
    return sorted({entry.name for entry in entry_points(group=f"hfl_mqtt.{group}")})


def load(group: str, name: str) -> Any:
    """Return the object registered as `name` in `group`.

    Raises:
        ConfigError: no such name; the message lists the known ones and the nearest.
    """
    for entry in entry_points(group=f"hfl_mqtt.{group}", name=name):
        return entry.load()
    raise ConfigError(f"no {SINGULAR.get(group, group)} is called {name!r}{known_names(name, names(group))}")


def known_names(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a name that does not exist: the nearest that does, and all of them.

    >>> known_names("indx", ("index", "of"))
    ", did you mean 'index'? Known: index, of"
    """
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(known) or 'none installed'}"
