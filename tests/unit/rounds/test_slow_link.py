"""A participant and its aggregator over a link that carries so many bytes a second, one after another."""

import heapq

import numpy as np
import pytest

from hfl_mqtt.protocol.messages import Announce, KeyPart, UpdatePart
from hfl_mqtt.rounds.actions import Action, Contribution, Fetch, Send, Work
from hfl_mqtt.rounds.aggregator import Aggregator
from hfl_mqtt.rounds.participant import Participant
from tests.unit.rounds.trees import MATH, PLAN, READY, info, keyframe, of, quick, said

PI = "cloud/pi"
MIB = 1024 * 1024


class Line:
    """Updates go up at `rate` bytes a second, in order; everything small goes at once, both ways; nothing is lost."""

    def __init__(self, rate: float, size: int) -> None:
        model = {"w": np.random.default_rng(0).standard_normal(size // 4).astype(np.float32)}
        self.rate = rate
        self.parent = Aggregator(path="cloud", arithmetic=MATH)
        self.child = Participant(path=PI, boot=1, info=info(), max_model=2**30)
        self.now = self.free_at_s = 0.0
        self.sent_bytes = 0
        self._count = 0
        self._slots: list[KeyPart] = []
        self._arrivals: list[tuple[float, int, bool, object]] = []
        self.child.connected(0.0)
        self.parent.hear(READY, PI, 0.0)
        offered = self.parent.downlink.begin(keyframe(model))
        tier = quick(open_for_s=60.0, codec="raw")
        opened = self.parent.open(run="r", round_id=(1,), plan=PLAN, tier=tier, seed=0, now=0.0)
        self._payload = MATH.encode(model, "raw", 0)
        self._down(opened)
        self._slots = said(offered, KeyPart)

    def _down(self, actions: list[Action]) -> None:
        for action in of(actions, Send):
            self._arrive(self.now + 0.05, False, action.message)

    def _arrive(self, at: float, is_up: bool, message: object) -> None:
        self._count += 1
        heapq.heappush(self._arrivals, (at, self._count, is_up, message))

    def _up(self, actions: list[Action]) -> None:
        for work in of(actions, Work):
            result = Contribution(payload=self._payload, weight=1)
            self._up(self.child.worked(work.work_id, result, self.now))
        for part in said(actions, UpdatePart):
            self.sent_bytes += len(part.data)
            self.free_at_s = max(self.free_at_s, self.now) + len(part.data) / self.rate
            self._arrive(self.free_at_s + 0.05, True, part)
        for announced in said(actions, Announce):
            self._arrive(self.now + 0.05, True, announced)
        for fetch in of(actions, Fetch):
            for slot in fetch.slots:
                self._arrive(self.now + 0.05, False, self._slots[int(slot)])

    def run(self) -> float:
        """Let the update arrive; return when it did."""
        while self.parent.is_open:
            deadlines = [at for at in (self.child.next_deadline, self.parent.next_deadline) if at is not None]
            at = min(deadlines)
            if self._arrivals and self._arrivals[0][0] <= at:
                self.now, _, is_up, message = heapq.heappop(self._arrivals)
                if is_up:
                    assert isinstance(message, UpdatePart | Announce)
                    self._down(self.parent.hear(message, PI, self.now))
                else:
                    self._up(self.child.hear(message, self.now))  # type: ignore[arg-type]
                continue
            self.now = max(self.now, at)
            assert self.now < 10_000, "it will never arrive"
            if self.parent.next_deadline is not None and self.now >= self.parent.next_deadline:
                self._down(self.parent.tick(self.now))
            if self.child.next_deadline is not None and self.now >= self.child.next_deadline:
                self._up(self.child.tick(self.now))
        return self.now


@pytest.mark.parametrize("kbit_per_s", [100_000, 10_000, 1_000, 500, 250])
def test_an_update_of_10_mb_takes_little_more_than_its_bytes_do(kbit_per_s: int) -> None:
    line = Line(rate=kbit_per_s * 125, size=10 * MIB)
    took_s = line.run()
    outcome = line.parent.take_outcome()
    assert outcome is not None
    assert outcome.accepted == {PI: 1}
    assert took_s < 1.3 * 10 * MIB / (kbit_per_s * 125) + 1.0
    assert line.sent_bytes < 1.3 * 10 * MIB


def test_even_where_a_part_takes_20_seconds_an_update_arrives() -> None:
    line = Line(rate=100 * 125, size=4 * MIB)
    took_s = line.run()
    outcome = line.parent.take_outcome()
    assert outcome is not None
    assert outcome.accepted == {PI: 1}
    assert took_s < 3 * 4 * MIB / (100 * 125)
