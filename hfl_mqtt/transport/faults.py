"""What is under way in a simulated network, when it arrives, and what goes wrong with it: one clock, one die."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from hfl_mqtt.protocol.wire import Frame


def _everywhere(_link: str, _topic: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong on a hop: from a link to its broker, from a broker to a link, or over a bridge.

    Probabilities are per message and hop. Every message takes a time drawn from `latency_s` and stays in order;
    one that `reordering` strikes takes a time from `held_s` on top, and those behind it pass. `where(link, topic)` says
    what is affected; a link is named by its client id. A payload that `corruption` strikes has one byte changed, or
    its end cut off. Over a link of `bytes_per_s` each payload waits until those before it are over.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    latency_s: tuple[float, float] = (0.0, 0.0)
    held_s: tuple[float, float] = (0.0, 1.0)
    bytes_per_s: float | None = None
    where: Callable[[str, str], bool] = _everywhere

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering", "corruption"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("latency_s", "held_s"):
            low_s, high_s = getattr(self, name)
            if not 0 <= low_s <= high_s:
                raise ValueError(f"{name} is a range from low to high, not {low_s} to {high_s}")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s is over 0, not {self.bytes_per_s}")


class Wire:
    """What is under way in a tree of brokers, in the order of its arrival; it holds the clock and the dice."""

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)  # noqa: S311
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def next_due(self) -> float | None:
        """When the next thing arrives, or None if nothing is under way."""
        return self._due[0][0] if self._due else None

    def deliver_due(self, now_s: float) -> None:
        """Let everything arrive that is due by `now_s`, and what follows from it by then, in the order of time."""
        while self._due and self._due[0][0] <= now_s:
            due_s, _, arrive = heapq.heappop(self._due)
            self.now_s = max(self.now_s, due_s)
            arrive()
        self.now_s = max(self.now_s, now_s)

    def deliver_next(self) -> None:
        """Let the next thing arrive, whenever that is."""
        due_s, _, arrive = heapq.heappop(self._due)
        self.now_s = max(self.now_s, due_s)
        arrive()

    def schedule(self, due_s: float, arrive: Callable[[], None]) -> None:
        """Have something happen at a time; what is due at the same time happens in the order of scheduling."""
        heapq.heappush(self._due, (due_s, next(self._order), arrive))


class Lane:
    """One direction of one hop: first in, first out, but for what the faults lose, repeat or hold back."""

    __slots__ = ("_clear_at_s", "_name", "_wire")

    def __init__(self, wire: Wire, name: str) -> None:
        self._wire = wire
        self._name = name
        self._clear_at_s = 0.0

    def carry(self, frame: Frame, faults: Faults | None, arrive: Callable[[Frame], None]) -> bool:
        """Schedule `arrive`, several times or never; returns whether it will arrive at all."""
        wire = self._wire
        if faults is None or not faults.where(self._name, frame.topic):
            self.signal(None, partial(arrive, frame))
            return True
        # A probability of 0 or 1 needs no dice, so switching one fault on leaves the others' luck as it was.
        if _strikes(faults.loss, wire.rng):
            return False
        for _ in range(2 if _strikes(faults.duplication, wire.rng) else 1):
            due_s = max(wire.now_s + wire.rng.uniform(*faults.latency_s), self._clear_at_s)
            if faults.bytes_per_s is not None:
                due_s += frame.size / faults.bytes_per_s
            carried = _corrupted(frame, wire.rng) if _strikes(faults.corruption, wire.rng) else frame
            if _strikes(faults.reordering, wire.rng):
                wire.schedule(due_s + wire.rng.uniform(*faults.held_s), partial(arrive, carried))
            else:
                self._clear_at_s = due_s
                wire.schedule(due_s, partial(arrive, carried))
        return True

    def signal(self, faults: Faults | None, arrive: Callable[[], None], topic: str = "") -> None:
        """Schedule what has no message in it, to connect or to ask for a topic: late at times, but never in vain."""
        wire = self._wire
        is_late = faults is not None and faults.where(self._name, topic)
        late_s = wire.rng.uniform(*faults.latency_s) if faults is not None and is_late else 0.0
        self._clear_at_s = max(wire.now_s + late_s, self._clear_at_s)
        wire.schedule(self._clear_at_s, arrive)


def _strikes(probability: float, rng: random.Random) -> bool:
    return probability > 0 and rng.random() < probability


def _corrupted(frame: Frame, rng: random.Random) -> Frame:
    payload = bytearray(frame.payload)
    if not payload:  # it deletes what is retained: there is nothing in it to change
        return frame
    at = rng.randrange(len(payload))
    if rng.random() < 0.3:
        del payload[at + 1 :]
    else:
        payload[at] ^= rng.randrange(1, 256)
    return replace(frame, payload=bytes(payload))
