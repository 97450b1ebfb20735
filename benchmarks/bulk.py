"""A large model over a slow bridge: how close to the link's own time, and how late small messages are meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.federations import at_ms, plan
from benchmarks.figures import Figure, spread_of
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.federation import LocalFederation, RunPlan
from hfl_mqtt.protocol.messages import Metrics
from hfl_mqtt.protocol.topics import Channel, Filter, Topic
from hfl_mqtt.protocol.wire import Frame, encode
from hfl_mqtt.transport.link import Arrived, LinkEvent
from hfl_mqtt.transport.mqtt import MqttLink

TITLE = "A model of 100 MB over a bridge of 10 Mbit/s: weights down, a raw update up"
MEGABYTES = 100.0
RATE_MBIT_S = 10.0
#: A device that only says that it lives, and how often.
HEART = "heart"
BEAT_S = 0.25
LIMIT_S = 900.0
RAW_UPDATES: tuple[dict[str, Any], ...] = ({"codec": "raw"}, {"codec": "raw"})


class Heart:
    """Small messages from a farm to the cloud, and how long each took."""

    def __init__(self, federation: LocalFederation, farm: str) -> None:
        self.late_s: list[float] = []
        #: What the farm's edge said of parts on their way.
        self.told: list[dict[str, Any]] = []
        self._federation, self._edge, self._path = federation.plan.federation, f"cloud/{farm}", f"cloud/{farm}/{HEART}"
        filters = [Filter(topic=self._topic(path), qos=0) for path in (self._path, self._edge)]
        self._eyes = MqttLink(federation.account("viewer"), filters, self._hear, clean=True, client_id="")
        self._mouth = MqttLink(federation.account(self._path, f"cloud/{farm}"), [], lambda _event: None)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=HEART, daemon=True)

    def open(self) -> None:
        """Begin to beat."""
        self._eyes.open()
        self._mouth.open()
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._has_ended.set()
        self._thread.join(5)
        self._mouth.close()
        self._eyes.close()

    def _topic(self, path: str) -> str:
        return str(Topic(self._federation, path, Channel.STAT, Metrics.name))

    def _beat(self) -> None:
        while not self._has_ended.wait(BEAT_S):
            # Nothing is retained: what lies at the broker from before would look late.
            frame = encode(Metrics(values={"at_s": time.monotonic()}), self._federation, self._path)
            self._mouth.publish(replace(frame, retain=False))

    def _hear(self, event: LinkEvent) -> None:
        if not isinstance(event, Arrived):
            return
        values = _values(event.frame)
        if "at_s" in values:
            self.late_s.append(time.monotonic() - values["at_s"])
        elif "of_mb" in values:
            self.told.append(values)


class SlowFederation(LocalFederation):
    """One whose cloud sends its weights, over bridges of `rate_mbit_s`."""

    def __init__(self, what: RunPlan, directory: Path, *, megabytes: float, rate_mbit_s: float) -> None:
        super().__init__(what, directory, device_metrics=True)  # the heart beats as a device's
        os.environ["HFL_BULK_MB"] = str(megabytes)  # the nodes' processes read it
        self._rate_bytes_per_s = rate_mbit_s * 1e6 / 8

    def render_brokers(self) -> None:
        """Make the bridges slow as well."""
        super().render_brokers()
        for relay in self.relays.values():
            relay.rate_bytes_per_s = self._rate_bytes_per_s

    def _start(self, role: str, name: str, broker: str, settings: Mapping[str, Any]) -> None:
        super()._start(role, name, broker, {**settings, "initial": "weights"} if role == "cloud" else settings)


@contextmanager
def slow_farm(
    megabytes: float, rate_mbit_s: float, tiers: tuple[dict[str, Any], ...] = RAW_UPDATES
) -> Iterator[tuple[SlowFederation, Heart]]:
    """Start one farm with one device, all settings those of YAML but for `tiers`, and run one round."""
    what = replace(plan("bulk", farms=1, devices=1), tiers=tiers)
    farm = what.farms[0]
    what = replace(what, farms=(replace(farm, devices=(*farm.devices, replace(farm.devices[0], name=HEART))),))
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-bulk-"))
        federation = SlowFederation(what, Path(directory), megabytes=megabytes, rate_mbit_s=rate_mbit_s)
        stack.callback(federation.stop)
        federation.start_brokers()
        heart = Heart(federation, farm.name)
        stack.callback(heart.close)
        heart.open()
        federation.start_edge(farm.name)
        federation.start_client(f"cloud/{farm.name}/{farm.devices[0].name}")
        federation.start_cloud()
        yield federation, heart


def wait_for_the_end(federation: LocalFederation) -> None:
    """Return once the cloud has ended well.

    Raises:
        HflError: it has failed, or takes longer than `LIMIT_S`.
    """
    give_up_s = time.monotonic() + LIMIT_S
    while federation.check_cloud() is None:
        if time.monotonic() > give_up_s:
            raise HflError(f"waited {LIMIT_S:g} s for the cloud's end")
        time.sleep(0.05)


def measure(megabytes: float = MEGABYTES, rate_mbit_s: float = RATE_MBIT_S) -> list[Figure]:
    """Send weights down and a raw update up, and time both by the journals."""
    with slow_farm(megabytes, rate_mbit_s) as (federation, heart):
        wait_for_the_end(federation)
        notes = [note for path in federation.journals() for note in journal.read(path)]
        down_bytes = federation.wan_bytes()[1]
        told, late = list(heart.told), list(heart.late_s)

    def moment(node: str, event: str, sender: str | None = None) -> float:
        return next(at_ms(n) / 1e3 for n in notes if (n["node"], n["event"], n.get("sender")) == (node, event, sender))

    key_mb = max((values["of_mb"] for values in told if "receiving_mb" in values), default=down_bytes / 1e6)
    down_s = moment("cloud/farm-0", "opened") - moment("cloud", "run")
    up_s = moment("cloud", "accepted", "cloud/farm-0") - moment("cloud/farm-0", "closed")
    stumbles = [note["event"] for note in notes if note["event"] in ("extended", "missed", "given_up", "abandoned")]
    return [
        _moved("keyframe from cloud to edge", down_s, key_mb, rate_mbit_s),
        _moved("update from edge to cloud", up_s, megabytes, rate_mbit_s),
        Figure(what="bytes down the bridge", value=down_bytes / 1e6 / key_mb, unit="x", note="of the keyframe's"),
        spread_of("a heartbeat on the same bridge", "ms", [1e3 * one for one in late], f"{len(late)} heard"),
        Figure(
            what="progress told", value=len(told), unit="messages", note=f"stumbles: {', '.join(stumbles) or 'none'}"
        ),
    ]


def _moved(what: str, seconds: float, megabytes: float, rate_mbit_s: float) -> Figure:
    ideal_s = megabytes * 8 / rate_mbit_s
    return Figure(
        what=what,
        value=seconds / ideal_s,
        unit="x",
        note=f"{seconds:.1f} s for {megabytes:g} MB; 1 x is {ideal_s:.1f} s",
    )


def _values(frame: Frame) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(frame.payload) if frame.payload else {}
    return values
