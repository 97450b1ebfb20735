"""Two boards with one name: each connection ends the other's, again and again, unless both stay away for longer.

A broker of MQTT 5 says "session taken over" to the older one; Mosquitto 2.0.11 only hangs up. So a hang-up without a
word counts too, where it came soon and the broker could be reached at the first try: a broken network cannot.
"""

from __future__ import annotations

#: A connection lost earlier than this counts as short-lived.
STEADY_S = 10.0
#: So many times within so long are no bad luck.
TIMES, WITHIN_S = 3, 600.0
#: The longest pause where the broker never said so: a network that keeps hanging up must not cost more.
UNSAID_S = 120.0


class Takeovers:
    """How often a link was taken over lately, and so how long it stays away.

    Args:
        pauses_s: the first pause and the longest one, in seconds; each is twice the one before.
    """

    def __init__(self, pauses_s: tuple[float, float] = (5.0, 600.0)) -> None:
        self._first_s, self._longest_s = pauses_s
        self._at_s: list[float] = []
        #: The last pause; None while nobody is suspected.
        self.pause_s: float | None = None

    @property
    def is_cloned(self) -> bool:
        """Whether another program keeps connecting under our name."""
        return self.pause_s is not None

    def ended(self, now: float, *, lived_s: float, is_said: bool, is_easy: bool) -> bool:
        """Take in the end of a connection; returns whether another seems to have taken it over.

        Args:
            now: when.
            lived_s: how long it stood.
            is_said: the broker said that it was taken over.
            is_easy: the broker hung up without a word, and had been reached at the first try.
        """
        # Who stays away for ten minutes meets the other less often.
        patience_s = max(WITHIN_S, 3 * (self.pause_s or 0.0))
        if self._at_s and now - self._at_s[-1] > patience_s:
            self._at_s, self.pause_s = [], None
        if not (is_said or (is_easy and (lived_s < STEADY_S or self.is_cloned))):
            return False
        self._at_s = [*self._at_s, now][-TIMES:]
        if self.pause_s is not None:
            self.pause_s = min(2 * self.pause_s, self._longest_s if is_said else min(UNSAID_S, self._longest_s))
        elif len(self._at_s) == TIMES and now - self._at_s[0] <= WITHIN_S:
            self.pause_s = self._first_s
        return True
