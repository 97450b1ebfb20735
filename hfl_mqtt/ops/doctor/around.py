"""Who else is there: the parent, the children, and the bridge between two brokers, both ways."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hfl_mqtt.errors import Malformed
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.guest import Guest
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.protocol.messages import State, StateName
from hfl_mqtt.protocol.topics import Channel, Filter, Topic, bridge_state, parent
from hfl_mqtt.protocol.wire import Frame, decode

#: What an edge says in this corner of its own state comes back in that of its commands, by both bridges: see `topics`.
ECHO = "echo"
ECHO_WAIT_S = 5.0
_GONE = (StateName.LOST, StateName.DISCONNECTED)


def filters(patient: Patient) -> list[Filter]:
    """Return what the guest must subscribe to so that the neighbours show."""
    wanted = []
    if patient.parent is not None:
        wanted.append(_state_filter(patient, patient.parent))
    if patient.is_aggregator:
        wanted.append(_state_filter(patient, f"{patient.name}/+"))
    if _has_bridge(patient):
        wanted.append(Filter(topic=bridge_state(patient.name), qos=0))
        wanted.append(Filter(topic=patient.corner(Channel.CMND, ECHO), qos=1))
    return wanted


def check_parent(patient: Patient, guest: Guest) -> Finding:
    """See whether the parent's state is to be heard here, and what it is."""
    name, above = "parent", patient.parent
    if above is None:
        return skipped(name, "the cloud has none")
    said = dict(_states(guest.heard)).get(above)
    start = "edge" if parent(above) is not None else "cloud"
    if said is None:
        remedy = f"start it: hfl {start}; it retains its state, which also shows that its bridge carries"
        return warn(name, f"{above} was never heard of at {patient.place}", remedy)
    reason = f": {said.reason}" if said.reason else ""
    if said.state is StateName.DISCONNECTED and parent(above) is None:
        return ok(name, f"{above} has ended in order, as it does with its run{reason}")
    if said.state in _GONE:
        return warn(name, f"{above} is {said.state.value}{reason}", f"start it again: hfl {start}")
    return ok(name, f"{above} is {said.state.value}{reason}")


def check_children(patient: Patient, guest: Guest) -> Finding:
    """See who of those below has said something here, and who of them is there."""
    name = "children"
    states = {path: said for path, said in _states(guest.heard) if parent(path) == patient.name}
    if not states:
        return warn(
            name, f"none was ever heard of at {patient.place}", "start the nodes below, and see hfl doctor there"
        )
    lost = sorted(path for path, said in states.items() if said.state in _GONE)
    text = f"{len(states) - len(lost)} of {len(states)} are there"
    if not lost:
        return ok(name, text)
    shown = ", ".join(lost[:5]) + (" and more" if len(lost) > 5 else "")
    return warn(name, f"{text}; lost or ended: {shown}", "see hfl doctor on those boards")


def check_bridge(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """See whether this broker's bridge to the one above is up, and send an echo through it, there and back."""
    if not _has_bridge(patient):
        yield skipped("bridge", "this node has none: its broker is the one that its parent uses")
        return
    topic = bridge_state(patient.name)
    said = [each.payload for each in guest.heard if each.topic == topic]
    if not said:
        yield warn(
            "bridge",
            "the broker says nothing of a bridge to the one above",
            "has this broker's mosquitto.conf, with its two `connection` sections, been copied here? Restart it then",
        )
    elif said[-1] != b"1":
        yield fail(
            "bridge",
            "down: the broker above cannot be reached, or refuses this one",
            "see why in journalctl -u mosquitto: check the `address` in mosquitto.conf, the network, the certificates",
        )
    else:
        yield ok("bridge", "up, says the broker")
    yield _check_echo(patient, guest)


def _check_echo(patient: Patient, guest: Guest) -> Finding:
    name = "bridge, both ways"
    word = f'{{"echo":"{os.urandom(6).hex()}"}}'.encode()
    refused = guest.say(patient.corner(Channel.STAT, ECHO), word)
    if refused:
        return skipped(name, f"no echo could be sent: {refused}")
    if guest.hears(patient.corner(Channel.CMND, ECHO), word, ECHO_WAIT_S):
        return ok(name, "an echo came back from the broker above: up by one connection, down by the other")
    return warn(
        name,
        f"no echo came back within {ECHO_WAIT_S:g} s",
        "where the bridge is up, its mosquitto.conf may be older than this check: render again and restart the broker",
    )


def _has_bridge(patient: Patient) -> bool:
    return patient.role == "edge"


def _state_filter(patient: Patient, path: str) -> Filter:
    return Filter(topic=str(Topic(patient.federation, path, Channel.STAT, "state")), qos=0)


def _states(heard: list[Frame]) -> Iterator[tuple[str, State]]:
    for frame in heard:
        try:
            message, topic = decode(frame)
        except Malformed:
            continue
        if isinstance(message, State):
            yield topic.path, message
