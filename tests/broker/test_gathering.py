"""A device's readings on a real Mosquitto: gathered, kept over restarts, bounded, whoever the sensors are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.learning.sources.source import Column, Source
from hfl_mqtt.learning.sources.table import read_table
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.ops.sensors import replay
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.roles.sensors import Sensors
from hfl_mqtt.rounds.actions import Note
from hfl_mqtt.transport.link import Account, Up
from hfl_mqtt.transport.mqtt import MqttLink
from tests.broker.conftest import PASSWORD, Inbox, write_conf
from tests.broker.processes import until

pytestmark = pytest.mark.broker

DEVICE, SENSOR = "cloud/a", "cloud/b"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A farm's broker: the device may hear its sensors but for those of the neighbour, the sensor may say anything."""
    port = free_port()
    conf = write_conf(tmp_path / "broker", port)
    with (tmp_path / "broker" / "rights").open("a") as rights:
        rights.write(f"user {DEVICE}\ntopic read sensors/#\nuser {SENSOR}\ntopic write #\n")
    with Mosquitto(conf, port):
        yield port


def account(port: int, user: str) -> Account:
    return Account(host="127.0.0.1", port=port, user=user, password=PASSWORD)


@pytest.fixture
def say(port: int) -> Iterator[Callable[..., None]]:
    """Be a sensor: say a message, or many, and return when the broker has them."""
    inbox = Inbox()
    link = MqttLink(account(port, SENSOR), [], inbox, client_id="sensor", clean=True)
    link.open()
    inbox.next(Up)

    def say(topic: str, *payloads: Any, retain: bool = False) -> None:
        for payload in payloads:
            said = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            link.publish(Frame(topic=topic, payload=said, retain=retain))
        until(lambda: not link.pending, "the broker")

    yield say
    link.close()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    columns = (
        Column(name="soil", topic="sensors/soil", field="vwc", least=0, most=1),
        Column(name="air", topic="sensors/+/air", field="c"),
    )
    window = str(tmp_path / "window.db")
    return Source(kind="mqtt", columns=columns, time="at", every_s=10.0, write_s=0.1, least_rows=3, window=window)


class Notes:
    def __init__(self) -> None:
        self.all: SimpleQueue[Note] = SimpleQueue()

    def __call__(self, _path: str, note: Note) -> None:
        self.all.put(note)

    def next(self, event: str) -> Note:
        while (note := self.all.get(timeout=15)).event != event:
            pass
        return note


@contextmanager
def listening(port: int, source: Source) -> Iterator[tuple[Sensors, Notes]]:
    notes = Notes()
    sensors = Sensors(notes, lambda _path, _rows: None)
    sensors.add(DEVICE, source, account(port, DEVICE))
    sensors.start()
    try:
        notes.next("sensors_heard")
        yield sensors, notes
    finally:
        sensors.close()


def has(sensors: Sensors, **wanted: int) -> Callable[[], bool]:
    return lambda: wanted.items() <= sensors.figures(DEVICE).items()


def test_topics_are_joined_into_rows_and_too_few_are_no_ground_to_train_on(
    port: int, say: Callable[..., None], source: Source
) -> None:
    with listening(port, source) as (sensors, _):
        say("sensors/soil", b"?")
        until(has(sensors, bad_readings=1), "a word of a sensor")
        assert sensors.lacks(DEVICE) == "0 rows of the 3 that data.least asks for are gathered so far"
        say("sensors/soil", *({"vwc": 0.1 * at, "at": 10 * at} for at in (1, 2, 3, 4)))
        say("sensors/north/air", {"c": 7, "at": 21})
        say("sensors/south/air", {"c": 9, "at": 29})
        until(has(sensors, readings=6), "the readings")
        assert sensors.rows(DEVICE) == 3
        assert sensors.lacks(DEVICE) is None
    table = read_table(source)
    assert table["soil"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert table["air"].tolist()[1] == 8


def test_a_restart_goes_on_with_its_rows_and_hears_what_was_said_meanwhile(
    port: int, say: Callable[..., None], source: Source
) -> None:
    with listening(port, source) as (sensors, _):
        say("sensors/soil", {"vwc": 0.1, "at": 10}, {"vwc": 0.2, "at": 20})
        until(has(sensors, readings=2), "the readings")
    say("sensors/soil", {"vwc": 0.3, "at": 30})
    with listening(port, source) as (sensors, _):
        until(has(sensors, readings=3), "what was said while it was away")
        assert sensors.rows(DEVICE) == 2


def test_readings_whose_time_is_that_of_their_arrival_are_not_kept_for_one_who_is_away_nor_taken_from_the_past(
    port: int, say: Callable[..., None], tmp_path: Path
) -> None:
    columns = (Column(name="air", topic="sensors/air"),)
    live = Source(kind="mqtt", columns=columns, every_s=None, write_s=0.1, window=str(tmp_path / "live.db"))
    with listening(port, live) as (sensors, _):
        say("sensors/air", 1)
        until(has(sensors, rows=1), "the reading")
    say("sensors/air", 2)
    say("sensors/air", 3, retain=True)
    began_s = time.time()
    with listening(port, live) as (sensors, _):
        say("sensors/air", 4)
        until(has(sensors, rows=2), "the reading")
    table = read_table(live)
    assert table["air"].tolist() == [1, 4]
    assert began_s <= table.times[1] <= time.time()


def test_hostile_and_broken_sensors_are_counted_and_cost_the_others_nothing(
    port: int, say: Callable[..., None], source: Source
) -> None:
    bad: list[Any] = [
        b"\x00\xff" * 500_000,
        b"[" * 16_000,
        b'{"vwc": NaN, "at": 10}',
        {"vwc": 1e300, "at": 10},
        {"vwc": 0.1},
        {"vwc": 0.1, "at": time.time() + 1e7},
        {"vwc": {"deep": [1]}, "at": 10},
        {"other": 1, "at": 10},
    ]
    with listening(port, source) as (sensors, notes):
        say("sensors/soil", *bad)
        until(has(sensors, bad_readings=len(bad)), "the bad readings")
        assert notes.next("bad_reading").fields["reason"] == "1000000 bytes, at most 16384 are read"
        say("sensors/soil", {"vwc": 0.5, "at": 10})
        until(has(sensors, readings=1, bad_readings=len(bad)), "the good one")
    assert notes.all.empty()  # the first is told of, the others are counted


def test_a_flood_is_cut_off_at_its_rate(port: int, say: Callable[..., None], tmp_path: Path) -> None:
    columns = (Column(name="air", topic="sensors/air"),)
    window = str(tmp_path / "slow.db")
    slow = Source(kind="mqtt", columns=columns, time="", every_s=3600.0, write_s=0.1, per_minute=60, window=window)
    with listening(port, slow) as (sensors, _):
        say("sensors/air", *range(2000))
        until(lambda: sum_of(sensors, "readings", "dropped_readings") == 2000, "the flood")
        assert 60 <= sum_of(sensors, "readings") < 120


def test_where_rows_are_missing_and_nothing_was_heard_it_is_said_what_may_be_why(
    port: int, say: Callable[..., None], source: Source
) -> None:
    other = Source(kind="mqtt", columns=(Column(name="a", topic="private/a"),), window=source.window)
    with listening(port, other) as (sensors, _):
        say("private/a", 1)
        assert "0 rows" in str(sensors.lacks(DEVICE))
        assert "nothing was heard on private/a since the start" in str(sensors.lacks(DEVICE))


def sum_of(sensors: Sensors, *names: str) -> int:
    figures = sensors.figures(DEVICE)
    return sum(int(figures[name] or 0) for name in names)


def test_nobody_takes_the_session_over_who_knows_only_the_devices_name(
    port: int, say: Callable[..., None], source: Source
) -> None:
    with listening(port, source) as (sensors, notes):
        inbox = Inbox()
        intruder = MqttLink(account(port, SENSOR), [], inbox, client_id=f"{DEVICE}@sensors", clean=True)
        intruder.open()
        inbox.next(Up)
        say("sensors/soil", {"vwc": 0.5, "at": 10})
        until(has(sensors, readings=1), "the reading")
        intruder.close()
        assert "sensors_lost" not in [notes.all.get().event for _ in range(notes.all.qsize())]


def test_a_file_can_be_replayed_as_the_sensors_that_it_came_from(port: int, source: Source, tmp_path: Path) -> None:
    file = tmp_path / "soil.csv"
    file.write_text("field,at,vwc,c\nsouth,10,0.1,\nnorth,10,0.9,\nsouth,20,0.2,4\n")
    topic = "sensors/soil"
    with listening(port, source) as (sensors, _):
        replay(account(port, SENSOR), file, topic, where={"field": "south"}, pause_s=0)
        until(has(sensors, readings=2), "the readings")
        replay(account(port, SENSOR), file, "sensors/{field}/air", where={"c": "4"}, pause_s=0)
        until(has(sensors, readings=3), "the air's")
    assert read_table(replace(source, least_rows=1))["soil"].tolist() == [0.1]


def test_a_replay_that_may_not_speak_there_says_so(port: int, tmp_path: Path) -> None:
    file = tmp_path / "soil.csv"
    file.write_text("vwc\n0.1\n")
    with pytest.raises(BrokerError, match="sensors/soil"):
        replay(account(port, DEVICE), file, "sensors/soil", where={}, pause_s=0)
    with pytest.raises(ConfigError, match="none of a federation's"):
        replay(account(port, SENSOR), file, "hfl/fed1/cloud/@/stat/state", where={}, pause_s=0)


def test_two_devices_of_a_process_have_each_its_rows_and_both_are_written_at_the_end(
    port: int, say: Callable[..., None], source: Source, tmp_path: Path
) -> None:
    other = replace(source, window=str(tmp_path / "other.db"), write_s=3600.0)
    slow = replace(source, write_s=3600.0)
    notes = Notes()
    sensors = Sensors(notes, lambda _path, _rows: None)
    sensors.add(DEVICE, slow, account(port, DEVICE))
    sensors.add(SENSOR, replace(other, columns=source.columns[:1]), account(port, DEVICE))
    sensors.start()
    notes.next("sensors_heard")
    notes.next("sensors_heard")
    say("sensors/soil", *({"vwc": 0.1, "at": at} for at in (10, 20, 30, 40)))
    until(lambda: sensors.rows(DEVICE) == sensors.rows(SENSOR) == 3, "the rows")
    sensors.close()
    assert [len(read_table(one)) for one in (slow, other)] == [3, 3]
