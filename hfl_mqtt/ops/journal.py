"""What happened, as JSON lines: one record per note, for people with `jq` and for the report.

A journal is bounded, for a board's card is small and nobody looks after it: a full file becomes `journal.jsonl.1`, in
place of the one before, and a new one begins.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.files import failure
from hfl_mqtt.rounds.actions import Note

_ENCODER = json.JSONEncoder(default=str, allow_nan=False)
#: Notes that a person watching a terminal wants to see; everything stands in the file.
_LOUD = {
    "run", "opened", "closed", "missed", "extended", "scored", "joined", "lost", "left", "refused", "declined",
    "malformed", "stranger", "disconnected", "connected", "rejected", "scoring_failed", "waiting", "incomplete",
    "failed", "stopping", "chain_broken", "halted", "went_on", "damaged", "restored", "ordered", "cloned",
    "leads", "steps_down", "moved", "quarantined", "released", "in_quarantine", "paused",
}  # fmt: skip

#: With the blank lines and the indentation about it.
_LINE_BREAKS = re.compile(r"[ \t\r]*\n\s*")
#: A journal takes at most twice this: the file and the one before it.
MAX_BYTES = 10_000_000


class Journal:
    """Takes notes of the nodes of one process; safe to call from any thread.

    A disk that is full stops no node: that is said once, and those notes are only echoed, until there is room again.

    Args:
        path: the file to append to; None keeps none.
        echo: takes each record for a person or a script, already as one line.
        as_json: whether `echo` gets JSON rather than a sentence.
        max_bytes: when a file is full.

    Raises:
        HflError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        echo: Callable[[str], None] | None = None,
        as_json: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._lock = threading.Lock()
        self._echo, self._as_json = echo, as_json
        self._path, self._max_bytes = path, max_bytes
        self._file: FileIO | None = None
        self._size_bytes = 0
        self._is_failing = False
        self._began_s = time.monotonic()
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                if isinstance(failure(path, error), Unwritable):
                    self._tell_failure(error)
                    return
                remedy = "give this user the right to write there, or set state_dir to another folder"
                raise HflError(f"cannot write the journal {path}: {error.strerror}; {remedy}") from None

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is written whole, at once, and one that failed does not come again at the end.
        self._file = path.open("ab", buffering=0)
        if _is_cut_off(path):
            self._file.write(b"\n")
        self._size_bytes = path.stat().st_size

    def __call__(self, node: str, entry: Note) -> None:
        """Write a note of `node`."""
        record = {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "s": round(time.monotonic() - self._began_s, 3),
            "node": node,
            "event": entry.event,
            **entry.fields,
        }
        try:
            line = _ENCODER.encode(record)
        except ValueError:  # NaN or infinity, which JSON cannot say
            line = _ENCODER.encode(_finite(record))
        with self._lock:
            self._write(line)
            # An update that counts is news to who sent it; its aggregator sums up at the close.
            is_loud = entry.event in _LOUD or (entry.event == "accepted" and "sender" not in entry.fields)
            if self._echo is not None and (self._as_json or is_loud):
                self._echo(line if self._as_json else sentence(record))

    def _write(self, line: str) -> None:
        if self._path is None:
            return
        data = line.encode() + b"\n"
        try:
            if self._file is None:
                self._open(self._path)
            assert self._file is not None
            if self._size_bytes and self._size_bytes + len(data) > self._max_bytes:
                self._file = _begun_anew(self._path, self._file)
                self._size_bytes = 0
            self._file.write(data)
            self._size_bytes += len(data)
        except OSError as error:
            self._tell_failure(error)
        else:
            self._is_failing = False

    def _tell_failure(self, error: OSError) -> None:
        if not self._is_failing and self._echo is not None and not self._as_json:
            self._echo(f"cannot write the journal {self._path}: {error.strerror}; notes are lost until it can")
        self._is_failing = True

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = self._path = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sentence(record: dict[str, Any]) -> str:
    """Return a record as a line for people; what it holds by child, such as `updates`, is for programs."""
    own = ("at", "s", "node", "event", "run")
    rest = {key: value for key, value in record.items() if key not in own and not isinstance(value, dict)}
    said = " ".join(f"{key}={_short(value)}" for key, value in rest.items() if value not in ("", None, []))
    clock = datetime.fromisoformat(record["at"]).astimezone().strftime("%H:%M:%S")
    return plain(f"{clock}  {record['node']}  {record['event']}  {said}".rstrip())


def plain(text: str, *, keep: str = "") -> str:
    r"""Return a text that a peer may have had a hand in so that it cannot command a terminal.

    Control characters, those that turn the direction of writing too, are made visible, save those in `keep`. Lines
    that may not stay are put behind each other.

    >>> print(plain("\x1b[2Jgone?"))
    \x1b[2Jgone?
    >>> print(plain("two lines:\n  this is the second"))
    two lines: / this is the second
    """
    if "\n" not in keep:
        text = _LINE_BREAKS.sub(" / ", text.strip("\r\n"))
    return "".join(one if one.isprintable() or one in keep else repr(one)[1:-1] for one in text)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal, older file first; a line cut off by a crash is passed over."""
    older = _older(path)
    for one in (older, path) if older.is_file() else (path,):
        with one.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _begun_anew(path: Path, full: FileIO) -> FileIO:
    """Lay the full file aside and return a new one; where that fails, `full` stays open."""
    if path.exists():  # else it was laid aside before, and only opening a new one failed
        path.replace(_older(path))
    fresh = path.open("ab", buffering=0)
    full.close()
    return fresh


def _is_cut_off(path: Path) -> bool:
    """Whether the last line has no end, because the power went while it was written."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    """Return `value` with None for what JSON cannot say, NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
