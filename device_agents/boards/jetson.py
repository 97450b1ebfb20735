"""An NVIDIA Jetson: its power mode, and how busy and how warm its GPU is, all from files.

JetPack 4 to 6 have the GPU's load at different places, in tenths of a percent; `nvpmodel -q` wants root, and the file
that it keeps does not.
"""

from __future__ import annotations

import re
from pathlib import Path

from device_agents import reading
from device_agents.reading import ROOT, Values

_GPU = re.compile(r"gpu|g[vamkp]\d\d[0-9a-z]", re.IGNORECASE)
_MODE = re.compile(r"^pmode:\s*(\d+)", re.MULTILINE)
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S{1,40})\s*>")


def vitals(root: Path = ROOT) -> Values:
    """Return `power_mode`, `gpu_percent` and `gpu_temperature_c`, as far as the board tells them."""
    return {**_power_mode(root), **_load(root), **_temperature(root)}


def _power_mode(root: Path) -> Values:
    said = _MODE.search(reading.text(root / "var/lib/nvpmodel/status"))
    if said is None:
        return {}
    number = int(said.group(1))
    names = {int(found): name for found, name in _MODEL.findall(reading.text(root / "etc/nvpmodel.conf"))}
    return {"power_mode": names.get(number, str(number))}


def _load(root: Path) -> Values:
    devices = [root / "sys/devices/gpu.0", root / "sys/devices/platform/gpu.0"]
    devices += [path / "device" for path in sorted((root / "sys/class/devfreq").glob("*")) if _GPU.search(path.name)]
    for device in devices:
        permille = reading.number(device / "load")
        if permille is not None and 0 <= permille <= 1000:
            return {"gpu_percent": permille / 10}
    return {}


def _temperature(root: Path) -> Values:
    found = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        millidegrees = reading.number(zone / "temp")
        if millidegrees is not None and "gpu" in reading.line(zone / "type").lower() and -60e3 < millidegrees < 150e3:
            found.append(round(millidegrees / 1000, 1))
    return {"gpu_temperature_c": max(found)} if found else {}
