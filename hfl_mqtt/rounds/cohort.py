"""Who is asked in a round: a function of (seed, round, name), so a restart asks the same and a child can tell itself.

Every child has a lot; the aggregator says the highest lot that is in. The call stays small for a thousand children,
and one that joins while the round is open knows whether it is meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from hfl_mqtt.protocol.messages import Draw
from hfl_mqtt.rounds.policy import share_of

#: Lots are below this: JSON's exact integers.
LOTS = 2**53


def lot(seed: int, round_id: tuple[int, ...], name: str) -> int:
    """Return the lot of a node in a round, uniform in 0 .. LOTS-1. Also the seed of its work in that round."""
    text = f"{seed}|{'.'.join(map(str, round_id))}|{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


def draw(seed: int, round_id: tuple[int, ...], members: Iterable[str], fraction: float) -> Draw:
    """Ask this fraction of the members, rounded up; at 1.0 also everyone who joins later."""
    lots = sorted(lot(seed, round_id, name) for name in members)
    if fraction >= 1 or not lots:
        return Draw(seed=seed, threshold=LOTS)
    return Draw(seed=seed, threshold=lots[share_of(len(lots), fraction) - 1])


def is_asked(drawn: Draw, round_id: tuple[int, ...], name: str) -> bool:
    """Whether the draw means this node."""
    return lot(drawn.seed, round_id, name) <= drawn.threshold
