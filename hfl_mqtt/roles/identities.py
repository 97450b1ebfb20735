"""A node's identity, from the files that its YAML names."""

from __future__ import annotations

from hfl_mqtt.config.broker import IdentityConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.rounds.signing import Signer


def load(section: IdentityConfig | None, federation: str, path: str) -> Signer | None:
    """Return the identity of a node; None where its YAML has no `identity:`, and nothing is signed.

    Raises:
        ConfigError: a file cannot be read, or they belong to another node, fleet or federation.
    """
    if section is None:
        return None
    from hfl_mqtt.trust.identity import Identity  # a board that signs nothing does without libsodium

    files = section.at(path)
    found = Identity.load(files.card_file, files.key_file, files.fleet_key_file, files.revoked_file)
    for what, own, wanted in (("node", found.path, path), ("federation", found.federation, federation)):
        if own != wanted:
            raise ConfigError(f"{files.card_file}: is the card of the {what} {own}, not {wanted}: take its own bundle")
    return found
