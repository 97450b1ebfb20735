"""Farms that lose their edge, with a standby beside it; a farm that is cut off for long; and the real task of farms."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hfl_mqtt.config.models import DemoConfig, TaskConfig
from hfl_mqtt.ops.federation import RunPlan
from hfl_mqtt.ops.scenario import scenario
from tests.chaos.rows import PEER_EDGE, PEER_EDGE_BACK, Case, row
from tests.chaos.tree import A1, EDGE_A, FEDERATION, Tree, plan, wait_until

LEASE_S = 5
STANDBY = f"{EDGE_A}#2"
#: How long a farm is cut off, in global rounds.
ROUNDS_AWAY = 10


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
    patient = {"quorum": "100 %", "open_for": "3 min", "late": "next"}
    with case.running(_soil(8, patient, patient)) as tree:
        edge = f"cloud/{tree.plan.farms[0].name}"
        for number in range(1, 6):
            tree.await_closed(number)
            tree.kill(edge)
            tree.restart(edge)
        with case.recovery(tree):
            pass
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
    """Run with a farm that is cut off in round 3, and is back in round 13 or never; return how it came out."""
    cloud = {"mode": "async", "buffer": 1, "open_for": "3 min", "max_staleness": 20}
    edges = {"quorum": "100 %", "open_for": "3 min", "offline_rounds": ROUNDS_AWAY}
    with case.running(_soil(ROUNDS_AWAY + 6, cloud, edges)) as tree:
        gone, there = (farm.name for farm in tree.plan.farms)
        tree.await_closed(2)
        tree.relays[gone].cut()
        last = max(int(note["round"][1:]) for note in tree.notes("cloud", "accepted", sender=f"cloud/{gone}"))
        back_in = last + 1 + ROUNDS_AWAY
        if is_back:
            tree.note("cloud", "opened", round=f"g{back_in}")
            clients = [tree.processes[name] for name in tree.processes if name.startswith(f"cloud/{there}/")]
            for process in clients:
                os.kill(process.pid, signal.SIGSTOP)
            with case.recovery(tree):
                tree.relays[gone].restore()
                tree.until(
                    lambda: tree.notes("cloud", "accepted", sender=f"cloud/{gone}", late=True), "the late contribution"
                )
                for process in clients:
                    os.kill(process.pid, signal.SIGCONT)
        case.finish(tree, "the farm went on alone, and handed one contribution in" if is_back else "")
        late = [note["staleness"] for note in tree.notes("cloud", "accepted", sender=f"cloud/{gone}", late=True)]
        scores = json.loads((tree.out / "summary.json").read_text())["history"][-1]
        return {"score": next(value for name, value in scores.items() if name.startswith("unseen")), "staleness": late}
