"""Flower on the same work in the same call: bytes, time and memory of both, and what hfl-mqtt's are of Flower's.

The work is that of `../shared/baselines.md`: LeNet on MNIST, SGD 0.01 with momentum 0.9, batches of 32, one epoch,
2,500 digits a client, four clients, nobody evaluates. Flower is flat: its server and four clients, once as its gRPC
server and clients of one process each (deprecated, and its fastest way), once deployed as it recommends: a SuperLink
and SuperNodes, which start a new process for every message. hfl-mqtt has its two levels, two edges with two clients,
over three bridged brokers: whoever compares rounds compares two levels with one.

Bytes are TCP payload: Flower's are counted by a relay before its server, hfl-mqtt's by the clients' sockets and the
relays in the bridges. Framework time is that of rounds whose training is replaced by noise; no relay stands before
Flower's server then. Flower lives in an environment of its own, see `flower.environment`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.federations import Bench, at_ms, plan, running
from benchmarks.figures import Figure, number, spread_of
from benchmarks.flower.environment import NotInstalled, flower
from benchmarks.flower.measured import Marks, Peaks, Worked, between
from benchmarks.flower.running import Flower
from hfl_mqtt.errors import TaskError
from hfl_mqtt.ops.federation import Device, FarmPlan, RunPlan

TITLE = "Flower and hfl-mqtt on the same work: LeNet (fp32 is 177,704 B), 4 clients of 2,500 digits, one epoch a round"
CODECS = ("raw", "rot1")
FARMS, DEVICES = 2, 2
RAW_BYTES = 177_704
#: A long run less a short one: what joining and leaving cost drops out of the bytes.
SHORT, LONG = 1, 5
IDLE_ROUNDS = 15
#: Rounds of Flower's: trained, and idle. A deployed one takes half a minute.
GRPC_ROUNDS, DEPLOYED_ROUNDS = (5, 15), (2, 1)

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
_OURS = Path(__file__).parent / "flower" / "ours.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A framework's run with training, and how long its rounds take without.

    `wan_bytes` is what an edge has up and down in a round, where there are edges.
    """

    name: str
    worked: Worked
    idle_s: list[float]
    wan_bytes: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[tuple[str, str], list[float]]:
        """Return all that is told of it, by what it is and its unit."""
        worked, peak_mb = self.worked, self.worked.peak_mb
        client_bytes, wan_bytes = worked.up_bytes + worked.down_bytes, sum(self.wan_bytes.values())
        return {
            ("a client, up, per round", "B"): [worked.up_bytes],
            ("a client, down, per round", "B"): [worked.down_bytes],
            **{(f"an edge, {way}, per round", "B"): [size] for way, size in self.wan_bytes.items()},
            ("all links, both ways, per client and round", "B"): [client_bytes + wan_bytes / DEVICES],
            ("a round with training", "s"): worked.rounds_s,
            ("of it some client trains", "%"): [100 * share for share in worked.training_shares],
            ("a round without training", "ms"): [1000 * seconds for seconds in self.idle_s],
            **{(f"{who} and what it started, peak memory", "MB"): [peak_mb[who]] for who in peak_mb},
        }


def measure() -> list[Figure]:
    """Run both on the same digits; each hfl-mqtt figure's note has its ratio to both of Flower's."""
    with tempfile.TemporaryDirectory(prefix="hfl-peers-") as folder:
        data = lay_digits(Path(folder))
        try:
            home, version = flower()
        except NotInstalled as error:
            peers, said = [], [Figure(what="Flower", value=0.0, unit="", note=f"not measured: {error}")]
        else:
            peers, said = _flowers(home, version, Path(folder)), []
        ours = _ours(Path(folder))
    figures = [figure for one in peers for figure in _figures(one, [])]
    figures += [figure for one in ours for figure in _figures(one, peers)]
    return [*said, Figure(what="data", value=FARMS * DEVICES * 2500, unit="digits", note=data), *figures]


def lay_digits(folder: Path) -> str:
    """Write each client's images and labels to `folder`; returns which they are."""
    from hfl_mqtt.learning.tasks.mnist import Mnist  # torch, which nobody else here needs

    task = Mnist.make({"data_dir": str(_SHARED)} if _SHARED.is_dir() else {})
    chance = np.random.default_rng(0)
    for index in range(FARMS * DEVICES):
        try:
            images, labels = task.train_data({"index": index, "of": FARMS * DEVICES, "samples": 2500})
        except TaskError:
            made = chance.integers(256, size=(2500, 1, 28, 28)), chance.integers(10, size=2500)
            np.savez(folder / f"{index}.npz", images=made[0].astype(np.uint8), labels=made[1])
            said = "invented ones, for MNIST is not here and cannot be had: times and bytes are the same"
        else:
            np.savez(folder / f"{index}.npz", images=images.numpy(), labels=labels.numpy())
            said = "MNIST, IID"
    return said


def _flowers(home: Path, version: str, folder: Path) -> list[Measured]:
    measured = []
    for name, is_deployed, (trained, idle) in (("gRPC", False, GRPC_ROUNDS), ("deployed", True, DEPLOYED_ROUNDS)):
        peer = Flower(home=home, digits=folder, clients=FARMS * DEVICES, is_deployed=is_deployed)
        worked, idle_s = peer.run(trained, is_idle=False), peer.run(idle, is_idle=True).rounds_s
        measured.append(Measured(name=f"Flower {version}, {name}", worked=worked, idle_s=idle_s))
    return measured


def _ours(folder: Path) -> list[Measured]:
    idle = {}
    with running(plan("idle_digits", farms=FARMS, devices=DEVICES)) as bench:
        for codec in CODECS:
            bench.run(IDLE_ROUNDS, tiers=_tiers(bench, codec))
            idle[codec] = [end - start for start, end in _rounds(bench)]
    measured = []
    for codec in CODECS:
        with ExitStack() as stack:
            marks = stack.enter_context(Marks())
            stack.enter_context(_told(PEER_DATA=str(folder), PEER_MARKS=str(marks.port)))
            bench = stack.enter_context(running(_plan(), is_metered=True))
            measured.append(_trained(bench, codec, marks, idle[codec]))
    return measured


def _plan() -> RunPlan:
    what = plan("digits", farms=FARMS, devices=DEVICES)
    farms = []
    for farm in range(FARMS):
        devices = (Device(name=f"pi-{one}", data={"index": farm * DEVICES + one}) for one in range(DEVICES))
        farms.append(FarmPlan(name=f"farm-{farm}", devices=tuple(devices), is_split=True))
    return replace(what, farms=tuple(farms), task={"file": str(_OURS)}, plan={"momentum": 0.9})


def _trained(bench: Bench, codec: str, marks: Marks, idle_s: list[float]) -> Measured:
    peaks, counted = Peaks(), []
    for rounds in (SHORT, LONG):
        before = bench.calm(lambda: _read(bench))
        bench.run(rounds, meanwhile=lambda: peaks.look(_roots(bench)), tiers=_tiers(bench, codec))
        after = bench.calm(lambda: _read(bench))
        counted.append([new - old for old, new in zip(before, after, strict=True)])
    nodes = (FARMS * DEVICES, FARMS * DEVICES, FARMS, FARMS)
    each = [(long - short) / (LONG - SHORT) / of for short, long, of in zip(*counted, nodes, strict=True)]
    clients = [mb for path, mb in peaks.mb.items() if path.count("/") == 2]
    edges = [mb for path, mb in peaks.mb.items() if path.count("/") == 1]
    worked = Worked(
        rounds=_rounds(bench),
        trained=marks.spans(),
        up_bytes=each[0],
        down_bytes=each[1],
        peak_mb={"server": peaks.mb["cloud"], "edge": max(edges), "client": max(clients)},
    )
    return Measured(name=f"hfl-mqtt, {codec}", worked=worked, idle_s=idle_s, wan_bytes={"up": each[2], "down": each[3]})


def _tiers(bench: Bench, codec: str) -> list[dict[str, Any]]:
    tiers = bench.federation.plan.tiers
    return [{**tier, "quorum": 1.0, "codec": codec, "downlink": codec} for tier in tiers]


def _rounds(bench: Bench) -> tuple[tuple[float, float], ...]:
    """Return the rounds of the last run but for the first, which waits for training processes to start."""
    run = bench.notes("cloud", "run")[-1]["run"]
    opened = [at_ms(note) / 1e3 for note in bench.notes("cloud", "opened") if note["run"] == run]
    return between([*opened[1:], at_ms(bench.notes("cloud", "delta")[-1]) / 1e3])


def _roots(bench: Bench) -> Mapping[str, int]:
    return {path: process.pid for path, process in bench.federation.processes.items()}


def _read(bench: Bench) -> tuple[int, int, int, int]:
    """Return the bytes of all clients' sockets up and down, and those of the bridges."""
    return *bench.federation.lan_bytes(), *bench.federation.wan_bytes()


@contextmanager
def _told(**settings: str) -> Iterator[None]:
    """Let the processes that are started meanwhile have these settings."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


def _figures(one: Measured, peers: list[Measured]) -> list[Figure]:
    """Return all values of one, each with what it is of every peer's."""
    figures = []
    for (what, unit), values in one.values().items():
        notes = [f"{median(values) / RAW_BYTES:.3f} x fp32"] if unit == "B" else []
        known = [(peer.name, theirs) for peer in peers if (theirs := peer.values().get((what, unit)))]
        notes += [f"{number(median(values) / median(theirs))} x {name}" for name, theirs in known]
        figures.append(spread_of(f"{one.name}: {what}", unit, values, "; ".join(notes)))
    return figures
