"""Files that survive a pulled plug: small texts, whatever else is written through `replace`, and the boot counter.

Every write goes to a temporary file in the same directory, is forced to the disk, renamed over the old one, and the
directory is forced too: after any crash the file is the old one or the new one, never half of either. The temporary
name is always the same, so crashes do not fill an SD card; one process writes a file, as one node owns its directory.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hfl_mqtt.errors import HflError, Unwritable

#: Where a boot counter starts when all its copies are damaged; see `next_boot`.
LOST_BOOT = 1_000_000_000
#: 2026-01-01, in seconds since 1970: where the seconds of a first boot are counted from.
_FIRST_BOOTS_S = 1_767_225_600

ADVICE = {
    errno.ENOSPC: "free some space or choose another directory",
    errno.EDQUOT: "free some space or raise the quota",
    errno.ENOENT: "create the directory first",
    errno.ENOTDIR: "a file stands where a directory should be",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EROFS: "the file system is mounted read-only, often after an error on an SD card: check the card",
    errno.EFBIG: "a limit on file sizes stands in the way, see ulimit -f",
    errno.EIO: "the disk is failing: replace the card",
}
#: What may pass without another start of this process.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


@dataclass(slots=True)
class Wear:
    """What this process has written for good: bytes, and how often it had them forced to the disk. SD cards wear."""

    bytes: int = 0
    forced: int = 0

    def add(self, size: int, *, forced: int) -> None:
        """Count what was written."""
        self.bytes += size
        self.forced += forced


worn = Wear()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file; after any crash it is the old one or the new one.

    Raises:
        HflError: as `replace`.
    """
    replace(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode())


def replace(path: Path, write: Callable[[Path], object], *, is_forced: bool = True) -> None:
    """Replace a file by what `write` puts into the temporary one it is given; see `write_bytes`.

    Where it is not forced to the disk, it survives its process but perhaps not a pulled plug: for what is written in
    every round and is worth no wait and no wear of an SD card.

    Raises:
        HflError: the disk is full, the directory missing or not ours; the message says what to do.
    """
    temporary = path.with_name(f".{path.name}.tmp")

    def write_and_rename() -> None:
        try:
            write(temporary)
            worn.add(temporary.stat().st_size, forced=0)
            if is_forced:
                force(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if is_forced:
            force(path.parent)

    _attempt(path, write_and_rename)


def settle(path: Path) -> None:
    """Force a file that was written without that to the disk.

    Raises:
        HflError: as `replace`.
    """

    def force_both() -> None:
        force(path)
        force(path.parent)

    _attempt(path, force_both)


def rename(old: Path, new: Path) -> None:
    """Put a file that is on the disk in the place of another, for good.

    Raises:
        HflError: as `replace`.
    """

    def rename_and_force() -> None:
        old.replace(new)
        force(new.parent)

    _attempt(new, rename_and_force)


def next_boot(state_dir: Path, node: str) -> int:
    """Raise the boot counter of `node` and return it: above all earlier ones at every start.

    Peers ignore what a lower boot says, so a counter must never fall. It is kept twice. The first is the seconds since
    2026 where the clock knows them, else 1: a node whose disk was replaced speaks above its former life. Should both
    copies be unreadable it goes on at the clock's seconds since 1970 but at least at a billion: above any number of
    starts even on a board whose clock says 1970, and where the clock is right, above an earlier such jump as well. A
    clock alone would not do: it repeats itself after every power cut on a board without a battery.

    Raises:
        HflError: the counter cannot be written; a node must not speak under a boot that it may use again.
    """
    copies = _boot_files(state_dir, node)
    _attempt(state_dir, lambda: state_dir.mkdir(parents=True, exist_ok=True))
    known = [boot for boot in map(_read_boot, copies) if boot is not None]
    boot = max(1, int(time.time()) - _FIRST_BOOTS_S)
    if known:
        boot = max(known) + 1
    elif any(copy.exists() for copy in copies):
        boot = max(LOST_BOOT, int(time.time()))
    for copy in copies:
        write_text(copy, f"{boot}\n")
    return boot


def last_boot(state_dir: Path, node: str) -> int:
    """Return the boot of the node's former life, 0 where nothing is known of one."""
    return max((boot for boot in map(_read_boot, _boot_files(state_dir, node)) if boot is not None), default=0)


def _boot_files(state_dir: Path, node: str) -> list[Path]:
    # "+" is in no segment of a path, so two nodes never share a file.
    return [state_dir / f"{node.replace('/', '+')}.{suffix}" for suffix in ("boot", "boot-copy")]


def _read_boot(path: Path) -> int | None:
    try:
        boot = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return boot if 0 < boot < 2**52 else None


def force(path: Path) -> None:
    """Return when what the kernel holds of a file or a directory is on the disk; OSError where it cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    worn.add(0, forced=1)


def failure(path: Path, error: OSError) -> HflError:
    """Return what to say of a path that cannot be written; `Unwritable` where waiting may help."""
    kind = Unwritable if error.errno in _PASSING else HflError
    return kind(f"{path}: cannot be written: {_reason(error)}")


def _attempt(path: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as error:
        raise failure(path, error) from error


def _reason(error: OSError) -> str:
    """Return what went wrong and what to do about it."""
    if error.errno is None:
        return str(error)
    text, advice = os.strerror(error.errno), ADVICE.get(error.errno)
    return f"{text}; {advice}" if advice else text
