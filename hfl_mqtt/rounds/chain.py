"""A model as a chain: a keyframe and the deltas since, each named by a digest that holds all before it.

The model is what decoding the chain gives, so a lossy delta never makes two nodes drift apart: what its coding cut off
is carried by the next one. Every node adds the same float32 numbers in the same order, so all have the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hfl_mqtt.protocol.blobs import Cut, next_digest
from hfl_mqtt.protocol.messages import Buffer, Keyframe, Manifest
from hfl_mqtt.rounds.arithmetic import Model


@dataclass(frozen=True, slots=True)
class Link:
    """One delta, the version it leads to, and that version's digest."""

    version: int
    digest: str
    cut: Cut = field(repr=False)


class Chain:
    """A keyframe and the deltas since.

    Args:
        keyframe: where it starts.
    """

    def __init__(self, keyframe: Keyframe) -> None:
        self.keyframe = keyframe
        self.links: list[Link] = []

    @property
    def version(self) -> int:
        """The version that the chain leads to."""
        return self.links[-1].version if self.links else self.keyframe.version

    @property
    def digest(self) -> str:
        """The digest of that version."""
        return self.links[-1].digest if self.links else self.keyframe.digest

    @property
    def manifest(self) -> Manifest:
        """What a call says of it."""
        return Manifest(version=self.version, digest=self.digest[:16], key=self.keyframe.version)

    def leads_to(self, manifest: Manifest) -> bool:
        """Whether this is the model that a call names, by all of its digest that the call gives."""
        return self.version == manifest.version and self.digest.startswith(manifest.digest)

    @property
    def model(self) -> Model:
        """Everything that is needed to rebuild the model."""
        deltas = tuple(link.cut.blob for link in self.links)
        return Model(keyframe=self.keyframe, deltas=deltas, version=self.version, digest=self.digest)

    @property
    def deltas_bytes(self) -> int:
        """Bytes of all deltas."""
        return sum(link.cut.size for link in self.links)

    def push(self, delta: Buffer | Cut) -> Link:
        """Add a delta."""
        cut = delta if isinstance(delta, Cut) else Cut.of(bytes(delta))
        link = Link(self.version + 1, next_digest(self.digest, cut.digest), cut)
        self.links.append(link)
        return link

    def forget_links(self) -> None:
        """Keep version, digest and start, but not what lies between: only deltas to come can be taken from here."""
        self.keyframe = replace(self.keyframe, version=self.version, digest=self.digest, plus=None)
        self.links = []

    def since(self, digest: str) -> list[Link] | None:
        """Return the deltas after the model of that digest; None where the chain does not know it."""
        if digest == self.keyframe.digest:
            return list(self.links)
        for index, link in enumerate(self.links):
            if link.digest == digest:
                return self.links[index + 1 :]
        return None

    def rebase(self, keyframe: Keyframe) -> bool:
        """Start from a newer keyframe of this very chain, and forget what led to it; returns whether it is one."""
        if (keyframe.version, keyframe.digest) == (self.version, self.digest):
            self.links = []
        else:
            at = [(link.version, link.digest) for link in self.links]
            if (keyframe.version, keyframe.digest) not in at:
                return False
            self.links = self.links[at.index((keyframe.version, keyframe.digest)) + 1 :]
        self.keyframe = keyframe
        return True
