"""A node whose disk is full at its start says so at its place, waits, and begins by itself once there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.files import last_boot
from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.messages import State, StateName
from hfl_mqtt.protocol.topics import control_filters
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.roles.opening import opened, until_writable
from hfl_mqtt.state.vault import Vault
from hfl_mqtt.transport.link import Account, Arrived, Up
from hfl_mqtt.transport.mqtt import MqttLink
from tests.broker.conftest import PASSWORD, Inbox

pytestmark = pytest.mark.broker


def test_it_says_so_and_begins_when_there_is_room(
    start_broker: Callable[..., Mosquitto], connect: Callable[..., tuple[MqttLink, Inbox]]
) -> None:
    broker = start_broker()
    _, inbox = connect(broker.port, "cloud", *control_filters("fed1", "cloud"), client_id="looks")
    inbox.next(Up)
    has_room = threading.Event()
    tries: list[str] = []

    def attempt() -> str:
        tries.append("try")
        if not has_room.is_set():
            raise Unwritable("the card is full; free some space")
        return "opened"

    account = Account(host="127.0.0.1", port=broker.port, user="cloud", password=PASSWORD)
    found: list[str] = []
    waiting = threading.Thread(
        target=lambda: found.append(until_writable(attempt, "fed1", {"cloud": account}, {"cloud": 4}, retry_s=0.1))
    )
    waiting.start()
    message, _ = decode(inbox.next(Arrived).frame)
    assert message == State(state=StateName.HALTED, boot=4, reason="the card is full; free some space")
    has_room.set()
    waiting.join(15)
    assert found == ["opened"]
    assert len(tries) >= 2


def test_where_there_is_room_nothing_is_said_and_nobody_is_asked(tmp_path: Path) -> None:
    nobody = Account(host="127.0.0.1", port=1, user="x")
    first = opened(tmp_path, {"a": tmp_path / "a", "b": tmp_path / "b"}, "fed1", {"a": nobody})
    assert dict(first.boots) == {"a": last_boot(tmp_path / "a", "a"), "b": last_boot(tmp_path / "b", "b")}
    first.vault.close()


def test_what_waiting_does_not_help_is_an_error_at_once_and_the_folder_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(HflError, match="cannot be written"):
        opened(tmp_path / "state", {"a": tmp_path / "a"}, "fed1", {})
    Vault(tmp_path / "state").close()
