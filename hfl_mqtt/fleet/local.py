"""`hfl fleet up`: the whole rendered fleet on this machine, brokers, edges and devices, until Ctrl-C.

What runs is what was rendered, unpacked from the bundles; hosts, ports and folders are this machine's, and the devices
of a farm share a process, each with its own key and account. The cloud's own program is for you to start, with the
command that is printed: it ends when its run is over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfl_mqtt.config.site import Farm, Place, Site, node_folder
from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.fleet import agents, bundle
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.fleet.render import Plan, plan
from hfl_mqtt.fleet.sitefile import Home
from hfl_mqtt.ops import brokers, children, signals
from hfl_mqtt.ops.brokers import BRIDGE_FILES, BROKER_FILES, CA_FILE, CRL_FILE, Layout
from hfl_mqtt.ops.mosquitto import Mosquitto, free_ports

HOST = "127.0.0.1"
LEAVE_S = 20.0
MAX_PORT = 65535
#: In place of a device's name: all of a farm, which share a process here.
_DEVICES = "_devices"
_LISTENERS = ("port", "viewer_port", "websockets_port")


def at_home(site: Site, ports: Iterator[int]) -> Site:
    """Return the site as it is when all of it is on this machine, with these ports."""
    cloud_port = 0

    def moved(place: Place, above_port: int) -> Place:
        nonlocal cloud_port
        changes: dict[str, object] = {"host": HOST, "bind": HOST}
        changes |= {key: next(ports) for key in _LISTENERS if getattr(place, key) is not None}
        own_port = int(str(changes["port"]))
        if isinstance(place, Farm):
            changes |= {"uplink": f"{HOST}:{above_port}", "farms": tuple(moved(each, own_port) for each in place.farms)}
        else:
            cloud_port = own_port
        return place.model_copy(update=changes)

    cloud = moved(site.cloud, 0)
    return site.model_copy(update={"cloud": cloud, "farms": tuple(moved(farm, cloud_port) for farm in site.farms)})


def count_ports(site: Site) -> int:
    """Return how many ports `at_home` takes."""
    return sum(getattr(broker.place, key) is not None for broker in site.brokers() for key in _LISTENERS)


class LocalFleet:
    """The brokers, edges and devices of a fleet as our children, in its folder `local`.

    Args:
        home: the fleet's folder, rendered.
        first_port: brokers listen on this port and those after it; without it, on free ones.

    Raises:
        ConfigError: the folder is not as the site file says.
    """

    def __init__(self, home: Home, *, first_port: int | None = None) -> None:
        made = plan(home)
        _check_rendered(made)
        ports = _ports(count_ports(made.site), first_port)
        self.home, self._plan = home, made
        self.site = at_home(made.site, iter(ports))
        self.folder = home.local
        self.brokers: dict[str, Mosquitto] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def check_ports(self) -> None:
        """See that every port is free, before anything is written.

        Raises:
            BrokerError: one is not.
        """
        places = [broker.place for broker in self.site.brokers()]
        for port in [getattr(place, key) for place in places for key in _LISTENERS]:
            if port is None:
                continue
            try:
                socket.create_server((HOST, port)).close()
            except OSError as error:
                raise BrokerError(f"{HOST}:{port} is taken ({error.strerror}); choose another --first-port") from None

    def write(self) -> None:
        """Write what everything here runs on; what nodes and brokers have kept from the last time stays."""
        passwords = brokers.read_passwords(self.site, self.home.folder)
        out = self.folder / "brokers"
        brokers.write_to(out, brokers.render(self.site, passwords, Layout.beside(out)))
        for broker in self.site.brokers():
            (out / broker.directory / "data").mkdir(mode=0o700, exist_ok=True)
            if self.site.has_certificates:
                names = [CA_FILE, CRL_FILE, *BROKER_FILES, *(BRIDGE_FILES if broker.above else ())]
                for name in names:
                    shutil.copy2(self.home.broker(broker.directory) / name, out / broker.directory / name)
            self.brokers[broker.path] = Mosquitto(out / broker.directory / "mosquitto.conf", broker.place.port)
            for path in broker.nodes:
                if path in self._plan.bundled:
                    bundle.unpack_to(self.home.bundle(path), self.config(path).parent)
                    self._write_config(path, agents.document(self.site, broker, path, state_dir="state"))
            if devices := [path for path in broker.devices if path in self.nodes("client")]:
                document = agents.together(self.site, broker, devices, state_dir="state")
                self._write_config(f"{broker.path}/{_DEVICES}", document)

    def _write_config(self, path: str, document: Mapping[str, Any]) -> None:
        self.config(path).parent.mkdir(mode=0o700, exist_ok=True)
        self.config(path).write_text(agents.text(document), encoding="utf-8")

    def config(self, path: str) -> Path:
        """Return the YAML with which a node runs here."""
        return self.folder / node_folder(path) / agents.AGENT_FILE

    def nodes(self, role: str) -> list[str]:
        """Return the nodes of a role that can run here: those with a bundle that holds their key."""
        return [
            path
            for broker in self.site.brokers()
            for path in broker.nodes
            if path in self._plan.bundled
            and agents.role_of(broker, path) == role
            and (not self.site.has_certificates or (self.config(path).parent / agents.KEY_FILE).exists())
        ]

    def watching(self) -> str:
        """Return the command that shows the fleet, or nothing where nobody may look."""
        if not self.site.viewers:
            return ""
        viewer, place = self.site.viewers[0], self.site.cloud
        words = f"hfl watch --federation {self.site.federation} --host {HOST} --user {viewer}"
        words += f" --password-file {brokers.secret_path(self.home.folder, viewer)}"
        if not self.site.has_certificates:
            return f"{words} --port {place.port}"
        return f"{words} --port {place.viewer_port} --ca {self.folder / 'brokers' / place.name / CA_FILE}"

    def start(self) -> None:
        """Start the brokers, then the edges, then the devices.

        Raises:
            BrokerError: a broker does not start.
        """
        for mosquitto in self.brokers.values():
            mosquitto.start()
        edges, devices = self.nodes("edge"), self.nodes("client")
        for path in edges:
            self._start("edge", path)
        for broker in self.site.brokers():
            if any(path in devices for path in broker.devices):
                self._start("client", f"{broker.path}/{_DEVICES}")

    def _start(self, role: str, path: str) -> None:
        command = [sys.executable, "-m", "hfl_mqtt.cli", role, "--config", str(self.config(path)), "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes[path] = children.start(command, self.log_path(path), environment)

    def follow(self) -> list[str]:
        """Bring what has been rendered since to those that run, where it says who may come in; return who was told.

        On other machines somebody carries these files there and reloads Mosquitto; nodes look at theirs by themselves.
        """
        told = []
        for broker in self.site.brokers():
            source, target = self.home.broker(broker.directory), self.folder / "brokers" / broker.directory
            names = ["acl", "passwd", *([CRL_FILE] if self.site.has_certificates else [])]
            changed = [name for name in names if _differs(source / name, target / name)]
            for name in changed:
                # At once and whole: with half a list Mosquitto would let everybody in.
                write_private(target / name, (source / name).read_bytes())
            if changed and self.brokers[broker.path].pid is not None:  # that one has ended was told
                self.brokers[broker.path].reload()
                told.append(f"the broker of {broker.path}")
            for path in broker.nodes:
                lists = [folder / agents.REVOKED_FILE for folder in (self.home.node(path), self.config(path).parent)]
                if all(each.exists() for each in lists) and _differs(*lists):
                    write_private(lists[1], lists[0].read_bytes())
        return told

    def runs(self, path: str) -> bool:
        """Return whether an edge's process, or a device's, which it shares, has not ended."""
        shared = f"{path.rpartition('/')[0]}/{_DEVICES}"
        process = self.processes.get(path) or self.processes.get(shared)
        return process is not None and process.poll() is None

    def ended(self) -> dict[str, str]:
        """Return what has ended and why, brokers and processes alike."""
        found = {
            f"the broker of {path}": f"has ended{children.log_tail(broker.log_path)}"
            for path, broker in self.brokers.items()
            if broker.pid is None
        }
        for path, process in self.processes.items():
            if (status := process.poll()) is not None:
                above, _, last = path.rpartition("/")
                name = f"the process of {above}'s devices" if last == _DEVICES else path
                found[name] = f"{children.end_of(status)}; the others go on{children.log_tail(self.log_path(path))}"
        return found

    def log_path(self, path: str) -> Path:
        """Return what a node prints to."""
        return self.config(path).parent / "log"

    def stop(self) -> None:
        """End everything, the devices first. Idempotent."""
        names = sorted(self.processes, key=lambda path: -path.count("/"))
        children.stop([self.processes[name] for name in names], LEAVE_S)
        for broker in self.brokers.values():
            broker.stop()


@contextmanager
def running(home: Home, *, first_port: int | None = None) -> Iterator[LocalFleet]:
    """Run a fleet for as long as the block; signals unwind it and leave nothing running."""
    with signals.as_interrupt(), _alone(home.local):
        fleet = LocalFleet(home, first_port=first_port)
        fleet.check_ports()
        try:
            with signals.held_back():
                fleet.write()
                fleet.start()
            yield fleet
        finally:
            signals.ignore()
            fleet.stop()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a fleet's `local` folder: what a second one would write there, the first one runs on.

    Raises:
        ConfigError: somebody holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: this fleet is up already; end it there with Ctrl-C first") from None
        yield


def _ports(count: int, first: int | None) -> Sequence[int]:
    if first is None:
        return free_ports(count, HOST)
    if first + count - 1 > MAX_PORT:
        raise ConfigError(
            f"--first-port {first}: this fleet takes {count} ports from there, and {MAX_PORT} is the last; "
            f"at most {MAX_PORT - count + 1}"
        )
    return range(first, first + count)


def _differs(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()


def _check_rendered(made: Plan) -> None:
    missing = [change.path for change in made.changes]
    missing += [f"papers of {one.subject}" for one in made.to_issue]
    missing += [f"the bundle of {path}" for path in made.bundled if not made.home.bundle(path).exists()]
    if missing:
        raise ConfigError(
            f"{made.home.folder}: not as {made.home.site_file.name} says ({missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}); first: hfl fleet render"
        )
