"""The vault: what the nodes of one process made durable, in one folder that belongs to that process alone.

    state.db        SQLite, write-ahead log, forced to the disk at every commit: one row a node and key
    17.big          a value too large for a row; written and forced before the commit that names it
    lock            whose folder it is

A commit is all or nothing, also under a pulled plug. A value in a file of its own never changes while a row names it.
Afterwards a few such files wait for another value, because writing over what is there already costs the disk half of
what a new file does: no name to force, no blocks to find. What a crash left unnamed is swept at the next start.

Each value has a checksum, for an SD card may give back other bytes than it took: what is not what was written when a
vault is opened is taken as never kept.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hfl_mqtt import files
from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.state.lock import Lock

#: What bytes are here; as in `protocol.messages`.
Buffer = bytes | bytearray | memoryview
#: Changes by node and key; None deletes.
Changes = Mapping[tuple[str, str], Buffer | None]

DATABASE = "state.db"
#: A larger value gets a file of its own: through the log it would be written twice.
LARGE = 64 * 1024
#: Pages are small because changes are: whole pages are written, and an SD card counts each.
_PAGE = 1024
_FRAME = _PAGE + 24
#: The log is brought into the database, and begun anew, when it is this long.
_LOG_BYTES = 2**20
#: A large value is written in steps of so much; a mapped one takes no more memory than that.
_STEP = 2**20
#: So many files wait to be written over, of at most so many bytes each: more would only take room.
_SPARE_FILES, _SPARE_BYTES = 4, 2**20
_VERSION = 3
#: Of a row: the value, or its length and the number of the file that begins with it; its checksum.
_Row = tuple[Buffer | int, int | None, int]
_log = logging.getLogger(__name__)


class Vault:
    """What nodes made durable, for their next lives. Everything is called from one thread at a time.

    Args:
        directory: the folder; it is made where there is none.

    Raises:
        HflError: it belongs to another process, is not ours to write, or a later version wrote it.
        Unwritable: the disk is full or read-only.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = os.path.join(directory, f"{DATABASE}-wal")  # noqa: PTH118 - looked at twice with each commit
        self._lock = Lock(directory)
        self._waiting: dict[tuple[str, str], Buffer | None] = {}
        #: The numbers of the files that rows name, by node and key.
        self._named: dict[tuple[str, str], int] = {}
        #: Numbers of files that no row names any more, and of those that somebody may have mapped: never the same.
        self._spare: list[int] = []
        self._mapped: set[int] = set()
        #: What was found wrong at the start, for people; empty where nothing was.
        self.damage = ""
        try:
            self._database = self._open()
            self._next_large = 1 + max((number for number in map(_number_of, self._large()) if number), default=0)
            self._sweep()
        except BaseException:
            self._lock.release()
            raise

    def of(self, node: str) -> Mapping[str, Buffer]:
        """Return what the node's former life kept, by key. A value is read when it is asked for, a large one mapped."""
        return Kept(self._database, self._directory, node, self._mapped)

    def latest(self, node: str) -> dict[str, Buffer]:
        """Return what a node has kept, what waits too: for who goes on within this process, where that comes later."""
        found: dict[str, Buffer | None] = dict(self.of(node))
        found |= {key: value for (who, key), value in self._waiting.items() if who == node}
        return {key: value for key, value in found.items() if value is not None}

    def commit(self, changes: Changes) -> None:
        """Make changes durable, with all that waits: all of them or none.

        Raises:
            Unwritable: the disk cannot take them; nothing has changed, and what waits goes on waiting.
            HflError: the database is damaged.
        """
        together = {**self._waiting, **changes}
        if not together:
            return
        placed: list[int] = []
        first_new = self._next_large
        try:
            values = {key: self._placed(value, placed) for key, value in together.items()}
            if self._next_large > first_new:
                files.force(self._directory)
            gone = self._write(values)
        except (OSError, sqlite3.Error) as error:
            for number in placed:
                self._path(number).unlink(missing_ok=True)
            raise self._failure(error) from error
        self._waiting = {}
        for number in gone:
            self._put_aside(number)

    def wait(self, changes: Changes) -> None:
        """Take changes that may wait for the next commit, and may be lost by a power cut until then."""
        for key, value in changes.items():
            # What is given may be changed or unmapped later, so it is copied; large things do not wait.
            self._waiting[key] = None if value is None else bytes(value)

    def forget_others(self, nodes: set[str]) -> None:
        """Delete what belongs to none of these nodes; see `commit` for what is raised."""
        rows = self._database.execute("SELECT node, key FROM kept").fetchall()
        self.commit({(node, key): None for node, key in rows if node not in nodes})

    def close(self) -> None:
        """Commit what waits, where that is possible, and give the folder back. Idempotent."""
        if not self._lock.is_held:
            return
        try:
            self.commit({})
        except HflError as error:
            _log.warning("what could wait is lost: %s", error)
        self._database.close()
        self._lock.release()

    # -------------------------------------------------------------- writing

    def _placed(self, value: Buffer | None, placed: list[int]) -> _Row | None:
        """Return what stands in the row of a value; a large one stands in a file afterwards, told in `placed`."""
        if value is None:
            return None
        whole = memoryview(value).cast("B")
        if len(whole) <= LARGE:
            return value, None, zlib.crc32(whole)
        if is_spare := bool(self._spare) and len(whole) <= _SPARE_BYTES:
            number = self._spare.pop()
        else:
            number, self._next_large = self._next_large, self._next_large + 1
        placed.append(number)
        return len(whole), number, _write_large(self._path(number), whole, is_new=not is_spare)

    def _put_aside(self, number: int) -> None:
        """Keep a file that no row names for another value, or remove it: what is mapped must not change."""
        path = self._path(number)
        if number in self._mapped or len(self._spare) >= _SPARE_FILES or _size(path) > _SPARE_BYTES:
            self._mapped.discard(number)
            path.unlink(missing_ok=True)
        else:
            self._spare.append(number)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}{_SUFFIX}"

    def _write(self, values: Mapping[tuple[str, str], _Row | None]) -> list[int]:
        """Write rows in one transaction, and return the numbers of the files that they no longer name."""
        database, log = self._database, self._log
        before = _size(log)
        database.execute("BEGIN IMMEDIATE")
        try:
            for (node, key), value in values.items():
                if value is None:
                    database.execute("DELETE FROM kept WHERE node = ? AND key = ?", (node, key))
                else:
                    database.execute("REPLACE INTO kept VALUES (?, ?, ?, ?, ?)", (node, key, *value))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        gone = [self._named.pop(key) for key in values if key in self._named]
        self._named |= {key: value[1] for key, value in values.items() if value is not None and value[1] is not None}
        after = _size(log)
        files.worn.add(max(after - before, 0), forced=1 if before else 2)
        if after > _LOG_BYTES:
            self._begin_log_anew(after)
        return gone

    def _begin_log_anew(self, size: int) -> None:
        """Bring the log into the database. Where that fails everything is still durable: it is tried again later."""
        try:
            is_busy = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            _log.warning("%s: its log cannot be emptied: %s", self._directory / DATABASE, error)
            return
        if not is_busy:
            pages = self._database.execute("PRAGMA page_count").fetchone()[0]
            files.worn.add(min(size // _FRAME, pages) * _PAGE, forced=2)

    def _failure(self, error: OSError | sqlite3.Error) -> HflError:
        if isinstance(error, OSError):
            return files.failure(self._directory, error)
        text = str(error)
        if type(error) is sqlite3.DatabaseError:
            return HflError(f"{self._directory / DATABASE}: damaged ({text}); start again: it is then laid aside")
        number = next((number for words, number in _NUMBERS.items() if words in text), errno.EIO)
        return Unwritable(f"{self._directory}: cannot be written: {text}; {files.ADVICE[number]}")

    # -------------------------------------------------------------- opening

    def _open(self) -> sqlite3.Connection:
        path = self._directory / DATABASE
        try:
            return self._opened(path)
        except sqlite3.Error as error:
            if type(error) is not sqlite3.DatabaseError:  # its subclasses are of the disk, not of what it holds
                raise self._failure(error) from error
            self._lay_aside(path, error)
        try:
            return self._opened(path)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _opened(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (f"page_size = {_PAGE}", "cache_size = -128", "journal_mode = WAL", "synchronous = FULL"):
                database.execute(f"PRAGMA {pragma}")
            database.execute("PRAGMA wal_autocheckpoint = 0")
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise HflError(f"{path}: another version of hfl-mqtt wrote it: install that, or delete the folder")
            if not version:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS kept (node TEXT, key TEXT, value BLOB, large INTEGER, "
                    "crc INTEGER, PRIMARY KEY (node, key)) WITHOUT ROWID"
                )
                database.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    def _lay_aside(self, path: Path, error: sqlite3.Error) -> None:
        """Keep a damaged database for who wants to look at it, one at most, and begin an empty one."""
        aside = path.with_name(f"{DATABASE}.damaged")
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(f"{DATABASE}{suffix}").unlink(missing_ok=True)
        self.damage = (
            f"{path} is damaged ({error}), often after an error on an SD card: it was laid aside as {aside.name}, and "
            "this node begins anew, as after the loss of its disk"
        )
        _log.warning("%s", self.damage)

    def _large(self) -> list[Path]:
        return [path for path in self._directory.iterdir() if path.suffix == _SUFFIX]

    def _sweep(self) -> None:
        """Remove large values that no row names, and rows whose value is gone or is not what was written."""
        lost: list[tuple[str, str]] = []
        for node, key, value, number, crc in self._database.execute("SELECT * FROM kept ORDER BY node, key"):
            if (zlib.crc32(value) if number is None else _crc(self._path(number), value)) != crc:
                lost.append((node, key))
            elif number is not None:
                self._named[node, key] = number
        named = set(self._named.values())
        for path in self._large():
            if _number_of(path) not in named:  # also the spare ones of the former life
                path.unlink(missing_ok=True)
        if lost:
            keys = ", ".join(key for _, key in lost[:5]) + (" and more" if len(lost) > 5 else "")
            self.damage = f"{self._directory}: the disk has damaged or lost {keys}: taken as never kept"
            _log.warning("%s", self.damage)
            for row in lost:
                self._database.execute("DELETE FROM kept WHERE node = ? AND key = ?", row)


class Kept(Mapping[str, Buffer]):
    """A node's values, read as they are asked for; `mapped` is told the numbers of the files behind large ones."""

    def __init__(self, database: sqlite3.Connection, directory: Path, node: str, mapped: set[int]) -> None:
        self._database, self._directory, self._node, self._mapped = database, directory, node, mapped

    def __getitem__(self, key: str) -> Buffer:
        row = self._database.execute(
            "SELECT value, large FROM kept WHERE node = ? AND key = ?", (self._node, key)
        ).fetchone()
        if row is None:
            raise KeyError(key)
        value, number = row
        if number is None:
            return value  # type: ignore[no-any-return]
        self._mapped.add(number)
        return _map(self._directory / f"{number}{_SUFFIX}", value)

    def __iter__(self) -> Iterator[str]:
        rows = self._database.execute("SELECT key FROM kept WHERE node = ? ORDER BY key", (self._node,)).fetchall()
        return iter([key for (key,) in rows])

    def __len__(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM kept WHERE node = ?", (self._node,)).fetchone()[0]
        return count


def peek(directory: Path, node: str, *keys: str) -> dict[str, bytes]:
    """Return some of what a node has kept, whoever has its folder; nothing is changed there.

    Raises:
        HflError: there is nothing, or it cannot be read.
    """
    path = directory / DATABASE
    if not path.is_file():
        raise HflError(f"{directory}: nothing has been kept there yet")
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            kept = Kept(database, directory, node, set())
            return {key: bytes(kept[key]) for key in keys if key in kept}
        finally:
            database.close()
    except (sqlite3.Error, OSError) as error:
        raise HflError(f"{path}: cannot be read: {error}; ask as the user that the node runs as") from error


_SUFFIX = ".big"
#: What SQLite says where it does not say the system's error.
_NUMBERS = {"disk is full": errno.ENOSPC, "readonly": errno.EROFS, "unable to open": errno.EACCES}


def _number_of(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - for a text a third of what a `Path` takes
    except FileNotFoundError:
        return 0


def _write_large(path: Path, value: memoryview, *, is_new: bool) -> int:
    """Write a value into a file and force it to the disk, in steps, so that a mapped one never is in memory as a whole.

    In a file that is not new, what was longer stays behind it: a file whose length stays is forced in half the time.

    Returns:
        The value's checksum.
    """
    crc = 0
    with path.open("xb" if is_new else "r+b", buffering=0) as file:
        for start in range(0, len(value), _STEP):
            left = value[start : start + _STEP]
            crc = zlib.crc32(left, crc)
            while left:
                left = left[file.write(left) :]
            _let_go(value)
        os.fdatasync(file.fileno())
    files.worn.add(len(value), forced=1)
    return crc


def _crc(path: Path, length: int) -> int | None:
    """Return the checksum of the first `length` bytes of a file, None where they cannot be read."""
    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            while length and (step := file.read(min(length, _STEP))):
                crc = zlib.crc32(step, crc)
                length -= len(step)
    except OSError:
        return None
    return crc if not length else None


def _let_go(value: memoryview) -> None:
    """Have what was read of a mapped file take no memory any more; it can be read again."""
    if value.readonly and isinstance(value.obj, mmap.mmap):
        value.obj.madvise(mmap.MADV_DONTNEED)


def _map(path: Path, length: int) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ))
