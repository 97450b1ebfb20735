"""One process of the federation: its runners, its journal, its workshop, and an orderly end.

All nodes run in the thread that holds the process, until they are done, all have failed, or somebody asks to stop (a
signal); then everything ends in order: farewells, links, the training process. A node that fails beside others is told
of, and they go on.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfl_mqtt.errors import HflError, Misuse
from hfl_mqtt.roles import vitals
from hfl_mqtt.roles.runner import Loop, Runner
from hfl_mqtt.roles.shell import MetricValues
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Counted, Move, Note, Persist, RunOver, Sampled, Save, Work, note
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.state.vault import Changes, Vault

if TYPE_CHECKING:
    from hfl_mqtt.roles.sensors import Sensors

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
        vault: where the nodes' changes are made durable; without one nothing outlives the process.
        beside: changes of the role's own, by node and key, that go with each commit.
        until_finished: end when every node's run is over; else only a signal, or that all have failed, ends it.
        extra: further figures beside every node's metrics, e.g. a board's vitals.
        moved: lets a node go on under another name, given its old and its new one.
        sensors: gathers the nodes' own data; is closed with the process.
    """

    def __init__(
        self,
        record: Record,
        *,
        workshop: Workshop | None = None,
        data: Mapping[str, Mapping[str, Any]] | None = None,
        save: Callable[[Save], None] | None = None,
        vault: Vault | None = None,
        beside: Callable[[], Changes] = dict,
        until_finished: bool = False,
        extra: Callable[[], MetricValues] | None = None,
        moved: Callable[[str, str], None] | None = None,
        sensors: Sensors | None = None,
    ) -> None:
        self._record, self._workshop, self._save, self._extra = record, workshop, save, extra
        self._vault, self._beside = vault, beside
        self._moved, self._sensors = moved, sensors
        self._data = data or {}
        self._until_finished = until_finished
        self._runners: dict[str, Runner] = {}
        self._loop = Loop(self._take_failure, self.persist_all)
        self._ends: dict[str, RunOver] = {}
        self._alive: set[str] = set()
        self._unfinished: set[str] = set()
        self._failures: dict[str, HflError] = {}
        self._is_stopping = self._is_closing = False

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

    def counted(self, node: Node, counted: Counted) -> None:
        """Let the workshop keep what coding cut off from the update that was accepted."""
        if self._workshop is not None:
            self._workshop.counted(node.path, counted.payload)

    def persist(self, node: Node, changes: Persist) -> None:
        """Make a node's changes durable."""
        self.persist_all([(node, changes)])

    def persist_all(self, asked: Sequence[tuple[Node, Persist]]) -> None:
        """Make the changes of several nodes durable in one transaction.

        Raises:
            Unwritable: the disk cannot take them; nothing has changed.
        """
        if self._vault is None:
            return
        changes = {(node.path, key): value for node, one in asked for key, value in one.changes.items()}
        if any(one.is_urgent for _, one in asked):
            self._vault.commit({**changes, **self._beside()})
        else:
            self._vault.wait(changes)

    def save(self, node: Node, save: Save) -> None:
        """Write a model down for people to look at."""
        if self._save is None:
            raise Misuse(f"{node.path} has nowhere to save")
        self._save(save)

    def record(self, node: Node, entry: Note) -> None:
        """Write a note."""
        self._record(node.path, entry)

    def vitals(self, node: Node) -> MetricValues:
        """Return what goes beside a node's metrics."""
        extra = dict(self._extra()) if self._extra is not None else {}
        if self._is_closing:  # once: it would be in every message else
            extra |= vitals.wear()
        trainer = self._workshop.pid if self._workshop is not None else None
        if trainer is not None:
            extra["trainer_peak_mb"] = vitals.peak_mb(trainer)
        if self._sensors is not None:
            extra |= self._sensors.figures(node.path)
        return {**vitals.of_shell(self._runners[node.path].shell), **extra}

    def sampled(self, path: str, samples: int) -> None:
        """Tell a node how many samples its device has now; from any thread."""
        runner = self._runners.get(path)
        if runner is not None:
            runner.put(Sampled(samples=samples))

    def over(self, node: Node, end: RunOver) -> None:
        """Note the end of a run."""
        self._note_wear(node.path)
        self._ends[node.path] = end
        self._unfinished.discard(node.path)

    def move(self, node: Node, move: Move) -> None:
        """Let a node go on at another place, where the role knows how."""
        moved = self._moved
        if moved is None:
            raise Misuse(f"{node.path} has no other home")
        self._loop.later(lambda: moved(node.path, move.to))

    def reconnect(self, node: Node) -> None:
        """Connect a node anew, as it now is."""
        self._runners[node.path].reconnect()

    # -------------------------------------------------------------- start to end

    def add(self, runner: Runner) -> None:
        """Add a node, before `hold`."""
        path = runner.node.path
        self._runners[path] = runner
        self._alive.add(path)
        self._unfinished.add(path)
        self._loop.add(runner)

    def replace(self, old: str, runner: Runner, data: Mapping[str, Any]) -> None:
        """Let another node go on in the place of one that has moved; while holding, on the thread that does."""
        self._loop.remove(self._runners.pop(old))
        self._alive.discard(old)
        self._unfinished.discard(old)
        self._data = {**self._data, runner.node.path: data}
        self.add(runner)

    def beat(self, act: Callable[[], None], every_s: float) -> None:
        """Have something done again and again by the thread that holds the process, as proof that it turns."""
        self._loop.beat(act, every_s)

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
        for path in list(self._runners)[:1]:
            self._note_wear(path)
        try:
            self._loop.run(self._is_done)
        finally:
            self.close()
        if self._failures and (not self._is_stopping or not self._alive):
            raise next(iter(self._failures.values()))
        return dict(self._ends)

    def close(self) -> None:
        """End everything, in order. Idempotent."""
        self._is_closing = True
        self._loop.close()
        if self._sensors is not None:
            self._sensors.close()
        if self._workshop is not None:
            self._workshop.close()
        if self._vault is not None:
            self._vault.close()

    def _note_wear(self, path: str) -> None:
        """Put down what this process has written to the disk so far."""
        self._record(path, Note(event="wear", fields=dict(vitals.wear())))

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
