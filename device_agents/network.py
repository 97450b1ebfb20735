"""Whether the link that this board speaks over is paid for by the byte."""

from __future__ import annotations

from pathlib import Path

from device_agents import reading
from device_agents.reading import ROOT, Run

#: How the kernel calls interfaces of mobile networks.
_MOBILE = ("wwan", "wwp", "wwx", "ppp", "rmnet")


def is_metered(root: Path = ROOT, run: Run = reading.run) -> bool:
    """Return whether NetworkManager calls the default route's link metered, or its name is a mobile network's.

    NetworkManager knows what people set, and guesses of a phone's hotspot; where it is silent, only the name tells.
    """
    interface = default_interface(root)
    if interface is None:
        return False
    said = run("nmcli", "--terse", "--fields", "GENERAL.METERED", "device", "show", interface)
    word = said.strip().rpartition(":")[2]
    if word.startswith(("yes", "no")):
        return word.startswith("yes")
    return interface.startswith(_MOBILE)


def default_interface(root: Path = ROOT) -> str | None:
    """Return the interface of the default route that is preferred; None where there is none."""
    found: list[tuple[int, str]] = []
    for row in reading.text(root / "proc/net/route").splitlines()[1:]:
        fields = row.split()  # Iface Destination Gateway Flags RefCnt Use Metric Mask ...
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and fields[6].isdecimal():
            found.append((int(fields[6]), fields[0]))
    if not found:
        for row in reading.text(root / "proc/net/ipv6_route").splitlines():
            fields = row.split()  # destination prefix source prefix next-hop metric references use flags interface
            if len(fields) == 10 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
                found.append((int(fields[5], 16), fields[9]))
    return min(found)[1] if found else None
