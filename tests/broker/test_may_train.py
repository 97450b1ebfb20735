"""A device agent whose rules speak against a round, on a real Mosquitto: the reason stands on its topic."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfl_mqtt.ops import children
from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.messages import Draw, Manifest, Phase, Plan, RoundCall
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.transport.link import Arrived, Up

pytestmark = pytest.mark.broker

PATH, DECLINE, INFO = "cloud/a", "hfl/fed1/cloud/a/@/tele/decline", "hfl/fed1/cloud/a/@/stat/info"
#: Nothing of it is there: a device that may not train does not even ask.
MODEL = Manifest(version=0, digest="0" * 16)


def other_hours() -> str:
    """Return an hour of the day that is far from now."""
    hour = (time.localtime().tm_hour + 12) % 24
    return f"{hour:02}:00-{hour:02}:30"


@pytest.fixture
def agent(broker: Mosquitto, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "password").write_text("secret\n")
    config = {
        "role": "client",
        "federation": "fed1",
        "name": PATH,
        "broker": {"host": "127.0.0.1", "port": broker.port, "password_file": str(tmp_path / "password")},
        "task": {"name": "soil-moisture"},
        "state_dir": str(tmp_path / "state"),
        "may_train": {"hours": other_hours()},
    }
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "device_agents", "--config", str(tmp_path / "agent.yaml")]
    process = children.start(command, tmp_path / "agent.log")
    try:
        yield process
    finally:
        children.stop([process], 15)


def call(number: int) -> RoundCall:
    return RoundCall(
        run="r",
        round=(number,),
        phase=Phase.OPEN,
        asked=1,
        quorum=1,
        open_for_s=60.0,
        codec="raw | zstd",
        draw=Draw(),
        plan=Plan(task="soil-moisture", epochs=1),
        model=MODEL,
        unasked=4 * 2**20,
    )


def test_each_round_is_declined_with_the_reason_and_no_training_process_is_started(
    broker: Mosquitto, agent: subprocess.Popen[bytes], connect: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    link, inbox = connect(broker.port, "cloud", (DECLINE, 1), (INFO, 1))
    inbox.next(Up)
    assert inbox.next(Arrived).frame.topic == INFO
    for number in (1, 2):
        link.publish(encode(call(number), "fed1", "cloud"))
        declined = json.loads(inbox.next(Arrived).frame.payload)
        assert (declined["run"], declined["round"]) == ("r", [number])
        assert declined["reason"].endswith(f"it trains only at {other_hours()}")
    assert Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text() == ""
    assert "declined" in (tmp_path / "agent.log").read_text()
