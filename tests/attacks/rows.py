"""What a row of the table is, and how one is added: a function that attacks, checks, and says what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.attacks.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of an attack, and where whoever runs the fleet can see it; both for people."""

    happened: str
    reported: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One attack. `act` raises AssertionError where it was not refused, or not reported."""

    name: str
    tried: str
    act: Callable[[Stage], Seen]
    #: The devices whose papers it uses.
    enemies: tuple[str, ...] = ()


ROWS: dict[str, Row] = {}


def row(name: str, tried: str, *enemies: str) -> Callable[[Callable[[Stage], Seen]], Callable[[Stage], Seen]]:
    """Add an attack to the table."""

    def add(act: Callable[[Stage], Seen]) -> Callable[[Stage], Seen]:
        assert name not in ROWS, name
        ROWS[name] = Row(name=name, tried=tried, act=act, enemies=enemies)
        return act

    return add
