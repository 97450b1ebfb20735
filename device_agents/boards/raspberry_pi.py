"""A Raspberry Pi: whether its supply is too weak, and whether its firmware slows it down.

The firmware's word is one number (`vcgencmd get_throttled`): bits 0 to 3 say what is so now, bits 16 to 19 what has
been so since the start. The kernel shows it in /sys to everybody; `vcgencmd`, the fallback, needs the group `video`.
"""

from __future__ import annotations

import re
from pathlib import Path

from device_agents import reading
from device_agents.reading import ROOT, Run, Values

_UNDERVOLTAGE, _CAPPED, _THROTTLED, _SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_SLOWED = _CAPPED | _THROTTLED | _SOFT_LIMIT
#: How far the bits of what has been lie above those of what is.
_SINCE_START = 16
_WORDS = {
    _UNDERVOLTAGE: "under-voltage",
    _CAPPED: "frequency capped",
    _THROTTLED: "throttled",
    _SOFT_LIMIT: "soft temperature limit",
}


def vitals(root: Path = ROOT, run: Run = reading.run) -> Values:
    """Return `undervoltage` and `throttled`, 0 or 1, and what has been since the start, in words."""
    flags = _flags(root, run)
    if flags is None:
        alarm = _alarm(root)
        return {} if alarm is None else {"undervoltage": alarm}
    been = flags >> _SINCE_START
    return {
        "undervoltage": int(bool(flags & _UNDERVOLTAGE)),
        "throttled": int(bool(flags & _SLOWED)),
        "throttled_since_start": ", ".join(word for bit, word in _WORDS.items() if been & bit) or "never",
    }


def _flags(root: Path, run: Run) -> int | None:
    for path in sorted((root / "sys/devices/platform").glob("soc*/*firmware/get_throttled")):
        said = reading.line(path)
        if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", said):
            return int(said, 16)
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", run("vcgencmd", "get_throttled").strip())
    return int(match.group(1), 16) if match else None


def _alarm(root: Path) -> int | None:
    """Return whether the supply's own monitor has its alarm up."""
    for device in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if reading.line(device / "name") == "rpi_volt":
            return reading.number(device / "in0_lcrit_alarm")
    return None
