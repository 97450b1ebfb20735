"""A whole fleet of real Mosquittos as `hfl fleet` renders it, certificates everywhere, and people to speak to them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hfl_mqtt.config.site import node_folder
from hfl_mqtt.fleet import sitefile
from hfl_mqtt.fleet.agents import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.local import HOST, LocalFleet
from hfl_mqtt.fleet.render import render
from hfl_mqtt.fleet.sitefile import Home
from hfl_mqtt.ops.brokers import password_hash, secret_path
from tests.broker.sites import WITNESS, Person, cross


def rendered(folder: Path, *edits: tuple[str, str], **devices: list[str]) -> Home:
    """Make a fleet's folder: a cloud and the farms named, as `farm_a=["pi-1"]`; `edits` are done to the site file."""
    home = sitefile.create(folder, "fed1", cloud_host=HOST, security="mtls")
    Authority.create(home.authority(home.load()), "fed1")
    for name, own in devices.items():
        sitefile.add_farm(home, name.replace("_", "-"), devices=own)
    for old, new in edits:
        assert old in home.site_file.read_text()
        home.site_file.write_text(home.site_file.read_text().replace(old, new))
    render(home, confirm=lambda _: False)
    return home


class LockedSite:
    """The brokers of a rendered fleet on this machine; its nodes are the tests' to play."""

    def __init__(self, home: Home, stack: ExitStack) -> None:
        self.home = home
        self.fleet = LocalFleet(home)
        self.fleet.write()
        self.site = self.fleet.site
        self.places = {broker.directory: broker for broker in self.site.brokers()}
        stack.callback(self.fleet.stop)
        for broker in self.places.values():
            self._admit_witness(self.fleet.folder / "brokers" / broker.directory)
            self.fleet.brokers[broker.path].start()
        self._people: list[Person] = []
        stack.callback(self._all_leave)
        for name, broker in self.places.items():
            if broker.above is not None:
                above, below = self.person("cloud", WITNESS), self.person(name, WITNESS)
                cross(broker.path, above, below)

    def context(self, folder: Path, certificate: str = CERTIFICATE_FILE, key: str = KEY_FILE) -> ssl.SSLContext:
        """Return how whoever has these papers connects."""
        context = ssl.create_default_context(cafile=str(self.fleet.folder / "brokers" / "cloud" / CA_FILE))
        context.load_cert_chain(folder / certificate, folder / key)
        return context

    def person(self, broker: str, account: str, *filters: str) -> Person:
        """Connect as this account: people with a password, all others with their certificate."""
        place = self.places[broker].place
        if account in (*self.site.with_password(), WITNESS):
            assert place.viewer_port is not None
            password = WITNESS if account == WITNESS else secret_path(self.home.folder, account).read_text().strip()
            tls = ssl.create_default_context(cafile=str(self.fleet.folder / "brokers" / "cloud" / CA_FILE))
            one = Person(place.viewer_port, account, password, *filters, tls=tls)
        elif account.startswith("_bridge/"):
            farm = next(each for each in self.places.values() if each.path == account.removeprefix("_bridge/"))
            folder = self.home.broker(farm.directory)
            tls = self.context(folder, "bridge.crt", "bridge.key")
            one = Person(place.port, account, None, *filters, tls=tls)
        else:
            folder = self.fleet.folder / node_folder(account)
            one = Person(place.port, account, None, *filters, tls=self.context(folder))
        self._people.append(one)
        return one

    def _admit_witness(self, broker: Path) -> None:
        with (broker / "passwd").open("a") as passwd:
            passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
        with (broker / "acl").open("a") as acl:
            acl.write(f"user {WITNESS}\ntopic readwrite #\ntopic readwrite $SYS/#\n")

    def _all_leave(self) -> None:
        for one in self._people:
            one.leave()


@contextmanager
def locked_site(folder: Path, *edits: tuple[str, str], **devices: list[str]) -> Iterator[LockedSite]:
    """Render and start a fleet's brokers; see `rendered`."""
    with ExitStack() as stack:
        yield LockedSite(rendered(folder, *edits, **devices), stack)
