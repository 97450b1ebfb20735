"""Papers that a person asks for by name: taken back, renewed, or granted to a device that keeps its own key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hfl_mqtt.config.site import Site
from hfl_mqtt.config.wording import near
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet import requests
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.book import KINDS, Issued
from hfl_mqtt.fleet.holdings import Holding, Standing, holdings, put
from hfl_mqtt.fleet.sitefile import Home


def revoke(home: Home, path: str, *, keep_newest: bool = False) -> tuple[Issued, ...]:
    """Take back all papers of a path, its broker's and its bridge's too; return those that were good until now.

    Raises:
        ConfigError: there are none.
    """
    site = home.load()
    authority = Authority.open(home.authority(site))
    path = full(site, path)
    live = [one for one in authority.issued if one.is_live]
    gone: list[Issued] = []
    for kind in KINDS:
        own = [one.serial for one in live if (one.path, one.kind) == (path, kind)]
        if own:
            gone += authority.revoke(path, kinds=(kind,), keep=own[-1] if keep_newest else None)
    if not gone:
        which = "but the newest " if keep_newest else ""
        raise ConfigError(f"{path}: has no papers {which}that are good{_meant(path, [one.path for one in live])}")
    return tuple(gone)


def rotate(home: Home, path: str | None, *, days: int, confirm: Callable[[str], bool]) -> list[str]:
    """Issue new papers to a path, its broker and its bridge, or to everybody; return who has got some.

    What was issued before stays good: a board goes on with it until its new bundle is there.

    Raises:
        ConfigError: no such path in the site, or `confirm` does not agree.
    """
    site = home.load()
    authority = Authority.open(home.authority(site))
    path = None if path is None else full(site, path)
    held = holdings(home, site, authority.issued)
    chosen = [
        one
        for one in held
        if path in (None, one.path)
        and one.standing is not Standing.AWAITED
        # Somebody who was shut out is let in again by name only.
        and not (path is None and one.standing is Standing.REVOKED)
    ]
    if not chosen:
        hint = _meant(path or "", [one.path for one in held])
        raise ConfigError(f"{path}: is no node of {home.site_file} that has papers{hint}")
    told = "".join(f"{one.subject}: new papers{'' if one.own_key else ' and a new key'}\n" for one in chosen)
    if not confirm(told):
        raise ConfigError("nothing was issued")
    for one in chosen:
        one.issue(authority, days=days)
    return [one.subject for one in chosen]


def sign(home: Home, file: Path, *, days: int) -> str:
    """Give a device that keeps its own key its papers; return its path.

    Raises:
        ConfigError: the file is no good request, or the site has no such device.
        HflError: as `requests.sign`.
    """
    site = home.load()
    authority = Authority.open(home.authority(site))
    request = requests.read_request_file(file)
    found = next((one for one in _devices(home, authority) if one.path == request.path), None)
    if found is None:
        raise ConfigError(
            f"{file}: {request.path} is no device with a key of its own in {home.site_file}; "
            f"first: hfl fleet add device NAME --farm FARM --own-key, or name it in own_keys there"
        )
    put("node", found.folder, requests.sign(authority, request, days=days))
    return request.path


def full(site: Site, path: str) -> str:
    """Return the path of a node that is named with or without the cloud's name before it."""
    is_whole = path == site.cloud.name or path.startswith(f"{site.cloud.name}/")
    return path if is_whole else f"{site.cloud.name}/{path}"


def _meant(path: str, known: list[str]) -> str:
    meant = near(path, list(dict.fromkeys(known)))
    return f"; did you mean {meant}?" if meant is not None and meant != path else ""


def _devices(home: Home, authority: Authority) -> list[Holding]:
    site = home.load()
    kept = {f"{broker.path}/{name}" for broker in site.brokers() for name in broker.place.own_keys}
    return [one for one in holdings(home, site, authority.issued) if one.kind == "node" and one.path in kept]
