"""The machine that contributes upwards: a device, and the upper half of an edge.

    OUT -connected-> JOINED -call-> FETCHING -model here-> WORKING -worked-> SENDING -receipt-> JOINED
    a newer call, or the close of this one, in FETCHING, WORKING or SENDING drops what was being done;
    where late updates are not lost, work and its update are finished first, and the newest call is begun after that

It answers a call it hears twice with what it said before, so a lost message costs a reminder, never a round. What it
hands in is durable before the first part is sent, so a restart goes on sending and trains nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from hfl_mqtt.errors import Misuse, Refused
from hfl_mqtt.protocol import blobs
from hfl_mqtt.protocol.blobs import Cut, Keep, in_memory
from hfl_mqtt.protocol.messages import (
    AUTO,
    MOVING_EVERY_S,
    Assign,
    Buffer,
    Decline,
    Identity,
    Info,
    KeyPart,
    Kind,
    Late,
    ModelPart,
    Moving,
    Phase,
    Quarantine,
    Receipt,
    RoundCall,
    RunId,
    ShortDigest,
    StateName,
    Update,
    Want,
    WantModel,
    round_text,
)
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.protocol.wire import update_pieces
from hfl_mqtt.rounds import cohort, ladder, records
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Contribution,
    Counted,
    Move,
    Note,
    Persist,
    RunOver,
    Send,
    Work,
    note,
)
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.following import Following
from hfl_mqtt.rounds.outbox import Fate, Letter, Outbox, is_same_ask
from hfl_mqtt.rounds.presence import Presence
from hfl_mqtt.rounds.signing import Signer, key_name, shown, update_seal, why_not_said_by
from hfl_mqtt.rounds.upload import Upload

#: A node that is to move waits so long at most for the receipt of what it has sent.
MOVE_S = 300.0
#: Runs that ended and are remembered, so that a late call of theirs is not taken for a new run.
PAST_RUNS = 8

#: Where a node keeps what it works on, which runs are over, and under which of its names it goes on.
CALL, PAST, HOME = "up/call", "up/past", "home"

#: What a participant hears of its parent.
FromParent = Identity | RoundCall | ModelPart | KeyPart | Receipt | Want | Assign | Quarantine


class Stage(Enum):
    """Where a participant stands."""

    OUT = "out"
    JOINED = "joined"
    FETCHING = "fetching"
    WORKING = "working"
    SENDING = "sending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What is being done: for which call, under which name, and from which base its update will start."""

    call: RoundCall
    work_id: str
    base: ShortDigest
    #: Nobody asked for it: its update joins, or stands behind, one that answers the same call.
    is_extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    runs: tuple[RunId, ...]


class Participant:
    """Takes calls from its parent and answers each with one update or one decline.

    Args:
        path: this node's name; its parent is the path above.
        boot: how often this node has been started; goes into its state.
        info: what it says of itself at birth.
        max_model: most bytes of a model it will take.
        keep: puts blobs away.
        saved: what a former life persisted.
        homes: the other names under which this node may go on.
        is_lasting: whether its work outlives a restart, as an edge's does.
        signer: signs what it hands in, and checks what its parent calls.
    """

    def __init__(
        self,
        *,
        path: str,
        boot: int,
        info: Info,
        max_model: int,
        keep: Keep = in_memory,
        saved: Mapping[str, Buffer] = MappingProxyType({}),
        homes: Collection[str] = (),
        is_lasting: bool = False,
        signer: Signer | None = None,
    ) -> None:
        above = parent(path)
        if above is None:
            raise ValueError(f"{path!r} has no parent to contribute to")
        self.path, self.parent = path, above
        self._presence = Presence(path, boot, info)
        self._keep, self._is_lasting = keep, is_lasting
        self._homes = frozenset(homes)
        self._moving_to: str | None = None
        self._leave_at_s: float | None = None
        self._signer = signer
        #: The last call that its parent was not known to have said: it may be proven by a card that comes yet.
        self._unproven: RoundCall | None = None
        self.following = Following(max_model, keep, above, signer)
        self._outbox = Outbox(saved, keep, signer)
        past = records.read(_Past, saved.get(PAST))
        self._past_runs = list(past.runs) if past is not None else []
        self._doing = records.read(Doing, saved.get(CALL)) if is_lasting else None
        self._stored_work = bytes(saved[CALL]) if CALL in saved else None
        #: The call last heard; not begun yet where what came before it is finished first.
        self._call = self._last_call()
        self._is_put_off = False
        #: The last round in which an update of ours counts.
        counted = [letter.joined for letter in self._outbox.letters if letter.fate is Fate.COUNTED]
        self._counted_in = counted[-1] if counted else None
        self._decline: Decline | None = None
        self._is_decline_due = False
        self._upload: Upload | None = None
        self.stage = Stage.WORKING if self._doing else Stage.SENDING if self._outbox.due else Stage.OUT
        self._is_linked = self.is_bridged = True
        self._is_gone = False
        #: Bytes sent and received so far, as the shell counts them, and what of them has been reported upwards.
        self.meter: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._reported = self._to_report = (0, 0)
        #: Why this node takes part in no round just now, as whoever knows its board says; asked when a round opens.
        self.refusal: Callable[[], str | None] = lambda: None
        #: Since when parts keep coming from or at the children of this node, where it has any.
        self.moving_below_since: Callable[[float], float | None] = lambda _now: None
        self._moving_s: float | None = None
        #: Bytes per second that the last upload got through; None before the first.
        self.goodput: float | None = None
        #: How updates are coded now, and why, where that is this node's choice.
        self.choice: ladder.Choice | None = None

    def start(self) -> list[Action]:
        """Take up what a former life left behind: its outbox, and where it lasts its work."""
        counted: list[Action] = [
            Counted(work_id=letter.work_id, payload=letter.payload)
            for letter in self._outbox.letters
            if letter.fate is Fate.COUNTED and letter.payload
        ]
        actions = [*self._outbox.start(), *self._store_work(), *counted]
        call = self._current
        if call is not None:
            actions.append(note("resumed", run=call.run, round=round_text(call.round), stage=self.stage.value))
        return actions

    # -------------------------------------------------------------- link

    def connected(self, now: float) -> list[Action]:
        """Announce ourselves; an upload that has no receipt goes on."""
        if self._is_gone:
            return []
        if self.stage is Stage.OUT:
            self.stage = Stage.JOINED
        self._is_linked = True
        hello = [*shown(self._signer), *self._presence.hello(self._state_name, now)]
        if self.stage is Stage.FETCHING and self._doing is not None:  # what was fetched went with the connection
            hello += self._upwards(self.following.want(self._doing.call.run, self._doing.call.model, now))
        return hello + self._speak(now)

    def lost(self, *, is_cloned: bool = False) -> None:
        """Ask and probe no more until the link is back: it would all wait in line and go out at once."""
        self._is_linked = False
        if is_cloned:
            self._presence.is_cloned()

    def sampled(self, samples: int) -> list[Action]:
        """Take it that this node has so many samples of its own now, and say so where that is news."""
        news = self._presence.sampled(samples)
        return news if self._is_linked and not self._is_gone and self.stage is not Stage.OUT else []

    def bridged(self, is_up: bool, now: float) -> list[Action]:
        """Say nothing to the parent while it cannot be reached, and what is due once it can."""
        was_up, self.is_bridged = self.is_bridged, is_up
        return self._speak(now) if is_up and not was_up else []

    def _speak(self, now: float) -> list[Action]:
        """Say what is due, where it can be said."""
        if not (self._is_linked and self.is_bridged) or self._is_gone:
            return []
        declined: list[Action] = []
        if self._is_decline_due and self._decline is not None:
            self._is_decline_due, declined = False, [Send(message=self._decline)]
        return declined + (self._hand_in(now) if self.stage is Stage.SENDING else [])

    # -------------------------------------------------------------- from the parent

    def hear(self, message: FromParent, now: float) -> list[Action]:
        """Take a message of the parent."""
        if self._is_gone:
            return []
        if isinstance(message, Identity):
            return self._hear_identity(message, now)
        if isinstance(message, RoundCall):
            actions = self._doubt(message, now) or [*self._presence.content("call"), *self._hear_call(message, now)]
            is_free = self._moving_to is not None and self.stage in (Stage.OUT, Stage.JOINED) and not self._is_gone
            return actions + self._leave() if is_free else actions
        if isinstance(message, ModelPart | KeyPart):
            if message.size > self.following.max_blob and self.stage is Stage.FETCHING:
                return self._say_decline(self._too_large(message.size))
            heard = self.following.hear(message, now)
            if self._signer is not None and any(isinstance(action, Note) for action in heard):
                self._presence.complain("model", f"the model of {self.parent} that comes is not the one it signed", now)
            return self._upwards(heard) + self._work_if_here(now)
        if isinstance(message, Receipt):
            return self._hear_receipt(message, now)
        if isinstance(message, Assign):
            return self._hear_assign(message, now)
        if isinstance(message, Quarantine):
            told = f"in quarantine at {self.parent}: {message.reason}"
            self._presence.shunned(told, message.for_s, now)
            return [note("in_quarantine", reason=message.reason, for_s=message.for_s)]
        return self._hear_want(message, now)

    def _hear_identity(self, shown: Identity, now: float) -> list[Action]:
        if self._signer is None:
            return []
        try:
            is_new = self._signer.learn(self.parent, shown.card)
        except Refused as error:
            self._presence.complain("call", str(error), now)
            return [note("identity_refused", sender=self.parent, reason=str(error))]
        call, self._unproven = self._unproven, None
        return self.hear(call, now) if is_new and call is not None else []

    def _doubt(self, call: RoundCall, now: float) -> list[Action]:
        """Return what is done about a call that the parent is not known to have said; nothing where it has."""
        if self._signer is None:
            reason = f"{self.parent} signs what it calls: give this node its identity, too" if call.signature else None
        else:
            reason = why_not_said_by(self._signer, self.parent, call)
            self._unproven = call if reason is not None else None
        if reason is None:
            return []
        self._presence.complain("call", reason, now)
        return [note("call_refused", run=call.run, round=round_text(call.round), reason=reason)]

    def _hear_call(self, call: RoundCall, now: float) -> list[Action]:
        if call.run in self._past_runs:
            return []
        known = self._call
        said = {"run": call.run, "round": round_text(call.round), "boot": call.boot}
        if known is None or call.run != known.run:
            # All calls of a parent stand in one order: an old one that comes once more ends no newer run.
            if known is not None and (call.boot, call.number) < (known.boot, known.number):
                return [note("out_of_date", **said, known=known.boot)]
            if call.phase is Phase.FINISHED:
                self._remember(call.run)  # an earlier run, still on the retained topic: not ours to end
                return []
            actions = self._drop("a new run began", now)
            if known is not None:
                actions += self._end_run(known.run)
            return actions + self._begin(call, now)
        if call.boot < known.boot:
            return [note("out_of_date", **said, known=known.boot)]
        if call.phase is Phase.FINISHED:
            actions = self._drop("the run is over", now)
            return [*actions, *self._end_run(call.run), *self._presence.tell(self._state_name), RunOver(run=call.run)]
        if call.boot > known.boot and call.round <= known.round:
            return self._hear_reborn(call, now)
        # An aggregator may begin at an earlier round again: the number of its call tells, where it has one.
        is_counted = call.boot == known.boot and call.number != known.number
        if call.number < known.number if is_counted else call.round < known.round:
            return []
        if call.round != known.round:
            return self._hear_newer(call, now)
        if call.phase is Phase.CLOSED:
            return self._hear_close(call, now)
        return self._hear_again(call, now)

    def _hear_reborn(self, call: RoundCall, now: float) -> list[Action]:
        """Take the call of a parent that was restarted, or of another in its place, and has forgotten what we said."""
        current = self._current
        if call.phase is Phase.OPEN and current is not None and is_same_ask(call, current):
            return self._go_on_for(call, now)  # it asks for what is being done already
        letter = self._outbox.answer_to(call)
        dropped = self._drop("the aggregator was restarted", now)
        if letter is not None and call.phase is Phase.OPEN:
            return dropped + self._send_again(call, now)
        return dropped + self._begin(call, now)  # its rounds count anew

    def _go_on_for(self, call: RoundCall, now: float) -> list[Action]:
        self._call, self._is_put_off = call, False
        if self._counted_in == call.round:
            self._counted_in = None
        due = self._outbox.due
        if self._doing is not None:
            self._doing = replace(self._doing, call=call)
        elif due is not None:
            self._outbox.change(due, call=call)
            return self._hand_in(now)  # whoever asks has nothing of it
        return self._repeat(now)

    def _hear_newer(self, call: RoundCall, now: float) -> list[Action]:
        if self._is_kept_for(call):
            self._call, self._is_put_off = call, True
            return self._hand_in(now) if self.stage is Stage.SENDING else []
        if call.phase is Phase.OPEN and any(letter.has_joined(call.round) for letter in self._outbox.letters):
            self._call = call  # in a former life
            return []
        dropped = self._drop(f"{round_text(call.round)} began", now)
        is_known = call.phase is Phase.OPEN and self._outbox.answer_to(call) is not None
        return dropped + (self._send_again(call, now) if is_known else self._begin(call, now))

    def _hear_close(self, call: RoundCall, now: float) -> list[Action]:
        if self._counted_in == call.round:
            self._counted_in = None  # an edge that missed it may open it once more
        if self._is_kept_for(call):
            self._call = call
            if self._upload is not None:
                self._upload.rest()  # it joins the next round
            return []
        dropped = self._drop(f"{round_text(call.round)} closed", now)
        self._call = call
        return dropped

    def _hear_again(self, call: RoundCall, now: float) -> list[Action]:
        known = self._call
        assert known is not None
        is_another = call.boot == known.boot and call.number > known.number
        if is_another and self._counted_in == call.round:
            self._counted_in = None  # the one in which it counted came to nothing
        if (is_another or call.attempt > known.attempt) and self._counted_in != call.round:
            if self.stage in (Stage.OUT, Stage.JOINED):
                return self._send_again(call, now) if self._outbox.answer_to(call) else self._begin(call, now)
            if is_another or known.phase is Phase.CLOSED:  # what was late is in time again
                self._call = call
                return self._hand_in(now) if self.stage is Stage.SENDING else []
        return self._repeat(now)

    def _is_kept_for(self, call: RoundCall) -> bool:
        """Whether what is being done is finished, and joins the round of this newer call or the one after a close."""
        current = self._current
        if current is None or self.stage is Stage.FETCHING:
            return False
        is_lost = Late.DROP in (current.late, call.late)
        return not is_lost and current.plan.kind is call.plan.kind is Kind.TRAIN

    def _begin(self, call: RoundCall, now: float) -> list[Action]:
        self._call, self._decline, self._is_decline_due, self._is_put_off = call, None, False, False
        if self._moving_to is not None:
            return self._leave()
        if call.phase is not Phase.OPEN:
            return []
        self._counted_in = None
        self._presence.called()
        if not cohort.is_asked(call.draw, call.round, self.path):
            return [note("not_asked", run=call.run, round=round_text(call.round))]
        self.stage = Stage.FETCHING
        self._doing = Doing(call=call, work_id=f"{call.run}/{round_text(call.round)}", base=call.model.base)
        refusal = self.refusal()  # before the model is fetched: the link may be why
        if refusal is not None:
            return self._say_decline(refusal)
        return self._upwards(self.following.want(call.run, call.model, now)) + self._work_if_here(now)

    def _send_again(self, call: RoundCall, now: float) -> list[Action]:
        """Answer with the update that is in the outbox: the parent has not got it any more."""
        letter = self._outbox.answer_to(call)
        assert letter is not None
        if self._moving_to is not None or not cohort.is_asked(call.draw, call.round, self.path):
            return self._begin(call, now)
        self._call, self._decline, self._is_decline_due, self._is_put_off = call, None, False, False
        self._counted_in = None
        self._presence.called()
        self._outbox.change(letter, call=call, fate=Fate.DUE, joined=None)
        again = note("sent_again", run=call.run, round=round_text(call.round), update=letter.blob)
        return [again, *self._hand_in(now)]

    def _repeat(self, now: float) -> list[Action]:
        """Answer a call heard again with what was said before: the parent may have missed it."""
        if self._decline is not None:
            self._is_decline_due = True
            return self._speak(now)
        letter = self._outbox.due
        if self.stage is Stage.SENDING and letter is not None and self._may_send(letter):
            if self._upload is None or not self._upload.is_begun:
                return self._hand_in(now)
            self._upload.remind(now)
        return []

    def _hear_receipt(self, receipt: Receipt, now: float) -> list[Action]:
        letter = self._outbox.find(receipt.run, receipt.round, receipt.base)
        out_of_place = note("receipt_out_of_place", round=round_text(receipt.round))
        if letter is None or letter.fate is Fate.COUNTED:
            return [out_of_place]
        is_overtaken = letter.fate is Fate.GIVEN_UP
        counted = self._count(letter, receipt) if receipt.accepted else []
        if not receipt.accepted:
            self._outbox.remove(letter)
        if is_overtaken:
            return [*self._outbox.persist(is_urgent=False), *counted, out_of_place]
        if self._upload is not None and self._upload.blob == letter.blob:
            self.goodput, self._upload = self._upload.goodput(now) or self.goodput, None
        told = note(
            "accepted" if receipt.accepted else "refused",
            run=letter.call.run,
            round=round_text(letter.call.round),
            kind=letter.call.plan.kind.value,
            update=letter.blob,
            reason=receipt.reason,
            **({"joined": round_text(receipt.joined)} if receipt.joined is not None else {}),
        )
        actions = [*self._outbox.persist(is_urgent=False), *counted, told]
        return actions + self._go_on(now) if self.stage is Stage.SENDING else actions

    def _count(self, letter: Letter, receipt: Receipt) -> list[Action]:
        joined = receipt.joined or letter.call.round
        known = self._call
        is_over = known is not None and (known.round, known.phase) == (joined, Phase.CLOSED)
        if letter.fate is Fate.DUE:
            self._reported = self._to_report
            self._counted_in = self._counted_in if is_over else joined
        self._outbox.change(letter, fate=Fate.COUNTED, joined=joined)
        # Where nothing was coded, nothing was cut off.
        return [Counted(work_id=letter.work_id, payload=letter.payload)] if letter.payload else []

    def _hear_want(self, want: Want, now: float) -> list[Action]:
        upload, letter = self._upload, self._outbox.due
        if self.stage is not Stage.SENDING or upload is None or letter is None or want.blob != upload.blob:
            return []
        return upload.hear(want, now) if self._may_send(letter) and upload.is_begun else []

    def _hear_assign(self, assign: Assign, now: float) -> list[Action]:
        if assign.to == self.path:
            self._moving_to = self._leave_at_s = None
            return []
        if assign.to not in self._homes:
            known = ", ".join(sorted(self._homes - {self.path})) or "none"
            reason = f"{assign.to} is not among its homes ({known}): add it there"
            return [note("assign_refused", to=assign.to, reason=reason), self._presence.answer(reason)]
        self._moving_to = assign.to
        if self.stage in (Stage.WORKING, Stage.SENDING):  # what is being done is finished first
            self._leave_at_s = now + MOVE_S if self.stage is Stage.SENDING else None
            going = self._presence.answer(f"moves to {assign.to} when its answer is in")
            return [note("moving", to=assign.to), going]
        return self._drop(f"it moves to {assign.to}", now) + self._leave()

    # -------------------------------------------------------------- from the work

    def worked(self, work_id: str, result: Contribution, now: float) -> list[Action]:
        """Take the result of the work, make it durable, and send it."""
        doing = self._doing
        if self.stage is not Stage.WORKING or doing is None or work_id != doing.work_id:
            return []
        call, is_coded = doing.call, doing.call.plan.kind is Kind.TRAIN
        if result.keyframe is not None and self.following.chain is not None:
            self.following.chain.rebase(result.keyframe)
        self._to_report = self.meter()
        update = Update(
            weight=result.weight,
            payload=result.payload,
            tallies=result.tallies,
            sent=result.sent + self._to_report[0] - self._reported[0],
            received=result.received + self._to_report[1] - self._reported[1],
        )
        seal = update_seal(self._signer, call.run, call.round, doing.base)
        cut = Cut.kept(update_pieces(update), self._keep, seal=seal)
        letter = Letter(
            call=call,
            base=doing.base,
            work_id=work_id,
            blob=cut.name,
            payload=blobs.digest(result.payload)[:16] if is_coded else "",
            sealed_by=key_name(self._signer),
        )
        self._outbox.put(letter, cut)
        self._doing, self._upload = None, None
        sent = [*self._store_work(), *self._hand_in(now)]
        worked = note(
            "worked",
            run=call.run,
            round=round_text(call.round),
            kind=call.plan.kind.value,
            seconds=round(result.seconds, 4),
            bytes=len(result.payload),
            update=cut.name,
            **({"codec": self.choice.codec, "reason": self.choice.reason} if self.choice is not None else {}),
        )
        self._leave_at_s = now + MOVE_S if self._moving_to is not None else None
        self._presence.change(self._state_name, now)
        return [*sent, worked]

    def failed(self, work_id: str, reason: str, now: float) -> list[Action]:
        """Take it that the work gave nothing."""
        doing, call = self._doing, self._call
        if self.stage is not Stage.WORKING or doing is None or work_id != doing.work_id:
            return []
        is_awaited = call is not None and call.round == doing.call.round and call.phase is Phase.OPEN
        if is_awaited and not doing.is_extra:
            declined = self._say_decline(reason)
        else:  # nobody waits for it any more
            self._doing = None
            where = {"run": doing.call.run, "round": round_text(doing.call.round)}
            declined = [*self._store_work(), note("declined", **where, reason=reason), *self._go_on(now)]
        self._presence.change(self._state_name, now)
        return declined

    @property
    def can_carry_on(self) -> bool:
        """Whether its work may go on for the call answered last, while the parent is out of reach."""
        call, letters = self._call, self._outbox.letters
        if self.is_bridged or call is None or not letters or self.stage not in (Stage.JOINED, Stage.SENDING):
            return False
        is_newest = letters[-1].call.round == call.round and letters[-1].fate is not Fate.GIVEN_UP
        return is_newest and call.plan.kind is Kind.TRAIN and call.late is not Late.DROP and self._moving_to is None

    @property
    def letter(self) -> Letter | None:
        """The newest update that has no receipt."""
        return next((letter for letter in reversed(self._outbox.letters) if letter.fate is Fate.DUE), None)

    @property
    def is_untouched(self) -> bool:
        """Whether that is one of which nothing was ever sent, so that another may take its place."""
        return self.letter is not None and not self.letter.is_sent

    def carry_on(self, work_id: str, base: str) -> list[Action]:
        """Work on for the call answered last, though nobody asked: its update takes the place of one of the same key.

        Args:
            work_id: names the work, and later what `Counted` means.
            base: the model that it starts from. Those of `letter` where that is to be replaced; it must not have been
                sent.

        Raises:
            Misuse: it cannot carry on, or an update of this key was sent already.
        """
        if not self.can_carry_on:
            raise Misuse("carry_on() needs a bridge that is down, and a call that was answered and may be late")
        call = self._outbox.letters[-1].call
        known = self._outbox.find(call.run, call.round, base)
        if known is not None and (known.is_sent or known.work_id != work_id):
            raise Misuse(f"an update from {base} was sent, or is called {known.work_id}: take another base")
        self.stage, self._upload = Stage.WORKING, None
        self._doing = Doing(call=call, work_id=work_id, base=base, is_extra=True)
        return self._store_work()

    def forget_work(self) -> None:
        """Take it that the work of a former life is lost: its call is begun anew when it is heard."""
        self._doing = None
        self.stage = Stage.SENDING if self._outbox.due is not None else Stage.OUT
        self._call = self._last_call()

    def fetch_anew(self, now: float) -> list[Action]:
        """Fetch the model that is being worked on from its keyframe, and begin the work anew with what comes."""
        doing = self._doing
        assert doing is not None
        assert self.stage is Stage.WORKING
        self.stage = Stage.FETCHING
        self._presence.change(self._state_name, now)
        self.following.forget()
        return [*self._store_work(), *self._upwards(self.following.want(doing.call.run, doing.call.model, now))]

    # -------------------------------------------------------------- time

    def tick(self, now: float) -> list[Action]:
        """Ask again, or probe, where nothing has come for long enough."""
        if not self._is_linked or self._is_gone:
            return []
        if self._leave_at_s is not None and now >= self._leave_at_s:
            return self._drop("no receipt came, and it is to move", now) + self._leave()
        actions = self._upwards(self.following.tick(now)) + self._presence.tick(now)
        if self._upload is not None and self.is_bridged:
            probes = self._upload.tick(now)  # no answer: the parent may not know by which key to check them
            actions += [*shown(self._signer), *probes] if probes else []
        return actions

    def watch(self, now: float) -> list[Action]:
        """Tell the parent that parts keep coming, once they have for long; to be called after every event."""
        since_s = None  # while an update is sent, the parent sees its parts
        if self.stage is Stage.WORKING:
            since_s = self.moving_below_since(now)
        elif self.stage is not Stage.SENDING:
            since_s = self.following.arriving_since(now)
        if since_s is None or not self._is_linked or not self.is_bridged or self._is_gone:
            self._moving_s = None
            return []
        if self._moving_s is None:
            self._moving_s = since_s
        if now < self._moving_s + MOVING_EVERY_S:
            return []
        self._moving_s = now
        return [Send(message=Moving())]

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if not self._is_linked or self._is_gone:
            return None
        moving_s = self._moving_s + MOVING_EVERY_S if self._moving_s is not None else None
        upload_s = self._upload.next_deadline if self._upload is not None and self.is_bridged else None
        moments = (self._leave_at_s, moving_s, upload_s, self._presence.next_deadline, self.following.next_deadline)
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way here, or an update on its way up."""
        return self._is_linked and self.is_bridged and self.stage in (Stage.FETCHING, Stage.SENDING)

    @property
    def received(self) -> tuple[int, int] | None:
        """How many bytes of a model that is on its way here have come, and all of them; None where none is."""
        return self.following.progress() if self.stage is Stage.FETCHING else None

    @property
    def sent(self) -> tuple[int, int] | None:
        """How many bytes of an update that is on its way up were asked for and sent, and all; None where none is."""
        return self._upload.progress if self._upload is not None else None

    @property
    def call(self) -> RoundCall | None:
        """The call last heard."""
        return self._call

    @property
    def working_for(self) -> RoundCall | None:
        """The call that is fetched for or worked on; in a node that lets nothing be late, the one last heard."""
        return self._doing.call if self._doing is not None else None

    @property
    def work_id(self) -> str | None:
        """The work that is fetched for or done."""
        return self._doing.work_id if self._doing is not None else None

    @property
    def parting(self) -> str:
        """Why it leaves, for people."""
        return f"moved to {self._moving_to}" if self._is_gone else ""

    # -------------------------------------------------------------- inside

    @property
    def chain(self) -> Chain | None:
        """The parent's model as far as it is known."""
        return self.following.chain

    @property
    def _current(self) -> RoundCall | None:
        """The call that something is being done for."""
        if self._doing is not None:
            return self._doing.call
        due = self._outbox.due
        return due.call if due is not None and self.stage is Stage.SENDING else None

    def _last_call(self) -> RoundCall | None:
        if self._doing is not None:
            return self._doing.call
        return self._outbox.letters[-1].call if self._outbox.letters else None

    def _may_send(self, letter: Letter) -> bool:
        """Whether the parent can be reached, and takes this update now: in its own round, or as a late one."""
        call = self._call
        if call is None or not (self._is_linked and self.is_bridged):
            return False
        if call.phase is not Phase.OPEN or self._counted_in == call.round:
            return False
        if letter.call.round == call.round:
            return letter.base == call.model.base
        return call.late is not Late.DROP and call.plan.kind is Kind.TRAIN

    def _hand_in(self, now: float) -> list[Action]:
        """Send the update that is due, or wait until it can be sent."""
        letter = self._outbox.due
        assert letter is not None
        self.stage = Stage.SENDING
        self.following.rest()
        if self._upload is None or self._upload.blob != letter.blob:
            cut = self._outbox.cut(letter)
            assert cut is not None
            self._upload = Upload(letter, cut, is_announced=self._outbox.is_resealed(letter))
        upload, may_send = self._upload, self._may_send(letter)
        if may_send and not letter.is_sent:
            self._outbox.change(letter, is_sent=True)
        actions = self._outbox.persist(is_urgent=letter.call.plan.kind is Kind.TRAIN)
        if not may_send:
            upload.rest()
        elif upload.is_begun:
            upload.wake(now)
        else:
            actions += upload.begin(now)
        return actions

    def _go_on(self, now: float) -> list[Action]:
        """Hand in what is due, else begin the call that was put off."""
        if self._outbox.due is not None:
            return self._hand_in(now)
        self._rest()
        if self._moving_to is not None:
            return self._leave()
        call, is_put_off = self._call, self._is_put_off
        self._is_put_off = False
        if call is not None and is_put_off and call.phase is Phase.OPEN and self._counted_in != call.round:
            return self._begin(call, now)
        return []

    def _work_if_here(self, now: float) -> list[Action]:
        doing, chain = self._doing, self.following.chain
        if self.stage is not Stage.FETCHING or doing is None or chain is None or not self.following.has_arrived:
            return []
        call = doing.call
        if chain.keyframe.size > self.following.max_model:
            return self._say_decline(self._too_large(chain.keyframe.size))
        self.stage, self._upload = Stage.WORKING, None
        self.following.rest()
        self._outbox.forget_settled(may_have_counted=self._is_lasting)
        self._presence.change(self._state_name, now)
        codec = call.codec
        if codec == AUTO:
            self.choice = ladder.choose(chain.keyframe.size, self.goodput, call.budget)
            codec = self.choice.codec
        work = Work(
            work_id=doing.work_id,
            run=call.run,
            round=call.round,
            plan=call.plan,
            codec=codec,
            model=chain.model,
            seed=cohort.lot(call.plan.seed, call.round, self.path),
        )
        content = self._presence.content("model")
        return [*self._outbox.persist(is_urgent=False), *self._store_work(), *content, work]

    def _store_work(self) -> list[Action]:
        """Persist what is worked on, where it outlives a restart; it rides along with the work's own."""
        is_wanted = self._is_lasting and self.stage is Stage.WORKING and self._doing is not None
        found = records.pack(self._doing) if is_wanted else None
        if found == self._stored_work:
            return []
        self._stored_work = found
        return [Persist(changes={CALL: found}, is_urgent=False)]

    def _drop(self, why: str, now: float) -> list[Action]:
        call, stage, doing = self._current, self.stage, self._doing
        if call is None:
            return []
        where = {"run": call.run, "round": round_text(call.round)}
        dropped: list[Action] = [note("given_up", **where, reason=why, stage=stage.value)]
        if stage is Stage.WORKING and doing is not None:
            dropped = [CancelWork(work_id=doing.work_id), note("cancelled", **where, reason=why)]
        for letter in self._outbox.letters:
            if letter.fate is Fate.DUE:
                self._outbox.change(letter, fate=Fate.GIVEN_UP)
        self._rest()
        if stage is Stage.WORKING:
            self._presence.change(self._state_name, now)
        return [*self._outbox.persist(is_urgent=False), *self._store_work(), *dropped]

    def _rest(self) -> None:
        self.stage, self._doing, self._upload = Stage.JOINED, None, None
        self.following.rest()

    def _leave(self) -> list[Action]:
        """Go on under another name; what was kept for the old parent is of no use there."""
        to = self._moving_to
        assert to is not None
        self._is_gone = True
        self._rest()
        self._outbox.clear()
        home = Persist(changes={HOME: to.encode()})
        return [*self._outbox.persist(is_urgent=True), *self._store_work(), home, note("moved", to=to), Move(to=to)]

    def _remember(self, run: str) -> None:
        self._past_runs = [*self._past_runs, run][-PAST_RUNS:]

    def _end_run(self, run: str) -> list[Action]:
        self._remember(run)
        self._call = self._decline = self._counted_in = None
        self._is_put_off = self._is_decline_due = False
        self.following.forget()
        self._outbox.clear()
        past = Persist(changes={PAST: records.pack(_Past(runs=tuple(self._past_runs)))}, is_urgent=False)
        return [*self._outbox.persist(is_urgent=False), past]

    def _say_decline(self, reason: str) -> list[Action]:
        doing = self._doing
        assert doing is not None
        call = doing.call
        self._rest()
        self._decline = Decline(run=call.run, round=call.round, reason=reason[:300])
        self._is_decline_due = not self.is_bridged
        said: list[Action] = [] if self._is_decline_due else [Send(message=self._decline)]
        declined = note("declined", run=call.run, round=round_text(call.round), reason=reason)
        return [*self._store_work(), *said, declined, *(self._leave() if self._moving_to is not None else [])]

    def _too_large(self, size: int) -> str:
        return f"the model has {size} bytes, this node takes {self.following.max_model}: raise max_model"

    def _upwards(self, actions: list[Action]) -> list[Action]:
        """Leave out what nobody above would hear."""
        if self.is_bridged:
            return actions
        return [
            action for action in actions if not (isinstance(action, Send) and isinstance(action.message, WantModel))
        ]

    @property
    def _state_name(self) -> StateName:
        return StateName.TRAINING if self.stage is Stage.WORKING else StateName.READY
