"""The papers of a federation on this machine: who gives them, and where those of each node lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from hfl_mqtt.config.site import Site, node_folder
from hfl_mqtt.transport.link import TlsFiles


class Papers(Protocol):
    """Who gives the papers of a federation, see `fleet.rehearsal`; in their folders they are named as in bundles."""

    def to_brokers(self, site: Site, directory: Path) -> None:
        """Lay the papers of every broker and bridge beside their configurations."""

    def to_node(self, path: str, folder: Path) -> None:
        """Lay the papers of a node down."""


class Laid:
    """Papers that are laid down, each node's in a folder of its own below `directory`.

    Args:
        papers: who gives them.
        directory: where the nodes' folders are.
        is_signed: whether nodes sign what counts.
    """

    def __init__(self, papers: Papers, directory: Path, *, is_signed: bool) -> None:
        self._papers, self._directory, self._is_signed = papers, directory, is_signed

    def lay(self, site: Site, broker_dir: Path) -> None:
        """Lay the papers of all brokers, bridges and nodes of a site down."""
        self._papers.to_brokers(site, broker_dir)
        for broker in site.brokers():
            for path in broker.nodes:
                self._papers.to_node(path, self.folder(path))

    def folder(self, path: str) -> Path:
        """Return the folder of a node's papers."""
        return self._directory / node_folder(path)

    def files(self, path: str, *, is_viewer: bool = False) -> TlsFiles:
        """Return what a link of a node takes; a viewer trusts the same authority, and has a password."""
        own = self.folder(path)
        if is_viewer:
            return TlsFiles(ca=own / "ca.crt")
        return TlsFiles(ca=own / "ca.crt", certificate=own / "node.crt", key=own / "node.key")

    def tls(self, path: str) -> dict[str, str]:
        """Return the section `broker.tls` of a node; `{name}` may stand in its path for the last part of its name."""
        return self._named(path, ca_file="ca.crt", cert_file="node.crt", key_file="node.key")

    def sections(self, path: str) -> dict[str, Any]:
        """Return the section `identity`, where nodes sign."""
        if not self._is_signed:
            return {}
        files = {"card_file": "node.card", "key_file": "node.key", "fleet_key_file": "fleet.pub"}
        return {"identity": self._named(path, **files, revoked_file="revoked")}

    def _named(self, path: str, **names: str) -> dict[str, str]:
        return {key: str(self.folder(path) / name) for key, name in names.items()}
