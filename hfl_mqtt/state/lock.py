"""One folder belongs to one process: two that believe they are the same node would undo each other's work."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from hfl_mqtt import files
from hfl_mqtt.errors import HflError


class Lock:
    """A folder's lock, held until `release`, or until the process is gone, however it went.

    Raises:
        HflError: another process holds it; the message says which.
        Unwritable: the disk is full or read-only.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor: int | None = None
        path = directory / "lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise files.failure(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise HflError(
                f"{directory}: belongs to the running process {holder}: one folder is one node's; end that process, or "
                "give this node a state_dir: and a name of its own"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise files.failure(path, error) from error
        self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        """Whether this process has the folder."""
        return self._descriptor is not None

    def release(self) -> None:
        """Give the folder back. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
