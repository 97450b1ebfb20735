"""A bundle: all that a node is given, as one flat tar of a few known names.

Whoever carries it may have changed it, so the reader takes nothing but regular files of these names, each once and of
a bounded size, and it takes all of them or none. It walks the blocks itself and follows no extension of the format,
since those are where links, sparse files and endless sizes come from.

`python -m hfl_mqtt.fleet.bundle unpack TAR DIR` needs no library but what an agent has: `install.sh` calls it.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from hfl_mqtt.errors import ConfigError, HflError, Malformed, Misuse
from hfl_mqtt.files import failure
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.protocol.limits import MAX_BUNDLE_FILE

#: All that can be in a bundle, in the order in which it is written. `node.key` is not where a device keeps its own;
#: `password` stands for all papers where a lab has none.
NAMES = ("agent.yaml", "ca.crt", "node.crt", "node.key", "node.card", "fleet.pub", "revoked", "hfl.service", "password")

_BLOCK = tarfile.BLOCKSIZE
#: A bundle with its headers, what fills its blocks up, and the end that `tar` writes.
_MOST_BYTES = len(NAMES) * (MAX_BUNDLE_FILE + 2 * _BLOCK) + 2 * tarfile.RECORDSIZE
_END = bytes(_BLOCK)


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the tar of these files; the same files give the same bytes.

    Raises:
        Misuse: a name is none of `NAMES`, or a file is too large.
    """
    for name, data in files.items():
        if name not in NAMES or len(data) > MAX_BUNDLE_FILE:
            raise Misuse(f"{name!r} with {len(data)} bytes is nothing for a bundle")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in NAMES:
            if name in files:
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(files[name]), 0o600
                tar.addfile(member, io.BytesIO(files[name]))
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of a tar that came from anywhere.

    Raises:
        Malformed: it is anything but a bundle; the message says what in it.
    """
    if len(data) > _MOST_BYTES:
        raise Malformed(f"more than {_MOST_BYTES} bytes")
    files: dict[str, bytes] = {}
    at = 0
    while (block := data[at : at + _BLOCK]) != _END:
        name, size = _header(block)
        at += _BLOCK
        if name in files:
            raise Malformed(f"{name} stands in it twice")
        if at + size > len(data):
            raise Malformed(f"it ends within {name}")
        files[name] = data[at : at + size]
        at += -(-size // _BLOCK) * _BLOCK
    if data[at:].strip(b"\0"):
        raise Malformed("something stands behind its end")
    if not files:
        raise Malformed("it is empty")
    return files


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle, readable for its owner only: it may hold a key.

    Raises:
        HflError: it cannot be written.
        Misuse: as `pack`.
    """
    write_private(path, pack(files))


def read(path: Path) -> dict[str, bytes]:
    """Read a bundle.

    Raises:
        ConfigError: it cannot be read, or is anything but a bundle.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return unpack(data)
    except Malformed as error:
        raise ConfigError(f"{path}: is no bundle: {error}; nothing was unpacked. Render it again at home") from None


def unpack_to(path: Path, directory: Path) -> list[str]:
    """Write a bundle's files into a directory, each 0600 and at once, and return their names.

    The bundle is read whole before anything is written. What it has not is left: a device's own key.

    Raises:
        ConfigError: as `read`.
        HflError: a file cannot be written.
    """
    files = read(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise failure(directory, error) from error
    for name, data in files.items():
        write_private(directory / name, data)
    return list(files)


def main(arguments: list[str]) -> int:
    """Unpack or list a bundle for a script: its names on stdout, or one line on stderr and a status that says so."""
    try:
        match arguments:
            case ["unpack", tar, directory]:
                names = unpack_to(Path(tar), Path(directory))
            case ["list", tar]:
                names = list(read(Path(tar)))
            case _:
                sys.stderr.write("usage: python -m hfl_mqtt.fleet.bundle unpack TAR DIR | list TAR\n")
                return 2
    except HflError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return 0


def _header(block: bytes) -> tuple[str, int]:
    """Return the name and the size that a header says, once both are what a bundle may have."""
    try:
        header = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Malformed(f"not a tar: {error}") from None
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise Malformed(f"{header.name[:80]!a} is no regular file but a link, a folder, a device or an extension")
    if header.name not in NAMES:
        raise Malformed(f"{header.name[:80]!a} is none of its names ({', '.join(NAMES)})")
    if not 0 <= header.size <= MAX_BUNDLE_FILE:
        raise Malformed(f"{header.name} has {header.size} bytes, and at most {MAX_BUNDLE_FILE} are allowed")
    return header.name, header.size


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
