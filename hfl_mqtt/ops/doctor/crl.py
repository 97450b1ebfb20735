"""The list of revoked certificates on a broker's own machine.

Mosquitto 2.0 that is told to read its files again and finds a damaged list goes on without any: the revoked are let in,
and nothing says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped

#: As Debian, Ubuntu and Raspberry Pi OS install it.
MOSQUITTO = Path("/etc/mosquitto")
_REMEDY = "put the crl.pem that hfl fleet render wrote there in its place, whole, and reload the broker"


def check_list(folder: Path = MOSQUITTO) -> Finding:
    """See that the list that the broker's configuration names can be read as one."""
    name = "broker's files"
    if not folder.is_dir():
        return skipped(name, f"not on this machine: there is no {folder}")
    try:
        lists = {path: _mistake(path) for path in _lists(folder)}
    except OSError as error:
        what = error.filename or folder
        return skipped(name, f"{what} is not for this user to read; sudo hfl doctor looks at it too")
    if not lists:
        return skipped(name, f"no crlfile in {folder}: this broker knows nobody by certificates")
    for path, mistake in lists.items():
        if mistake:
            return fail(name, f"{path} {mistake}: whoever is revoked may be let in", _REMEDY)
    return ok(name, f"{', '.join(map(str, lists))} can be read")


def _lists(folder: Path) -> Iterator[Path]:
    for conf in (folder / "mosquitto.conf", *sorted((folder / "conf.d").glob("*.conf"))):
        if not conf.exists():
            continue
        for line in conf.read_text(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            if key == "crlfile":
                yield Path(value.strip())


def _mistake(path: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        return "is damaged or empty"
    except FileNotFoundError:
        return "is not there"
    return "" if context.cert_store_stats()["crl"] else "holds no list of revoked certificates"
