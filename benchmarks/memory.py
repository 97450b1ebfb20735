"""Resident memory of every process of a federation, and proof from the kernel of what is loaded in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.federations import Bench, plan, running, wait_until
from benchmarks.figures import Figure
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import children

TITLE = "Peak resident memory: one farm, LeNet of 44,426 parameters"
STOP_S = 15.0
#: The large model, the farms it is tried on, and how long a round of the largest may take.
BULK_MB, BULK_DEVICES, BULK_LIMIT_S = 100.0, (4, 40), 1200.0

_STATUS = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)
_LIBRARIES = {"torch": "/libtorch", "numpy": "/numpy/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the kernel says of a process: memory in MB, and which of torch and numpy is mapped into it."""

    now_mb: float
    peak_mb: float
    loaded: frozenset[str]

    def figure(self, who: str) -> Figure:
        """Return the peak, with the current size beside it."""
        said = " and ".join(sorted(self.loaded)) + " loaded" if self.loaded else "neither torch nor numpy loaded"
        return Figure(what=who, value=self.peak_mb, unit="MB", note=f"{self.now_mb:g} MB now; {said}")


def memory_of(pid: int) -> Memory | None:
    """Look at a process; None where it has ended."""
    try:
        status = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_text()))
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return None
    if "VmRSS" not in status:
        return None  # a zombie
    megabytes = {name: round(int(kilobytes) * 1024 / 1e6, 1) for name, kilobytes in status.items()}
    loaded = frozenset(name for name, part in _LIBRARIES.items() if part in maps)
    return Memory(now_mb=megabytes["VmRSS"], peak_mb=megabytes["VmHWM"], loaded=loaded)


def measure() -> list[Figure]:
    """Look at idle clients and an idle edge, at all processes while a run goes on, and at what stays after it."""
    with running(plan("digits", farms=1, devices=2)) as bench:
        restart_as_agent(bench, "cloud/farm-0/pi-1")
        client, agent, edge = (bench.pid(path) for path in ("cloud/farm-0/pi-0", "cloud/farm-0/pi-1", "cloud/farm-0"))
        idle = [_settled(bench, pid) for pid in (agent, client, edge)]
        seen = _watch(bench, client)
        after = [memory_of(pid) for pid in (agent, client, edge)]
    return [
        Figure(what="bare Python", value=_bare_mb(), unit="MB", note="an interpreter that imported nothing"),
        *_figures("idle device agent (python -m device_agents)", idle[0]),
        *_figures("the same after a run", after[0]),
        *_figures("idle client (hfl client)", idle[1]),
        *_figures("the same after a run", after[1]),
        *_figures("its training process", seen["trainer"]),
        *_figures("idle edge (hfl edge)", idle[2]),
        *_figures("the same after a run", after[2]),
        *_figures("cloud at the end of a run (hfl cloud)", seen["cloud"]),
        *(_edge_with_a_bulk(devices) for devices in BULK_DEVICES),
    ]


def _edge_with_a_bulk(devices: int) -> Figure:
    """Run a round of raw updates of 100 MB; they are trained and sent one after the other, so it takes minutes."""
    os.environ["HFL_BULK_MB"] = str(BULK_MB)  # the nodes' processes read it
    what = plan("bulk", farms=1, devices=devices, is_split=False)
    patient = {"codec": "raw", "downlink": "raw", "quorum": "100 %", "open_for": "1 h"}
    with running(replace(what, tiers=(patient, patient))) as bench:
        bench.federation.start_cloud()
        give_up_s = time.monotonic() + BULK_LIMIT_S
        while bench.federation.check_cloud() is None:
            if time.monotonic() > give_up_s:
                raise HflError(f"waited {BULK_LIMIT_S:g} s for a round of {devices} updates of {BULK_MB:g} MB")
            time.sleep(0.2)
        found = memory_of(bench.pid("cloud/farm-0"))
    assert found is not None, "an edge outlives a run"
    return found.figure(f"edge with a model of {BULK_MB:g} MB, {devices} clients, raw")


def restart_as_agent(bench: Bench, path: str) -> None:
    """Run the device agent in place of `hfl client`, on the same YAML."""
    federation = bench.federation
    old = federation.processes[path]
    config = federation.directory / f"{federation.log_path(path).stem}.yaml"
    children.stop([old], STOP_S)
    wait_until(lambda: not bench.is_ready(path), f"{path} to leave")
    command = [sys.executable, "-m", "device_agents", "--config", str(config), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    federation.processes[path] = children.start(command, federation.log_path(path), environment)
    wait_until(lambda: bench.is_ready(path), f"{path} to be ready")


def _settled(bench: Bench, pid: int) -> Memory | None:
    memory: Memory | None = bench.calm(lambda: memory_of(pid))
    return memory


def _watch(bench: Bench, client: int) -> dict[str, Memory | None]:
    """Return the last sight of the processes that do not outlive a run."""
    seen: dict[str, Memory | None] = {"trainer": None, "cloud": None}
    agent = psutil.Process(client)

    def look() -> None:
        seen["cloud"] = memory_of(bench.pid("cloud")) or seen["cloud"]
        for child in agent.children():
            seen["trainer"] = memory_of(child.pid) or seen["trainer"]

    bench.run(2, meanwhile=look)
    return seen


def _figures(who: str, memory: Memory | None) -> list[Figure]:
    return [memory.figure(who)] if memory is not None else []


def _bare_mb() -> float:
    script = "print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return round(int(dict(_STATUS.findall(done.stdout))["VmHWM"]) * 1024 / 1e6, 1)
