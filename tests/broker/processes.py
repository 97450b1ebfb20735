"""Our programs as a person runs them, and what they say and write, waited for rather than guessed at."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

LIMIT_S = 120.0
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
T = TypeVar("T")


def until(look: Callable[[], T | None], what: str) -> T:
    """Look again and again until there is something true to see, and return that."""
    end_s = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not (seen := look()):
        assert time.monotonic() < end_s, f"waited {LIMIT_S:g} s for {what}"
        pause.wait(0.02)
    return seen


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of `hfl ...` in this Python."""
    return [sys.executable, "-m", "hfl_mqtt.cli", *map(str, arguments)]


def hfl(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `hfl ...` to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=_ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


class Program:
    """An `hfl ...` that runs on; `lines` are all that it has printed, errors too."""

    def __init__(self, *arguments: str | Path) -> None:
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            command(*arguments), env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def hear(self, part: str) -> str:
        """Wait for a line with this in it."""
        while (line := self._queue.get(timeout=LIMIT_S)) is not None:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"it ended and never said {part!r}, only {self.lines}")

    def end(self, number: int | None = signal.SIGINT) -> tuple[int, float]:
        """Send a signal, Ctrl-C as it is, or None; return the exit status and the seconds that the end took."""
        began_s = time.monotonic()
        if number is not None:
            self._process.send_signal(number)
        status = self._process.wait(LIMIT_S)
        while (line := self._queue.get(timeout=LIMIT_S)) is not None:
            self.lines.append(line)
        self._thread.join(LIMIT_S)
        return status, time.monotonic() - began_s

    def signal(self, number: int) -> None:
        """Send it a signal, and go on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a word. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
            self.end(None)


@contextmanager
def running(*arguments: str | Path) -> Iterator[Program]:
    """Run an `hfl ...` for as long as the block."""
    program = Program(*arguments)
    try:
        yield program
    finally:
        program.kill()
