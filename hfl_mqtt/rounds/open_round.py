"""One round of an aggregator: who was asked, what came in for it, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

from hfl_mqtt.errors import Forged, Malformed, Refused
from hfl_mqtt.protocol.limits import MAX_MOVED, MAX_TALLIES, MAX_WEIGHT, MIN_SHARERS
from hfl_mqtt.protocol.messages import Kind, Plan, RoundCall, Tally, Update, round_text
from hfl_mqtt.rounds.actions import Note, note
from hfl_mqtt.rounds.arithmetic import Accumulator
from hfl_mqtt.rounds.conduct import Conduct
from hfl_mqtt.rounds.ledger import Entry
from hfl_mqtt.rounds.policy import Waiting, quorum_of

#: How long an aggregator waits before it calls those again who have not answered; twice as long each time.
REMIND_S = 10.0
#: What training itself gives, in every task.
LOSS = "loss"
#: A score that is so many times as large as the largest of at least two others, or stands for so many times as many
#: examples, is left out. A share of one, or one example, is no less than any.
BEYOND = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round gave. `step` is how far the model moves: a delta, None after an evaluation or a miss."""

    run: str
    round: tuple[int, ...]
    kind: Kind
    is_missed: bool
    step: Any = field(repr=False)
    quorum: int
    accepted: dict[str, int]
    declined: dict[str, str]
    missing: tuple[str, ...]
    tallies: dict[str, Tally]
    seconds: float
    #: Bytes that were moved for it, up and down, on all links below this node, by the child through which they went.
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: What each child gave of each metric, in no order.
    given: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Bytes up, of all children."""
        return sum(up for up, _ in self.moved.values())

    @property
    def received(self) -> int:
        """Bytes down, of all children."""
        return sum(down for _, down in self.moved.values())

    @property
    def absent(self) -> int:
        """How many were asked in vain."""
        return len(self.missing) + len(self.declined)

    def waited_for(self) -> str:
        """Say for people who did not contribute, and why."""
        said = [f"{name} ({reason})" for name, reason in sorted(self.declined.items())]
        return ", ".join([*said, *(f"{name} (no answer)" for name in self.missing)])


@dataclass(slots=True)
class OpenRound:
    """A round, from its call to its close.

    `declined` holds who gave nothing, and why; who `stood_in_line` was told to wait for a slot, so it is not slow.
    """

    call: RoundCall
    waiting: Waiting
    accumulator: Accumulator
    asked: set[str]
    next_remind_s: float
    #: How long what moves at the children may put off its end, from the first time on and again from each update.
    hold_at_most_s: float
    #: Bytes, each way, that are believed to have been moved for one update.
    most_moved: int
    hold_ends_s: float | None = None
    remind_wait_s: float = REMIND_S
    #: When children last said that parts keep coming at them.
    moving_s: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    stood_in_line: set[str] = field(default_factory=set)
    refused_blobs: dict[str, str] = field(default_factory=dict)
    corrupted: dict[str, int] = field(default_factory=dict)
    #: By name, and whether they ask for a root.
    tallies: dict[tuple[str, bool], list[Tally]] = field(default_factory=dict)
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def quorum(self) -> int:
        """How many updates it needs."""
        return quorum_of(self.waiting.tier, len(self.asked))

    @property
    def has_quorum(self) -> bool:
        """Whether enough came in; once they have, one more child to ask does not take it back."""
        return self.waiting.grace_ends_s is not None or len(self.accepted) >= self.quorum

    def may_hold(self, now: float) -> bool:
        """Whether its end may be put off for what moves; asking begins the time for which it may."""
        if self.hold_ends_s is None:
            self.hold_ends_s = now + self.hold_at_most_s
        return now < self.hold_ends_s

    def forget(self, sender: str) -> None:
        """Take it that this child was not asked."""
        self.asked.discard(sender)
        self.stood_in_line.discard(sender)
        self.declined.pop(sender, None)
        self.moving_s.pop(sender, None)

    def count(self, update: Update, sender: str, entry: Entry, conduct: Conduct | None = None) -> float | None:
        """Add an update, and return the norm of its delta; None in an evaluation.

        What it may say depends on no other's, so that nobody can have others refused: each has a share of the range of
        weights and sums, and of metrics that do not go together the less common are left out at the end. Without a
        `conduct` it counted before, in a former life.

        Raises:
            Refused: it cannot be added; nothing of it has been, then.
        """
        norm, max_norm, sharers = None, inf, 1
        if conduct is not None:
            most = min(conduct.max_weight(sender), MAX_WEIGHT // max(len(self.asked), MIN_SHARERS))
            if update.weight > most:
                raise Refused(f"weight {update.weight}: at most {most} samples are believed of one child")
            max_norm = conduct.max_norm(sender, update.weight, entry.staleness) * self._rounds_at_once
            sharers = max(len(self.asked), 2)
        if self.call.plan.kind is Kind.TRAIN:
            norm = self.accumulator.add(update.payload, update.weight, entry.share, max_norm, sharers)
        elif len(update.payload) or update.weight:
            raise Refused("an evaluation carries no weights")
        for name, tally in update.tallies.items():
            self.tallies.setdefault((name, tally.is_root), []).append(tally)
        self.accepted[sender] = update.weight
        self.moved[sender] = (min(update.sent, self.most_moved), min(update.received, self.most_moved))
        self.declined.pop(sender, None)
        self.hold_ends_s = None
        return norm

    def is_relayed(self, error: Malformed | Refused) -> bool:
        """Whether a child may not be the one who lied: it is an aggregator, and handed on what others gave it.

        What it says is counted no more for that. Its form and its signature are its own.
        """
        return bool(self.call.plan.tiers) and not isinstance(error, Malformed | Forged)

    @property
    def _rounds_at_once(self) -> float:
        """How many times the usual rounds a child may put into one update after an outage; it goes as much further."""
        return prod((tier.rounds + tier.offline_rounds) / tier.rounds for tier in self.call.plan.tiers)

    def _metrics(self) -> dict[str, list[Tally]]:
        """Return the metrics that most children gave, and of each the kind that most gave; a loss always has room."""
        common = sorted(self.tallies, key=lambda key: (-len(self.tallies[key]), key))
        chosen: dict[str, list[Tally]] = {}
        for name, is_root in common:
            if name not in chosen and (name == LOSS or len(chosen.keys() - {LOSS}) < MAX_TALLIES - 1):
                chosen[name] = self.tallies[name, is_root]
        return {name: _believed(tallies) for name, tallies in sorted(chosen.items())}

    def outcome(self, step: Any, now: float) -> Outcome:
        """Return what the round gave, where it ends now."""
        call, metrics = self.call, self._metrics()
        return Outcome(
            run=call.run,
            round=call.round,
            kind=call.plan.kind,
            is_missed=not self.has_quorum,
            quorum=self.quorum,
            step=step,
            accepted=self.accepted,
            declined=self.declined,
            missing=tuple(sorted(self.asked - self.accepted.keys() - self.declined.keys())),
            tallies={name: Tally.of(tallies) for name, tallies in metrics.items()},
            given={
                name: tuple(value for tally in tallies if (value := tally.value) is not None)
                for name, tallies in metrics.items()
            },
            seconds=now - self.waiting.opened_s,
            moved=self.moved,
        )

    def note(self, event: str, **fields: Any) -> Note:
        """Return a note of this round."""
        return note(event, run=self.call.run, round=round_text(self.call.round), **fields)


def most_moved(plan: Plan, size: int) -> int:
    """Return the bytes each way that may be said to have been moved for one update, of this size with its model.

    >>> most_moved(Plan(task="t"), 1_000_000)
    64000000
    """
    return MAX_MOVED * size * prod(MIN_SHARERS * (tier.rounds + tier.offline_rounds) for tier in plan.tiers)


def _believed(tallies: list[Tally]) -> list[Tally]:
    """Return the tallies of one metric without those beyond all sense, by what the others gave.

    Metrics refuse nobody, and one that is not heard is missed by no one: a device whose score is a million times all
    others' would drown them.

    >>> one, other = Tally(total=1.0, count=2), Tally(total=3.0, count=4)
    >>> _believed([one, other, Tally(total=1e300, count=1)]) == [one, other]
    True
    """
    if len(tallies) < 3:
        return tallies
    sizes, counts = [_size(tally) for tally in tallies], [tally.count for tally in tallies]
    size, count = _top_two(sizes), _top_two(counts)
    return [
        tally
        for tally, its_size in zip(tallies, sizes, strict=True)
        if _is_within(its_size, size) and _is_within(tally.count, count)
    ]


def _size(tally: Tally) -> float:
    """Return how large a score is, also where it is none: a sum over nothing still adds up with others'."""
    if not tally.count:
        return inf if tally.total else 0.0
    mean = abs(tally.total) / tally.count
    return float(mean**0.5) if tally.is_root else mean


def _top_two(numbers: list[float]) -> tuple[float, float]:
    second, first = sorted(numbers)[-2:]
    return first, second


def _is_within(number: float, top_two: tuple[float, float]) -> bool:
    """Whether a number is not beyond what the largest of the others bears out."""
    first, second = top_two
    return number <= BEYOND * max(second if number == first else first, 1.0)
