"""A range of clients in one process, from its YAML to its farewells."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hfl_mqtt.config.models import ClientConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.roles import client
from hfl_mqtt.rounds.actions import Note
from hfl_mqtt.transport.link import Account, Arrived, LinkEvent
from hfl_mqtt.transport.mqtt import MqttLink

pytestmark = pytest.mark.broker
WAIT_S = 60.0
MANY = 60


def test_a_range_of_clients_connects_and_leaves_in_order(
    start_broker: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start_broker()
    broker.stop()
    lines = broker.conf_path.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("password_file", "acl_file", "allow_anonymous"))]
    broker.conf_path.write_text("\n".join([*kept, "allow_anonymous true"]) + "\n")
    broker.start()
    path = tmp_path / "clients.yaml"
    path.write_text(
        f"""\
role: client
federation: fed1
broker: {{host: 127.0.0.1, port: {broker.port}}}
task: {{name: mnist}}
state_dir: state
clients:
  - name: cloud/a/pi-{{01..{MANY}}}
    data: {{index: "{{index}}", of: {MANY}}}
"""
    )
    connected: queue.Queue[str] = queue.Queue()

    def record(node: str, entry: Note) -> None:
        if entry.event == "connected":
            connected.put(node)

    process = client.make(load_role(path, ClientConfig), record)
    before = threading.active_count()
    holding = threading.Thread(target=process.hold)
    holding.start()
    try:
        names = {connected.get(timeout=WAIT_S) for _ in range(MANY)}
        assert threading.active_count() <= before + 2 + 4, "who holds it, the network, and who is connecting"
    finally:
        start_s = time.monotonic()
        process.stop()
        holding.join(WAIT_S)
    assert time.monotonic() - start_s < 10.0
    assert names == {f"cloud/a/pi-{number:02}" for number in range(1, MANY + 1)}
    folders = [path for path in (tmp_path / "state").iterdir() if path.is_dir()]
    assert len(folders) == MANY, "each has its own boot counter"
    assert sorted(path.name for path in (tmp_path / "state").iterdir() if path.is_file()) == ["lock", "state.db"]
    said: queue.Queue[LinkEvent] = queue.Queue()
    account = Account(host="127.0.0.1", port=broker.port, user="reader")
    reader = MqttLink(account, [Filter(topic="hfl/fed1/+/+/+/@/stat/state", qos=0)], said.put)
    reader.open()
    states: list[bytes] = []
    while len(states) < MANY:
        event = said.get(timeout=WAIT_S)
        if isinstance(event, Arrived):
            states.append(event.frame.payload)
    assert all(b'"disconnected"' in state for state in states)
    reader.close()
