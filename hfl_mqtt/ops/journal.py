"""What happened, as JSON lines: one record per note, for people with `jq` and for the report."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from hfl_mqtt.errors import HflError
from hfl_mqtt.rounds.actions import Note

#: Notes that a person watching a terminal wants to see; everything stands in the file.
_LOUD = {
    "run", "opened", "closed", "missed", "extended", "scored", "joined", "lost", "left", "refused", "declined",
    "malformed", "stranger", "disconnected", "connected", "rejected", "scoring_failed", "given_up",
}  # fmt: skip


class Journal:
    """Takes notes of the nodes of one process; safe to call from any thread.

    Args:
        path: the file to append to; None keeps none.
        echo: takes each record for a person or a script, already as one line.
        as_json: whether `echo` gets JSON rather than a sentence.
    """

    def __init__(self, path: Path | None, *, echo: Callable[[str], None] | None = None, as_json: bool = False) -> None:
        self._lock = threading.Lock()
        self._echo, self._as_json = echo, as_json
        self._file = None
        self._began_s = time.monotonic()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise HflError(f"cannot write the journal {path}: {error.strerror}") from None

    def __call__(self, node: str, entry: Note) -> None:
        """Write a note of `node`."""
        record = {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "s": round(time.monotonic() - self._began_s, 3),
            "node": node,
            "event": entry.event,
            **entry.fields,
        }
        line = json.dumps(record, default=str)
        with self._lock:
            if self._file is not None:
                self._file.write(line + "\n")
                self._file.flush()
            if self._echo is not None and (self._as_json or entry.event in _LOUD):
                self._echo(line if self._as_json else sentence(record))

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sentence(record: dict[str, Any]) -> str:
    """Return a record as a line for people; control characters, which a peer may have sent, are made visible."""
    rest = {key: value for key, value in record.items() if key not in ("at", "s", "node", "event", "run")}
    said = " ".join(f"{key}={_short(value)}" for key, value in rest.items() if value not in ("", None, []))
    text = f"{record['s']:8.1f} s  {record['node']}  {record['event']}  {said}".rstrip()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal; a line cut off by a crash is passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
