"""One process of the federation: its runners, its journal, its workshop, and an orderly end.

All nodes run in the thread that holds the process, until they are done, all have failed, or somebody asks to stop (a
signal); then everything ends in order: farewells, links, the training process. A node that fails beside others is told
of, and they go on.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfl_mqtt.errors import HflError, Misuse
from hfl_mqtt.learning import residuals
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles import vitals
from hfl_mqtt.roles.runner import Loop, Runner
from hfl_mqtt.roles.shell import MetricValues
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Counted, KeepResidual, Note, RunOver, Save, Work, note
from hfl_mqtt.rounds.node import Node

#: Takes a node's path and a note: the journal, or a list in a test.
Record = Callable[[str, Note], None]
_log = logging.getLogger(__name__)


class Process:
    """The world of all nodes of one process (see `shell.World`), and what holds them together.

    Args:
        record: takes every note.
        workshop: does the nodes' work; None for an edge.
        data: each node's `data:` options by path.
        save: makes a model durable; only a cloud saves.
        residual: where an edge keeps what coding cuts off from its updates.
        until_finished: end when every node's run is over; else only a signal, or that all have failed, ends it.
        extra: further figures beside every node's metrics, e.g. a board's vitals.
    """

    def __init__(
        self,
        record: Record,
        *,
        workshop: Workshop | None = None,
        data: Mapping[str, Mapping[str, Any]] | None = None,
        save: Callable[[Save], None] | None = None,
        residual: Path | None = None,
        until_finished: bool = False,
        extra: Callable[[], MetricValues] | None = None,
    ) -> None:
        self._record, self._workshop, self._save, self._extra = record, workshop, save, extra
        self._residual = residual
        self._data = data or {}
        self._until_finished = until_finished
        self._runners: dict[str, Runner] = {}
        self._loop = Loop(self._take_failure)
        self._ends: dict[str, RunOver] = {}
        self._alive: set[str] = set()
        self._unfinished: set[str] = set()
        self._failures: dict[str, HflError] = {}
        self._is_stopping = False

    # -------------------------------------------------------------- the world of the nodes

    def work(self, node: Node, work: Work) -> None:
        """Hand the work to the workshop."""
        if self._workshop is None:
            raise Misuse(f"{node.path} has no workshop")
        self._workshop.do(node.path, self._data.get(node.path, {}), work, self._runners[node.path].put)

    def cancel(self, node: Node, work_id: str) -> None:
        """Take the work back."""
        if self._workshop is not None:
            self._workshop.cancel(node.path, work_id)

    def counted(self, node: Node, counted: Counted) -> None:  # noqa: ARG002  (part of the contract)
        """Let the workshop keep what coding cut off from the update that was accepted."""
        if self._workshop is not None:
            self._workshop.counted(node.path)

    def keep(self, node: Node, keep: KeepResidual) -> None:
        """Put an edge's residual on disk."""
        if self._residual is not None:
            residuals.save(self._residual, keep.residual, keep.run, parent(node.path) or "")

    def save(self, node: Node, save: Save) -> None:
        """Make a model durable before it is shown."""
        if self._save is None:
            raise Misuse(f"{node.path} has nowhere to save")
        self._save(save)

    def record(self, node: Node, entry: Note) -> None:
        """Write a note."""
        self._record(node.path, entry)

    def vitals(self, node: Node) -> MetricValues:
        """Return what goes beside a node's metrics."""
        extra = dict(self._extra()) if self._extra is not None else {}
        trainer = self._workshop.pid if self._workshop is not None else None
        if trainer is not None:
            extra["trainer_peak_mb"] = vitals.peak_mb(trainer)
        return {**vitals.of_shell(self._runners[node.path].shell), **extra}

    def over(self, node: Node, end: RunOver) -> None:
        """Note the end of a run."""
        self._ends[node.path] = end
        self._unfinished.discard(node.path)

    # -------------------------------------------------------------- start to end

    def add(self, runner: Runner) -> None:
        """Add a node, before `hold`."""
        path = runner.node.path
        self._runners[path] = runner
        self._alive.add(path)
        self._unfinished.add(path)
        self._loop.add(runner)

    def stop(self) -> None:
        """Ask the process to end; from any thread or signal."""
        self._is_stopping = True
        self._loop.wake()

    def wait(self, event: threading.Event) -> bool:
        """Wait for something else before `hold`; returns False when somebody asked to end first."""
        while not event.wait(0.2):
            if self._is_stopping:
                return False
        return True

    def hold(self) -> dict[str, RunOver]:
        """Run all nodes in this thread until it is time to end, end them, and return how their runs ended, by path.

        Raises:
            HflError: what made the first node fail: no right, wrong password. Where others could go on until somebody
                asked to end, that was noted when it happened and is no failure of the process.
        """
        try:
            self._loop.run(self._is_done)
        finally:
            self.close()
        if self._failures and (not self._is_stopping or not self._alive):
            raise next(iter(self._failures.values()))
        return dict(self._ends)

    def close(self) -> None:
        """End everything, in order. Idempotent."""
        self._loop.close()
        if self._workshop is not None:
            self._workshop.close()

    def _is_done(self) -> bool:
        return self._is_stopping or not self._alive or (self._until_finished and not self._unfinished)

    def _take_failure(self, runner: Runner) -> None:
        """Say at once that a node failed while others go on; the failure of the last is said by who holds us."""
        path, failure = runner.node.path, runner.failure
        if failure is None or path in self._failures:
            return
        self._failures[path] = failure
        self._alive.discard(path)
        self._unfinished.discard(path)
        if self._alive:
            self._record(path, note("failed", reason=str(failure)))
            _log.warning("%s failed, the others of this process go on: %s", path, failure)


@contextmanager
def stopped_by_signals(process: Process) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process in order; only from the main thread."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda _number, _frame: process.stop())
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
