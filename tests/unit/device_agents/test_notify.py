"""What systemd hears, on a socket as systemd opens it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agents.notify import Service


@pytest.fixture(params=["in a folder", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "in a folder" else f"@hfl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        here.settimeout(5)
        yield name, here


class Loop:
    """A loop that turns when it is told to."""

    def __init__(self) -> None:
        self.act: Callable[[], None] | None = None
        self.every_s = 0.0

    def beat(self, act: Callable[[], None], every_s: float) -> None:
        self.act, self.every_s = act, every_s


def test_it_is_ready_with_the_loops_first_turn_and_alive_with_each(manager: tuple[str, socket.socket]) -> None:
    name, here = manager
    loop = Loop()
    Service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000000"}).watch(loop.beat)
    assert loop.every_s == 300
    assert loop.act is not None
    loop.act()
    loop.act()
    assert [here.recv(100), here.recv(100)] == [b"READY=1\nWATCHDOG=1", b"WATCHDOG=1"]


def test_who_has_nothing_to_do_is_ready_all_the_same_for_else_its_end_were_a_failure(
    manager: tuple[str, socket.socket],
) -> None:
    name, here = manager
    Service({"NOTIFY_SOCKET": name}).ready()
    assert here.recv(100) == b"READY=1\nWATCHDOG=1"


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "1000000"}])
def test_without_systemd_nothing_is_said(environment: dict[str, str]) -> None:
    loop = Loop()
    Service(environment).watch(loop.beat)
    Service(environment).ready()
    assert loop.act is None


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "17"}
    assert Service(environment, pid=16).patience_s is None
    assert Service(environment, pid=17).patience_s == 1.0


def test_a_manager_that_does_not_listen_is_told_of_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop()
    Service({"NOTIFY_SOCKET": str(tmp_path / "gone")}).watch(loop.beat)
    assert loop.act is not None
    with caplog.at_level(logging.WARNING):
        loop.act()
    assert "systemd does not hear us" in caplog.text
