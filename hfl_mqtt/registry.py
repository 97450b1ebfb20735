"""Name -> class, found through entry points and loaded only when asked for.

Extending hfl-mqtt is one class and one entry-point line in the groups `hfl_mqtt.codecs`, `hfl_mqtt.strategies` or
`hfl_mqtt.tasks`; no other file is touched.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from hfl_mqtt.errors import ConfigError


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
    known = names(group)
    near = get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise ConfigError(f"no {group.rstrip('s')} is called {name!r}{hint} Known: {', '.join(known) or 'none installed'}")
