"""Which updates were accepted, durably: the open round, what came in for it, and the last few identities of each child.

An update is put down here before its receipt is sent, and its identity is known for some rounds after: one that is
sent again is answered again, and never counted twice, also after restarts. All of it is bounded by the children, their
updates of one round, and the rounds that an update may be late by.

    down/round              the call as it was sent, who was asked, and the rounds before
    down/asked/SENDER       who was asked since
    down/accepted/SENDER    what the update answers, and how it counts
    down/update/SENDER      the update, until its round is closed
    down/receipts/SENDER    the identities
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hfl_mqtt.protocol.messages import (
    Announce,
    Buffer,
    Phase,
    Receipt,
    RoundCall,
    RoundId,
    RunId,
    ShortDigest,
    Tier,
    UpdatePart,
    round_text,
)
from hfl_mqtt.rounds.actions import Note, Persist, note
from hfl_mqtt.rounds.records import pack, read

#: Identities that are known of each child.
KNOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What an update answers. Whatever says the same run, round and base is the same update, though its bytes differ:
    who lost its disk may have worked once more."""

    run: RunId
    round: RoundId
    base: ShortDigest
    blob: ShortDigest
    #: The round in which it counts: its own, or where it came late, a later one.
    counts_in: RoundId

    @classmethod
    def of(cls, said: UpdatePart | Announce, counts_in: tuple[int, ...]) -> Identity:
        """Return the identity of an update by one of its parts."""
        return cls(run=said.run, round=said.round, base=said.base, blob=said.blob, counts_in=counts_in)

    @property
    def receipt(self) -> Receipt:
        """What its sender is told."""
        joined = self.counts_in if self.counts_in != self.round else None
        return Receipt(run=self.run, round=self.round, base=self.base, joined=joined)

    def is_of(self, said: UpdatePart | Announce) -> bool:
        """Whether this is the update that a part belongs to."""
        return (self.run, self.round, self.base) == (said.run, said.round, said.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An update of the open round: its identity, how many rounds it is late, and how much of it counts."""

    identity: Identity
    staleness: int = 0
    share: float = 1.0
    #: Whether its blob ends with a signature, which was checked when it came.
    is_sealed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    call: RoundCall
    tier: Tier
    asked: tuple[str, ...]
    #: The last rounds of the run that were opened, the newest last.
    rounds: tuple[tuple[int, ...], ...]
    #: The last round that was closed, and the first digits of what was in it.
    closed_round: tuple[int, ...] = ()
    closed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipts:
    """The identities of one child, as short as can be: they are written with every update."""

    run: str
    #: Round, base, blob, and the round in which it counts.
    known: tuple[tuple[RoundId, ShortDigest, ShortDigest, RoundId], ...]
    #: Updates of rounds before this one may have counted, and their identities be forgotten.
    floor: tuple[int, ...] = ()

    @classmethod
    def of(cls, identities: tuple[Identity, ...], floor: tuple[int, ...]) -> _Receipts:
        known = tuple((one.round, one.base, one.blob, one.counts_in) for one in identities)
        return cls(run=identities[0].run if identities else "", known=known, floor=floor)

    @property
    def identities(self) -> tuple[Identity, ...]:
        return tuple(
            Identity(run=self.run, round=round_id, base=base, blob=blob, counts_in=counts_in)
            for round_id, base, blob, counts_in in self.known
        )


class Ledger:
    """What an aggregator knows of updates, and puts down for its next life.

    Args:
        saved: what its former life put down.
    """

    def __init__(self, saved: Mapping[str, Buffer]) -> None:
        #: The updates of the open round by sender.
        self.entries: dict[str, Entry] = {}
        self._known: dict[str, tuple[Identity, ...]] = {}
        #: Before which round what counted may be known no more.
        self._floors: dict[str, tuple[int, ...]] = {}
        self._changes: dict[str, Buffer | None] = {}
        self._is_urgent = False
        self._opened = read(_Opened, saved.get("down/round"))
        self._joined: set[str] = set()
        #: What was saved and cannot be read; whether an update of the open round is gone with it.
        self.unreadable: list[str] = []
        self.has_lost = False
        self._restore(saved)
        if self.call is not None and self.call.phase is Phase.OPEN:
            self._compare(self.call.round)

    def _restore(self, saved: Mapping[str, Buffer]) -> None:
        if "down/round" in saved and self._opened is None:
            self.unreadable.append("down/round")
            self._changes["down/round"] = None
        is_open = self.call is not None and self.call.phase is Phase.OPEN
        ours = {key: data for key, data in saved.items() if key.startswith("down/")}
        for key, data in ours.items():
            _, part, sender = [*key.split("/", 2), ""][:3]
            if part == "receipts" and self._opened is None:
                self._changes[key] = None  # what counted in a round that nobody knows is asked for again
            elif part == "receipts" and (receipts := read(_Receipts, data)) is not None:
                self._known[sender], self._floors[sender] = receipts.identities, receipts.floor
            elif part == "receipts":
                self.unreadable.append(key)
                self._changes[key] = None
            elif part == "accepted" and is_open and (entry := read(Entry, data)) is not None:
                self.entries[sender] = entry
            elif part == "asked" and is_open:
                self._joined.add(sender)
            elif part not in ("round", "update"):
                self._changes[key] = None
        used = {f"down/update/{sender}" for sender in self.entries}
        self._changes.update({key: None for key in ours if key.startswith("down/update/") and key not in used})

    def _compare(self, open_round: tuple[int, ...]) -> None:
        """Of what a disk has damaged, let what counts be known, and what is not here any more count no more."""
        for sender in sorted(self.entries.keys() | self._known.keys()):
            entry, known = self.entries.get(sender), self._known.get(sender, ())
            told = [identity for identity in known if identity.counts_in == open_round]
            if entry is not None and not told:  # the identities are what was damaged
                self._know(sender, (*known, entry.identity))
            elif told and (entry is None or told != [entry.identity]):
                self.unreadable.append(f"down/accepted/{sender}")
                self._know(sender, tuple(identity for identity in known if identity not in told))
                self._drop(sender)

    # -------------------------------------------------------------- the open round

    @property
    def call(self) -> RoundCall | None:
        """The last call, with the phase that it came to."""
        return self._opened.call if self._opened is not None else None

    @property
    def tier(self) -> Tier:
        """How the last round was run."""
        assert self._opened is not None
        return self._opened.tier

    @property
    def asked(self) -> set[str]:
        """Who was asked in the last round."""
        assert self._opened is not None
        return {*self._opened.asked, *self._joined}

    def open(self, call: RoundCall, tier: Tier, asked: set[str]) -> list[Note]:
        """Put down that a round is opened.

        Returns:
            Where it was opened before: what became of it came to nothing above, and so did all rounds since. Whoever
            sends an update of theirs again may count again.
        """
        before = self._opened
        undone: list[Note] = []
        if before is not None and before.call.run != call.run:
            self._forget(*self._known)
            before = None
        elif before is not None:
            undone = self._undo(call) if call.round in before.rounds else []
            if call.round <= before.call.round:
                self._lower_floors(call.round)
        rounds = before.rounds if before is not None else ()
        rounds = (*(done for done in rounds if done != call.round), call.round)[-tier.max_staleness - 1 :]
        opened = _Opened(call=call, tier=tier, asked=tuple(sorted(asked)), rounds=rounds)
        if before is not None:
            opened = replace(opened, closed_round=before.closed_round, closed=before.closed)
        self._put(opened)
        return undone

    def _undo(self, call: RoundCall) -> list[Note]:
        undone: dict[tuple[int, ...], dict[str, str]] = {}
        for sender, known in sorted(self._known.items()):
            kept = tuple(identity for identity in known if identity.counts_in < call.round)
            for identity in known:
                if identity not in kept:  # a parent that began anew may have called an earlier round after a later one
                    undone.setdefault(identity.counts_in, {})[sender] = identity.blob[:16]
            if kept != known:
                self._know(sender, kept)
        return [
            note("undone", run=call.run, round=round_text(round_id), updates=updates)
            for round_id, updates in sorted(undone.items())
        ]

    def _lower_floors(self, to: tuple[int, ...]) -> None:
        """Let late updates of this round and those after it count again: what is forgotten of them came to nothing."""
        for sender in [sender for sender, floor in self._floors.items() if floor > to]:
            self._floors[sender] = to
            self._know(sender, self._known[sender])

    def ask(self, sender: str) -> None:
        """Put down that one more is asked; it may be lost, for whoever was asked says again that it is there."""
        if self._opened is None or sender in self._joined or sender in self._opened.asked:
            return
        self._joined.add(sender)
        self._changes[f"down/asked/{sender}"] = b"1"

    def call_again(self, call: RoundCall) -> None:
        """Put down that the open round is called again; it may be lost, for the first call does as well."""
        assert self._opened is not None
        self._put(replace(self._opened, call=call), is_urgent=False)

    def take(self, sender: str, entry: Entry, blob: Buffer) -> None:
        """Put an update down: from now on it counts."""
        self.entries[sender] = entry
        self._know(sender, (*self._known.get(sender, ()), entry.identity))
        self._changes[f"down/accepted/{sender}"] = pack(entry)
        self._changes[f"down/update/{sender}"] = blob
        self._is_urgent = True

    def close(self, call: RoundCall, *, is_counted: bool) -> dict[str, str]:
        """Put down that the round is over, and what was in it, by sender.

        Where it came to nothing, its updates are given up: whoever sends one again may count in another round.
        """
        opened = self._opened
        assert opened is not None
        updates = self.updates
        if not is_counted:
            for sender, entry in self.entries.items():
                self._know(sender, tuple(known for known in self._known.get(sender, ()) if known != entry.identity))
        for sender in self.entries:
            self._changes[f"down/accepted/{sender}"] = self._changes[f"down/update/{sender}"] = None
        self._changes.update({f"down/asked/{sender}": None for sender in self._joined})
        self._joined.clear()
        self.entries = {}
        opened = replace(opened, call=call, asked=())
        self._put(replace(opened, closed_round=call.round, closed=updates) if is_counted else opened)
        return updates

    def finish(self, call: RoundCall) -> None:
        """Put down that the run is over."""
        assert self._opened is not None
        self._put(replace(self._opened, call=call))

    @property
    def updates(self) -> dict[str, str]:
        """The first digits of the updates of the open round, by sender."""
        return {sender: entry.identity.blob[:16] for sender, entry in sorted(self.entries.items())}

    # -------------------------------------------------------------- updates that come again, or late

    def find(self, sender: str, said: UpdatePart | Announce) -> Identity | None:
        """Return this very update where it counted, in whatever round."""
        return next((known for known in self._known.get(sender, ()) if known.is_of(said)), None)

    def staleness(self, sender: str, said: UpdatePart | Announce) -> int | None:
        """Return how many rounds ago an update's round was opened; None where that is longer than anybody remembers.

        Nor is it told of an update that is no newer than one of its sender's that was forgotten: it may have counted.
        """
        opened = self._opened
        if opened is None or opened.call.run != said.run or said.round not in opened.rounds:
            return None
        if said.round < self._floors.get(sender, ()):
            return None
        return len(opened.rounds) - 1 - opened.rounds.index(said.round)

    # -------------------------------------------------------------- durability

    def flush(self) -> list[Persist]:
        """Return what is to be made durable since the last time."""
        if not self._changes:
            return []
        found = Persist(changes=self._changes, is_urgent=self._is_urgent)
        self._changes, self._is_urgent = {}, False
        return [found]

    def restored(self) -> Note | None:
        """Return what a former life left, for the journal; None where it left nothing.

        It names the last closed round as well: a crash may have come after the close, and before it was noted.
        """
        opened = self._opened
        if opened is None:
            return None
        last = {"closed_round": round_text(opened.closed_round), "closed": opened.closed} if opened.closed else {}
        return note(
            "restored",
            run=opened.call.run,
            round=round_text(opened.call.round),
            phase=opened.call.phase.value,
            updates=self.updates,
            **last,
        )

    def give_up(self, sender: str) -> None:
        """Take back an update that can no longer be read."""
        entry = self.entries[sender]
        self._know(sender, tuple(known for known in self._known.get(sender, ()) if known != entry.identity))
        self._drop(sender)

    def forget(self) -> None:
        """Drop everything: it belongs to a model that is not here."""
        for sender in self.entries:
            self._changes[f"down/accepted/{sender}"] = self._changes[f"down/update/{sender}"] = None
        self._changes.update({f"down/asked/{sender}": None for sender in self._joined})
        self._changes["down/round"] = None
        self._forget(*self._known)
        self.entries, self._opened, self._is_urgent = {}, None, True
        self._joined.clear()

    # -------------------------------------------------------------- inside

    def _put(self, opened: _Opened, *, is_urgent: bool = True) -> None:
        self._opened = opened
        self._changes["down/round"] = pack(opened)
        self._is_urgent |= is_urgent

    def _drop(self, sender: str) -> None:
        self.has_lost = True
        self.entries.pop(sender, None)
        self._changes[f"down/accepted/{sender}"] = self._changes[f"down/update/{sender}"] = None

    def _know(self, sender: str, identities: tuple[Identity, ...]) -> None:
        """Know the newest of these identities; where one is forgotten, its round and those before it are closed."""
        forgotten, kept = identities[:-KNOWN], identities[-KNOWN:]
        floor = max([self._floors.get(sender, ()), *((*one.round[:-1], one.round[-1] + 1) for one in forgotten)])
        self._known[sender], self._floors[sender] = kept, floor
        self._changes[f"down/receipts/{sender}"] = pack(_Receipts.of(kept, floor))

    def _forget(self, *senders: str) -> None:
        for sender in senders:
            del self._known[sender], self._floors[sender]
            self._changes[f"down/receipts/{sender}"] = None
