"""What is measured of each framework in the same way: rounds, training within them, bytes, memory."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

import psutil

from benchmarks.memory import memory_of

#: A span of time, in seconds of the wall clock.
Span = tuple[float, float]
_LOOK_EVERY_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """Rounds of a run, its clients' training, TCP payload per client and round, and peaks by kind of process."""

    rounds: tuple[Span, ...]
    trained: tuple[Span, ...]
    up_bytes: float = 0.0
    down_bytes: float = 0.0
    peak_mb: Mapping[str, float]

    @property
    def rounds_s(self) -> list[float]:
        """How long each round took."""
        return [end - start for start, end in self.rounds]

    @property
    def training_shares(self) -> list[float]:
        """Which part of each round at least one client trained in."""
        return [covered(self.trained, one) / (one[1] - one[0]) for one in self.rounds]


def covered(spans: Sequence[Span], within: Span) -> float:
    """Return how many seconds of `within` at least one of the spans covers.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 9.0)], (1.5, 6.0))
    2.5
    """
    total, reached = 0.0, within[0]
    for start, end in sorted(spans):
        start, end = max(start, reached), min(end, within[1])
        if end > start:
            total += end - start
            reached = end
    return total


def between(points: Sequence[float]) -> tuple[Span, ...]:
    """Return the spans from each point to the next."""
    return tuple(pairwise(points))


class Marks:
    """Listens to what the measured processes tell: one JSON object a connection, answered once it has been noted.

    `relayed` gives the bytes up and down so far; it is read at every mark, while who told it waits, so that bytes
    belong to rounds. Times are of the wall clock, for the marks of other processes and the journals have it too.
    """

    def __init__(self) -> None:
        self.relayed: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._seen: list[dict[str, Any]] = []
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._reader())
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="marks", daemon=True)

    def __enter__(self) -> Marks:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, what: str) -> list[dict[str, Any]]:
        """Return the marks of this kind so far, in order."""
        return [mark for mark in self._seen if mark["what"] == what]

    def spans(self) -> tuple[Span, ...]:
        """Return when clients trained."""
        return tuple((mark["from_s"], mark["to_s"]) for mark in self.take("trained"))

    def _reader(self) -> type[socketserver.StreamRequestHandler]:
        marks = self

        class Reader(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                at_s, (up, down) = time.time(), marks.relayed()
                mark = json.loads(self.rfile.readline())
                marks._seen.append({**mark, "at_s": at_s, "up": up, "down": down})
                self.wfile.write(b"!")

        return Reader


class Peaks:
    """The most memory that each of several trees of processes was seen to hold, all processes of a tree together.

    Each process counts with its own peak (VmHWM); pages that two of a tree share count twice.
    """

    def __init__(self) -> None:
        self.mb: dict[str, float] = {}
        self._looked_s = 0.0

    def look(self, roots: Mapping[str, int]) -> None:
        """Look at the trees under these processes; call it all the time, it keeps to a pace of its own."""
        if time.monotonic() < self._looked_s + _LOOK_EVERY_S:
            return
        children = defaultdict[int, list[int]](list)
        for process in psutil.process_iter(["ppid"]):
            children[process.info["ppid"]].append(process.pid)
        for name, root in roots.items():
            found = [memory_of(pid) for pid in _tree(root, children)]
            total = sum(memory.peak_mb for memory in found if memory is not None)
            self.mb[name] = max(self.mb.get(name, 0.0), total)
        self._looked_s = time.monotonic()


def descendants(roots: Sequence[int]) -> list[psutil.Process]:
    """Return all processes under these, which outlive them where a framework leaves them behind."""
    found = []
    for root in roots:
        try:
            found += psutil.Process(root).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
    return found


def _tree(root: int, children: Mapping[int, list[int]]) -> list[int]:
    return [root, *(pid for child in children.get(root, []) for pid in _tree(child, children))]
