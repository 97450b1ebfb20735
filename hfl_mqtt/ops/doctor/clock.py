"""Whether this board's clock can be believed.

Rounds need no clock: deadlines travel as durations, and certificates begin in 1970. Their ends, revocations and the
journal's times do.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, warn

#: 2025-01-01: what says less has not been set since the board booted.
BELIEVABLE_S = 1_735_689_600
#: Files may be a little younger than now, on a disk that another machine writes to.
_SLACK_S = 120.0
_REMEDY = (
    "sudo timedatectl set-ntp true, or install chrony; a board without a battery forgets the time at each power cut"
)
#: The kernel's word that nothing keeps its clock in step.
_TIME_ERROR = 5


def check_clock(files: Iterable[Path], now_s: float | None = None) -> Finding:
    """Judge the clock by its year, by files that cannot be younger than now, and by what the kernel knows of NTP.

    Args:
        files: some that were written on this board or brought to it.
        now_s: seconds since 1970; by default this clock's.
    """
    name, now_s = "clock", time.time() if now_s is None else now_s
    shown = datetime.fromtimestamp(now_s, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    if now_s < BELIEVABLE_S:
        text = f"{shown}: never set since boot; rounds go on, but no certificate's end and no revocation date is seen"
        return warn(name, text, _REMEDY)
    ahead = [(written_s - now_s, path) for path in files if (written_s := _written_s(path)) is not None]
    if ahead and max(ahead)[0] > _SLACK_S:
        behind_s, path = max(ahead)
        return fail(name, f"{shown}: at least {_span(behind_s)} behind, as {path.name} was written later", _REMEDY)
    is_kept, error_s = _kept_in_step()
    if is_kept is None:
        return ok(name, f"{shown}; whether it is kept in step cannot be seen here")
    if not is_kept:
        return warn(name, f"{shown}; nothing keeps it in step, its drift is not known", _REMEDY)
    return ok(name, f"{shown}, kept in step by NTP, at most {error_s:.2g} s off")


class _Timex(ctypes.Structure):
    """The head of the kernel's `struct timex`, and room for the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


def _kept_in_step() -> tuple[bool | None, float]:
    """Return whether something keeps the clock in step, and the most it may be off in seconds; None: not known."""
    asked = _Timex()  # modes 0: only look
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(asked))
    except (AttributeError, OSError):
        return None, 0.0
    if state < 0:
        return None, 0.0
    return state != _TIME_ERROR, asked.maxerror / 1e6


def _written_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
