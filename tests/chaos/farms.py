"""Farms that lose their edge, with a standby beside it; a farm that is cut off for long; and the real task of farms."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hfl_mqtt.config.models import DemoConfig, TaskConfig
from hfl_mqtt.ops.federation import RunPlan
from hfl_mqtt.ops.scenario import scenario
from hfl_mqtt.protocol.messages import Kind
from tests.chaos.rows import PEER_CLOUD, PEER_EDGE, PEER_EDGE_BACK, Case, row
from tests.chaos.tree import A1, EDGE_A, FEDERATION, Tree, plan, wait_until

LEASE_S = 5
STANDBY = f"{EDGE_A}#2"
#: How long a farm is cut off, in global rounds.
ROUNDS_AWAY = 10
#: Global rounds of that run.
AWAY_OF = 20
#: Bytes per second of the other farm's link meanwhile.
SLOW = 60_000.0


def _lease(holder: str) -> dict[str, Any]:
    return {"lease": {"holder": holder, "for": f"{LEASE_S} s"}}


def _with_standby(tree: Tree) -> None:
    """Start a second box for farm-a once the first leads."""
    tree.note(EDGE_A, "leads")
    tree.start_twin(EDGE_A, STANDBY, _lease("box-2"))
    # It stands by from when it has heard of the leader.
    log = tree.state_path(STANDBY) / "journal.jsonl"
    wait_until(lambda: log.exists() and "connected" in log.read_text(), "the standby")


def _leaders(tree: Tree) -> list[tuple[int, str]]:
    """Return each epoch with who led in it."""
    return sorted((note["epoch"], note["holder"]) for note in tree.notes(EDGE_A, "leads"))


@row("edge-standby", "edge killed for good, with a standby", "round open, 1 of 2 accepted", peer=PEER_EDGE)
def _(case: Case) -> None:
    with case.running(plan(), extra={EDGE_A: _lease("box-1")}) as tree:
        _with_standby(tree)
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        with case.recovery(tree):
            tree.kill(EDGE_A)
            tree.release("a2")
        case.more["leaders"] = _leaders(tree)
        case.finish(tree, f"the standby led from lease time ({LEASE_S} s) on, devices sent it what the other had")
        if case.recover_s is not None and case.recover_s > LEASE_S + 10:
            case.wrong.append(f"took {case.recover_s:.1f} s")


@row("edge-back", "edge killed, its standby leads, the edge is back", "round open", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan(rounds=6), extra={EDGE_A: _lease("box-1")}) as tree:
        _with_standby(tree)
        tree.hold("a1", "a2")
        tree.await_training("a1", 2)
        tree.kill(EDGE_A)
        tree.until(lambda: len(_leaders(tree)) > 1, "the standby to lead")
        tree.restart(EDGE_A)
        with case.recovery(tree):
            tree.release("a1", "a2")
        case.finish(tree, "")
        _say_who_spoke(case, tree)


@row("edge-frozen", "edge frozen for three lease times, its standby leads, the edge goes on", "round open")
def _(case: Case) -> None:
    with case.running(plan(rounds=6), extra={EDGE_A: _lease("box-1")}) as tree:
        _with_standby(tree)
        tree.hold("a1", "a2")
        tree.await_training("a1", 2)
        os.kill(tree.processes[EDGE_A].pid, signal.SIGSTOP)
        tree.until(lambda: len(_leaders(tree)) > 1, "the standby to lead")
        os.kill(tree.processes[EDGE_A].pid, signal.SIGCONT)
        with case.recovery(tree):
            tree.release("a1", "a2")
        case.finish(tree, "")
        _say_who_spoke(case, tree)


def _say_who_spoke(case: Case, tree: Tree) -> None:
    """Check that each epoch had one leader, and that no round was closed by two boxes."""
    leaders = _leaders(tree)
    case.more["leaders"] = leaders
    epochs = [epoch for epoch, _ in leaders]
    if len(set(epochs)) != len(epochs):
        case.wrong.append(f"two led in one epoch: {leaders}")
    closed = [(note["run"], note["round"]) for note in tree.notes(EDGE_A, "closed")]
    if len(set(closed)) != len(closed):
        case.wrong.append(f"a round was closed by both: {closed}")
    case.happened = f"one spoke at a time: {', '.join(f'epoch {epoch} {holder}' for epoch, holder in leaders)}"


# -------------------------------------------------------------- the task of farms


def _soil(rounds: int, cloud: Mapping[str, Any], edges: Mapping[str, Any]) -> RunPlan:
    """Return a run on soil moisture of two farms with two stations each."""
    config = DemoConfig(task=TaskConfig(name="soil-moisture"), seed=1, rounds=rounds, farms=2, clients=4)
    return replace(scenario(config).run, federation=FEDERATION, tiers=(dict(cloud), dict(edges)), seed=1)


@row("soil-edge", "soil moisture, 8 rounds: edge killed, back at once, five times", "any", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    _kill_five_times(case, "edge")


@row("soil-cloud", "soil moisture, 8 rounds: cloud killed, back at once, 6 times", "any, and scoring", peer=PEER_CLOUD)
def _(case: Case) -> None:
    _kill_five_times(case, "cloud")


def _kill_five_times(case: Case, role: str) -> None:
    """Kill after each of the first rounds, and the cloud once more while devices score the last model."""
    patient = {"quorum": "100 %", "open_for": "3 min", "late": "next"}
    with case.running(_soil(8, patient, patient)) as tree:
        name = "cloud" if role == "cloud" else f"cloud/{tree.plan.farms[0].name}"
        for number in range(1, 6):
            tree.await_closed(number)
            tree.kill(name)
            with case.recovery(tree):
                tree.restart(name)
        if name == "cloud":
            tree.note("cloud", "opened", kind=Kind.EVALUATE.value)
            tree.kill(name)
            tree.restart(name)
        case.finish(tree, "")
        scores = json.loads((tree.out / "summary.json").read_text())["history"][-1]
        case.more["scores"] = scores
        case.happened = "; ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "loss")


@row("farm-away", f"soil moisture: a farm cut off for {ROUNDS_AWAY} rounds", "devices training")
def _(case: Case) -> None:
    away = _unseen(case, is_back=True)
    with_it, staleness = away["score"], away["staleness"]
    wrong, happened = list(case.wrong), case.happened
    without = _unseen(case, is_back=False)["score"]
    case.wrong[:] = wrong
    case.more |= {"staleness": staleness, "score": with_it, "score_without": without}
    case.happened = (
        f"{happened}; its contribution entered with staleness {staleness[0]}; unseen RMSE {with_it:.5f}, "
        f"with the farm absent {without:.5f}"
    )
    if staleness[0] != ROUNDS_AWAY:
        case.wrong.append(f"staleness {staleness[0]}, not {ROUNDS_AWAY}")
    if with_it > 1.01 * without:
        case.wrong.append("the metric is worse than with the farm absent")


def _unseen(case: Case, *, is_back: bool) -> dict[str, Any]:
    """Run with a farm that is cut off after a round, and is back ten later or never; return how it came out."""
    cloud = {"mode": "async", "buffer": 1, "open_for": "3 min", "max_staleness": 20}
    edges = {"quorum": "100 %", "open_for": "3 min", "offline_rounds": ROUNDS_AWAY}
    with case.running(_soil(AWAY_OF, cloud, edges)) as tree:
        gone, there = (farm.name for farm in tree.plan.farms)
        # Else a round is over in less time than it takes to look.
        tree.relays[there].rate_bytes_per_s = SLOW
        with _in_training(tree, gone) as number:
            tree.relays[gone].cut()
        back_in = number + ROUNDS_AWAY
        if is_back:
            tree.note("cloud", "opened", round=f"g{back_in}")
            _signal(tree, there, signal.SIGSTOP)
            with case.recovery(tree):
                tree.relays[there].rate_bytes_per_s = None
                tree.relays[gone].restore()
                tree.note("cloud", "accepted", sender=f"cloud/{gone}", late=True)
                _signal(tree, there, signal.SIGCONT)
        case.finish(tree, "the farm went on alone, and handed one contribution in" if is_back else "")
        late = [note["staleness"] for note in tree.notes("cloud", "accepted", sender=f"cloud/{gone}", late=True)]
        scores = json.loads((tree.out / "summary.json").read_text())["history"][-1]
        return {"score": next(value for name, value in scores.items() if name.startswith("unseen")), "staleness": late}


@contextmanager
def _in_training(tree: Tree, farm: str) -> Iterator[int]:
    """Freeze a farm's devices in the middle of one of its rounds, and yield the global round that it belongs to."""
    edge, opened = f"cloud/{farm}", dict[str, Any]()
    tree.note("cloud", "accepted", sender=edge)

    def is_frozen() -> bool:
        """Look into the edge's newest round: nothing may have been accepted in it, and nothing more can be then."""
        nonlocal opened
        opened = tree.notes(edge, "opened")[-1]
        if _has_begun_to_end(tree, edge, opened["round"]):
            return False
        _signal(tree, farm, signal.SIGSTOP)
        if opened == tree.notes(edge, "opened")[-1] and not _has_begun_to_end(tree, edge, opened["round"]):
            return True
        _signal(tree, farm, signal.SIGCONT)
        return False

    tree.until(is_frozen, f"{farm} in the middle of a round")
    yield int(opened["round"].partition(".")[0][1:])
    _signal(tree, farm, signal.SIGCONT)


def _has_begun_to_end(tree: Tree, edge: str, name: str) -> bool:
    return bool(tree.notes(edge, "accepted", round=name) or tree.notes(edge, "closed", round=name))


def _signal(tree: Tree, farm: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a farm's devices."""
    for name, process in tree.processes.items():
        if name.startswith(f"cloud/{farm}/"):
            os.kill(process.pid, number)
