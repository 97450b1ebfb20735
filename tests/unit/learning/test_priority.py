"""The priority of a training process, looked at from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

SCRIPT = """
import ctypes, os, platform, sys
from hfl_mqtt.learning.priority import lower
before = os.nice(0)
lower(sys.argv[1])
number = {"x86_64": 252, "aarch64": 31}[platform.machine()]
print(os.nice(0) - before, os.sched_getscheduler(0), ctypes.CDLL(None).syscall(number, 1, 0) >> 13)
"""


def lowered(priority: str) -> tuple[int, int, int]:
    """Return what a process of that priority has: niceness added, scheduler, class at the disk (3 is idle)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, priority], capture_output=True, text=True, check=True, timeout=60
    )
    nice, scheduler, disk = map(int, done.stdout.split())
    return nice, scheduler, disk


@pytest.mark.skipif(os.nice(0) > 9, reason="this process is as nice as can be")
def test_low_is_nice_and_leaves_the_disk_to_others() -> None:
    assert lowered("low") == (10, os.SCHED_OTHER, 3)


def test_idle_takes_only_what_nobody_wants() -> None:
    assert lowered("idle") == (0, os.SCHED_IDLE, 3)


def test_normal_is_as_it_was() -> None:
    assert lowered("normal")[:2] == (0, os.SCHED_OTHER)


def test_the_training_process_takes_the_priority_that_its_agent_is_told() -> None:
    command = [sys.executable, "-m", "hfl_mqtt.learning.worker", "--priority", "idle"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        deadline = time.monotonic() + 60
        while os.sched_getscheduler(worker.pid) != os.SCHED_IDLE:  # before it loads torch
            assert time.monotonic() < deadline, "the worker is as it was born"
            assert worker.poll() is None
        worker.kill()
