"""A whole site of real Mosquittos on this machine, and a plain paho client to speak to them with."""

from __future__ import annotations

import queue
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.config.site import Site
from hfl_mqtt.ops.brokers import Layout, password_hash, read_passwords, render_to
from hfl_mqtt.ops.mosquitto import Mosquitto, free_ports
from hfl_mqtt.ops.relay import Relay

LIMIT_S = 60.0
#: An account that the tests add on every broker: it hears everything, so what it does not hear was not carried.
WITNESS = "witness"


class Person:
    """One client at one broker, in MQTT 5: everything it says is answered, everything it hears lies in `heard`."""

    def __init__(
        self,
        port: int,
        account: str,
        password: str | None,
        *filters: str,
        will: str | None = None,
        is_kept: bool = False,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
    ) -> None:
        self.heard: queue.Queue[MQTTMessage] = queue.Queue()
        self.answer: queue.Queue[ReasonCode] = queue.Queue()
        self._published: dict[int, ReasonCode] = {}
        self._change = threading.Condition()
        self._granted = threading.Event()
        self._filters = filters
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id=name or f"test-{account}-{id(self)}", protocol=MQTTv5
        )
        if password is not None:
            self.client.username_pw_set(account, password)
        if tls is not None:
            self.client.tls_set_context(tls)
        if will is not None:
            self.client.will_set(will, b'{"state":"lost"}', qos=1, retain=True)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = self._on_publish
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if is_kept else 0
        self.client.connect("127.0.0.1", port, clean_start=MQTT_CLEAN_START_FIRST_ONLY, properties=properties)
        self.client.loop_start()

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if not reason.is_failure and self._filters:
            client.subscribe([(one, 1) for one in self._filters])
        else:
            self._granted.set()
        self.answer.put(reason)

    def _on_subscribe(self, *_args: Any) -> None:
        self._granted.set()

    def _on_publish(self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        with self._change:
            self._published[mid] = reason
            self._change.notify_all()

    def ready(self) -> Person:
        """Wait until the broker let it in and took its subscriptions."""
        reason = self.answer.get(timeout=LIMIT_S)
        assert not reason.is_failure, reason
        assert self._granted.wait(LIMIT_S)
        return self

    def listen(self, *filters: str) -> None:
        """Wait until the broker took these subscriptions too."""
        self._granted.clear()
        self.client.subscribe([(one, 1) for one in filters])
        assert self._granted.wait(LIMIT_S)

    def say(self, topic: str, payload: str | bytes, *, retain: bool = False) -> str:
        """Publish with QoS 1; the broker's answer, e.g. `Not authorized`."""
        with self._change:
            mid = self.client.publish(topic, payload, qos=1, retain=retain).mid
            assert self._change.wait_for(lambda: mid in self._published, LIMIT_S), f"no answer for {topic}"
            return str(self._published.pop(mid))

    def hear(self, topic: str, payload: str | bytes | None = None) -> list[MQTTMessage]:
        """Wait for this topic (and payload); everything heard until then, this one last."""
        wanted = payload.encode() if isinstance(payload, str) else payload
        heard: list[MQTTMessage] = []
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                heard.append(self.heard.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"nothing on {topic}, only on {[one.topic for one in heard]}") from None
            if heard[-1].topic == topic and wanted in (None, heard[-1].payload):
                return heard

    def vanish(self) -> None:
        """Lose the connection as a dying process does, so that the broker says the will."""
        self.client.loop_stop()
        socket = self.client.socket()
        assert socket is not None
        socket.close()

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def cross(path: str, above: Person, below: Person) -> None:
    """Return when a probe has crossed both bridges of the farm `path`, both ways; these two may say and hear all."""
    word, call = f"hfl/fed1/{path}/@/tele/decline", f"hfl/fed1/{path}/@/cmnd/probe"
    up, down = f"hflb/fed1/{path}/@/up/3", "hflb/fed1/cloud/@/down/9"
    try:
        above.ready().listen(word, up)
        below.ready().listen(call, down)
        below.say(word, "probe")
        below.say(up, "probe")
        # One at a time: they take different bridges.
        heard = above.heard.get(timeout=LIMIT_S).topic, above.heard.get(timeout=LIMIT_S).topic
        assert set(heard) == {word, up}
        above.say(call, "probe")
        above.say(down, "probe")
        heard = below.heard.get(timeout=LIMIT_S).topic, below.heard.get(timeout=LIMIT_S).topic
        assert set(heard) == {call, down}
    finally:
        above.leave()
        below.leave()


class RunningSite:
    """Every broker of a site, rendered and started, each bridge behind a relay of its own."""

    def __init__(self, directory: Path, devices: dict[str, list[str]], stack: ExitStack) -> None:
        self.relays = {name: stack.enter_context(Relay("127.0.0.1", "127.0.0.1", 0)) for name in devices}
        cloud_port, *farm_ports = free_ports(1 + len(devices))
        for relay in self.relays.values():
            relay.target_port = cloud_port
        farms = [
            {
                "name": name,
                "port": port,
                "bind": "127.0.0.1",
                "uplink": f"127.0.0.1:{self.relays[name].port}",
                "devices": devices[name],
            }
            for name, port in zip(devices, farm_ports, strict=True)
        ]
        cloud = {"host": "127.0.0.1", "bind": "127.0.0.1", "port": cloud_port}
        self.site = Site.model_validate({"federation": "fed1", "cloud": cloud, "farms": farms})
        self.directory = directory
        render_to(self.site, directory, Layout.beside(directory))
        self.ports = {broker.directory: broker.place.port for broker in self.site.brokers()}
        self.brokers: dict[str, Mosquitto] = {}
        for name, port in self.ports.items():
            self._admit_witness(directory / name)
            broker = Mosquitto(directory / name / "mosquitto.conf", port)
            self.brokers[name] = stack.enter_context(broker)
        self._people: list[Person] = []
        stack.callback(self._all_leave)
        for name in devices:
            self.wait_for_bridge(name)

    def password(self, account: str) -> str:
        if account == WITNESS:
            return WITNESS
        return read_passwords(self.site, self.directory)[account]

    def person(
        self,
        broker: str,
        account: str,
        *filters: str,
        will: str | None = None,
        is_kept: bool = False,
        name: str | None = None,
    ) -> Person:
        password = self.password(account)
        one = Person(self.ports[broker], account, password, *filters, will=will, is_kept=is_kept, name=name)
        self._people.append(one)
        return one

    def wait_for_bridge(self, farm: str) -> None:
        """Return when both bridges of a farm carry, both ways."""
        path = f"cloud/{farm}"
        above = Person(self.ports["cloud"], WITNESS, WITNESS)
        cross(path, above, Person(self.ports[farm], WITNESS, WITNESS))

    def _admit_witness(self, broker: Path) -> None:
        with (broker / "passwd").open("a") as passwd:
            passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
        with (broker / "acl").open("a") as acl:
            acl.write(f"user {WITNESS}\ntopic readwrite #\ntopic readwrite $SYS/#\n")

    def _all_leave(self) -> None:
        for one in self._people:
            one.leave()


@contextmanager
def running_site(directory: Path, **devices: list[str]) -> Iterator[RunningSite]:
    """Start a cloud and the farms named, e.g. `farm_a=["pi-1"]` for farm-a with one device."""
    with ExitStack() as stack:
        yield RunningSite(directory, {name.replace("_", "-"): one for name, one in devices.items()}, stack)
