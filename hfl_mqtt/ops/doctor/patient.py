"""The node that is examined: what its YAML says, of whichever role."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfl_mqtt.config.broker import BrokerConfig, IdentityConfig, Secret, TlsConfig
from hfl_mqtt.config.models import ClientConfig, CloudConfig, EdgeConfig
from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.sections import PlanConfig, TaskConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.learning.sources.source import Source
from hfl_mqtt.protocol.topics import Channel, Topic, parent
from hfl_mqtt.transport.link import Account

#: Below a channel, and one level deeper than anything that a node listens to: rights reach there, ears do not.
CORNER = "doctor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One node. Of a process of several clients it is one of them.

    `account` reads the password, and raises ConfigError where it cannot; `secret_files` are the files that nobody else
    should read. `data` are the task's own options, and `source` where the data comes from, if not from them. `others`
    are the papers, and whose, of its other homes and of the other clients of its process.
    """

    role: str
    federation: str
    name: str
    broker: BrokerConfig
    account: Callable[[], Account]
    state_dir: Path
    secret_files: tuple[Path, ...] = ()
    identity: IdentityConfig | None = None
    task: TaskConfig | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    others: tuple[tuple[str, TlsConfig | IdentityConfig], ...] = ()
    plan: PlanConfig = field(default_factory=PlanConfig)
    device: str = "auto"
    threads: int = 1

    @property
    def parent(self) -> str | None:
        """The node above it; None for the cloud."""
        return parent(self.name)

    @property
    def is_aggregator(self) -> bool:
        """Whether others send it their updates."""
        return self.role != "client"

    @property
    def place(self) -> str:
        """Its broker, for people."""
        return f"{self.broker.host}:{self.broker.port}"

    @property
    def nobody(self) -> str:
        """A child of its that is not there: what is said to it is heard by nobody."""
        return f"{self.name}/not-there"

    def corner(self, channel: Channel, name: str, *, of: str | None = None) -> str:
        """Return a topic of its own, or of the node `of`, to which nobody listens and on which nothing is kept."""
        return str(Topic(self.federation, of or self.name, channel, f"{CORNER}/{name}"))


def load(path: Path, name: str | None = None) -> Patient:
    """Read a role's YAML; its papers may be broken, for they are examined.

    Args:
        path: the YAML of a client, an edge or the cloud.
        name: which client, where the file has several; by default the first.

    Raises:
        ConfigError: the file is wrong or for another role, or has no client of that name.
    """
    config = load_any(path, with_papers=False)
    match config:
        case ClientConfig():
            return _of_client(path, config, name)
        case EdgeConfig() | CloudConfig():
            if name not in (None, config.name):
                raise ConfigError(f"{path}: is for {config.name}, not for {name}")
            is_cloud = isinstance(config, CloudConfig)
            return Patient(
                role="cloud" if is_cloud else "edge",
                federation=config.federation,
                name=config.name,
                broker=config.broker,
                account=config.account,
                state_dir=config.state_path(),
                secret_files=_secrets(config.name, config.broker, config.broker, config.identity),
                identity=_own(config.identity, config.name),
                task=config.task if isinstance(config, CloudConfig) else None,
                plan=config.plan if isinstance(config, CloudConfig) else PlanConfig(),
            )
        case _:
            raise ConfigError(f"{path}: give the YAML of a client, an edge or the cloud")


def _of_client(path: Path, config: ClientConfig, name: str | None) -> Patient:
    device = next((each for each in config.devices if name in (None, each.name)), None)
    if device is None:
        raise ConfigError(f"{path}: has no client {name}; its first is {config.devices[0].name}")
    taken = config.taken_apart(device)
    return Patient(
        role="client",
        federation=config.federation,
        name=device.name,
        broker=config.broker,
        account=lambda: config.account(device),
        state_dir=config.state_path(device),
        secret_files=_secrets(
            device.name, device if device.has_password else config.broker, config.broker, config.identity
        ),
        identity=_own(config.identity, device.name),
        task=config.task,
        data=device.data if taken.source is None else taken.options,
        source=None if taken.source is None else taken.source.to_source(config.window_path(device)),
        device=config.device,
        threads=config.threads or 1,
        others=tuple(_of_others(config, device.name)),
    )


def _of_others(config: ClientConfig, name: str) -> Iterator[tuple[str, TlsConfig | IdentityConfig]]:
    for each in config.devices:
        for papers in (config.broker.tls, config.identity):
            if papers is not None and not papers.is_shared and each.name != name:
                yield each.name, papers.at(each.name)
    for home in config.homes:
        for papers in (home.broker.tls if home.broker is not None else None, home.identity):
            if papers is not None:
                yield home.name, papers.at(home.name)


def _secrets(name: str, secret: Secret, broker: BrokerConfig, identity: IdentityConfig | None) -> tuple[Path, ...]:
    """Return the files that let a node in and that it signs with, each once."""
    papers, own = broker.tls.at(name) if broker.tls is not None else None, _own(identity, name)
    found = [secret.password_file, papers.key_file if papers else None, own.key_file if own else None]
    return tuple(dict.fromkeys(path for path in found if path is not None))


def _own(identity: IdentityConfig | None, name: str) -> IdentityConfig | None:
    return identity.at(name) if identity is not None else None
