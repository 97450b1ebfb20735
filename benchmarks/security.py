"""What TLS and signatures cost: in a round's time, in the processors' time, and in an agent that does nothing.

The three federations stand beside each other and run in turn, a few rounds each, so that whatever else this machine
does meanwhile falls on all of them; on a busy one look at the processors' time, which does not wait for others.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.ethernet import packets_of_ethernet
from benchmarks.federations import Bench, Security, at_ms, plan, running
from benchmarks.figures import Figure, spread_of
from benchmarks.memory import memory_of, restart_as_agent
from hfl_mqtt.ops import journal

TITLE = "TLS with certificates for all, and signatures: 2 edges x 2 clients, bridged brokers, Ethernet's packets"
#: Turns of each federation, and the rounds of a turn without training and with; the first of each wait for processes.
TURNS, ROUNDS, TRAINED_ROUNDS = 5, 23, 11
WARM_UP = 3
IDLE_S = 60.0
GOAL = 15.0


@dataclass(slots=True)
class _Turns:
    """What was measured of one federation, turn by turn, in milliseconds a round: on the clock, and of processors."""

    round: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)


def measure(turns: int = TURNS, idle_s: float = IDLE_S) -> list[Figure]:
    """Compare rounds, then look at agents for a minute in which nothing happens."""
    figures: list[Figure] = []
    with packets_of_ethernet() as is_ethernet:
        for said, task, rounds in (
            ("65 parameters, no training", "idle_line", ROUNDS),
            ("LeNet, 44,426 parameters, no training", "idle_digits", ROUNDS),
            ("LeNet, 4 x 2,500 digits on this machine's cores", "digits", TRAINED_ROUNDS),
        ):
            figures += compared(said, task, rounds, turns)
    if is_ethernet:
        figures += compared("LeNet, no training, loopback's packets of 64 KiB", "idle_digits", ROUNDS, turns)
    else:
        figures = [replace(figure, what=f"{figure.what}, packets of 64 KiB") for figure in figures]
    return figures + idle(idle_s)


def compared(said: str, task: str, rounds: int, turns: int) -> list[Figure]:
    """Return the round's time with each security, and by how much it is more than the plain one beside it."""
    what = plan(task, farms=2, devices=2)
    found = {security: _Turns() for security in Security}
    with ExitStack() as stack:
        benches = {
            security: stack.enter_context(running(what, is_watched=False, security=security)) for security in Security
        }
        for turn in range(turns):
            order = list(Security)
            for security in order[turn % 3 :] + order[: turn % 3]:
                bench = benches[security]
                pids = _nodes_and_brokers(bench)
                before_s = sum(map(_used_s, pids))
                bench.run(rounds)
                found[security].used.append(1000 * (sum(map(_used_s, pids)) - before_s) / rounds)
                found[security].round.append(median(_rounds(bench)))
    return [_figure(said, security, found[security], found[Security.PLAIN]) for security in Security]


def _figure(said: str, security: Security, own: _Turns, plain: _Turns) -> Figure:
    used = f"processors {median(own.used):.1f} ms"
    if security is Security.PLAIN:
        return spread_of(f"{said}: round, plain", "ms", own.round, f"{used}; {len(own.round)} turns")
    more, least = _more(own.round, plain.round), 100 * (min(own.round) / min(plain.round) - 1)
    note = f"{more:+.1f} %, in the best turns {least:+.1f} %; {used}, {_more(own.used, plain.used):+.1f} %"
    return spread_of(f"  {security.value}", "ms", own.round, f"{note}; goal: at most {GOAL:g} %")


def _more(own: list[float], plain: list[float]) -> float:
    """Return the median, over the turns, of how much more one took than the other beside it, in %."""
    return median(100 * (one / other - 1) for one, other in zip(own, plain, strict=True))


def _nodes_and_brokers(bench: Bench) -> list[int]:
    """Return the processes of clients, edges and brokers; not those that train."""
    federation = bench.federation
    nodes = [process.pid for name, process in federation.processes.items() if name != "cloud"]
    return nodes + [broker.pid for broker in federation.brokers.values() if broker.pid is not None]


def _rounds(bench: Bench) -> list[float]:
    """Return the times of the last run's rounds, each from one opening to the next."""
    notes = journal.read(bench.federation.out / "journal.jsonl")
    opened = [at_ms(note) for note in notes if (note["node"], note["event"]) == ("cloud", "opened")]
    return [after - before for before, after in pairwise(opened)][WARM_UP - 1 :]


def idle(idle_s: float) -> list[Figure]:
    """Return the memory and the processor's time of agents to which nothing happens, and the memory after a run."""
    figures: list[Figure] = []
    client, edge = "cloud/farm-0/pi-0", "cloud/farm-0"
    with ExitStack() as stack:
        agents: list[tuple[str, Bench, int]] = []
        for security in (Security.PLAIN, Security.SIGNED):
            what = plan("idle_digits", farms=1, devices=1)
            bench = stack.enter_context(running(what, security=security))
            restart_as_agent(bench, client)
            agents += [
                (f"idle {who}, {security.value}", bench, bench.pid(path))
                for who, path in (("device agent", client), ("edge", edge))
            ]
        began_s, before = time.monotonic(), [_used_s(pid) for _, _, pid in agents]
        time.sleep(idle_s)
        lasted_s = time.monotonic() - began_s
        shares = [100 * (_used_s(pid) - used) / lasted_s for (_, _, pid), used in zip(agents, before, strict=True)]
        for (who, bench, pid), share in zip(agents, shares, strict=True):
            idle = memory_of(pid)
            bench.run(2)
            after = memory_of(pid)
            assert idle is not None, "an agent stays"
            assert after is not None, "agents outlive a run"
            figures += [
                replace(idle.figure(who), note=f"{after.peak_mb:g} MB after a run; neither has torch"),
                Figure(what="  of one core", value=share, unit="%", note=f"over {lasted_s:.0f} s"),
            ]
    return figures


def _used_s(pid: int) -> float:
    """Return the seconds of a processor that all threads of a process have used; the kernel counts nanoseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
