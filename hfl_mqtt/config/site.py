"""The site file: which brokers and accounts one federation has, and how the brokers form a tree.

The cloud's broker stands at the top and a farm's below it; a farm may have farms of its own below (a region). An
account exists only on the broker where its owner connects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config.wording import KeyPath, misplaced
from hfl_mqtt.protocol import topics

#: In the output, beside the brokers' directories.
PASSWORDS_FILE = "passwords.yaml"
SECRETS_DIR = "secrets"


def _segment(text: str) -> str:
    if not topics.is_path(text) or "/" in text:
        raise ValueError("a name is letters, digits, `_`, `.` and `-`, and starts with a letter or digit")
    return text


Name = Annotated[str, AfterValidator(_segment)]
Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,253}$")]


class Place(BaseModel):
    """A broker and the devices that connect to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    port: Port = 1883
    #: The address it listens on; without it, every address of the machine.
    bind: Host | None = None
    #: A second port for browsers.
    websockets_port: Port | None = None
    #: Where the brokers below find it; only a broker with farms below needs it.
    host: Host | None = None
    devices: tuple[Name, ...] = ()


class Farm(Place):
    """A broker below another."""

    #: `host:port` where it finds the broker above, if not at that one's own: the near end of a tunnel, or a relay.
    uplink: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,253}:[0-9]{1,5}$")] | None = None
    farms: tuple[Farm, ...] = ()


class Cloud(Place):
    """The broker at the top."""

    name: Name = "cloud"


class Site(BaseModel):
    """All brokers and accounts of one federation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["site"] = "site"
    federation: Name
    cloud: Cloud
    farms: tuple[Farm, ...] = ()
    #: Whether bridges carry the metrics of the nodes below a farm's edge, too: some hundred bytes a device and round.
    #: Without it they are read at the farm's own broker.
    device_metrics: bool = False
    #: Accounts for people: they read all JSON on every broker, and no weights.
    viewers: tuple[Name, ...] = ("viewer",)

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        if mistakes := list(self._mistakes()):
            raise misplaced(*mistakes)
        return self

    def _mistakes(self) -> Iterator[tuple[KeyPath, str]]:
        brokers = list(self.brokers())
        nodes = [node for broker in brokers for node in broker.named]
        viewers: list[tuple[KeyPath, str]] = [(("viewers", index), name) for index, name in enumerate(self.viewers)]
        for keys, path in nodes:
            if not topics.is_path(path):
                yield keys, f"{path!r} is too long a path, or lies more than {topics.MAX_DEPTH} levels deep"
        for broker in brokers:
            if broker.below and broker.place.host is None:
                yield broker.keys, f"{broker.path} has farms below it, so it needs `host:`, where they find it"
        told: set[KeyPath] = set()
        for keys, viewer in viewers:
            if viewer == self.cloud.name:
                told.add(keys)
                yield keys, f"the viewer {viewer!r} is called like the cloud and would have its rights; rename it"
        yield from _twice([*nodes, *viewers], "{!r} stands in this site twice; rename one", told)
        directories = [((*broker.keys, "name"), broker.directory) for broker in brokers]
        text = "the files of two brokers, or of one and our own, would be called {!r}; rename one"
        yield from _twice([((), PASSWORDS_FILE), ((), SECRETS_DIR), *directories], text, told)
        bridges = [((*broker.keys, "name"), bridge_account(broker.path)) for broker in brokers if broker.above]
        secrets = [(keys, secret_name(account)) for keys, account in [*nodes, *bridges, *viewers]]
        yield from _twice(secrets, "two secrets would be {!r}; rename one", told)

    def brokers(self) -> Iterator[Broker]:
        """Yield every broker, each after the one above it."""
        yield (root := Broker(self.cloud.name, self.cloud, None, self.farms, ("cloud",)))
        yield from _below(root)

    def accounts(self) -> list[str]:
        """Return every account of the site once: nodes, bridges, viewers."""
        nodes = [path for broker in self.brokers() for path in broker.nodes]
        bridges = [bridge_account(broker.path) for broker in self.brokers() if broker.above]
        return [*nodes, *bridges, *self.viewers]


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
    def bridges(self) -> list[str]:
        """The paths of the brokers that bridge to this one."""
        return [f"{self.path}/{farm.name}" for farm in self.below]

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


def _below(broker: Broker) -> Iterator[Broker]:
    above: KeyPath = () if broker.above is None else broker.keys
    for index, farm in enumerate(broker.below):
        keys = (*above, "farms", index)
        yield (child := Broker(f"{broker.path}/{farm.name}", farm, broker, farm.farms, keys))
        yield from _below(child)


def _twice(names: Iterable[tuple[KeyPath, str]], text: str, told: set[KeyPath]) -> Iterator[tuple[KeyPath, str]]:
    """Yield each name that stood before, at its second place; a place stands in `told` once something is said of it."""
    seen = set[str]()
    for keys, name in names:
        if name in seen and keys not in told:
            told.add(keys)
            yield keys, text.format(name)
        seen.add(name)
