"""The cloud: the root of the tree, an aggregator with a schedule.

Its next life goes on where this one was: see `standing`, and what the aggregator puts down of chain and open round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import assert_never

from hfl_mqtt.errors import Refused
from hfl_mqtt.protocol.messages import (
    Buffer,
    Control,
    Info,
    Keyframe,
    Kind,
    Metrics,
    Order,
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
    Lost,
    Note,
    Persist,
    Received,
    RunOver,
    Save,
    Send,
    Work,
    Worked,
    WorkFailed,
    note,
)
from hfl_mqtt.rounds.aggregator import NOTHING, Aggregator, FromChild
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.conduct import Bounds
from hfl_mqtt.rounds.node import Node, choices_of, metrics_of
from hfl_mqtt.rounds.open_round import Outcome
from hfl_mqtt.rounds.signing import Signer, shown
from hfl_mqtt.rounds.standing import KEY, Diary, Standing, read_history
from hfl_mqtt.rounds.stopping import Stop

#: Versions that may wait to be scored; each holds a whole model.
MAX_SCORING = 8
#: How long a node whose run was over in a former life waits for the broker, to say so once more.
END_S = 30.0
#: Whose keys these are; others' stay where they are.
_OURS = ("run/", "down/", "chain/")


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
        saved: what its former life persisted. It goes on with that where it is of the schedule's run, else deletes it.
        signer: signs what it calls, and checks what its children send; None where nothing is signed.
        bounds: how its children may behave.
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
        saved: Mapping[str, Buffer] = NOTHING,
        signer: Signer | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(path, boot, signer)
        self._bounds = bounds
        self._info = info
        self._arithmetic = arithmetic
        self._schedule = schedule
        self._started_s: float | None = None
        #: Whether the run has begun, in whatever life, and whether it has gone on in this one.
        self._is_started = self._is_going = False
        #: Whether a run that was begun in a former life has waited long enough, and goes on with whoever comes first.
        self._has_waited = False
        self._was_connected = self._is_paused = self._is_draining = False
        self._is_over = self._is_end_said = False
        self._failure: str | None = None
        self._scores_due_s: float | None = None
        self._waiting_with: list[str] | None = None
        self._scoring: dict[str, int] = {}
        self._initial, self._start = weights, start
        self._moved: Any = None
        #: Why the run ended before its last round; None where it did not.
        self.stopped: str | None = None
        #: Bytes moved so far, up and down, on all links below, by the child through which they went.
        self.moved: dict[str, tuple[int, int]] = {}
        self.weights = weights
        self.version = 0
        self.history: list[dict[str, float]] = [{}]
        #: The last scores on its own test sets, whether such have come in this life, and what each child gave of theirs
        #: for the newest version that they scored.
        self._central: dict[str, float] = {}
        self._is_central_known = not schedule.is_scored
        self._given: dict[str, tuple[float, ...]] = {}
        self._values: dict[str, int | float | str | None] = {}
        self._diary = Diary()
        #: Versions whose scores are not put down yet.
        self._newly_scored: set[int] = set()
        self._begun: list[Action] = []
        self._is_scoring_last = False
        self.aggregator = self._restore(saved)

    def start(self, now: float) -> list[Action]:
        """Begin: the initial model is version 0, and the wait for broker and children starts. Or go on."""
        self._started_s = now
        begun, self._begun = self._begun, []
        saved = self._save((self.version,) if self.version else ())
        begun += self.aggregator.start(now)
        if self._is_over:  # said again once there is a broker: the children may not have heard it
            return [*begun, saved]
        self._is_going = self.aggregator.is_open or self._is_scoring_last
        self._scores_due_s = now + self._schedule.wait_at_most_s if self._is_scoring_last else None
        return self._put([*begun, saved, *self._score(), *self._finish_if_scored()])

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        return self._put(self._take(event, now))

    def _take(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Connected):
            self._was_connected = True
            hello: list[Action] = [*shown(self.signer), Send(message=self._info), self._state()]
            again = self.aggregator.connected(session_present=event.session_present, now=now)
            return [*hello, *again, *(self._say_end() if self._is_over else self._begin_if_ready(now))]
        if isinstance(event, Lost):
            self.aggregator.lost(now)
            return []
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, Control) and not event.sender:
                return self._obey(message, now)
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

    def judge(self, sender: str, size_bytes: int, now: float) -> list[Action] | None:
        """Look at a child before what it sent is read; see `Node.judge`."""
        found = self.aggregator.judge(sender, size_bytes, now)
        return self._put(self._settle(found, now)) if found else found

    def malformed(self, sender: str, reason: str, now: float) -> list[Action]:
        """Hold it against a child that it said what cannot be read."""
        found = self.aggregator.malformed(sender, reason, now)
        return self._put(self._settle(found, now)) if found else found

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self._put(self._tick(now))

    def _tick(self, now: float) -> list[Action]:
        if self._is_over:
            return self._say_end()
        if self._scores_due_s is not None and now >= self._scores_due_s and self._scoring:
            late = note("scores_missing", versions=sorted(self._scoring.values()))
            self._scoring.clear()
            return [late, *self._finish_if_scored()]
        return self._begin_if_ready(now) + self._settle(self.aggregator.tick(now), now)

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        if self._scores_due_s is not None:
            return self._scores_due_s if self._scoring else None
        if self._is_over:
            return None if self._is_end_said or self._started_s is None else self._started_s + END_S
        if self._is_going or self._is_paused or self._has_waited or self._started_s is None:
            return self.aggregator.next_deadline
        return self._started_s + self._schedule.wait_at_most_s

    # -------------------------------------------------------------- the schedule

    def _begin_if_ready(self, now: float) -> list[Action]:
        if self._is_going or self._is_paused or self._is_over or self._started_s is None:
            return []
        schedule, present = self._schedule, self.aggregator.present
        if len(present) < schedule.wait_for:
            if now < self._started_s + schedule.wait_at_most_s:
                return self._say_waiting(present)
            if not present and self._is_started:  # what was trained is not given up for those who come back late
                self._has_waited = True
                return self._say_waiting(present)
            if not present:
                waited = f"within {schedule.wait_at_most_s:g} s"
                if not self._was_connected:
                    return self._end(f"no broker answered {self.path} {waited}: start it, and check host and port")
                return self._end(f"no child of {self.path} came {waited}: start the edges, check their brokers")
        self._is_going = True
        short = schedule.wait_for - len(present)
        missed = [note("incomplete", have=len(present), wanted=schedule.wait_for)] if short > 0 else []
        begun = note("run", run=schedule.run, rounds=schedule.rounds, children=present, wanted=schedule.wait_for)
        shown = [] if self._is_started else self.aggregator.downlink.begin(self._keyframe)
        self._is_started = True
        return [*missed, begun, *shown, *self._go_on(now)]

    def _go_on(self, now: float) -> list[Action]:
        """Open the next round, unless none is left or somebody holds the run back."""
        is_done = self.version >= self._schedule.rounds or self.stopped is not None
        if is_done and not self._schedule.is_scored:
            return self._end(None)
        if self._is_draining:
            return [*self.aggregator.tell_close(), RunOver(run=self._schedule.run, is_drained=True)]
        if self._is_paused and self.stopped is None:
            return [*self.aggregator.tell_close(), self._state()]
        return self._next_round(now)

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

    def _obey(self, control: Control, now: float) -> list[Action]:
        """Do what people ask, and say at once what will be."""
        order, run = control.order, self._schedule.run
        if control.run not in ("", run):
            return [self._state(f"no run {control.run} here, this is {run}")]
        if self._is_over:
            return [self._state("the run is over")]
        is_idle = not self.aggregator.is_open and self._scores_due_s is None
        during = "" if is_idle else f" with {self._where}"
        ordered = note("ordered", run=run, order=order.value)
        if order is Order.PAUSE:
            self._is_paused = True
            return [ordered, self._state()]
        if order is Order.RESUME:
            was_paused, self._is_paused, self._is_draining = self._is_paused, False, False
            if not was_paused:
                return [ordered, self._state()]
            if not self._is_going:  # the wait for children begins anew
                self._started_s, self._has_waited = now, False
                return [ordered, self._state(), *self._begin_if_ready(now)]
            return [ordered, self._state(), *(self._go_on(now) if is_idle else [])]
        if order is Order.STOP:
            self.stopped = self.stopped or "stopped by hand"
            told = self._state(f"stopping{during}")
            if not self._is_going:
                return [ordered, told, *self._end(None)]
            return [ordered, told, *(self._go_on(now) if is_idle else [])]
        if order is Order.DRAIN:
            self._is_draining = True
            told = self._state(f"draining: ends{during}")
            return [ordered, told, *([RunOver(run=run, is_drained=True)] if is_idle else [])]
        assert_never(order)

    def _state(self, reason: str = "") -> Send:
        """Say where the run stands, to people."""
        if not self._is_paused or self._is_over or self.stopped is not None:
            return Send(message=State(state=StateName.READY, boot=self.boot, reason=reason))
        first = f"; {self._where} is finished first" if self.aggregator.is_open else ""
        return Send(message=State(state=StateName.PAUSED, boot=self.boot, reason=reason or f"paused by hand{first}"))

    @property
    def _where(self) -> str:
        return round_text((self.version + 1,)) if self.aggregator.is_open else "the last scores"

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
        if outcome.is_missed and outcome.kind is Kind.TRAIN and self.stopped is not None:
            return actions + self._go_on(now)  # what there is, is the result
        if outcome.is_missed and outcome.kind is Kind.TRAIN:
            missed = f"{round_text(outcome.round)} had {len(outcome.accepted)} of the {outcome.quorum} updates it needs"
            return actions + self._end(f"{missed}; waited for {outcome.waited_for() or 'children'}")
        for child, (up, down) in outcome.moved.items():
            before = self.moved.get(child, (0, 0))
            self.moved[child] = (before[0] + up, before[1] + down)
        scores = {name: value for name, tally in outcome.tallies.items() if (value := tally.value) is not None}
        for name in ("loss", *self._central):  # what the cloud scores itself is not for others to say
            scores.pop(name, None)
        self._given |= {name: outcome.given[name] for name in scores}
        self._keep_scores(self.version, scores)
        if scores:
            actions.append(Note(event="scored", fields={**scores, "version": self.version}))
        into: dict[str, int | str] = {"in": len(outcome.accepted), "of": len(outcome.accepted) + outcome.absent}
        into |= choices_of(down=self.aggregator.downlink.choice) | self.aggregator.faults
        if outcome.kind is Kind.EVALUATE:
            self._is_scoring_last = True
            self._scores_due_s = now + self._schedule.wait_at_most_s
            return [*actions, *self._publish(outcome, into), *self._finish_if_scored()]
        try:
            shown = self._move(outcome)
        except Refused as error:
            return actions + self._end(f"{round_text(outcome.round)}: {error}; lower the learning rate")
        beside = [self._save(outcome.round), *self._score(), *self._publish(outcome, into)]
        if self.stopped is None and self.version < self._schedule.rounds:
            beside += self._look_whether_to_stop()
        after = self._go_on(now)
        # All devices wait for the next round, and nobody for what stands beside it.
        return [*actions, *shown, *after, *beside] if self.aggregator.is_open else [*actions, *shown, *beside, *after]

    def _move(self, outcome: Outcome) -> list[Action]:
        """Take the round's step; the model is where its way down then leads to."""
        schedule, downlink = self._schedule, self.aggregator.downlink
        downlink.move(outcome.step)
        shown, moved = downlink.show(schedule.tier, cohort.lot(schedule.seed, outcome.round, self.path))
        if moved is not None:
            self._moved = self._arithmetic.add(self._moved, moved)
            self.weights = self._arithmetic.place(self._initial, self._moved)
        self.version += 1
        self.history.append({})
        return shown

    def _look_whether_to_stop(self) -> list[Action]:
        stop, spent = self._schedule.stop, sum(map(sum, self.moved.values()))
        # Until the cloud's own scores have names, anybody may give one in their name.
        history = self.history if self._is_central_known else []
        self.stopped = stop.reason(history, spent, self._given.get(stop.metric, ()))
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
        self._is_central_known = True
        scores = {name: value for name, tally in tallies.items() if (value := tally.value) is not None}
        self._keep_scores(version, scores)
        if not scores:
            return self._finish_if_scored()
        scored: list[Action] = [Note(event="scored", fields={**scores, "version": version})]
        self._central |= scores
        for name in scores:
            self._given.pop(name, None)
        if self._values:
            self._values |= scores
            scored.append(Send(message=Metrics(values=dict(self._values))))
        return [*scored, *self._finish_if_scored()]

    def _publish(self, outcome: Outcome, into: dict[str, int | str]) -> list[Action]:
        """Publish a round's figures; the cloud's own scores stand beside them as they come."""
        tallies = {name: tally for name, tally in outcome.tallies.items() if name not in self._central}
        metrics = metrics_of(outcome.round, tallies, sum(outcome.accepted.values()), outcome.seconds, into=into)
        assert isinstance(metrics.message, Metrics)
        up, down = (round(sum(pair[way] for pair in self.moved.values()) / 1e6, 3) for way in (0, 1))
        self._values = {**self._central, **metrics.message.values, "mb_up": up, "mb_down": down}
        return [Send(message=Metrics(values=dict(self._values)))]

    def _finish_if_scored(self) -> list[Action]:
        return self._end(None) if self._scores_due_s is not None and not self._scoring else []

    def _end(self, failure: str | None) -> list[Action]:
        self._is_over, self._failure, self._scores_due_s = True, failure, None
        self._scoring.clear()
        return [*self.aggregator.finish(self._schedule.run), *self._say_end()]

    def _say_end(self) -> list[Action]:
        if self._is_end_said:
            return []
        self._is_end_said = True
        return [RunOver(run=self._schedule.run, failure=self._failure)]

    def _keep_scores(self, version: int, scores: dict[str, float]) -> None:
        self.history[version].update(scores)
        if scores:
            self._newly_scored.add(version)

    # -------------------------------------------------------------- from one life to the next

    def _put(self, actions: list[Action]) -> list[Action]:
        """Put down where the schedule stands, where that has changed."""
        standing = Standing(
            run=self._schedule.run,
            version=self.version,
            is_started=self._is_started,
            is_paused=self._is_paused,
            is_scoring_last=self._is_scoring_last,
            is_over=self._is_over,
            failure=self._failure,
            stopped=self.stopped,
            moved=dict(self.moved),
        )
        changes = self._diary.write(standing, self.history, sorted(self._newly_scored))
        self._newly_scored.clear()
        return [Persist(changes=changes), *actions] if changes else actions

    def _restore(self, saved: Mapping[str, Buffer]) -> Aggregator:
        """Take up what a former life put down of this run; all else is deleted with the first actions."""
        standing = Standing.read(saved)
        if standing is not None and standing.run == self._schedule.run:
            aggregator = self._aggregator(saved)
            reason = self._why_not_resumed(standing, aggregator.downlink.chain)
            if reason is None:
                self._resume(standing, saved)
                return aggregator
            self._begun.append(note("not_resumed", run=standing.run, reason=reason))
        useless = [key for key in saved if key.startswith(_OURS) and key != KEY]  # that is written anew
        if useless:
            self._begun.append(Persist(changes=dict.fromkeys(useless)))
        return self._aggregator({})

    def _aggregator(self, saved: Mapping[str, Buffer]) -> Aggregator:
        return Aggregator(
            path=self.path,
            arithmetic=self._arithmetic,
            boot=self.boot,
            saved=saved,
            signer=self.signer,
            bounds=self._bounds,
        )

    def _why_not_resumed(self, standing: Standing, chain: Chain | None) -> str | None:
        if not standing.is_started:
            return None
        if chain is None or chain.version != standing.version:
            return "its model cannot be read any more: it begins anew"
        if self._arithmetic.start_digest(chain.keyframe.start) != self._arithmetic.start_digest(self._start):
            return "the task now gives another initial model: it begins anew"
        try:
            self._moved = self._arithmetic.moved(chain.model)
        except Refused as error:
            return f"its model cannot be read any more: it begins anew ({error})"
        return None

    def _resume(self, standing: Standing, saved: Mapping[str, Buffer]) -> None:
        self.version, self.stopped = standing.version, standing.stopped
        self._is_started, self._is_paused = standing.is_started, standing.is_paused
        self._is_scoring_last, self._is_over = standing.is_scoring_last, standing.is_over
        self._failure, self.moved = standing.failure, dict(standing.moved)
        self.history = read_history(saved, self.version + 1)
        if self._moved is not None:
            self.weights = self._arithmetic.place(self._initial, self._moved)
        self._begun.append(note("resumed", run=standing.run, version=self.version))

    def _save(self, round_id: tuple[int, ...]) -> Save:
        return Save(
            run=self._schedule.run,
            version=self.version,
            round=round_id,
            digest=(self.aggregator.downlink.chain or Chain(self._keyframe)).digest,
            weights=self.weights,
            lag=self.aggregator.downlink.lag,
        )
