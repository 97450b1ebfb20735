"""One measured number with its spread, and tables of them for the terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A median, and the least and the most that were seen where it was measured more than once."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    note: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        """Return what, value with unit, spread, note.

        >>> Figure(what="round", value=61.25, unit="ms", low=58.0, high=72.0).cells()
        ('round', '61.2 ms', '58 to 72', '')
        """
        has_spread = self.low is not None and self.high is not None
        spread = f"{number(self.low or 0.0)} to {number(self.high or 0.0)}" if has_spread else ""
        return self.what, f"{number(self.value)} {self.unit}".strip(), spread, self.note

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def spread_of(what: str, unit: str, values: Sequence[float], note: str = "") -> Figure:
    """Return the median of `values` with their least and most.

    >>> spread_of("round", "ms", [3.0, 1.0, 2.0]).cells()
    ('round', '2 ms', '1 to 3', '')
    """
    return Figure(what=what, unit=unit, value=median(values), low=min(values), high=max(values), note=note)


def number(value: float) -> str:
    """Write a number with three digits, and whole from a thousand on.

    >>> number(0.01234), number(61.25), number(178_233.4)
    ('0.0123', '61.2', '178,233')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def text_table(title: str, figures: Iterable[Figure]) -> str:
    """Return a table for the terminal."""
    rows = [figure.cells() for figure in figures]
    wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        f"{what:<{wide[0]}}  {value:>{wide[1]}}  {spread:<{wide[2]}}  {note}" for what, value, spread, note in rows
    ]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def markdown_table(title: str, figures: Iterable[Figure]) -> str:
    """Return the same table in Markdown."""
    rows = ["| | median | from, to | |", "|---|---:|---|---|"]
    rows += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in figure.cells())} |" for figure in figures]
    return "\n".join([f"## {title}", "", *rows, ""])
