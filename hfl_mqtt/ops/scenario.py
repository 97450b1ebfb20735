"""What a demo runs: which farms, which devices with which data, which plan; by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hfl_mqtt.config.models import DemoConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.federation import Device, FarmPlan, RunPlan
from hfl_mqtt.protocol.messages import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run, and what its result is to be compared with."""

    run: RunPlan
    #: The name of a central test set whose score is told beside the devices' own, or None.
    unseen: str | None = None
    #: Scores without learning, by name: of the devices' held-out data and of the unseen set.
    persistence: Mapping[str, Callable[[], Tally]] = field(default_factory=dict)
    has_alone: bool = False
    #: Whether devices hold data out, on which the global model is judged; else `unseen` judges it.
    has_held_out: bool = False


def scenario(config: DemoConfig) -> Scenario:
    """Return what to run.

    Raises:
        ConfigError: the task has no demo of its own.
        TaskError: more farms or clients than there is data for.
    """
    name = config.task.name
    if name == "soil-moisture":
        return _soil_moisture(config)
    if name == "mnist":
        return _mnist(config)
    raise ConfigError(
        f"there is no demo for the task {config.task.label!r}: take soil-moisture or mnist, or write a cloud's, an "
        "edge's and a client's YAML as in configs/"
    )


def _soil_moisture(config: DemoConfig) -> Scenario:
    from hfl_mqtt.learning.tasks import soil_moisture as soil

    plan = soil.DEMO
    layout = soil.layout(config.seed, config.farms or plan.farms, config.clients or plan.clients)
    farms = tuple(
        FarmPlan(
            name=name,
            devices=tuple(Device(name=f"station-{station}", data={"station": station}) for station in stations),
        )
        for name, stations in layout.farms
    )
    run = _run(
        config,
        farms=farms,
        task={"name": "soil-moisture", "unseen": list(layout.unseen), **_options(config)},
        rounds=plan.global_rounds,
        edge_rounds=plan.edge_rounds,
        plan={
            "epochs": plan.epochs,
            "learning_rate": plan.learning_rate,
            "momentum": plan.momentum,
            "weight_decay": plan.weight_decay,
            "batch_size": plan.batch_size,
        },
    )
    return Scenario(
        run=run,
        unseen="unseen",
        persistence={
            "": lambda: _tally(soil.persistence(layout.stations)),
            "unseen": lambda: _tally(soil.persistence(layout.unseen)),
        },
        has_alone=True,
        has_held_out=True,
    )


def _mnist(config: DemoConfig) -> Scenario:
    clients, farms_count = config.clients or 12, config.farms or 3
    names = [f"device-{index + 1:02}" for index in range(clients)]
    farms = tuple(
        FarmPlan(
            name=f"farm-{chr(ord('a') + farm) if farm < 26 else farm + 1}",
            devices=tuple(
                Device(name=names[index], data={"partition": "iid", "index": index, "of": clients, "seed": config.seed})
                for index in range(clients)
                if index * farms_count // clients == farm
            ),
        )
        for farm in range(farms_count)
    )
    task: dict[str, Any] = {"name": "mnist", **_options(config)}
    if config.data_dir is not None:
        task["data_dir"] = str(Path(config.data_dir).resolve())
    run = _run(
        config,
        farms=farms,
        task=task,
        rounds=5,
        edge_rounds=1,
        plan={"epochs": 1, "learning_rate": 0.01, "momentum": 0.9, "batch_size": 32},
    )
    return Scenario(run=run, unseen="test")


def _run(
    config: DemoConfig,
    *,
    farms: tuple[FarmPlan, ...],
    task: Mapping[str, Any],
    rounds: int,
    edge_rounds: int,
    plan: Mapping[str, Any],
) -> RunPlan:
    run = RunPlan(
        farms=farms,
        task=task,
        rounds=config.rounds or rounds,
        seed=config.seed,
        plan=plan,
        tiers=(
            {"quorum": "60 %", "open_for": f"{60 * edge_rounds} s", "grace": f"{50 * edge_rounds} s"},
            {"quorum": "60 %", "open_for": "60 s", "grace": "30 s", "rounds": edge_rounds},
        ),
    )
    if config.plan is not None:
        run = replace(run, plan=config.plan.model_dump(exclude_none=True))
    if config.tiers is not None:
        run = replace(run, tiers=tuple(tier.model_dump(exclude_unset=True) for tier in config.tiers))
    return run


def _options(config: DemoConfig) -> dict[str, Any]:
    return {key: value for key, value in config.task.options.items() if key not in ("name", "unseen")}


def _tally(summed: tuple[float, int]) -> Tally:
    total, count = summed
    return Tally(total=total, count=count, is_root=True)
