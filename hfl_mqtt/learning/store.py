"""Files that survive a pulled plug: model checkpoints, small texts, and the boot counter.

Every write goes to a temporary file in the same directory, is forced to the disk, renamed over the old one, and the
directory is forced too: after any crash the file is the old one or the new one, never half of either. The temporary
name is always the same, so crashes do not fill an SD card; one process writes a file, as one node owns its directory.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from hfl_mqtt import __version__
from hfl_mqtt.errors import HflError, Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import digest

#: Where a boot counter starts when all its copies are lost; see `next_boot`.
LOST_BOOT = 1_000_000_000

_ADVICE = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What a checkpoint says of itself. `extra` is for the owner, e.g. the machine's state beside the model."""

    task: str
    run: str
    round: str
    digest: str
    software: str = __version__
    extra: Mapping[str, str] = field(default_factory=dict)


def save(path: Path, weights: Weights, tags: Tags) -> None:
    """Write a checkpoint, a safetensors file that any tool can open.

    Raises:
        HflError: the disk is full, the directory missing or not ours; the message says what to do.
    """
    metadata = {
        "task": tags.task,
        "run": tags.run,
        "round": tags.round,
        "digest": tags.digest,
        "software": tags.software,
        "extra": json.dumps(dict(tags.extra)),
        "order": json.dumps(list(weights)),  # safetensors sorts by size and name
    }
    # Safetensors writes the memory as it lies, whatever the strides.
    tensors = {name: np.asarray(values, order="C") for name, values in weights.items()}
    _replace(path, lambda temporary: safetensors.numpy.save_file(tensors, temporary, metadata))


def load(path: Path) -> tuple[Weights, Tags]:
    """Read a checkpoint and check its digest.

    Raises:
        HflError: there is none, it is damaged, or another program wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        tags = Tags(
            **{key: metadata[key] for key in ("task", "run", "round", "digest", "software")},
            extra=dict(json.loads(metadata["extra"])),
        )
        weights = {name: found[name] for name in json.loads(metadata["order"])}
        actual = digest(weights)
    except FileNotFoundError:
        raise HflError(f"{path}: no such checkpoint; check the path, or start the run afresh") from None
    except OSError as error:
        raise HflError(f"{path}: cannot be read: {error.strerror}; check its owner and the disk") from None
    except KeyError as error:
        raise HflError(f"{path}: not a checkpoint of hfl-mqtt, it has no {error}") from None
    except (SafetensorError, Refused, ValueError, TypeError) as error:
        raise HflError(f"{path}: damaged ({error}); restore a copy, or delete it and start the run afresh") from None
    if actual != tags.digest or len(weights) != len(found):
        raise HflError(f"{path}: damaged, its digest does not match; restore a copy, or delete it and start afresh")
    return weights, tags


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file; after any crash it is the old one or the new one.

    Raises:
        HflError: as `save`.
    """
    _replace(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode())


def next_boot(state_dir: Path, node: str) -> int:
    """Raise the boot counter of `node` and return it: 1 at the first start, above all earlier ones at every other.

    Peers ignore what a lower boot says, so a counter must never fall. It is kept twice. Should both copies be
    unreadable it goes on at the clock's seconds but at least at a billion: above any number of starts even on a board
    whose clock says 1970, and where the clock is right, above an earlier such jump as well. A clock alone would not do:
    it repeats itself after every power cut on a board without a battery.

    Raises:
        HflError: the counter cannot be written; a node must not speak under a boot that it may use again.
    """
    # "+" is in no segment of a path, so two nodes never share a file.
    copies = [state_dir / f"{node.replace('/', '+')}.{suffix}" for suffix in ("boot", "boot-copy")]
    _attempt(state_dir, lambda: state_dir.mkdir(parents=True, exist_ok=True))
    known = [boot for boot in map(_read_boot, copies) if boot is not None]
    boot = 1
    if known:
        boot = max(known) + 1
    elif any(copy.exists() for copy in copies):
        boot = max(LOST_BOOT, int(time.time()))
    for copy in copies:
        write_text(copy, f"{boot}\n")
    return boot


def _read_boot(path: Path) -> int | None:
    try:
        boot = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return boot if 0 < boot < 2**52 else None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")

    def replace() -> None:
        try:
            write(temporary)
            _force(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _force(path.parent)

    _attempt(path, replace)


def _force(path: Path) -> None:
    """Return when what the kernel holds of a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _attempt(path: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except (OSError, SafetensorError) as error:
        raise HflError(f"{path}: cannot be written: {_reason(error)}") from error


def _reason(error: OSError | SafetensorError) -> str:
    """Return what went wrong and what to do about it."""
    # Safetensors passes on the number only in its text: "... (os error 28)".
    text, code = str(error), error.errno if isinstance(error, OSError) else None
    for known, advice in _ADVICE.items():
        if code == known or f"os error {known})" in text:
            return f"{os.strerror(known)}; {advice}"
    return text
