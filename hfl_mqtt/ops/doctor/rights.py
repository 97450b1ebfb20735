"""What the account may say and hear, tried: what it must be able to, and what it must not.

Nothing that is tried here reaches a node. It is said two levels below a channel, where no node listens, and is not
retained; so a write that should have been refused and was not does no harm either.
"""

from __future__ import annotations

from collections.abc import Iterator

from hfl_mqtt.errors import Malformed
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped
from hfl_mqtt.ops.doctor.guest import Guest
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.protocol.topics import JSON_ROOT, MARK, Channel, Filter, Topic, parent

#: The last part of every topic tried.
_TRY = "try"
_PAYLOAD = b'{"doctor":"looking"}'
_RENDER = "render the brokers' files again (hfl fleet render), copy acl to the broker and reload it"
_OPEN = (
    "the broker must have the acl_file that was rendered for it and `allow_anonymous false`; copy it there and restart "
    "the broker"
)


def filters(patient: Patient) -> list[Filter]:
    """Return what the guest must subscribe to so that forbidden reads show: both should bring nothing."""
    return [
        Filter(topic=_siblings(patient), qos=0),
        *([] if patient.parent is None else [Filter(topic=patient.corner(Channel.UP, "+"), qos=0)]),
    ]


def check_writes(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """Try each write that the node's work needs: all must be taken."""
    for name, topic in _own(patient):
        refused = guest.say(topic, _PAYLOAD)
        if refused:
            yield fail(name, refused, _RENDER)
        else:
            yield ok(name, "taken")


def check_refusals(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """Try writes that would let a stolen board speak for others: all must be refused, PUBACK 135."""
    for name, topic in _foreign(patient):
        if guest.say(topic, _PAYLOAD):
            yield ok(name, "refused, as it must be")
        else:
            yield fail(name, f"the broker took it from {patient.name}: a stolen board could do harm there", _OPEN)


def check_reads(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """Look for what the guest heard and must not hear: others' states, and updates, even its own."""
    paths = [_state_of(each.topic) for each in guest.heard]
    strangers = sorted({path for path in paths if _is_foreign(patient, path)})
    name = "read others' state"
    if strangers:
        shown = ", ".join(strangers[:3])
        yield fail(name, f"{patient.name} hears what is not for it: {shown}", _OPEN)
    else:
        yield ok(name, "nothing came, as it must be")
    if patient.parent is not None:
        yield _check_own_update(patient, guest)


def _check_own_update(patient: Patient, guest: Guest) -> Finding:
    """Say something on the own update's channel: who may only write there does not hear it."""
    name, topic = "read own update", patient.corner(Channel.UP, _TRY)
    if guest.say(topic, _PAYLOAD):
        return skipped(name, "cannot be tried: the write was refused")
    if any(each.topic == topic for each in guest.listen()):
        return fail(name, "updates can be read by who should only send them", _OPEN)
    return ok(name, "nothing came, as it must be")


def _own(patient: Patient) -> Iterator[tuple[str, str]]:
    """Yield (what, topic) of writes that are this node's."""
    yield "write own state", patient.corner(Channel.STAT, _TRY)
    if patient.parent is not None:
        yield "write a word to the parent", patient.corner(Channel.TELE, _TRY)
        yield "write own update", patient.corner(Channel.UP, _TRY)
    if patient.is_aggregator:
        yield "write own model", patient.corner(Channel.DOWN, _TRY)
        yield "write own keyframe", patient.corner(Channel.KEY, _TRY)
        yield "write a child's command", patient.corner(Channel.CMND, _TRY, of=patient.nobody)


def _foreign(patient: Patient) -> Iterator[tuple[str, str]]:
    """Yield (what, topic) of writes that are not this node's."""
    above, leaf = patient.parent, patient.name.rpartition("/")[2]
    # Nodes that are not there, so that nobody is hurt where such a write is taken.
    others = [("another's", f"{above}/not-{leaf}")] if above is not None else []
    others += [("a child's", patient.nobody)] if patient.is_aggregator else []
    for whose, other in others:
        yield f"write {whose} update", patient.corner(Channel.UP, _TRY, of=other)
        yield f"write {whose} state", patient.corner(Channel.STAT, _TRY, of=other)
    yield "write own command", patient.corner(Channel.CMND, _TRY)
    if above is not None:
        yield "write the parent's call", patient.corner(Channel.STAT, _TRY, of=above)
        yield "write the parent's model", patient.corner(Channel.DOWN, _TRY, of=above)
    stranger = Topic(f"not-{patient.federation}"[:63], patient.name, Channel.STAT, f"doctor/{_TRY}")
    yield "write another federation", str(stranger)


def _siblings(patient: Patient) -> str:
    """Return the filter for the states of all children of the parent; for the cloud, of the roots beside it."""
    above = patient.parent
    return f"{JSON_ROOT}/{patient.federation}/{f'{above}/+' if above else '+'}/{MARK}/{Channel.STAT.value}/state"


def _state_of(topic: str) -> str:
    """Return whose state a topic is, "" where it is something else."""
    try:
        found = Topic.parse(topic)
    except Malformed:
        return ""
    return found.path if (found.channel, found.name) == (Channel.STAT, "state") else ""


def _is_foreign(patient: Patient, path: str) -> bool:
    """Whether it is the state of one that this node has no business with: not itself, its parent or its child."""
    return bool(path) and path not in (patient.name, patient.parent) and parent(path) != patient.name
