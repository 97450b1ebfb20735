"""A guest at the broker: connects as the node does, but beside it and never in its place.

The client id is the guest's own and its session ends with it, so the broker takes nothing from an agent that runs under
the same account: no session, no queued message, no will.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from hfl_mqtt.errors import BrokerError
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport import network
from hfl_mqtt.transport.link import Arrived, Down, LinkEvent, Rejected, Up
from hfl_mqtt.transport.mqtt import MqttLink

#: How long the broker has to let the guest in, and to answer a word.
ANSWER_S = 10.0
#: What is retained comes right after the subscription: when none has come for so long, that was all.
QUIET_S = 0.5
#: An acknowledgement is no event of a link, so it is looked for so often.
_LOOK_S = 0.005


class Guest:
    """One connection for as long as a `with` block; what it hears lies in `heard`.

    Raises:
        ConfigError: the password cannot be read.
        BrokerError: no broker answers in `ANSWER_S`, or it refuses the account; the message has the remedy.
    """

    def __init__(self, patient: Patient, filters: Sequence[Filter]) -> None:
        self._place = patient.place
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._rejected: dict[str, str] = {}
        self.heard: list[Frame] = []
        #: Seconds that it took from the first packet to being subscribed.
        self.seconds = 0.0
        self._link = MqttLink(
            patient.account(),
            filters,
            self._events.put,
            client_id=f"{patient.name}@doctor-{os.getpid()}",
            clean=True,
            keepalive_s=int(patient.broker.keepalive),
        )

    def __enter__(self) -> Guest:
        began_s = time.monotonic()
        self._link.open()
        try:
            self._arrive(began_s + ANSWER_S)
        except BaseException:
            self._link.close()
            raise
        self.seconds = time.monotonic() - began_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    @property
    def maximum_packet_size(self) -> int | None:
        """The largest packet that the broker takes, in bytes; None where it names no limit."""
        return self._link.maximum_packet_size

    def say(self, topic: str, payload: bytes, *, wait_s: float = ANSWER_S) -> str:
        """Publish at QoS 1, retaining nothing; return why the broker refuses it, "" where it takes it.

        Raises:
            BrokerError: it does not answer within `wait_s`, or ends the connection.
        """
        self._rejected.pop(topic, None)
        self._link.publish(Frame(topic=topic, payload=payload, qos=1))
        if not self._until(lambda: not self._link.pending, wait_s):
            raise BrokerError(f"the broker at {self._place} has not answered after {wait_s:g} s")
        # A refusal is told after its frame is off the list, on the network's thread: let that finish what it is at.
        is_told = threading.Event()
        network.shared().call(is_told.set)
        is_told.wait(wait_s)
        self._take_all()
        return self._rejected.get(topic, "")

    def hears(self, topic: str, payload: bytes, wait_s: float) -> bool:
        """Whether this comes within a while."""
        return self._until(lambda: any(each.topic == topic and each.payload == payload for each in self.heard), wait_s)

    def listen(self) -> list[Frame]:
        """Return all that was heard, once nothing more comes."""
        is_more = True
        while is_more:
            count = len(self.heard)
            is_more = self._until(partial(self._has_more_than, count), QUIET_S)
        return self.heard

    def _has_more_than(self, count: int) -> bool:
        return len(self.heard) > count

    def _arrive(self, deadline_s: float) -> None:
        reason = ""
        while True:
            try:
                event = self._events.get(timeout=max(deadline_s - time.monotonic(), 0.001))
            except queue.Empty:
                raise BrokerError(reason or f"no broker answers at {self._place}: is it one?") from None
            if isinstance(event, Up):
                return
            if isinstance(event, Down):
                reason = event.reason
                if event.is_fatal:
                    raise BrokerError(reason)
            else:
                self._take(event)

    def _until(self, is_so: Callable[[], bool], wait_s: float) -> bool:
        deadline_s = time.monotonic() + wait_s
        while not is_so():
            if time.monotonic() > deadline_s:
                return False
            try:
                self._take(self._events.get(timeout=_LOOK_S))
            except queue.Empty:
                continue
        return True

    def _take_all(self) -> None:
        while True:
            try:
                self._take(self._events.get_nowait())
            except queue.Empty:
                return

    def _take(self, event: LinkEvent) -> None:
        match event:
            case Arrived():
                self.heard.append(event.frame)
                self._link.done(event)
            case Rejected():
                self._rejected[event.topic] = event.reason
            case Down():
                raise BrokerError(event.reason)
            case _:
                pass
