"""An edge: an aggregator below, a participant above. A tree of any depth is edges under edges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hfl_mqtt.errors import ConfigError, Misuse, Refused
from hfl_mqtt.protocol.blobs import Keep, in_memory
from hfl_mqtt.protocol.messages import (
    AUTO,
    MAX_TALLIES,
    MAX_WEIGHT,
    Info,
    Kind,
    Tally,
    Tier,
)
from hfl_mqtt.protocol.topics import MAX_DEPTH
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Connected,
    Contribution,
    Counted,
    Event,
    KeepResidual,
    Lost,
    Received,
    RunOver,
    Work,
    note,
)
from hfl_mqtt.rounds.aggregator import Aggregator, FromChild, Outcome, codecs_of
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.node import MAX_MODEL, Node, Pace, choices_of, metrics_of, progress_of
from hfl_mqtt.rounds.participant import FromParent, Participant

#: Rounds that score a model are few, and a score that is off by what coding left out is none.
FINE = "int8 | zstd"

#: Why an edge fetches a model that it has: what it knows of it are deltas, and only a whole chain can be passed on.
OUT_OF_RANGE = "the way from the children's model to the parent's has left the range of its numbers: they begin anew"


@dataclass(slots=True)
class _EdgeWork:
    """What an edge does between its parent's call and its contribution."""

    work: Work
    tier: Tier
    #: How far this edge's model has moved from its parent's, and how much of that its children were told.
    total: Any = None
    told: Any = None
    done: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    loss: Tally | None = None
    seconds: float = 0.0
    sent: int = 0
    received: int = 0


class EdgeNode(Node):
    """An aggregator below, a participant above: its work is to run `tier.rounds` rounds with its children.

    It contributes the difference between its model after those rounds and the one it was sent; the weight is the
    samples behind it, each child counted once however many rounds it took part in. It never sees a model: it adds
    deltas, and passes on where they start.

    Args:
        path, boot, info: see `Participant`.
        arithmetic: the numbers.
        max_model: most bytes of a model it will take.
        residual: what a former life of this node kept, with the run it belongs to.
        keep: puts blobs away.
    """

    def __init__(
        self,
        *,
        path: str,
        boot: int,
        info: Info,
        arithmetic: Arithmetic,
        max_model: int = MAX_MODEL,
        residual: tuple[str, Any] | None = None,
        keep: Keep = in_memory,
    ) -> None:
        super().__init__(path, boot)
        self._residual: Any
        self._arithmetic = arithmetic
        self._work: _EdgeWork | None = None
        #: The digest of the parent's model up to which its chain has been passed on, and what children were told since.
        self._followed: str | None = None
        self._told: Any = None
        #: What coding cut off from the updates accepted so far, in which run; and from the one that has no receipt yet.
        self._residual_run, self._residual = residual if residual is not None else ("", None)
        self._pending: tuple[str, Any] | None = None
        self._pace = Pace()
        self.participant = Participant(path=path, boot=boot, info=info, max_model=max_model, keep=keep)
        self.aggregator = Aggregator(path=path, arithmetic=arithmetic, boot=boot, keep=keep)
        self.participant.moving_below_since = self.aggregator.moving_since

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin; an edge waits to be connected."""
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        return self._hear(event, now) + self._watch(now)

    def _watch(self, now: float) -> list[Action]:
        participant, aggregator = self.participant, self.aggregator

        def progress() -> dict[str, float]:
            coming = participant.received or aggregator.received
            return progress_of("receiving", coming) or progress_of("sending", participant.sent)

        told = self._pace.watch(participant.is_moving or aggregator.is_receiving, progress, now)
        return told + participant.watch(now)

    def _hear(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Connected):
            actions = self.participant.connected(now)
            return self._pass(actions, now) + self.aggregator.connected(session_present=event.session_present)
        if isinstance(event, Received):
            message, sender = event.message, event.sender
            if sender == self.participant.parent and isinstance(message, FromParent):
                return self._pass(self.participant.hear(message, now), now)
            if isinstance(message, FromChild):
                return self._settle(self.aggregator.hear(message, sender, now), now)
            return [note("stranger", sender=sender, said=type(message).__name__)]
        if isinstance(event, Lost):
            self.participant.lost()
            return []
        raise Misuse("an edge has no trainer: nothing can have been worked")

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        actions = self._settle(self.aggregator.tick(now), now) + self._pass(self.participant.tick(now), now)
        return actions + self._pace.tick(now) + self._watch(now)

    def leave(self) -> list[Action]:
        """Leave on purpose: the children need not work on."""
        return [*self.aggregator.cancel("the edge leaves"), *self._pace.rest(), *super().leave()]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        deadlines = (self.participant.next_deadline, self.aggregator.next_deadline, self._pace.next_deadline)
        return min((moment for moment in deadlines if moment is not None), default=None)

    def _pass(self, actions: list[Action], now: float) -> list[Action]:
        """Do the participant's work here; everything else goes out as it is."""
        out: list[Action] = []
        for action in actions:
            if isinstance(action, Work):
                out += self._begin(action, now)
            elif isinstance(action, CancelWork):
                self._work = None
                out += self.aggregator.cancel("the call from above ended")
            elif isinstance(action, Counted):
                out += self._keep_residual(action)
            elif isinstance(action, RunOver):
                self._work = None
                out += [*self.aggregator.finish(action.run), *self._pace.rest(), action]
            else:
                out.append(action)
        return out

    def _begin(self, work: Work, now: float) -> list[Action]:
        tier = work.plan.tiers[0] if work.plan.tiers else Tier(codec=work.codec)
        try:
            if len(work.round) >= MAX_DEPTH:
                raise Refused(f"a tree has at most {MAX_DEPTH} tiers")
            for codec in (*codecs_of(tier.codec), *codecs_of(tier.downlink), work.codec):
                self._arithmetic.is_lossless(codec)  # must be known before anybody works
            if work.plan.kind is Kind.EVALUATE:
                tier = replace(tier, rounds=1, downlink=self._scored(tier.downlink))
            shown = self._pass_on(work, tier)
        except (Refused, ConfigError) as error:
            return self._pass(self.participant.failed(work.work_id, str(error)), now)
        if shown is None:
            return [note("chain_broken", run=work.run, reason=OUT_OF_RANGE), *self.participant.fetch_anew(now)]
        if self._residual_run != work.run:
            self._residual_run, self._residual = work.run, None
        self._work = _EdgeWork(work=work, tier=tier)
        return shown + self._next_round(self._work, now)

    def _scored(self, downlink: str) -> str:
        """Return how a model goes down to be scored: what is left out of a coarse delta would be scored as missing."""
        return downlink if downlink != AUTO and self._arithmetic.is_lossless(downlink) else FINE

    def _pass_on(self, work: Work, tier: Tier) -> list[Action] | None:
        """Bring the children to the parent's model: by its own deltas where they stand where it stood.

        Returns:
            None where no delta leads them there, and they must begin anew with the parent's chain.
        """
        chain, downlink = self.participant.chain, self.aggregator.downlink
        assert chain is not None
        known = downlink.chain
        news = chain.since(self._followed) if known is not None and self._followed is not None else None
        actions: list[Action] = []
        if known is None or news is None or known.keyframe.run != work.run:
            actions += downlink.begin(chain.keyframe)
            for link in chain.links:
                actions += downlink.follow(link.cut)
        elif known.digest == self._followed:
            downlink.lag = None
            for link in news:
                actions += downlink.follow(link.cut)
        else:
            try:
                for link in news:
                    downlink.move(self._arithmetic.decode(link.cut.blob, downlink.layout))
                if self._told is not None:
                    downlink.move(self._arithmetic.subtract(None, self._told))
                actions += downlink.show(tier, work.seed)[0]
            except Refused:
                self._followed = self._told = None
                return None
        self._followed, self._told = chain.digest, None
        chain.forget_links()
        return actions

    def _next_round(self, doing: _EdgeWork, now: float) -> list[Action]:
        work = doing.work
        return self.aggregator.open(
            run=work.run,
            round_id=(*work.round, doing.done + 1),
            plan=replace(work.plan, tiers=work.plan.tiers[1:]),
            tier=doing.tier,
            seed=work.plan.seed,
            now=now,
        )

    def _settle(self, actions: list[Action], now: float) -> list[Action]:
        outcome, doing = self.aggregator.take_outcome(), self._work
        if outcome is None or doing is None:
            return actions
        doing.seconds += outcome.seconds
        if outcome.is_missed and not doing.done:
            self._work = None
            reason = (
                f"{len(outcome.accepted)} of {outcome.quorum} updates; waited for {outcome.waited_for() or 'children'}"
            )
            return actions + self._pass(self.participant.failed(doing.work.work_id, reason), now)
        if not outcome.is_missed:
            self._take(doing, outcome)
            metrics = metrics_of(
                outcome.round,
                outcome.tallies,
                sum(outcome.accepted.values()),
                outcome.seconds,
                into={
                    "in": len(outcome.accepted),
                    "of": len(outcome.accepted) + outcome.absent,
                    **choices_of(up=self.participant.choice, down=self.aggregator.downlink.choice),
                },
            )
            actions = actions + self._pace.say(metrics, now)
            if doing.done < doing.tier.rounds:
                try:
                    return actions + self._move_on(doing, outcome) + self._next_round(doing, now)
                except Refused as error:
                    self._work = None
                    return actions + self._pass(self.participant.failed(doing.work.work_id, str(error)), now)
        return actions + self._contribute(doing, now)

    def _move_on(self, doing: _EdgeWork, outcome: Outcome) -> list[Action]:
        """Tell the children where the model is after their round."""
        downlink, arithmetic = self.aggregator.downlink, self._arithmetic
        downlink.move(outcome.step)
        self._told = arithmetic.add(self._told, outcome.step)
        return downlink.show(doing.tier, cohort.lot(doing.work.plan.seed, outcome.round, self.path))[0]

    def _take(self, doing: _EdgeWork, outcome: Outcome) -> None:
        if outcome.step is not None:
            doing.total = outcome.step if doing.total is None else self._arithmetic.add(doing.total, outcome.step)
        doing.sent += outcome.sent
        doing.received += outcome.received
        doing.samples.update(outcome.accepted)
        if not doing.done:  # the first round scores the model that came from above
            doing.tallies = {name: tally for name, tally in outcome.tallies.items() if name != "loss"}
        loss = outcome.tallies.get("loss")
        if loss is not None:
            doing.loss = loss
        doing.done += 1

    def _contribute(self, doing: _EdgeWork, now: float) -> list[Action]:
        self._work = None
        work = doing.work
        tallies = doing.tallies if doing.loss is None else {**doing.tallies, "loss": doing.loss}
        payload, weight = b"", sum(doing.samples.values())
        try:
            if work.plan.kind is Kind.TRAIN:
                payload = self._encode(doing)
            if weight > MAX_WEIGHT or len(tallies) > MAX_TALLIES:
                raise Refused(f"{weight} samples and {len(tallies)} metrics, at most {MAX_WEIGHT} and {MAX_TALLIES}")
        except Refused as error:
            return self._pass(self.participant.failed(work.work_id, str(error)), now)
        result = Contribution(
            payload=payload,
            weight=weight,
            tallies=tallies,
            seconds=doing.seconds,
            sent=doing.sent,
            received=doing.received,
        )
        return self._pass(self.participant.worked(work.work_id, result, now), now)

    def _encode(self, doing: _EdgeWork) -> bytes:
        """Code how far the model has moved, with what coding cut off before; keep what it cuts off now for later."""
        work, arithmetic = doing.work, self._arithmetic
        try:
            delta = doing.total if self._residual is None else arithmetic.add(doing.total, self._residual)
        except Refused:
            self._residual, delta = None, doing.total  # of another model: a former life kept it
        payload = arithmetic.encode(delta, work.codec, work.seed)
        left = None
        if not arithmetic.is_lossless(work.codec):
            left = arithmetic.subtract(delta, arithmetic.decode(payload, self.aggregator.downlink.layout))
        self._pending = (work.work_id, left)
        return payload

    def _keep_residual(self, counted: Counted) -> list[Action]:
        if self._pending is None or self._pending[0] != counted.work_id:
            return []
        had, (_, self._residual), self._pending = self._residual, self._pending, None
        if had is None and self._residual is None:
            return []
        return [KeepResidual(run=self._residual_run, residual=self._residual)]
