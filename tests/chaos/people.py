"""What people ask of a run: to pause, to go on, to stop, to end the cloud's process and go on later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from hfl_mqtt.errors import HflError
from tests.chaos.rows import Case, row
from tests.chaos.tree import Tree, plan, wait_until


def ask(tree: Tree, *words: str) -> dict[str, Any]:
    """Run `hfl run ... --config cloud.yaml --json` and return what it says.

    Raises:
        HflError: it failed.
    """
    command = [
        sys.executable,
        "-m",
        "hfl_mqtt.cli",
        "run",
        *words,
        "--config",
        str(tree.directory / "cloud.yaml"),
        "--json",
    ]
    done = subprocess.run(
        command, env={**os.environ, **tree.environment}, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise HflError(f"hfl run {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@row("paused", "run paused, cloud killed, back at once, run resumed", "round open")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.await_training("b1", 2)
        ask(tree, "pause", "--wait", "0")
        tree.release("b1")
        tree.await_closed(2)
        tree.kill("cloud")
        tree.restart("cloud")
        tree.until(lambda: len(tree.notes("cloud", "connected")) > 1, "the cloud to be back")
        case.more["status"] = status = ask(tree, "status")
        if status["state"] != "paused" or tree.notes("cloud", "opened", round="g3"):
            case.wrong.append("a paused run opened a round")
        with case.recovery(tree):
            ask(tree, "resume")
        case.finish(tree, "g2 was finished, no other opened until resumed")


@row("drained", "run drained, cloud started again later", "round open")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.await_training("b1", 2)
        ask(tree, "drain", "--wait", "0")
        tree.release("b1")
        wait_until(lambda: tree.processes["cloud"].poll() is not None, "the drained cloud's end")
        if tree.closed() != 2:
            case.wrong.append(f"{tree.closed()} rounds closed, not 2")
        with case.recovery(tree):
            tree.restart("cloud")
        case.finish(tree, "the process ended with g2; the run went on with g3")


@row("stopped", "run stopped", "round open")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.await_training("b1", 2)
        ask(tree, "stop", "--wait", "0")
        tree.release("b1")
        case.finish(tree, "it ended with g2, and has a model; g3 and g4 were not wanted", missed=2)
        case.rounds_lost = max(0, case.rounds_lost - 2)
