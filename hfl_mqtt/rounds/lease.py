"""Who speaks for a place that several processes could speak for: an edge and its standbys, one at a time.

A lease lies retained on the place's own path. Its holder renews it, and believes in it only as long as it hears its
own words come back: by its own clock it falls silent before anybody else may claim. Whoever hears no renewal for long
enough claims a higher epoch, and leads once it has heard itself and nobody above it. The epoch is the leader's boot, so
what an old leader may still have had under way is out of date wherever it arrives.

    STANDBY  -no lease, or it is over-> claims -own claim heard, nobody else's lease runs-> LEADS
    LEADS    -own words do not come back in time, or a higher epoch is heard-> STANDBY, silent at once

Epochs grow by the rule of `next_epoch`, so that no two holders ever lead under the same one, though a message that was
delayed may overwrite a newer lease and let a newcomer believe that an epoch is free.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf

from hfl_mqtt.protocol.messages import Buffer, Lease, State, StateName
from hfl_mqtt.rounds import records
from hfl_mqtt.rounds.actions import Action, Bridged, Connected, Event, Lost, Persist, Received, Reconnect, Send, note
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.rounds.signing import Signer

#: How long to listen for a lease after connecting, and how much longer than its time to wait for its renewal: so long
#: or, so that several do not claim at the same moment, down to half of it.
SETTLE_S = 2.0
#: A lease is renewed so many times in its own time.
_RENEWALS = 3
#: Holders have numbers below this one; the rest of an epoch counts the changes of leader.
_NUMBERS = 1000
#: Above this nobody's epoch is: what says so is damaged.
_MAX_EPOCH = 2**52
#: One word raises what is known of epochs by so much at most: no place changes its leader four million times unheard,
#: and no boot is above the seconds since 1970. A lease may say twice as much: its holder may have heard such a word.
_MAX_LEAP = 2**32
_MEMORY = "lease/memory"


def number_of(holder: str) -> int:
    """Return the number that stands at the end of all epochs of a holder."""
    return zlib.crc32(holder.encode()) % _NUMBERS


def next_epoch(known: int, holder: str) -> int:
    """Return the epoch that a holder claims where `known` is the highest it has heard of.

    >>> number_of("box-1"), next_epoch(0, "box-1"), next_epoch(3999, "box-1")
    (120, 1120, 4120)
    """
    return (known // _NUMBERS + 1) * _NUMBERS + number_of(holder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a holder keeps for its next life: the highest epochs that it claimed, led under, and heard of others."""

    claimed: int = 0
    led: int = 0
    foreign: int = 0


class Leased(Node):
    """A node that leads or stands by: while it leads, `node` is the real one, made anew each time.

    Args:
        path: the place's name.
        holder: this process's name among those of the place.
        for_s: how long its lease lasts unless it is renewed.
        make: makes the real node of an epoch and of what it persisted; nothing where another led in between, for then
            that is out of date.
        saved: reads what this process has persisted so far.
        settle_s: see `SETTLE_S`.
        signer: the real node's.
    """

    def __init__(
        self,
        *,
        path: str,
        holder: str,
        for_s: float,
        make: Callable[[int, Mapping[str, Buffer]], Node],
        saved: Callable[[], Mapping[str, Buffer]],
        settle_s: float = SETTLE_S,
        signer: Signer | None = None,
    ) -> None:
        super().__init__(path, 0, signer)
        self.holder = holder
        self._for_s = for_s
        self._settle_s = settle_s * (1 + number_of(holder) / _NUMBERS) / 2
        self._make, self._saved = make, saved
        #: The real node, while this one leads.
        self.node: Node | None = None
        #: Told of each real node before it is asked anything.
        self.on_lead: Callable[[Node], None] = lambda _node: None
        self._memory = records.read(Memory, saved().get(_MEMORY)) or Memory()
        self._known = max(self._memory.claimed, self._memory.foreign)
        #: Whether this life has not claimed yet: a lease of our own is a former life's, and nobody's any more.
        self._is_fresh = True
        #: The number of another holder's name is ours: then this one stands by for ever.
        self._twin: str | None = None
        self._is_up = False
        #: When nobody else's lease can run any more.
        self._free_s = inf
        #: The epoch that we claim or lead under, 0 where neither; until when we may believe in it.
        self._epoch = 0
        self._valid_s = -inf
        self._renew_s = inf
        self._beat = 0
        self._sent_s: dict[int, float] = {}
        #: While the real node waits for our lease to be confirmed on a new connection: its greeting, and what came.
        self._hello: Connected | None = None
        self._is_confirmed = False
        self._before: list[Event] = []
        self._said: Send | None = None

    @property
    def client_id(self) -> str:
        """The name of its session at the broker: the place's, and its own."""
        return f"{self.path}@{self.holder}"

    @property
    def session_at_most_s(self) -> float | None:
        """No longer than another would wait: for who does not lead any more, a farm's updates would pile up there."""
        return self._for_s if self.node is not None else 0.0

    @property
    def may_speak(self) -> bool:
        """Whether it leads, and that was confirmed on this connection."""
        return self._is_confirmed

    def has_expired(self, now: float) -> bool:
        """Whether its lease has run out, and it has not seen that yet."""
        return self.node is not None and now >= self._valid_s

    @property
    def will(self) -> State | None:
        """What the broker says when it is gone: of a standby nothing, for the place is not lost with it."""
        return self.node.will if self.node is not None else None

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin: stand by."""
        return [note("stands_by", holder=self.holder)]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event, unless the clock says first that the lease is over."""
        over = self._look(now)
        if over:  # and the event was the old connection's
            return over
        if isinstance(event, Connected):
            return self._connected(event, now)
        if isinstance(event, Lost):
            return self._lost(event, now)
        if isinstance(event, Received) and event.sender == self.path:
            if isinstance(event.message, Lease):
                return self._hear_lease(event.message, now)
            if isinstance(event.message, State):
                return self._hear_state(event.message)
        if self.node is None:
            return []
        if not self._is_confirmed:
            if isinstance(event, Received | Bridged):
                self._before.append(event)
            return []
        return self._through(self.node.handle(event, now))

    def judge(self, sender: str, size_bytes: int, now: float) -> list[Action] | None:
        """Look at a child before what it sent is read; see `Node.judge`. A standby hears nothing of them anyway."""
        if self.node is None or not self._is_confirmed or self.has_expired(now):
            return None
        found = self.node.judge(sender, size_bytes, now)
        return self._through(found) if found else found

    def malformed(self, sender: str, reason: str, now: float) -> list[Action]:
        """Hold it against a child that it said what cannot be read."""
        if self.node is None or not self._is_confirmed or self.has_expired(now):
            return []
        return self._through(self.node.malformed(sender, reason, now))

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for: step down, claim, renew, and what the real node has to do."""
        actions = self._look(now)
        if self._is_up:
            if not self._epoch and self._twin is None and now >= self._free_s:
                actions += self._claim(now)
            elif self._epoch and now >= self._renew_s:
                actions += self._renew(now)
            actions += self._lead_if_free(now)
        if self.node is not None and self._is_confirmed:
            actions += self._through(self.node.tick(now))
        return actions

    def leave(self) -> list[Action]:
        """Leave on purpose: whoever stands by may lead at once."""
        if self.node is None or not self._is_confirmed:
            return []
        self._beat += 1
        released = Lease(epoch=self._epoch, holder=self.holder, for_s=0, beat=self._beat)
        return [*self.node.leave(), Send(message=released)]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        moments: list[float | None] = []
        if self.node is not None:
            moments.append(self._valid_s)
            if self._is_confirmed:
                moments.append(self.node.next_deadline)
        if self._is_up:
            moments.append(self._renew_s if self._epoch else None)
            is_waiting = self.node is None and self._twin is None and (not self._epoch or self._is_heard)
            moments.append(self._free_s if is_waiting else None)
        return min((moment for moment in moments if moment is not None and moment < inf), default=None)

    # -------------------------------------------------------------- the link

    def _connected(self, event: Connected, now: float) -> list[Action]:
        self._is_up = True
        self._sent_s.clear()
        if self.node is None:  # what is retained comes first of all, and says whose lease runs
            self._free_s = now + self._settle_s
            return []
        # Not a word before our own lease has come back: another may have claimed meanwhile.
        self._hello, self._is_confirmed = event, False
        self._before.clear()
        return self._renew(now)

    def _lost(self, event: Lost, now: float) -> list[Action]:
        self._is_up = False
        if self.node is None:
            self._epoch = 0  # of what is said while we do not listen, we would hear only the last
            return []
        was_confirmed, self._is_confirmed = self._is_confirmed, False
        self._before.clear()
        return self._through(self.node.handle(event, now)) if was_confirmed else []

    # -------------------------------------------------------------- what is heard

    def _hear_lease(self, lease: Lease, now: float) -> list[Action]:
        is_ours = lease.holder == self.holder
        if is_ours and lease.epoch == self._epoch:
            return self._hear_own(lease, now)
        if lease.epoch > _MAX_EPOCH:
            return [note("epoch_out_of_range", epoch=lease.epoch)]
        if lease.epoch > self._known + 2 * _MAX_LEAP:
            # It may be a lie, so it is not remembered; it may be true, so nobody leads beside it.
            self._free_s = now + (lease.for_s + self._settle_s if lease.for_s else 0.0)
            told = note("epoch_out_of_range", epoch=lease.epoch)
            return [told, *self._give_up(f"{lease.holder} leads under {lease.epoch}")]
        if not self._epoch and lease.epoch < max(self._memory.foreign, self._memory.led):
            # An old word that lies on a newer one. Should somebody lead under it who does not know better, the place
            # goes unheard below that epoch: we claim above it.
            return []
        self._known = max(self._known, lease.epoch)
        if is_ours and self._is_fresh and lease.epoch <= self._memory.claimed:
            lasts_s = self._settle_s if lease.for_s else 0.0
        else:
            lasts_s = lease.for_s + self._settle_s if lease.for_s else 0.0
        actions: list[Action] = []
        if not is_ours:
            actions += self._remember(lease.epoch)
            if number_of(lease.holder) == number_of(self.holder) and self._twin is None:
                self._twin = lease.holder
                advice = "their epochs could be the same: this one stands by for ever; rename one holder"
                actions.append(note("holders_clash", holder=self.holder, other=lease.holder, reason=advice))
        if lease.epoch > self._epoch:
            self._free_s = now + lasts_s
            return actions + self._give_up(f"{lease.holder} leads under {lease.epoch}")
        if self.node is not None:  # an older word came late and lies on ours
            return actions + (self._renew(now) if self._is_up else [])
        self._free_s = max(self._free_s, now + lasts_s)
        return actions

    def _hear_own(self, lease: Lease, now: float) -> list[Action]:
        sent_s = self._sent_s.pop(lease.beat, None)
        if sent_s is None:
            return []
        self._sent_s = {beat: at_s for beat, at_s in self._sent_s.items() if beat > lease.beat}
        self._valid_s = max(self._valid_s, sent_s + self._for_s)
        if self.node is None:
            return self._lead_if_free(now)
        if now >= self._valid_s:
            return self._look(now)
        hello, self._hello = self._hello, None
        if hello is None:
            return []
        self._is_confirmed = True
        actions = self._through(self.node.handle(hello, now))
        before, self._before = self._before, []
        for event in before:
            actions += self._through(self.node.handle(event, now))
        return actions

    def _hear_state(self, state: State) -> list[Action]:
        """Take what was last said of the place: it tells of epochs, and a late will must not bury what lives."""
        if state.boot > self._known + _MAX_LEAP:
            return [note("epoch_out_of_range", epoch=state.boot), *self._say_again()]
        if state.boot > self._epoch:
            self._known = max(self._known, state.boot)
            heard = self._remember(state.boot) if state.boot > self._memory.claimed else []
            return heard + (self._give_up(f"somebody spoke under {state.boot}") if self._epoch else [])
        is_late = state.boot < self._epoch or state.state is StateName.LOST
        return self._say_again() if is_late else []

    def _say_again(self) -> list[Action]:
        return [self._said] if self._is_confirmed and self._said is not None else []

    def _remember(self, epoch: int) -> list[Action]:
        """Remember another's epoch: what the broker retains of it may be overwritten by an older one's late word."""
        if epoch <= self._memory.foreign:
            return []
        self._memory = replace(self._memory, foreign=epoch)
        # A standby commits nothing else that this could go with; who leads must step down whatever its disk says.
        return [Persist(changes={_MEMORY: records.pack(self._memory)}, is_urgent=self.node is None)]

    # -------------------------------------------------------------- the lease

    def _claim(self, now: float) -> list[Action]:
        self._epoch = self._known = next_epoch(self._known, self.holder)
        self._is_fresh = False
        self._valid_s = -inf
        self._memory = replace(self._memory, claimed=self._epoch)
        return [Persist(changes={_MEMORY: records.pack(self._memory)}), *self._renew(now)]

    def _renew(self, now: float) -> list[Action]:
        self._beat += 1
        self._sent_s[self._beat] = now
        self._renew_s = now + self._for_s / _RENEWALS
        return [Send(message=Lease(epoch=self._epoch, holder=self.holder, for_s=self._for_s, beat=self._beat))]

    @property
    def _is_heard(self) -> bool:
        """Whether our claim has come back."""
        return self._valid_s > -inf

    def _lead_if_free(self, now: float) -> list[Action]:
        if self.node is not None or not self._epoch:
            return []
        if now >= self._valid_s:
            self._valid_s = -inf  # the claim's next renewal may come back in time
        if not self._free_s <= now < self._valid_s:
            return []
        memory, saved = self._memory, dict(self._saved())
        changes: dict[str, Buffer | None] = {}
        if memory.foreign >= memory.led:  # another led meanwhile: what we know of the farm is out of date
            changes = {key: None for key in saved if key != _MEMORY}
            saved = {}
        self._memory = replace(memory, led=self._epoch)
        changes[_MEMORY] = records.pack(self._memory)
        self.boot, self._said = self._epoch, None
        self.node = self._make(self._epoch, saved)
        self.on_lead(self.node)
        leads = note("leads", epoch=self._epoch, holder=self.holder)
        return [Persist(changes=changes), leads, *self._through(self.node.start(now)), *self._reconnect()]

    def _look(self, now: float) -> list[Action]:
        """Look at the clock before anything else."""
        if self.node is None or now < self._valid_s:
            return []
        return self._give_up(f"its lease was not renewed for {self._for_s:g} s")

    def _give_up(self, why: str) -> list[Action]:
        """Claim or lead no more; of what the real node was about to say nothing goes out any more."""
        epoch, self._epoch = self._epoch, 0
        if self.node is None:
            return []
        self.node, self._said, self._hello, self._is_confirmed = None, None, None, False
        self._before.clear()
        self.boot = 0
        return [note("steps_down", epoch=epoch, holder=self.holder, reason=why), *self._reconnect()]

    def _reconnect(self) -> list[Action]:
        self._is_up, self._is_confirmed = False, False
        self._free_s = inf
        return [Reconnect()]

    def _through(self, actions: list[Action]) -> list[Action]:
        """Let the real node's actions out, and remember which state it said last."""
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, State):
                self._said = action
        return actions
