"""The machine that collects from below: the cloud, and the lower half of an edge.

    IDLE -open-> OPEN -quorum in-> GRACE -all in, or grace over-> IDLE   (gives the aggregate)
                 OPEN -deadline without quorum, no retry left-> IDLE     (missed)

A peer's misbehaviour never raises here: it becomes a refusal with its reason and a counted note.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hfl_mqtt.errors import Malformed, Misuse, Refused
from hfl_mqtt.protocol.blobs import WINDOW, Full, Keep, Reassembler, in_memory
from hfl_mqtt.protocol.messages import (
    AUTO,
    MAX_TALLIES,
    MAX_WEIGHT,
    MOVING_EVERY_S,
    UNASKED,
    Announce,
    Decline,
    Kind,
    Moving,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    Update,
    UpdatePart,
    Want,
    WantModel,
    round_text,
)
from hfl_mqtt.protocol.topics import is_child
from hfl_mqtt.protocol.wire import MAX_HEAD, unpack_update
from hfl_mqtt.rounds import cohort, ladder
from hfl_mqtt.rounds.actions import Action, Note, Send, note
from hfl_mqtt.rounds.arithmetic import Accumulator, Arithmetic
from hfl_mqtt.rounds.downlink import Downlink
from hfl_mqtt.rounds.policy import Waiting, quorum_of

#: Updates that are put together at the same time may have this many bytes; the others wait for a slot.
MAX_UNDER_WAY = 64 * 2**20
REMIND_S = 10.0
MAX_REMIND_S = 60.0
#: While parts of an update keep arriving, a deadline moves on by this much; 256 KiB in this time are 70 kbit/s. For as
#: long a child is believed that says that parts keep coming at it.
PROGRESS_S = 30.0


#: What an aggregator hears of its children.
FromChild = State | Decline | UpdatePart | WantModel | Announce | Moving


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


def codecs_of(codec: str) -> tuple[str, ...]:
    """Return the chains that an update may come in, where a call says `codec`."""
    return ladder.CODECS if codec == AUTO else (codec,)


@dataclass(slots=True)
class _Member:
    boot: int
    is_present: bool
    has_left: bool = False


@dataclass(slots=True)
class _Round:
    call: RoundCall
    waiting: Waiting
    accumulator: Accumulator
    asked: set[str]
    next_remind_s: float
    remind_wait_s: float = REMIND_S
    #: When children last said that parts keep coming at them.
    moving_s: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    #: Who was told to wait for a slot; so it is not slow.
    stood_in_line: set[str] = field(default_factory=set)
    refused_blobs: dict[str, str] = field(default_factory=dict)
    tallies: dict[str, list[Tally]] = field(default_factory=dict)
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def quorum(self) -> int:
        return quorum_of(self.waiting.tier, len(self.asked))

    @property
    def has_quorum(self) -> bool:
        """Whether enough came in; once they have, one more child to ask does not take it back."""
        return self.waiting.grace_ends_s is not None or len(self.accepted) >= self.quorum


class Aggregator:
    """Opens rounds for its children and adds up what they send.

    Args:
        path: this node's name; its children are the paths right below.
        arithmetic: the numbers.
        boot: how often this node has been started; goes into its calls.
        max_under_way: most bytes of updates that are under way at once, and at least one of them.
        keep: puts blobs away.
    """

    def __init__(
        self,
        *,
        path: str,
        arithmetic: Arithmetic,
        boot: int = 0,
        max_under_way: int = MAX_UNDER_WAY,
        keep: Keep = in_memory,
    ) -> None:
        self.path = path
        self._boot = boot
        self._arithmetic = arithmetic
        self._max_under_way = max_under_way
        self._members: dict[str, _Member] = {}
        self.downlink = Downlink(arithmetic, keep)
        #: Updates that wait for a slot, in the order in which they were announced.
        self._waiting: dict[str, Announce] = {}
        self._is_close_told = True
        self._last_call: RoundCall | None = None
        self._round: _Round | None = None
        self._updates = Reassembler(max_blob=1, max_total=1)
        self._receipts: dict[str, Receipt] = {}
        self.outcome: Outcome | None = None

    # -------------------------------------------------------------- for the node above

    @property
    def present(self) -> list[str]:
        """The children that can be asked now."""
        return sorted(name for name, member in self._members.items() if member.is_present)

    @property
    def is_open(self) -> bool:
        """Whether a round is open."""
        return self._round is not None

    @property
    def is_receiving(self) -> bool:
        """Whether parts of an update have come and others have not."""
        return len(self._updates) > 0

    @property
    def received(self) -> tuple[int, int] | None:
        """How many bytes of the updates that are under way have come, and all of theirs; None where none is."""
        return self._updates.progress()

    def moving_since(self, now: float) -> float | None:
        """Return since when parts keep coming from the children, or at one that is waited for; None where none do."""
        ongoing = self._round
        if ongoing is None:
            return None
        if self._is_moving_at_one(ongoing, now):
            return now - MOVING_EVERY_S  # at the least, else it would not have said so
        return now if self._updates.is_arriving(now, PROGRESS_S) else None

    def take_outcome(self) -> Outcome | None:
        """Return the outcome of the round that just ended, once."""
        outcome, self.outcome = self.outcome, None
        return outcome

    def open(
        self, *, run: str, round_id: tuple[int, ...], plan: Plan, tier: Tier, seed: int, now: float
    ) -> list[Action]:
        """Call the children to a round from the model last offered.

        Raises:
            Misuse: no model was offered, or a round is open.
        """
        chain, layout = self.downlink.chain, self.downlink.layout
        if chain is None or self._round is not None:
            raise Misuse("open() needs an offered model and no open round")
        drawn = cohort.draw(seed, round_id, self.present, tier.fraction)
        asked = {name for name in self.present if cohort.is_asked(drawn, round_id, name)}
        codecs = codecs_of(tier.codec)
        limit = self._arithmetic.update_limit(layout, codecs) + MAX_HEAD
        room = max(self._max_under_way, limit)
        last = self._last_call
        is_anew = last is not None and (last.run, last.round, last.phase) == (run, round_id, Phase.CLOSED)
        call = RoundCall(
            run=run,
            round=round_id,
            phase=Phase.OPEN,
            asked=len(asked),
            quorum=quorum_of(tier, len(asked)),
            open_for_s=tier.open_for_s,
            codec=tier.codec,
            draw=drawn,
            plan=plan,
            model=chain.manifest,
            boot=self._boot,
            unasked=min(UNASKED, room // max(len(asked), 1)),
            budget=tier.budget if tier.codec == AUTO else None,
            # A round that came to nothing, called once more: whoever was accepted then is asked for another update.
            attempt=last.attempt + 1 if last is not None and is_anew else 0,
        )
        # Whoever was accepted then, and did not hear of its close, would take it for the round that it has done.
        told = self._tell_close() if is_anew else []
        self._updates = Reassembler(max_blob=limit, max_total=room)
        self._waiting.clear()
        self._round = _Round(
            call=call,
            waiting=Waiting.begin(tier, now),
            accumulator=self._arithmetic.accumulator(layout, codecs),
            asked=asked,
            next_remind_s=now + REMIND_S,
        )
        self._last_call, self._is_close_told = call, True
        opened = note("opened", run=run, round=round_text(round_id), kind=plan.kind.value, asked=len(asked))
        return [*told, Send(message=call), opened]

    def cancel(self, why: str) -> list[Action]:
        """Close an open round without a result."""
        if self._round is None:
            return []
        call = self._round.call
        return [*self._end(), note("abandoned", run=call.run, round=round_text(call.round), reason=why)]

    def finish(self, run: str) -> list[Action]:
        """Tell the children that the run is over."""
        actions = self.cancel("the run is over")
        if self._last_call is not None and self._last_call.run == run:
            self._last_call = replace(self._last_call, phase=Phase.FINISHED)
            actions.append(Send(message=self._last_call))
        return actions

    def connected(self, *, session_present: bool) -> list[Action]:
        """After a new session the broker may have lost what it retained: say it again."""
        if session_present or self._last_call is None:
            return []
        return [*self.downlink.show_again(), Send(message=self._last_call)]

    # -------------------------------------------------------------- from the children

    def hear(self, message: FromChild, sender: str, now: float) -> list[Action]:
        """Take a message of a child."""
        if not is_child(sender, self.path):
            return [note("stranger", sender=sender, said=type(message).__name__)]
        if isinstance(message, State):
            return self._hear_state(message, sender, now)
        if isinstance(message, Decline):
            return self._hear_decline(message, sender, now)
        if isinstance(message, WantModel):
            return self._hear_want(message, sender, now)
        if isinstance(message, Announce):
            return self._hear_announce(message, sender, now)
        if isinstance(message, Moving):
            if self._round is not None and sender in self._round.asked:
                self._round.moving_s[sender] = now
            return []
        return self._hear_part(message, sender, now)

    def _hear_state(self, state: State, sender: str, now: float) -> list[Action]:
        member = self._members.get(sender)
        # A smaller boot in a will is an old session's; in a living node's word it is a device that was set up anew.
        if member is not None and state.boot < member.boot and not state.state.is_present:
            return [note("late_will", sender=sender, boot=state.boot)]
        was_present = member is not None and member.is_present
        has_left = state.state is StateName.DISCONNECTED
        self._members[sender] = _Member(state.boot, state.state.is_present, has_left)
        actions: list[Action] = []
        if state.state.is_present and not was_present:
            actions.append(note("joined", sender=sender, boot=state.boot))
            self._admit(sender)
            actions += [*self._tell_close(), *self._settle(now)]
        elif was_present and not state.state.is_present:
            left = "lost" if state.state is StateName.LOST else "left"
            self._waiting.pop(sender, None)
            if has_left or self._waiting:  # others wait for its slot
                self._updates.drop(sender)
                actions += self._grant(now)
            actions.append(note(left, sender=sender, boot=state.boot))
            actions += self._settle(now)
        return actions

    def _admit(self, sender: str) -> None:
        ongoing = self._round
        if ongoing is not None and cohort.is_asked(ongoing.call.draw, ongoing.call.round, sender):
            ongoing.asked.add(sender)

    def _hear_decline(self, decline: Decline, sender: str, now: float) -> list[Action]:
        ongoing = self._round
        if ongoing is None or (decline.run, decline.round) != (ongoing.call.run, ongoing.call.round):
            return [note("decline_out_of_place", sender=sender, round=round_text(decline.round))]
        if sender in ongoing.accepted or sender not in ongoing.asked:
            return [note("decline_out_of_place", sender=sender, round=round_text(decline.round))]
        if ongoing.declined.get(sender) == decline.reason:
            return []
        ongoing.declined[sender] = decline.reason
        said = self._note("declined", sender=sender, reason=decline.reason)
        return [said, *self._settle(now)]

    def _hear_want(self, want: WantModel, sender: str, now: float) -> list[Action]:
        found = self.downlink.again(want, now)
        return found or [note("want_out_of_place", sender=sender, version=want.version)]

    def _hear_announce(self, announced: Announce, sender: str, now: float) -> list[Action]:
        ongoing = self._round
        if ongoing is None or (announced.run, announced.round) != (ongoing.call.run, ongoing.call.round):
            return self._out_of_place(announced, sender)
        if sender in ongoing.accepted or ongoing.refused_blobs.get(sender) == announced.blob:
            return [self._receipt_again(sender), self._note("duplicate", sender=sender)]
        reason = self._why_not(announced, sender)
        if reason is not None:
            return self._refuse(announced, sender, reason, now)
        ongoing.asked.add(sender)
        self._members.setdefault(sender, _Member(0, True))
        if self._updates.is_open(sender, announced.blob):
            missing = self._updates.missing(sender, announced.blob)[:WINDOW]
            return [Send(message=Want(blob=announced.blob, parts=missing), to=sender)]
        return self._stand_in_line(announced, sender, now)

    def _stand_in_line(self, announced: Announce, sender: str, now: float) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        self._waiting[sender] = announced
        actions = self._grant(now)
        if sender in self._waiting:
            ongoing.stood_in_line.add(sender)
        return actions

    def _grant(self, now: float) -> list[Action]:
        """Give the slots that are free to those who wait, in turn."""
        actions: list[Action] = []
        while self._round is not None and self._waiting:
            sender, announced = next(iter(self._waiting.items()))
            try:
                parts = self._updates.reserve(sender, announced.blob, announced.size, announced.count, now)
            except Full:
                if not self._take_slots_back():
                    break
                continue
            except Malformed as error:
                del self._waiting[sender]
                actions += self._refuse(announced, sender, str(error), now)
                continue
            del self._waiting[sender]
            actions.append(Send(message=Want(blob=announced.blob, parts=parts), to=sender))
        return actions

    def _take_slots_back(self) -> bool:
        """Take the slots of children that are gone; returns whether there were any."""
        gone = [sender for sender in self._updates.senders if not self._members[sender].is_present]
        for sender in gone:
            self._updates.drop(sender)
        return bool(gone)

    def _why_not(self, said: UpdatePart | Announce, sender: str) -> str | None:
        """Return why an update cannot count in this round, whatever it holds."""
        ongoing = self._round
        assert ongoing is not None
        if not cohort.is_asked(ongoing.call.draw, ongoing.call.round, sender):
            return "not asked in this round"
        if said.base[:16] != ongoing.call.model.digest[:16]:
            return "foreign base: this update starts from another model"
        return None

    def _hear_part(self, part: UpdatePart, sender: str, now: float) -> list[Action]:
        ongoing = self._round
        if ongoing is None or (part.run, part.round) != (ongoing.call.run, ongoing.call.round):
            return self._out_of_place(part, sender)
        if sender in ongoing.accepted or ongoing.refused_blobs.get(sender) == part.blob:
            duplicate = self._note("duplicate", sender=sender)
            return [self._receipt_again(sender), duplicate] if part.index == 0 else [duplicate]
        reason = self._why_not(part, sender)
        if reason is not None:
            return self._refuse(part, sender, reason, now)
        ongoing.asked.add(sender)
        # What is still in line when a will is said does not bring its sender back; its own word does.
        self._members.setdefault(sender, _Member(0, True))
        try:
            progress = self._updates.add(sender, part, now)
        except Full as error:  # it stands in line as if it had announced itself
            base = part.base[:16]
            announced = Announce(
                run=part.run, round=part.round, base=base, blob=part.blob, size=part.size, count=part.count
            )
            no_room = self._note("no_room", sender=sender, reason=str(error))
            return [no_room, *self._stand_in_line(announced, sender, now)]
        except Malformed as error:
            return self._refuse(part, sender, str(error), now)
        self._waiting.pop(sender, None)
        if progress.ask:
            return [Send(message=Want(blob=part.blob, parts=progress.ask), to=sender)]
        if progress.blob is None:
            return []
        try:
            counted = self._add(unpack_update(progress.blob), sender)
        except (Malformed, Refused) as error:
            return self._refuse(part, sender, str(error), now)
        del progress  # it may be as large as the model, and the round may close now
        return [*counted, *self._settle(now), *self._grant(now)]

    def _add(self, update: Update, sender: str) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        call = ongoing.call
        for name, tally in update.tallies.items():
            if ongoing.tallies.get(name, [tally])[0].is_root != tally.is_root:
                raise Refused(f"metric {name!r}: a mean and a root mean do not add up")
        if len(ongoing.tallies.keys() | update.tallies.keys()) > MAX_TALLIES:
            raise Refused(f"{len(ongoing.tallies.keys() | update.tallies.keys())} metrics, at most {MAX_TALLIES}")
        if sum(ongoing.accepted.values()) + update.weight > MAX_WEIGHT:
            raise Refused(f"weight {update.weight}: with those before it more than {MAX_WEIGHT}")
        if call.plan.kind is Kind.TRAIN:
            ongoing.accumulator.add(update.payload, update.weight)
        elif len(update.payload) or update.weight:
            raise Refused("an evaluation carries no weights")
        for name, tally in update.tallies.items():
            ongoing.tallies.setdefault(name, []).append(tally)
        ongoing.accepted[sender] = update.weight
        ongoing.moved[sender] = (update.sent, update.received)
        ongoing.declined.pop(sender, None)
        self._receipts[sender] = Receipt(run=call.run, round=call.round, base=call.model.digest[:16])
        accepted = self._note(
            "accepted",
            sender=sender,
            kind=call.plan.kind.value,
            weight=update.weight,
            bytes=len(update.payload),
            sent=update.sent,
            received=update.received,
        )
        return [self._receipt_again(sender), accepted]

    def _refuse(self, part: UpdatePart | Announce, sender: str, reason: str, now: float) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        self._updates.drop(sender, part.blob)
        self._receipts[sender] = Receipt(
            run=part.run, round=part.round, base=part.base[:16], accepted=False, reason=reason[:300]
        )
        ongoing.refused_blobs[sender] = part.blob
        if sender in ongoing.asked:
            ongoing.declined[sender] = f"refused: {reason}"
        refused = self._note("refused", sender=sender, reason=reason)
        self._waiting.pop(sender, None)
        return [self._receipt_again(sender), refused, *self._grant(now), *self._settle(now)]

    def _out_of_place(self, part: UpdatePart | Announce, sender: str) -> list[Action]:
        late = note("late", sender=sender, run=part.run, round=round_text(part.round))
        if isinstance(part, UpdatePart) and part.index != 0:
            return [late]
        given, base = self._receipts.get(sender), part.base[:16]
        if given is None or (given.run, given.round, given.base) != (part.run, part.round, base):
            reason = f"too late: {round_text(part.round)} is closed"
            given = Receipt(run=part.run, round=part.round, base=base, accepted=False, reason=reason)
        return [Send(message=given, to=sender), late]

    # -------------------------------------------------------------- time

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for: remind, ask for missing parts, extend, close."""
        ongoing = self._round
        if ongoing is None:
            return []
        actions: list[Action] = [
            Send(message=Want(blob=ask.blob, parts=ask.parts), to=ask.sender) for ask in self._updates.tick(now)
        ]
        actions += self._grant(now)  # the tick may have dropped one that came to nothing
        if now >= ongoing.waiting.next_s:
            return actions + self._time_is_up(ongoing, now)
        if now >= ongoing.next_remind_s:
            ongoing.remind_wait_s = min(ongoing.remind_wait_s * 2, MAX_REMIND_S)
            ongoing.next_remind_s = now + ongoing.remind_wait_s
            if self._awaited(ongoing):
                actions.append(Send(message=ongoing.call))
        return actions

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if self._round is None:
            return None
        moments = (self._round.waiting.next_s, self._round.next_remind_s, self._updates.next_deadline)
        return min(moment for moment in moments if moment is not None)

    def _time_is_up(self, ongoing: _Round, now: float) -> list[Action]:
        if ongoing.has_quorum:
            is_held_up = not ongoing.stood_in_line.isdisjoint(self._awaited(ongoing))
            if is_held_up and self._updates.is_arriving(now, PROGRESS_S):
                ongoing.waiting.more_grace(now)
                return []
            return self._close(now)
        if self._updates.is_arriving(now, PROGRESS_S):
            ongoing.waiting.extend(now, by_s=PROGRESS_S)
            return []
        if self._is_moving_at_one(ongoing, now):  # whose model comes late has as long to work on it as the others had
            ongoing.waiting.extend(now, by_s=max(PROGRESS_S, ongoing.call.open_for_s))
            return []
        if ongoing.waiting.extend(now):
            missed = self._note(
                "extended",
                accepted=len(ongoing.accepted),
                quorum=ongoing.quorum,
                declined=sorted(ongoing.declined),
                waiting_for=sorted(self._awaited(ongoing)),
            )
            # Whoever declined, or was refused, may try again; what was accepted stays accepted.
            ongoing.declined.clear()
            ongoing.refused_blobs.clear()
            self._last_call = ongoing.call = replace(ongoing.call, attempt=ongoing.call.attempt + 1)
            ongoing.next_remind_s, ongoing.remind_wait_s = now + REMIND_S, REMIND_S
            return [missed, Send(message=ongoing.call)]
        return self._close(now)

    # -------------------------------------------------------------- inside

    def _awaited(self, ongoing: _Round) -> set[str]:
        present = {name for name in ongoing.asked if self._members[name].is_present}
        return present - ongoing.accepted.keys() - ongoing.declined.keys()

    def _is_moving_at_one(self, ongoing: _Round, now: float) -> bool:
        """Whether a child that is waited for said a moment ago that parts keep coming at it."""
        recent = {name for name, at_s in ongoing.moving_s.items() if now - at_s <= PROGRESS_S}
        return not recent.isdisjoint(self._awaited(ongoing))

    def _is_answered(self, ongoing: _Round) -> bool:
        """Whether everybody who was asked has answered or left on purpose, so that waiting brings nothing."""
        left = {name for name in ongoing.asked if self._members[name].has_left}
        answered = ongoing.accepted.keys() | ongoing.declined.keys() | left
        return bool(ongoing.asked) and len(ongoing.asked) >= ongoing.quorum and ongoing.asked <= answered

    def _settle(self, now: float) -> list[Action]:
        """Close if there is nothing left to wait for; start the grace period if the quorum is in."""
        ongoing = self._round
        if ongoing is None:
            return []
        if not ongoing.has_quorum:
            ongoing.waiting.all_have_answered(self._is_answered(ongoing), now)
            return []
        if not self._awaited(ongoing):
            return self._close(now)
        ongoing.waiting.quorum_in(now)
        return []

    def _close(self, now: float) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        call = ongoing.call
        is_missed = not ongoing.has_quorum
        step = None
        if not is_missed and call.plan.kind is Kind.TRAIN:
            step = self._arithmetic.step(ongoing.accumulator)
        self.outcome = outcome = Outcome(
            run=call.run,
            round=call.round,
            kind=call.plan.kind,
            is_missed=is_missed,
            quorum=ongoing.quorum,
            step=step,
            accepted=ongoing.accepted,
            declined=ongoing.declined,
            missing=tuple(sorted(ongoing.asked - ongoing.accepted.keys() - ongoing.declined.keys())),
            tallies={name: Tally.of(tallies) for name, tallies in sorted(ongoing.tallies.items())},
            seconds=now - ongoing.waiting.opened_s,
            moved=ongoing.moved,
        )
        closed = self._note(
            "missed" if is_missed else "closed",
            kind=outcome.kind.value,
            accepted=len(outcome.accepted),
            asked=len(ongoing.asked),
            quorum=ongoing.quorum,
            samples=sum(outcome.accepted.values()),
            waited_for=outcome.waited_for(),
            seconds=round(outcome.seconds, 3),
        )
        # The next call says as much as this one's close; where all have answered, nobody needs to hear it before.
        return [*self._end(is_quiet=ongoing.asked <= ongoing.accepted.keys()), closed]

    def _end(self, *, is_quiet: bool = False) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        self._round = None
        self._updates.clear()
        self._waiting.clear()
        self._last_call, self._is_close_told = replace(ongoing.call, phase=Phase.CLOSED), False
        return [] if is_quiet else self._tell_close()

    def _tell_close(self) -> list[Action]:
        """Say that the last round is closed, where that was not said: whoever comes now would begin to work for it."""
        if self._is_close_told or self._last_call is None:
            return []
        self._is_close_told = True
        return [Send(message=self._last_call)]

    def _receipt_again(self, sender: str) -> Send:
        return Send(message=self._receipts[sender], to=sender)

    def _note(self, event: str, **fields: Any) -> Note:
        assert self._round is not None
        return note(event, run=self._round.call.run, round=round_text(self._round.call.round), **fields)
