"""Disk, memory, and the files that nobody else should read."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from hfl_mqtt.files import ADVICE
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped, warn

MB = 1_000_000
#: The residual, the outbox and two models of a few MB; and the journal, which takes 20 MB at most.
LITTLE_DISK, TOO_LITTLE_DISK = 500 * MB, 50 * MB
#: What torch takes at the least, and what an agent does.
TRAINING_MEMORY, AGENT_MEMORY = 400 * MB, 60 * MB
#: An SD card in order forces a page in 5 to 50 ms.
SLOW_FSYNC_S = 0.25
_PAGE = bytes(4096)
_WRITES = 7
_MEMINFO = Path("/proc/meminfo")
_LOCKS = Path("/proc/locks")


def check_space(state_dir: Path) -> Finding:
    """Look at the room on the disk that the state folder is on."""
    name, folder = "disk", _nearest(state_dir)
    free = shutil.disk_usage(folder).free
    text = f"{_size(free)} free at {folder}"
    if free < TOO_LITTLE_DISK:
        return fail(name, text, "free some space: what must survive a restart has no room")
    if free < LITTLE_DISK:
        return warn(name, text, "free some space before the model and the journal need it")
    return ok(name, text)


def check_writes(state_dir: Path) -> Finding:
    """Write to the state folder and force it to the disk, as the agent does before it speaks; nothing stays behind."""
    name, folder = "state folder", _nearest(state_dir)
    if folder != state_dir:
        if os.access(folder, os.W_OK):
            return ok(name, f"{state_dir} will be made at the first start")
        remedy = f"sudo install -d -o {_user()} {state_dir}, or run this as the agent's user"
        return fail(name, f"{state_dir} is not there, and this user may not make it", remedy)
    try:
        seconds = _forced_writes_s(state_dir)
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "look at the disk")
        return fail(
            name, f"{state_dir} cannot be written: {error.strerror}", f"{advice}; or run this as the agent's user"
        )
    holder = _holder(state_dir / "lock")
    whose = f", in use by the running agent {holder}" if holder else ""
    text = f"{state_dir} takes 4 kB for good in {seconds * 1e3:.2g} ms{whose}"
    if seconds > SLOW_FSYNC_S:
        return warn(name, text, "the card is slow or worn: replace it, or put state_dir on another disk")
    return ok(name, text)


def check_memory(*, trains: bool, meminfo: Path = _MEMINFO) -> Finding:
    """Look at the memory that is left for the agent, and for torch where it trains."""
    name, found = "memory", available(meminfo)
    if found is None:
        return skipped(name, "this system does not say")
    left, total = found
    text = f"{_size(left)} of {_size(total)} available"
    if left < AGENT_MEMORY:
        return fail(name, text, "end other programs: the agent itself needs 60 MB")
    if trains and left < TRAINING_MEMORY:
        return warn(
            name, f"{text}, torch needs some {_size(TRAINING_MEMORY)}", "end other programs, or add swap (zram)"
        )
    return ok(name, text)


def check_secrets(paths: Iterable[Path]) -> Finding:
    """See that nobody else can read the files that let this board in."""
    name, seen = "secrets", []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            return fail(
                name, f"{path} cannot be read: {error.strerror}", "copy it from home; its owner is the agent's user"
            )
        if not os.access(path, os.R_OK):
            return fail(
                name, f"{path} cannot be read by {_user()}", "run this as the agent's user, or change its owner"
            )
        if mode & stat.S_IRWXO:
            return fail(name, f"{path} can be read by every user of this board", f"chmod o-rwx {path}")
        seen.append(path.name)
    if not seen:
        return skipped(name, "none lies in a file")
    return ok(name, f"{', '.join(seen)} {'are' if len(seen) > 1 else 'is'} shut to other users")


def available(meminfo: Path = _MEMINFO) -> tuple[int, int] | None:
    """Return the bytes of memory that are available, and all there are; None where the system does not say."""
    try:
        lines = meminfo.read_text().splitlines()
        found = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
        return found["MemAvailable"], found["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _forced_writes_s(folder: Path) -> float:
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_WRITES):
            began_s = time.monotonic()
            file.write(_PAGE)
            os.fsync(file.fileno())
            taken.append(time.monotonic() - began_s)
    return median(taken)


def _holder(lock: Path) -> str:
    """Return the process that holds a lock, "" where none does; the lock itself is left alone."""
    try:
        inode = lock.stat().st_ino
        held = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return ""
    # 1: FLOCK ADVISORY WRITE 4242 08:01:1234 0 EOF
    return next((line[4] for line in held if len(line) > 5 and line[5].rpartition(":")[2] == str(inode)), "")


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.parents) if _is_there(each))


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # below a folder that is shut to us
        return False


def _user() -> str:
    return os.environ.get("USER") or str(os.geteuid())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
