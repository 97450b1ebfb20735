"""A device that keeps its own key: what it asks for on the board, and what is signed at home.

The request says a name and proves the key, both in one signature: under another name the proof does not hold, and
whoever copies the file has papers for a key that he has not. The board needs no library for certificates.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfl_mqtt.errors import ConfigError, HflError, Malformed
from hfl_mqtt.files import failure
from hfl_mqtt.fleet.book import USUAL_DAYS
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.protocol.topics import FEDERATION_PATTERN, is_federation, is_path
from hfl_mqtt.trust.cards import decode, encode
from hfl_mqtt.trust.keys import PrivateKey, is_signed_by, read_short

if TYPE_CHECKING:
    from hfl_mqtt.fleet.authority import Authority, Papers

KEY_FILE = "node.key"
_KIND = b"hfl-mqtt request 1\0"
_MOST_CHARACTERS = 2000


class Request(BaseModel):
    """What a device asks for: papers under this name for this key, which it has shown to have."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    federation: Annotated[str, Field(pattern=FEDERATION_PATTERN)]
    path: str
    #: 64 hex digits.
    key: str

    def statement(self) -> bytes:
        """Return what the device's key signs."""
        return _KIND + json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode("ascii")


def fingerprint(key: str) -> str:
    """Return what people compare of a public key: the first half of its SHA-256, in groups of four digits.

    Half of it is 128 bits: nobody finds a second key for that.
    """
    digits = hashlib.sha256(bytes.fromhex(key)).hexdigest()[:32]
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def write_request(federation: str, path: str, directory: Path) -> Path:
    """Write a device's request, and its key where it has none yet; return the request's file.

    The same device asks twice with the same words: its key is never replaced.

    Raises:
        ConfigError: a federation or a node cannot be called so, its `node.key` is no key, or is that of another
            device, as a request that lies beside it says.
        HflError: the directory cannot be written.
    """
    if not is_federation(federation) or not is_path(path) or "/" not in path:
        raise ConfigError(
            f"{path!r} in {federation!r} is no name for a device: names of letters, digits, `_`, `.` and `-`, the path "
            "as in cloud/farm-a/pi-1"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise failure(directory, error) from error
    key_file = directory / KEY_FILE
    if not key_file.exists():
        write_private(key_file, PrivateKey.generate().pem().encode())
    key = PrivateKey.read(key_file)
    request = Request(federation=federation, path=path, key=key.public)
    _check_is_its_own(key_file, request)
    body = {**request.model_dump(), "signature": encode(key.sign(request.statement()))}
    out = directory / f"{path.rpartition('/')[2]}.request"
    write_private(out, (json.dumps(body, indent=1) + "\n").encode())
    return out


def _check_is_its_own(key_file: Path, own: Request) -> None:
    """Refuse to ask with a key that has been asked for under another name: nobody could tell the two devices apart."""
    for file in sorted(key_file.parent.glob("*.request")):
        try:
            other = read_request_file(file)
        except ConfigError:
            continue
        if other.key == own.key and other != own:
            raise ConfigError(
                f"{key_file}: is the key of {other.path} ({file.name}) in {other.federation}; another device needs a "
                f"key of its own: give another --out. If this board has a new name, delete both files and ask again"
            )


def read_request(text: str) -> Request:
    """Take a request apart that came from anywhere.

    Raises:
        Malformed: it is no request, or its proof does not hold.
    """
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError
        body = json.loads(text)
        signature = decode(body.pop("signature"))
        request = Request.model_validate(body)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, ValidationError, Malformed):
        raise Malformed("not a request as `hfl device request` writes it") from None
    if not is_path(request.path):
        raise Malformed(f"{request.path[:80]!a} is no path")
    if not is_signed_by(request.key, request.statement(), signature):
        raise Malformed(f"{request.path}: its proof does not hold: the name or the key was changed on the way")
    return request


def read_request_file(path: Path) -> Request:
    """Read a device's request.

    Raises:
        ConfigError: it cannot be read, is no request, or its proof does not hold; the message names the file.
    """
    text = read_short(path, _MOST_CHARACTERS, remedy="copy it from the board")
    try:
        return read_request(text)
    except Malformed as error:
        raise ConfigError(f"{path}: {error}; request again on the board") from None


def sign(authority: Authority, request: Request, *, days: int = USUAL_DAYS) -> Papers:
    """Give a device its papers, without a key. A second time for the same key renews them.

    Whether such a device stands in the site file is for the caller to see.

    Raises:
        HflError: it is of another federation, its name has papers for another key, its key is another's or was
            revoked, or the authority cannot be written.
    """
    if request.federation != authority.federation:
        raise HflError(
            f"{request.path}: asks for papers in {request.federation}, and this is the authority of "
            f"{authority.federation}; request again with --federation {authority.federation}"
        )
    for one in authority.issued:
        if one.is_live and one.kind == "node" and one.path == request.path and one.key != request.key:
            raise HflError(
                f"{request.path}: has papers for another key. If this is a new board under its name: "
                f"hfl fleet revoke {request.path}, then sign again; if it is not, somebody wants to be this node"
            )
    return authority.issue("node", request.path, public_key=request.key, days=days)
