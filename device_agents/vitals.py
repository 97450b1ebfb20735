"""A board's vitals, read from /proc and /sys: processor, memory, load, temperature, battery.

Read from the files themselves, so that an agent of 40 MB needs no library for it; what a board does not tell is left
out. Functions take the directory that stands for `/`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

from device_agents.reading import ROOT, Values, line, number, text

#: Within this time a second look gives the first one's figures: several nodes of a process share one board.
FRESH_S = 1.0
_MEMORY = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB", re.MULTILINE)
#: Sensors that sit on the processor, by what boards call them; others count only where there is none of these.
_PROCESSOR = re.compile(r"cpu|soc|core|k10temp|x86_pkg", re.IGNORECASE)
#: The power chip of a Jetson always says 100 °C.
_LIARS = re.compile(r"pmic", re.IGNORECASE)


class Vitals:
    """Reads the vitals again and again; safe to call from any thread.

    Args:
        root: stands for `/`.
        clock: monotonic seconds.
        own: what only a board of this kind tells, given what stands for `/`.
    """

    def __init__(
        self,
        root: Path = ROOT,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[Path], Values] = lambda _root: {},
    ) -> None:
        self._root, self._clock, self._own = root, clock, own
        self._lock = Lock()
        self._ticks = cpu_ticks(root)
        self._read_s = clock()
        self._values: Values = {}

    def __call__(self) -> Values:
        """Return the vitals; the processor's share is that since the last look."""
        with self._lock:
            now = self._clock()
            if not self._values or now - self._read_s >= FRESH_S:
                ticks = cpu_ticks(self._root)
                share = cpu_percent(self._ticks, ticks)
                self._values = {
                    **({} if share is None else {"cpu_percent": share}),
                    **memory(self._root),
                    **load(self._root),
                    **temperature(self._root),
                    **battery(self._root),
                    **self._own(self._root),
                }
                self._ticks, self._read_s = ticks, now
            return dict(self._values)


def cpu_ticks(root: Path = ROOT) -> tuple[int, int] | None:
    """Return (busy, all) ticks of all cores since the start; the difference of two readings is what counts."""
    fields = text(root / "proc/stat").partition("\n")[0].split()
    if len(fields) < 5 or fields[0] != "cpu" or not all(field.isdecimal() for field in fields[1:]):
        return None
    # user nice system idle iowait irq softirq steal; what guests used stands in user and nice already.
    ticks = [int(field) for field in fields[1:9]]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def cpu_percent(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Return how busy all cores were between two readings, 0 to 100; None where nothing can be said.

    >>> cpu_percent((100, 1000), (150, 1200))
    25.0
    """
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round(min(max(100 * (after[0] - before[0]) / (after[1] - before[1]), 0.0), 100.0), 1)


def memory(root: Path = ROOT) -> Values:
    """Return the whole board's memory in use, in MB and percent."""
    found = {name: int(kilobytes) for name, kilobytes in _MEMORY.findall(text(root / "proc/meminfo"))}
    total, available = found.get("MemTotal", 0), found.get("MemAvailable")
    if not total or available is None:
        return {}
    used = total - available
    return {"memory_mb": round(used * 1024 / 1e6, 1), "memory_percent": round(100 * used / total, 1)}


def load(root: Path = ROOT) -> Values:
    """Return the load average of the last minute in percent of the cores: above 100, work is waiting for a core."""
    first = text(root / "proc/loadavg").split()[:1]
    try:
        return {"load_percent": round(100 * float(first[0]) / cores(root), 1)} if first else {}
    except ValueError:
        return {}


def cores(root: Path = ROOT) -> int:
    """Return how many cores are at work; 1 where the system does not say."""
    return len(re.findall(r"^cpu\d+ ", text(root / "proc/stat"), re.MULTILINE)) or 1


def temperature(root: Path = ROOT) -> Values:
    """Return the processor's temperature in °C, its hottest sensor; without one, the hottest of the board.

    Nothing where the board has no sensor, as in most virtual machines.
    """
    found = [*_sensors(root, "sys/class/thermal", "thermal_zone*", "type", "temp")]
    found = found or [*_sensors(root, "sys/class/hwmon", "hwmon*", "name", "temp*_input")]
    honest = [(name, celsius) for name, celsius in found if not _LIARS.search(name)]
    on_processor = [celsius for name, celsius in honest if _PROCESSOR.search(name)]
    chosen = on_processor or [celsius for _, celsius in honest]
    return {"temperature_c": max(chosen)} if chosen else {}


def _sensors(root: Path, where: str, devices: str, name_file: str, value_files: str) -> Iterator[tuple[str, float]]:
    for device in (root / where).glob(devices):
        name = line(device / name_file)
        for path in device.glob(value_files):
            millidegrees = number(path)  # one that is asleep cannot be read
            if millidegrees is not None and -60_000 < millidegrees < 150_000:
                yield name, round(millidegrees / 1000, 1)


def battery(root: Path = ROOT) -> Values:
    """Return how full the board's battery is, in percent, and whether the board lives on it, 0 or 1.

    Nothing where it has none; those of mice and headsets are not its own.
    """
    supplies = [
        (line(path / "type"), path)
        for path in sorted((root / "sys/class/power_supply").glob("*"))
        if line(path / "scope") != "Device" and line(path / "present") != "0"
    ]
    batteries = [path for kind, path in supplies if kind in ("Battery", "UPS")]
    if not batteries:
        return {}
    is_plugged = any(line(path / "online") == "1" for kind, path in supplies if kind not in ("Battery", "UPS"))
    is_filling = any(line(path / "status") in ("Charging", "Full", "Not charging") for path in batteries)
    full = [percent for path in batteries if (percent := number(path / "capacity")) is not None and 0 <= percent <= 100]
    return {"on_battery": int(not (is_plugged or is_filling)), **({"battery_percent": min(full)} if full else {})}
