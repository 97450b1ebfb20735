"""Ctrl-C and SIGTERM for a program with children: they unwind it, but never between a child's start and its name."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that nothing is left running."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait for the end of the block: nobody would know a child whose start they cut short."""
    caught: list[int] = []
    with _handled_by(lambda number, _frame: caught.append(number)):
        yield
    if caught:
        raise KeyboardInterrupt


@contextmanager
def noticed() -> Iterator[list[int]]:
    """Give a list in which signals are written down, and raise nothing: for a loop that looks at it.

    An exception may come at any moment, in a lock that is then never given back, or where Python only tells of it.
    """
    caught: list[int] = []
    with _handled_by(lambda number, _frame: caught.append(number)):
        yield caught


def ignore() -> None:
    """Let nothing interrupt any more, until an outer `as_interrupt` ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    kept = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)
