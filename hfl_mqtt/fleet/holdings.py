"""Which papers of a fleet lie where, and whether they are good."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hfl_mqtt.config.site import Broker, Site
from hfl_mqtt.fleet.agents import CARD_FILE, CERTIFICATE_FILE, KEY_FILE
from hfl_mqtt.fleet.authority import Authority, Papers
from hfl_mqtt.fleet.book import USUAL_DAYS, Issued, Kind, common_name
from hfl_mqtt.fleet.certificates import serial_of
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.fleet.sitefile import Home
from hfl_mqtt.ops.brokers import BRIDGE_FILES, BROKER_FILES

_FILES: dict[Kind, tuple[str, str]] = {
    "node": (CERTIFICATE_FILE, KEY_FILE),
    "bridge": BRIDGE_FILES,
    "broker": BROKER_FILES,
}


class Standing(Enum):
    """How the papers of one account stand."""

    GOOD = "good"
    #: None lie there, so new ones are issued; `EXPIRED` and `MOVED` too.
    MISSING = "missing"
    EXPIRED = "expired"
    #: The broker is found elsewhere than its certificate says.
    MOVED = "moved"
    #: Nothing is issued before somebody decides so.
    REVOKED = "revoked"
    #: The device keeps its own key, and has not asked yet.
    AWAITED = "awaited"

    @property
    def is_to_be_issued(self) -> bool:
        """Whether rendering issues new papers."""
        return self in (Standing.MISSING, Standing.EXPIRED, Standing.MOVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The papers of a node, a bridge or a broker; `issued` are those that lie in `folder`, or None."""

    kind: Kind
    path: str
    folder: Path
    hosts: tuple[str, ...] = ()
    standing: Standing
    issued: Issued | None
    #: Of a device that keeps its own, 64 hex digits, once it has asked.
    own_key: str | None = None

    @property
    def subject(self) -> str:
        """The name in the certificate, the account at the broker."""
        return common_name(self.kind, self.path)

    @property
    def is_there(self) -> bool:
        """Whether something lies there that new papers would overwrite."""
        return any((self.folder / name).exists() for name in _FILES[self.kind])

    def issue(self, authority: Authority, *, days: int = USUAL_DAYS) -> Papers:
        """Have papers issued, and put them there."""
        papers = authority.issue(self.kind, self.path, hosts=self.hosts, public_key=self.own_key, days=days)
        put(self.kind, self.folder, papers)
        return papers


def put(kind: Kind, folder: Path, papers: Papers) -> None:
    """Write papers where they belong. While the certificate is not there what is cut short is begun again."""
    certificate, key = _FILES[kind]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / certificate).unlink(missing_ok=True)
    if papers.key:
        write_private(folder / key, papers.key.encode())
    else:
        (folder / key).unlink(missing_ok=True)
    if papers.card:
        write_private(folder / CARD_FILE, f"{papers.card}\n".encode())
    write_private(folder / certificate, papers.certificate.encode())


def holdings(home: Home, site: Site, book: Collection[Issued], now_s: float | None = None) -> list[Holding]:
    """Return the papers that this site needs, as they stand now."""
    return list(_holdings(home, site, book, time.time() if now_s is None else now_s))


def _holdings(home: Home, site: Site, book: Collection[Issued], now_s: float) -> Iterator[Holding]:
    for broker in site.brokers():
        kept = {f"{broker.path}/{name}" for name in broker.place.own_keys}
        folder = home.broker(broker.directory)
        yield _held("broker", broker.path, folder, book, now_s, hosts=_hosts(broker))
        if broker.above is not None:
            yield _held("bridge", broker.path, folder, book, now_s)
        for path in broker.nodes:
            yield _held("node", path, home.node(path), book, now_s, keeps_key=path in kept)


def _hosts(broker: Broker) -> tuple[str, ...]:
    """Return under which hosts a broker is found: by its nodes, and through the tunnels of the farms below."""
    tunnels = [farm.uplink.rpartition(":")[0] for farm in broker.below if farm.uplink is not None]
    return tuple(dict.fromkeys((broker.place.found_at, *tunnels)))


def _held(
    kind: Kind,
    path: str,
    folder: Path,
    book: Collection[Issued],
    now_s: float,
    *,
    hosts: tuple[str, ...] = (),
    keeps_key: bool = False,
) -> Holding:
    given = [one for one in book if (one.kind, one.path) == (kind, path)]
    live = [one for one in given if one.is_live]
    serial = serial_of(folder / _FILES[kind][0])
    here = next((one for one in given if one.serial == serial), None)
    if given and not live:
        standing = Standing.REVOKED
    elif keeps_key and not live:
        standing = Standing.AWAITED
    elif here is None or not here.is_live:
        standing = Standing.MISSING
    elif here.not_after_s <= now_s:
        standing = Standing.EXPIRED
    elif set(here.hosts) != set(hosts):
        standing = Standing.MOVED
    else:
        standing = Standing.GOOD
    own_key = live[-1].key if keeps_key and live else None
    return Holding(kind=kind, path=path, folder=folder, hosts=hosts, standing=standing, issued=here, own_key=own_key)
