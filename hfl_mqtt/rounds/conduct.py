"""How children behave: what each may send, what counts against it, and who is not heard for a while.

Two things put a child into quarantine. A **flood**: each child has an allowance of messages and one of bytes, which
fill up again with time and with each call that asks it for an answer; a message that was of use costs nothing, and an
update that counts fills both up, so that large models, resends and rounds of milliseconds cost an honest node nothing.
**Lies**: an update that is whole, arrived as it was sent, and still cannot be counted (NaN, a wrong shape, a signature
that does not hold) is a strike; updates that count and time take strikes back.

A quarantine lasts five minutes, twice as long each time, up to an hour. It outlives a restart, where it begins anew
with its full length, for boards do not know how long they were away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, sqrt

from hfl_mqtt.protocol.limits import MAX_SHUNNED, MAX_WEIGHT, MIN_SHARERS, PART_SIZE, SLOWEST_LINK, UNASKED
from hfl_mqtt.protocol.messages import Buffer, Quarantine, Quarantined
from hfl_mqtt.rounds.actions import Persist
from hfl_mqtt.rounds.records import pack, read

#: Where those in quarantine are put down.
KEY = "quarantine"
#: What a message that cannot be read costs, as a share of a minute's allowance: a bad cable is no attack.
MALFORMED_SHARE = 0.01
#: Messages that a child may send with each call, beside its allowance.
PER_CALL = 8
#: Bytes that may come to nothing in a minute, however small the model.
LEAST_WASTE = 16 * 2**20
#: After our own link was down, what waited at the broker comes at once: for so long nobody is judged by its pace.
AMNESTY_S = 30.0
#: A strike is forgotten after so long, and that there were quarantines before after that.
FORGIVE_S = 3600.0
FORGET_S = 24 * 3600.0
#: An update is measured by the last norms of so many of the other children, the latest ones. Fewer tell too little,
#: however wide the bound: of four honest devices three may have what the model knows already, and hardly move.
NORMS_KEPT, NORMS_NEEDED = 20, 8
#: So many tell of samples.
COUNTS_NEEDED = 3
#: Where children have but a few samples, one that has many is none that has lied.
LEAST_SAMPLES = 10
#: Characters of a reason that stands among many.
_SHORT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an operator may set: the section `limits:` of a cloud or an edge.

    `max_wasted_updates` are bytes that come to nothing in a minute, in sizes of the largest update that makes sense.
    A `max_norm_ratio` of infinity judges no norms, and such a `max_weight_ratio` no samples.
    """

    messages_per_minute: int = 3000
    max_wasted_updates: float = 4.0
    strikes: int = 5
    quarantine_s: float = 300.0
    max_quarantine_s: float = 3600.0
    max_norm_ratio: float = 10.0
    max_weight_ratio: float = 3000.0
    max_samples: int = MAX_WEIGHT // MIN_SHARERS
    slowest_link: int = SLOWEST_LINK


@dataclass(slots=True)
class _Child:
    """What is known of one child. `messages` and `bytes` are what it may still send."""

    messages: float
    bytes: float
    at_s: float
    calls: int
    strikes: float = 0.0
    malformed: str = ""
    #: How often it was in quarantine, and when the last one ends or ended.
    times: int = 0
    until_s: float = -inf


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    reason: str
    for_s: float
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    held: dict[str, _Held] = field(default_factory=dict)


class Conduct:
    """What an aggregator holds against its children. It decides; what follows from it is the aggregator's.

    Args:
        bounds: see there.
        saved: what a former life put down.
    """

    def __init__(self, bounds: Bounds | None = None, saved: Mapping[str, Buffer] | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._largest = PART_SIZE
        self._children: dict[str, _Child] = {}
        self._calls = 0
        self._run = ""
        self._amnesty_ends_s = -inf
        #: The last norm of each child and the samples behind it, in the order in which they came.
        self._norms: dict[str, tuple[float, int]] = {}
        record = read(_Record, (saved or {}).get(KEY))
        self._held: dict[str, _Held] = dict(record.held) if record is not None else {}
        self._is_changed = record is None and KEY in (saved or {})

    def start(self, now: float) -> None:
        """Take it that those who were in quarantine in a former life are so from now on."""
        for name, held in self._held.items():
            child = self._child(name, now)
            child.times, child.until_s = held.times, now + held.for_s

    # -------------------------------------------------------------- pace

    @property
    def largest(self) -> int:
        """Bytes of the largest update that makes sense now. Who is here when that grows may send as much more."""
        return self._largest

    @largest.setter
    def largest(self, size_bytes: int) -> None:
        before, self._largest = self._most_bytes, size_bytes
        for child in self._children.values():
            child.bytes = min(child.bytes + max(self._most_bytes - before, 0.0), self._most_bytes)

    def called(self, run: str) -> None:
        """Take it that the children were called: each may answer. The end of a run tells nothing of another."""
        self._calls += 1
        if run != self._run:
            self._run = run
            self._norms.clear()

    def amnesty(self, now: float) -> None:
        """Judge nobody by its pace for a while: what waited at the broker comes at once."""
        self._amnesty_ends_s = now + AMNESTY_S

    def charge(self, name: str, size_bytes: int, now: float) -> str | None:
        """Count a message against its sender; returns why that was too much, None where it was not."""
        if now < self._amnesty_ends_s:
            return None
        child = self._child(name, now)
        child.messages -= 1
        child.bytes -= size_bytes
        if child.messages < 0:
            return self._too_many(child)
        if child.bytes < 0:
            return f"more than {self._most_bytes / 1e6:.4g} MB in a minute that came to nothing"
        return None

    def charge_malformed(self, name: str, reason: str, now: float) -> str | None:
        """Count a message that cannot be read as many; returns why that was too much."""
        child = self._child(name, now)
        child.malformed = reason
        child.messages -= self.bounds.messages_per_minute * MALFORMED_SHARE
        return self._too_many(child) if child.messages < 0 else None

    def was_of_use(self, name: str) -> None:
        """Take back what a message cost that its sender was charged for; its bytes count until the whole does."""
        child = self._children.get(name)
        if child is not None:
            child.messages = min(child.messages + 1, self.bounds.messages_per_minute)

    def counted(self, name: str, norm: float | None = None, weight: int = 0) -> None:
        """Take it that an update of this child counts: it owes nothing, one strike less, and later ones measure by it.

        Args:
            name: the child.
            norm: of its delta; None after an evaluation.
            weight: the samples behind it.
        """
        if norm is not None:
            self._norms.pop(name, None)
            self._norms[name] = (norm, weight)
            if len(self._norms) > NORMS_KEPT + 1:
                del self._norms[next(iter(self._norms))]
        child = self._children.get(name)
        if child is not None:
            child.messages, child.bytes = self.bounds.messages_per_minute, self._most_bytes
            child.strikes = max(child.strikes - 1, 0)

    def _too_many(self, child: _Child) -> str:
        if child.malformed:
            return f"too many malformed messages, the last: {child.malformed}"
        return f"more than {self.bounds.messages_per_minute} messages in a minute"

    @property
    def _most_bytes(self) -> float:
        return LEAST_WASTE + self.bounds.max_wasted_updates * self._largest

    def _child(self, name: str, now: float) -> _Child:
        child, most = self._children.get(name), self._most_bytes
        if child is None:
            child = self._children[name] = _Child(self.bounds.messages_per_minute, most, now, self._calls)
            return child
        passed_s, calls = max(now - child.at_s, 0.0), self._calls - child.calls
        child.at_s, child.calls = now, self._calls
        per_minute = self.bounds.messages_per_minute
        child.messages = min(child.messages + per_minute * passed_s / 60 + PER_CALL * calls, per_minute)
        asked_bytes = 2 * min(self._largest, UNASKED) * calls
        child.bytes = min(child.bytes + most * passed_s / 60 + asked_bytes, most)
        child.strikes = max(child.strikes - passed_s / FORGIVE_S, 0)
        if child.messages >= per_minute:
            child.malformed = ""
        return child

    # -------------------------------------------------------------- lies

    def strike(self, name: str, now: float) -> bool:
        """Hold a lie against a child; returns whether that was one too many."""
        child = self._child(name, now)
        child.strikes += 1
        return child.strikes > self.bounds.strikes - 0.5  # what a second has forgiven is still held against it

    def max_norm(self, name: str, weight: int, staleness: int = 0) -> float:
        """Return the largest L2 norm of a delta that is believed of this child; infinity while too little is known.

        It is measured by the others alone, each once: where one child is fast and near its goal, another that comes
        back from an outage is not. What comes late has gone further, and so has who has more samples than others: in
        the first rounds a device with a thousand times the data of the others moves 60 times as far in an epoch.
        """
        others = self._others(name)
        if len(others) < NORMS_NEEDED:
            return inf
        usual, samples = _middle([norm for norm, _ in others]), _middle([count for _, count in others])
        if not usual:
            return inf
        return self.bounds.max_norm_ratio * usual * sqrt(max(weight / samples, 1)) * (1 + staleness)

    def max_weight(self, name: str) -> int:
        """Return the most samples that are believed to be behind an update of this child.

        They are measured by the others: by the median of many, and by the largest of few, where half may well have
        little data and the other half much.
        """
        counts, most = [float(count) for _, count in self._others(name)], self.bounds.max_samples
        if len(counts) < COUNTS_NEEDED:
            return most
        usual = max(_middle(counts) if len(counts) >= NORMS_NEEDED else max(counts), LEAST_SAMPLES)
        return int(min(most, self.bounds.max_weight_ratio * usual))

    def _others(self, name: str) -> list[tuple[float, int]]:
        return [known for other, known in self._norms.items() if other != name]

    # -------------------------------------------------------------- quarantine

    def is_shunned(self, name: str) -> bool:
        """Whether nothing of this child is heard."""
        return name in self._held

    def shun(self, name: str, reason: str, now: float) -> Quarantine:
        """Put a child into quarantine, and return what to tell it."""
        child = self._child(name, now)
        if now - child.until_s > FORGET_S:
            child.times = 0
        for_s = min(self.bounds.quarantine_s * 2.0**child.times, self.bounds.max_quarantine_s)
        child.times, child.until_s = min(child.times + 1, 32), now + for_s
        child.strikes, child.malformed = 0.0, ""
        told = Quarantine(reason=_plain(reason), for_s=for_s)
        self._held[name] = _Held(reason=told.reason, for_s=for_s, times=child.times)
        self._is_changed = True
        return told

    def release(self, now: float) -> list[str]:
        """Return whose quarantine is over, once; each begins with a full allowance."""
        over = [name for name in self._held if self._child(name, now).until_s <= now]
        for name in over:
            del self._held[name]
            child = self._children[name]
            child.messages, child.bytes = self.bounds.messages_per_minute, self._most_bytes
        self._is_changed |= bool(over)
        return over

    @property
    def next_release_s(self) -> float | None:
        """When `release` has somebody to name."""
        return min((self._children[name].until_s for name in self._held if name in self._children), default=None)

    @property
    def shown(self) -> Quarantined:
        """Who is in quarantine, and why, for people."""
        named = sorted(self._held)[:MAX_SHUNNED]
        reasons = {name: self._held[name].reason[:_SHORT] for name in named}
        return Quarantined(children=reasons, more=len(self._held) - len(named))

    def flush(self) -> list[Persist]:
        """Return what is to be put down since the last time; it may be lost by a power cut, as a flood comes again."""
        if not self._is_changed:
            return []
        self._is_changed = False
        kept = pack(_Record(held=dict(self._held))) if self._held else None
        return [Persist(changes={KEY: kept}, is_urgent=False)]


def _middle(numbers: list[float]) -> float:
    """Return the median, the larger of two. Python's own comes with a megabyte of modules, which boards do without.

    >>> _middle([3.0, 1.0, 2.0]), _middle([4.0, 1.0, 2.0, 3.0])
    (2.0, 3.0)
    """
    return sorted(numbers)[len(numbers) // 2]


def _plain(reason: str) -> str:
    """Return a reason of which a stranger may have written a part: one line of ASCII, and not long.

    >>> _plain("not JSON: caf\\u00e9\\n1 accepted")
    'not JSON: caf??1 accepted'
    """
    return "".join(sign if " " <= sign <= "~" else "?" for sign in reason[:300])
