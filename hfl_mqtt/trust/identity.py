"""Who a node is, and whose signatures it takes: its own card and key, and the cards that it has heard of others.

A card is heard on its owner's own topic, whenever it comes: at the start, late, and once more when it was replaced. The
fleet's key has signed it, so it matters little who brings it. Of each sender the last few are kept: a signature made
before the key was changed may still be under way, and two boxes that share a place may each have a key of its own. What
is to count no more is revoked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hfl_mqtt.errors import ConfigError, Forged, Malformed, Refused
from hfl_mqtt.trust.cards import Card, Revoked, read_card, read_card_file, read_revoked_file
from hfl_mqtt.trust.keys import PrivateKey, is_signed_by, read_public

#: Cards that are kept of each sender.
MAX_CARDS = 4


class Identity:
    """A node's own key and card, and the cards of those whose signatures it checks; see `rounds.signing.Signer`.

    Args:
        card: its own, as text.
        key: its own, of which the card says the public half.
        fleet_key: the public half of the fleet's key, by which cards are checked.
        revoked_file: where the list of revoked cards lies, if anywhere.
        clock: gives seconds since 1970; no date is judged by one that was never set.

    Raises:
        ConfigError: card, key and fleet do not belong together.
    """

    def __init__(
        self,
        card: str,
        key: PrivateKey,
        fleet_key: str,
        *,
        revoked_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            self._own = read_card(card, fleet_key)
        except Malformed as error:
            raise ConfigError(f"the own card: {error}; take card and fleet key from one bundle") from None
        if self._own.key != key.public:
            raise ConfigError("the own card is of another key: take card and key from one bundle")
        self.card = card
        self._key, self._fleet_key, self._clock = key, fleet_key, clock
        self._known: dict[str, dict[str, Card]] = {}
        self._revoked = Revoked(federation=self._own.federation, number=0, serials=frozenset())
        self._revoked_file = revoked_file
        #: What the file was when it was looked at last, and what was wrong with it.
        self._seen: tuple[int, ...] | None = None
        self._trouble = ""
        self.look_again()

    @classmethod
    def load(cls, card_file: Path, key_file: Path, fleet_key_file: Path, revoked_file: Path | None = None) -> Identity:
        """Read a node's identity from its bundle.

        Raises:
            ConfigError: a file cannot be read, or they do not belong together; the message names the file.
        """
        fleet_key = read_public(fleet_key_file)
        _, text = read_card_file(card_file, fleet_key)
        key = PrivateKey.read(key_file)
        if revoked_file is not None:
            read_revoked_file(revoked_file, fleet_key)
        try:
            return cls(text, key, fleet_key, revoked_file=revoked_file)
        except ConfigError as error:
            raise ConfigError(f"{card_file}, {key_file}: {error}") from None

    def __repr__(self) -> str:
        return f"Identity(path={self.path!r}, key={self.key!r})"

    @property
    def federation(self) -> str:
        """The federation of all that is signed."""
        return self._own.federation

    @property
    def path(self) -> str:
        """Whose key it is."""
        return self._own.path

    @property
    def key(self) -> str:
        """The public half, 64 hex digits."""
        return self._own.key

    def sign(self, statement: bytes) -> bytes:
        """Return 64 bytes; the same key and statement give the same ones."""
        return self._key.sign(statement)

    # -------------------------------------------------------------- of others

    def learn(self, sender: str, card: str) -> bool:
        """Take a card in that stood on a sender's topic; returns whether it is new.

        Raises:
            Refused: it is none of this fleet's, of another federation or name, out of date, or revoked.
        """
        try:
            found = read_card(card, self._fleet_key)
        except Malformed as error:
            raise Refused(f"{sender}: {error}") from None
        if found.federation != self.federation:
            raise Refused(f"{sender} shows a card of another federation, {found.federation}")
        if found.path != sender:
            raise Refused(f"{sender} shows the card of {found.path}")
        reason = self._why_not(found)
        if reason is not None:
            raise Refused(reason)
        known = self._known.setdefault(sender, {})
        is_new = known.pop(found.serial, None) != found
        known[found.serial] = found  # the last one stands last
        if len(known) > MAX_CARDS:  # an old card may be shown once more by anybody: it puts no newer one out
            del known[min(known, key=lambda serial: self._worth(known[serial]))]
        return is_new and found.serial in known

    def knows(self, sender: str) -> bool:
        """Whether a card of this sender was ever taken in."""
        return sender in self._known

    def objection(self, sender: str) -> str | None:
        """Return why nothing that this sender signs counts now, though a card of it is known; None where it does."""
        reasons = [self._why_not(card) for card in self._known.get(sender, {}).values()]
        return None if None in reasons or not reasons else reasons[-1]

    def check(self, sender: str, statement: bytes, signature: bytes) -> None:
        """Check a signature by the cards that are known of the sender.

        Raises:
            Forged: there is none, it does not hold, or the card by which it would is out of date or revoked.
        """
        known = self._known.get(sender)
        if not known:
            raise Forged(f"no identity of {sender} has been heard yet")
        if not any(signature):
            raise Forged(f"not signed by {sender}")
        for card in reversed(known.values()):
            if is_signed_by(card.key, statement, signature):
                reason = self._why_not(card)
                if reason is not None:
                    raise Forged(reason)
                return
        raise Forged(
            f"the signature is not {sender}'s: forged, altered on its way, meant for another round, or none at all"
        )

    def _worth(self, card: Card) -> tuple[bool, int, int]:
        """Return what the cards of one sender are kept by."""
        return self._why_not(card) is None, card.not_after, int(card.serial)

    def _why_not(self, card: Card) -> str | None:
        if card.serial in self._revoked.serials:
            return f"the card {card.serial} of {card.path} is revoked: give it a new one"
        if card.is_expired(self._clock()):
            return f"the card {card.serial} of {card.path} is out of date: give it a new one"
        return None

    # -------------------------------------------------------------- the list of revoked cards

    def look_again(self) -> Mapping[str, Any] | None:
        """Look whether the list of revoked cards has changed; returns what to note, None where nothing is new.

        A file that cannot be read, or is older than the one known, changes nothing: what was revoked stays so.
        """
        path = self._revoked_file
        if path is None:
            return None
        try:
            stat = path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return None
            found = read_revoked_file(path, self._fleet_key)
            if found.federation != self.federation:
                raise ConfigError(f"{path}: is of another federation, {found.federation}")
        except (ConfigError, OSError) as error:
            reason = str(error)
            is_known, self._trouble = reason == self._trouble, reason
            return None if is_known else {"reason": reason}
        self._seen, self._trouble = seen, ""
        if found.number <= self._revoked.number:
            return None
        self._revoked = found
        return {"number": found.number, "serials": len(found.serials)}
