"""Papers for a federation that lives in one folder, for as long as a test or a measurement: see `ops.federation`."""

from __future__ import annotations

from pathlib import Path

from hfl_mqtt.config.site import Site
from hfl_mqtt.fleet.agents import CA_FILE, FLEET_KEY_FILE, REVOKED_FILE
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.holdings import put
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.ops.brokers import CRL_FILE


class Rehearsal:
    """An authority of its own, and papers laid down for who asks.

    Args:
        folder: where the authority is made.
        federation: whose it is.
    """

    def __init__(self, folder: Path, federation: str) -> None:
        self.authority = Authority.create(folder, federation)

    def to_brokers(self, site: Site, directory: Path) -> None:
        """Lay the papers of every broker and bridge beside their configurations."""
        for broker in site.brokers():
            folder = directory / broker.directory
            put("broker", folder, self.authority.issue("broker", broker.path, hosts=(broker.place.found_at,)))
            if broker.above is not None:
                put("bridge", folder, self.authority.issue("bridge", broker.path))
            write_private(folder / CA_FILE, self.authority.ca_pem.encode())
            write_private(folder / CRL_FILE, self.authority.crl_pem.encode())

    def to_node(self, path: str, folder: Path) -> None:
        """Lay the papers of a node down."""
        put("node", folder, self.authority.issue("node", path))
        write_private(folder / CA_FILE, self.authority.ca_pem.encode())
        write_private(folder / FLEET_KEY_FILE, f"{self.authority.fleet_key}\n".encode())
        write_private(folder / REVOKED_FILE, f"{self.authority.revoked_text}\n".encode())
