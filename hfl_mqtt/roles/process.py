"""One process of the federation: its runners, its journal, its workshop, and an orderly end.

`hold` waits until the nodes are done, all of them have failed, or somebody asks to stop (a signal); then everything
ends in order: farewells, links, the training process. A node that fails beside others is told of, and they go on.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from hfl_mqtt.errors import Misuse
from hfl_mqtt.roles import vitals
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.shell import MetricValues
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, RunOver, Save, Work, note
from hfl_mqtt.rounds.node import Node

#: Takes a node's path and a note: the journal, or a list in a test.
Record = Callable[[str, Note], None]
LEAVE_S = 15.0
_log = logging.getLogger(__name__)


class Process:
    """The world of all nodes of one process (see `shell.World`), and what holds them together.

    Args:
        record: takes every note.
        workshop: does the nodes' work; None for an edge.
        data: each node's `data:` options by path.
        save: makes a model durable; only a cloud saves.
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
        until_finished: bool = False,
        extra: Callable[[], MetricValues] | None = None,
    ) -> None:
        self._record, self._workshop, self._save, self._extra = record, workshop, save, extra
        self._data = data or {}
        self._until_finished = until_finished
        self._runners: dict[str, Runner] = {}
        self._ends: dict[str, RunOver] = {}
        self._told: set[str] = set()
        # Signals put into it too, and unlike an Event's lock this may be entered again by the thread that is in it.
        self._wake: SimpleQueue[None] = SimpleQueue()
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
        self._wake.put(None)

    # -------------------------------------------------------------- start to end

    def add(self, runner: Runner) -> None:
        """Add a node, before `hold`."""
        self._runners[runner.node.path] = runner
        runner.on_end = lambda: self._wake.put(None)

    def stop(self) -> None:
        """Ask the process to end; from any thread or signal."""
        self._is_stopping = True
        self._wake.put(None)

    def wait(self, event: threading.Event) -> bool:
        """Wait for something else before `hold`; returns False when somebody asked to end first."""
        while not event.wait(0.2):
            if self._is_stopping:
                return False
        return True

    def hold(self) -> dict[str, RunOver]:
        """Run all nodes until it is time to end, end them, and return how their runs ended, by path.

        Raises:
            HflError: what made the first node fail: no right, wrong password. Where others could go on until somebody
                asked to end, that was noted when it happened and is no failure of the process.
        """
        for runner in self._runners.values():
            runner.start()
        try:
            while not self._is_done():
                self._wake.get()
                self._tell_failures()
        finally:
            self.close()
        failures = [runner.failure for runner in self._runners.values() if runner.failure is not None]
        if failures and (not self._is_stopping or len(failures) == len(self._runners)):
            raise failures[0]
        return dict(self._ends)

    def close(self) -> None:
        """End everything, in order. Idempotent."""
        for runner in self._runners.values():
            runner.stop()
        for runner in self._runners.values():
            runner.join(LEAVE_S)
        if self._workshop is not None:
            self._workshop.close()

    def _is_done(self) -> bool:
        alive = {path for path, runner in self._runners.items() if runner.failure is None}
        return self._is_stopping or not alive or (self._until_finished and self._ends.keys() >= alive)

    def _tell_failures(self) -> None:
        """Say at once which nodes failed while others go on; the failure of the last is said by who holds us."""
        if all(runner.failure is not None for runner in self._runners.values()):
            return
        for path, runner in self._runners.items():
            if runner.failure is not None and path not in self._told:
                self._told.add(path)
                self._record(path, note("failed", reason=str(runner.failure)))
                _log.warning("%s failed, the others of this process go on: %s", path, runner.failure)


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
