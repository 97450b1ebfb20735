"""Rows of named columns, as a task reads them: what a window holds, in numpy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.sources.source import Source, Take
from hfl_mqtt.registry import known_names

Floats = NDArray[np.float64]
_CELL = np.dtype([("number", "<u2"), ("count", "<u4"), ("value", "<f8")])


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """Rows in the order of time.

    `times` are seconds since 1970, shape (rows,): on a grid, when the row begins. `columns` has for each name values of
    shape (rows,), NaN where nothing was measured. `mark` says which state of the window this is.
    """

    times: Floats
    columns: Mapping[str, Floats]
    mark: int = 0

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        days = (
            [datetime.fromtimestamp(moment, timezone.utc).date() for moment in self.times[[0, -1]]] if len(self) else []
        )
        span = f" from {days[0]} to {days[1]}" if days else ""
        return f"<Table {self.mark}: {len(self)} rows{span} of {', '.join(self.columns)}>"

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Floats:
        """Return a column.

        Raises:
            TaskError: there is none of that name.
        """
        if name not in self.columns:
            raise TaskError(
                f"the table has no column {name!r}{known_names(name, self.columns)}: name it in data.columns"
            )
        return self.columns[name]

    def matrix(self, *names: str) -> NDArray[np.float32]:
        """Return columns side by side, shape (rows, names), as torch takes them."""
        return np.stack([self[name] for name in names], axis=1).astype(np.float32)

    def complete(self, *names: str) -> Table:
        """Return the rows in which none of these columns is missing; of all columns where none is named."""
        is_whole = np.ones(len(self), bool)
        for name in names or self.columns:
            is_whole &= np.isfinite(self[name])
        return Table(self.times[is_whole], {name: column[is_whole] for name, column in self.columns.items()}, self.mark)


def read_mark(source: Source) -> int:
    """Return which state the window is in: how often it was written; 0 where there is none yet."""
    with _reading(source) as database:
        return _mark(database)


def read_table(source: Source) -> Table:
    """Read the window of a source.

    On a grid the newest row is left out: it may not be whole yet.

    Raises:
        TaskError: it cannot be read, or has fewer rows than the source says there must be.
    """
    with _reading(source) as database:
        database.execute("BEGIN")  # one state for all that follows
        mark = _mark(database)
        found = database.execute("SELECT time, cells FROM rows ORDER BY time").fetchall()
        text = database.execute("SELECT text FROM told WHERE name = 'columns'").fetchone()
    if source.every_s is not None:
        found = found[:-1]
    if len(found) < source.least_rows:
        raise TaskError(too_few(len(found), source))
    return _table(source, found, json.loads(text[0]) if text else [], mark)


def too_few(rows: int, source: Source) -> str:
    """Return why so few rows are not trained on."""
    return f"{rows} rows of the {source.least_rows} that data.least asks for are gathered so far"


def _table(source: Source, found: Sequence[tuple[int, bytes]], known: list[list[str]], mark: int) -> Table:
    times = np.array([time for time, _ in found], np.float64) / 1e6
    cells = np.frombuffer(b"".join(packed for _, packed in found), _CELL)
    rows = np.repeat(np.arange(len(found)), [len(packed) // _CELL.itemsize for _, packed in found])
    columns: dict[str, Floats] = {}
    for column in source.columns:
        values = columns[column.name] = np.full(len(found), np.nan)
        row = [column.name, column.take.value]
        if row in known:
            is_here = cells["number"] == known.index(row)
            of_column = cells[is_here]
            share = of_column["count"] if column.take is Take.MEAN else 1
            values[rows[is_here]] = of_column["value"] / share
    return Table(times, columns, mark)


def _mark(database: sqlite3.Connection) -> int:
    found = database.execute("SELECT text FROM told WHERE name = 'writes'").fetchone()
    return int(found[0]) if found else 0


@contextmanager
def _reading(source: Source) -> Iterator[sqlite3.Connection]:
    """Open the window for a while, whoever writes it."""
    path = Path(source.window)
    if not path.is_file():
        raise TaskError(too_few(0, source))
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise TaskError(f"{path}: the readings cannot be read: {error}") from error
