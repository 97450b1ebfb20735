"""The loop: one thread owns all nodes of a process; links and trainers only put events into its queue.

Every event is taken in turn and the clock is looked at between them. Each node's next deadline lies in a heap, so a
thousand nodes cost an event no more than one does. What the events that wait ask to be durable is made so together,
before anything that they bring about is done: a burst costs one write to the disk, and nobody waits for one to come.
"""

from __future__ import annotations

import heapq
import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from hfl_mqtt.errors import BrokerError, HflError, Unwritable
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.roles.line import Line
from hfl_mqtt.roles.shell import Shell, World, filters
from hfl_mqtt.rounds.actions import Event, Persist
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Rejected
from hfl_mqtt.transport.mqtt import MqttLink

_log = logging.getLogger(__name__)
#: What comes for a runner, and by which of its connections; 0 where by none.
Inbox = queue.SimpleQueue["tuple[Runner, LinkEvent | Event, int] | None"]
#: So many events at most, and about so many bytes, are taken before what they ask for is made durable and done.
MAX_TOGETHER = 64
MAX_BYTES_TOGETHER = 2**20


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
        self._federation, self._account = federation, account
        self._keepalive_s, self._session_expiry_s = keepalive_s, session_expiry_s
        self._receive_maximum = receive_maximum
        self._connection = 0
        self.shell = Shell(node, federation, self._link(), world)

    def _link(self) -> MqttLink:
        """Make a link for what the node is now."""
        node, limit_s = self.node, self.node.session_at_most_s
        self._connection += 1
        connection, line = self._connection, Line()
        self._line = line
        return MqttLink(
            account=self._account,
            filters=filters(node, self._federation),
            sink=partial(self._heard, connection, line),
            will=encode(node.will, self._federation, node.path) if node.will is not None else None,
            client_id=self._account.session(node.client_id),
            keepalive_s=self._keepalive_s,
            session_expiry_s=self._session_expiry_s if limit_s is None else min(self._session_expiry_s, int(limit_s)),
            receive_maximum=self._receive_maximum,
            clean=limit_s == 0,
        )

    def _heard(self, connection: int, line: Line, event: LinkEvent) -> None:
        if line.enter(event):
            self._inbox.put((self, event, connection))

    def put(self, event: Event) -> None:
        """Hand an event to the node, from any thread."""
        self._inbox.put((self, event, 0))

    # ---- for the loop, on its thread

    @property
    def due_s(self) -> float | None:
        """When `look` is to be called at the latest."""
        if self._has_left:
            return None
        times = [due for due in (self.shell.next_deadline, self._housekeeping_s) if due is not None]
        return min(times, default=None)

    def join(self, inbox: Inbox) -> None:
        """Have what comes for this node put into the loop's own queue from now on."""
        self._inbox = inbox

    def begin(self, now: float) -> None:
        """Begin, and start connecting; what it asks for is collected, as by all that follow."""
        if self._housekeeping is not None:
            self._housekeeping_s = now + self._every_s
        self._attempt(partial(self.shell.begin, now))

    def take(self, event: LinkEvent | Event, now: float) -> None:
        """Take an event; what comes for a node that has left is dropped."""
        self._line.leave(event)
        if not self._has_left:
            self._attempt(partial(self._take, event, now))

    def look(self, now: float) -> None:
        """Look at the clock."""
        if not self._has_left:
            self._attempt(partial(self._look, now))

    def perform_due(self, now: float) -> None:
        """Do what was collected; what it asks to be durable is so now."""
        if not self._has_left:
            self._attempt(partial(self.shell.perform_due, now))

    def is_current(self, connection: int) -> bool:
        """Whether what came by this connection is still for the node."""
        return connection in (0, self._connection)

    def reconnect(self) -> None:
        """Connect anew, with the will, the filters and the session of what the node is now; on the loop's thread."""
        self.shell.link.hang_up()
        self.shell.link = link = self._link()
        link.open()

    def leave(self) -> None:
        """Say goodbye and begin to close the link; `close` waits for it. Idempotent."""
        if self._has_left:
            return
        self._has_left = True
        try:
            self._attempt(partial(self.shell.leave, time.monotonic()))
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
        self.shell.take(event, now)
        # Stop loudly where trying again cannot help: wrong credentials, or no right to speak at all.
        if isinstance(event, Down) and event.is_fatal:
            raise BrokerError(event.reason)
        if isinstance(event, Rejected):
            raise BrokerError(f"the broker refuses {event.topic}: {event.reason}")

    def _look(self, now: float) -> None:
        deadline = self.shell.next_deadline
        if deadline is not None and now >= deadline:
            self.shell.look(now)
        if self._housekeeping is not None and self._housekeeping_s is not None and now >= self._housekeeping_s:
            self._housekeeping_s = now + self._every_s
            self._housekeeping(self.shell)


def _fault_of_ours(path: str) -> HflError:
    return HflError(f"{path} stopped because of a fault of ours: see the trace above")


class Loop:
    """Runs nodes, one event after the other, in the thread that calls `run`.

    Args:
        on_failure: told of each node that fails, once it has left.
        persist: makes the changes of several nodes durable at once, see `shell.World.persist`.
    """

    def __init__(
        self, on_failure: Callable[[Runner], None], persist: Callable[[Sequence[tuple[Node, Persist]]], None]
    ) -> None:
        self._on_failure, self._persist = on_failure, persist
        self._runners: list[Runner] = []
        # Signals put into it too, and unlike a lock this may be entered again by the thread that is in it.
        self._inbox: Inbox = queue.SimpleQueue()
        self._alarms: list[tuple[float, int, Runner]] = []
        self._alarm_of: dict[Runner, float] = {}
        self._order = count()
        self._later: list[Callable[[], None]] = []
        self._beat: tuple[Callable[[], None], float] | None = None
        self._beat_due_s = math.inf
        self._is_running = False

    def add(self, runner: Runner) -> None:
        """Add a node; while the loop runs, only from its own thread, and it begins at once."""
        runner.join(self._inbox)
        self._runners.append(runner)
        if self._is_running:
            self._begin(runner)

    def remove(self, runner: Runner) -> None:
        """Let a node leave for good, from the loop's own thread; its link closes by itself."""
        runner.leave()
        self._runners.remove(runner)
        self._alarm_of.pop(runner, None)

    def later(self, act: Callable[[], None]) -> None:
        """Have something done once what is being done is over; on the loop's own thread."""
        self._later.append(act)

    def beat(self, act: Callable[[], None], every_s: float) -> None:
        """Have something done when `run` begins to turn and every so many seconds as long as it does; before `run`."""
        self._beat, self._beat_due_s = (act, every_s), -math.inf

    def wake(self) -> None:
        """Have `run` ask again whether it is done; from any thread or signal."""
        self._inbox.put(None)

    def run(self, is_done: Callable[[], bool]) -> None:
        """Start all nodes and run them until it is done."""
        for runner in list(self._runners):
            if is_done():
                return
            self._begin(runner)
        self._is_running = True
        while not is_done():
            self._turn()

    def close(self) -> None:
        """Let all nodes leave, at the same time, and wait for their links. Idempotent."""
        self._is_running = False
        for runner in self._runners:
            runner.leave()
        for runner in self._runners:
            runner.close()

    def _begin(self, runner: Runner) -> None:
        now = time.monotonic()
        runner.begin(now)
        self._settle([runner], now)

    def _turn(self) -> None:
        """Take the events that are there, or wait for one; ring the alarms that are due; do what comes of it."""
        due_s = min(self._alarms[0][0] if self._alarms else math.inf, self._beat_due_s)
        patience_s = max(due_s - time.monotonic(), 0.0) if due_s < math.inf else None
        touched: dict[Runner, None] = {}
        size = 0
        for _ in range(MAX_TOGETHER):
            try:
                item = self._inbox.get(timeout=patience_s) if patience_s != 0 else self._inbox.get_nowait()
            except queue.Empty:
                break
            patience_s = 0
            if item is None:
                break  # somebody asks whether it is done
            runner, event, connection = item
            if not runner.is_current(connection):
                continue
            runner.take(event, time.monotonic())
            self._look_whether_failed(runner)
            touched[runner] = None
            size += len(event.frame.payload) if isinstance(event, Arrived) else 0
            if size >= MAX_BYTES_TOGETHER:
                break
        now = time.monotonic()
        for _ in range(MAX_TOGETHER):
            if not self._alarms or self._alarms[0][0] > now:
                break
            due_s, _, runner = heapq.heappop(self._alarms)
            if self._alarm_of.get(runner) == due_s:  # else it was put off or brought forward since
                del self._alarm_of[runner]
                runner.look(now)
                touched[runner] = None
        self._settle(list(touched), now)
        while self._later:
            self._later.pop(0)()
        if self._beat is not None and now >= self._beat_due_s:
            act, every_s = self._beat
            self._beat_due_s = now + every_s
            act()

    def _settle(self, touched: list[Runner], now: float) -> None:
        """Have what these nodes ask for made durable, all in one, then do what they want, and set their alarms anew."""
        demands = [(runner, runner.shell.demand(now)) for runner in touched]
        asked = [(runner, demand) for runner, demand in demands if demand is not None]
        if asked:
            try:
                self._persist([(runner.node, demand) for runner, demand in asked])
            except Unwritable as error:
                for runner, _ in asked:
                    runner.shell.halt(error, now)
        for runner in touched:
            runner.perform_due(time.monotonic())  # the disk may have taken long, and a right to speak may be over
            self._after(runner)

    def _after(self, runner: Runner) -> None:
        """Set a node's alarm anew, and tell if it has failed."""
        due_s = runner.due_s
        if due_s is None:
            self._alarm_of.pop(runner, None)
        elif self._alarm_of.get(runner) != due_s:
            self._alarm_of[runner] = due_s
            heapq.heappush(self._alarms, (due_s, next(self._order), runner))
        self._look_whether_failed(runner)

    def _look_whether_failed(self, runner: Runner) -> None:
        if runner.failure is not None:
            self._on_failure(runner)
