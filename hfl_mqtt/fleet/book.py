"""The book of an authority: all papers it ever gave, and which of them it took back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hfl_mqtt.errors import HflError
from hfl_mqtt.protocol import topics
from hfl_mqtt.trust.cards import Serial

Kind = Literal["node", "bridge", "broker"]
KINDS: tuple[Kind, ...] = ("node", "bridge", "broker")
#: Days that papers last where nothing is said.
USUAL_DAYS = 730

_FROZEN = ConfigDict(frozen=True, extra="forbid")


def common_name(kind: Kind, path: str) -> str:
    """Return what the certificate says: of a node and of a bridge it is the account, too."""
    if kind == "node":
        return path
    return topics.bridge_account(path) if kind == "bridge" else f"broker {path}"


class Issued(BaseModel):
    """One line of the book: papers that were given."""

    model_config = _FROZEN

    #: Decimal, the same in the certificate and in the card.
    serial: Serial
    kind: Kind
    #: The node's, or the broker's.
    path: str
    #: The public key of a node, 64 hex digits; empty for bridges and brokers, which sign nothing.
    key: str = ""
    #: Where a broker is found.
    hosts: tuple[str, ...] = ()
    issued_at_s: int
    not_after_s: int
    revoked_at_s: int | None = None

    @property
    def subject(self) -> str:
        """The certificate's common name; of a node and of a bridge it is the account, too."""
        return common_name(self.kind, self.path)

    @property
    def is_live(self) -> bool:
        """Whether nobody has revoked it; it may be expired."""
        return self.revoked_at_s is None


class Book(BaseModel):
    """All papers, oldest first. Both lists of what is revoked are made of it."""

    model_config = _FROZEN

    version: Literal[1] = 1
    federation: Annotated[str, Field(pattern=topics.FEDERATION_PATTERN)]
    #: Of both lists; it grows with each revocation.
    number: int
    issued: tuple[Issued, ...] = ()

    def revoked_serials(self, kinds: Collection[Kind] = KINDS) -> dict[str, int]:
        """When each of these papers was revoked, by serial."""
        return {
            one.serial: one.revoked_at_s for one in self.issued if one.revoked_at_s is not None and one.kind in kinds
        }

    def with_papers(self, papers: Issued) -> Book:
        """Return the book with one line more.

        A key is one node's for good, and once revoked it is nobody's: whoever has the board has the key.

        Raises:
            HflError: the key is another node's, or was revoked.
        """
        same = [one for one in self.issued if papers.key and one.key == papers.key]
        if others := [one.path for one in same if one.path != papers.path]:
            raise HflError(f"{papers.path}: this key is that of {others[0]}; make another on the board")
        if same and not any(one.is_live for one in same):
            raise HflError(f"{papers.path}: this key was revoked; delete node.key on the board and request again")
        return self.model_copy(update={"issued": (*self.issued, papers)})

    def without(self, serials: set[str], now_s: int) -> Book:
        """Return the book with these papers revoked, and another number."""
        issued = tuple(
            one.model_copy(update={"revoked_at_s": now_s}) if one.serial in serials else one for one in self.issued
        )
        # The clock's seconds, so that it grows past what a restored backup has forgotten.
        return self.model_copy(update={"issued": issued, "number": max(self.number + 1, now_s)})
