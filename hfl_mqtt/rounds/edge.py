"""An edge: an aggregator below, a participant above. A tree of any depth is edges under edges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hfl_mqtt.errors import ConfigError, Misuse, Refused
from hfl_mqtt.protocol.messages import (
    MAX_TALLIES,
    MAX_WEIGHT,
    Decline,
    Info,
    Kind,
    ModelPart,
    Receipt,
    RoundCall,
    State,
    Tally,
    Tier,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.topics import MAX_DEPTH
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Connected,
    Contribution,
    Event,
    Lost,
    Received,
    RunOver,
    Work,
    note,
)
from hfl_mqtt.rounds.aggregator import Aggregator, Outcome
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.node import MAX_MODEL, Node, metrics_of
from hfl_mqtt.rounds.participant import Participant


@dataclass(slots=True)
class _EdgeWork:
    """What an edge does between its parent's call and its contribution."""

    work: Work
    tier: Tier
    base: Any
    weights: Any
    done: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    loss: Tally | None = None
    seconds: float = 0.0


class EdgeNode(Node):
    """An aggregator below, a participant above: its work is to run `tier.rounds` rounds with its children.

    It contributes the difference between its model after those rounds and the one it was sent; the weight is the
    samples behind it, each child counted once however many rounds it took part in.
    """

    def __init__(self, *, path: str, boot: int, info: Info, arithmetic: Arithmetic, max_model: int = MAX_MODEL) -> None:
        super().__init__(path, boot)
        self._arithmetic = arithmetic
        self._version = 0
        self._work: _EdgeWork | None = None
        self.participant = Participant(path=path, boot=boot, info=info, max_model=max_model)
        self.aggregator = Aggregator(path=path, arithmetic=arithmetic, boot=boot)

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin; an edge waits to be connected."""
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        if isinstance(event, Connected):
            actions = self.participant.connected(now)
            return self._pass(actions, now) + self.aggregator.connected(session_present=event.session_present)
        if isinstance(event, Received):
            message, sender = event.message, event.sender
            if sender == self.participant.parent and isinstance(message, RoundCall | ModelPart | Receipt | Want):
                return self._pass(self.participant.hear(message, now), now)
            if isinstance(message, State | Decline | UpdatePart | WantModel):
                return self._settle(self.aggregator.hear(message, sender, now), now)
            return [note("stranger", sender=sender, said=type(message).__name__)]
        if isinstance(event, Lost):
            self.participant.lost()
            return []
        raise Misuse("an edge has no trainer: nothing can have been worked")

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self._settle(self.aggregator.tick(now), now) + self._pass(self.participant.tick(now), now)

    def leave(self) -> list[Action]:
        """Leave on purpose: the children need not work on."""
        return [*self.aggregator.cancel("the edge leaves"), *super().leave()]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        deadlines = (self.participant.next_deadline, self.aggregator.next_deadline)
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
            elif isinstance(action, RunOver):
                self._work = None
                out += [*self.aggregator.finish(action.run), action]
            else:
                out.append(action)
        return out

    def _begin(self, work: Work, now: float) -> list[Action]:
        try:
            weights = self._arithmetic.decode_model(work.model)
            if self._arithmetic.digest(weights) != work.digest:
                raise Refused("the model does not hash to what the call says")
            tier = work.plan.tiers[0] if work.plan.tiers else Tier(codec=work.codec)
            for codec in (tier.codec, work.codec):
                self._arithmetic.accumulator(weights, codec)  # must be known before anybody works
            if len(work.round) >= MAX_DEPTH:
                raise Refused(f"a tree has at most {MAX_DEPTH} tiers")
        except (Refused, ConfigError) as error:
            return self._pass(self.participant.failed(work.work_id, str(error)), now)
        if work.plan.kind is Kind.EVALUATE:
            tier = replace(tier, rounds=1)
        self._work = _EdgeWork(work=work, tier=tier, base=weights, weights=weights)
        return self._next_round(self._work, now, blob=work.model)

    def _next_round(self, doing: _EdgeWork, now: float, blob: bytes | None = None) -> list[Action]:
        work = doing.work
        self._version += 1
        offered = self.aggregator.offer(run=work.run, version=self._version, weights=doing.weights, blob=blob)
        opened = self.aggregator.open(
            run=work.run,
            round_id=(*work.round, doing.done + 1),
            plan=replace(work.plan, tiers=work.plan.tiers[1:]),
            tier=doing.tier,
            seed=work.plan.seed,
            now=now,
        )
        return offered + opened

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
            actions.append(
                metrics_of(
                    outcome.round,
                    outcome.tallies,
                    sum(outcome.accepted.values()),
                    outcome.seconds,
                    into={"in": len(outcome.accepted), "of": len(outcome.accepted) + outcome.absent},
                )
            )
            if doing.done < doing.tier.rounds:
                return actions + self._next_round(doing, now)
        return actions + self._contribute(doing, now)

    @staticmethod
    def _take(doing: _EdgeWork, outcome: Outcome) -> None:
        doing.weights = outcome.weights
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
                payload = self._arithmetic.encode_delta(doing.weights, doing.base, work.codec, work.seed)
            if weight > MAX_WEIGHT or len(tallies) > MAX_TALLIES:
                raise Refused(f"{weight} samples and {len(tallies)} metrics, at most {MAX_WEIGHT} and {MAX_TALLIES}")
        except Refused as error:
            return self._pass(self.participant.failed(work.work_id, str(error)), now)
        result = Contribution(payload=payload, weight=weight, tallies=tallies, seconds=doing.seconds)
        return self._pass(self.participant.worked(work.work_id, result, now), now)
