"""Name -> class, found through entry points and loaded only when asked for.

Extending hfl-mqtt is one class and one entry-point line in the groups `hfl_mqtt.codecs`, `hfl_mqtt.strategies` or
`hfl_mqtt.tasks`; no other file is touched.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from hfl_mqtt.errors import ConfigError

_CALL = re.compile(r"([a-z][a-z0-9_\-]*)\s*(?:\(([^()]*)\))?\Z")
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


def make(group: str, text: str) -> Any:
    """Build what a text such as `fedavg` or `stc(0.1)` says: a registered dataclass and numbers for its fields.

    Raises:
        ConfigError: no such name, or options that it does not take; the message says what it takes.
    """
    match = _CALL.match(text.strip())
    if match is None:
        raise ConfigError(f"{text[:60]!r} is not of the form name or name(number, ...)")
    name, arguments = match.groups()
    kind = load(group, name)
    options = [field for field in dataclasses.fields(kind) if field.init]
    takes = f"{name} takes {', '.join(option.name for option in options) or 'no options'}"
    values = [_number(part) for part in arguments.split(",")] if arguments and arguments.strip() else []
    if len(values) > len(options):
        raise ConfigError(f"{takes}, got {len(values)} options")
    needed = [option.name for option in options if option.default is dataclasses.MISSING]
    if len(values) < len(needed):
        raise ConfigError(f"{takes}: write {name}({', '.join(needed)})")
    return kind(**dict(zip((option.name for option in options), values, strict=False)))


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"{text.strip()!r} is not a number") from None
        if not math.isfinite(value):
            raise ConfigError(f"{text.strip()!r} is not a finite number") from None
        return value


def known_names(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a name that does not exist: the nearest that does, and all of them.

    >>> known_names("indx", ("index", "of"))
    ", did you mean 'index'? Known: index, of"
    """
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(known) or 'none installed'}"
