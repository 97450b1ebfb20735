"""Bytes on all sockets until a model is good: coded models both ways against raw ones, in the same call.

Both hops and both directions, all of TCP's payload with MQTT, metrics and keep-alives: devices to farm brokers, farm
brokers to the cloud's. What edges and cloud exchange with the broker on their own machine crosses no network; it is
told beside. A version counts as reached when the round that made it was closed. The data are MNIST's 10,000 test
digits, or the demo's weather stations; without `../shared/data` the MNIST tables are skipped.
"""

from __future__ import annotations

import json
import tempfile
import time
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


def _everywhere(codec: str, strategy: str = "fedavg") -> Arm:
    name = codec if strategy == "fedavg" else f"{codec}, {strategy}"
    return Arm(name=name, client=codec, edge=codec, down=codec, strategy=strategy)


RAW = _everywhere("raw")
IID = (_everywhere("dz(0.15)"), _everywhere("dz(0.03)", "fedavg(1.5)"))
SKEWED = (_everywhere("dz(0.1)"),)
SOIL = (Arm(name="dz(0.07), edges dz(0.15)", client="dz(0.07)", edge="dz(0.15)", down="dz(0.07)"),)
#: What was run last, for `draw`: where, how coded, and the curve.
_drawn: list[tuple[str, str, Curve]] = []


def measure(seeds: Sequence[int] = SEEDS) -> list[Figure]:
    """Run every arm of every table."""
    _drawn.clear()
    if MNIST.is_dir():
        figures = _table("MNIST, IID, to 97 %", iid_plan(), (RAW, *IID), 0.97, seeds)
        figures += _table("MNIST, two classes each, to 95 %", skewed_plan(), (RAW, *SKEWED), 0.95, seeds[:1])
    else:
        figures = [Figure(what="MNIST", value=0, unit="", note="skipped: no ../shared/data/mnist")]
    return figures + _soil((RAW, *SOIL), seeds)


def draw(path: Path) -> None:
    """Draw accuracy over bytes of the runs that `measure` made, a panel for each table."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(title for title, _, _ in _drawn))
    if not titles:
        return
    figure, panels = pyplot.subplots(1, len(titles), figsize=(5.5 * len(titles), 3.8), squeeze=False)
    for panel, title in zip(panels[0], titles, strict=True):
        arms = list(dict.fromkeys(arm for where, arm, _ in _drawn if where == title))
        for number, arm in enumerate(arms):
            for count, curve in enumerate(one for where, name, one in _drawn if (where, name) == (title, arm)):
                points = [
                    (curve.bytes_at(at) / 1e6, score) for at, score in sorted(curve.scores.items()) if at in curve.lan
                ]
                panel.plot(*zip(*points, strict=True), color=f"C{number}", label=arm if not count else None, lw=1.2)
        panel.set(xscale="log", xlabel="MB on both hops, both ways", ylabel="test accuracy", title=title, ylim=(0.8, 1))
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


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
        federation = LocalFederation(plan, Path(directory), is_all_metered=True)
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
            _drawn.append((title, arm.name, curve))
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
                what=f"{title}: {arm.name}",
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
    return time.time() * 1000


def _soil(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Figure]:
    """Run the demo's plan, 36 weather stations on three farms for 40 x 2 rounds, and compare the last models."""
    figures: list[Figure] = []
    errors: dict[str, dict[int, tuple[float, float]]] = {}
    base = 1.0
    for arm in arms:
        moved = []
        for seed in seeds:
            total, scores = _whole(scenario(DemoConfig(seed=seed)).run, arm)
            moved.append(total)
            errors.setdefault(arm.name, {})[seed] = scores["rmse"], scores["unseen_rmse"]
        if arm is arms[0]:
            base, said = mean(moved), "the errors that the others are compared with"
        else:
            worse = [
                [100 * (errors[arm.name][seed][which] / errors[arms[0].name][seed][which] - 1) for seed in seeds]
                for which in (0, 1)
            ]
            told = [", ".join(f"{percent:+.1f}" for percent in one) for one in worse]
            said = f"{base / mean(moved):.1f} x fewer bytes; error {told[0]} % on later days, {told[1]} % unseen"
        figures.append(
            Figure(
                what=f"soil moisture, 80 rounds: {arm.name}",
                value=mean(moved) / 1e6,
                unit="MB",
                low=min(moved) / 1e6,
                high=max(moved) / 1e6,
                note=said,
            )
        )
    return figures


def _whole(plan: RunPlan, arm: Arm) -> tuple[int, Mapping[str, float]]:
    """Run a plan to its end in an arm's codecs; returns all bytes on both hops, and the last model's scores."""
    codecs = (arm.edge, arm.client)
    tiers = tuple(
        {**tier, "codec": codec, "downlink": arm.down} for tier, codec in zip(plan.tiers, codecs, strict=True)
    )
    plan = replace(plan, tiers=tiers, cloud={"strategy": arm.strategy}, until_finished=True)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-bench-"))
        federation = LocalFederation(plan, Path(directory), is_metered=True)
        stack.callback(federation.stop)
        federation.start_brokers()
        federation.start_nodes()
        wait_until(lambda: federation.check_cloud() is not None, "the end of a run", LIMIT_S)
        summary = json.loads((federation.out / "summary.json").read_text())
        return sum(federation.lan_bytes()) + sum(federation.wan_bytes()), summary["history"][-1]
