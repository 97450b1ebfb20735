"""The rolling window: rows of readings in one SQLite file on the device, bounded in rows, age and bytes.

A row is a moment, or a cell of a grid in time, and holds for each column how many readings fell into it and what they
came to. So ten thousand readings of a day are one row of some twenty bytes a column, and a reading that comes late
finds its row. Rows wait in memory until `commit`: an SD card is written once a minute, not once a reading.

One process writes a window; others may read it meanwhile (write-ahead log). A power cut costs what was not on the disk
yet, never the window. A damaged one is laid aside, and a new one begun.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hfl_mqtt import files
from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.learning.sources.readings import BELIEVABLE_S, MAX_AHEAD_S
from hfl_mqtt.learning.sources.source import Column, Source, Take

#: Of a cell: the column's number, how many readings, and their sum, least, most or last.
CELL = struct.Struct("<HId")
_MOST_READINGS = 2**32 - 1
_LARGEST = 1e300
#: Pages are small because commits are: whole pages are written, and an SD card counts each.
_PAGE = 1024
#: The log is brought into the database when it has so many pages.
_LOG_PAGES = 512
_VERSION = 1
#: Of the rows, so many at once are dropped where the file is too large.
_SHARE = 20
#: Rows that may wait for a disk that takes nothing.
MAX_WAITING = 10_000
_MICRO = 1_000_000

Cells = dict[int, tuple[int, float]]
_log = logging.getLogger(__name__)


class Window:
    """Rows by time, oldest first. Everything is called from one thread.

    Args:
        path: its file; the folder is there.
        source: what a row has, and how many are kept. A window of another grid is begun anew; of columns that are no
            longer there, nothing is shown.
        clock: seconds since 1970; before 2025 it was never set, and judges no row's time.

    Raises:
        Unwritable: the disk is full or read-only.
    """

    def __init__(self, path: Path, source: Source, clock: Callable[[], float] = time.time) -> None:
        self._path, self._source, self._clock = path, source, clock
        #: What was found wrong at the start, for people; empty where nothing was.
        self.damage = ""
        self._waiting: dict[int, Cells] = {}
        self._is_changed = self._is_cleared = False
        try:
            self._database = self._opened()
        except sqlite3.Error as error:
            if type(error) is not sqlite3.DatabaseError:
                raise self._failure(error) from error
            self._lay_aside(error)
            self._database = self._opened()
        self._told = {name: json.loads(text) for name, text in self._database.execute("SELECT name, text FROM told")}
        grid = _micros(source.every_s) if source.every_s is not None else 0
        if self._told.get("grid", grid) != grid:
            self.damage = f"{path} was of another grid, and is begun anew"
            self.clear()
        else:
            self.rows = self._count()
        self._told["grid"] = grid
        self._number_of = self._numbered(source.columns)
        self._take_of = {self._number_of[column.name]: column.take for column in source.columns}

    @property
    def counts(self) -> dict[str, int]:
        """How many readings were taken, and how many were bad ones, since the window was begun."""
        return {"readings": self._told.get("readings", 0), "bad_readings": self._told.get("bad", 0)}

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._waiting) or self._is_changed

    @property
    def newest_s(self) -> float | None:
        """The time of the newest row that ever was."""
        newest: int | None = self._told.get("newest")
        return newest / _MICRO if newest is not None else None

    def put(self, time_s: float, values: Mapping[str, float]) -> None:
        """Add readings of one moment to its row.

        Raises:
            Unwritable: the disk is failing.
        """
        grid: int = self._told["grid"]
        moment = _micros(time_s)
        key = moment // grid * grid if grid else moment
        cells = self._waiting.get(key)
        if cells is None:
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[min(self._waiting)]
            found = self._found(key)
            self.rows += found is None
            cells = self._waiting[key] = found or {}
        self._told["newest"] = max(key, self._told.get("newest", key))
        for name, value in values.items():
            number = self._number_of[name]
            cells[number] = _joined(self._take_of[number], cells.get(number), value)
        self._told["readings"] = self._told.get("readings", 0) + len(values)

    def count_bad(self, count: int = 1) -> int:
        """Count readings that could not be used; return all of them."""
        self._is_changed = True
        self._told["bad"] = bad = self._told.get("bad", 0) + count
        return int(bad)

    def remembered(self, name: str) -> Any:
        """Return what `remember` was last told, None for nothing."""
        return self._told.get(f"of {name}")

    def remember(self, name: str, value: Any) -> None:
        """Keep something that JSON can say, with the next commit: how far a file was read, in one with its rows."""
        if self._told.get(f"of {name}") != value:
            self._told[f"of {name}"] = value
            self._is_changed = True

    def clear(self) -> None:
        """Drop all rows, with the next commit."""
        self._waiting.clear()
        self._told = {name: value for name, value in self._told.items() if name in ("grid", "writes", "columns")}
        self.rows, self._is_changed, self._is_cleared = 0, True, True

    def commit(self) -> None:
        """Write what waits, and drop the rows that are too many, in one transaction.

        Raises:
            Unwritable: the disk cannot take it; it goes on waiting.
        """
        if not self.is_waiting:
            return
        self._told["writes"] = self._told.get("writes", 0) + 1
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            if self._is_cleared:
                database.execute("DELETE FROM rows")
                database.execute("DELETE FROM told")
            packed = ((key, _packed(cells)) for key, cells in self._waiting.items())
            database.executemany("REPLACE INTO rows VALUES (?, ?)", packed)
            self._roll()
            told = ((name, json.dumps(value)) for name, value in self._told.items())
            database.executemany("REPLACE INTO told VALUES (?, ?)", told)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise self._failure(error) from error
        files.worn.add(_PAGE * 2 + sum(CELL.size * len(cells) for cells in self._waiting.values()), forced=0)
        self._waiting.clear()
        self._is_changed = self._is_cleared = False

    def close(self) -> None:
        """Commit what waits, where that is possible, and close the file."""
        try:
            self.commit()
        except HflError as error:
            _log.warning("readings are lost: %s", error)
        self._database.close()

    def _found(self, key: int) -> Cells | None:
        if self._is_cleared:
            return None
        try:
            row = self._database.execute("SELECT cells FROM rows WHERE time = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        return dict(_cells(row[0])) if row is not None else None

    def _roll(self) -> None:
        """Drop the oldest rows where there are too many, where they are too old, or too large together."""
        source, database = self._source, self._database
        if (now_s := self._clock()) > BELIEVABLE_S:
            self._roll_by_time(_micros(now_s))
        rows = self._count()
        while rows > 1 and (rows > source.keep_rows or self._used_bytes() > source.keep_bytes):
            surplus = max(rows - source.keep_rows, 0) or max(rows // _SHARE, 1)
            database.execute("DELETE FROM rows WHERE time IN (SELECT time FROM rows ORDER BY time LIMIT ?)", (surplus,))
            rows -= surplus
        self.rows = rows

    def _roll_by_time(self, now: int) -> None:
        source, database = self._source, self._database
        if source.kind == "mqtt":  # a sensor's, heard before the clock was set; a file may speak of what is to come
            ahead = database.execute("DELETE FROM rows WHERE time > ?", (now + _micros(MAX_AHEAD_S),)).rowcount
            if ahead:
                _log.warning("%s: dropped %d rows of a time more than a day ahead of our clock", self._path, ahead)
        newest = database.execute("SELECT max(time) FROM rows").fetchone()[0]
        if newest is not None and source.keep_s is not None:
            # Never after now: one reading of the year 2199 would make all others too old.
            database.execute("DELETE FROM rows WHERE time < ?", (min(newest, now) - _micros(source.keep_s),))

    def _used_bytes(self) -> int:
        pages = self._database.execute("PRAGMA page_count").fetchone()[0]
        free = self._database.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * _PAGE

    def _count(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM rows").fetchone()[0]
        return count

    def _numbered(self, columns: Iterable[Column]) -> dict[str, int]:
        """Return the number of each column; one that is taken otherwise than before has a new one."""
        known = self._told.setdefault("columns", [])
        numbers: dict[str, int] = {}
        for column in columns:
            row = [column.name, column.take.value]
            if row not in known:
                known.append(row)
                self._is_changed = True
            numbers[column.name] = known.index(row)
        return numbers

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (f"page_size = {_PAGE}", "cache_size = -128", "journal_mode = WAL", "synchronous = NORMAL"):
                database.execute(f"PRAGMA {pragma}")
            database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if found != "ok" or version not in (0, _VERSION):
                raise sqlite3.DatabaseError(found if found != "ok" else f"of version {version}")
            database.execute("CREATE TABLE IF NOT EXISTS rows (time INTEGER PRIMARY KEY, cells BLOB)")
            database.execute("CREATE TABLE IF NOT EXISTS told (name TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            database.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    def _lay_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
        self.damage = f"{self._path} is damaged ({error}): it was laid aside as {aside.name}, and is begun anew"
        _log.warning("%s", self.damage)

    def _failure(self, error: sqlite3.Error) -> HflError:
        return Unwritable(f"{self._path}: readings cannot be kept: {error}; free some space, or check the SD card")


def peek(path: Path) -> dict[str, int]:
    """Return the counts of a window that another process writes: rows, readings, bad ones. Nothing without a window."""
    if not path.is_file():
        return {}
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            rows = database.execute("SELECT count(*) FROM rows").fetchone()[0]
            told = dict(database.execute("SELECT name, text FROM told WHERE name IN ('readings', 'bad')").fetchall())
        finally:
            database.close()
    except sqlite3.Error as error:
        _log.warning("%s: cannot be read: %s", path, error)
        return {}
    return {"rows": rows, "readings": int(told.get("readings", 0)), "bad_readings": int(told.get("bad", 0))}


def _joined(take: Take, before: tuple[int, float] | None, value: float) -> tuple[int, float]:
    """Return a cell with one more reading in it."""
    if before is None:
        return 1, value
    count, sofar = before
    count = min(count + 1, _MOST_READINGS)
    if take is Take.LEAST:
        return count, min(sofar, value)
    if take is Take.MOST:
        return count, max(sofar, value)
    if take is Take.LAST:
        return count, value
    return count, min(max(sofar + value, -_LARGEST), _LARGEST)


def _cells(packed: bytes) -> Iterator[tuple[int, tuple[int, float]]]:
    return ((number, (count, value)) for number, count, value in CELL.iter_unpack(packed))


def _packed(cells: Cells) -> bytes:
    return b"".join(CELL.pack(number, *cell) for number, cell in cells.items())


def _micros(seconds: float) -> int:
    return math.floor(seconds * _MICRO)
