"""An edge: an aggregator below, a participant above. A tree of any depth is edges under edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from hfl_mqtt.errors import ConfigError, Malformed, Misuse, Refused
from hfl_mqtt.protocol.blobs import Keep, digest, in_memory
from hfl_mqtt.protocol.limits import MAX_DEPTH, MAX_MODEL, MAX_TALLIES, MAX_WEIGHT, MIN_SHARERS
from hfl_mqtt.protocol.messages import (
    AUTO,
    Buffer,
    Info,
    Kind,
    Late,
    Plan,
    Receipt,
    RoundCall,
    RoundId,
    RunId,
    Tally,
    Tier,
    Want,
    round_text,
)
from hfl_mqtt.rounds import cohort, records
from hfl_mqtt.rounds.actions import (
    Action,
    Bridged,
    CancelWork,
    Connected,
    Contribution,
    Counted,
    Event,
    Lost,
    Persist,
    Received,
    RunOver,
    Work,
    note,
)
from hfl_mqtt.rounds.aggregator import Aggregator, FromChild, codecs_of
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.conduct import Bounds
from hfl_mqtt.rounds.drift import Drift, Marks
from hfl_mqtt.rounds.node import Node, Pace, choices_of, metrics_of, progress_of
from hfl_mqtt.rounds.open_round import Outcome
from hfl_mqtt.rounds.participant import FromParent, Participant
from hfl_mqtt.rounds.signing import Signer

#: Rounds that score a model are few, and a score that is off by what coding left out is none.
FINE = "int8 | zstd"

#: A bridge that is down for less is no reason to work on: the parent may call any moment.
OFFLINE_AFTER_S = 30.0
#: So long after connecting, an edge whose bridge was down in its former life takes it as up if it hears nothing of it.
BRIDGE_WAIT_S = 10.0
_STATE = "edge/state"
#: Why an edge fetches a model that it has: what it knows of it are deltas, and only a whole chain can be passed on.
OUT_OF_RANGE = "the way from the children's model to the parent's has left the range of its numbers: they begin anew"


@dataclass(slots=True, kw_only=True)
class EdgeWork:
    """What an edge does between its parent's call and its contribution, and after that while it may go on with it."""

    work_id: str
    run: RunId
    round: RoundId
    plan: Plan
    codec: str
    seed: int
    tier: Tier
    #: Rounds that its children have done for this call, and how many of them before this contribution.
    done: int = 0
    first: int = 0
    is_over: bool = False
    samples: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    loss: Tally | None = None
    seconds: float = 0.0
    sent: int = 0
    received: int = 0

    @classmethod
    def of(cls, work: Work, tier: Tier) -> EdgeWork:
        """Begin what a parent's call asks for."""
        fields = {name: getattr(work, name) for name in ("work_id", "run", "round", "plan", "codec", "seed")}
        return cls(**fields, tier=tier)

    def apart(self, work_id: str) -> EdgeWork:
        """Begin another contribution of the same call."""
        done = self.done
        fields = {name: getattr(self, name) for name in ("run", "round", "plan", "codec", "seed", "tier")}
        return EdgeWork(work_id=work_id, **fields, done=done, first=done)

    def take(self, outcome: Outcome) -> None:
        """Count what a round gave."""
        self.sent += outcome.sent
        self.received += outcome.received
        self.samples.update(outcome.accepted)
        if not self.done:  # the first round scores the model that came from above
            self.tallies = {name: tally for name, tally in outcome.tallies.items() if name != "loss"}
        self.loss = outcome.tallies.get("loss", self.loss)
        self.done += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """What an edge puts down of itself, beside its numbers (`drift`)."""

    work: EdgeWork | None
    marks: Marks
    is_down: bool = False


class EdgeNode(Node):
    """An aggregator below, a participant above: its work is to run `tier.rounds` rounds with its children.

    It contributes the difference between its model after those rounds and the one it was sent; the weight is the
    samples behind it, each child counted once however many rounds it took part in. It never sees a model: it adds
    deltas, and passes on where they start.

    While its parent is out of reach it goes on for `tier.offline_rounds` more rounds, where their contribution may come
    late: they are merged into the one that was not sent yet, or into one more.

    Args:
        path, boot, info: see `Participant`.
        arithmetic: the numbers.
        max_model: most bytes of a model it will take.
        keep: puts blobs away.
        saved: what a former life of this node persisted: it goes on where that was.
        signer: signs what it says that counts, and checks what is said to it; None where nothing is signed.
        bounds: how its children may behave.
    """

    def __init__(
        self,
        *,
        path: str,
        boot: int,
        info: Info,
        arithmetic: Arithmetic,
        max_model: int = MAX_MODEL,
        keep: Keep = in_memory,
        saved: Mapping[str, Buffer] = MappingProxyType({}),
        signer: Signer | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(path, boot, signer)
        self._arithmetic = arithmetic
        self._work: EdgeWork | None = None
        #: How far its model is from its parent's, and what coding cut off.
        self.drift = Drift(arithmetic)
        #: Since when the bridge to the parent is down, when it is taken as up without a word of it, and whether an
        #: offline round came to nothing since.
        self._down_s: float | None = None
        self._guess_s: float | None = None
        self._was_down = False
        self._is_tired = False
        self._pace = Pace()
        self.participant = Participant(
            path=path,
            boot=boot,
            info=info,
            max_model=max_model,
            keep=keep,
            saved=saved,
            is_lasting=True,
            signer=signer,
        )
        self.aggregator = Aggregator(
            path=path, arithmetic=arithmetic, boot=boot, keep=keep, saved=saved, signer=signer, bounds=bounds
        )
        self.participant.moving_below_since = self.aggregator.moving_since
        self._unreadable: list[str] = []
        self._orphans: dict[str, Buffer | None] = {}
        #: What was put down last: the work, the marks, the rounds that were done, and whether the bridge was down.
        self._stored: tuple[EdgeWork | None, Marks, int, bool] = (None, self.drift.marks, 0, False)
        self._restore(saved)

    def _restore(self, saved: Mapping[str, Buffer]) -> None:
        standing, layout = records.read(_Standing, saved.get(_STATE)), self.aggregator.downlink.layout
        try:
            if standing is not None and (layout is not None or (standing.work, standing.marks) == (None, Marks())):
                self.drift.restore(standing.marks, saved, layout)
                self._work, self._was_down = standing.work, standing.is_down
                done = self._work.done if self._work is not None else 0
                self._stored = (self._work, self.drift.marks, done, self._was_down)
                return
        except (Refused, Malformed) as error:
            self._unreadable.append(f"edge: {error}")
        ours = [key for key in saved if key.startswith("edge/")]
        if ours and not self._unreadable:
            self._unreadable.append(_STATE)
        self._orphans = dict.fromkeys(ours)

    def start(self, now: float) -> list[Action]:
        """Begin, where a former life was: an edge in the middle of a round goes on with what it had; then it waits."""
        actions: list[Action] = [note("unreadable", key=key) for key in self._unreadable]
        actions += self._pass(self.participant.start(), now)
        if self._was_down:
            self._down_s = now - OFFLINE_AFTER_S
            actions += self._pass(self.participant.bridged(is_up=False, now=now), now)
        doing, participant, aggregator = self._work, self.participant, self.aggregator
        is_known = doing is not None and not doing.is_over
        if is_known and (doing is None or participant.work_id != doing.work_id):
            self._work, is_known = None, False
        if participant.work_id is not None and not is_known:
            participant.forget_work()
        actions += self._settle(aggregator.start(now), now)
        if not is_known:
            actions += aggregator.cancel("its work is not known any more")
        elif self._work is doing and doing is not None and not doing.is_over and not aggregator.is_open:
            actions += self._next_round(doing, now)
        return actions + self._flush()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        # A receipt that the next life does not know of comes again, for the update is sent again.
        is_receipt = isinstance(event, Received) and isinstance(event.message, Receipt)
        return [*self._hear(event, now), *self._flush(is_urgent=not is_receipt), *self._watch(now)]

    def _watch(self, now: float) -> list[Action]:
        participant, aggregator = self.participant, self.aggregator

        def progress() -> dict[str, float]:
            coming = participant.received or aggregator.received
            return progress_of("receiving", coming) or progress_of("sending", participant.sent)

        told = self._pace.watch(participant.is_moving or aggregator.is_receiving, progress, now)
        return told + participant.watch(now)

    def _hear(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Connected):
            self._guess_s = now + BRIDGE_WAIT_S if self._down_s is not None else None
            actions = self.participant.connected(now)
            return self._pass(actions, now) + self.aggregator.connected(session_present=event.session_present, now=now)
        if isinstance(event, Received):
            message, sender = event.message, event.sender
            if sender == self.participant.parent and isinstance(message, FromParent):
                known, told = self.participant.call, list[Action]()
                if self._down_s is not None and _has_crossed(message, known):
                    told = self._bridged(is_up=True, now=now)
                return told + self._pass(self.participant.hear(message, now), now)
            if isinstance(message, FromChild):
                return self._settle(self.aggregator.hear(message, sender, now), now)
            return [note("stranger", sender=sender, said=type(message).__name__)]
        if isinstance(event, Lost):
            self.participant.lost(is_cloned=event.is_cloned)
            self.aggregator.lost(now)
            return []
        if isinstance(event, Bridged):
            return self._bridged(is_up=event.is_up, now=now)
        raise Misuse("an edge has no trainer: nothing can have been worked")

    def _bridged(self, *, is_up: bool, now: float) -> list[Action]:
        was_up, self._guess_s = self._down_s is None, None
        if is_up == was_up:
            return []
        self._down_s, self._is_tired = None if is_up else now, False
        told = note("bridge", is_up=is_up)
        return [told, *self._pass(self.participant.bridged(is_up, now), now)]

    def judge(self, sender: str, size_bytes: int, now: float) -> list[Action] | None:
        """Look at a child before what it sent is read; see `Node.judge`."""
        found = self.aggregator.judge(sender, size_bytes, now)
        return [*self._settle(found, now), *self._flush(), *self._watch(now)] if found else found

    def malformed(self, sender: str, reason: str, now: float) -> list[Action]:
        """Hold it against a child that it said what cannot be read."""
        found = self.aggregator.malformed(sender, reason, now)
        return [*self._settle(found, now), *self._flush(), *self._watch(now)] if found else found

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        actions = self._settle(self.aggregator.tick(now), now) + self._pass(self.participant.tick(now), now)
        if self._guess_s is not None and now >= self._guess_s:
            actions += self._bridged(is_up=True, now=now)
        if self._can_carry_on and self._is_cut_off(now):
            actions += self._carry_on(now)
        return [*actions, *self._flush(), *self._pace.tick(now), *self._watch(now)]

    def leave(self) -> list[Action]:
        """Leave on purpose: whatever is open is durable, and goes on with the next life."""
        return [*self._pace.rest(), *super().leave()]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        offline_s = self._down_s + OFFLINE_AFTER_S if self._down_s is not None and self._can_carry_on else None
        own_s = (offline_s, self._guess_s, self._pace.next_deadline)
        deadlines = (self.participant.next_deadline, self.aggregator.next_deadline, *own_s)
        return min((moment for moment in deadlines if moment is not None), default=None)

    # -------------------------------------------------------------- work from above

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
                self.drift.counted(action.payload)
            elif isinstance(action, RunOver):
                self._work = None
                out += [*self.aggregator.finish(action.run), *self._pace.rest(), action]
            else:
                out.append(action)
        return out

    def _begin(self, work: Work, now: float) -> list[Action]:
        tier = work.plan.tiers[0] if work.plan.tiers else Tier(codec=work.codec)
        is_left = tier.rounds > 1 or tier.offline_rounds > 0
        try:
            if len(work.round) >= MAX_DEPTH:
                raise Refused(f"a tree has at most {MAX_DEPTH} tiers")
            for codec in (*codecs_of(tier.codec), *codecs_of(tier.downlink), work.codec):
                self._arithmetic.is_lossless(codec)  # must be known before anybody works
            if work.plan.kind is Kind.EVALUATE:
                tier = replace(tier, rounds=1, downlink=self._scored(tier.downlink))
            shown = self._pass_on(work, tier, is_left=is_left)
        except (Refused, ConfigError) as error:
            return self._pass(self.participant.failed(work.work_id, str(error), now), now)
        if shown is None:
            return [note("chain_broken", run=work.run, reason=OUT_OF_RANGE), *self.participant.fetch_anew(now)]
        self.drift.begin_run(work.run)
        self.drift.overtake()
        self._work = EdgeWork.of(work, tier)
        return shown + self._next_round(self._work, now)

    def _scored(self, downlink: str) -> str:
        """Return how a model goes down to be scored: what is left out of a coarse delta would be scored as missing."""
        return downlink if downlink != AUTO and self._arithmetic.is_lossless(downlink) else FINE

    def _pass_on(self, work: Work, tier: Tier, *, is_left: bool) -> list[Action] | None:
        """Bring the children to the parent's model: by its own deltas where they stand where it stood.

        Returns:
            None where no delta leads them there, and they must begin anew with the parent's chain.
        """
        chain, downlink, drift = self.participant.chain, self.aggregator.downlink, self.drift
        assert chain is not None
        known, followed = downlink.chain, drift.marks.followed
        is_known = known is not None and followed != "" and known.keyframe.run == work.run
        news = chain.since(followed) if is_known else None
        is_there = known is not None and known.digest == followed
        actions: list[Action] = []
        try:
            if news is not None and is_there:
                downlink.lag = None
                for link in news:
                    actions += downlink.follow(link.cut)
            elif is_known and drift.marks.has_above and not is_there:
                way = drift.way_to(chain, downlink.layout)
                if way is not None:
                    downlink.move(way)
                actions += downlink.show(tier, work.seed)[0]
            elif news is not None:
                raise Refused("the way to the parent's model is not known")
            else:
                return self._pass_on_anew(chain, is_left=is_left)
            drift.follow(chain, downlink.layout, is_left=is_left)
        except Refused:
            drift.forget()
            return None if news is not None else self._pass_on_anew(chain, is_left=is_left)
        chain.forget_links()
        return actions

    def _pass_on_anew(self, chain: Chain, *, is_left: bool) -> list[Action]:
        """Give the children the parent's whole chain."""
        downlink, drift = self.aggregator.downlink, self.drift
        actions = downlink.begin(chain.keyframe)
        for link in chain.links:
            actions += downlink.follow(link.cut)
        drift.forget()
        drift.follow(chain, downlink.layout, is_left=is_left)
        chain.forget_links()
        return actions

    # -------------------------------------------------------------- its own rounds

    def _next_round(self, doing: EdgeWork, now: float) -> list[Action]:
        return self.aggregator.open(
            run=doing.run,
            round_id=(*doing.round, doing.done + 1),
            plan=replace(doing.plan, tiers=doing.plan.tiers[1:]),
            tier=doing.tier,
            seed=doing.plan.seed,
            now=now,
        )

    def _settle(self, actions: list[Action], now: float) -> list[Action]:
        outcome, doing = self.aggregator.take_outcome(), self._work
        if outcome is None or doing is None or doing.is_over:
            return actions
        doing.seconds += outcome.seconds
        if outcome.is_missed:
            self._is_tired = True
            if doing.done == doing.first:
                self._work = None if not doing.first else replace(doing, is_over=True)
                answers = f"{len(outcome.accepted)} of {outcome.quorum} updates"
                reason = f"{answers}; waited for {outcome.waited_for() or 'children'}"
                return actions + self._pass(self.participant.failed(doing.work_id, reason, now), now)
            return actions + self._contribute(doing, now)
        doing.take(outcome)
        self.drift.step(outcome.step)
        into: dict[str, int | str] = {"in": len(outcome.accepted), "of": len(outcome.accepted) + outcome.absent}
        into |= choices_of(up=self.participant.choice, down=self.aggregator.downlink.choice)
        into |= self.aggregator.faults
        samples = sum(outcome.accepted.values())
        metrics = metrics_of(outcome.round, outcome.tallies, samples, outcome.seconds, into=into)
        actions = actions + self._pace.say(metrics, now)
        if doing.done >= doing.tier.rounds and not (self._may_go_on(doing) and self._is_cut_off(now)):
            return actions + self._contribute(doing, now)
        try:
            return actions + self._move_on(doing) + self._next_round(doing, now)
        except Refused as error:
            self._work = None
            return actions + self._pass(self.participant.failed(doing.work_id, str(error), now), now)

    def _move_on(self, doing: EdgeWork) -> list[Action]:
        """Tell the children where the model is after their last round, unless they know."""
        downlink, step = self.aggregator.downlink, self.drift.tell()
        if step is None:
            return []
        downlink.move(step)
        seed = cohort.lot(doing.plan.seed, (*doing.round, doing.done), self.path)
        return downlink.show(doing.tier, seed)[0]

    # -------------------------------------------------------------- while the parent is out of reach

    def _may_go_on(self, doing: EdgeWork) -> bool:
        """Whether more rounds than were asked for may go into its contribution, or one more."""
        call = self.participant.working_for or self.participant.call
        is_late_kept = call is not None and call.late is not Late.DROP and doing.plan.kind is Kind.TRAIN
        return is_late_kept and doing.done < doing.tier.rounds + doing.tier.offline_rounds

    def _is_cut_off(self, now: float) -> bool:
        return self._down_s is not None and now >= self._down_s + OFFLINE_AFTER_S

    @property
    def _can_carry_on(self) -> bool:
        doing = self._work
        if doing is None or not doing.is_over or self._is_tired or self._down_s is None:
            return False
        return self._may_go_on(doing) and self.participant.can_carry_on

    def _carry_on(self, now: float) -> list[Action]:
        """Open a further round though nobody asked for it: for the contribution that was not sent yet, or one more."""
        doing, participant, downlink = self._work, self.participant, self.aggregator.downlink
        assert doing is not None
        try:
            moved = self._move_on(doing)
        except Refused as error:
            self._is_tired = True
            return [note("not_carried_on", run=doing.run, round=round_text(doing.round), reason=str(error))]
        letter = participant.letter
        if letter is not None and participant.is_untouched and letter.work_id == doing.work_id:
            base = letter.base
            self.drift.give_up(letter.payload)
            self._work = replace(doing, is_over=False)
        else:
            assert downlink.chain is not None
            base = downlink.chain.manifest.base
            self.drift.begin_apart()
            self._work = doing.apart(f"{doing.run}/{round_text(doing.round)}+{base}")
        carried = participant.carry_on(self._work.work_id, base)
        told = note("carries_on", run=doing.run, round=round_text(doing.round), done=doing.done, base=base)
        return [*moved, *carried, told, *self._next_round(self._work, now)]

    # -------------------------------------------------------------- what it contributes

    def _contribute(self, doing: EdgeWork, now: float) -> list[Action]:
        tallies = doing.tallies if doing.loss is None else {**doing.tallies, "loss": doing.loss}
        # More is believed of nobody, and what one device claims must not cost the others their part.
        payload, weight = b"", min(sum(doing.samples.values()), MAX_WEIGHT // MIN_SHARERS)
        try:
            if doing.plan.kind is Kind.TRAIN:
                payload = self._encode(doing)
            if len(tallies) > MAX_TALLIES:
                raise Refused(f"{len(tallies)} metrics, at most {MAX_TALLIES}")
        except Refused as error:
            self._work = None
            return self._pass(self.participant.failed(doing.work_id, str(error), now), now)
        self._work = replace(doing, is_over=True)
        result = Contribution(
            payload=payload,
            weight=weight,
            tallies=tallies,
            seconds=doing.seconds,
            sent=doing.sent,
            received=doing.received,
        )
        return self._pass(self.participant.worked(doing.work_id, result, now), now)

    def _encode(self, doing: EdgeWork) -> bytes:
        """Code how far the model has moved, with what coding cut off before; keep what it cuts off now for later."""
        payload, _, left = self._arithmetic.carry(self.drift.to_say(), doing.codec, doing.seed)
        self.drift.said(digest(payload)[:16], left)
        return payload

    # -------------------------------------------------------------- on disk

    def _flush(self, *, is_urgent: bool = True) -> list[Action]:
        """Put down what has changed, in one list with all that follows from the event."""
        doing, marks, changes = self._work, self.drift.marks, self._orphans
        self._orphans = {}
        changes |= self.drift.changes(is_continued=doing is not None and self._may_go_on(doing))
        done = doing.done if doing is not None else 0
        now_stands = (doing, marks, done, self._down_s is not None)
        if self._stored != now_stands:
            changes[_STATE] = records.pack(_Standing(work=doing, marks=marks, is_down=self._down_s is not None))
            self._stored = now_stands
        return [Persist(changes=changes, is_urgent=is_urgent)] if changes else []


def _has_crossed(message: FromParent, known: RoundCall | None) -> bool:
    """Whether a message must have come over the bridge just now: our own broker retains the old ones."""
    if isinstance(message, RoundCall):
        order = (message.boot, message.number, message.attempt)
        return known is not None and message.run == known.run and order > (known.boot, known.number, known.attempt)
    return isinstance(message, Receipt | Want)
