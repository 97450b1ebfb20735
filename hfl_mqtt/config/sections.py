"""The sections that roles share: `task:`, `plan:` and the entries of `tiers:`; `broker:` has a file of its own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from typing_extensions import Self

from hfl_mqtt import registry
from hfl_mqtt.config.units import Duration, LocalPath, Quorum, Real, Share, Size, Whole, located, parse_size
from hfl_mqtt.config.wording import KeyPath, misplaced, near
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.protocol import limits, messages
from hfl_mqtt.protocol.topics import is_federation, is_path

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.\-]{0,252})\Z")


def node_name(text: str) -> str:
    """Return `text` if it names a node; ValueError otherwise."""
    if not is_path(text):
        raise ValueError(
            "must be a node's name, such as cloud/farm-a/pi-07: letters, digits, '_', '.' and '-' in at most 8 parts "
            f"with '/' between, got {text[:60]!r}"
        )
    return text


def _federation(text: str) -> str:
    if not is_federation(text):
        raise ValueError(f"must be one name of letters, digits, '_', '.' and '-', such as orchard, got {text[:60]!r}")
    return text


def _host(text: str) -> str:
    if _HOST.match(text):
        return text
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        hint = ": the port stands in a key of its own, `port`" if ":" in text else ""
        raise ValueError(
            f"must be a host's name or address alone, such as 192.168.1.10, got {text[:60]!r}{hint}"
        ) from None


def registered(group: str) -> Any:
    """Return a validator for the name of something registered, e.g. in `"tasks"`; nothing is loaded."""

    def check(name: str) -> str:
        known = registry.names(group)
        if name not in known:
            meant = near(name, known)
            hint = f", did you mean {meant!r}?" if meant else f"; known are {', '.join(known) or 'none'}"
            raise ValueError(f"no {registry.SINGULAR[group]} is called {name[:60]!r}{hint}")
        return name

    return AfterValidator(check)


def _strategy(text: str) -> str:
    try:
        registry.make("strategies", text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _codec_or_auto(text: str) -> str:
    return text if text == messages.AUTO else _codec(text)


def _a_round(value: Any) -> int:
    """Return the bytes of `2 MB/round`, or of a plain size."""
    text = value.strip() if isinstance(value, str) else value
    return parse_size(text[: -len("/round")].rstrip() if isinstance(text, str) and text.endswith("/round") else text)


def _codec(text: str) -> str:
    from hfl_mqtt.learning import codecs  # it brings numpy, which a file without codecs does not need

    try:
        return str(codecs.parse(text))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _existing(path: Path, info: ValidationInfo) -> Path:
    if "folder" in (info.context or {}) and not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


NodeName = Annotated[str, AfterValidator(node_name)]
Federation = Annotated[str, AfterValidator(_federation)]
Host = Annotated[str, AfterValidator(_host)]
ExistingFile = Annotated[LocalPath, AfterValidator(_existing)]
ModelSize = Annotated[Size, Field(ge=1, le=limits.MAX_BLOB)]
CodecOrAuto = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_codec_or_auto)]
StrategyText = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_strategy)]
Budget = Annotated[int, BeforeValidator(_a_round), Field(ge=1)]


class Section(BaseModel):
    """A mapping in YAML: frozen, and a key it does not know is a mistake."""

    # Deferred, for a process reads one role's file: the models of the others would take a megabyte from every board.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, defer_build=True)

    #: What to say of a key that people expect here and that is not taken.
    instead: ClassVar[Mapping[str, str]] = {}


class TaskConfig(Section):
    """What is learned: a registered task or a Python file, and that task's own options beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    name: Annotated[str, registered("tasks")] | None = Field(default=None, description="A registered task.")
    file: ExistingFile | None = Field(default=None, description="A Python file with a task in it.")

    @model_validator(mode="before")
    @classmethod
    def _paths_start_at_the_file(cls, given: Any, info: ValidationInfo) -> Any:
        keys = KEYS.get(str(given.get("name"))) if isinstance(given, dict) else None
        if keys is None:
            return given
        paths = {key: given[key] for key in keys.paths if isinstance(given.get(key), str) and given[key]}
        return given | {key: str(located(Path(path), info)) for key, path in paths.items()}

    @model_validator(mode="after")
    def _is_one_task(self) -> Self:
        if self.name is not None and self.file is not None:
            raise misplaced((("file",), "stands beside name: a task has one of them"))
        if self.name is None and self.file is None:
            for key in self.model_extra or {}:
                if meant := near(key, ["name", "file"]):
                    raise misplaced(((key,), f"is no task, did you mean {meant!r}?"))
            raise misplaced(
                ((), f"needs name, one of {', '.join(registry.names('tasks'))}, or file, a Python file of your own")
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What `tasks.load_task` takes: `name` or `file`, and the task's own options, which the task checks."""
        choice = {"name": self.name} if self.file is None else {"file": str(self.file)}
        return {**choice, **(self.model_extra or {})}

    @property
    def label(self) -> str:
        """The task in one word: its name, or its file's."""
        return self.name or (self.file.stem if self.file else "")


class PlanConfig(Section):
    """What a device does in a round: epochs over its data, or steps, of SGD."""

    epochs: Annotated[Whole, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Passes over the device's own data; 1 where neither this nor steps is given."
    )
    steps: Annotated[Whole, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, description="Batches, instead of epochs."
    )
    learning_rate: Annotated[Real, Field(gt=0, le=1e6)] = Field(default=0.01, description="SGD's step.")
    momentum: Annotated[Real, Field(ge=0, lt=1)] = Field(default=0.0, description="SGD's momentum.")
    weight_decay: Annotated[Real, Field(ge=0, le=1e3)] = Field(default=0.0, description="SGD's weight decay.")
    batch_size: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(default=32, description="Examples in a batch.")

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise misplaced((("steps",), "stands beside epochs: a plan has one of them"))
        return self

    def to_plan(self, task: str, *, seed: int = 0, tiers: tuple[messages.Tier, ...] = ()) -> messages.Plan:
        """Return the plan as it is sent."""
        epochs = 1 if self.steps is None and self.epochs is None else self.epochs
        rest = self.model_dump(exclude={"epochs", "steps"})
        return messages.Plan(task=task, epochs=epochs, steps=self.steps, seed=seed, tiers=tiers, **rest)


#: How long the tier over the devices waits for stragglers, where nothing else is said.
GRACE_S = 5.0


class TierConfig(Section):
    """How one tier of aggregators runs its rounds."""

    rounds: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        default=1, description="Rounds for each round of the tier above."
    )
    quorum: Quorum = Field(
        default=0.5, description="How many of those asked must answer: a share such as 50 %, or a count."
    )
    fraction: Share = Field(default=1.0, description="How many of the children are asked in a round.")
    open_for: Annotated[Duration, Field(gt=0)] = Field(
        default=60.0, description="How long a round waits for its quorum."
    )
    grace: Duration | None = Field(
        default=None,
        description="How long it waits on for the others, once the quorum is in; by default 5 s for the tier over the "
        "devices, and long enough for the tier below it in every other.",
    )
    retries: Annotated[Whole, Field(ge=0, le=1000)] = Field(
        default=2, description="How often a round without quorum is asked again."
    )
    codec: CodecOrAuto = Field(
        default="raw | zstd",
        description="How updates to this tier are coded; auto lets each link choose, by its speed and the budget.",
    )
    downlink: CodecOrAuto = Field(
        default="raw | zstd", description="How this tier's model goes down: each round's delta, and what was cut off."
    )
    budget: Budget | None = Field(
        default=None, description="Most bytes of an update, or of a delta down, where its codec is auto: 2 MB/round."
    )

    mode: Literal["sync", "async"] = Field(
        default="sync",
        description="sync: a round waits for a quorum of those asked; async (FedBuff): for so many updates as buffer "
        "says, whoever sends them first, and later ones count in later rounds.",
    )
    buffer: Annotated[Whole, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="How many updates make a round where mode is async; a child has one in it at most."
    )
    late: Literal["drop", "next", "discount"] | None = Field(
        default=None,
        description="What becomes of an update whose round is closed: it is dropped, or joins the next round, or joins "
        "it and counts the less the staler it is; by default drop, and discount where mode is async.",
    )
    staleness_exponent: Annotated[Real, Field(ge=0, le=10)] = Field(
        default=0.5, description="A late update that is discounted counts (1 + staleness)^-exponent of its weight."
    )
    max_staleness: Annotated[Whole, Field(ge=0, le=10_000)] = Field(
        default=20, description="A late update that starts from a model so many rounds older still counts."
    )
    offline_rounds: Annotated[Whole, Field(ge=0, le=10_000)] = Field(
        default=0,
        description="Rounds that such an aggregator goes on with its children while its own parent is out of reach; "
        "the tier above must take late updates.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        mistakes = list(self._misfits())
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def _misfits(self) -> Iterator[tuple[KeyPath, str]]:
        given = self.model_fields_set
        if self.mode == "async":
            for key in ("quorum", "grace"):
                if key in given:
                    yield (key,), "has no say where mode is async: a round is over with its buffer; leave it out"
            if self.buffer is None:
                yield ("mode",), "async needs buffer beside it: how many updates make a round"
            if self.late == "drop":
                yield ("late",), "would drop what async is about: leave it out, or take next or discount"
        elif self.buffer is not None:
            yield ("buffer",), "only has a say where mode is async: set that, or quorum instead of this"
        if self._late is messages.Late.DROP and "max_staleness" in given:
            yield ("max_staleness",), "only has a say where late updates count: set late to next or discount"
        if self._late is not messages.Late.DISCOUNT and "staleness_exponent" in given:
            yield ("staleness_exponent",), "only has a say where late updates are discounted: set late to discount"

    @property
    def _late(self) -> messages.Late:
        if self.late is None:
            return messages.Late.DROP if self.mode == "sync" else messages.Late.DISCOUNT
        return messages.Late(self.late)

    @property
    def takes_late_updates(self) -> bool:
        """Whether an update counts whose round is closed."""
        return self._late is not messages.Late.DROP

    @model_validator(mode="after")
    def _has_use_for_its_budget(self) -> Self:
        if self.budget is not None and messages.AUTO not in (self.codec, self.downlink):
            raise misplaced((("budget",), "is only kept by a codec that is chosen: set codec or downlink to auto"))
        return self

    def to_tier(self, rounds: int | None = None, *, below: messages.Tier | None = None) -> messages.Tier:
        """Return the tier as it is sent, over the tier `below`; `rounds` stands in for its own number of rounds."""
        # A child that itself waits through its grace in each of its rounds must not come too late for that.
        least_s = 0.0 if below is None else 2 * below.rounds * below.grace_s
        quorum, grace_s = self.quorum, GRACE_S + least_s if self.grace is None else self.grace
        if self.mode == "async":
            assert self.buffer is not None
            quorum, grace_s = self.buffer, 0.0
        return messages.Tier(
            rounds=self.rounds if rounds is None else rounds,
            quorum=quorum,
            fraction=self.fraction,
            open_for_s=self.open_for,
            grace_s=grace_s,
            late=self._late,
            staleness_exponent=self.staleness_exponent,
            max_staleness=self.max_staleness,
            offline_rounds=self.offline_rounds,
            retries=self.retries,
            codec=self.codec,
            downlink=self.downlink,
            budget=self.budget,
        )
