"""Ed25519 keys as they lie on a node, read with libsodium alone: the library for certificates is five times as big.

`node.key` is a PKCS8 PEM as OpenSSL reads it too (RFC 8410), since the same key answers for the node in TLS. A public
key is 64 hex digits, wherever it stands.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from hfl_mqtt.errors import ConfigError

#: Bytes of a signature.
SIGNATURE_SIZE = 64
#: Bytes of the seed that a private key is made of.
SEED_SIZE = 32

#: What DER says before the seed: version 0, Ed25519, an octet string in an octet string.
_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_PEM = re.compile(r"\s*-----BEGIN PRIVATE KEY-----\s([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----\s*\Z")
_PUBLIC = re.compile(r"[0-9a-f]{64}\Z")
#: Of any of these files: what is longer is not read.
_MOST_BYTES = 4096


class PrivateKey:
    """The key of one node or of the fleet. It shows itself to nobody: `repr` gives the public half.

    Args:
        seed: 32 random bytes, which are the key.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        #: The public half, 64 hex digits.
        self.public: str = bytes(self._key.verify_key).hex()

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public!r})"

    @classmethod
    def generate(cls) -> PrivateKey:
        """Draw a new key."""
        return cls(bytes(SigningKey.generate()))

    @classmethod
    def from_pem(cls, text: str) -> PrivateKey:
        """Take a PKCS8 PEM apart.

        Raises:
            ConfigError: it is no Ed25519 key; the message quotes nothing of it.
        """
        found = _PEM.match(text)
        try:
            der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
        except binascii.Error:
            der = b""
        if len(der) != len(_PREFIX) + SEED_SIZE or not der.startswith(_PREFIX):
            raise ConfigError("not an Ed25519 private key in PKCS8 PEM")
        return cls(der[len(_PREFIX) :])

    @classmethod
    def read(cls, path: Path) -> PrivateKey:
        """Read `node.key`.

        Raises:
            ConfigError: it cannot be read, or is no Ed25519 key; the message names the file and quotes nothing of it.
        """
        text = read_short(path)
        try:
            return cls.from_pem(text)
        except ConfigError as error:
            raise ConfigError(
                f"{path}: {error}; make one with `hfl device request`, or take it from the fleet's bundle"
            ) from None

    def pem(self) -> str:
        """Return the key as `node.key` holds it: a secret."""
        body = base64.b64encode(_PREFIX + bytes(self._key)).decode()
        return f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"

    def sign(self, statement: bytes) -> bytes:
        """Return the 64 bytes of a signature; the same key and statement give the same ones."""
        return self._key.sign(statement).signature


def is_signed_by(public: str, statement: bytes, signature: bytes) -> bool:
    """Whether this key signed this statement. What is no key or no signature signed nothing: it never raises."""
    if not is_public_key(public) or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        VerifyKey(bytes.fromhex(public)).verify(statement, signature)
    except CryptoError:
        return False
    return True


def is_public_key(text: str) -> bool:
    """Whether `text` is written as a public key is: 64 hex digits, small letters."""
    return _PUBLIC.match(text) is not None


def read_public(path: Path) -> str:
    """Read a file that holds one public key, such as `fleet.pub`.

    Raises:
        ConfigError: it cannot be read, or holds something else; the message names the file.
    """
    text = read_short(path).strip()
    if not is_public_key(text):
        raise ConfigError(f"{path}: a public key is 64 hex digits; take it from the fleet's bundle")
    return text


def read_short(path: Path, most_bytes: int = _MOST_BYTES, *, remedy: str = "take it from the fleet's bundle") -> str:
    """Read a small ASCII file, and no more than that of any.

    Raises:
        ConfigError: it cannot be read, is longer, or is not ASCII; the message ends with the remedy and quotes nothing.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None
    if len(data) > most_bytes or not data.isascii():
        raise ConfigError(f"{path}: is not the file that it is called; {remedy}")
    return data.decode("ascii")
