"""A whole federation on this machine: real bridged brokers and one process per node or farm, all children of ours.

The demo, the benchmarks and the tests stand on it. Every farm's bridge runs through a relay that counts its bytes: the
WAN. A client only ever knows the port of its own farm's broker.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hfl_mqtt.config.site import Cloud, Farm, Site
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import brokers, children
from hfl_mqtt.ops.mosquitto import Mosquitto, free_ports
from hfl_mqtt.ops.papers import Laid, Papers
from hfl_mqtt.ops.relay import Relay
from hfl_mqtt.transport.link import Account

HOST = "127.0.0.1"
LEAVE_S = 20.0
_VIEWERS = ("viewer",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A client and its data."""

    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FarmPlan:
    """A farm and its devices. They share one process, unless `is_split`."""

    name: str
    devices: tuple[Device, ...]
    is_split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What to run: sections as they stand in the cloud's YAML."""

    farms: tuple[FarmPlan, ...]
    task: Mapping[str, Any]
    rounds: int
    seed: int
    plan: Mapping[str, Any] = field(default_factory=dict)
    tiers: tuple[Mapping[str, Any], ...] = ({"open_for": "120 s"}, {"open_for": "60 s"})
    evaluate: bool = True
    federation: str = "demo"
    until_finished: bool = False
    #: Further keys of the cloud's YAML, such as `strategy` and `stop`.
    cloud: Mapping[str, Any] = field(default_factory=dict)

    @property
    def clients(self) -> list[str]:
        """The paths of all devices."""
        return [f"cloud/{farm.name}/{device.name}" for farm in self.farms for device in farm.devices]


class LocalFederation:
    """Brokers, relays and processes in one directory.

    Args:
        plan: what to run.
        directory: where everything is written: configurations, secrets, logs, journals, the model.
        is_relayed: whether bridges run through relays, which count and may cut; else straight to the cloud's broker.
        is_metered: whether devices reach their farm's broker through counting relays, too.
        is_all_metered: whether edges and cloud do so as well, which are on their brokers' own machines.
        device_metrics: whether bridges carry the metrics of devices, so that they are seen at the cloud's broker.
        papers: gives certificates to all, who then speak TLS and nothing else; without it they have passwords.
        is_signed: whether nodes with papers sign what counts.
    """

    def __init__(
        self,
        plan: RunPlan,
        directory: Path,
        *,
        is_relayed: bool = True,
        is_metered: bool = False,
        is_all_metered: bool = False,
        device_metrics: bool = False,
        papers: Papers | None = None,
        is_signed: bool = True,
    ) -> None:
        self.plan = plan
        self.directory = directory
        self._is_relayed, self._is_metered, self._is_all_metered = is_relayed, is_metered, is_all_metered
        self._device_metrics = device_metrics
        #: Where the papers lie; None where there are passwords.
        self.papers = None if papers is None else Laid(papers, directory / "papers", is_signed=is_signed)
        self._viewer_ports: dict[str, int] = {}
        #: By farm: between its devices and its broker. By node: between an edge or the cloud and its own broker.
        self.lan_relays: dict[str, Relay] = {}
        self.local_relays: dict[str, Relay] = {}
        self.brokers: dict[str, Mosquitto] = {}
        self.relays: dict[str, Relay] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._broker_dir = directory / "brokers"
        self._state_dir = directory / "state"

    # -------------------------------------------------------------- brokers

    def render_brokers(self) -> None:
        """Write the configuration of the cloud's broker and of every farm's, bridged through relays."""
        farms = self.plan.farms
        # The relays hold their ports first, so none of them takes one that was found free for a broker.
        for farm in farms if self._is_relayed else ():
            self.relays[farm.name] = Relay(HOST, HOST, target_port=0)
        ports = free_ports(2 * (1 + len(farms)), HOST)
        paths = ("cloud", *(f"cloud/{farm.name}" for farm in farms))
        if self.papers is not None:
            self._viewer_ports = dict(zip(paths, ports[1 + len(farms) :], strict=True))
        for relay in self.relays.values():
            relay.target_port = ports[0]
        if self._is_metered or self._is_all_metered:
            self._meter(dict(zip(paths, ports, strict=False)))
        site = Site(
            federation=self.plan.federation,
            viewers=_VIEWERS,
            security="passwords" if self.papers is None else "mtls",
            device_metrics=self._device_metrics,
            cloud=Cloud(port=ports[0], viewer_port=self._viewer_ports.get("cloud"), bind=HOST, host=HOST),
            farms=tuple(
                Farm(
                    name=farm.name,
                    port=port,
                    viewer_port=self._viewer_ports.get(f"cloud/{farm.name}"),
                    bind=HOST,
                    host=HOST,
                    uplink=f"{HOST}:{self.relays[farm.name].port if self._is_relayed else ports[0]}",
                    devices=tuple(device.name for device in farm.devices),
                )
                for farm, port in zip(farms, ports[1:], strict=False)
            ),
        )
        brokers.render_to(site, self._broker_dir, brokers.Layout.beside(self._broker_dir))
        if self.papers is not None:
            self.papers.lay(site, self._broker_dir)
        for broker in site.brokers():
            conf = self._broker_dir / broker.directory / "mosquitto.conf"
            self.brokers[broker.path] = Mosquitto(conf, broker.place.port)

    def _meter(self, ports: Mapping[str, int]) -> None:
        for path, port in ports.items():
            if self._is_all_metered:
                self.local_relays[path] = Relay(HOST, HOST, target_port=port)
            if path != "cloud":
                self.lan_relays[path] = Relay(HOST, HOST, target_port=port)

    def start_brokers(self) -> None:
        """Start all brokers, rendered here where that has not been done.

        Raises:
            BrokerError: Mosquitto is not installed or does not start.
        """
        if not self.brokers:
            self.render_brokers()
        for broker in self.brokers.values():
            broker.start()

    def account(self, user: str, broker: str = "cloud") -> Account:
        """Return an account at one of the brokers: a node's, or a viewer's."""
        is_viewer, port = user in _VIEWERS, self.brokers[broker].port
        if self.papers is None:
            return Account(host=HOST, port=port, user=user, password=self.secret_path(user).read_text().strip())
        if not is_viewer:
            return Account(host=HOST, port=port, user=user, tls=self.papers.files(user))
        password, files = self.secret_path(user).read_text().strip(), self.papers.files("cloud", is_viewer=True)
        return Account(host=HOST, port=self._viewer_ports[broker], user=user, password=password, tls=files)

    def papers_dir(self, path: str) -> Path:
        """Return the folder of a node's papers; only where nodes have some."""
        assert self.papers is not None
        return self.papers.folder(path)

    def secret_path(self, user: str) -> Path:
        """Return the file that holds an account's password."""
        return brokers.secret_path(self._broker_dir, user)

    def wan_bytes(self) -> tuple[int, int]:
        """Return the bytes on all bridges since the start, up to the cloud and down from it."""
        relays = self.relays.values()
        return sum(relay.up_bytes for relay in relays), sum(relay.down_bytes for relay in relays)

    def lan_bytes(self) -> tuple[int, int]:
        """Return the bytes between all devices and their brokers, up and down; only where it is metered."""
        relays = self.lan_relays.values()
        return sum(relay.up_bytes for relay in relays), sum(relay.down_bytes for relay in relays)

    def local_bytes(self) -> int:
        """Return the bytes between edges and cloud and the brokers on their own machines; only where it is metered."""
        return sum(relay.up_bytes + relay.down_bytes for relay in self.local_relays.values())

    # -------------------------------------------------------------- nodes

    def start_nodes(self) -> None:
        """Write every node's YAML and start the edges, the clients and the cloud."""
        self.start_farms()
        self.start_cloud()

    def start_farms(self) -> None:
        """Start the edges and the clients."""
        for farm in self.plan.farms:
            self.start_edge(farm.name)
            for name in self.client_processes(farm):
                self.start_client(name)

    def start_cloud(self) -> None:
        """Start the cloud's process."""
        plan = self.plan
        self._start("cloud", "cloud", "cloud", {
            "task": dict(plan.task),
            "rounds": plan.rounds,
            "seed": plan.seed,
            "plan": dict(plan.plan),
            "tiers": [dict(tier) for tier in plan.tiers],
            "evaluate": plan.evaluate,
            "wait_for": len(plan.farms),
            "wait_at_most": "2 min",
            "out": str(self.directory / "out"),
            **plan.cloud,
        })  # fmt: skip

    def start_edge(self, farm: str) -> None:
        """Start a farm's edge."""
        path = f"cloud/{farm}"
        self._start("edge", path, path, {"until_finished": self.plan.until_finished})

    def client_processes(self, farm: FarmPlan) -> list[str]:
        """Return the names of the processes of a farm's devices."""
        if farm.is_split:
            return [f"cloud/{farm.name}/{device.name}" for device in farm.devices]
        return [f"cloud/{farm.name}/*"]

    def start_client(self, name: str) -> None:
        """Start one of `client_processes`."""
        farm = next(farm for farm in self.plan.farms if name.startswith(f"cloud/{farm.name}/"))
        clients = [
            {
                "name": path,
                "data": dict(device.data),
                **({"password_file": str(self.secret_path(path))} if self.papers is None else {}),
            }
            for device in farm.devices
            if name in ((path := f"cloud/{farm.name}/{device.name}"), f"cloud/{farm.name}/*")
        ]
        settings = {"clients": clients, "task": dict(self.plan.task), "until_finished": self.plan.until_finished}
        self._start("client", name, f"cloud/{farm.name}", settings)

    def stop_nodes(self) -> None:
        """End all nodes in order: the clients first, the cloud last."""
        names = sorted(self.processes, key=lambda name: (-name.count("/"), name))
        for depth in (2, 1, 0):
            children.stop([self.processes[name] for name in names if name.count("/") == depth], LEAVE_S)

    def stop(self) -> None:
        """End everything. Idempotent."""
        self.stop_nodes()
        for broker in self.brokers.values():
            broker.stop()
        for relay in (*self.relays.values(), *self.lan_relays.values(), *self.local_relays.values()):
            relay.close()

    def log_path(self, name: str) -> Path:
        """Return what a process prints to."""
        return self.directory / f"{_file_name(name)}.log"

    @property
    def out(self) -> Path:
        """The folder of the last run: its model, its summary, its journal."""
        return self.directory / "out" / "latest"

    def journals(self) -> list[Path]:
        """Return the journals written so far."""
        return sorted(self.directory.rglob("journal.jsonl"))

    def check_cloud(self) -> int | None:
        """Return the cloud's exit status once it has ended well.

        Raises:
            HflError: it has failed; the message says how it ended, and has the end of its log.
        """
        status = self.processes["cloud"].poll()
        if status:
            raise HflError(f"the cloud {children.end_of(status)}{children.log_tail(self.log_path('cloud'))}")
        return status

    def _port(self, role: str, broker: str) -> int:
        relay = (self.lan_relays if role == "client" else self.local_relays).get(broker)
        return relay.port if relay is not None else self.brokers[broker].port

    def _start(self, role: str, name: str, broker: str, settings: Mapping[str, Any]) -> None:
        document = {
            "role": role,
            "federation": self.plan.federation,
            **({"name": name} if role != "client" else {}),
            "broker": {"host": HOST, "port": self._port(role, broker)},
            "state_dir": str(self._state_dir / _file_name(name)),
            **settings,
        }
        if self.papers is not None:
            own = f"{broker}/{{name}}" if role == "client" else name
            document["broker"]["tls"] = self.papers.tls(own)
            document |= self.papers.sections(own)
        elif role != "client":
            document["broker"]["password_file"] = str(self.secret_path(name))
        config_path = self.directory / f"{_file_name(name)}.yaml"
        config_path.write_text(yaml.safe_dump(document, sort_keys=False))
        command = [sys.executable, "-m", "hfl_mqtt.cli", role, "--config", str(config_path), "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes[name] = children.start(command, self.log_path(name), environment)


def _file_name(name: str) -> str:
    return name.replace("/", "-").replace("*", "clients")
