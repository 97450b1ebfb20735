"""Papers that a person asks for by name: taken back, renewed, or granted to a device that keeps its own key.

People and sensors have passwords in place of papers.
"""

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
from hfl_mqtt.ops.brokers import redraw_password
from hfl_mqtt.protocol.topics import parent


def _agreed(_told: str) -> bool:
    return True


def revoke(
    home: Home, path: str, *, keep_newest: bool = False, confirm: Callable[[str], bool] = _agreed
) -> tuple[Issued, ...]:
    """Take back all papers of a path, its broker's and its bridge's too; return those that were good until now.

    Raises:
        ConfigError: there are none, or `confirm` does not agree.
    """
    site = home.load()
    authority = _authority(home, site)
    path = full(site, path)
    given = [one for one in authority.issued if one.path == path]
    live = {kind: [one for one in given if one.is_live and one.kind == kind] for kind in KINDS}
    going = [one for own in live.values() for one in (own[:-1] if keep_newest else own)]
    if not going:
        raise ConfigError(_why_nothing_goes(site, authority, path))
    told = "".join(f"{one.subject}: its papers (serial {one.serial}) will be good for nothing\n" for one in going)
    if not confirm(told):
        raise ConfigError("nothing was revoked")
    gone: list[Issued] = []
    for kind, own in live.items():
        if own:
            gone += authority.revoke(path, kinds=(kind,), keep=own[-1].serial if keep_newest else None)
    return tuple(gone)


def _why_nothing_goes(site: Site, authority: Authority, path: str) -> str:
    given = [one for one in authority.issued if one.path == path]
    if any(one.is_live for one in given):
        return f"{path}: has no papers but the newest that are good"
    if given:
        return f"{path}: is revoked already; to let it in again: hfl fleet rotate {path}"
    known = {one.path for one in authority.issued} | {node for broker in site.brokers() for node in broker.nodes}
    return f"{path}: has no papers{_meant(path, sorted(known))}"


def rotate(home: Home, path: str | None, *, days: int, confirm: Callable[[str], bool]) -> list[str]:
    """Issue new papers to a path, its broker and its bridge, or to everybody; return who has got some.

    What was issued before stays good: a board goes on with it until its new bundle is there.

    Raises:
        ConfigError: no such path in the site, or `confirm` does not agree.
    """
    site = home.load()
    authority = _authority(home, site)
    asked, path = path, None if path is None else full(site, path)
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
        hint = _meant(asked or "", site.without_papers()) or _meant(path or "", [one.path for one in held])
        raise ConfigError(f"{path}: is no node of {home.site_file} that has papers{hint}")
    told = "".join(f"{one.subject}: new papers{'' if one.own_key else ' and a new key'}\n" for one in chosen)
    if not confirm(told):
        raise ConfigError("nothing was issued")
    for one in chosen:
        one.issue(authority, days=days)
    return [one.subject for one in chosen]


def redraw(home: Home, account: str, *, confirm: Callable[[str], bool]) -> None:
    """Draw the password of a person's or a sensor's account anew; what is rendered then has the old one nowhere.

    Raises:
        ConfigError: the passwords cannot be read or written, or `confirm` does not agree.
    """
    told = f"{account}: a new password; a broker that has its new passwd refuses the old one\n"
    if not confirm(told):
        raise ConfigError("nothing was drawn")
    redraw_password(home.load(), home.folder, account)


def sign(home: Home, file: Path, *, days: int, confirm: Callable[[str], bool] = _agreed) -> str:
    """Give a device that keeps its own key its papers; return its path.

    `confirm` is shown the key's fingerprint, to be compared with what the board printed: whoever can swap the file on
    its way has the name otherwise.

    Raises:
        ConfigError: the file is no good request, the site has no such device, or `confirm` does not agree.
        HflError: as `requests.sign`.
    """
    site = home.load()
    authority = _authority(home, site)
    request = requests.read_request_file(file)
    found = next((one for one in _devices(home, authority) if one.path == request.path), None)
    if found is None:
        raise ConfigError(
            f"{file}: {request.path} is no device with a key of its own in {home.site_file}; "
            f"first: hfl fleet add device NAME --farm FARM --own-key, or name it in own_keys there"
        )
    told = f"{request.path} asks for papers for the key with the fingerprint {requests.fingerprint(request.key)}\n"
    if not confirm(told):
        raise ConfigError("nothing was signed")
    put("node", found.folder, requests.sign(authority, request, days=days))
    return request.path


def _authority(home: Home, site: Site) -> Authority:
    if not site.has_certificates:
        raise ConfigError(
            f"{home.site_file}: security is passwords, so there are no papers; to shut somebody out take the name out "
            "of the file and render"
        )
    return Authority.open(home.authority(site))


def full(site: Site, path: str) -> str:
    """Return the path of a node that is named with or without the cloud's name before it."""
    is_whole = path == site.cloud.name or path.startswith(f"{site.cloud.name}/")
    return path if is_whole else f"{site.cloud.name}/{path}"


def _meant(path: str, known: list[str]) -> str:
    """Return a question after what was likely meant: a neighbour, for nobody revokes another farm's by a slip."""
    if path in known:
        return ""
    meant = near(path, [one for one in dict.fromkeys(known) if parent(one) == parent(path)])
    return f"; did you mean {meant}?" if meant is not None else ""


def _devices(home: Home, authority: Authority) -> list[Holding]:
    site = home.load()
    kept = {f"{broker.path}/{name}" for broker in site.brokers() for name in broker.place.own_keys}
    return [one for one in holdings(home, site, authority.issued) if one.kind == "node" and one.path in kept]
