"""The loop: one thread owns all nodes of a process; links and trainers only put events into its queue.

Every event is taken in turn and the clock is looked at between them. Each node's next deadline lies in a heap, so a
thousand nodes cost an event no more than one does.
"""

from __future__ import annotations

import heapq
import logging
import queue
import time
from collections.abc import Callable
from functools import partial
from itertools import count

from hfl_mqtt.errors import BrokerError, HflError
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.roles.shell import Shell, World, filters
from hfl_mqtt.rounds.actions import Event
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Account, Down, LinkEvent, Rejected
from hfl_mqtt.transport.mqtt import MqttLink

_log = logging.getLogger(__name__)
Inbox = queue.SimpleQueue["tuple[Runner, LinkEvent | Event] | None"]


class Runner:
    """One node on one MQTT link, run by a `Loop`.

    Args:
        node: the node to run.
        federation: its federation.
        account: the broker and the credentials.
        world: carries out work, saves, notes.
        every_s: how often `housekeeping` is called.
        housekeeping: called by the loop's thread, for example to publish vitals.
        receive_maximum: most messages the broker may have outstanding with us; the brake of an aggregator.
    """

    def __init__(
        self,
        node: Node,
        federation: str,
        account: Account,
        world: World,
        *,
        keepalive_s: int = 60,
        session_expiry_s: int = 7 * 86400,
        receive_maximum: int | None = None,
        housekeeping: Callable[[Shell], None] | None = None,
        every_s: float = 30.0,
    ) -> None:
        self.node = node
        self.failure: HflError | None = None
        self._inbox: Inbox = queue.SimpleQueue()
        self._housekeeping, self._every_s = housekeeping, every_s
        self._housekeeping_s: float | None = None
        self._has_left = False
        link = MqttLink(
            account=account,
            filters=filters(node, federation),
            sink=self.put,
            will=encode(node.will, federation, node.path),
            client_id=node.path,
            keepalive_s=keepalive_s,
            session_expiry_s=session_expiry_s,
            receive_maximum=receive_maximum,
        )
        self.shell = Shell(node, federation, link, world)

    def put(self, event: LinkEvent | Event) -> None:
        """Hand an event to the node, from any thread."""
        self._inbox.put((self, event))

    # ---- for the loop, on its thread

    @property
    def due_s(self) -> float | None:
        """When `tick` is to be called at the latest."""
        if self._has_left:
            return None
        times = [due for due in (self.node.next_deadline, self._housekeeping_s) if due is not None]
        return min(times, default=None)

    def join(self, inbox: Inbox) -> None:
        """Have what comes for this node put into the loop's own queue from now on."""
        self._inbox = inbox

    def start(self, now: float) -> None:
        """Begin, and start connecting."""
        if self._housekeeping is not None:
            self._housekeeping_s = now + self._every_s
        self._attempt(partial(self.shell.start, now))

    def feed(self, event: LinkEvent | Event, now: float) -> None:
        """Take an event; what comes for a node that has left is dropped."""
        if not self._has_left:
            self._attempt(partial(self._take, event, now))

    def tick(self, now: float) -> None:
        """Look at the clock."""
        if not self._has_left:
            self._attempt(partial(self._look, now))

    def leave(self) -> None:
        """Say goodbye and begin to close the link; `close` waits for it. Idempotent."""
        if self._has_left:
            return
        self._has_left = True
        try:
            self._attempt(self.shell.leave)
        finally:
            self.shell.link.hang_up()

    def close(self) -> None:
        """Leave, and wait until the link is closed; bounded by the link's own patience."""
        self.leave()
        self.shell.link.close()

    def _attempt(self, act: Callable[[], None]) -> None:
        """Act, and where that fails, remember why and leave: the nodes beside this one go on."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - logged, and the end of this node alone
            if self.failure is None:
                self.failure = error if isinstance(error, HflError) else _fault_of_ours(self.node.path)
            if not isinstance(error, HflError):
                _log.exception("%s stops", self.node.path)
            self.leave()

    def _take(self, event: LinkEvent | Event, now: float) -> None:
        self.shell.feed(event, now)
        # Stop loudly where trying again cannot help: wrong credentials, or no right to speak at all.
        if isinstance(event, Down) and event.is_fatal:
            raise BrokerError(event.reason)
        if isinstance(event, Rejected):
            raise BrokerError(f"the broker refuses {event.topic}: {event.reason}")

    def _look(self, now: float) -> None:
        deadline = self.node.next_deadline
        if deadline is not None and now >= deadline:
            self.shell.tick(now)
        if self._housekeeping is not None and self._housekeeping_s is not None and now >= self._housekeeping_s:
            self._housekeeping_s = now + self._every_s
            self._housekeeping(self.shell)


def _fault_of_ours(path: str) -> HflError:
    return HflError(f"{path} stopped because of a fault of ours: see the trace above")


class Loop:
    """Runs nodes, one event after the other, in the thread that calls `run`.

    Args:
        on_failure: told of each node that fails, once it has left.
    """

    def __init__(self, on_failure: Callable[[Runner], None]) -> None:
        self._on_failure = on_failure
        self._runners: list[Runner] = []
        # Signals put into it too, and unlike a lock this may be entered again by the thread that is in it.
        self._inbox: Inbox = queue.SimpleQueue()
        self._alarms: list[tuple[float, int, Runner]] = []
        self._alarm_of: dict[Runner, float] = {}
        self._order = count()

    def add(self, runner: Runner) -> None:
        """Add a node, before `run`."""
        runner.join(self._inbox)
        self._runners.append(runner)

    def wake(self) -> None:
        """Have `run` ask again whether it is done; from any thread or signal."""
        self._inbox.put(None)

    def run(self, is_done: Callable[[], bool]) -> None:
        """Start all nodes and run them until it is done."""
        for runner in self._runners:
            if is_done():
                return
            runner.start(time.monotonic())
            self._after(runner)
        while not is_done():
            self._turn()

    def close(self) -> None:
        """Let all nodes leave, at the same time, and wait for their links. Idempotent."""
        for runner in self._runners:
            runner.leave()
        for runner in self._runners:
            runner.close()

    def _turn(self) -> None:
        """Take one event or wait for one, and ring one alarm if it is time."""
        patience_s = max(self._alarms[0][0] - time.monotonic(), 0.0) if self._alarms else None
        try:
            item = self._inbox.get(timeout=patience_s)
        except queue.Empty:
            item = None
        now = time.monotonic()
        if item is not None:
            runner, event = item
            runner.feed(event, now)
            self._after(runner)
        if self._alarms and self._alarms[0][0] <= now:
            due_s, _, runner = heapq.heappop(self._alarms)
            if self._alarm_of.get(runner) == due_s:  # else it was put off or brought forward since
                del self._alarm_of[runner]
                runner.tick(now)
                self._after(runner)

    def _after(self, runner: Runner) -> None:
        """Set a node's alarm anew, and tell if it has failed."""
        due_s = runner.due_s
        if due_s is None:
            self._alarm_of.pop(runner, None)
        elif self._alarm_of.get(runner) != due_s:
            self._alarm_of[runner] = due_s
            heapq.heappush(self._alarms, (due_s, next(self._order), runner))
        if runner.failure is not None:
            self._on_failure(runner)
