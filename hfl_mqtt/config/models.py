"""What stands in the YAML of each role: frozen models that refuse unknown keys and see that keys go together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, model_validator
from typing_extensions import Self

from hfl_mqtt.config import spread
from hfl_mqtt.config.broker import BrokerConfig, IdentityConfig, Secret, looks_at_papers, mistakes_of
from hfl_mqtt.config.conditions import MayTrainConfig
from hfl_mqtt.config.limits import LimitsConfig
from hfl_mqtt.config.sections import (
    GRACE_S,
    Federation,
    ModelSize,
    NodeName,
    PlanConfig,
    Section,
    StrategyText,
    TaskConfig,
    TierConfig,
    node_name,
)
from hfl_mqtt.config.sources import SourceConfig, Taken, taken_apart
from hfl_mqtt.config.units import Duration, LocalPath, Real, Size, Whole, duration_text
from hfl_mqtt.config.wording import KeyPath, misplaced
from hfl_mqtt.protocol import limits, messages
from hfl_mqtt.protocol.topics import is_path, parent
from hfl_mqtt.transport.link import Account

__all__ = [
    "BrokerConfig",
    "ClientConfig",
    "CloudConfig",
    "DemoConfig",
    "DeviceConfig",
    "EdgeConfig",
    "HomeConfig",
    "IdentityConfig",
    "LeaseConfig",
    "LimitsConfig",
    "PlanConfig",
    "Secret",
    "TaskConfig",
    "TierConfig",
    "default_state_dir",
]

#: In one process.
MAX_CLIENTS = 10_000
#: Of the cloud and the edges below it, where a file says nothing of tiers.
_TIERS = (TierConfig(open_for=600.0), TierConfig())


def _root(name: str) -> str:
    if parent(name) is not None:
        raise ValueError(f"must be one name without '/', for the cloud is the root of the tree, got {name!r}")
    return name


def _below_root(name: str) -> str:
    if parent(name) is None:
        raise ValueError(f"must start with its parent's name, such as cloud/{name}, got {name!r}")
    return name


def _children(text: str) -> str:
    """Check a name, or the first and the last of a range: the others are between them."""
    numbers = spread.numbers(text)
    for number in {numbers[0], numbers[-1]}:
        _below_root(node_name(spread.written(text, number)))
    if parent(spread.written(text, numbers[0])) != parent(spread.written(text, numbers[-1])):
        raise ValueError(f"must have its range in the last part, so that all have one parent, got {text[:60]!r}")
    return text


RootName = Annotated[NodeName, AfterValidator(_root)]
ChildName = Annotated[NodeName, AfterValidator(_below_root)]
Seed = Annotated[Whole, Field(ge=0, le=2**53)]
Rounds = Annotated[Whole, Field(ge=1, le=10_000)]


def default_state_dir(federation: str, name: str) -> Path:
    """Return where a node keeps what must survive a restart, unless told otherwise: under `$XDG_STATE_HOME`.

    One flat folder a node, `cloud@farm-a`, so that no node's files lie among its parent's on a shared machine.
    """
    home = os.environ.get("XDG_STATE_HOME", "")
    root = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return root / "hfl-mqtt" / federation / name.replace("/", "@")


class _Node(Section):
    """What every node says of itself."""

    federation: Federation = Field(description="The federation; its members share nothing with another's.")
    broker: BrokerConfig = Field(description="The broker that the node connects to.")
    identity: IdentityConfig | None = Field(
        default=None, description="Sign what counts, and ask the same of parent and children; without it, neither."
    )
    state_dir: LocalPath | None = Field(
        default=None, description="Folder for what must survive a restart; by default under ~/.local/state/hfl-mqtt."
    )


class StopConfig(Section):
    """What ends a run before its last round: whichever comes first."""

    metric: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="The score that target and patience look at; by default the task's own."
    )
    target: Real | None = Field(default=None, description="Stop when a model scores this well.")
    patience: Annotated[Whole, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Stop when the score has not improved for so many rounds."
    )
    budget: Annotated[Size, Field(ge=1)] | None = Field(
        default=None, description="Stop when so many bytes have been moved on all links: 20 MB."
    )


class _Aggregator(_Node):
    """What the cloud and the edges have in common."""

    name: NodeName
    limits: LimitsConfig = Field(
        default=LimitsConfig(), description="What each child may send before it is not heard for a while."
    )

    @model_validator(mode="after")
    def _has_its_papers(self, info: ValidationInfo) -> Self:
        if looks_at_papers(info) and (found := list(_papers_of(self, [self.name]))):
            raise misplaced(*found)
        return self

    def account(self) -> Account:
        """Read the password and return how the node connects; ConfigError where it cannot be read."""
        return self.broker.account(self.name)

    def state_path(self) -> Path:
        """Return the state folder; it may not exist yet."""
        return self.state_dir or default_state_dir(self.federation, self.name)


class CloudConfig(_Aggregator):
    """The root of the tree: it holds the model and says when rounds are."""

    role: Literal["cloud"]
    name: RootName = Field(default="cloud", description="The cloud's name, with which all other names start.")
    task: TaskConfig = Field(description="What is learned.")
    rounds: Rounds = Field(description="Global rounds in a run.")
    seed: Seed = Field(default=0, description="Equal seeds give equal first models and equal cohorts.")
    plan: PlanConfig = Field(default=PlanConfig(), description="What a device does in a round.")
    tiers: Annotated[tuple[TierConfig, ...], Field(min_length=1, max_length=8)] = Field(
        default=_TIERS, description="First the cloud over its children, then each tier of aggregators below it."
    )
    strategy: StrategyText = Field(
        default="fedavg", description="How updates become a model; fedavg(1.5) takes one and a half of each mean step."
    )
    evaluate: bool = Field(default=True, description="Whether devices score the last model when training is over.")
    initial: Literal["auto", "seed", "weights"] = Field(
        default="auto",
        description="How devices come by the first model: they build it from the seed, or are sent its weights; auto "
        "takes the seed where the task builds the same model twice.",
    )
    stop: StopConfig = Field(default=StopConfig(), description="What ends the run before its last round.")
    wait_for: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        default=1, description="Children to be there before round one."
    )
    wait_at_most: Duration = Field(default=600.0, description="How long to wait for them.")
    out: LocalPath | None = Field(
        default=None,
        description="Folder with one per run: model, journal, summary; by default in the state folder.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mistakes = [*self._unreachable(), *_too_short(self.tiers), *_alone(self.tiers)]
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def _unreachable(self) -> Iterator[tuple[KeyPath, str]]:
        first = self.tiers[0]
        if "rounds" in first.model_fields_set:
            yield ("tiers", 0, "rounds"), "the cloud's own rounds stand at the top, in rounds: leave this one out"
        key, count = ("buffer", first.buffer) if first.mode == "async" else ("quorum", first.quorum)
        if isinstance(count, int) and count > self.wait_for:
            yield (
                ("tiers", 0, key),
                f"{count} children must answer, but the first round starts with {self.wait_for}: "
                f"raise wait_for to {count}, or lower this",
            )

    def to_tiers(self) -> tuple[messages.Tier, ...]:
        """Return the tiers as machines take them, the cloud's first, with the global rounds as its own."""
        made: list[messages.Tier] = []
        for index, tier in reversed(list(enumerate(self.tiers))):
            made.insert(0, tier.to_tier(None if index else self.rounds, below=made[0] if made else None))
        return tuple(made)

    def to_plan(self) -> messages.Plan:
        """Return the plan that the cloud sends down: with the tiers below the cloud."""
        return self.plan.to_plan(self.task.label, seed=self.seed, tiers=self.to_tiers()[1:])

    def out_path(self) -> Path:
        """Return the folder for model, journal and summary; it may not exist yet."""
        return self.out or self.state_path() / "out"


def _holder(text: str) -> str:
    if not is_path(text) or "/" in text:
        raise ValueError(f"must be one name of letters, digits, '_', '.' and '-', such as box-1, got {text[:60]!r}")
    return text


class LeaseConfig(Section):
    """One of several processes that could be this edge: whoever holds the lease is."""

    holder: Annotated[str, AfterValidator(_holder)] = Field(
        description="This process's own name; every process that shares the edge's name has another one."
    )
    lasts: Annotated[Duration, Field(ge=1, le=3600)] = Field(
        default=15.0,
        alias="for",
        description="How long a lease lasts: when the holder is lost, another leads after this time and two seconds.",
    )


class EdgeConfig(_Aggregator):
    """An aggregator between its children and its parent. Its rounds are the cloud's to say."""

    role: Literal["edge"]
    name: ChildName = Field(description="The edge's name, below its parent's: cloud/farm-a.")
    journal: LocalPath | None = Field(
        default=None, description="File for the journal; by default journal.jsonl in the state folder."
    )
    max_model: ModelSize = Field(default=limits.MAX_BLOB, description="The largest model that this node takes.")
    until_finished: bool = Field(
        default=False, description="Whether to end when a run has finished, rather than wait for the next."
    )
    lease: LeaseConfig | None = Field(
        default=None, description="Share this edge's name with standbys; one of them goes on when it is lost."
    )

    def state_path(self) -> Path:
        """Return the state folder; it may not exist yet. Each holder of a lease has its own."""
        if self.state_dir is not None or self.lease is None:
            return super().state_path()
        return default_state_dir(self.federation, f"{self.name}@{self.lease.holder}")

    def journal_path(self) -> Path:
        """Return the journal's file; its folder may not exist yet."""
        return self.journal or self.state_path() / "journal.jsonl"


class DeviceConfig(Secret):
    """One client of a process: its name, its data, and its own password where it has one.

    Or many at once, where the name has a range: `cloud/farm-a/pi-{01..50}` stands for pi-01 to pi-50. Its `data`,
    `password_file` and `password_env` may then say `{n}`, the number in the name, and `{index}`, which counts from 0.
    """

    name: Annotated[str, AfterValidator(_children)] = Field(
        description="The client's name, below its parent's: cloud/farm-a/pi-07; or a range, cloud/farm-a/pi-{01..50}."
    )
    data: dict[str, Any] = Field(default_factory=dict, description="Which data is this client's; the task takes it.")

    def each(self) -> tuple[DeviceConfig, ...]:
        """Return the clients that stand here: itself, or those of its range."""
        return tuple(
            self.model_copy(update=spread.written({key: getattr(self, key) for key in self.model_fields_set}, number))
            for number in spread.numbers(self.name)
        )


class HomeConfig(Section):
    """Another place in the tree where a client may go on, when it is assigned there."""

    name: ChildName = Field(description="The client's name there: cloud/farm-b/pi-07.")
    broker: BrokerConfig | None = Field(default=None, description="The broker there; by default the client's own.")
    identity: IdentityConfig | None = Field(
        default=None, description="Its papers there, for a card is for one name; by default the client's own."
    )
    data: dict[str, Any] | None = Field(default=None, description="Which data is its there; by default the same.")


class ClientConfig(_Node):
    """One client, or several that share a process and a parent."""

    role: Literal["client"]
    name: ChildName | None = Field(
        default=None, description="The client's name, below its parent's: cloud/farm-a/pi-07."
    )
    data: dict[str, Any] | None = Field(default=None, description="Which data is this client's; the task takes it.")
    clients: Annotated[tuple[DeviceConfig, ...], Field(min_length=1, max_length=MAX_CLIENTS)] | None = Field(
        default=None, description="Several clients, instead of name and data: one an entry, or a range of them."
    )
    homes: tuple[HomeConfig, ...] = Field(
        default=(), description="Other places where this client may go on, when it is assigned to one (hfl assign)."
    )
    task: TaskConfig = Field(description="What is learned; the same as the cloud's.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train: auto takes a GPU if there is one."
    )
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(default=1, description="Cores to train on.")
    idle: Duration = Field(default=60.0, description="The training process ends after so long without work.")
    priority: Literal["normal", "low", "idle"] = Field(
        default="low",
        description="How training stands to the board's other programs: low gives way to them, idle takes only time "
        "that nobody else wants.",
    )
    may_train: MayTrainConfig | None = Field(
        default=None, description="When the board takes part in a round; by default always."
    )
    max_model: ModelSize = Field(default=limits.MAX_BLOB, description="The largest model that this node takes.")
    until_finished: bool = Field(
        default=False, description="Whether to end when a run has finished, rather than wait for the next."
    )

    #: Where relative paths of sources start.
    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _has_clients_once(self, info: ValidationInfo) -> Self:
        if self.clients is None:
            if self.name is None:
                raise misplaced(((), "name is missing; or clients, a list of several"))
            known = [self.name, *(home.name for home in self.homes)]
            if len(set(known)) < len(known):
                raise misplaced(
                    (("homes",), "hold a name twice: each home has its own, and none is the client's first")
                )
            if looks_at_papers(info) and (found := list(self._mistaken_papers())):
                raise misplaced(*found)
            return self
        count = sum(len(spread.numbers(entry.name)) for entry in self.clients)
        if count > MAX_CLIENTS:
            raise misplaced((("clients",), f"are {count}, at most {MAX_CLIENTS} in one process: start several"))
        mistakes = list(self._mistaken_papers()) if looks_at_papers(info) else []
        mistakes += [
            ((key,), "stands beside clients: each entry there has its own")
            for key in ("name", "data", "homes")
            if getattr(self, key)
        ]
        if self.broker.user is not None and len(self.devices) > 1:
            mistakes.append(
                (("broker", "user"), "is one account for several clients: leave it out, each is its own account")
            )
        first, seen = self.devices[0].name, dict[str, int]()
        for index, entry in enumerate(self.clients):
            names = [device.name for device in entry.each()]
            twice = next((name for name in names if name in seen), None)
            if twice is not None:
                what = "is the name of" if twice == entry.name else f"holds {twice}, which is in"
                text = f"{what} clients[{seen[twice]}] too: each has its own"
                mistakes.append((("clients", index, "name"), text))
            elif parent(names[0]) != parent(first):
                text = (
                    f"is not below {parent(first)}, as {first} is: clients of one process share a parent and its broker"
                )
                mistakes.append((("clients", index, "name"), text))
            seen.update((name, seen.get(name, index)) for name in names)
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def _mistaken_papers(self) -> Iterator[tuple[KeyPath, str]]:
        yield from _papers_of(self, [device.name for device in self.devices])
        for index, home in enumerate(self.homes):
            if home.broker is not None:
                yield from mistakes_of(home.broker.tls, ("homes", index, "broker", "tls"), [home.name])
            yield from mistakes_of(home.identity, ("homes", index, "identity"), [home.name])

    @model_validator(mode="after")
    def _has_good_sources(self, info: ValidationInfo) -> Self:
        self._folder = (info.context or {}).get("folder")
        given: list[tuple[KeyPath, dict[str, Any] | None]] = [(("data",), self.data)]
        given += [(("homes", index, "data"), home.data) for index, home in enumerate(self.homes)]
        given += [(("clients", index, "data"), entry.each()[0].data) for index, entry in enumerate(self.clients or ())]
        mistakes: list[tuple[KeyPath, str]] = []
        for path, data in given:
            taken = taken_apart(data or {}, self.task.name, self._folder)
            mistakes += [((*path, *below), text) for below, text in taken.mistakes]
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def taken_apart(self, device: DeviceConfig) -> Taken:
        """Return a client's data options taken apart: its source, where it has one, and the task's own options."""
        return taken_apart(device.data, self.task.name, self._folder)

    def sensors_account(self, device: DeviceConfig, source: SourceConfig) -> Account:
        """Return how a client connects to hear sensors; ConfigError where a password cannot be read."""
        return self.account(device) if source.broker is None else source.broker.account(device.name)

    def window_path(self, device: DeviceConfig) -> Path:
        """Return the file of the rows of a client's source; its folder may not exist yet."""
        return self.state_path(device) / "window.db"

    @cached_property
    def devices(self) -> tuple[DeviceConfig, ...]:
        """The clients, whichever way they are written."""
        if self.clients is not None:
            return tuple(device for entry in self.clients for device in entry.each())
        assert self.name is not None
        return (DeviceConfig(name=self.name, data=self.data or {}),)

    def account(self, device: DeviceConfig) -> Account:
        """Read the password and return how a client connects; ConfigError where it cannot be read."""
        return self.broker.account(device.name, device)

    @property
    def home_names(self) -> tuple[str, ...]:
        """All names under which this client may go on, its own first; none where it has no other."""
        return (self.devices[0].name, *(home.name for home in self.homes)) if self.homes else ()

    def at(self, name: str) -> ClientConfig:
        """Return it as if it were written for one of its homes; the folder of its state stays what it is."""
        home = next((home for home in self.homes if home.name == name), None)
        if home is None:
            return self
        changes: dict[str, Any] = {"name": home.name, "state_dir": self.vault_path()}
        changes |= {"broker": home.broker or self.broker, "identity": home.identity or self.identity}
        moved = self.model_copy(update=changes | ({"data": home.data} if home.data is not None else {}))
        moved.__dict__.pop("devices", None)
        return moved

    def state_path(self, device: DeviceConfig) -> Path:
        """Return a client's own state folder; it may not exist yet."""
        if self.state_dir is None:
            return default_state_dir(self.federation, device.name)
        return self.state_dir if self.clients is None else self.state_dir / device.name.rpartition("/")[2]

    def vault_path(self) -> Path:
        """Return the folder of what the clients of this process make durable together; it may not exist yet."""
        return self.state_dir or self.state_path(self.devices[0])


class DemoConfig(Section):
    """A whole federation on one machine: `hfl demo`. What is not given is taken from the task's own example plan."""

    role: Literal["demo"] = "demo"
    task: TaskConfig = Field(default=TaskConfig(name="soil-moisture"), description="What is learned.")
    seed: Seed = Field(default=0, description="Equal seeds give equal models.")
    rounds: Rounds | None = Field(default=None, description="Global rounds.")
    farms: Annotated[Whole, Field(ge=1, le=100)] | None = Field(default=None, description="Farms, each with an edge.")
    clients: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(default=None, description="Devices in all.")
    plan: PlanConfig | None = Field(default=None, description="What a device does in a round.")
    tiers: Annotated[tuple[TierConfig, ...], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="The cloud's tier and the edges'."
    )
    data_dir: LocalPath | None = Field(
        default=None, description="Folder of the data, where the task does not bring its own."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mistakes = [*_too_short(self.tiers or ()), *_alone(self.tiers or ())]
        if self.farms is not None and self.clients is not None and self.clients < self.farms:
            mistakes.append((("clients",), f"{self.clients} devices do not fill {self.farms} farms: each needs one"))
        if mistakes:
            raise misplaced(*mistakes)
        return self


def _papers_of(config: _Node, names: Sequence[str]) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong with the papers of these nodes, where each has its own."""
    yield from mistakes_of(config.broker.tls, ("broker", "tls"), names)
    yield from mistakes_of(config.identity, ("identity",), names)


def _alone(tiers: tuple[TierConfig, ...]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the tiers whose work without their parent nobody would take."""
    for index, tier in enumerate(tiers):
        if not tier.offline_rounds:
            continue
        path: KeyPath = ("tiers", index, "offline_rounds")
        if not index:
            yield path, "the cloud has no parent to be cut off from: it stands in the tier of the edges"
        elif not tiers[index - 1].takes_late_updates:
            yield (
                path,
                f"what an edge brings when it is back is late, and the tier above drops that: set tiers[{index - 1}]."
                "late to discount or next, or leave this out",
            )


def _too_short(tiers: tuple[TierConfig, ...]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the tiers that do not wait for what the tier below them may take."""
    for index, (above, tier) in enumerate(pairwise(tiers)):
        needed = tier.rounds * tier.open_for
        rounds = f"{tier.rounds} round{'s' if tier.rounds > 1 else ''}"
        if needed > above.open_for:
            yield (
                ("tiers", index + 1, "open_for"),
                f"{rounds} of {duration_text(tier.open_for)} can take {duration_text(needed)}, but the tier above "
                f"waits only {duration_text(above.open_for)}: raise tiers[{index}].open_for, or lower this",
            )
        waits = tier.rounds * (GRACE_S if tier.grace is None else tier.grace)
        if above.grace is not None and waits and above.grace <= waits:
            yield (
                ("tiers", index, "grace"),
                f"is over before the tier below has waited for its stragglers, up to {duration_text(waits)} in "
                f"{rounds}: one slow device would cost its farm the round; make it longer, or leave it out",
            )
