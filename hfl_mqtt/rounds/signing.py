"""What the machines ask of who signs and checks for them. None stands where a federation signs nothing.

What is signed, and where the signature stands, says `protocol.statements`; whose key counts, `trust.identity`. A card
that is not known yet is no fault of anybody's: what hangs on it is passed over, and comes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from hfl_mqtt.errors import Forged
from hfl_mqtt.protocol import statements
from hfl_mqtt.protocol.blobs import Cut, Seal
from hfl_mqtt.protocol.messages import Buffer, Identity, Keyframe, Phase, RoundCall
from hfl_mqtt.rounds.actions import Action, Send


class Signer(Protocol):
    """A node's own key and card, and the cards of those whose signatures it checks."""

    @property
    def federation(self) -> str:
        """The federation of all that is signed."""

    @property
    def path(self) -> str:
        """Whose key it is."""

    @property
    def key(self) -> str:
        """The public half, 64 hex digits."""

    @property
    def card(self) -> str:
        """What others check this node's signatures by."""

    def sign(self, statement: bytes) -> bytes:
        """Return 64 bytes; the same key and statement give the same ones."""

    def learn(self, sender: str, card: str) -> bool:
        """Take a card in that stood on a sender's topic; returns whether it is new.

        Raises:
            Refused: it says nothing that counts of this sender, and why.
        """

    def knows(self, sender: str) -> bool:
        """Whether a card of this sender was ever taken in."""

    def objection(self, sender: str) -> str | None:
        """Return why nothing that this sender signs counts now, though a card of it is known; None where it does."""

    def check(self, sender: str, statement: bytes, signature: bytes) -> None:
        """Check a signature by what is known of the sender.

        Raises:
            Forged: it does not hold, and why.
        """

    def look_again(self) -> Mapping[str, Any] | None:
        """Look whether other keys were revoked meanwhile; returns what to note, None where nothing changed."""


def update_seal(signer: Signer | None, run: str, round_id: tuple[int, ...], base: str) -> Seal | None:
    """Return what seals the blob of an own update; None where nothing is signed."""
    if signer is None:
        return None
    return lambda body: signer.sign(statements.of_update(signer.federation, run, round_id, signer.path, base, body))


def keyframe_seal(signer: Signer | None, keyframe: Keyframe) -> Seal | None:
    """Return what seals the blob of an own keyframe; None where nothing is signed."""
    if signer is None:
        return None
    run, version, digest = keyframe.run, keyframe.version, keyframe.digest
    return lambda body: signer.sign(statements.of_keyframe(signer.federation, run, signer.path, version, digest, body))


def shown(signer: Signer | None) -> list[Action]:
    """Return what shows a node's card to its parent and its children; nothing where nothing is signed."""
    return [Send(message=Identity(card=signer.card))] if signer is not None else []


def key_name(signer: Signer | None) -> str:
    """Return the first digits of the key that signs; "" where nothing is signed."""
    return signer.key[:16] if signer is not None else ""


def check_keyframe(signer: Signer, sender: str, keyframe: Keyframe, cut: Cut, body_digest: bytes) -> None:
    """Check the seal of a keyframe that a parent shows.

    Raises:
        Forged: it does not hold.
        Malformed: there is none.
    """
    _, signature = statements.unsealed(cut.blob)
    stated = (keyframe.run, sender, keyframe.version, keyframe.digest)
    signer.check(sender, statements.of_keyframe(signer.federation, *stated, body_digest), signature)


def body_of(cut: Cut, *, is_sealed: bool) -> Buffer:
    """Return a blob without its trailer, where it has one.

    Raises:
        Malformed: it is too short to have one.
    """
    return statements.unsealed(cut.blob)[0] if is_sealed else cut.blob


def signed(signer: Signer | None, call: RoundCall) -> RoundCall:
    """Return a call as it is said: signed with today's key, whatever it carried when it was put down."""
    if signer is None:
        return call
    signature = signer.sign(statements.of_call(signer.federation, signer.path, call))
    return replace(call, signature=statements.to_text(signature))


def why_not_said_by(signer: Signer, parent: str, call: RoundCall) -> str | None:
    """Return why a call must not be acted on; None where the parent has said it."""
    if not call.signature:
        return f"what {parent} calls is not signed: give it an identity"
    if call.phase is Phase.OPEN and len(call.model.digest) != 64:
        return f"what {parent} calls names its model by a part of its digest only"
    try:
        signer.check(parent, statements.of_call(signer.federation, parent, call), statements.from_text(call.signature))
    except Forged as error:
        return str(error)
    return None
