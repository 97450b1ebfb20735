"""Clients that are fed by sensor topics on their farm's broker alone, in a whole federation of real processes."""

from __future__ import annotations

import csv
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import MQTTMessage

from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.ops.brokers import password_hash
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.link import Account
from hfl_mqtt.transport.mqtt import MqttLink
from tests.broker.federations import wait_for_the_result
from tests.broker.processes import until
from tests.broker.sites import WITNESS, Person

pytestmark = pytest.mark.broker

#: Stations of one climate, as devices of a farm; they say their days to sensor topics.
STATIONS = {"pi-1": "03047", "pi-2": "03048", "pi-3": "03054"}
#: Stands in every reading, and nowhere else.
CANARY = "canary-5f1c0c7e"
FARM = "cloud/farm-a"
METRICS = "hfl/demo/cloud/@/stat/metrics"


@dataclass
class Recorder:
    """A listening port that hands on to another, and keeps every byte of both directions."""

    port: int
    said: bytearray
    heard: bytearray


@contextmanager
def recording(target_port: int) -> Iterator[Recorder]:
    """Record what goes to a port of this machine, for as many connections as come."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        recorder = Recorder(server.getsockname()[1], bytearray(), bytearray())
        open_sockets: list[socket.socket] = []

        def carry(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
            try:
                while data := source.recv(65536):
                    kept += data
                    sink.sendall(data)
            except OSError:
                pass  # the other end went first
            for one in (source, sink):
                one.close()

        def accept() -> None:
            while True:
                try:
                    near, _ = server.accept()
                    far = socket.create_connection(("127.0.0.1", target_port))
                except OSError:
                    return
                open_sockets.extend((near, far))
                threading.Thread(target=carry, args=(near, far, recorder.said), daemon=True).start()
                threading.Thread(target=carry, args=(far, near, recorder.heard), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield recorder
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for one in open_sockets:
                one.close()


def days_of(station: str) -> list[dict[str, Any]]:
    """A year of a station as its sensors would say it, one message a day."""
    packed = (files("hfl_mqtt.learning.tasks") / "data" / "uscrn-daily-2020.csv.gz").read_bytes()
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    names = KEYS["soil-moisture"].columns
    return [
        {"time": row["date"], "probe": CANARY, **{name: float(row[name]) for name in names if row[name]}}
        for row in rows
        if row["station"] == station
    ]


def source(device: str) -> dict[str, Any]:
    return {
        "source": "mqtt",
        "topic": f"sensors/{device}/day",
        "columns": dict.fromkeys(KEYS["soil-moisture"].columns),
        "time": "time",
        "every": "1 d",
        "least": 300,
        "write": "1 s",
    }


PLAN = RunPlan(
    farms=(FarmPlan(name="farm-a", devices=tuple(Device(name=name, data=source(name)) for name in STATIONS)),),
    task={"name": "soil-moisture"},
    rounds=8,
    seed=1,
    plan={"epochs": 4, "learning_rate": 0.1, "momentum": 0.9, "batch_size": 32},
)


@contextmanager
def running(plan: RunPlan, directory: Path) -> Iterator[tuple[LocalFederation, Recorder]]:
    """Start the brokers of a plan, the farm's bridges through a recorder; its devices may hear its sensors."""
    federation = LocalFederation(plan, directory)
    try:
        federation.render_brokers()
        for path, broker in federation.brokers.items():
            folder = broker.conf_path.parent
            with (folder / "passwd").open("a") as passwd:
                passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
            with (folder / "acl").open("a") as acl:
                acl.write(f"user {WITNESS}\ntopic readwrite #\n")
                for name in STATIONS if path == FARM else ():
                    acl.write(f"user {FARM}/{name}\ntopic read sensors/#\n")
        with recording(federation.brokers["cloud"].port) as recorder:
            federation.relays["farm-a"].target_port = recorder.port
            federation.start_brokers()
            yield federation, recorder
            federation.stop()
    finally:
        federation.stop()


def drained(person: Person) -> list[MQTTMessage]:
    return [person.heard.get() for _ in range(person.heard.qsize())]


def say_all(federation: LocalFederation) -> None:
    """Be the sensors: say a year of every station at the farm's broker."""
    account = Account(host="127.0.0.1", port=federation.brokers[FARM].port, user=WITNESS, password=WITNESS)
    link = MqttLink(account, [], lambda _event: None, client_id="sensors", clean=True)
    link.open()
    for name, station in STATIONS.items():
        for day in days_of(station):
            link.publish(Frame(topic=f"sensors/{name}/day", payload=json.dumps(day).encode()))
    until(lambda: not link.pending, "all readings at the farm's broker")
    link.close()


def test_clients_fed_by_sensors_alone_learn_and_no_reading_leaves_the_farm(tmp_path: Path) -> None:
    with running(PLAN, tmp_path) as (federation, recorder):
        ports = {path: broker.port for path, broker in federation.brokers.items()}
        above = Person(ports["cloud"], WITNESS, WITNESS, "#").ready()
        below = Person(ports[FARM], WITNESS, WITNESS, f"hfl/demo/{FARM}/+/@/stat/+").ready()
        federation.start_farms()
        infos: dict[str, int] = {}

        def all_have(least: int) -> bool:
            for message in drained(below):
                if message.topic.endswith("/info"):
                    infos[message.topic] = json.loads(message.payload)["samples"]
            return len(infos) == len(STATIONS) and min(infos.values()) >= least

        journal = tmp_path / "state" / "cloud-farm-a-clients" / "pi-1" / "journal.jsonl"
        until(lambda: all_have(0) and journal.read_text().count("sensors_heard") == len(STATIONS), "the devices")
        assert set(infos.values()) == {0}
        say_all(federation)
        until(lambda: all_have(330), "the devices' words on their samples")
        federation.start_cloud()
        wait_for_the_result(federation)

        metrics = {f"hfl/demo/{FARM}/{name}/@/stat/metrics" for name in STATIONS}
        figures = [json.loads(each.payload) for each in drained(below) if each.topic in metrics]
        above.say(METRICS, "{}")  # a last word: all that crossed before has been heard when it is
        heard = above.hear(METRICS, "{}")
        above.leave()
        below.leave()

    errors = [json.loads(each.payload)["rmse"] for each in heard if each.topic == METRICS and b"rmse" in each.payload]
    assert errors[-1] < 0.95 * errors[0]
    assert {each["bad_readings"] for each in figures} <= {0, 1}  # a day on which a station's sensors were silent
    assert {each["rows"] for each in figures} <= {364, 365, 366}
    # At the cloud's broker, by an account that may hear all: no topic of sensors, no word of a reading.
    assert {each.topic.partition("/")[0] for each in heard} == {"hfl", "hflb"}
    assert not any(CANARY.encode() in each.payload for each in heard)
    # On the wire itself: of what the bridge said and heard, every byte. What it does carry is there to be seen.
    assert f"hfl/demo/{FARM}/@/stat/metrics".encode() in recorder.said
    assert b"hfl/demo/cloud/@/stat/round" in recorder.heard
    for carried in (recorder.said, recorder.heard):
        assert CANARY.encode() not in carried
        assert b"sensors/" not in carried
        assert b"soil_moisture_5cm" not in carried
