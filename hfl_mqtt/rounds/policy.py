"""How long a round waits, and for how many: pure arithmetic on a `Tier`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hfl_mqtt.protocol.messages import Tier


def share_of(count: int, fraction: float) -> int:
    """Return a fraction of a count, rounded up, never below 1.

    >>> share_of(100, 0.07), share_of(3, 0.5), share_of(0, 0.5)
    (7, 2, 1)
    """
    return max(1, math.ceil(fraction * count - 1e-9))  # 0.07 * 100 is 7.000000000000001


def quorum_of(tier: Tier, asked: int) -> int:
    """Return how many updates a round needs: a count as it is, a share of those asked rounded up, never below 1."""
    if isinstance(tier.quorum, int) and not isinstance(tier.quorum, bool):
        return tier.quorum
    return share_of(asked, tier.quorum)


#: While somebody who had to wait is waited for, it is looked again after this long at the soonest.
LOOK_S = 1.0
#: How long to wait before those who all declined are asked again.
PAUSE_S = 5.0


@dataclass(slots=True)
class Waiting:
    """The clock of one open round. A missed deadline is extended `retries` times; what was accepted stays accepted."""

    tier: Tier
    opened_s: float
    deadline_s: float
    grace_ends_s: float | None = None
    answered_ends_s: float | None = None
    extensions: int = 0

    @classmethod
    def begin(cls, tier: Tier, now: float) -> Waiting:
        """Start the clock."""
        return cls(tier, now, now + tier.open_for_s)

    def quorum_in(self, now: float) -> None:
        """Start the grace period, once; it never outlasts the deadline."""
        if self.grace_ends_s is None:
            self.grace_ends_s = min(now + self.tier.grace_s, max(self.deadline_s, now))

    def more_grace(self, now: float) -> None:
        """Let the grace period go on for those who are not slow, but were told to wait."""
        self.grace_ends_s = now + max(self.tier.grace_s, LOOK_S)

    def stand_still(self, for_s: float) -> None:
        """Take it that nobody could answer for so long: our own link was down."""
        self.deadline_s += for_s
        if self.grace_ends_s is not None:
            self.grace_ends_s += for_s
        if self.answered_ends_s is not None:
            self.answered_ends_s += for_s

    def all_have_answered(self, is_so: bool, now: float) -> None:
        """Do not sit out the deadline when everybody has answered and it was not enough: go on after a short pause."""
        if not is_so:
            self.answered_ends_s = None
        elif self.answered_ends_s is None:
            self.answered_ends_s = min(now + PAUSE_S, max(self.deadline_s, now))

    @property
    def next_s(self) -> float:
        """When the clock next decides something."""
        if self.grace_ends_s is not None:
            return self.grace_ends_s
        return self.deadline_s if self.answered_ends_s is None else self.answered_ends_s

    def extend(self, now: float, *, by_s: float | None = None) -> bool:
        """Wait longer: by `by_s` while parts are coming in, else a whole `open_for_s` if a retry is left."""
        if by_s is not None:
            self.deadline_s, self.answered_ends_s = now + by_s, None
            return True
        if self.extensions >= self.tier.retries:
            return False
        self.extensions += 1
        self.answered_ends_s = None
        self.deadline_s = now + self.tier.open_for_s
        return True
