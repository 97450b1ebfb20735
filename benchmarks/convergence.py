"""Bytes on all sockets until a model is good: coded models both ways against raw ones, in the same call.

Both hops and both directions, all of TCP's payload with MQTT, metrics and keep-alives: devices to farm brokers, farm
brokers to the cloud's. What edges and cloud exchange with the broker on their own machine crosses no network; it is
told beside. A version counts as reached when the round that made it was closed. The data are MNIST's 10,000 test
digits, or the demo's weather stations; without `../shared/data` the MNIST tables are skipped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.federations import at_ms, wait_until
from benchmarks.figures import Figure
from hfl_mqtt.config.models import DemoConfig
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.ops.scenario import scenario

TITLE = "Bytes on all links until the model is good, against raw fp32 both ways"
MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
SGD = {"epochs": 1, "learning_rate": 0.01, "momentum": 0.9, "batch_size": 32}
SEEDS = (0, 1, 2)
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of coding: what clients send, what edges send, how the model goes down."""

    name: str
    client: str = "raw"
    edge: str = "raw"
    down: str = "raw"
    strategy: str = "fedavg"

    def tiers(self, edge_rounds: int = 1) -> tuple[dict[str, Any], ...]:
        """Return the cloud's tier and the edges'."""
        common = {"quorum": "100 %", "open_for": "300 s", "downlink": self.down}
        return ({**common, "codec": self.edge}, {**common, "codec": self.client, "rounds": edge_rounds})


@dataclass(slots=True)
class Curve:
    """What a run was like: scores by version, and bytes moved when each version was made."""

    scores: dict[int, float] = field(default_factory=dict)
    lan: dict[int, int] = field(default_factory=dict)
    wan: dict[int, int] = field(default_factory=dict)
    local: dict[int, int] = field(default_factory=dict)

    def reached(self, target: float) -> int | None:
        """Return the first version that scores the target."""
        return next((version for version, score in sorted(self.scores.items()) if score >= target), None)

    def bytes_at(self, version: int) -> int:
        """Return the bytes on both hops until that version was made."""
        return self.lan[version] + self.wan[version]


RAW = Arm(name="raw fp32")
IID = (
    Arm(name="stc(0.1)", client="stc(0.1)", edge="stc(0.1)", down="stc(0.1)"),
    Arm(
        name="stc(0.02), server rate 1.5",
        client="stc(0.02)",
        edge="stc(0.02)",
        down="stc(0.02)",
        strategy="fedavg(1.5)",
    ),
)
SKEWED = (Arm(name="stc(0.1)", client="stc(0.1)", edge="stc(0.1)", down="stc(0.1)"),)


def measure(seeds: Sequence[int] = SEEDS) -> list[Figure]:
    """Run every arm of the MNIST tables."""
    if not MNIST.is_dir():
        return [Figure(what="MNIST", value=0, unit="", note="skipped: no ../shared/data/mnist")]
    figures = _table("IID to 97 %", iid_plan(), (RAW, *IID), 0.97, seeds)
    return figures + _table("two classes each, to 95 %", skewed_plan(), (RAW, *SKEWED), 0.95, seeds[:1])


def iid_plan() -> RunPlan:
    """Return 2 edges x 2 clients with 2,500 digits each."""
    return _mnist(farms=2, clients=2, partition="iid")


def skewed_plan() -> RunPlan:
    """Return 4 edges x 5 clients with 2,500 digits of two classes each."""
    return _mnist(farms=4, clients=5, partition="shards")


def run(plan: RunPlan, arm: Arm, seed: int, *, metric: str, rounds: int, target: float | None = None) -> Curve:
    """Run one arm from start to end on real brokers and processes.

    Raises:
        HflError: the cloud failed, or took too long.
    """
    stop: dict[str, Any] = {} if target is None else {"stop": {"metric": metric, "target": target}}
    edge_rounds = plan.tiers[1].get("rounds", 1)
    cloud = {**plan.cloud, **stop, "strategy": arm.strategy}
    plan = replace(plan, rounds=rounds, seed=seed, tiers=arm.tiers(edge_rounds), cloud=cloud, until_finished=True)
    curve, moments = Curve(), []
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-bench-"))
        federation = LocalFederation(plan, Path(directory), is_metered=True)
        stack.callback(federation.stop)
        federation.start_brokers()
        federation.start_nodes()

        def is_over() -> bool:
            moments.append(
                (_now_ms(), sum(federation.lan_bytes()), sum(federation.wan_bytes()), federation.local_bytes())
            )
            return federation.check_cloud() is not None

        wait_until(is_over, "the end of a run", LIMIT_S)
        notes = [note for path in federation.journals() for note in journal.read(path) if note["node"] == "cloud"]
    for note in notes:
        if note["event"] == "scored" and metric in note:
            curve.scores[note["version"]] = note[metric]
        if note["event"] == "closed" and note["kind"] == "train":
            version, moment = int(note["round"][1:]), at_ms(note)
            at = next((seen for seen in moments if seen[0] >= moment), moments[-1])
            curve.lan[version], curve.wan[version], curve.local[version] = at[1:]
    return curve


def _table(title: str, plan: RunPlan, arms: Sequence[Arm], target: float, seeds: Sequence[int]) -> list[Figure]:
    """Return rounds and bytes of each arm; the first is what the others are compared with."""
    figures, base = [], (1.0, 1.0)
    for arm in arms:
        rounds, moved, local = [], [], []
        for seed in seeds:
            curve = run(plan, arm, seed, metric="test_accuracy", rounds=60, target=target)
            version = curve.reached(target)
            if version is None:
                raise HflError(f"{title}: {arm.name}, seed {seed} did not get there in {len(curve.scores)} rounds")
            rounds.append(version)
            moved.append(curve.bytes_at(version))
            local.append(curve.local[version])
        if arm is arms[0]:
            base = mean(rounds), mean(moved)
        ratio = base[1] / mean(moved)
        note = (
            f"{ratio:.1f} x fewer bytes, {mean(rounds) / base[0]:.2f} x the rounds ({', '.join(map(str, rounds))}); "
            f"beside it {mean(local) / 1e6:.3g} MB on the aggregators' own machines"
        )
        figures.append(
            Figure(
                what=f"MNIST, {title}: {arm.name}",
                value=mean(moved) / 1e6,
                unit="MB",
                low=min(moved) / 1e6,
                high=max(moved) / 1e6,
                note=note,
            )
        )
    return figures


def _mnist(*, farms: int, clients: int, partition: str) -> RunPlan:
    of = 24 if partition == "iid" else farms * clients

    def data(index: int) -> Mapping[str, Any]:
        return {"partition": partition, "index": index, "of": of, "samples": 2500, "seed": 0}

    return RunPlan(
        farms=tuple(
            FarmPlan(
                name=f"farm-{farm}",
                devices=tuple(
                    Device(name=f"pi-{client}", data=data(farm * clients + client)) for client in range(clients)
                ),
            )
            for farm in range(farms)
        ),
        task={"name": "mnist", "data_dir": str(MNIST), "download": False},
        rounds=60,
        seed=0,
        plan=SGD,
        tiers=({}, {"rounds": 1}),
    )


def _now_ms() -> float:
    from datetime import datetime

    return datetime.now().timestamp() * 1000


def soil_plan(seed: int) -> RunPlan:
    """Return the demo's own plan: 36 weather stations on three farms."""
    return scenario(DemoConfig(seed=seed)).run
