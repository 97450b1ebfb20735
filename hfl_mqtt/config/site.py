"""The site file: which brokers and accounts one federation has, and how the brokers form a tree.

The cloud's broker stands at the top and a farm's below it; a farm may have farms of its own below (a region). An
account exists only on the broker where its owner connects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config.wording import KeyPath, misplaced
from hfl_mqtt.protocol import limits, topics

#: In the output, beside the brokers' directories.
PASSWORDS_FILE = "passwords.yaml"
SECRETS_DIR = "secrets"

#: Where brokers listen unless a site file says otherwise: for nodes, with client certificates, and for people.
MTLS_PORT, VIEWER_PORT = 8884, 8883
#: The name in a certificate has at most so many characters (X.509, ub-common-name).
MAX_COMMON_NAME = 64


def _segment(text: str) -> str:
    if not topics.is_path(text) or "/" in text:
        raise ValueError("a name is letters, digits, `_`, `.` and `-`, and starts with a letter or digit")
    return text


def _sensor_filter(text: str) -> str:
    if not topics.is_sensor_topic(text.removesuffix("/#")):
        raise ValueError(
            "must be topics such as sensors/# or field-1/+/soil, and none of the federation's, which cross bridges"
        )
    return text


Name = Annotated[str, AfterValidator(_segment)]
SensorFilter = Annotated[str, AfterValidator(_sensor_filter)]
Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,253}$")]


class Place(BaseModel):
    """A broker and the devices that connect to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    #: By default 1883, and 8884 where `security` is mtls.
    port: Port = 1883
    #: The address it listens on; without it, every address of the machine.
    bind: Host | None = None
    #: A second port for browsers.
    websockets_port: Port | None = None
    #: A port for people, TLS and a password; only where `security` is mtls, by default 8883.
    viewer_port: Port | None = None
    #: Where its nodes and the brokers below find it; a broker with farms below needs it, for others it is NAME.local.
    host: Host | None = None
    devices: tuple[Name, ...] = ()
    #: By device, what stands under `data:` in its YAML; others have that of `agents`.
    data: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    #: The devices that keep their own keys: they are given papers when they ask, see `hfl device request`.
    own_keys: tuple[Name, ...] = ()
    #: Topics of sensors, which its devices may read: sensors/#. They never leave this broker.
    sensors: tuple[SensorFilter, ...] = ()
    #: Accounts that write there and do nothing else; they have passwords.
    sensor_accounts: tuple[Name, ...] = ()
    #: The broker takes no more memory than this; whoever makes it want more is disconnected. Without it, all there is.
    memory_mb: Annotated[int, Field(ge=16, le=1_000_000)] | None = None

    @property
    def found_at(self) -> str:
        """The host at which its own nodes find it."""
        return self.host or f"{self.name}.local"


class Farm(Place):
    """A broker below another."""

    #: `host:port` where it finds the broker above, if not at that one's own: the near end of a tunnel, or a relay.
    uplink: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,253}:[0-9]{1,5}$")] | None = None
    farms: tuple[Farm, ...] = ()


class Cloud(Place):
    """The broker at the top."""

    name: Name = "cloud"


class Agents(BaseModel):
    """What stands in the YAML of agents and cannot be told from the site: sections as they stand there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: dict[str, Any] = Field(default_factory=lambda: {"name": "soil-moisture"})
    #: For every device that has none of its own.
    data: dict[str, Any] = Field(default_factory=dict)
    cloud: dict[str, Any] = Field(default_factory=dict)
    edge: dict[str, Any] = Field(default_factory=dict)
    client: dict[str, Any] = Field(default_factory=dict)


class Site(BaseModel):
    """All brokers and accounts of one federation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["site"] = "site"
    federation: Name
    #: passwords: for labs, MQTT in the clear. mtls: TLS, and a certificate for every node, bridge and broker.
    security: Literal["passwords", "mtls"] = "passwords"
    cloud: Cloud
    farms: tuple[Farm, ...] = ()
    #: Whether bridges carry the metrics of the nodes below a farm's edge, too: some hundred bytes a device and round.
    #: Without it they are read at the farm's own broker.
    device_metrics: bool = False
    #: Accounts for people: they read all JSON on every broker, and no weights.
    viewers: tuple[Name, ...] = ("viewer",)
    #: For `hfl fleet`, which writes the YAML of every node as well.
    agents: Agents = Agents()
    #: The folder of the certificate authority, from the site file's own: on a stick that is not always plugged in.
    authority: Annotated[str, Field(min_length=1)] = "authority"

    @model_validator(mode="before")
    @classmethod
    def _listens_where_its_profile_does(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("security") != "mtls":
            return given
        return given | {"cloud": _with_ports(given.get("cloud")), "farms": _all_with_ports(given.get("farms", []))}

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        if mistakes := list(self._mistakes()):
            raise misplaced(*mistakes)
        return self

    def _mistakes(self) -> Iterator[tuple[KeyPath, str]]:
        brokers = list(self.brokers())
        nodes = [node for broker in brokers for node in broker.named]
        people: list[tuple[KeyPath, str]] = [(("viewers", index), name) for index, name in enumerate(self.viewers)]
        sensors = [named for broker in brokers for named in broker.named_sensors]
        for keys, path in nodes:
            if not topics.is_path(path):
                yield keys, f"{path!r} is too long a path, or lies more than {limits.MAX_DEPTH} levels deep"
        yield from self._misfits(brokers, nodes)
        for broker in brokers:
            if broker.below and broker.place.host is None:
                yield broker.keys, f"{broker.path} has farms below it, so it needs `host:`, where they find it"
            named: list[tuple[KeyPath, str]] = [(("data", name), name) for name in broker.place.data]
            named += [(("own_keys", index), name) for index, name in enumerate(broker.place.own_keys)]
            for keys, name in named:
                if name not in broker.place.devices:
                    yield (*broker.keys, *keys), f"{name!r} is no device of {broker.path}: name it in `devices` too"
            if broker.place.sensor_accounts and not broker.place.sensors:
                yield (
                    (*broker.keys, "sensor_accounts"),
                    "have nowhere to write: say in `sensors` which topics are theirs",
                )
        told: set[KeyPath] = set()
        for kind, named in (("viewer", people), ("sensors' account", sensors)):
            for keys, name in named:
                if name == self.cloud.name:
                    told.add(keys)
                    yield keys, f"the {kind} {name!r} is called like the cloud and would have its rights; rename it"
        yield from _twice([*nodes, *people, *sensors], "{!r} stands in this site twice; rename one", told)
        directories = [((*broker.keys, "name"), broker.directory) for broker in brokers]
        text = "the files of two brokers, or of one and our own, would be called {!r}; rename one"
        yield from _twice([((), PASSWORDS_FILE), ((), SECRETS_DIR), *directories], text, told)
        folders = [(keys, node_folder(path)) for keys, path in nodes]
        yield from _twice(folders, "the bundles of two nodes would be called {!r}; rename one", told)
        bridges = [((*broker.keys, "name"), bridge_account(broker.path)) for broker in brokers if broker.above]
        secrets = [(keys, secret_name(account)) for keys, account in [*nodes, *bridges, *people, *sensors]]
        yield from _twice(secrets, "two secrets would be {!r}; rename one", told)

    def _misfits(self, brokers: list[Broker], nodes: list[tuple[KeyPath, str]]) -> Iterator[tuple[KeyPath, str]]:
        """Yield what does not go with this kind of security."""
        if not self.has_certificates:
            for broker in brokers:
                if broker.place.viewer_port is not None:
                    yield (*broker.keys, "viewer_port"), "is a TLS port: say `security: mtls`, or leave it out"
            return
        for keys, path in nodes:
            if len(path) > MAX_COMMON_NAME and topics.is_path(path):
                yield keys, f"{path!r} is longer than the {MAX_COMMON_NAME} characters that a certificate can name"
        for broker in brokers:
            if len(bridge_account(broker.path)) > MAX_COMMON_NAME >= len(broker.path):
                room = MAX_COMMON_NAME - len(bridge_account(""))
                yield (
                    (*broker.keys, "name"),
                    f"{broker.path!r} is longer than {room}, its bridge's certificate has no room",
                )
            ports = [(key, getattr(broker.place, key)) for key in ("port", "viewer_port", "websockets_port")]
            taken = [((*broker.keys, key), port) for key, port in ports if port is not None]
            yield from _twice(taken, "{!r} is another listener's port of this broker; give each its own", set())

    @property
    def has_certificates(self) -> bool:
        """Whether nodes, bridges and brokers prove by certificates who they are."""
        return self.security == "mtls"

    def brokers(self) -> Iterator[Broker]:
        """Yield every broker, each after the one above it."""
        yield (root := Broker(self.cloud.name, self.cloud, None, self.farms, ("cloud",)))
        yield from _below(root)

    def accounts(self) -> list[str]:
        """Return every account of the site once: nodes, bridges, viewers, sensors."""
        nodes = [path for broker in self.brokers() for path in broker.nodes]
        bridges = [bridge_account(broker.path) for broker in self.brokers() if broker.above]
        return [*nodes, *bridges, *self.without_papers()]

    def with_password(self) -> list[str]:
        """Return every account that has a password: all, or people and sensors where the others have certificates."""
        return self.without_papers() if self.has_certificates else self.accounts()

    def with_secret(self) -> list[str]:
        """Return every account that has a secret here: those with a password, and all bridges, for their client ids."""
        passwords = self.with_password()
        return [
            account for account in self.accounts() if account in passwords or account.startswith(bridge_account(""))
        ]

    def without_papers(self) -> list[str]:
        """Return the accounts of people and sensors, which have passwords whatever the nodes have."""
        return [*self.viewers, *(name for broker in self.brokers() for name in broker.place.sensor_accounts)]


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker in the tree: `path` is the node that aggregates there, `above` the broker it bridges to."""

    path: str
    place: Place
    above: Broker | None
    below: tuple[Farm, ...]
    #: Where it stands in the site file.
    keys: KeyPath

    @property
    def devices(self) -> list[str]:
        """The paths of the devices that connect here."""
        return [f"{self.path}/{device}" for device in self.place.devices]

    @property
    def nodes(self) -> list[str]:
        """The paths of all nodes that connect here: the aggregator and its devices."""
        return [self.path, *self.devices]

    @property
    def named(self) -> list[tuple[KeyPath, str]]:
        """The paths of all nodes that connect here, each with where its name stands in the site file."""
        devices = [((*self.keys, "devices", index), path) for index, path in enumerate(self.devices)]
        return [((*self.keys, "name"), self.path), *devices]

    @property
    def named_sensors(self) -> list[tuple[KeyPath, str]]:
        """The accounts of the sensors that connect here, as `named`."""
        return [((*self.keys, "sensor_accounts", index), name) for index, name in enumerate(self.place.sensor_accounts)]

    @property
    def bridges(self) -> list[str]:
        """The paths of the brokers that bridge to this one."""
        return [f"{self.path}/{farm.name}" for farm in self.below]

    @property
    def children(self) -> list[str]:
        """The paths of all whose updates its aggregator collects: those of the brokers below it and of its devices."""
        return [*self.bridges, *self.devices]

    @property
    def directory(self) -> str:
        """Where its files lie in the output: `cloud`, `farm-a`, `region-1-farm-a`."""
        return self.path if self.above is None else "-".join(self.path.split("/")[1:])


def bridge_account(path: str) -> str:
    """Return the account under which the broker of `path` connects to the one above; see `topics`."""
    return topics.bridge_account(path)


def secret_name(account: str) -> str:
    """Return the name of the file that holds this account's password; `Site` sees to it that no two are equal."""
    return account.replace("/", "-")


def node_folder(path: str) -> str:
    """Return what the folder and the bundle of a node are called; `Site` sees to it that no two are equal.

    >>> node_folder("cloud/farm-a/pi-1")
    'cloud.farm-a.pi-1'
    """
    return path.replace("/", ".")


def _below(broker: Broker) -> Iterator[Broker]:
    above: KeyPath = () if broker.above is None else broker.keys
    for index, farm in enumerate(broker.below):
        keys = (*above, "farms", index)
        yield (child := Broker(f"{broker.path}/{farm.name}", farm, broker, farm.farms, keys))
        yield from _below(child)


def _with_ports(place: Any) -> Any:
    """Return a place of a site file with the ports that it has where certificates are used, and the farms below it."""
    if not isinstance(place, dict):
        return place
    below = {"farms": _all_with_ports(place["farms"])} if "farms" in place else {}
    return {"port": MTLS_PORT, "viewer_port": VIEWER_PORT} | place | below


def _all_with_ports(farms: Any) -> Any:
    return [_with_ports(farm) for farm in farms] if isinstance(farms, list | tuple) else farms


def _twice(names: Iterable[tuple[KeyPath, Any]], text: str, told: set[KeyPath]) -> Iterator[tuple[KeyPath, str]]:
    """Yield each name that stood before, at its second place; a place stands in `told` once something is said of it.

    Names are host names and folders too, and there case need not count.
    """
    seen: dict[Any, Any] = {}
    for keys, name in names:
        plain = name.lower() if isinstance(name, str) else name
        if plain not in seen:
            seen[plain] = name
        elif keys not in told:
            told.add(keys)
            two = f"{seen[plain]!r} and {name!r} differ only in case: DNS and some disks take them for one; rename one"
            yield keys, text.format(name) if seen[plain] == name else two
