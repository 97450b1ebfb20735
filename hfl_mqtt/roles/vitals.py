"""What a process knows of itself: memory and, from its links, bytes."""

from __future__ import annotations

import re
from pathlib import Path

from hfl_mqtt import files
from hfl_mqtt.roles.shell import MetricValues, Shell

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_mb(pid: int | str = "self") -> float | None:
    """Return the most memory a process has ever had resident, in MB; None where the system does not say."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return round(int(found.group(1)) * 1024 / 1e6, 1) if found else None


def of_shell(shell: Shell) -> MetricValues:
    """Return a node's own figures: payload bytes to and from its parent, bytes on its socket, memory.

    For the root of the tree, which has no parent, the payload bytes are those from and to its children.
    """
    traffic = shell.link.traffic
    return {
        "up_bytes": shell.payload_up,
        "down_bytes": shell.payload_down,
        "socket_out": traffic.socket_out,
        "socket_in": traffic.socket_in,
        "rss_peak_mb": peak_mb(),
    }


def wear() -> MetricValues:
    """Return what this process has written to the disk so far, and how often it had that forced."""
    return {"state_bytes": files.worn.bytes, "fsyncs": files.worn.forced}
