"""Files that are for one pair of eyes: 0600 from their first byte on, and whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from hfl_mqtt import files


def write_private(path: Path, data: bytes) -> None:
    """Write a small file that only its owner reads; after any crash it is the old one or the new one.

    Raises:
        HflError: as `files.replace`.
    """

    def write(temporary: Path) -> None:
        # What a crash left there, or a link that somebody laid, is not written through.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)

    files.replace(path, write)
