"""Files that grow, followed into a window: how far each was read is kept in one transaction with its rows.

A CSV file is read on from where it was left, up to its last whole line. A file is told by its inode, and by its first
bytes: one that was rotated away is finished under its new name, one that was truncated or replaced is begun anew, one
that was written anew with more behind (as `rsync` and editors do) is read on. A Parquet file cannot grow in place: what
is new is read, and where one has changed all are read anew.
"""

from __future__ import annotations

import csv
import glob
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from hfl_mqtt.errors import Malformed, TaskError
from hfl_mqtt.learning.sources import readings
from hfl_mqtt.learning.sources.source import Source
from hfl_mqtt.learning.sources.window import MAX_WAITING, Window

#: Bytes that are read and committed at once.
STEP = 2**18
#: A longer line is no line.
MAX_LINE = 2**16
#: A file is told from others by so many of its first bytes, or by those read so far.
_HEAD = 1024
_DELIMITERS = ",;\t"
_DAY_S = 86_400.0

Say = Callable[[str], None]


@checked_dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """How far one file was read; `head` is the CRC-32 of its first `_HEAD` bytes, or of those read so far."""

    inode: int
    offset: int
    head: int
    header: str


_BOOKMARKS = TypeAdapter(list[Bookmark])


def follow(source: Source, window: Window, say: Say = lambda _line: None) -> None:
    """Read what the files of a source have that was not read yet.

    Args:
        source: of kind csv or parquet.
        window: takes the rows; is committed.
        say: takes a sentence about what is wrong with a file, for people.

    Raises:
        TaskError: a file has not the columns, or cannot be read.
        Unwritable: the disk takes no rows.
    """
    try:
        if source.kind == "parquet":
            from hfl_mqtt.learning.sources import parquet

            parquet.follow(source, window, paths_of(source), say)
        else:
            _Csv(source, window, say).follow()
    except OSError as error:
        raise TaskError(f"{error.filename}: cannot be read: {error.strerror}: correct data.path") from error
    window.commit()


def paths_of(source: Source) -> list[Path]:
    """Return the files that a source names now, by name.

    Raises:
        TaskError: there is none.
    """
    names = glob.glob(source.files)  # noqa: PTH207 - a pattern may begin at the root
    found = sorted(Path(name) for name in names if Path(name).is_file())
    if not found:
        raise TaskError(f"data.path: there is no file {source.files}: correct it, or wait until one is written")
    return found


@dataclass(slots=True)
class _Csv:
    source: Source
    window: Window
    say: Say

    def follow(self) -> None:
        known = _BOOKMARKS.validate_python(self.window.remembered("files") or [])
        named = paths_of(self.source)
        beside = {path for folder in {path.parent for path in named} for path in folder.iterdir()}
        inodes = {path.stat().st_ino: path for path in sorted(beside) if path.is_file()}
        wanted = {path.stat().st_ino for path in named} | {mark.inode for mark in known if mark.inode in inodes}
        # First what was rotated away: it is older.
        paths = sorted((inodes[inode] for inode in wanted), key=lambda path: (path in named, path))
        kept: list[Bookmark] = []
        for path in paths:
            with path.open("rb") as file:
                mark = self._mark_of(file, path.stat().st_ino, known, inodes)
                for further in self._read(file, path, mark):
                    mark = further
                    self._remember([*kept, mark, *(each for each in known if each.inode in inodes)])
            kept.append(mark)
        self._remember(kept)

    def _mark_of(self, file: BinaryIO, inode: int, known: list[Bookmark], inodes: dict[int, Path]) -> Bookmark:
        """Return how far this file was read in a former life, under this name or another."""
        size = file.seek(0, 2)
        mine = [mark for mark in known if mark.inode == inode]
        gone = [mark for mark in known if mark.inode not in inodes]
        for mark in mine + gone:
            if mark.offset <= size and _head(file, mark.offset) == mark.head:
                return Bookmark(inode=inode, offset=mark.offset, head=mark.head, header=mark.header)
        if mine:
            self.say("a file that was followed has been written anew: it is read from its beginning")
        return Bookmark(inode=inode, offset=0, head=_head(file, 0), header="")

    def _remember(self, marks: list[Bookmark]) -> None:
        first = {mark.inode: mark for mark in reversed(marks)}
        self.window.remember("files", [_BOOKMARKS.dump_python([mark])[0] for mark in first.values()])
        self.window.commit()

    def _read(self, file: BinaryIO, path: Path, mark: Bookmark) -> Iterator[Bookmark]:
        """Read whole lines from the mark on; gives how far that is after each step, once at least."""
        header, offset, is_over = mark.header, mark.offset, False
        while not is_over:
            file.seek(offset)
            lines = file.read(STEP).split(b"\n")
            is_over = len(lines) == 1 and len(lines[0]) <= MAX_LINE
            whole = lines[:-1][:MAX_WAITING] if len(lines) > 1 else lines[: not is_over]
            if len(lines) == 1 and not is_over:
                self._bad(path, f"a line of more than {MAX_LINE} bytes")
            offset = min(offset + sum(len(line) + 1 for line in whole), file.seek(0, 2))
            texts = [line.decode("utf-8", errors="replace").removeprefix("\ufeff") for line in whole]
            if texts and not header:
                header, texts = texts[0], texts[1:]
            self._take(texts, header, path)
            yield Bookmark(inode=mark.inode, offset=offset, head=_head(file, offset), header=header)

    def _take(self, lines: list[str], header: str, path: Path) -> None:
        if not lines:
            return
        source, window = self.source, self.window
        delimiter = max(_DELIMITERS, key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
        columns = [(column, _place(column.field or column.name, names, path)) for column in source.columns]
        time_at = _place(source.time, names, path) if source.time else None
        for row in csv.reader((line for line in lines if len(line) <= MAX_LINE), delimiter=delimiter):
            if not row:
                continue
            if len(row) != len(names):
                self._bad(path, f"a line has {len(row)} fields, the first has {len(names)}")
                continue
            cells = [cell.replace(",", ".") if delimiter == ";" else cell for cell in row]
            try:
                moment_s = readings.read_time(row[time_at].strip()) if time_at is not None else next_moment(window)
            except Malformed as error:
                self._bad(path, str(error))
                continue
            values: dict[str, float] = {}
            for column, at in columns:
                try:
                    value = readings.read_cell(cells[at], column)
                except Malformed as error:
                    self._bad(path, f"{column.name}: {error}")
                    continue
                if value is not None:
                    values[column.name] = value
            if values:
                window.put(moment_s, values)

    def _bad(self, path: Path, reason: str) -> None:
        if self.window.count_bad() == 1:
            self.say(f"{path.name}: {reason}")


def next_moment(window: Window) -> float:
    """Return a time for a row that has none: now, and behind all others."""
    newest_s = window.newest_s
    now = time.time()
    return now if newest_s is None or newest_s < now else newest_s + 1e-3


def _place(name: str, names: list[str], path: Path) -> int:
    if name not in names:
        raise TaskError(f"{path}: has no column {name!r}: it has {', '.join(names)[:200]}")
    return names.index(name)


def _head(file: BinaryIO, offset: int) -> int:
    file.seek(0)
    return zlib.crc32(file.read(min(_HEAD, offset)))
