"""What a participant has to hand in, durable before it is revealed: each update until its receipt, and a while longer.

An update that has its receipt stays until new work begins, so that a parent that lost it gets the same bytes again and
nobody trains twice; and so that a receipt that comes late still says whose coding error was left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from hfl_mqtt.protocol.blobs import Cut, Keep
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import Buffer, Kind, RoundCall, RoundId, ShortDigest
from hfl_mqtt.rounds import records
from hfl_mqtt.rounds.actions import Action, Persist, note
from hfl_mqtt.rounds.signing import Signer, body_of, key_name, update_seal

LETTERS = "up/outbox"
BLOBS = "up/blob/"


class Fate(Enum):
    """What became of an update so far."""

    DUE = "due"  # it has no receipt
    COUNTED = "counted"
    GIVEN_UP = "given_up"  # its round ended first; a receipt may still be under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An update in the outbox. Its key is (run, round, base); `payload` names what was coded, "" where nothing was."""

    call: RoundCall
    base: ShortDigest
    work_id: str
    blob: ShortDigest
    payload: str = ""
    fate: Fate = Fate.DUE
    #: Whether a part of it was ever sent, or it was announced.
    is_sent: bool = False
    #: The round in which it counts.
    joined: RoundId | None = None
    #: By which of our keys it is sealed, its first digits; "" by none.
    sealed_by: str = ""

    @property
    def key(self) -> tuple[str, tuple[int, ...], str]:
        """What tells it from all others of this sender."""
        return self.call.run, self.call.round, self.base

    def has_joined(self, round_id: tuple[int, ...]) -> bool:
        """Whether it counts in that round, which is another than its own."""
        return self.fate is Fate.COUNTED and self.joined == round_id != self.call.round


@dataclass(frozen=True, slots=True, kw_only=True)
class _Letters:
    letters: tuple[Letter, ...]


def is_same_ask(call: RoundCall, other: RoundCall) -> bool:
    """Whether two calls ask for the same: one work answers both."""
    return (call.run, call.round, call.model.base, call.plan.kind) == (
        other.run,
        other.round,
        other.model.base,
        other.plan.kind,
    )


class Outbox:
    """Updates, oldest first: at most one that was sent, and one that waits behind it.

    Args:
        saved: what a former life persisted.
        keep: puts blobs away.
        signer: seals what a former life did not seal, or sealed by another key.
    """

    def __init__(self, saved: Mapping[str, Buffer], keep: Keep, signer: Signer | None = None) -> None:
        self.letters: list[Letter] = []
        self._cuts: dict[str, Cut] = {}
        #: What the vault holds of us: the letters' own bytes, and which blobs.
        self._stored: dict[str, bytes] = {key: b"" for key in saved if key.startswith(BLOBS)}
        self._unreadable: list[str] = []
        #: Blobs that this life has sealed anew: our parent may hear them before it hears of the key.
        self._resealed: set[str] = set()
        if LETTERS in saved:
            self._stored[LETTERS] = bytes(saved[LETTERS])
            found = records.read(_Letters, saved[LETTERS])
            if found is None:
                self._unreadable.append(LETTERS)
            else:
                self._restore(found.letters, saved, keep, signer)

    def _restore(
        self, letters: tuple[Letter, ...], saved: Mapping[str, Buffer], keep: Keep, signer: Signer | None
    ) -> None:
        for letter in letters:
            blob = saved.get(BLOBS + letter.blob, b"")
            cut = Cut.kept([blob], keep) if 0 < len(blob) <= MAX_BLOB else None
            if cut is not None and cut.name == letter.blob:
                if letter.sealed_by != key_name(signer):
                    seal = update_seal(signer, *letter.key)
                    cut = Cut.kept([body_of(cut, is_sealed=letter.sealed_by != "")], keep, seal=seal)
                    letter = replace(letter, blob=cut.name, sealed_by=key_name(signer))
                    self._resealed.add(letter.blob)
                self._cuts[letter.blob] = cut
            elif letter.fate is Fate.DUE:
                self._unreadable.append(BLOBS + letter.blob)
                continue
            self.letters.append(letter)

    def start(self) -> list[Action]:
        """Forget what cannot be used, and say so."""
        unreadable: list[Action] = [note("unreadable", key=key) for key in self._unreadable]
        return [*self.persist(is_urgent=False), *unreadable]

    @property
    def due(self) -> Letter | None:
        """The update that is to be handed in next."""
        return next((letter for letter in self.letters if letter.fate is Fate.DUE), None)

    def is_resealed(self, letter: Letter) -> bool:
        """Whether an update of a former life is sealed by another key than then."""
        return letter.blob in self._resealed

    def cut(self, letter: Letter) -> Cut | None:
        """Return the bytes of an update, where they are still here."""
        return self._cuts.get(letter.blob)

    def find(self, run: str, round_id: tuple[int, ...], base: str) -> Letter | None:
        """Return the update of this key."""
        return next((letter for letter in self.letters if letter.key == (run, round_id, base)), None)

    def answer_to(self, call: RoundCall) -> Letter | None:
        """Return the update that answers this call, where it could be sent again."""
        found = self.find(call.run, call.round, call.model.base)
        return found if found and found.blob in self._cuts and is_same_ask(found.call, call) else None

    def put(self, letter: Letter, cut: Cut) -> None:
        """Add an update; it takes the place of one of its key, and of those that have their receipts."""
        kept = [each for each in self.letters if each.fate is Fate.DUE and each.key != letter.key]
        self.letters = [*kept, letter]
        self._cuts[letter.blob] = cut
        self._tidy()

    def change(self, letter: Letter, **fields: object) -> Letter:
        """Take it that something became of an update; returns it as it is now."""
        changed = replace(letter, **fields)  # type: ignore[arg-type]
        self.letters = [changed if each is letter else each for each in self.letters]
        return changed

    def remove(self, letter: Letter) -> None:
        """Forget an update."""
        self.letters = [each for each in self.letters if each is not letter]
        self._tidy()

    def forget_settled(self, *, may_have_counted: bool) -> None:
        """Forget updates that are not due: new work begins, with what coding cut off so far.

        Args:
            may_have_counted: whether the work still heeds that one which was given up has counted; it has `put` last.
        """
        kept = {Fate.DUE, Fate.GIVEN_UP} if may_have_counted else {Fate.DUE}
        self.letters = [letter for letter in self.letters if letter.fate in kept]
        self._tidy()

    def clear(self) -> None:
        """Forget everything."""
        self.letters = []
        self._cuts.clear()

    def persist(self, *, is_urgent: bool) -> list[Action]:
        """Make durable what is here and was trained; scores are cheap to have again."""
        letters = tuple(letter for letter in self.letters if letter.call.plan.kind is Kind.TRAIN)
        wanted = {BLOBS + letter.blob: self._cuts[letter.blob] for letter in letters if letter.blob in self._cuts}
        changes: dict[str, Buffer | None] = {
            key: None for key in self._stored if key not in wanted and (letters == () or key != LETTERS)
        }
        changes |= {key: cut.blob for key, cut in wanted.items() if key not in self._stored}
        head = records.pack(_Letters(letters=letters)) if letters else None
        if head is not None and self._stored.get(LETTERS) != head:
            changes[LETTERS] = head
        self._stored = dict.fromkeys(wanted, b"") if head is None else {LETTERS: head, **dict.fromkeys(wanted, b"")}
        return [Persist(changes=changes, is_urgent=is_urgent)] if changes else []

    def _tidy(self) -> None:
        known = {letter.blob for letter in self.letters}
        self._cuts = {blob: cut for blob, cut in self._cuts.items() if blob in known}
