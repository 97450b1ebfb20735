"""A real Mosquitto per test, with passwords and rights, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.protocol import topics
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.transport.link import Account, Link, LinkEvent
from hfl_mqtt.transport.mqtt import MqttLink

FEDERATION = "fed1"
NODES = ("cloud", "cloud/a", "cloud/b")
PASSWORD = "secret"
WAIT_S = 60.0
Event = TypeVar("Event", bound=LinkEvent)


class Inbox:
    """A sink that a test reads from: `inbox.next(Up)` waits for the next event, which must be an Up."""

    def __init__(self) -> None:
        self._events: queue.Queue[LinkEvent] = queue.Queue()

    def __call__(self, event: LinkEvent) -> None:
        self._events.put(event)

    def next(self, kind: type[Event]) -> Event:
        event = self._events.get(timeout=WAIT_S)
        assert isinstance(event, kind), f"expected {kind.__name__}, got {event}"
        return event

    def is_empty_after(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes within a while: for things that must not happen."""
        try:
            self._events.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


def write_conf(home: Path, port: int, *extra: str) -> Path:
    """Write a configuration like a farm's: passwords, the federation's rights, sessions kept on disk."""
    home.mkdir(exist_ok=True)
    passwords, rights = home / "passwords", home / "rights"
    passwords.touch(0o600)
    for node in NODES:
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), node, PASSWORD], check=True, capture_output=True)  # noqa: S607
    lines = []
    for node in NODES:
        granted = topics.acl_node(FEDERATION, node, has_children=node == "cloud")
        lines += [f"user {node}", *(f"topic {access} {name}" for access, name in granted)]
    rights.write_text("\n".join(lines) + "\n")
    rights.chmod(0o600)
    conf = home / "mosquitto.conf"
    conf.write_text(
        "\n".join(
            [
                f"listener {port} 127.0.0.1",
                *(["user root"] if os.geteuid() == 0 else []),
                "allow_anonymous false",
                f"password_file {passwords}",
                f"acl_file {rights}",
                "persistence true",
                f"persistence_location {home}/",
                "max_queued_messages 100000",
                *extra,
            ]
        )
        + "\n"
    )
    return conf


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start a broker, with more lines of configuration if given; every broker is stopped after the test."""
    running: list[Mosquitto] = []

    def start(*extra: str, port: int | None = None) -> Mosquitto:
        port = port or free_port()
        broker = Mosquitto(write_conf(tmp_path / f"broker{port}", port, *extra), port)
        broker.start()
        running.append(broker)
        return broker

    yield start
    for broker in running:
        broker.stop()


@pytest.fixture
def broker(start_broker: Callable[..., Mosquitto]) -> Mosquitto:
    return start_broker()


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[MqttLink, Inbox]]]:
    """Open a link as a node, and give its inbox with it; every link is closed after the test."""
    links: list[Link] = []

    def connect(
        port: int, user: str, *filters: Filter | tuple[str, int], password: str = PASSWORD, **options: Any
    ) -> tuple[MqttLink, Inbox]:
        inbox = options.pop("sink", None) or Inbox()
        host, tls = options.pop("host", "127.0.0.1"), options.pop("tls", None)
        account = Account(host=host, port=port, user=user, password=password if tls is None else None, tls=tls)
        wanted = [each if isinstance(each, Filter) else Filter(topic=each[0], qos=each[1]) for each in filters]
        link = MqttLink(account, wanted, inbox, **{"retry_s": (0.05, 0.2), **options})
        links.append(link)
        link.open()
        return link, inbox

    yield connect
    for link in links:
        link.close()
