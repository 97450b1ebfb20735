"""Model checkpoints on disk: safetensors files with tags, written as `files` writes, checked against their digest."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from hfl_mqtt import __version__, files
from hfl_mqtt.errors import HflError, Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What a checkpoint says of itself."""

    task: str
    run: str
    round: str
    digest: str
    software: str = __version__


def save(path: Path, weights: Weights, tags: Tags, *, is_forced: bool = True) -> None:
    """Write a checkpoint, a safetensors file that any tool can open; `is_forced` as in `files.replace`.

    Raises:
        HflError: the disk is full, the directory missing or not ours; the message says what to do.
    """
    metadata = {
        "task": tags.task,
        "run": tags.run,
        "round": tags.round,
        "digest": tags.digest,
        "software": tags.software,
        "order": json.dumps(list(weights)),  # safetensors sorts by size and name
    }
    write_tensors(path, weights, metadata, is_forced=is_forced)


def write_tensors(path: Path, weights: Weights, metadata: dict[str, str], *, is_forced: bool = True) -> None:
    """Write a safetensors file, see `files.replace`.

    Raises:
        HflError: as `save`.
    """
    # Safetensors writes the memory as it lies, whatever the strides.
    tensors = {name: np.asarray(values, order="C") for name, values in weights.items()}
    files.replace(path, lambda temporary: _write(temporary, tensors, metadata), is_forced=is_forced)


def load(path: Path) -> tuple[Weights, Tags]:
    """Read a checkpoint and check its digest.

    Raises:
        HflError: there is none, it is damaged, or another program wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        tags = Tags(**{key: metadata[key] for key in ("task", "run", "round", "digest", "software")})
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


def _write(path: Path, tensors: Weights, metadata: dict[str, str]) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise _system_error(error) from error


def _system_error(error: SafetensorError) -> OSError:
    """Return the operating system's error; safetensors tells its number only in its text: "... (os error 28)"."""
    found = re.search(r"os error (\d+)\)", str(error))
    return OSError(int(found.group(1)), os.strerror(int(found.group(1)))) if found else OSError(str(error))
