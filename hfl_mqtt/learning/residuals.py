"""What lossy coding cut off, on disk: added to the next update, so that nothing is lost for good (error feedback).

A residual belongs to one run and one parent. The new one waits in a file of its own, named by the update it belongs
to, until that was accepted; an update that was refused or never received leaves the old one as it was. Both steps are
forced to the disk and may be taken twice, so a pulled plug neither loses what was cut off nor adds it twice. Importing
this file imports neither numpy nor safetensors: an idle agent only renames.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hfl_mqtt import files

if TYPE_CHECKING:
    from hfl_mqtt.learning.contracts import Weights


def path_of(state: Path, node: str) -> Path:
    """Return where the residual of a node lies, in its state directory."""
    return state / f"{node.replace('/', '+')}.residual"


def load(path: Path, run: str, parent: str) -> Weights | None:
    """Read a residual; None where there is none of this run and parent, or none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata() != {"run": run, "parent": parent}:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return None


def save(path: Path, residual: Weights | None, run: str, parent: str) -> None:
    """Write a residual; None deletes what is there.

    Raises:
        HflError: the disk is full, the directory missing or not ours.
    """
    if residual is None:
        path.unlink(missing_ok=True)
        return
    from hfl_mqtt.learning import store

    store.write_tensors(path, residual, {"run": run, "parent": parent})


def pending(path: Path, update: str) -> Path:
    """Return where the residual of an update waits that has no receipt yet.

    Args:
        path: of the node's residual.
        update: the first 16 digits of the SHA-256 of its payload.
    """
    return path.with_name(f"{path.name}.{update}")


def wait(path: Path, residual: Weights | None, run: str, parent: str, update: str) -> int:
    """Write what coding cut off from an update, None for nothing, in place of what waits for an earlier one.

    Returns:
        The bytes that were written.

    Raises:
        HflError: as `save`.
    """
    waiting = pending(path, update)
    for other in _waiting(path):
        if other != waiting:
            other.unlink(missing_ok=True)
    if residual is None and not path.exists():
        waiting.unlink(missing_ok=True)  # nothing before, nothing now
        return 0
    save(waiting, residual or {}, run, parent)  # an empty one, too: what is there went up with the update
    return waiting.stat().st_size


def keep(path: Path, update: str) -> None:
    """Take it that the update was accepted: the residual that waits for it is now the one. It may be said again."""
    waiting = pending(path, update)
    if waiting.exists():
        files.rename(waiting, path)


def forget(path: Path) -> None:
    """Drop what is owed to a parent that is no longer ours."""
    for one in (path, *_waiting(path)):
        one.unlink(missing_ok=True)


def _waiting(path: Path) -> list[Path]:
    front, length = f"{path.name}.", len(path.name) + 17
    try:
        with os.scandir(path.parent) as entries:  # a fraction of the time of a glob
            names = [entry.name for entry in entries]
    except OSError:
        return []  # who writes there says what is wrong
    return [path.with_name(name) for name in names if name.startswith(front) and len(name) == length]
