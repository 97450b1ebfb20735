"""A bridge over a real network device that goes down: the row runs again in network namespaces of its own.

The bridge's way leads over a veth pair into a second namespace and back. With the device down the kernel drops what it
has, tells nobody, and tries again later and later, as over a mast that is gone. Nothing outside the two is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import children
from hfl_mqtt.ops.federation import HOST
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.ops.relay import Relay
from tests.chaos.killed import LARGE, full_speed
from tests.chaos.links import contribute_slowly
from tests.chaos.rows import Case, row
from tests.chaos.tree import Tree, plan, wait_until

NEAR, FAR = "10.9.0.1", "10.9.0.2"
NAME = "bridge-unplugged"
#: Set where the row runs in a namespace of its own already.
INSIDE = "HFL_CHAOS_INSIDE"


@row(NAME, "bridge's network device down", "edge contributing", needs_root=True)
def _(case: Case) -> None:
    if INSIDE not in os.environ:
        _again_inside(case)
        return
    with ExitStack() as stack:
        _run("ip", "link", "set", "lo", "up")
        with case.running(plan(), floats=LARGE, before=lambda tree: _over_there_and_back(tree, case, stack)) as tree:
            contribute_slowly(tree)
            _run("ip", "link", "set", "near", "down")
            time.sleep(case.options.cut_s / 3)
            with case.recovery(tree):
                _run("ip", "link", "set", "near", "up")
                full_speed(tree)
            case.finish(tree, f"after {case.options.cut_s / 3:g} s the kernel sent on, and the edge")


def _again_inside(case: Case) -> None:
    """Run the row in a network namespace, and take over what came of it."""
    with tempfile.TemporaryDirectory(prefix="hfl-chaos-net-") as out:
        command = ["unshare", "--net", sys.executable, "-m", "tests.chaos", NAME, "--out", out]
        command += ["--cut-s", str(case.options.cut_s)]
        done = subprocess.run(command, env={**os.environ, INSIDE: "1"}, capture_output=True, text=True, check=False)
        result = Path(out) / "chaos.json"
        if not result.exists():
            raise HflError(f"the row in its namespace ended with {done.returncode}: {done.stderr[-1000:]}")
        case.take(json.loads(result.read_text())["rows"][0])


def _over_there_and_back(tree: Tree, case: Case, stack: ExitStack) -> None:
    """Lead the bridge of farm-a over a device into another namespace, and from there back to the cloud's broker."""
    there = children.start(["unshare", "--net", "sleep", "3600"], case.directory / "there.log")
    stack.callback(children.stop, [there], 5.0)
    here = Path("/proc/self/ns/net").readlink()
    wait_until(lambda: Path(f"/proc/{there.pid}/ns/net").readlink() != here, "the other namespace")
    inside = ("nsenter", "--net", "--target", str(there.pid))
    _run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(there.pid))
    _run("ip", "addr", "add", f"{NEAR}/24", "dev", "near")
    _run("ip", "link", "set", "near", "up")
    _run(*inside, "ip", "addr", "add", f"{FAR}/24", "dev", "far")
    _run(*inside, "ip", "link", "set", "far", "up")
    back = stack.enter_context(Relay(NEAR, HOST, tree.brokers["cloud"].port))
    port = free_port()
    command = [*inside, sys.executable, "-m", "tests.chaos.namespaces", str(port), str(back.port)]
    turn = children.start(command, case.directory / "turn.log")
    stack.callback(children.stop, [turn], 5.0)
    away = stack.enter_context(Relay(HOST, FAR, port))
    tree.relays["farm-a"].target_port = away.port


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HflError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    with Relay(FAR, NEAR, int(sys.argv[2]), listen_port=int(sys.argv[1])):
        threading.Event().wait()
