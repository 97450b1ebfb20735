"""Which board this is, in the words that a node says of itself at birth, and what only such a board tells."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from device_agents.boards import jetson, raspberry_pi
from device_agents.reading import ROOT, Values, line
from device_agents.vitals import cores


class Kind(Enum):
    """The boards that are told apart."""

    RASPBERRY_PI = "raspberry_pi"
    JETSON = "jetson"
    GENERIC = "generic"


#: Vitals that only a board of this kind has; a generic one has those that every Linux tells.
VITALS: Mapping[Kind, Callable[[Path], Values]] = {
    Kind.RASPBERRY_PI: raspberry_pi.vitals,
    Kind.JETSON: jetson.vitals,
    Kind.GENERIC: lambda _root: {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board: its kind, its maker's name for it, processor and cores."""

    kind: Kind
    model: str
    machine: str
    cores: int

    @property
    def hardware(self) -> str:
        """The board in one line.

        >>> Board(kind=Kind.RASPBERRY_PI, model="Raspberry Pi 5 Model B Rev 1.0", machine="aarch64", cores=4).hardware
        'Raspberry Pi 5 Model B Rev 1.0, aarch64, 4 cores'
        """
        count = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return ", ".join(part for part in (self.model, self.machine, count) if part)

    @property
    def vitals(self) -> Callable[[Path], Values]:
        """What reads the vitals that only such a board has, given what stands for `/`."""
        return VITALS[self.kind]


def detect(root: Path = ROOT, machine: str | None = None) -> Board:
    """Look at the device tree, at NVIDIA's release file, and on a PC at what its BIOS says.

    Args:
        root: stands for `/`.
        machine: the processor's architecture; by default that of this machine.
    """
    model = line(root / "proc/device-tree/model") or line(root / "sys/class/dmi/id/product_name")
    kind = Kind.GENERIC
    if model.startswith("Raspberry Pi"):
        kind = Kind.RASPBERRY_PI
    elif "jetson" in model.lower() or (root / "etc/nv_tegra_release").exists():
        kind = Kind.JETSON
        model = model or "NVIDIA Jetson"
    return Board(kind=kind, model=model, machine=machine or platform.machine(), cores=cores(root))
