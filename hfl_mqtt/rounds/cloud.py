"""The cloud: the root of the tree, an aggregator with a schedule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hfl_mqtt.errors import Refused
from hfl_mqtt.protocol.messages import (
    Buffer,
    Info,
    Keyframe,
    Kind,
    Metrics,
    Plan,
    State,
    StateName,
    Tally,
    Tier,
    round_text,
)
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import (
    Action,
    Connected,
    Event,
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
from hfl_mqtt.rounds.aggregator import Aggregator, FromChild, Outcome
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.node import Node, choices_of, metrics_of
from hfl_mqtt.rounds.stopping import Stop

#: Versions that may wait to be scored; each holds a whole model.
MAX_SCORING = 8


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
    stop: Stop = field(default_factory=Stop)
    #: Whether models are scored: each on the cloud's own test sets, the last one in a round of its own on the devices.
    is_scored: bool = False


class CloudNode(Node):
    """The root: an aggregator with a schedule.

    Every round scores the model it starts from, so the score of version v is known when round v + 1 closes; a last
    round only evaluates. `history[v]` holds all scores of version v; version 0 is the initial model.

    The model is what the chain of deltas leads to, and what the devices have: `weights` are these. What a lossy way
    down has not carried yet is kept beside them.

    Args:
        path, boot, info: see `Participant`.
        arithmetic: the numbers.
        schedule: what the cloud wants.
        weights: the initial model.
        start: how devices come by them, see `Keyframe.start`.
    """

    def __init__(
        self,
        *,
        path: str,
        boot: int,
        info: Info,
        arithmetic: Arithmetic,
        schedule: Schedule,
        weights: Any,
        start: Buffer,
    ) -> None:
        super().__init__(path, boot)
        self._info = info
        self._arithmetic = arithmetic
        self._schedule = schedule
        self._started_s: float | None = None
        self._was_connected = self._is_started = False
        self._scores_due_s: float | None = None
        self._waiting_with: list[str] | None = None
        self._scoring: dict[str, int] = {}
        self._initial, self._start, self._moved = weights, start, None
        self._digest = arithmetic.start_digest(start)
        #: Why the run ended before its last round; None where it did not.
        self.stopped: str | None = None
        #: Bytes moved so far, up and down, on all links below, by the child through which they went.
        self.moved: dict[str, tuple[int, int]] = {}
        self.weights = weights
        self.version = 0
        self.history: list[dict[str, float]] = [{}]
        self._central: dict[str, float] = {}
        self._values: dict[str, int | float | str | None] = {}
        self.aggregator = Aggregator(path=path, arithmetic=arithmetic, boot=boot)

    def start(self, now: float) -> list[Action]:
        """Begin: the initial model is version 0, and the wait for broker and children starts."""
        self._started_s = now
        return [self._save(()), *self._score()]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        if isinstance(event, Connected):
            self._was_connected = True
            hello: list[Action] = [
                Send(message=self._info),
                Send(message=State(state=StateName.READY, boot=self.boot)),
            ]
            again = self.aggregator.connected(session_present=event.session_present)
            return [*hello, *again, *self._begin_if_ready(now)]
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, FromChild):
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
        if self._scores_due_s is not None and now >= self._scores_due_s and self._scoring:
            late = note("scores_missing", versions=sorted(self._scoring.values()))
            self._scoring.clear()
            return [late, *self._finish_if_scored()]
        return self._begin_if_ready(now) + self._settle(self.aggregator.tick(now), now)

    def leave(self) -> list[Action]:
        """Leave on purpose: a run that is not over ends here."""
        return [*self.aggregator.finish(self._schedule.run), *super().leave()]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        if self._scores_due_s is not None:
            return self._scores_due_s if self._scoring else None
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
                return self._say_waiting(present)
            if not present:
                self._is_started = True
                waited = f"within {schedule.wait_at_most_s:g} s"
                if not self._was_connected:
                    return self._end(f"no broker answered {self.path} {waited}: start it, and check host and port")
                return self._end(f"no child of {self.path} came {waited}: start the edges, check their brokers")
        self._is_started = True
        short = schedule.wait_for - len(present)
        missed = [note("incomplete", have=len(present), wanted=schedule.wait_for)] if short > 0 else []
        begun = note("run", run=schedule.run, rounds=schedule.rounds, children=present, wanted=schedule.wait_for)
        return [*missed, begun, *self.aggregator.downlink.begin(self._keyframe), *self._next_round(now)]

    @property
    def _keyframe(self) -> Keyframe:
        size = self._arithmetic.model_size(self._arithmetic.layout(self._start))
        return Keyframe(
            run=self._schedule.run,
            version=0,
            digest=self._arithmetic.start_digest(self._start),
            size=size,
            start=self._start,
        )

    def _say_waiting(self, present: list[str]) -> list[Action]:
        if present == self._waiting_with or not self._was_connected:
            return []
        self._waiting_with = present
        schedule = self._schedule
        return [note("waiting", have=present, wanted=schedule.wait_for, at_most_s=schedule.wait_at_most_s)]

    def _next_round(self, now: float) -> list[Action]:
        schedule = self._schedule
        is_last = self.version >= schedule.rounds or self.stopped is not None
        return self.aggregator.open(
            run=schedule.run,
            round_id=(self.version + 1,),
            plan=replace(schedule.plan, kind=Kind.EVALUATE) if is_last else schedule.plan,
            tier=schedule.tier,
            seed=schedule.seed,
            now=now,
        )

    def _settle(self, actions: list[Action], now: float) -> list[Action]:
        outcome = self.aggregator.take_outcome()
        if outcome is None:
            return actions
        if outcome.is_missed and outcome.kind is Kind.TRAIN:
            missed = f"{round_text(outcome.round)} had {len(outcome.accepted)} of the {outcome.quorum} updates it needs"
            return actions + self._end(f"{missed}; waited for {outcome.waited_for() or 'children'}")
        for child, (up, down) in outcome.moved.items():
            before = self.moved.get(child, (0, 0))
            self.moved[child] = (before[0] + up, before[1] + down)
        scores = {name: value for name, tally in outcome.tallies.items() if (value := tally.value) is not None}
        scores.pop("loss", None)
        self.history[self.version].update(scores)
        if scores:
            actions.append(Note(event="scored", fields={**scores, "version": self.version}))
        into: dict[str, int | str] = {"in": len(outcome.accepted), "of": len(outcome.accepted) + outcome.absent}
        into |= choices_of(down=self.aggregator.downlink.choice)
        if outcome.kind is Kind.EVALUATE:
            self._scores_due_s = now + self._schedule.wait_at_most_s
            return [*actions, *self._publish(outcome, into), *self._finish_if_scored()]
        try:
            shown = self._move(outcome)
        except Refused as error:
            return actions + self._end(f"{round_text(outcome.round)}: {error}; lower the learning rate")
        actions += [self._save(outcome.round), *shown, *self._score()]
        actions += self._publish(outcome, into)
        if self.stopped is None and self.version < self._schedule.rounds:
            actions += self._look_whether_to_stop()
        is_done = self.version >= self._schedule.rounds or self.stopped is not None
        if is_done and not self._schedule.is_scored:
            return actions + self._end(None)
        return actions + self._next_round(now)

    def _move(self, outcome: Outcome) -> list[Action]:
        """Take the round's step; the model is where its way down then leads to."""
        schedule, downlink = self._schedule, self.aggregator.downlink
        downlink.move(outcome.step)
        shown, moved = downlink.show(schedule.tier, cohort.lot(schedule.seed, outcome.round, self.path))
        if moved is not None:
            self._moved = self._arithmetic.add(self._moved, moved)
            self.weights = self._arithmetic.place(self._initial, self._moved)
        chain = downlink.chain
        assert chain is not None
        self._digest = chain.digest
        self.version += 1
        self.history.append({})
        return shown

    def _look_whether_to_stop(self) -> list[Action]:
        self.stopped = self._schedule.stop.reason(self.history, sum(map(sum, self.moved.values())))
        if self.stopped is None:
            return []
        return [note("stopping", version=self.version, reason=self.stopped)]

    def _score(self) -> list[Action]:
        """Score the current model on the cloud's own test sets, beside the rounds."""
        schedule = self._schedule
        if not schedule.is_scored:
            return []
        if len(self._scoring) >= MAX_SCORING:
            return [note("not_scored", version=self.version, reason="the cloud is slower at scoring than its devices")]
        work_id = f"{schedule.run}/v{self.version}"
        self._scoring[work_id] = self.version
        chain = self.aggregator.downlink.chain or Chain(self._keyframe)
        return [
            Work(
                work_id=work_id,
                run=schedule.run,
                round=(self.version + 1,),
                plan=replace(schedule.plan, kind=Kind.EVALUATE),
                codec=schedule.tier.codec,
                model=chain.model,
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
        if not scores:
            return self._finish_if_scored()
        scored: list[Action] = [Note(event="scored", fields={**scores, "version": version})]
        self._central |= scores
        if self._values:
            self._values |= scores
            scored.append(Send(message=Metrics(values=dict(self._values))))
        return [*scored, *self._finish_if_scored()]

    def _publish(self, outcome: Outcome, into: dict[str, int | str]) -> list[Action]:
        """Publish a round's figures; the cloud's own scores stand beside them as they come."""
        metrics = metrics_of(outcome.round, outcome.tallies, sum(outcome.accepted.values()), outcome.seconds, into=into)
        assert isinstance(metrics.message, Metrics)
        up, down = (round(sum(pair[way] for pair in self.moved.values()) / 1e6, 3) for way in (0, 1))
        self._values = {**self._central, **metrics.message.values, "mb_up": up, "mb_down": down}
        return [Send(message=Metrics(values=dict(self._values)))]

    def _finish_if_scored(self) -> list[Action]:
        return self._end(None) if self._scores_due_s is not None and not self._scoring else []

    def _end(self, failure: str | None) -> list[Action]:
        run = self._schedule.run
        return [*self.aggregator.finish(run), RunOver(run=run, failure=failure)]

    def _save(self, round_id: tuple[int, ...]) -> Save:
        return Save(
            run=self._schedule.run,
            version=self.version,
            round=round_id,
            digest=self._digest,
            weights=self.weights,
            lag=self.aggregator.downlink.lag,
        )
