"""What lossy coding cut off, on disk: added to the next update, so that nothing is lost for good (error feedback).

A residual belongs to one run and one parent. The new one waits in a file of its own until the update it belongs to was
accepted; an update that was refused or never received leaves the old one as it was. Importing this file imports neither
numpy nor safetensors: an idle agent only renames.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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


def run_of(path: Path, parent: str) -> str | None:
    """Return the run that a residual belongs to; None where there is none for this parent."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tags = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return tags.get("run") if tags.get("parent") == parent else None


def save(path: Path, residual: Weights | None, run: str, parent: str) -> None:
    """Write a residual; None deletes what is there.

    It is not forced to the disk: after a power cut one round's residual may be gone, which is a coding error that
    nothing makes up for, while a wait for the disk in every round would cost more than the coding.

    Raises:
        HflError: the disk is full, the directory missing or not ours.
    """
    if residual is None:
        path.unlink(missing_ok=True)
        return
    from hfl_mqtt.learning import store

    store.write_tensors(path, residual, {"run": run, "parent": parent}, is_forced=False)


def pending(path: Path) -> Path:
    """Return where the residual of an update waits that has no receipt yet."""
    return path.with_name(f"{path.name}.pending")


def keep(path: Path) -> None:
    """Take it that the update was accepted: the residual that waits is now the one."""
    waiting = pending(path)
    if waiting.exists():
        waiting.replace(path)
    else:
        path.unlink(missing_ok=True)  # it went up with the update, and nothing was cut off
