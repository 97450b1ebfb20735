"""A thousand clients on twenty edges, over real bridged brokers on this machine: seconds, bytes, memory, no losses.

A hundred clients run first, five to a farm; then the others join, and all run. Training is left out (see `crowd`),
everything else is there: for each farm a broker, its two bridges to the cloud's and an `hfl edge`, and `hfl cloud`. All
of them share the cores of this machine, so what a round takes is what it costs in processor time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.federations import Bench, at_ms, plan, wait_until
from benchmarks.figures import Figure, number, spread_of
from benchmarks.memory import memory_of
from hfl_mqtt.ops import children, journal
from hfl_mqtt.ops.federation import LocalFederation
from hfl_mqtt.ops.fleet import Viewer

TITLE = "A thousand clients on 20 edges: LeNet of 44,426 parameters, bridged brokers, no training"
FARMS = 20
#: Clients of each farm: at first, and in the end.
DEVICES = (5, 50)
ROUNDS = 10
CODECS = ("int8 | zstd", "raw | zstd")
TASK, LARGE_TASK = "idle_digits", "idle_large"
#: Processes of those who join first, and of those who join later.
PROCESSES = (1, 3)
#: Clients of one farm that send 10 MB each at the same time, as they are, and for how many rounds.
LARGE = (50, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of the updates of a run, clients' and edges', as the journals of both sides have it.

    `odd_samples` are rounds in which the cloud counted other samples than all clients together have; each has another
    number of them, so one update lost and another counted twice are found here too.
    """

    wanted: int
    lost: int
    twice: int
    refused: int
    odd_samples: int

    @property
    def is_whole(self) -> bool:
        """Whether every update was counted, and once."""
        return not (self.lost or self.twice or self.refused or self.odd_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run; bytes are of its clients' sockets and of the bridges, processor seconds and peaks by kind of process."""

    codec: str
    clients: int
    rounds_s: tuple[float, ...]
    seconds: float
    lan_bytes: int
    wan_bytes: int
    cpu_s: Mapping[str, float]
    peak_mb: Mapping[str, float]
    tally: Tally


def measure(
    farms: int = FARMS, devices: tuple[int, int] = DEVICES, rounds: int = ROUNDS, codecs: Sequence[str] = CODECS
) -> list[Figure]:
    """Run each codec with few clients and with all."""
    runs = []
    with crowded(farms, devices[1]) as crowd:
        for count, processes in zip(devices, PROCESSES, strict=True):
            crowd.grow_to(count, processes)
            runs.append([crowd.run(rounds, codec) for codec in codecs])
    figures = []
    for few, many in zip(*runs, strict=True):
        linear, grown = many.clients / few.clients, median(many.rounds_s) / median(few.rounds_s)
        growth = f"{number(grown)} x for {number(linear)} x the clients: {grown / linear:.2f} of linear"
        figures += [*_figures(few), *_figures(many, growth)]
    return [*figures, *measure_large()]


def measure_large(clients: int = LARGE[0], rounds: int = LARGE[1]) -> list[Figure]:
    """Have many clients of one edge send updates at once that together are far larger than the edge."""
    with crowded(1, clients, task=LARGE_TASK) as crowd:
        crowd.grow_to(clients, 1)
        return _figures(crowd.run(rounds, "raw"), "10 MB each, on one edge")


class Crowd:
    """A federation whose farms get more clients from time to time."""

    def __init__(self, bench: Bench, task: str) -> None:
        self._bench = bench
        self._task = task
        self._plan = bench.federation.plan
        self._devices = 0
        self._pids = {
            "brokers": [broker.pid for broker in bench.federation.brokers.values() if broker.pid is not None],
            "edges": [process.pid for process in bench.federation.processes.values()],
            "clients": list[int](),
            "relays and viewer": [os.getpid()],
        }

    @property
    def weights(self) -> dict[str, int]:
        """The clients who are there by path, with the samples that each has: a different number."""
        paths = [f"cloud/{farm.name}/{one.name}" for farm in self._plan.farms for one in farm.devices[: self._devices]]
        return {path: 1 + self._plan.clients.index(path) for path in paths}

    def grow_to(self, devices: int, processes: int) -> None:
        """Have each farm's first `devices` clients there: those who are not yet start, in so many processes."""
        there, self._devices = self.weights, devices
        new = [path for path in self.weights if path not in there]
        for first in range(processes):
            self._start(new[first::processes])
        wait_until(lambda: all(self._bench.is_ready(path) for path in new), f"{len(new)} clients to be ready")

    def run(self, rounds: int, codec: str) -> Measured:
        """Have the cloud run a run with all who are there; its updates come in `codec`."""
        bench, cloud_s = self._bench, [0.0]

        def meanwhile() -> None:
            process = bench.federation.processes["cloud"]
            cloud_s[0] = max(_cpu_s([process.pid]), cloud_s[0])
            if memory := memory_of(process.pid):
                peaks["cloud"] = memory.peak_mb

        peaks = dict[str, float]()
        wan, lan = bench.calm(lambda: sum(bench.federation.wan_bytes())), self._lan_bytes()
        before = {kind: _cpu_s(pids) for kind, pids in self._pids.items()}
        everyone = {"quorum": 1.0, "open_for": "120 s", "codec": codec}
        bench.run(rounds, meanwhile=meanwhile, tiers=[everyone, everyone])
        spent = {kind: _cpu_s(pids) - before[kind] for kind, pids in self._pids.items()}
        wan = bench.calm(lambda: sum(bench.federation.wan_bytes())) - wan
        for kind, pids in self._pids.items():
            peaks[kind] = max(memory.peak_mb for pid in pids if (memory := memory_of(pid)) is not None)
        opened = [at_ms(note) / 1e3 for note in self._notes("cloud", "opened")]
        ended = at_ms(self._notes("cloud", "closed")[-1]) / 1e3
        return Measured(
            codec=codec,
            clients=len(self.weights),
            rounds_s=tuple(after - start for start, after in pairwise([*opened, ended])),
            seconds=ended - opened[0],
            lan_bytes=self._lan_bytes() - lan,
            wan_bytes=wan,
            cpu_s={**spent, "cloud, from its start": cloud_s[0]},
            peak_mb=peaks,
            tally=self._tally(rounds),
        )

    def _start(self, paths: Sequence[str]) -> None:
        federation, name = self._bench.federation, f"crowds/{paths[0].replace('/', '-')}/clients"
        folder = federation.directory / name
        folder.mkdir(parents=True)
        clients = [
            {
                "path": path,
                "port": federation.brokers[path.rpartition("/")[0]].port,
                "password": federation.secret_path(path).read_text().strip(),
                "weight": self.weights[path],
            }
            for path in paths
        ]
        document = {"federation": self._plan.federation, "task": self._task, "clients": clients}
        (folder / "clients.json").write_text(json.dumps(document))
        command = [sys.executable, "-m", "benchmarks.crowd", str(folder / "clients.json")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        federation.processes[name] = children.start(command, folder / "log", environment)
        self._pids["clients"].append(federation.processes[name].pid)

    def _notes(self, node: str, event: str) -> list[dict[str, Any]]:
        """Return the notes of the last run."""
        run = self._bench.notes("cloud", "run")[-1]["run"]
        return [note for note in self._bench.notes(node, event) if note["run"] == run]

    def _lan_bytes(self) -> int:
        values = [self._bench.fleet[path].metrics for path in self.weights if path in self._bench.fleet]
        return sum((one.get("socket_out") or 0) + (one.get("socket_in") or 0) for one in values)

    def _tally(self, rounds: int) -> Tally:
        run = self._notes("cloud", "run")[-1]["run"]
        counted, told, refused, samples = Counter[tuple[str, str]](), Counter[tuple[str, str]](), 0, []
        for path in self._bench.federation.journals():
            for note in journal.read(path):
                if note.get("run") != run:
                    continue
                match note["event"]:
                    case "accepted" if "sender" in note:
                        counted[note["sender"], note["round"]] += 1
                    case "accepted":
                        told[note["node"], note["round"]] += 1
                    case "refused" | "late" | "declined" | "given_up" | "cancelled" | "missed":
                        refused += 1
                    case "closed" if note["node"] == "cloud":
                        samples.append(note["samples"])
        edges = [f"cloud/{farm.name}" for farm in self._plan.farms]
        wanted = [(edge, f"g{number}") for edge in edges for number in range(1, rounds + 1)]
        wanted += [(path, f"g{number}.e1") for path in self.weights for number in range(1, rounds + 1)]
        return Tally(
            wanted=len(wanted),
            lost=sum(not counted[one] for one in wanted) + sum(not told[one] for one in wanted),
            twice=sum(count > 1 for count in counted.values()),
            refused=refused,
            odd_samples=sum(one != sum(self.weights.values()) for one in samples) + abs(rounds - len(samples)),
        )


@contextmanager
def crowded(farms: int, devices: int, *, task: str = TASK) -> Iterator[Crowd]:
    """Start the brokers and the edges, with room for so many clients on each farm, and end everything afterwards."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-bench-"))
        what = plan(task, farms=farms, devices=devices)
        federation = LocalFederation(what, Path(directory), device_metrics=True)  # which count the clients' bytes
        stack.callback(federation.stop)
        federation.start_brokers()
        viewer = Viewer(federation.account("viewer"), what.federation)
        stack.callback(viewer.close)
        viewer.open()
        for farm in what.farms:
            federation.start_edge(farm.name)
        bench = Bench(federation, viewer.fleet)
        wait_until(lambda: all(bench.is_ready(f"cloud/{farm.name}") for farm in what.farms), "all edges to be ready")
        yield Crowd(bench, task)


def _figures(run: Measured, growth: str = "") -> list[Figure]:
    rounds, tally = len(run.rounds_s), run.tally
    lost = f"{tally.lost} lost, {tally.twice} counted twice, {tally.refused} refused"
    cpu = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in run.cpu_s.items())
    megabytes = (run.lan_bytes + run.wan_bytes) / rounds / 1e6
    links = f"clients {run.lan_bytes / rounds / 1e6:.3g} MB, bridges {run.wan_bytes / rounds / 1e6:.3g} MB"
    return [
        spread_of(f"{run.codec}, {run.clients} clients: a round", "s", run.rounds_s, growth),
        Figure(
            what=f"  all {rounds} rounds",
            value=run.seconds,
            unit="s",
            note=f"{tally.wanted} updates, edges' too: {lost}",
        ),
        Figure(what="  on all links, per round", value=megabytes, unit="MB", note=links),
        Figure(what="  processor time", value=sum(run.cpu_s.values()), unit="s", note=cpu),
        Figure(
            what="  peak memory of the largest process",
            value=max(run.peak_mb.values()),
            unit="MB",
            note=", ".join(f"{kind} {megabytes:.0f} MB" for kind, megabytes in run.peak_mb.items()),
        ),
    ]


def _cpu_s(pids: Sequence[int]) -> float:
    """Return the processor time that these processes have taken so far; those who ended have none."""
    spent = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        spent += times.user + times.system
    return spent
