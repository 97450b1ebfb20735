"""Device, edge and cloud, made of the two machines. A tree of any depth is edges under edges.

Every node has the same face: `start`, `handle`, `tick` give actions; `next_deadline` says when to tick at the latest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hfl_mqtt.errors import ConfigError, Misuse, Refused
from hfl_mqtt.protocol.messages import (
    MAX_TALLIES,
    MAX_WEIGHT,
    Decline,
    Info,
    Kind,
    Metrics,
    ModelPart,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    UpdatePart,
    Want,
    WantModel,
    round_text,
)
from hfl_mqtt.protocol.topics import MAX_DEPTH
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Connected,
    Contribution,
    Event,
    Lost,
    Note,
    Received,
    RunOver,
    Save,
    Send,
    Work,
    Worked,
    WorkFailed,
    note,
)
from hfl_mqtt.rounds.aggregator import Aggregator, Outcome
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.participant import Participant

#: Most bytes of a model a node takes unless it is told otherwise.
MAX_MODEL = 2**30


class Node(ABC):
    """One place in the tree: events in, actions out; no sockets, clocks, threads or files."""

    def __init__(self, path: str, boot: int) -> None:
        self.path = path
        self.boot = boot

    @abstractmethod
    def start(self, now: float) -> list[Action]:
        """Begin. Called once, before anything else."""

    @abstractmethod
    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""

    @abstractmethod
    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""

    @property
    @abstractmethod
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""

    @property
    def will(self) -> State:
        """What the broker says for this node when it is gone."""
        return State(state=StateName.LOST, boot=self.boot)

    @property
    def farewell(self) -> State:
        """What this node says on leaving."""
        return State(state=StateName.DISCONNECTED, boot=self.boot)


class ClientNode(Node):
    """A device: a participant whose work is done by a trainer."""

    def __init__(self, *, path: str, boot: int, info: Info, max_model: int = MAX_MODEL) -> None:
        super().__init__(path, boot)
        self.participant = Participant(path=path, boot=boot, info=info, max_model=max_model)
        self._metrics: Send | None = None

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin; a device waits to be connected."""
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        if isinstance(event, Connected):
            return self.participant.connected(now)
        if isinstance(event, Worked):
            call = self.participant.call
            actions = self.participant.worked(event.work_id, event.result, now)
            if actions and call is not None:
                result = event.result
                self._metrics = _metrics(call.round, result.tallies, result.weight, result.seconds)
            return actions
        if isinstance(event, WorkFailed):
            return self.participant.failed(event.work_id, event.reason)
        if isinstance(event, Received):
            message = event.message
            if event.sender == self.participant.parent and isinstance(message, RoundCall | ModelPart | Receipt | Want):
                actions = self.participant.hear(message, now)
                if isinstance(message, Receipt) and self._metrics is not None:
                    actions.append(self._metrics)  # with all that the round cost
                    self._metrics = None
                return actions
            return [note("stranger", sender=event.sender, said=type(message).__name__)]
        return []

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self.participant.tick(now)

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        return self.participant.next_deadline


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
            return []
        raise Misuse("an edge has no trainer: nothing can have been worked")

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self._settle(self.aggregator.tick(now), now) + self._pass(self.participant.tick(now), now)

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
            reason = f"no quorum: {len(outcome.accepted)} updates; waited for {outcome.waited_for() or 'children'}"
            return actions + self._pass(self.participant.failed(doing.work.work_id, reason), now)
        if not outcome.is_missed:
            self._take(doing, outcome)
            actions.append(
                _metrics(
                    outcome.round,
                    outcome.tallies,
                    sum(outcome.accepted.values()),
                    outcome.seconds,
                    into={"in": len(outcome.accepted), "of": len(outcome.accepted) + _absent(outcome)},
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What the cloud wants: `rounds` global rounds of `plan`, run by `tier`; the plan holds the tiers below."""

    run: str
    rounds: int
    plan: Plan
    tier: Tier
    seed: int = 0
    #: How many children to wait for before the first round, and for how long at most.
    wait_for: int = 1
    wait_at_most_s: float = 300.0
    #: Whether models are scored: each on the cloud's own test sets, the last one in a round of its own on the devices.
    is_scored: bool = False


class CloudNode(Node):
    """The root: an aggregator with a schedule.

    Every round scores the model it starts from, so the score of version v is known when round v + 1 closes; a last
    round only evaluates. `history[v]` holds all scores of version v; version 0 is the initial model.
    """

    def __init__(
        self, *, path: str, boot: int, info: Info, arithmetic: Arithmetic, schedule: Schedule, weights: Any
    ) -> None:
        super().__init__(path, boot)
        self._info = info
        self._arithmetic = arithmetic
        self._schedule = schedule
        self._started_s: float | None = None
        self._is_started = self._is_over = False
        self._scoring: dict[str, int] = {}
        self.weights = weights
        self.version = 0
        self.history: list[dict[str, float]] = [{}]
        self._central: dict[str, float] = {}
        self._values: dict[str, int | float | str | None] = {}
        self.aggregator = Aggregator(path=path, arithmetic=arithmetic, boot=boot)

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin: the initial model is version 0."""
        return [self._save(()), *self._score()]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        if isinstance(event, Connected):
            if self._started_s is None:
                self._started_s = now
            hello: list[Action] = [
                Send(message=self._info),
                Send(message=State(state=StateName.READY, boot=self.boot)),
            ]
            again = self.aggregator.connected(session_present=event.session_present)
            return [*hello, *again, *self._begin_if_ready(now)]
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, State | Decline | UpdatePart | WantModel):
                heard = self.aggregator.hear(message, event.sender, now)
                return self._settle(heard, now) + self._begin_if_ready(now)
            return [note("stranger", sender=event.sender, said=type(message).__name__)]
        if isinstance(event, Worked):
            return self._scored(event.work_id, event.result.tallies)
        if isinstance(event, WorkFailed):
            failed = note("scoring_failed", work=event.work_id, reason=event.reason)
            return [failed, *self._scored(event.work_id, {})]
        return []

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self._begin_if_ready(now) + self._settle(self.aggregator.tick(now), now)

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        if self._is_started or self._started_s is None:
            return self.aggregator.next_deadline
        return self._started_s + self._schedule.wait_at_most_s

    # -------------------------------------------------------------- the schedule

    def _begin_if_ready(self, now: float) -> list[Action]:
        if self._is_started or self._started_s is None:
            return []
        schedule, present = self._schedule, self.aggregator.present
        if len(present) < schedule.wait_for:
            if now < self._started_s + schedule.wait_at_most_s:
                return []
            if not present:
                self._is_started = True
                waited = f"{schedule.wait_at_most_s:g} s"
                return self._end(f"no child of {self.path} came within {waited}: start the edges, check their brokers")
        self._is_started = True
        begun = note("run", run=schedule.run, rounds=schedule.rounds, children=present, wanted=schedule.wait_for)
        return [begun, *self._next_round(now)]

    def _next_round(self, now: float) -> list[Action]:
        schedule = self._schedule
        is_last = self.version >= schedule.rounds
        offered = self.aggregator.offer(run=schedule.run, version=self.version, weights=self.weights)
        opened = self.aggregator.open(
            run=schedule.run,
            round_id=(self.version + 1,),
            plan=replace(schedule.plan, kind=Kind.EVALUATE) if is_last else schedule.plan,
            tier=schedule.tier,
            seed=schedule.seed,
            now=now,
        )
        return offered + opened

    def _settle(self, actions: list[Action], now: float) -> list[Action]:
        outcome = self.aggregator.take_outcome()
        if outcome is None:
            return actions
        if outcome.is_missed and outcome.kind is Kind.TRAIN:
            missed = f"{round_text(outcome.round)} had {len(outcome.accepted)} updates, fewer than its quorum"
            return actions + self._end(f"{missed}; waited for {outcome.waited_for() or 'children'}")
        scores = {name: value for name, tally in outcome.tallies.items() if (value := tally.value) is not None}
        scores.pop("loss", None)
        self.history[self.version].update(scores)
        actions.append(Note(event="scored", fields={**scores, "version": self.version}))
        into = {"in": len(outcome.accepted), "of": len(outcome.accepted) + _absent(outcome)}
        if outcome.kind is Kind.EVALUATE:
            self._is_over = True
            return [*actions, *self._publish(outcome, into), *self._finish_if_scored()]
        self.version += 1
        self.weights = outcome.weights
        self.history.append({})
        actions += [self._save(outcome.round), *self._score()]
        actions += self._publish(outcome, into)
        if self.version >= self._schedule.rounds and not self._schedule.is_scored:
            return actions + self._end(None)
        return actions + self._next_round(now)

    def _score(self) -> list[Action]:
        """Score the current model on the cloud's own test sets, beside the rounds."""
        schedule = self._schedule
        if not schedule.is_scored:
            return []
        work_id = f"{schedule.run}/v{self.version}"
        self._scoring[work_id] = self.version
        return [
            Work(
                work_id=work_id,
                run=schedule.run,
                round=(self.version + 1,),
                plan=replace(schedule.plan, kind=Kind.EVALUATE),
                codec=schedule.tier.codec,
                model=self._arithmetic.encode_model(self.weights),
                digest=self._arithmetic.digest(self.weights),
                seed=cohort.lot(schedule.seed, (self.version + 1,), self.path),
                is_central=True,
            )
        ]

    def _scored(self, work_id: str, tallies: dict[str, Tally]) -> list[Action]:
        version = self._scoring.pop(work_id, None)
        if version is None:
            return []
        scores = {name: value for name, tally in tallies.items() if (value := tally.value) is not None}
        self.history[version].update(scores)
        scored = Note(event="scored", fields={**scores, "version": version})
        self._central |= scores
        if self._values:
            self._values |= scores
            return [scored, Send(message=Metrics(values=dict(self._values))), *self._finish_if_scored()]
        return [scored, *self._finish_if_scored()]

    def _publish(self, outcome: Outcome, into: dict[str, int]) -> list[Action]:
        """Publish a round's figures; the cloud's own scores stand beside them as they come."""
        metrics = _metrics(outcome.round, outcome.tallies, sum(outcome.accepted.values()), outcome.seconds, into=into)
        assert isinstance(metrics.message, Metrics)
        self._values = {**self._central, **metrics.message.values}
        return [Send(message=Metrics(values=dict(self._values)))]

    def _finish_if_scored(self) -> list[Action]:
        return self._end(None) if self._is_over and not self._scoring else []

    def _end(self, failure: str | None) -> list[Action]:
        run = self._schedule.run
        return [*self.aggregator.finish(run), RunOver(run=run, failure=failure)]

    def _save(self, round_id: tuple[int, ...]) -> Save:
        digest = self._arithmetic.digest(self.weights)
        return Save(run=self._schedule.run, version=self.version, round=round_id, digest=digest, weights=self.weights)


def _absent(outcome: Outcome) -> int:
    return len(outcome.missing) + sum(1 for name in outcome.declined if name not in outcome.accepted)


def _metrics(
    round_id: Sequence[int],
    tallies: dict[str, Tally],
    samples: int,
    seconds: float,
    into: dict[str, int] | None = None,
) -> Send:
    values: dict[str, int | float | str | None] = {"round": round_text(tuple(round_id)), **(into or {})}
    values |= {name: tally.value for name, tally in tallies.items()}
    return Send(message=Metrics(values={**values, "samples": samples, "seconds": round(seconds, 4)}))
