"""How large a packet the broker takes: what it says, and what it does with one as large as a part of an update."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hfl_mqtt.errors import BrokerError
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, warn
from hfl_mqtt.ops.doctor.guest import Guest
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.protocol.limits import MAX_BINARY
from hfl_mqtt.protocol.topics import Channel
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.packets import packet_size

#: A part at 18 kbit/s takes so long; a line that is slower than that carries no model.
WAIT_S = 120.0
#: An agent gives a broker up that is silent for twice the keep-alive; a part should pass in half of it.
_SAFE_SHARE = 0.5
_RAISE = "set max_packet_size 1000000 in mosquitto.conf (2,000,000 is the default of 2.1) and restart the broker"


def check_limit(patient: Patient, guest: Guest) -> Finding:
    """Compare what the broker said in its CONNACK with what a part needs."""
    name, limit = "packet limit", guest.maximum_packet_size
    needed = packet_size(_part(patient))
    if limit is None:
        return ok(name, f"the broker names none; a part needs {needed} bytes")
    if limit < needed:
        return fail(name, f"the broker takes {limit} bytes, a part needs {needed}", _RAISE)
    return ok(name, f"the broker takes {limit} bytes, a part needs {needed}")


def check_part(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """Send a packet as large as a part of an update, to a topic of its own that nobody hears; the last thing said."""
    name, frame = "packet of a part's size", _part(patient)
    began_s = time.monotonic()
    try:
        refused = guest.say(frame.topic, frame.payload, wait_s=WAIT_S)
    except BrokerError as error:
        yield fail(name, f"{frame.size} bytes: {error}", f"{_RAISE}; remove message_size_limit there")
        return
    seconds = time.monotonic() - began_s
    if refused:
        yield fail(name, f"{frame.size} bytes: {refused}", _RAISE)
        return
    text = f"{frame.size / 1e3:.0f} kB acknowledged after {seconds:.3g} s, {frame.size * 8e-6 / seconds:.3g} Mbit/s"
    if seconds > _SAFE_SHARE * patient.broker.keepalive:
        remedy = f"raise broker.keepalive to {4 * seconds:.0f} s: a part must pass in half of it"
        yield warn(name, text, remedy)
    else:
        yield ok(name, text)


def _part(patient: Patient) -> Frame:
    # Where no bridge carries it on, which an edge's own update and the cloud's model would be.
    if patient.is_aggregator:
        topic = patient.corner(Channel.CMND, "part", of=patient.nobody)
    else:
        topic = patient.corner(Channel.UP, "part")
    return Frame(topic=topic, payload=bytes(MAX_BINARY), qos=1)
