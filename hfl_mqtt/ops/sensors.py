"""`hfl sensors replay`: be the sensors of a farm, from a CSV file, to try out what hears them."""

from __future__ import annotations

import csv
import gzip
import json
import queue
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

from hfl_mqtt.errors import BrokerError, ConfigError, Malformed
from hfl_mqtt.learning.sources.readings import read_number
from hfl_mqtt.protocol.topics import is_sensor_topic
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account, Down, LinkEvent, Rejected, Up
from hfl_mqtt.transport.mqtt import MqttLink

#: Messages that may wait for the broker.
_MOST_PENDING = 100


def replay(
    account: Account, path: Path, topic: str, *, where: Mapping[str, str], pause_s: float, wait_s: float = 10.0
) -> None:
    """Say every line of a file as one JSON message, its numbers as numbers; what is empty is left out.

    Args:
        account: one that may write the topic.
        path: a CSV file, or one packed with gzip.
        topic: where to say it; `{column}` stands for the line's value there.
        where: only lines with these values.
        pause_s: rest after each message.
        wait_s: how long the broker may take.

    Raises:
        BrokerError: there is no broker, or it refuses the account or the topic.
        ConfigError: the file cannot be read, or the topic is none for sensors.
    """
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = MqttLink(account, [], events.put, client_id="", clean=True)
    link.open()
    said = 0
    try:
        _wait_for_up(events, wait_s)
        with closing(_lines(path, where)) as lines:
            for line in lines:
                link.publish(Frame(topic=_topic(topic, line), payload=_payload(line)))
                said += 1
                _settle(link, events, _MOST_PENDING, wait_s)
                time.sleep(pause_s)
        _settle(link, events, 0, wait_s)
    finally:
        link.close()
    sys.stdout.write(f"{said} messages said on {topic}\n")


def _lines(path: Path, where: Mapping[str, str]) -> Generator[dict[str, str], None, None]:
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rt", encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if all(line.get(name) == value for name, value in where.items()):
                    yield line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _payload(line: Mapping[str, str]) -> bytes:
    return json.dumps({name: _value(text) for name, text in line.items() if name and text}).encode()


def _value(text: str) -> float | str:
    try:
        return read_number(text)
    except Malformed:
        return text


def _topic(template: str, line: Mapping[str, str]) -> str:
    try:
        topic = template.format_map(line)
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"--topic {template}: the file has no column {error}") from None
    if not is_sensor_topic(topic):
        raise ConfigError(
            f"--topic {topic!r}: must be a topic such as sensors/field-1/soil, and none of a federation's"
        )
    return topic


def _wait_for_up(events: queue.SimpleQueue[LinkEvent], wait_s: float) -> None:
    try:
        event = events.get(timeout=wait_s)
    except queue.Empty:
        raise BrokerError(f"the broker does not answer within {wait_s:g} s") from None
    if isinstance(event, Down):
        raise BrokerError(event.reason)
    assert isinstance(event, Up)


def _settle(link: MqttLink, events: queue.SimpleQueue[LinkEvent], most: int, wait_s: float) -> None:
    """Wait until the broker has taken all but so many.

    Raises:
        BrokerError: it refuses one, is lost, or takes too long.
    """
    end_s = time.monotonic() + wait_s
    while True:
        is_full = link.pending > most
        try:
            event = events.get(timeout=0.02) if is_full else events.get_nowait()
        except queue.Empty:
            if not is_full:
                return
            if time.monotonic() > end_s:
                raise BrokerError(f"the broker has not taken a message within {wait_s:g} s") from None
            continue
        if isinstance(event, Down):
            raise BrokerError(event.reason)
        if isinstance(event, Rejected):
            raise BrokerError(f"the broker refuses {event.topic}: {event.reason}")
