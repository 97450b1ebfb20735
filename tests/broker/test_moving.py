"""`hfl assign`: a device goes on at another of its homes, and is still there after it was killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.messages import State, StateName
from hfl_mqtt.protocol.topics import Channel, Filter, Topic
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.transport.link import Arrived, Up
from tests.broker.conftest import FEDERATION, PASSWORD, Inbox
from tests.broker.processes import Program, hfl

pytestmark = pytest.mark.broker

CLOUD = """\
role: cloud
federation: {federation}
broker: {{host: 127.0.0.1, port: {port}, password_env: PASSWORD}}
task: {{name: mnist}}
rounds: 1
"""
CLIENT = """\
role: client
federation: {federation}
broker: {{host: 127.0.0.1, port: {port}, password_env: PASSWORD}}
task: {{name: mnist}}
name: cloud/a
state_dir: board
homes: [{{name: cloud/b}}]
"""


def states_until(inbox: Inbox, path: str, state: StateName) -> list[tuple[str, State]]:
    """Return what is said of states until a node says this one."""
    heard = []
    while True:
        message, topic = decode(inbox.next(Arrived).frame)
        assert isinstance(message, State)
        heard.append((topic.path, message))
        if (topic.path, message.state) == (path, state):
            return heard


def test_a_device_moves_and_stays_where_it_went(
    broker: Mosquitto,
    connect: Callable[..., tuple[Any, Inbox]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.broker.processes._ENVIRONMENT", {**os.environ, "PASSWORD": PASSWORD})
    for name, text in (("cloud", CLOUD), ("client", CLIENT)):
        (tmp_path / f"{name}.yaml").write_text(text.format(federation=FEDERATION, port=broker.port))
    topics = [str(Topic(FEDERATION, path, Channel.STAT, "state")) for path in ("cloud/a", "cloud/b")]
    _, inbox = connect(broker.port, "cloud", *(Filter(topic=topic, qos=1) for topic in topics))
    inbox.next(Up)

    def assign(*names: str) -> tuple[int, str]:
        done = hfl("assign", *names, "--config", tmp_path / "cloud.yaml", "--json")
        return done.returncode, done.stdout or done.stderr

    assert assign("cloud/a", "cloud/b")[0] == 1, "nobody is there"
    board = Program("client", "--config", tmp_path / "client.yaml")
    try:
        states_until(inbox, "cloud/a", StateName.READY)
        status, told = assign("cloud/a", "cloud/z")
        assert status == 1
        assert "cloud/z is not among its homes (cloud/b): add it there" in told
        status, told = assign("cloud/a", "cloud/b")
        assert (status, json.loads(told)["is_done"]) == (0, True), told
        assert json.loads(told)["told"] == "cloud/a moved to cloud/b"
        (*_, (_, left), (_, first)) = states_until(inbox, "cloud/b", StateName.READY)
        assert (left.state, left.reason) == (StateName.DISCONNECTED, "moved to cloud/b")
        board.end(signal.SIGKILL)
        states_until(inbox, "cloud/b", StateName.LOST)
        board = Program("client", "--config", tmp_path / "client.yaml")
        (*_, (_, state)) = states_until(inbox, "cloud/b", StateName.READY)
        assert state.boot > first.boot
        assert json.loads(assign("cloud/b", "cloud/a")[1])["is_done"]
        states_until(inbox, "cloud/a", StateName.READY)
    finally:
        board.kill()
    states_until(inbox, "cloud/a", StateName.LOST)
    status, told = assign("cloud/a", "cloud/b")
    assert (status, json.loads(told)["is_done"]) == (0, False)
    assert "its broker keeps the word for it" in told
    board = Program("client", "--config", tmp_path / "client.yaml")
    try:
        states_until(inbox, "cloud/b", StateName.READY)
    finally:
        board.kill()
