"""What the devices of a process gather from sensor topics: a link and a window each, and one thread for all of them.

A link of its own, beside the node's: a flood of readings never stands before a call or a part of a model, the broker
may be another one, and what the rounds cost in bytes is counted without it. The network's thread only enqueues, as
everywhere; parsing and the disk are this thread's, so no slow card holds up a keep-alive.

Where readings carry their own time the broker keeps them while we are away; where the time of arrival counts it does
not, for all would seem to be of the moment when we come back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hfl_mqtt.errors import HflError, Malformed
from hfl_mqtt.learning.sources.readings import BELIEVABLE_S, MAX_AHEAD_S, MAX_READING, read_payload
from hfl_mqtt.learning.sources.source import Column, Source
from hfl_mqtt.learning.sources.window import Window, peek
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.roles.shell import MetricValues
from hfl_mqtt.rounds.actions import Note, note
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Rejected, Up
from hfl_mqtt.transport.matching import FilterTree
from hfl_mqtt.transport.mqtt import MqttLink

_CLOSE_WAIT_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Bucket:
    """So many a minute, and as many at once."""

    per_minute: int
    level: float
    filled_s: float

    def takes(self, now: float) -> bool:
        """Whether one more is within the rate."""
        self.level = min(self.level + (now - self.filled_s) * self.per_minute / 60, float(self.per_minute))
        self.filled_s = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


@dataclass(slots=True)
class _Device:
    """One device: what it listens to, and what of it became rows."""

    path: str
    source: Source
    window: Window
    bucket: Bucket
    columns: FilterTree[tuple[Column, ...]]
    link: MqttLink | None = None
    #: Messages beyond the rate; written by the network's thread.
    dropped: int = 0
    refused: str = ""
    written_s: float = 0.0
    told: set[str] = field(default_factory=set)
    is_heard: bool = False
    is_shut: bool = False

    @property
    def why(self) -> str:
        """What may be why rows are missing, as the end of a sentence."""
        if self.refused:
            return f": {self.refused}"
        if self.is_heard:
            return ""
        # Mosquitto grants every subscription, and then says nothing where there is no right to read.
        first = self.source.columns[0].topic
        return f": nothing was heard on {first} since the start; do sensors speak there, and may this account read it?"


#: What came for a device, and when; or something to do.
_Item = tuple[_Device, LinkEvent, float] | Callable[[], None]


class Sensors:
    """Gathers what the devices of a process read from sensors.

    Args:
        record: takes notes, from any thread.
        sampled: told of a device's rows when they have changed, from any thread.
    """

    def __init__(self, record: Callable[[str, Note], None], sampled: Callable[[str, int], None]) -> None:
        self._record, self._sampled = record, sampled
        self._devices: dict[str, _Device] = {}
        self._watched: dict[str, Source] = {}
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def add(self, path: str, source: Source, account: Account) -> None:
        """Open a device's window, and listen from `start` on.

        Raises:
            HflError: the window cannot be opened.
        """
        columns: FilterTree[tuple[Column, ...]] = FilterTree()
        for topic in (topics := list(dict.fromkeys(column.topic for column in source.columns))):
            columns.at(topic)[""] = tuple(column for column in source.columns if column.topic == topic)
        now = time.monotonic()
        device = self._devices[path] = _Device(
            path=path,
            source=source,
            window=Window(Path(source.window), source),
            bucket=Bucket(source.per_minute, float(source.per_minute), now),
            columns=columns,
            written_s=now - source.write_s,
        )
        if device.window.damage:
            self._record(path, note("window", reason=device.window.damage))
        device.link = MqttLink(
            account,
            [Filter(topic=topic, qos=1 if source.time else 0, wants_retained=False) for topic in topics],
            lambda event: self._take(device, event),
            client_id=account.session(f"{path}@sensors"),
            clean=not source.time,
        )
        if self._thread is not None:
            device.link.open()

    def start(self) -> None:
        """Begin to listen, where there is something to listen to."""
        if self._devices:
            self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
            self._thread.start()
        for device in self._devices.values():
            assert device.link is not None
            device.link.open()

    def watch(self, path: str, source: Source) -> None:
        """Tell of the rows of a device whose window the training process fills from files."""
        self._watched[path] = source

    def remove(self, path: str) -> None:
        """Stop listening for a device; what it has gathered is written."""
        self._watched.pop(path, None)
        device = self._devices.pop(path, None)
        if device is None or device.link is None:
            return
        device.link.hang_up()
        if self._thread is not None:
            self._inbox.put(partial(self._shut, device))
        else:
            self._shut(device)

    def lacks(self, path: str) -> str | None:
        """Return why a device has too little to train on; None where it has enough, or is none of ours."""
        device = self._devices.get(path)
        if device is None or (rows := _rows(device)) >= device.source.least_rows:
            return None
        return f"{rows} rows of the {device.source.least_rows} that data.least asks for are gathered so far{device.why}"

    def rows(self, path: str) -> int | None:
        """Return how many whole rows a device has; None where it has no source, or that of files was not read yet."""
        device, watched = self._devices.get(path), self._watched.get(path)
        if device is not None:
            return _rows(device)
        return None if watched is None else _whole(peek(Path(watched.window)).get("rows"), watched)

    def figures(self, path: str) -> MetricValues:
        """Return what goes beside a device's metrics: rows, readings, bad ones, and those beyond the rate."""
        device, watched = self._devices.get(path), self._watched.get(path)
        if device is not None:
            return {"rows": _rows(device), **device.window.counts, "dropped_readings": device.dropped}
        if watched is None:
            return {}
        found = peek(Path(watched.window))
        rows = _whole(found.get("rows"), watched)
        if rows is not None:
            self._sampled(path, rows)
        return {**found, "rows": rows}

    def close(self) -> None:
        """Stop listening and write what waits. Idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        devices = list(self._devices.values())
        for device in devices:
            self.remove(device.path)
        for device in devices:
            assert device.link is not None
            device.link.close()
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join(_CLOSE_WAIT_S)

    # ---- on the network's thread

    def _take(self, device: _Device, event: LinkEvent) -> None:
        if not isinstance(event, Arrived):
            self._inbox.put((device, event, 0.0))
            return
        assert device.link is not None
        # At once: a broker stops at twenty that are not acknowledged, and rows are written once a minute.
        device.link.done(event)
        if not device.bucket.takes(time.monotonic()):
            device.dropped += 1
            return
        frame = event.frame
        if len(frame.payload) > MAX_READING:  # not to lie in the queue
            reason = f"{len(frame.payload)} bytes, at most {MAX_READING} are read"
            self._inbox.put(partial(self._count_bad, device, frame.topic, reason))
            return
        self._inbox.put((device, event, time.time()))

    # ---- on our own thread

    def _run(self) -> None:
        while True:
            due = [each.written_s + each.source.write_s for each in self._all() if each.window.is_waiting]
            wait_s = max(min(due) - time.monotonic(), 0.0) if due else None
            try:
                item = self._inbox.get(timeout=wait_s)
            except queue.Empty:
                item = self._write
            if item is None:
                return
            try:
                self._hear(item)
            except Exception:  # noqa: BLE001 - logged; one message must not end the thread of all devices
                _log.exception("a reading could not be taken")

    def _all(self) -> list[_Device]:
        return list(self._devices.values())

    def _hear(self, item: _Item) -> None:
        if callable(item):
            item()
            return
        device, event, came_s = item
        if device.is_shut:
            return
        match event:
            case Arrived():
                self._read(device, event, came_s)
            case Rejected():
                device.refused = (
                    f"the broker refuses {event.topic}: {event.reason}; the site file gives the right, sensors"
                )
                self._tell(device, "sensors_refused", device.refused)
            case Down():
                device.refused = ""
                self._tell(device, "sensors_lost", event.reason)
            case Up() if not device.refused:
                device.told.clear()
                topics = {column.topic for column in device.source.columns}
                self._record(device.path, note("sensors_heard", topics=len(topics)))

    @staticmethod
    def _shut(device: _Device) -> None:
        device.is_shut = True
        device.window.close()

    def _read(self, device: _Device, arrived: Arrived, came_s: float) -> None:
        frame, window = arrived.frame, device.window
        device.is_heard = True
        columns = [column for each in device.columns.matching(frame.topic) for column in each]
        try:
            reading = read_payload(frame.payload, columns, device.source.time)
            moment_s = came_s if reading.time_s is None else reading.time_s
            # A clock that is not set judges nothing: the window does when it is.
            if came_s > BELIEVABLE_S and moment_s > came_s + MAX_AHEAD_S:
                raise Malformed(f"is {(moment_s - came_s) / 86_400:.1f} days ahead of our clock")
        except Malformed as error:
            self._count_bad(device, frame.topic, str(error))
            return
        for fault in reading.faults:
            self._count_bad(device, frame.topic, fault)
        if reading.values:
            try:
                window.put(moment_s, reading.values)
            except HflError as error:
                self._tell(device, "readings_wait", str(error))
        if time.monotonic() >= device.written_s + device.source.write_s:
            self._write()

    def _count_bad(self, device: _Device, topic: str, reason: str) -> None:
        if device.is_shut:
            return
        count = device.window.count_bad()
        if count == 10 ** (len(str(count)) - 1):  # the 1st, 10th, 100th: a broken sensor fills no journal
            self._record(device.path, note("bad_reading", topic=topic[:200], reason=reason[:200], count=count))

    def _tell(self, device: _Device, event: str, reason: str) -> None:
        if reason not in device.told:
            device.told.add(reason)
            self._record(device.path, note(event, reason=reason))

    def _write(self) -> None:
        """Write what waits of all devices, together: one wake-up of the disk."""
        now = time.monotonic()
        for device in self._all():
            if not device.window.is_waiting:
                continue
            device.written_s = now
            try:
                device.window.commit()
            except HflError as error:
                self._tell(device, "readings_wait", str(error))
            else:
                self._sampled(device.path, _rows(device))


def _rows(device: _Device) -> int:
    return _whole(device.window.rows, device.source) or 0


def _whole(rows: int | None, source: Source) -> int | None:
    """Return how many of the rows are whole: on a grid, the newest is not yet."""
    return None if rows is None else max(rows - (source.every_s is not None), 0)
