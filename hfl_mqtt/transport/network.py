"""The one thread that all links of a process share: it waits for their sockets and their timers, and never for a peer.

What may block, such as looking a host up, connecting or shaking hands, is done `aside`, by a few threads that are there
only while there is something to do. So a broker that hangs delays whoever connects, and nobody who is connected.
"""

from __future__ import annotations

import heapq
import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Protocol

#: How many connections may be in the making at once. A thousand connect in a second or two, and a broker's queue of
#: connections it has yet to accept, 100 with Mosquitto, never overflows.
MAX_ASIDE = 4

_logger = logging.getLogger(__name__)
Job = Callable[[], None]
#: Called when a socket can be read.
Ready = Callable[[], None]


class HasFileno(Protocol):
    """What a selector takes: a socket, or what paho wraps one in."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Network:
    """A selector loop in a thread of its own, which starts with the first job and ends with the process.

    `call` and `aside` may be used from any thread, everything else only from jobs. What a job raises is logged, and the
    loop goes on.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._jobs: deque[Job] = deque()
        self._timers: list[tuple[float, int, Job]] = []
        self._order = count()
        self._wake_from, self._wake_to = os.pipe()
        self._is_woken = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._blocking: deque[Job] = deque()
        self._asides = 0
        os.set_blocking(self._wake_from, False)
        os.set_blocking(self._wake_to, False)
        self._selector.register(self._wake_from, selectors.EVENT_READ, self._slept_enough)

    def call(self, job: Job) -> None:
        """Run a job on the network's thread, soon; jobs keep their order."""
        self._jobs.append(job)
        if self._thread is None:
            self._start()
        # Cleared by the loop before it looks at the jobs, so a job that finds it set is not overlooked.
        if not self._is_woken and threading.current_thread() is not self._thread:
            self._is_woken = True
            os.write(self._wake_to, b"\0")

    def call_at(self, due_s: float, job: Job) -> None:
        """Run a job when `time.monotonic` has reached a time."""
        heapq.heappush(self._timers, (due_s, next(self._order), job))

    def aside(self, job: Job) -> None:
        """Run a job that may block, after those that came before it."""
        with self._lock:
            self._blocking.append(job)
            if self._asides == MAX_ASIDE:
                return
            self._asides += 1
            number = self._asides
        threading.Thread(target=self._run_aside, name=f"connecting-{number}", daemon=True).start()

    def watch(self, sock: HasFileno, ready: Ready, *, is_writing: bool = False) -> None:
        """Call `ready` whenever a socket can be read, and where `is_writing` also when it can be written."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_writing else 0)
        known = self._selector.get_map().get(sock)
        if known is None:
            self._selector.register(sock, events, ready)
        elif known.events != events:
            self._selector.modify(sock, events, ready)

    def forget(self, sock: HasFileno) -> None:
        """Watch a socket no longer; before it is closed."""
        if sock in self._selector.get_map():
            self._selector.unregister(sock)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="network", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._patience_s()):
                # Its socket may be gone, by what was done for one before it.
                if key.fd in self._selector.get_map():
                    _guarded(key.data)
            self._is_woken = False
            # What jobs and timers add is for the next turn, so that sockets are looked at between.
            for _ in range(len(self._jobs)):
                _guarded(self._jobs.popleft())
            now_s = time.monotonic()
            while self._timers and self._timers[0][0] <= now_s:
                _guarded(heapq.heappop(self._timers)[2])

    def _patience_s(self) -> float | None:
        if self._jobs:
            return 0.0
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None

    def _slept_enough(self) -> None:
        os.read(self._wake_from, 4096)

    def _run_aside(self) -> None:
        while True:
            with self._lock:
                if not self._blocking:
                    self._asides -= 1
                    return
                job = self._blocking.popleft()
            _guarded(job)


def _guarded(job: Job) -> None:
    try:
        job()
    except Exception:
        _logger.exception("a fault of ours in %r; the network goes on", job)


@cache
def shared() -> Network:
    """Return the network of this process."""
    return Network()
