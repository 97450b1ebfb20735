"""A device agent in a process of its own, on a real Mosquitto: its vitals arrive, and it says goodbye."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfl_mqtt.ops import children
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.transport.link import Arrived, Up
from tests.broker.processes import until

pytestmark = pytest.mark.broker

PATH = "cloud/a"
STATE, INFO, METRICS = (f"hfl/fed1/{PATH}/@/stat/{name}" for name in ("state", "info", "metrics"))


@contextmanager
def running(tmp_path: Path, port: int, every: str = "1 s") -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "password").write_text("secret\n")
    config = {
        "role": "client",
        "federation": "fed1",
        "name": PATH,
        "broker": {"host": "127.0.0.1", "port": port, "password_file": str(tmp_path / "password")},
        "task": {"name": "soil-moisture"},
        "state_dir": str(tmp_path / "state"),
    }
    (tmp_path / "client.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "device_agents", "--config", str(tmp_path / "client.yaml"), "--every", every]
    process = children.start(command, tmp_path / "agent.log")
    try:
        yield process
    finally:
        children.stop([process], 15)


@pytest.fixture
def agent(broker: Mosquitto, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running(tmp_path, broker.port) as process:
        yield process


@pytest.fixture
def sleeper(broker: Mosquitto, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running(tmp_path, broker.port, "5 s") as process:
        yield process


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[Path]:
    """The log of an agent that finds no broker."""
    with running(tmp_path, free_port()):
        yield tmp_path / "agent.log"


def test_a_broker_that_is_not_there_is_told_once(lonely: Path) -> None:
    until(lambda: "nothing listens" in lonely.read_text(), "word of the broker")
    lines = lonely.read_text().splitlines()
    assert len([line for line in lines if "nothing listens" in line]) == 1


def test_vitals_arrive_between_rounds_and_the_agent_leaves_in_order(
    broker: Mosquitto, agent: subprocess.Popen[bytes], connect: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    _, inbox = connect(broker.port, "cloud", (f"hfl/fed1/{PATH}/@/stat/+", 1))
    inbox.next(Up)
    heard: dict[str, list[dict[str, Any]]] = {STATE: [], INFO: [], METRICS: []}

    def hear_until(topic: str, count: int) -> None:
        while len(heard[topic]) < count:
            frame = inbox.next(Arrived).frame
            heard[frame.topic].append(json.loads(frame.payload))

    hear_until(METRICS, 2)
    assert heard[INFO][0]["role"] == "client"
    assert "core" in heard[INFO][0]["hardware"]
    vitals = heard[METRICS][-1]
    assert 0 <= vitals["cpu_percent"] <= 100
    assert 0 < vitals["memory_percent"] < 100
    assert 0 < vitals["rss_peak_mb"] < 50  # MB
    agent.send_signal(signal.SIGTERM)
    hear_until(STATE, len(heard[STATE]) + 1)
    assert heard[STATE][-1]["state"] == "disconnected"
    assert agent.wait(15) == 0
    assert "Traceback" not in (tmp_path / "agent.log").read_text()


def spent(pid: int) -> tuple[int, int]:
    """Return how often the threads of a process have gone to sleep, and its ticks of processor time."""
    said = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    sleeps = [line.split()[1] for text in said for line in text.splitlines() if line.startswith("voluntary_ctxt")]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, sleeps)), int(fields[11]) + int(fields[12])


def test_an_idle_agent_sleeps_until_it_is_woken(
    broker: Mosquitto, sleeper: subprocess.Popen[bytes], connect: Callable[..., tuple[Any, Any]]
) -> None:
    _, inbox = connect(broker.port, "cloud", (METRICS, 1))
    inbox.next(Up)
    inbox.next(Arrived)  # it has begun, and said its vitals once
    sleeps, ticks = spent(sleeper.pid)
    inbox.next(Arrived)  # five seconds later
    slept, ticked = spent(sleeper.pid)
    assert slept - sleeps < 25  # about eight for the vitals; who looks five times a second has more
    assert ticked - ticks <= 5  # of 500
