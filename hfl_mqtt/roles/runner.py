"""The loop: one thread owns one node; links and trainers only put events into its queue.

Every event is taken in turn, the clock is looked at between them, and a stop is an event too, so leaving is as orderly
as everything else: the farewell goes out, what was published is delivered, the link closes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from hfl_mqtt.errors import BrokerError, HflError
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.roles.shell import Shell, World, filters
from hfl_mqtt.rounds.actions import Event
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Account, Down, LinkEvent, Rejected
from hfl_mqtt.transport.mqtt import MqttLink

#: The longest sleep between two looks at the clock.
MAX_WAIT_S = 30.0


class Runner:
    """Runs one node on one MQTT link until it is stopped.

    Args:
        node: the node to run.
        federation: its federation.
        account: the broker and the credentials.
        world: carries out work, saves, notes.
        every_s: how often `housekeeping` is called.
        housekeeping: called by the node's thread, for example to publish vitals.
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
        self.on_end: Callable[[], None] = lambda: None
        self._queue: queue.SimpleQueue[LinkEvent | Event | None] = queue.SimpleQueue()
        self._housekeeping, self._every_s = housekeeping, every_s
        link = MqttLink(
            account=account,
            filters=filters(node, federation),
            sink=self._queue.put,
            will=encode(node.will, federation, node.path),
            client_id=node.path,
            keepalive_s=keepalive_s,
            session_expiry_s=session_expiry_s,
            receive_maximum=receive_maximum,
        )
        self.shell = Shell(node, federation, link, world)
        self._thread = threading.Thread(target=self._run, name=node.path, daemon=True)

    def put(self, event: Event) -> None:
        """Hand an event to the node, from any thread."""
        self._queue.put(event)

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the node to leave; returns at once. Idempotent."""
        self._queue.put(None)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the node has left; returns whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        shell = self.shell
        is_orderly = False
        try:
            shell.start(time.monotonic())
            self._loop(shell)
            is_orderly = True
        except HflError as error:
            self.failure = error
        finally:
            if not is_orderly and self.failure is None:
                self.failure = HflError(f"{self.node.path} stopped because of a fault of ours: see the trace above")
            try:
                shell.leave()
            finally:
                self.on_end()

    def _loop(self, shell: Shell) -> None:
        next_housekeeping_s = time.monotonic() + self._every_s
        while True:
            now = time.monotonic()
            due = min(s for s in (self.node.next_deadline, next_housekeeping_s) if s is not None)
            event: Any
            try:
                event = self._queue.get(timeout=min(max(due - now, 0.0), MAX_WAIT_S))
            except queue.Empty:
                event = ...
            now = time.monotonic()
            if event is None:
                return
            if event is not ...:
                shell.feed(event, now)
                self._check(event)
            deadline = self.node.next_deadline
            if deadline is not None and now >= deadline:
                shell.tick(now)
            if self._housekeeping is not None and now >= next_housekeeping_s:
                self._housekeeping(shell)
            if now >= next_housekeeping_s:
                next_housekeeping_s = now + self._every_s

    @staticmethod
    def _check(event: LinkEvent | Event) -> None:
        """Stop loudly where trying again cannot help: wrong credentials, or no right to speak at all."""
        if isinstance(event, Down) and event.is_fatal:
            raise BrokerError(event.reason)
        if isinstance(event, Rejected):
            raise BrokerError(f"the broker refuses {event.topic}: {event.reason}")
