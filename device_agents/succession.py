"""Whether a bundle's papers may replace those of a board: `python -m device_agents.succession OLD NEW`.

Who carries a bundle may have changed it, or may carry an old one. So the key that a board trusts is replaced only where
its owner says so, and a list of revoked cards only by one that is no older. `install.sh` asks this before it writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hfl_mqtt.errors import ConfigError, HflError
from hfl_mqtt.fleet.private import write_private

_NEW_FLEET = "nothing was changed; if this board is to belong to that fleet, say so by --new-fleet"


def succeed(old: Path, new: Path) -> str:
    """Let the papers in `new` be fit to follow those in `old`: the newer list of revoked cards is put among them.

    Returns what was kept, as a sentence for people; "" for nothing. A board without a fleet's key takes any.

    Raises:
        ConfigError: they are of another fleet, or of none, or their list is not the fleet's.
        HflError: a file cannot be written.
    """
    if not (old / "fleet.pub").exists():
        return ""
    # Imported where it is needed: a board whose nodes do not sign may have no library for it.
    from hfl_mqtt.protocol.limits import MAX_REVOKED
    from hfl_mqtt.trust.cards import read_revoked_file
    from hfl_mqtt.trust.keys import read_public, read_short

    if not (new / "fleet.pub").exists():
        raise ConfigError(f"the bundle has no fleet.pub, and this board trusts a fleet's key: {_NEW_FLEET}")
    fleet_key = read_public(new / "fleet.pub")
    if read_public(old / "fleet.pub") != fleet_key:
        raise ConfigError(f"the bundle's fleet.pub is not the one that this board trusts: {_NEW_FLEET}")
    brought = read_revoked_file(new / "revoked", fleet_key) if (new / "revoked").exists() else None
    try:
        kept = read_revoked_file(old / "revoked", fleet_key)
    except ConfigError:
        return ""  # there is none, or it is damaged: the bundle's is better
    if brought is None or brought.number >= kept.number:
        return ""
    write_private(new / "revoked", read_short(old / "revoked", MAX_REVOKED + 2).encode("ascii"))
    return f"kept list {kept.number} of revoked cards, for the bundle's is list {brought.number}"


if __name__ == "__main__":
    try:
        sys.stdout.write(succeed(*map(Path, sys.argv[1:3])))
    except HflError as error:
        sys.exit(str(error))
