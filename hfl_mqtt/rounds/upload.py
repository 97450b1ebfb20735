"""One update on its way up: announced or begun unasked, then sent as it is asked for, and probed for its receipt."""

from __future__ import annotations

from collections.abc import Iterable

from hfl_mqtt.protocol.blobs import Cut, part_length
from hfl_mqtt.protocol.limits import WINDOW
from hfl_mqtt.protocol.messages import Announce, UpdatePart, Want
from hfl_mqtt.rounds.actions import Action, Send
from hfl_mqtt.rounds.outbox import Letter

PROBE_S = 5.0
MAX_PROBE_S = 60.0
#: A reminder is answered with a probe once this long has passed since parts were sent.
PATIENCE_S = 30.0
#: A probe is a whole part: after so many without an answer, the parent's next call is waited for.
MAX_PROBES = 10


class Upload:
    """The way of one update.

    Args:
        letter: what is sent.
        cut: its bytes.
        is_announced: whether it is announced, however small: over a bridge an announcement comes behind our card,
            which parts may overtake.
    """

    def __init__(self, letter: Letter, cut: Cut, *, is_announced: bool = False) -> None:
        self._letter, self._cut = letter, cut
        #: The parent may have much of one that was sent before: how fast it came says nothing then.
        self._is_measured = not letter.is_sent
        self.blob = letter.blob
        self.is_begun = False
        self._is_announced = is_announced or cut.size > letter.call.unasked
        #: Parts up to the last one sent: the parent asks for them in order.
        self._parts_sent = 0
        self._probe_at_s: float | None = None
        self._probe_wait_s = PROBE_S
        self._probes = 0
        self._sent_s = self._began_s = 0.0

    def begin(self, now: float) -> list[Action]:
        """Send the first parts, or announce that there are many."""
        self.is_begun, self._probes, self._began_s = True, 0, now
        self._probe_at_s, self._probe_wait_s, self._sent_s = now + PROBE_S, PROBE_S, now
        return self._announce() if self._is_announced else self._send(range(min(WINDOW, self._cut.count)))

    def wake(self, now: float) -> None:
        """Probe at once: the parent can be reached again, or has called anew."""
        self._probe_at_s, self._probe_wait_s, self._probes = now, PROBE_S, 0

    def rest(self) -> None:
        """Send nothing until it is woken."""
        self._probe_at_s = None

    def remind(self, now: float) -> None:
        """Take it that the call was heard again: the parent may have missed the update.

        A probe is a whole part: it must not stand in the way of those that are still under way.
        """
        earliest_s = max(self._sent_s + PATIENCE_S, now)
        self._probe_at_s = earliest_s if self._probe_at_s is None else min(self._probe_at_s, earliest_s)
        self._probes = 0

    def hear(self, want: Want, now: float) -> list[Action]:
        """Send what is asked for.

        On a slow link the next want takes about as long as this one did; a probe before it would stand in its way.
        """
        wait_s = max(PROBE_S, 2 * (now - self._sent_s), self._probe_wait_s / 2)
        self._probe_wait_s = min(wait_s, MAX_PROBE_S)
        self._probe_at_s, self._sent_s, self._probes = now + self._probe_wait_s, now, 0
        if self._is_announced:
            self._is_announced, self._began_s = False, now
        return self._send(sorted(index for index in set(want.parts) if index < self._cut.count))

    def tick(self, now: float) -> list[Action]:
        """Probe, or announce again, where nothing has come for long enough."""
        if self._probe_at_s is None or now < self._probe_at_s:
            return []
        self._probe_wait_s = min(self._probe_wait_s * 2, MAX_PROBE_S)
        self._probe_at_s = now + self._probe_wait_s
        if self._is_announced:
            return self._announce()
        if self._probes < MAX_PROBES:
            self._probes += 1
            return self._send([0])
        self._probe_at_s = None
        return []

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        return self._probe_at_s

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes were asked for and sent, and all of them."""
        size = self._cut.size
        return min(self._parts_sent * part_length(size, self._cut.count), size), size

    def goodput(self, now: float) -> float | None:
        """Return the bytes per second that it got through, where its receipt comes now; None where that is unknown."""
        return self._cut.size / max(now - self._began_s, 1e-3) if self._is_measured else None

    def _send(self, indices: Iterable[int]) -> list[Action]:
        call, cut = self._letter.call, self._cut
        parts: list[Action] = []
        for index in indices:
            self._parts_sent = max(self._parts_sent, index + 1)
            part = UpdatePart(
                run=call.run,
                round=call.round,
                base=self._letter.base,
                blob=cut.name,
                index=index,
                count=cut.count,
                size=cut.size,
                data=cut.part(index),
            )
            parts.append(Send(message=part))
        return parts

    def _announce(self) -> list[Action]:
        call, cut = self._letter.call, self._cut
        announced = Announce(
            run=call.run,
            round=call.round,
            base=self._letter.base,
            blob=cut.name,
            size=cut.size,
            count=cut.count,
        )
        return [Send(message=announced)]
