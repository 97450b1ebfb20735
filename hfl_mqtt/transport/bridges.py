"""What joins two brokers in memory, as Mosquitto's bridge does."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.faults import Faults, Lane
from hfl_mqtt.transport.memory import MemoryBroker


class Bridge:
    """What joins two brokers, see `bridge`; it can be `cut` until `restore`, and keeps QoS 1 meanwhile."""

    def __init__(
        self,
        lower: MemoryBroker,
        upper: MemoryBroker,
        rules: Sequence[tuple[str, str, int]],
        name: str,
        faults: Faults | None,
        state: str | None,
        notice_s: float,
    ) -> None:
        self.faults = faults
        self._notice_s = notice_s
        self.is_cut = False
        #: Whether anything crosses now.
        self.is_up = False
        self._lower, self._upper, self._state = lower, upper, state
        self._out = _Outlet(self, lower, upper, name, {pattern: qos for pattern, way, qos in rules if way == "out"})
        self._in = _Outlet(self, upper, lower, name, {pattern: qos for pattern, way, qos in rules if way == "in"})
        self._out.back, self._in.back = self._in, self._out
        for broker in (lower, upper):
            broker.join(self)
        self.look()

    def cut(self) -> None:
        """Break the bridge. Idempotent."""
        self.is_cut = True
        self.look()

    def restore(self) -> None:
        """Mend the bridge: what waited crosses, and what is retained crosses again. Idempotent."""
        self.is_cut = False
        self.look()

    def look(self) -> None:
        """Join the brokers, or part them, as is right now; the lower one is told, where it has a topic for it."""
        is_up = not self.is_cut and self._lower.is_up and self._upper.is_up
        if is_up == self.is_up:
            return
        self.is_up = is_up
        if is_up:
            self._tell()
            self._out.resume()
            self._in.resume()
        elif self.is_cut and self._notice_s:
            wire = self._lower.wire
            wire.schedule(wire.now_s + self._notice_s, self._notice)
        else:
            self._tell()

    def _notice(self) -> None:
        if not self.is_up:
            self._tell()

    def return_to(self, broker: MemoryBroker, *, knows_all: bool) -> None:
        """Take it that a broker is back: it knows what waited there for the other, or has forgotten it."""
        (self._out if broker is self._lower else self._in).return_to(knows_all=knows_all)
        if broker is self._lower:  # what it retains may be older
            self._tell()
        self.look()

    def _tell(self) -> None:
        if self._state is not None and self._lower.is_up:
            self._lower.accept(Frame(topic=self._state, payload=b"1" if self.is_up else b"0", retain=True))


class _Outlet:
    """One direction of a bridge: subscribed at `source`, it publishes at `target`."""

    def __init__(
        self, bridge: Bridge, source: MemoryBroker, target: MemoryBroker, name: str, patterns: Mapping[str, int]
    ) -> None:
        self.back: _Outlet | None = None
        self._bridge = bridge
        self._source, self._target = source, target
        self._name, self._patterns = name, patterns
        self._lane = Lane(target.wire, name)
        self._waiting: deque[Frame] = deque()

    def take(self, frame: Frame, qos: int) -> None:
        """Carry a message over, with its retained flag; keep it while the bridge is down, if it crosses at QoS 1."""
        if frame.qos > qos:
            frame = replace(frame, qos=qos)
        if self._bridge.is_up:
            self._lane.carry(frame, self._bridge.faults, self._reach)
        elif frame.qos:
            self._waiting.append(frame)

    def resume(self) -> None:
        """Send what waited, and then what is retained, as a bridge that subscribes again does."""
        waiting, self._waiting = self._waiting, deque()
        for frame in waiting:
            self.take(frame, 1)
        for pattern, qos in self._patterns.items():
            self._source.subscribe(pattern, f"bridge {self._name}", self, qos)
            for frame in self._source.retained(pattern):
                self.take(frame, qos)

    def return_to(self, *, knows_all: bool) -> None:
        """Be subscribed again at a source that is back; what waited there is lost with its memory."""
        if not knows_all:
            self._waiting.clear()
        for pattern, qos in self._patterns.items():
            self._source.subscribe(pattern, f"bridge {self._name}", self, qos)

    def _reach(self, frame: Frame) -> None:
        if self._target.is_up:
            self._target.accept(frame, came_by=self.back)
        elif frame.qos and self._source.is_up:
            self._waiting.append(frame)


def bridge(
    lower: MemoryBroker,
    upper: MemoryBroker,
    rules: Sequence[tuple[str, str, int]],
    *,
    name: str | None = None,
    faults: Faults | None = None,
    state: str | None = None,
    notice_s: float = 0.0,
) -> Bridge:
    """Join two brokers as Mosquitto's bridge does, with the rules of `topics.bridge_control` and `bridge_data`.

    Args:
        lower: the broker that would open the connection.
        upper: the one it connects to. The brokers must form a tree and share a wire.
        rules: (filter, "in" or "out", as the lower broker sees it, QoS); those of one direction must not overlap.
        name: how `Faults.where` knows this bridge; "lower -> upper" by default.
        faults: what goes wrong on the way over, in both directions.
        state: the topic on which the lower broker is told whether the bridge is up, "1" or "0", retained.
        notice_s: how long it takes until it is noticed that the bridge was cut: the keepalive, on a silent line.

    Raises:
        Misuse: the brokers do not share a wire, so no clock drives both.
    """
    if lower.wire is not upper.wire:
        raise Misuse(f"{lower.name} and {upper.name} need the same wire: MemoryBroker(..., wire=other.wire)")
    return Bridge(lower, upper, rules, name or f"{lower.name} -> {upper.name}", faults, state, notice_s)
