"""Keys and cards of a simulated federation: all from its seed, so that equal seeds sign the same."""

from __future__ import annotations

import hashlib

from hfl_mqtt.trust.cards import Card, sign_card
from hfl_mqtt.trust.identity import Identity
from hfl_mqtt.trust.keys import PrivateKey

FEDERATION = "sim"


class Papers:
    """A fleet's authority that forgets nothing, for it draws nothing.

    Args:
        seed: of all keys.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.fleet = self.key("")

    def identity(self, name: str) -> Identity:
        """Return the identity of a node, which has heard of nobody yet; boxes at one place have a key each."""
        path, key = name.partition("@")[0], self.key(name)
        serial = str(int.from_bytes(bytes.fromhex(key.public[:15] + "1"), "big") or 1)
        card = Card(federation=FEDERATION, key=key.public, not_after=2**53, path=path, serial=serial)
        return Identity(sign_card(card, self.fleet), key, self.fleet.public, clock=lambda: 0.0)

    def key(self, name: str) -> PrivateKey:
        """Return the key of a node."""
        return PrivateKey(hashlib.sha256(f"{self._seed}:{name}".encode()).digest())
