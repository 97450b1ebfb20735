"""The proxy that reads MQTT: it hands on what it was given, and damages only what it should."""

from __future__ import annotations

import os
import queue
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from tests.broker.sites import Person
from tests.chaos.mangler import Mangle, Mangler, corrupted, cut_short, in_another_order, twice

pytestmark = pytest.mark.broker


@pytest.fixture
def mangler(tmp_path: Path) -> Iterator[Mangler]:
    port = free_port()
    conf = tmp_path / "mosquitto.conf"
    as_user = "user root\n" if os.geteuid() == 0 else ""
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{as_user}")
    with Mosquitto(conf, port):
        one = Mangler(port)
        yield one
        one.close()


@pytest.fixture
def pair(mangler: Mangler) -> Iterator[tuple[Person, Person]]:
    """Who speaks through the mangler, and who hears at the broker itself."""
    speaker = Person(mangler.port, "speaker", "").ready()
    hearer = Person(mangler._target_port, "hearer", "", "x/#").ready()
    yield speaker, hearer
    speaker.leave()
    hearer.leave()


def heard(hearer: Person, count: int) -> list[bytes]:
    return [bytes(hearer.heard.get(timeout=10).payload) for _ in range(count)]


def test_what_is_not_meant_goes_through_as_it_is(mangler: Mangler, pair: tuple[Person, Person]) -> None:
    mangler.mangle = corrupted(random.Random(0))
    speaker, hearer = pair
    for payload in (b"a", bytes(200), bytes(300_000)):
        speaker.say("x/y", payload)
    assert heard(hearer, 3) == [b"a", bytes(200), bytes(300_000)]
    assert mangler.count == 0


def test_packets_come_three_times(mangler: Mangler, pair: tuple[Person, Person]) -> None:
    mangler.mangle = twice
    speaker, hearer = pair
    speaker.client.publish("x/up/0", b"a", qos=0)
    assert heard(hearer, 3) == [b"a"] * 3


def test_packets_come_newest_first_and_a_rest_is_not_kept(mangler: Mangler, pair: tuple[Person, Person]) -> None:
    mangler.mangle = in_another_order
    speaker, hearer = pair
    for payload in (b"1", b"2", b"3", b"4"):
        speaker.client.publish("x/up/0", payload, qos=0)
    assert heard(hearer, 4) == [b"3", b"2", b"1", b"4"]


@pytest.mark.parametrize(
    ("mangle", "size"), [(corrupted(random.Random(1), 1), 900), (cut_short(random.Random(1), 1), 600)]
)
def test_one_packet_is_damaged_and_stays_a_packet(
    mangler: Mangler, pair: tuple[Person, Person], mangle: Mangle, size: int
) -> None:
    mangler.mangle = mangle
    speaker, hearer = pair
    for _ in range(8):
        speaker.client.publish("x/up/0", bytes(900), qos=0)
    found = [one for one in heard(hearer, 8) if one != bytes(900)]
    assert len(found) == 1
    assert abs(len(found[0]) - size) <= 5


def test_a_silent_link_says_nothing_and_brings_it_all_when_it_is_back(
    mangler: Mangler, pair: tuple[Person, Person]
) -> None:
    speaker, hearer = pair
    mangler.fall_silent()
    speaker.client.publish("x/y", b"late", qos=0)
    with pytest.raises(queue.Empty):
        hearer.heard.get(timeout=0.3)
    mangler.come_back()
    assert heard(hearer, 1) == [b"late"]
    assert speaker.client.is_connected()
