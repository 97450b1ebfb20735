"""What stands in the YAML of a simulation: `role: simulation`, see configs/sim.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config.models import Rounds, Seed
from hfl_mqtt.config.sections import Section, TierConfig
from hfl_mqtt.config.units import Duration, Share, Size, Whole
from hfl_mqtt.config.wording import KeyPath, misplaced
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol import messages
from hfl_mqtt.sim.faultplan import Fault, Keeps, What, befallen
from hfl_mqtt.sim.simulation import Moment
from hfl_mqtt.sim.trial import Setting, Tree, tree_of
from hfl_mqtt.transport.faults import Faults

_NOISE = ("loss", "duplication", "reordering", "corruption")
#: Which keys go with which faults only.
_KEYS_OF: dict[str, tuple[What, ...]] = {
    **dict.fromkeys(_NOISE, (What.NOISE,)),
    "bytes_per_s": (What.SLOW,),
    "on_bridge": (What.NOISE, What.SLOW),
    "moment": (What.KILL, What.WIPE),
    "keeps": (What.BROKER, What.POWER),
    "saved": (What.BROKER, What.POWER),
    "factor": (What.SLOW_WORK,),
}


class FaultConfig(Section):
    """One thing that goes wrong."""

    who: str = Field(
        description="A node's name, or a pattern such as cloud/*/pi-1; the aggregator of a broker or bridge."
    )
    what: What = Field(description="kill, wipe, power, broker, bridge, link, noise, slow, disk, no work or slow work.")
    at: Duration = Field(description="When it begins.")
    lasts: Duration | None = Field(default=None, description="When it is mended; it never is where this is left out.")
    every: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="Come and go in turns of this length, for as long as it lasts."
    )
    moment: Moment = Field(
        default=Moment.NOW, description="When a node dies: now, before commit, after commit or after send."
    )
    keeps: Keeps = Field(default=Keeps.ALL, description="What a broker finds again: all, saved or nothing.")
    saved: Duration = Field(
        default=10.0, description="How long before it died the broker had saved, with keeps: saved."
    )
    on_bridge: bool = Field(default=False, description="On the bridge above an edge, rather than on a node's own link.")
    bytes_per_s: Annotated[Size, Field(ge=1)] = Field(default=8000, description="What a slow link carries.")
    loss: Share | None = Field(default=None, description="How many messages are lost.")
    duplication: Share | None = Field(default=None, description="How many come twice.")
    reordering: Share | None = Field(default=None, description="How many come up to 5 s late, behind later ones.")
    corruption: Share | None = Field(default=None, description="How many parts of weights are corrupted.")
    factor: Annotated[Whole, Field(ge=2, le=1_000_000)] = Field(default=10, description="How much longer work takes.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mistakes = list(self._out_of_place())
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def _out_of_place(self) -> Iterator[tuple[KeyPath, str]]:
        for key, whats in _KEYS_OF.items():
            if key in self.model_fields_set and self.what not in whats:
                yield (key,), f"goes with what: {' or '.join(what.value for what in whats)}, not with {self.what.value}"
        if self.what is What.NOISE and not self.model_fields_set & set(_NOISE):
            yield ("what",), f"noise needs at least one of {', '.join(_NOISE)}"
        if self.every is not None and self.lasts is None:
            yield ("every",), "needs lasts: for how long it comes and goes"

    def to_fault(self) -> Fault:
        """Return the fault as it is simulated."""
        return Fault(
            who=self.who,
            what=self.what,
            at_s=self.at,
            lasts_s=self.lasts,
            every_s=self.every,
            moment=self.moment,
            keeps=self.keeps,
            saved_s=self.saved,
            on_bridge=self.on_bridge,
            bytes_per_s=self.bytes_per_s,
            loss=self.loss or 0.0,
            duplication=self.duplication or 0.0,
            reordering=self.reordering or 0.0,
            corruption=self.corruption or 0.0,
            factor=self.factor,
        )


class NetworkConfig(Section):
    """What every link and every bridge is like, all the time."""

    latency: Duration = Field(default=0.01, description="How long a message takes at least.")
    jitter: Duration = Field(default=0.04, description="How much longer it may take.")
    loss: Share | None = Field(default=None, description="How many messages are lost.")
    duplication: Share | None = Field(default=None, description="How many come twice.")
    reordering: Share | None = Field(default=None, description="How many come up to 5 s late, behind later ones.")
    bytes_per_s: Annotated[Size, Field(ge=1)] | None = Field(default=None, description="What each link carries.")

    def to_faults(self) -> Faults:
        """Return it as the network is simulated."""
        return Faults(
            latency_s=(self.latency, self.latency + self.jitter),
            loss=self.loss or 0.0,
            duplication=self.duplication or 0.0,
            reordering=self.reordering or 0.0,
            held_s=(0.0, 5.0),
            bytes_per_s=self.bytes_per_s,
        )


class SimulationConfig(Section):
    """A federation that exists only here, what it is to do, and what goes wrong."""

    role: Literal["simulation"]
    seed: Seed = Field(default=0, description="Equal seeds give equal runs, to the last note.")
    edges: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        default=3, description="Farms, each with an edge: farm-1, ..."
    )
    clients: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        default=12, description="Devices in all, spread evenly: pi-1, ... on each farm."
    )
    model: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(default=8, description="Numbers in the model.")
    rounds: Rounds = Field(default=5, description="Global rounds.")
    tiers: Annotated[tuple[TierConfig, ...], Field(min_length=2, max_length=2)] = Field(
        default=(TierConfig(open_for=600.0), TierConfig()), description="The cloud's tier and the edges'."
    )
    evaluate: bool = Field(default=False, description="Whether devices score the last model when training is over.")
    signed: bool = Field(default=False, description="Whether all sign what counts, and check it.")
    work: Duration = Field(default=1.0, description="How long a device works in a round at least.")
    work_at_most: Duration | None = Field(default=None, description="And at most; each device has its own pace.")
    network: NetworkConfig = Field(default=NetworkConfig(), description="What all links are like.")
    patience: Duration = Field(default=86400.0, description="After the last fault the run must be over within this.")
    faults: Annotated[tuple[FaultConfig, ...], Field(max_length=1000)] = Field(
        default=(), description="What goes wrong, in any order."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mistakes: list[tuple[KeyPath, str]] = []
        if self.clients < self.edges:
            mistakes.append((("clients",), f"{self.clients} devices do not fill {self.edges} farms: each needs one"))
        elif self.faults:
            tree = self.tree()
            nodes = [*tree, *(f"{path}/{name}" for path, names in tree.items() if path != "cloud" for name in names)]
            for index, fault in enumerate(self.faults):
                try:
                    befallen(fault.to_fault(), nodes, tree)
                except ConfigError as error:
                    mistakes.append((("faults", index, "who"), str(error)))
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def tree(self) -> Tree:
        """Return who is whose child."""
        return tree_of(self.edges, self.clients)

    def to_tiers(self) -> tuple[messages.Tier, ...]:
        """Return the tiers as machines take them."""
        below = self.tiers[1].to_tier()
        return self.tiers[0].to_tier(self.rounds, below=below), below

    def to_setting(self) -> Setting:
        """Return the federation and what it is to do."""
        return Setting(
            tree=self.tree(),
            tiers=self.to_tiers(),
            seed=self.seed,
            dice=self.seed,
            size=self.model,
            work_s=(self.work, max(self.work, self.work_at_most or 0.0)),
            network=self.network.to_faults(),
            is_scored=self.evaluate,
            patience_s=self.patience,
            signed=self.signed,
        )

    def to_faults(self) -> tuple[Fault, ...]:
        """Return what goes wrong."""
        return tuple(fault.to_fault() for fault in self.faults)
