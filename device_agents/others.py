"""How much of the processor other programs use: all that is busy, less what this agent and its training use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from device_agents.reading import ROOT, text
from device_agents.vitals import FRESH_S, cpu_ticks

#: Training processes are children of the agent; their own children are data loaders. Deeper is nothing of ours.
_GENERATIONS = 4
#: Where utime, stime, and those of ended children stand in /proc/PID/stat, after the command's closing bracket.
_TIMES = slice(11, 15)


class Others:
    """Tells how busy other programs have kept the processor since it was last asked.

    Args:
        root: stands for `/`.
        pid: this process, for its own share and that of its children.
        clock: monotonic seconds.
    """

    def __init__(self, root: Path = ROOT, pid: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._pid = os.getpid() if pid is None else pid
        self._before, self._read_s = self._ticks(), clock()
        self._share: float | None = None

    def __call__(self) -> float | None:
        """Return the share of all cores that other programs use, 0 to 1; None where the system does not say."""
        now = self._clock()
        if self._share is None or now - self._read_s >= FRESH_S:
            before, after = self._before, self._ticks()
            self._before, self._read_s = after, now
            if before is None or after is None or after[1] <= before[1]:
                return self._share
            self._share = min(max((after[0] - before[0]) / (after[1] - before[1]), 0.0), 1.0)
        return self._share

    def _ticks(self) -> tuple[int, int] | None:
        """Return the ticks of others and of all; the times of a process that has ended stay with its parent."""
        ticks = cpu_ticks(self._root)
        return None if ticks is None else (ticks[0] - self._own(self._pid), ticks[1])

    def _own(self, pid: int, generation: int = 0) -> int:
        home = self._root / "proc" / str(pid)
        fields = text(home / "stat").rpartition(")")[2].split()[_TIMES]
        own = sum(int(field) for field in fields if field.lstrip("-").isdecimal())
        if generation == _GENERATIONS:
            return own
        children = {child for path in home.glob("task/*/children") for child in text(path).split()}
        return own + sum(self._own(int(child), generation + 1) for child in children if child.isdecimal())
