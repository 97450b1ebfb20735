"""`hfl sensors replay`: be the sensors of a farm, from a CSV file, to try out what hears them."""

from __future__ import annotations

import csv
import gzip
import json
import queue
import re
import sys
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from hfl_mqtt.config.wording import near
from hfl_mqtt.errors import BrokerError, ConfigError, Malformed
from hfl_mqtt.learning.sources.readings import read_number
from hfl_mqtt.ops.watch import in_options
from hfl_mqtt.protocol.topics import is_sensor_topic
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account, Down, LinkEvent, Rejected, Up
from hfl_mqtt.transport.mqtt import MqttLink

#: Messages that may wait for the broker.
_MOST_PENDING = 100
#: What a column is called: no line of a key, of YAML or of a password file looks like that, nor do values.
_COLUMN = re.compile(r" *[^\W\d][\w .()/%°²³-]{0,99}")


def replay(
    account: Account, path: Path, topic: str, *, where: Mapping[str, str], pause_s: float, wait_s: float = 10.0
) -> None:
    """Say every line of a file as one JSON message, its numbers as numbers; what is empty is left out.

    The whole file is looked at first: what is no table of readings, a bundle with its keys say, is not said at all.

    Args:
        account: one that may write the topic.
        path: a CSV file, or one packed with gzip.
        topic: where to say it; `{column}` stands for the line's value there.
        where: only lines with these values.
        pause_s: rest after each message.
        wait_s: how long the broker may take.

    Raises:
        BrokerError: there is no broker, or it refuses the account or the topic.
        ConfigError: the file is none of readings, no line is wanted, or the topic is none for sensors.
    """
    _check(path, topic, where)
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = MqttLink(account, [], events.put, client_id="", clean=True)
    link.open()
    said = 0
    try:
        _wait_for_up(account, events, wait_s)
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


def wanted_of(where: Sequence[str]) -> dict[str, str]:
    """Read the lines that are wanted, each as `column=value`.

    Raises:
        ConfigError: one is none.
    """
    wanted: dict[str, str] = {}
    for each in where:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise ConfigError(f"--where {each}: must be column=value, such as station=03047")
        wanted[name] = value
    return wanted


def _check(path: Path, topic: str, wanted: Mapping[str, str]) -> None:
    """Look at every line before the first is said."""
    is_wanted = False
    for line in _lines(path, wanted):
        _topic(topic, line)
        is_wanted = True
    if not is_wanted:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise ConfigError(f"{path}: has no line with {asked}" if asked else f"{path}: has no lines below its header")


def _lines(path: Path, wanted: Mapping[str, str]) -> Generator[dict[str, str], None, None]:
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(_text(path, file))
            _check_header(path, rows.fieldnames, wanted)
            for line in rows:
                if None in line:
                    raise ConfigError(f"{path}: line {rows.line_num}: has more values than the header has names")
                if all(line[name] == value for name, value in wanted.items()):
                    yield line
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _text(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if "\0" in line:
            raise ConfigError(f"{path}: line {number}: holds a NUL: it is no text, and CSV is wanted")
        yield line


def _check_header(path: Path, names: Sequence[str] | None, wanted: Mapping[str, str]) -> None:
    if not names:
        raise ConfigError(f"{path}: is empty")
    if not all(_COLUMN.fullmatch(name) for name in names):
        # What stands there instead may be a secret, and is not repeated.
        raise ConfigError(
            f"{path}: line 1: is no header: the columns' names are wanted, with commas between, such as time,moisture"
        )
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: line 1: names {name!r} twice")
    for name in wanted:
        if name not in names:
            meant = near(name, list(names))
            hint = f"did you mean {meant!r}?" if meant else f"they are {', '.join(names)}"
            raise ConfigError(f"--where {name}={wanted[name]}: {path} has no column {name!r}; {hint}")


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


def _wait_for_up(account: Account, events: queue.SimpleQueue[LinkEvent], wait_s: float) -> None:
    try:
        event = events.get(timeout=wait_s)
    except queue.Empty:
        raise BrokerError(f"the broker does not answer within {wait_s:g} s") from None
    if isinstance(event, Down):
        raise BrokerError(in_options(account, event.reason))
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
