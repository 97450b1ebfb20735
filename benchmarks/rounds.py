"""The framework's own time in a round: two levels over real bridged brokers, and training that returns at once.

Training adds noise, so that updates and models take as many bytes as real ones. One that adds nothing is measured
beside it: its updates are zeros, which take few bytes. With 2 x 2 clients a dozen processes share this machine's cores,
and wait for each other; a chain of one edge and one client is what the hops themselves take.

Times are those of the journals' notes, and a node notes what it has sent after sending it: on a busy machine a single
stage may come out below zero, at the cost of its neighbour. Medians and the whole round do not suffer from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.federations import Bench, at_ms, plan, running
from benchmarks.figures import Figure, spread_of
from hfl_mqtt.ops.federation import RunPlan

TITLE = "A global round, without training and with: 2 edges x 2 clients, 1 edge round, bridged brokers"
ROUNDS = 25
TRAINED_ROUNDS = 8
#: The first rounds wait for training processes to start.
WARM_UP = 3
#: Task, codec of both hops and both ways, and how much noise training adds; and what people read.
MODELS = {
    ("idle_line", "raw | zstd", 1e-3): "65 parameters",
    ("idle_digits", "dz(0.15)", 1e-3): "LeNet, 44,426 parameters, dz(0.15)",
    ("idle_digits", "raw | zstd", 1e-3): "LeNet, 44,426 parameters, raw",
    ("idle_digits", "dz(0.15)", 0.0): "LeNet, dz(0.15), updates of zeros",
    ("idle_digits", "raw | zstd", 0.0): "LeNet, raw, updates of zeros",
}
#: The stages of a round, on the path of the edge that came last; together they are the whole round.
STAGES = ("down to the edge", "clients and edge", "up to the cloud", "cloud: aggregate, save, open")


def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Run each model, and then one with training; a round lasts from one opening of the cloud's to the next."""
    figures = []
    for (task, codec, noise), said in MODELS.items():
        stages = _run(plan(task, farms=2, devices=2, data={"noise": noise}), codec, rounds)
        chain = [sum(parts) for parts in _run(plan(task, farms=1, devices=1, data={"noise": noise}), codec, rounds)]
        whole = [sum(parts) for parts in stages]
        figures.append(spread_of(f"{said}: round", "ms", whole, f"{len(whole)} rounds"))
        four = "four processes, one behind the other"
        figures.append(spread_of("  the same of one edge and one client", "ms", chain, four))
        for name, times in zip(STAGES, zip(*stages, strict=True), strict=True):
            share = f"{100 * median(times) / median(whole):.0f} %"
            figures.append(spread_of(f"  {name}", "ms", times, share))
    return figures + _training(TRAINED_ROUNDS)


def _run(what: RunPlan, codec: str, rounds: int) -> list[tuple[float, ...]]:
    """Return the stages of each round but the first few, coded so on both hops and both ways."""
    with running(what, is_watched=False) as bench:
        bench.run(rounds, tiers=[{**tier, "codec": codec, "downlink": codec} for tier in what.tiers])
        return _stages(bench)[WARM_UP:]


def _training(rounds: int) -> list[Figure]:
    """Return how much of a round with real training is training on the slowest client."""
    with running(plan("digits", farms=2, devices=2), is_watched=False) as bench:
        bench.run(rounds)
        opened = [at_ms(note) for note in bench.notes("cloud", "opened")]
        slowest: dict[str, float] = {}
        for path in bench.federation.plan.clients:
            for note in bench.notes(path, "worked"):
                number = note["round"].partition(".")[0]
                slowest[number] = max(slowest.get(number, 0.0), note["seconds"] * 1000)
    times = [end - start for start, end in pairwise(opened)][WARM_UP:]
    shares = [100 * slowest[f"g{number}"] / (end - start) for number, (start, end) in enumerate(pairwise(opened), 1)][
        WARM_UP:
    ]
    return [
        spread_of("LeNet with training, 4 x 2,500 digits on this machine's cores: round", "ms", times),
        spread_of("  training on the slowest client", "% of the round", shares, "at least 85 is the goal"),
    ]


def _stages(bench: Bench) -> list[tuple[float, ...]]:
    """Return how long each stage of each round took, in ms, but for the last round, which no opening follows."""
    opened = [at_ms(note) for note in bench.notes("cloud", "opened")]
    accepted = _by_round(bench, "cloud", "accepted")
    edges = [f"cloud/{farm.name}" for farm in bench.federation.plan.farms]
    edge_opened = {edge: _by_round(bench, edge, "opened") for edge in edges}
    edge_closed = {edge: _by_round(bench, edge, "closed") for edge in edges}
    stages = []
    for number, (start, end) in enumerate(pairwise(opened), 1):
        last = accepted[f"g{number}"][-1]
        edge, inner = last["sender"], f"g{number}.e1"
        points = [
            start,
            at_ms(edge_opened[edge][inner][0]),
            at_ms(edge_closed[edge][inner][-1]),
            at_ms(last),
            end,
        ]
        stages.append(tuple(after - before for before, after in pairwise(points)))
    return stages


def _by_round(bench: Bench, node: str, event: str) -> Mapping[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for note in bench.notes(node, event):
        found.setdefault(note["round"], []).append(note)
    return found
