"""The machine that collects from below: the cloud, and the lower half of an edge.

    IDLE -open-> OPEN -quorum in-> GRACE -all in, or grace over-> IDLE   (gives the aggregate)
                 OPEN -deadline without quorum, no retry left-> IDLE     (missed)

A peer's misbehaviour never raises here: it becomes a refusal with its reason and a counted note.

What must outlive a crash is put down (`Persist`) before it is said; after one, `start` goes on with the open round.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from types import MappingProxyType

from hfl_mqtt.errors import Malformed, Misuse, Refused
from hfl_mqtt.protocol import messages, statements
from hfl_mqtt.protocol.blobs import Corrupted, Full, Keep, Reassembler, digest, in_memory
from hfl_mqtt.protocol.limits import (
    HOLD_S,
    MAX_CORRUPTED,
    MAX_HEAD,
    MAX_REASON,
    MAX_UNDER_WAY,
    SLOT_S,
    UNASKED,
    WINDOW,
)
from hfl_mqtt.protocol.messages import (
    AUTO,
    MOVING_EVERY_S,
    Announce,
    Buffer,
    Decline,
    Kind,
    Late,
    Manifest,
    Moving,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tier,
    UpdatePart,
    Want,
    WantModel,
    round_text,
)
from hfl_mqtt.protocol.statements import SIGNATURE_SIZE, unsealed
from hfl_mqtt.protocol.topics import is_child
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds import cohort, ladder
from hfl_mqtt.rounds.actions import Action, Note, Persist, Send, note
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.conduct import Bounds, Conduct
from hfl_mqtt.rounds.downlink import Downlink
from hfl_mqtt.rounds.ledger import Entry, Identity, Ledger
from hfl_mqtt.rounds.members import Member
from hfl_mqtt.rounds.open_round import REMIND_S, OpenRound, Outcome, most_moved
from hfl_mqtt.rounds.policy import Waiting, quorum_of
from hfl_mqtt.rounds.signing import Signer, shown, signed

MAX_REMIND_S = 60.0
#: While parts of an update keep arriving, a deadline moves on by this much; 256 KiB in this time are 70 kbit/s. For as
#: long a child is believed that says that parts keep coming at it.
PROGRESS_S = 30.0


#: Children of one aggregator; nobody else is heard.
MAX_CHILDREN = 2**16
#: Strangers, of whom nothing is known but a name, that have an allowance each; all others share one.
MAX_STRANGERS = 1024
#: Where the cards of children lie that were heard.
CARDS = "cards/"
#: What a node is given that has no former life.
NOTHING: Mapping[str, Buffer] = MappingProxyType({})

#: What an aggregator hears of its children.
FromChild = messages.Identity | State | Decline | UpdatePart | WantModel | Announce | Moving


def _announced(part: UpdatePart) -> Announce:
    """Return what would have announced the update of a part."""
    return Announce(run=part.run, round=part.round, base=part.base, blob=part.blob, size=part.size, count=part.count)


def _takes_late(call: RoundCall) -> bool:
    """Whether an update of an older round can join this one, or the one after it where it is closed."""
    return call.late is not Late.DROP and call.plan.kind is Kind.TRAIN and call.phase is not Phase.FINISHED


def _is_at(chain: Chain, call: RoundCall) -> bool:
    return chain.leads_to(call.model) and chain.keyframe.version == call.model.key


def codecs_of(codec: str) -> tuple[str, ...]:
    """Return the chains that an update may come in, where a call says `codec`."""
    return ladder.CODECS if codec == AUTO else (codec,)


class Aggregator:
    """Opens rounds for its children and adds up what they send.

    Args:
        path: this node's name; its children are the paths right below.
        arithmetic: the numbers.
        boot: how often this node has been started; goes into its calls.
        max_under_way: most bytes of updates that are under way at once, and at least one of them.
        keep: puts blobs away.
        saved: what its former life persisted, see `ledger`, `downlink` and `conduct`; other keys are passed over.
        signer: signs what it calls, and checks what its children send.
        bounds: how its children may behave.
    """

    def __init__(
        self,
        *,
        path: str,
        arithmetic: Arithmetic,
        boot: int = 0,
        max_under_way: int = MAX_UNDER_WAY,
        keep: Keep = in_memory,
        saved: Mapping[str, Buffer] = NOTHING,
        signer: Signer | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.path = path
        self.conduct = Conduct(bounds, saved)
        self._signer = signer
        #: How many updates were refused for what they hold, or by whom they are signed, and why the last one was.
        self.refused, self.refused_why = 0, ""
        self._boot = boot
        self._arithmetic = arithmetic
        self._max_under_way = max_under_way
        self._members: dict[str, Member] = {}
        self._strangers: set[str] = set()
        #: What children say of themselves whose cards have not come yet: what is retained comes in any order.
        self._unproven: dict[str, State] = {}
        self.downlink = Downlink(arithmetic, keep, saved, signer)
        self._ledger = Ledger(saved)
        self._learn_again(saved)
        self._saved = saved
        #: Updates that wait for a slot, in the order in which they were announced.
        self._waiting: dict[str, Announce] = {}
        self._is_close_told = True
        #: Whether what was said last may not have been heard: a crash came between the deed and the word.
        self._is_unsaid = False
        #: Since when our own link is down, so that no child can answer; the clock of the round stands still.
        self._lost_s: float | None = None
        self._last_call: RoundCall | None = None
        self._round: OpenRound | None = None
        self._updates = Reassembler(max_blob=1, max_total=1)
        #: The last refusal of each child.
        self._refusals: dict[str, Receipt] = {}
        self.outcome: Outcome | None = None

    def start(self, now: float) -> list[Action]:
        """Go on where a former life was: an open round is rebuilt from its call and its accepted updates.

        Those who were asked are taken as present until something else is heard; the deadline starts anew.
        """
        saved, self._saved = self._saved, NOTHING
        self.conduct.start(now)
        call, chain = self._ledger.call, self.downlink.chain
        unreadable = [*self.downlink.unreadable, *self._ledger.unreadable]
        actions: list[Action] = [note("unreadable", key=key) for key in unreadable]
        if call is None:
            return [*self._ledger.flush(), *self.downlink.flush(), *actions]
        if chain is None or (call.phase is Phase.OPEN and not _is_at(chain, call)):
            actions.append(note("unreadable", key="down/round", reason="its model is not here: the round is given up"))
            self._ledger.forget()
            return [*self._ledger.flush(), *self.downlink.flush(), *actions]
        if self._signer is not None and _is_at(chain, call):  # in a former life it may not have signed yet
            call = replace(call, model=self._manifest(chain))
        self._last_call, self._is_unsaid, self._lost_s = call, True, now
        if call.phase is Phase.OPEN:
            actions += self._reopen(call, saved, now)
        restored = self._ledger.restored()
        actions += [restored] if restored is not None else []
        if self._round is not None and self._round.has_quorum:
            self._round.waiting.quorum_in(now)
        return [*self._ledger.flush(), *self.downlink.flush(), *actions]

    def _reopen(self, call: RoundCall, saved: Mapping[str, Buffer], now: float) -> list[Action]:
        ledger, actions = self._ledger, list[Action]()
        ongoing = self._round = self._begin_round(call, ledger.tier, ledger.asked | ledger.entries.keys(), now)
        ongoing.asked -= {sender for sender in ongoing.asked if self.conduct.is_shunned(sender)} - ledger.entries.keys()
        for sender in ongoing.asked:
            self._members[sender] = Member(is_present=not self.conduct.is_shunned(sender))
        for sender, entry in sorted(ledger.entries.items()):
            blob = saved.get(f"down/update/{sender}", b"")
            try:
                if not digest(blob).startswith(entry.identity.blob):
                    raise Malformed("it is not what was accepted")
                body = unsealed(blob)[0] if entry.is_sealed else blob
                ongoing.count(unpack_update(body), sender, entry)
            except (Malformed, Refused) as error:
                ledger.give_up(sender)
                actions.append(note("unreadable", key=f"down/update/{sender}", reason=str(error)))
        if ledger.has_lost:  # whoever was accepted is to hear of it: what it has in its outbox comes again
            self._last_call = ongoing.call = replace(call, number=call.number + 1)
            ledger.call_again(ongoing.call)
        return actions

    # -------------------------------------------------------------- for the node above

    @property
    def present(self) -> list[str]:
        """The children that can be asked now."""
        return sorted(name for name, member in self._members.items() if member.is_present)

    @property
    def call(self) -> RoundCall | None:
        """The last call, with the phase that it came to."""
        return self._last_call

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
        if ongoing.hold_ends_s is not None and now >= ongoing.hold_ends_s:
            return None
        if self._is_moving_at_one(ongoing, now):
            return now - MOVING_EVERY_S  # at the least, else it would not have said so
        return now if self._updates.is_arriving(now, PROGRESS_S) else None

    @property
    def faults(self) -> dict[str, int | str]:
        """For the metrics how many updates were refused, and why the last one was; nothing where none was."""
        return {"refused": self.refused, "refused_why": self.refused_why} if self.refused else {}

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
        chain = self.downlink.chain
        if chain is None or self._round is not None:
            raise Misuse("open() needs an offered model and no open round")
        drawn = cohort.draw(seed, round_id, self.present, tier.fraction)
        asked = {name for name in self.present if cohort.is_asked(drawn, round_id, name)}
        _, room = self._bounds(tier.codec)
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
            model=self._manifest(chain),
            boot=self._boot,
            unasked=min(UNASKED, room // max(len(asked), 1)),
            budget=tier.budget if tier.codec == AUTO else None,
            # A round that came to nothing, called once more: whoever was accepted then is asked for another update.
            attempt=last.attempt + 1 if last is not None and is_anew else 0,
            late=tier.late,
            number=last.number + 1 if last is not None else 0,
        )
        # Whoever was accepted then, and did not hear of its close, would take it for the round that it has done.
        told = self.tell_close() if is_anew else []
        self._round = self._begin_round(call, tier, asked, now)
        self.conduct.called(run)
        self._last_call, self._is_close_told = call, True
        undone = self._ledger.open(call, tier, asked)
        opened = note("opened", run=run, round=round_text(round_id), kind=plan.kind.value, asked=len(asked))
        return [*self._ledger.flush(), *undone, *told, self._say(call), opened]

    def _bounds(self, codec: str) -> tuple[int, int]:
        """Return how many bytes an update can have, and all that are under way."""
        limit = self._arithmetic.update_limit(self.downlink.layout, codecs_of(codec)) + MAX_HEAD
        return limit, max(self._max_under_way, limit)

    def _begin_round(self, call: RoundCall, tier: Tier, asked: set[str], now: float) -> OpenRound:
        limit, room = self._bounds(tier.codec)
        self.conduct.largest = limit
        last = self._last_call
        is_of_use = call.late is not Late.DROP and last is not None and last.run == call.run
        if not is_of_use or self._updates.max_blob != limit:  # else parts that have come still serve
            self._updates = Reassembler(max_blob=limit, max_total=room, trailer=SIGNATURE_SIZE)
            self._waiting.clear()
        return OpenRound(
            call=call,
            waiting=Waiting.begin(tier, now),
            accumulator=self._arithmetic.accumulator(self.downlink.layout, codecs_of(tier.codec)),
            asked=asked,
            next_remind_s=now + REMIND_S,
            hold_at_most_s=self._hold_s(call, limit),
            most_moved=most_moved(call.plan, limit + self._arithmetic.model_size(self.downlink.layout)),
        )

    def _hold_s(self, call: RoundCall, limit: int) -> float:
        """Return how long children may put off the end of a round by what moves: enough for the slowest link."""
        size = limit + self._arithmetic.model_size(self.downlink.layout)
        return (HOLD_S + size / self.conduct.bounds.slowest_link) * prod(tier.rounds for tier in call.plan.tiers)

    def cancel(self, why: str) -> list[Action]:
        """Close an open round without a result."""
        if self._round is None:
            return []
        call = self._round.call
        ended, updates = self._end(is_counted=False)
        abandoned = note("abandoned", run=call.run, round=round_text(call.round), reason=why, updates=updates)
        return [*self._ledger.flush(), *ended, abandoned]

    def finish(self, run: str) -> list[Action]:
        """Tell the children that the run is over."""
        actions = self.cancel("the run is over")
        self._updates.clear()
        self._waiting.clear()
        if self._last_call is not None and self._last_call.run == run:
            self._last_call = replace(self._last_call, phase=Phase.FINISHED)
            self._ledger.finish(self._last_call)
            actions += [*self._ledger.flush(), self._say(self._last_call)]
        return actions

    def lost(self, now: float) -> None:
        """Take it that our own link is down: nobody can answer, so no deadline passes."""
        if self._lost_s is None:
            self._lost_s = now

    def connected(self, *, session_present: bool, now: float) -> list[Action]:
        """After a new session the broker may have lost what it retained; after our own start, what we said last."""
        if self._lost_s is not None and self._round is not None:
            self._round.waiting.stand_still(max(now - self._lost_s, 0.0))
            self._round.next_remind_s = now + REMIND_S
        self._lost_s = None
        is_unsaid, self._is_unsaid = self._is_unsaid, False
        if session_present:
            self.conduct.amnesty(now)
        elif self.conduct.shown.children:
            return [Send(message=self.conduct.shown), *self._say_again(session_present, is_unsaid)]
        return self._say_again(session_present, is_unsaid)

    def _say_again(self, session_present: bool, is_unsaid: bool) -> list[Action]:
        if self._last_call is None or (session_present and not is_unsaid):
            return []
        shown = self.downlink.show_newest() if session_present else self.downlink.show_again()
        return [*shown, self._say(self._last_call)]

    # -------------------------------------------------------------- from the children

    def hear(self, message: FromChild, sender: str, now: float) -> list[Action]:
        """Take a message of a child."""
        heard = self._hear(message, sender, now)
        return [*self._ledger.flush(), *heard]

    def judge(self, sender: str, size_bytes: int, now: float) -> list[Action] | None:
        """Look at who has sent something before it is read; returns what is done instead of hearing it, None to go on.

        Of a child in quarantine nothing is read: it costs no more than to be thrown away.
        """
        if not is_child(sender, self.path):
            return None
        if self.conduct.is_shunned(sender):
            return []
        charged = self._charged(sender)
        reason = self.conduct.charge(charged, size_bytes, now)
        if reason is None:
            return None
        return self._shun(sender, reason, now) if charged == sender else []

    def malformed(self, sender: str, reason: str, now: float) -> list[Action]:
        """Take it that a child said something that cannot be read."""
        if not is_child(sender, self.path):
            return []
        charged = self._charged(sender)
        too_much = self.conduct.charge_malformed(charged, reason, now)
        return [] if too_much is None or charged != sender else self._shun(sender, too_much, now)

    def _charged(self, sender: str) -> str:
        """Return by whose name a message is charged: names cost nothing to whoever makes them up, but us memory."""
        if sender in self._members or (self._signer is not None and self._signer.knows(sender)):
            self._strangers.discard(sender)
        elif sender not in self._strangers:
            if len(self._strangers) >= MAX_STRANGERS:
                return self.path
            self._strangers.add(sender)
        return sender

    def strike(self, sender: str, reason: str, now: float) -> list[Action]:
        """Hold it against a child that it sent, whole, what cannot be counted."""
        if self.conduct.is_shunned(sender) or not self.conduct.strike(sender, now):
            return []
        lies = f"{self.conduct.bounds.strikes} updates that cannot be counted, the last: {reason}"
        return self._shun(sender, lies, now)

    def _shun(self, sender: str, reason: str, now: float) -> list[Action]:
        """Hear nothing of a child for a while; it counts as not asked, but for what it has given already."""
        told, ongoing, member = self.conduct.shun(sender, reason, now), self._round, self._members.get(sender)
        self._updates.drop(sender)
        self._waiting.pop(sender, None)
        if member is not None:  # it is there again when it says so
            self._members[sender] = replace(member, is_present=False)
        if ongoing is not None and sender not in ongoing.accepted:
            ongoing.forget(sender)
        said = [Send(message=told, to=sender), Send(message=self.conduct.shown)]
        noted = note("quarantined", sender=sender, reason=told.reason, for_s=told.for_s)
        after = [*self._grant(now), *self._settle(now)]
        return [*self._ledger.flush(), *self.conduct.flush(), *said, noted, *after]

    def _hear(self, message: FromChild, sender: str, now: float) -> list[Action]:
        if not is_child(sender, self.path):
            return [note("stranger", sender=sender, said=type(message).__name__)]
        if isinstance(message, messages.Identity):
            return self._hear_identity(message, sender, now)
        if sender not in self._members and len(self._members) >= MAX_CHILDREN:
            return [note("too_many_children", sender=sender, at_most=MAX_CHILDREN)]
        if isinstance(message, State):
            return self._hear_state(message, sender, now)
        if isinstance(message, Decline):
            return self._hear_decline(message, sender, now)
        if isinstance(message, WantModel):
            return self._hear_want(message, sender, now)
        is_update = isinstance(message, Announce | UpdatePart)
        if is_update and self._signer is not None and not self._signer.knows(sender):
            return [note("unidentified", sender=sender)]  # it is probed for its receipt, and its card with that
        if isinstance(message, Announce):
            return self._hear_announce(message, sender, now)
        if isinstance(message, Moving):
            if self._round is not None and sender in self._round.asked:
                self._round.moving_s[sender] = now
            return []
        return self._hear_part(message, sender, now)

    def _hear_state(self, state: State, sender: str, now: float) -> list[Action]:
        member = self._members.get(sender)
        if member is None and self._signer is not None and not self._signer.knows(sender):
            return self._wait_for_card(state, sender)
        # A smaller boot in a will is an old session's; in a living node's word it is a device that was set up anew.
        if member is not None and state.boot < member.boot and not state.state.is_present:
            return [note("late_will", sender=sender, boot=state.boot)]
        was_present = member is not None and member.is_present
        known = self._members[sender] = Member.of(state, member)
        actions: list[Action] = []
        if member is not None and known.is_cloned(member):
            actions.append(note("cloned", sender=sender, boots=sorted((known.boot, member.boot)), times=known.returns))
        if state.state.is_present and not was_present:
            actions.append(note("joined", sender=sender, boot=state.boot))
            self._admit(sender)
            actions += [*self.tell_close(), *self._settle(now)]
        elif was_present and not state.state.is_present:
            left = "lost" if state.state is StateName.LOST else "left"
            self._waiting.pop(sender, None)
            if known.has_left or self._waiting:  # others wait for its slot
                self._updates.drop(sender)
                actions += self._grant(now)
            actions.append(note(left, sender=sender, boot=state.boot))
            actions += self._settle(now)
        return actions

    def _wait_for_card(self, state: State, sender: str) -> list[Action]:
        is_known = sender in self._unproven
        if not is_known and len(self._unproven) >= MAX_STRANGERS:
            return []  # it says once more that it is there
        self._unproven[sender] = state
        return [] if is_known else [note("unidentified", sender=sender)]

    def _hear_identity(self, shown: messages.Identity, sender: str, now: float) -> list[Action]:
        if self._signer is None:
            return []
        try:
            is_new = self._signer.learn(sender, shown.card)
        except Refused as error:
            return [note("identity_refused", sender=sender, reason=str(error))]
        kept = [Persist(changes={CARDS + sender: shown.card.encode()}, is_urgent=False)] if is_new else []
        state = self._unproven.pop(sender, None)
        return [*kept, *(self._hear(state, sender, now) if state is not None else [])]

    def _learn_again(self, saved: Mapping[str, Buffer]) -> None:
        """Take in the cards that a former life has heard: what waits at the broker comes before what it retains."""
        for key, card in saved.items():
            if self._signer is not None and key.startswith(CARDS):
                with suppress(Refused):  # it was revoked since, or is out of date
                    self._signer.learn(key.removeprefix(CARDS), bytes(card).decode(errors="replace"))

    def _admit(self, sender: str) -> None:
        ongoing = self._round
        if ongoing is not None and cohort.is_asked(ongoing.call.draw, ongoing.call.round, sender):
            self._ask(ongoing, sender)

    def _ask(self, ongoing: OpenRound, sender: str) -> None:
        """Take it that one more answers this round."""
        ongoing.asked.add(sender)
        # What is still in line when a will is said does not bring its sender back; its own word does.
        self._members.setdefault(sender, Member())
        self._ledger.ask(sender)

    def _hear_decline(self, decline: Decline, sender: str, now: float) -> list[Action]:
        ongoing = self._round
        if ongoing is None or (decline.run, decline.round) != (ongoing.call.run, ongoing.call.round):
            return [note("decline_out_of_place", sender=sender, round=round_text(decline.round))]
        if sender in ongoing.accepted or sender not in ongoing.asked:
            return [note("decline_out_of_place", sender=sender, round=round_text(decline.round))]
        if ongoing.declined.get(sender) == decline.reason:
            return []
        ongoing.declined[sender] = decline.reason
        said = ongoing.note("declined", sender=sender, reason=decline.reason)
        return [said, *self._settle(now)]

    def _hear_want(self, want: WantModel, sender: str, now: float) -> list[Action]:
        found = self.downlink.again(want, now)
        return found or [note("want_out_of_place", sender=sender, version=want.version)]

    def _hear_announce(self, announced: Announce, sender: str, now: float) -> list[Action]:
        answered = self._answered(announced, sender, now)
        if answered is not None:
            return answered
        if self._updates.is_open(sender, announced.blob):
            missing = self._updates.missing(sender, announced.blob)[:WINDOW]
            return [Send(message=Want(blob=announced.blob, parts=missing), to=sender)]
        return self._stand_in_line(announced, sender, now)

    def _answered(self, said: UpdatePart | Announce, sender: str, now: float) -> list[Action] | None:
        """Answer what needs no further parts: it counted, it cannot count, or not yet. None where it may count now."""
        ongoing = self._round
        counted = self._ledger.find(sender, said)
        if counted is not None:
            return self._once(said, sender, counted.receipt, self._note_of(said, "duplicate", sender))
        if ongoing is not None and ongoing.refused_blobs.get(sender) == said.blob:
            return self._once(said, sender, self._refusals[sender], self._note_of(said, "duplicate", sender))
        if ongoing is None or (said.run, said.round) != (ongoing.call.run, ongoing.call.round):
            out_of_place = self._out_of_place(said, sender)
            if out_of_place is not None:
                return out_of_place
            assert ongoing is not None
        elif sender in ongoing.accepted and ongoing.call.late is not Late.DROP:
            return [self._note_of(said, "held", sender)]  # a late one was its answer: this one is the next
        else:
            reason = self._why_not(said, sender)
            if reason is not None:
                return self._refuse(said, sender, reason, now, is_fault=False)
        self._ask(ongoing, sender)
        objection = self._signer.objection(sender) if self._signer is not None else None
        return self._refuse(said, sender, objection, now) if objection is not None else None

    @staticmethod
    def _once(said: UpdatePart | Announce, sender: str, receipt: Receipt, told: Note) -> list[Action]:
        """Answer an update once, not with each of its parts."""
        if isinstance(said, UpdatePart) and said.index != 0:
            return [told]
        return [Send(message=receipt, to=sender), told]

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
                if not self._take_slots_back(now):
                    break
                continue
            except Malformed as error:
                del self._waiting[sender]
                actions += [*self._refuse(announced, sender, str(error), now), *self.strike(sender, str(error), now)]
                continue
            del self._waiting[sender]
            actions.append(Send(message=Want(blob=announced.blob, parts=parts), to=sender))
        return actions

    def _take_slots_back(self, now: float) -> bool:
        """Take the slots of children that are gone, or slower than any link is; returns whether there were any."""
        gone = {sender for sender in self._updates.senders if not self._members[sender].is_present}
        gone |= self._updates.slow(now, SLOT_S, self.conduct.bounds.slowest_link)
        for sender in gone:
            self._updates.drop(sender)
        return bool(gone)

    def _why_not(self, said: UpdatePart | Announce, sender: str) -> str | None:
        """Return why an update cannot count in this round, whatever it holds."""
        ongoing = self._round
        assert ongoing is not None
        if not cohort.is_asked(ongoing.call.draw, ongoing.call.round, sender):
            return "not asked in this round"
        if said.base != ongoing.call.model.base:
            return "foreign base: this update starts from another model"
        return None

    def _hear_part(self, part: UpdatePart, sender: str, now: float) -> list[Action]:
        answered = self._answered(part, sender, now)
        if answered is not None:
            return answered
        try:
            progress = self._updates.add(sender, part, now)
        except Full as error:  # it stands in line as if it had announced itself
            no_room = note("no_room", sender=sender, run=part.run, round=round_text(part.round), reason=str(error))
            return [no_room, *self._stand_in_line(_announced(part), sender, now)]
        except Corrupted as error:  # what it took to learn it is not thrown away for a bit that fell over
            return self._ask_again(part, sender, str(error), now)
        except Malformed as error:  # or a bit has fallen over on its way
            return [*self._refuse(part, sender, str(error), now), *self.malformed(sender, str(error), now)]
        self._waiting.pop(sender, None)
        if progress.is_new:
            self.conduct.was_of_use(sender)
        if progress.ask:
            return [Send(message=Want(blob=part.blob, parts=progress.ask), to=sender)]
        if progress.blob is None:
            return []
        try:
            counted = self._add(progress.blob, progress.body_digest, part, sender)
        except (Malformed, Refused) as error:
            assert self._round is not None
            is_relayed = self._round.is_relayed(error)
            refused = self._refuse(part, sender, str(error), now)
            return refused if is_relayed else [*refused, *self.strike(sender, str(error), now)]
        del progress  # it may be as large as the model, and the round may close now
        return [*counted, *self._settle(now), *self._grant(now)]

    def _add(self, blob: Buffer, body_digest: bytes, part: UpdatePart, sender: str) -> list[Action]:
        """Count an update, and put it down before its receipt is sent."""
        ongoing = self._round
        assert ongoing is not None
        call, tier = ongoing.call, ongoing.waiting.tier
        staleness, share = 0, 1.0
        is_late = part.round != call.round
        if is_late:
            staleness = self._ledger.staleness(sender, part) or 0
            share = (1 + staleness) ** -tier.staleness_exponent if call.late is Late.DISCOUNT else 1.0
        is_sealed = self._signer is not None
        entry = Entry(identity=Identity.of(part, call.round), staleness=staleness, share=share, is_sealed=is_sealed)
        update = unpack_update(self._checked(blob, body_digest, part, sender))
        norm = ongoing.count(update, sender, entry, self.conduct)
        self.conduct.counted(sender, norm, update.weight)
        self._ledger.take(sender, entry, blob)
        self._refusals.pop(sender, None)
        accepted = ongoing.note(
            "accepted",
            sender=sender,
            kind=call.plan.kind.value,
            weight=update.weight,
            bytes=len(update.payload),
            sent=update.sent,
            received=update.received,
            update=part.blob[:16],
            of=round_text(part.round),
            base=part.base,
            **({"late": True, "staleness": staleness, "share": round(share, 4)} if is_late else {}),
        )
        return [Send(message=entry.identity.receipt, to=sender), accepted]

    def _checked(self, blob: Buffer, body_digest: bytes, part: UpdatePart, sender: str) -> Buffer:
        """Return the body of an update that its sender has signed, for this very round and base."""
        signer = self._signer
        if signer is None:
            return blob
        body, signature = unsealed(blob)
        stated = (part.run, part.round, sender, part.base)
        signer.check(sender, statements.of_update(signer.federation, *stated, body_digest), signature)
        return body

    def _refuse(
        self, part: UpdatePart | Announce, sender: str, reason: str, now: float, *, is_fault: bool = True
    ) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        if is_fault:
            self.refused, self.refused_why = self.refused + 1, f"{sender}: {reason}"[:MAX_REASON]
        self._updates.drop(sender, part.blob)
        self._refusals[sender] = self._refusal(part, reason)
        ongoing.refused_blobs[sender] = part.blob
        is_its_answer = part.round == ongoing.call.round and sender not in ongoing.accepted
        if sender in ongoing.asked and is_its_answer:  # who is refused a late one answers the call with another
            ongoing.declined[sender] = f"refused: {reason}"
        refused = ongoing.note("refused", sender=sender, reason=reason)
        self._waiting.pop(sender, None)
        return [Send(message=self._refusals[sender], to=sender), refused, *self._grant(now), *self._settle(now)]

    def _ask_again(self, part: UpdatePart, sender: str, reason: str, now: float) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        ongoing.corrupted[sender] = ongoing.corrupted.get(sender, 0) + 1
        if ongoing.corrupted[sender] > MAX_CORRUPTED:
            return self._refuse(part, sender, reason, now)
        corrupted = ongoing.note("corrupted", sender=sender, reason=reason, update=part.blob)
        return [corrupted, *self._stand_in_line(_announced(part), sender, now)]

    @staticmethod
    def _refusal(said: UpdatePart | Announce, reason: str) -> Receipt:
        return Receipt(run=said.run, round=said.round, base=said.base, accepted=False, reason=reason[:300])

    def _out_of_place(self, said: UpdatePart | Announce, sender: str) -> list[Action] | None:
        """Answer an update of a round that is not open; None where it joins the one that is."""
        late = self._note_of(said, "late", sender)
        given = self._refusals.get(sender)
        if given is not None and (given.run, given.round, given.base) == (said.run, said.round, said.base):
            return self._once(said, sender, given, late)
        call = self._last_call
        if call is None:  # a standby that leads now, or a lost disk: its predecessor's round may open again
            return [self._note_of(said, "held", sender)]
        if said.run != call.run or not _takes_late(call):
            reason = f"too late: {round_text(said.round)} is closed"
            return self._once(said, sender, self._refusal(said, reason), late)
        staleness = self._ledger.staleness(sender, said)
        if staleness is None or staleness > self._ledger.tier.max_staleness:
            at_most = self._ledger.tier.max_staleness
            reason = (
                f"too old: {round_text(said.round)} is none of the {at_most} rounds before {round_text(call.round)}"
            )
            return self._once(said, sender, self._refusal(said, reason), late)
        if self._round is None or sender in self._round.accepted:
            return [self._note_of(said, "held", sender)]  # it comes again with the next call, and joins that
        return None

    # -------------------------------------------------------------- time

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for: remind, ask for missing parts, extend, close."""
        released = self._release(now)
        ticked = self._tick(now)
        return [*self._ledger.flush(), *self.conduct.flush(), *released, *ticked]

    def _release(self, now: float) -> list[Action]:
        over = self.conduct.release(now)
        if not over:
            return []
        return [Send(message=self.conduct.shown), *(note("released", sender=sender) for sender in over)]

    def _tick(self, now: float) -> list[Action]:
        ongoing = self._round
        if ongoing is None or self._lost_s is not None:
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
            if not all(self._members[name].is_training for name in self._awaited(ongoing)):
                actions += [*shown(self._signer), self._say(ongoing.call)]
        return actions

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if self._round is None or self._lost_s is not None:
            return self.conduct.next_release_s
        round_s = (self._round.waiting.next_s, self._round.next_remind_s, self._updates.next_deadline)
        return min(moment for moment in (*round_s, self.conduct.next_release_s) if moment is not None)

    def _time_is_up(self, ongoing: OpenRound, now: float) -> list[Action]:
        if ongoing.has_quorum:
            is_held_up = not ongoing.stood_in_line.isdisjoint(self._awaited(ongoing))
            if is_held_up and self._updates.is_arriving(now, PROGRESS_S) and ongoing.may_hold(now):
                ongoing.waiting.more_grace(now)
                return []
            return self._close(now)
        if self._updates.is_arriving(now, PROGRESS_S) and ongoing.may_hold(now):
            ongoing.waiting.extend(now, by_s=PROGRESS_S)
            return []
        if self._is_moving_at_one(ongoing, now) and ongoing.may_hold(now):
            # Whose model comes late has as long to work on it as the others had.
            ongoing.waiting.extend(now, by_s=max(PROGRESS_S, ongoing.call.open_for_s))
            return []
        if ongoing.waiting.extend(now):
            missed = ongoing.note(
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
            self._ledger.call_again(ongoing.call)
            return [missed, self._say(ongoing.call)]
        return self._close(now)

    # -------------------------------------------------------------- inside

    def _awaited(self, ongoing: OpenRound) -> set[str]:
        present = {name for name in ongoing.asked if self._members[name].is_present}
        return present - ongoing.accepted.keys() - ongoing.declined.keys()

    def _is_moving_at_one(self, ongoing: OpenRound, now: float) -> bool:
        """Whether a child that is waited for said a moment ago that parts keep coming at it."""
        recent = {name for name, at_s in ongoing.moving_s.items() if now - at_s <= PROGRESS_S}
        return not recent.isdisjoint(self._awaited(ongoing))

    def _is_answered(self, ongoing: OpenRound) -> bool:
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
        return self._time_is_up(ongoing, now) if now >= ongoing.waiting.next_s else []

    def _close(self, now: float) -> list[Action]:
        ongoing = self._round
        assert ongoing is not None
        call = ongoing.call
        is_missed = not ongoing.has_quorum
        # The next call says as much as this one's close; where all have answered, nobody needs to hear it before.
        told, updates = self._end(is_quiet=ongoing.asked <= ongoing.accepted.keys(), is_counted=not is_missed)
        step = None
        if not is_missed and call.plan.kind is Kind.TRAIN:
            step = self._arithmetic.step(ongoing.accumulator)
        self.outcome = outcome = ongoing.outcome(step, now)
        closed = ongoing.note(
            "missed" if is_missed else "closed",
            kind=outcome.kind.value,
            accepted=len(outcome.accepted),
            asked=len(ongoing.asked),
            quorum=ongoing.quorum,
            samples=sum(outcome.accepted.values()),
            waited_for=outcome.waited_for(),
            seconds=round(outcome.seconds, 3),
            updates=updates,
        )
        return [*told, closed]

    def _end(self, *, is_counted: bool, is_quiet: bool = False) -> tuple[list[Action], dict[str, str]]:
        """End the round; returns what the children are told, and which updates were in it."""
        ongoing = self._round
        assert ongoing is not None
        self._round = None
        if ongoing.call.late is Late.DROP:
            self._updates.clear()
            self._waiting.clear()
        self._last_call, self._is_close_told = replace(ongoing.call, phase=Phase.CLOSED), False
        updates = self._ledger.close(self._last_call, is_counted=is_counted)
        return [] if is_quiet else self.tell_close(), updates

    def tell_close(self) -> list[Action]:
        """Say that the last round is closed, where that was not said: whoever comes now would begin to work for it.

        Only where no next call follows, which says as much.
        """
        if self._is_close_told or self._last_call is None:
            return []
        self._is_close_told = True
        return [self._say(self._last_call)]

    def _say(self, call: RoundCall) -> Send:
        return Send(message=signed(self._signer, call))

    def _manifest(self, chain: Chain) -> Manifest:
        """Return what a call says of the model: where it is signed, by the whole digest."""
        return chain.manifest if self._signer is None else replace(chain.manifest, digest=chain.digest)

    @staticmethod
    def _note_of(said: UpdatePart | Announce, event: str, sender: str) -> Note:
        return note(event, sender=sender, run=said.run, round=round_text(said.round))
