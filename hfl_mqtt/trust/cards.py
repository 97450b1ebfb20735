"""Cards and the list of revoked ones: what the fleet's key says about the keys of its nodes.

Both are one line of ASCII, `base64url(body) "." base64url(signature)`, the body compact JSON with sorted keys. Each
has one way to be written: another text for the same content is refused. Nothing of a text is parsed before its
signature holds, so that a stranger's JSON never reaches the parser.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from hfl_mqtt.errors import ConfigError, Malformed
from hfl_mqtt.protocol.limits import MAX_CARD, MAX_PATH, MAX_REVOKED, MAX_SERIALS
from hfl_mqtt.protocol.topics import FEDERATION_PATTERN, PATH_PATTERN
from hfl_mqtt.trust.keys import PrivateKey, is_signed_by, read_short

#: A clock that says less has not been set since the board booted, and judges no date: 2025-01-01.
BELIEVABLE_FROM_S = 1_735_689_600

_CARD = b"hfl-mqtt card 1\0"
_REVOKED = b"hfl-mqtt revoked 1\0"
_BASE64URL = re.compile(r"[A-Za-z0-9_\-]*\Z")
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")

#: The number of a certificate and of its card, in decimal: JSON's numbers end at 2**53.
Serial = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,19}$")]
FederationName = Annotated[str, Field(pattern=FEDERATION_PATTERN)]
_Body = TypeVar("_Body", bound=BaseModel)


class Card(BaseModel):
    """Whose a public key is, until when: what others check a node's signatures by."""

    model_config = _STRICT

    federation: FederationName
    #: 64 hex digits.
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    #: Seconds since 1970.
    not_after: Annotated[int, Field(ge=0, le=2**53)]
    path: Annotated[str, Field(pattern=PATH_PATTERN, max_length=MAX_PATH)]
    #: The certificate's.
    serial: Serial

    def is_expired(self, now_s: float) -> bool:
        """Whether its time is over; not where the clock cannot know, see `BELIEVABLE_FROM_S`."""
        return now_s >= BELIEVABLE_FROM_S and now_s > self.not_after


class Revoked(BaseModel):
    """Which serials no longer count. A list with a larger number replaces the others."""

    model_config = _STRICT

    federation: FederationName
    number: Annotated[int, Field(ge=0, le=2**53)]
    serials: Annotated[frozenset[Serial], Field(max_length=MAX_SERIALS)]

    @field_serializer("serials")
    def _in_order(self, serials: frozenset[str]) -> list[str]:
        return sorted(serials, key=int)


def sign_card(card: Card, fleet_key: PrivateKey) -> str:
    """Return a card's text, one line without its end."""
    return _seal(_CARD, card, fleet_key)


def sign_revoked(revoked: Revoked, fleet_key: PrivateKey) -> str:
    """Return a list's text, one line without its end."""
    return _seal(_REVOKED, revoked, fleet_key)


def read_card(text: str, fleet_key: str) -> Card:
    """Take a card apart that came from anywhere; `fleet_key` is the public half, as in `fleet.pub`.

    What it says is true once this returns. Whether it is of the federation and of the sender at hand, in its time and
    not revoked is for the caller to see.

    Raises:
        Malformed: it is no card, or the fleet's key did not sign it.
    """
    return _open("card", _CARD, text, MAX_CARD, Card, fleet_key)


def read_revoked(text: str, fleet_key: str) -> Revoked:
    """Take a list apart that came from anywhere; see `read_card`.

    Raises:
        Malformed: it is no list, or the fleet's key did not sign it.
    """
    return _open("list of revoked cards", _REVOKED, text, MAX_REVOKED, Revoked, fleet_key)


def read_card_file(path: Path, fleet_key: str) -> tuple[Card, str]:
    """Read `node.card`: what it says, and its text as it is told to others.

    Raises:
        ConfigError: it cannot be read, or is no card of this fleet; the message names the file.
    """
    text = read_short(path, MAX_CARD + 2).strip()
    try:
        return read_card(text, fleet_key), text
    except Malformed as error:
        raise ConfigError(f"{path}: {error}; take it and fleet.pub from one bundle") from None


def read_revoked_file(path: Path, fleet_key: str) -> Revoked:
    """Read `revoked`.

    Raises:
        ConfigError: it cannot be read, or is no list of this fleet; the message names the file.
    """
    try:
        return read_revoked(read_short(path, MAX_REVOKED + 2).strip(), fleet_key)
    except Malformed as error:
        raise ConfigError(f"{path}: {error}; take it and fleet.pub from home") from None


def encode(data: bytes) -> str:
    """Write bytes as base64url without padding: 86 characters for a signature.

    >>> encode(bytes(3)), encode(b"\\xff")
    ('AAAA', '_w')
    """
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def decode(text: str) -> bytes:
    """Read what `encode` wrote, and nothing else: the same bytes have one text.

    Raises:
        Malformed: it is anything else.
    """
    if _BASE64URL.match(text) and len(text) % 4 != 1:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if encode(data) == text:
            return data
    raise Malformed("not base64url")


def _seal(kind: bytes, body: BaseModel, fleet_key: PrivateKey) -> str:
    data = _json(body)
    return f"{encode(data)}.{encode(fleet_key.sign(kind + data))}"


def _open(what: str, kind: bytes, text: str, most: int, model: type[_Body], fleet_key: str) -> _Body:
    if len(text) > most:
        raise Malformed(f"not a {what}: more than {most} characters")
    head, _, tail = text.partition(".")
    try:
        data, signature = decode(head), decode(tail)
    except Malformed:
        raise Malformed(f"not a {what}: not body.signature in base64url") from None
    if not is_signed_by(fleet_key, kind + data, signature):
        raise Malformed(f"this {what} is not signed by our fleet's key")
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise Malformed(
            f"not a {what}: {where or 'the body'} is wrong, though signed: another version wrote it"
        ) from None
    if _json(body) != data:
        raise Malformed(f"not a {what}: its JSON is not in order, though signed: another version wrote it")
    return body


def _json(body: BaseModel) -> bytes:
    return json.dumps(body.model_dump(), sort_keys=True, separators=(",", ":")).encode("ascii")
