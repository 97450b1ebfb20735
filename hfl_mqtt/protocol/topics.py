"""Every topic string of the protocol, and no other file has one.

A node's name is its path in the tree (`cloud/farm-a/pi-07`); `@` parts the path from the channel. People read `hfl/...`
(JSON), machines read `hflb/...` (binary), so a viewer that may read `hfl/#` never pulls weights. Topic names are fixed:
a thousand rounds add no topic.

>>> str(Topic("fed1", "cloud/farm-a", Channel.STAT, "round"))
'hfl/fed1/cloud/farm-a/@/stat/round'
>>> Topic.parse("hflb/fed1/cloud/farm-a/pi-07/@/up/0").path
'cloud/farm-a/pi-07'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.limits import MAX_DEPTH, MAX_PATH

JSON_ROOT = "hfl"
BINARY_ROOT = "hflb"
MARK = "@"
#: An update's parts take turns on so many topics: a broker works on them side by side.
UP_SLOTS = 4

#: What a node says, by name. Rights name each: with a `#` one stolen board could retain topics without end, and call
#: them what a bridge carries on.
_SAID = ("state", "info", "metrics", "identity")
_SAID_TO_CHILDREN = ("round", "quarantine", "lease")
_TOLD = ("update", "decline", "resend", "moving")
_ASKED = ("receipt", "resend", "assign", "quarantine")
#: Where `hfl doctor` tries those rights, two levels below a channel, and where an echo through a bridge begins.
_TRY, _PART, _ECHO = "doctor/try", "doctor/part", "doctor/echo"

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,62}"
#: A node's name: 1 to 8 segments of letters, digits, `_`, `.` and `-`, each starting with a letter or digit.
PATH_PATTERN = rf"^{_SEGMENT}(/{_SEGMENT}){{0,{MAX_DEPTH - 1}}}$"
#: A federation's name: one segment.
FEDERATION_PATTERN = rf"^{_SEGMENT}$"
_PATH = re.compile(PATH_PATTERN[:-1] + r"\Z")
_FEDERATION = re.compile(FEDERATION_PATTERN[:-1] + r"\Z")
_NAME = re.compile(r"[a-z0-9]{1,32}\Z")


class Channel(Enum):
    """The part of a topic that says who speaks to whom."""

    STAT = "stat"  # state for everybody, retained
    TELE = "tele"  # a node to its parent
    CMND = "cmnd"  # a parent to this one node
    UP = "up"  # parts of an update, to the parent
    DOWN = "down"  # parts of the deltas of a model, for the children, retained
    KEY = "key"  # parts of the keyframe they start from, retained, read on demand

    @property
    def is_binary(self) -> bool:
        """Whether this channel lies under the binary root."""
        return self in (Channel.UP, Channel.DOWN, Channel.KEY)

    @property
    def is_retained(self) -> bool:
        """Whether the broker keeps the last message of each topic."""
        return self in (Channel.STAT, Channel.DOWN, Channel.KEY)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, taken apart. `name` is the message's name, or the slot of a part, see `slot`."""

    federation: str
    path: str
    channel: Channel
    name: str

    def __str__(self) -> str:
        root = BINARY_ROOT if self.channel.is_binary else JSON_ROOT
        return f"{root}/{self.federation}/{self.path}/{MARK}/{self.channel.value}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Take a topic apart.

        Raises:
            Malformed: the text is not a topic of this protocol.
        """
        head, mark, tail = text.partition(f"/{MARK}/")
        root, _, rest = head.partition("/")
        federation, _, path = rest.partition("/")
        channel_text, _, name = tail.partition("/")
        try:
            channel = Channel(channel_text)
        except ValueError:
            raise Malformed(f"not a topic of this protocol: {text[:120]!r}") from None
        expected_root = BINARY_ROOT if channel.is_binary else JSON_ROOT
        if not (mark and root == expected_root and is_federation(federation) and is_path(path) and _NAME.match(name)):
            raise Malformed(f"not a topic of this protocol: {text[:120]!r}")
        return cls(federation, path, channel, name)


def path_of(topic: str) -> str:
    """Return the node on whose path something stands, unchecked: for who only wants to throw things away.

    >>> path_of("hfl/fed1/cloud/farm-a/@/stat/state"), path_of("$SYS/broker/uptime")
    ('cloud/farm-a', '')
    """
    head, mark, _ = topic.partition(f"/{MARK}/")
    return head.split("/", 2)[-1] if mark and head.count("/") >= 2 else ""


def carries_parts(topic: str) -> bool:
    """Whether a topic is one of machines: parts of a model or of an update."""
    return topic.startswith(f"{BINARY_ROOT}/")


def slot(frame: int, part: int) -> str:
    """Return the name of the slot of one part of a frame: the first delta after the keyframe is frame 0.

    >>> slot(3, 0), slot(3, 12)
    ('3', '3p12')
    """
    return f"{frame}p{part}" if part else str(frame)


def is_path(text: str) -> bool:
    """Whether `text` is a legal node name."""
    return len(text) <= MAX_PATH and _PATH.match(text) is not None


def is_federation(text: str) -> bool:
    """Whether `text` is a legal federation name."""
    return _FEDERATION.match(text) is not None


def parent(path: str) -> str | None:
    """Return the path of the parent, or None for the root of the tree."""
    head, slash, _ = path.rpartition("/")
    return head if slash else None


def is_child(path: str, of: str) -> bool:
    """Whether `path` is a direct child of `of`."""
    return parent(path) == of


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A permanent subscription. With `wants_retained` False the broker sends only what is published from now on."""

    topic: str
    qos: int
    wants_retained: bool = True


def participant_filters(federation: str, path: str) -> list[Filter]:
    """What a participant reads: its parent's broadcast and its own commands. The filters are disjoint.

    What is retained is taken at QoS 0: each subscription brings it anew, and a broker must not queue old calls and
    models for a sleeper, nor old states for an aggregator, which would take them for news. Deltas are heard as they
    are published; keyframes and deltas that were missed are fetched by name.
    """
    above = parent(path)
    return [
        Filter(topic=f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/round", qos=0),
        Filter(topic=f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/+", qos=0, wants_retained=False),
        Filter(topic=f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/+", qos=1),
    ]


def aggregator_filters(federation: str, path: str) -> list[Filter]:
    """What an aggregator reads of its direct children, and the root what people ask of it. The filters are disjoint."""
    asked = [] if parent(path) is not None else [Filter(topic=f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/+", qos=1)]
    return [
        *asked,
        Filter(topic=f"{JSON_ROOT}/{federation}/{path}/+/{MARK}/stat/state", qos=0),
        Filter(topic=f"{JSON_ROOT}/{federation}/{path}/+/{MARK}/tele/+", qos=1),
        Filter(topic=f"{BINARY_ROOT}/{federation}/{path}/+/{MARK}/up/+", qos=1),
    ]


def control_filters(federation: str, path: str) -> list[Filter]:
    """What is read of a node by who asks something of it: all that it says of itself."""
    return [Filter(topic=f"{JSON_ROOT}/{federation}/{path}/{MARK}/stat/+", qos=0)]


def edge_filters(path: str) -> list[Filter]:
    """What an edge reads besides: whether the bridge to its parent is up."""
    return [Filter(topic=bridge_state(path), qos=1)]


def identity_filters(federation: str, path: str, *, has_children: bool) -> list[Filter]:
    """What a node with an identity reads besides: the cards by which it checks its parent and its children."""
    known = [] if (above := parent(path)) is None else [above]
    return [
        Filter(topic=f"{JSON_ROOT}/{federation}/{who}/{MARK}/stat/identity", qos=0)
        for who in (*known, *([f"{path}/+"] if has_children else []))
    ]


def lease_filters(federation: str, path: str) -> list[Filter]:
    """What they read who could all speak for a place: who does, and what was last said there of its state."""
    own = f"{JSON_ROOT}/{federation}/{path}/{MARK}/stat"
    return [Filter(topic=f"{own}/lease", qos=1), Filter(topic=f"{own}/state", qos=0)]


def bridge_account(path: str) -> str:
    """Return the account under which the broker of `path` connects to the one above.

    No node can be called so, because a node's name starts with a letter or digit.
    """
    return f"_bridge/{path}"


def bridge_client(path: str, kind: str) -> str:
    """Return what one of its two connections is called, `ctl` or `data`: its client id begins so."""
    return f"{bridge_account(path)}/{kind}"


def bridge_state(path: str) -> str:
    """Return where the broker of `path` says, retained, whether its control bridge is up: `1` or `0`.

    >>> bridge_state("cloud/farm-a")
    '$SYS/broker/connection/_bridge/cloud/farm-a/ctl/state'
    """
    return f"$SYS/broker/connection/{bridge_client(path, 'ctl')}/state"


def is_sensor_topic(text: str) -> bool:
    """Whether sensors may speak there, or a filter of theirs with `+`: never where a federation's nodes do.

    Bridges carry topics of the federation, so a reading that stood on one would leave its farm.

    >>> [is_sensor_topic(text) for text in ("sensors/+/soil", "sensors/#", "hfl/x", "+/soil", "$SYS/x")]
    [True, False, False, False, False]
    """
    levels = text.split("/")
    is_filter = all(level == "+" or not set(level) & set("+#\0") for level in levels)
    is_apart = levels[0] not in ("", "+", JSON_ROOT, BINARY_ROOT) and not levels[0].startswith("$")
    # Printable, because it stands in a broker's ACL, where a line's end would begin another right.
    return is_filter and is_apart and text.isprintable() and len(text) <= MAX_PATH


def viewer_filter(federation: str) -> str:
    """What people and the watcher read: all JSON of one federation."""
    return f"{JSON_ROOT}/{federation}/#"


def acl_node(federation: str, path: str, *, has_children: bool) -> list[tuple[str, str]]:
    """Rights of the node `path` at its own broker, as (access, topic).

    A device speaks for itself alone, `stat`, `tele` and `up`, and hears its parent's broadcast and its own commands. An
    aggregator (`has_children`) also says its model, reads its own `stat` (who holds the lease) and what its children
    say, and commands them. The root has nobody above it: people ask of it through `cmnd/control`, in its own name.

    What may be written is named, so that a stolen device leaves no more than 16 messages at its broker; a model's slots
    are as many as it has parts, on one level.
    """
    own_json, own_binary = (f"{root}/{federation}/{path}/{MARK}" for root in (JSON_ROOT, BINARY_ROOT))
    above = parent(path)
    rights = [
        *_write(f"{own_json}/stat", *_SAID, _TRY),
        ("read", f"{own_json}/cmnd/#"),
    ]
    if above is None:
        rights.append(("write", f"{own_json}/cmnd/control"))
    else:
        rights += [
            *_write(f"{own_json}/tele", *_TOLD, _TRY),
            *_write(f"{own_binary}/up", *_up_slots(), _TRY),
            ("read", f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/#"),
            ("read", f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/#"),
            ("read", f"{BINARY_ROOT}/{federation}/{above}/{MARK}/key/#"),
        ]
    if not has_children:
        return [*rights, ("write", f"{own_binary}/up/{_PART}")]
    each_json, each_binary = (f"{root}/{federation}/{path}/+/{MARK}" for root in (JSON_ROOT, BINARY_ROOT))
    return [
        *rights,
        *([] if above is None else [("read", bridge_state(path)), ("write", f"{own_json}/stat/{_ECHO}")]),
        *_write(f"{own_json}/stat", *_SAID_TO_CHILDREN),
        ("read", f"{own_json}/stat/#"),
        *_write(f"{own_binary}/down", "+", _TRY),
        *_write(f"{own_binary}/key", "+", _TRY),
        ("read", f"{each_json}/stat/#"),
        ("read", f"{each_json}/tele/#"),
        *_write(f"{each_json}/cmnd", *_ASKED, _TRY, _PART),
        ("read", f"{each_binary}/up/#"),
    ]


def _write(channel: str, *names: str) -> list[tuple[str, str]]:
    return [("write", f"{channel}/{name}") for name in names]


def _up_slots() -> list[str]:
    return [str(slot) for slot in range(UP_SLOTS)]


def acl_viewer() -> list[tuple[str, str]]:
    """Rights of an account for people: all JSON of every federation, the broker's own figures, no weights."""
    return [("read", f"{JSON_ROOT}/#"), ("read", "$SYS/#")]


def acl_bridge(federation: str, path: str, *, device_metrics: bool = False) -> list[tuple[str, str]]:
    """Rights at the upper broker of the bridge that carries the subtree of `path`: to what it carries, and no more.

    It says nothing there of its own state (`bridge_state`): that is read at the lower broker. Nodes below may have any
    name, so who has stolen a farm's box can retain states under names without end.
    """
    carried = [*bridge_control(federation, path, device_metrics=device_metrics), *bridge_data(federation, path)]
    return [
        *(("write" if way == "out" else "read", pattern) for pattern, way, _ in carried),
        ("write", f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/{_ECHO}"),
    ]


def bridge_control(federation: str, path: str, *, device_metrics: bool = False) -> list[tuple[str, str, int]]:
    """What the control connection of that bridge carries, as (pattern, direction seen from the lower broker, QoS).

    Out goes what this node says of itself and to its parent, and of everything below what it is and whether it is
    there, with lines for each level that there may be: MQTT has no wildcard for some levels and then more. What nodes
    below measure in every round crosses a metered link only where that is wanted (`device_metrics`); the sums stand in
    this node's own metrics. What a farm's edge and devices say to each other stays there, calls and receipts. Of the
    parent comes in what its child needs, the call, the card it is checked by, and whether the parent is there; its
    metrics are read at its own broker.

    What comes in retained comes at QoS 0: a lost link brings its newest again as soon as it is back, and at QoS 1 the
    upper broker would queue every older call and model meanwhile. What was deleted meanwhile stays at the lower broker.
    """
    above, own = parent(path), f"{JSON_ROOT}/{federation}/{path}"
    below = ("state", "info", "metrics") if device_metrics else ("state", "info")
    levels = [own + "/+" * level for level in range(1, MAX_DEPTH - len(path.split("/")) + 1)]
    return [
        *((f"{own}/{MARK}/stat/{name}", "out", 1) for name in ("state", "info", "metrics", "identity", "quarantine")),
        *((f"{level}/{MARK}/stat/{name}", "out", 1) for level in levels for name in below),
        *((f"{own}/{MARK}/tele/{name}", "out", 1) for name in _TOLD),
        (f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/round", "in", 0),
        (f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/state", "in", 0),
        (f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/identity", "in", 0),
        (f"{own}/{MARK}/cmnd/#", "in", 1),
    ]


def bridge_data(federation: str, path: str) -> list[tuple[str, str, int]]:
    """What the data connection of that bridge carries: this node's updates out, its parent's model in.

    Nothing comes in at QoS 1 here, for speed too: nobody answers a PUBACK that goes up, so the far system delays its
    TCP acknowledgement, and Nagle's algorithm, which a bridge cannot turn off, holds the next update back for 40 ms.
    """
    above = parent(path)
    return [
        *((f"{BINARY_ROOT}/{federation}/{path}/{MARK}/up/{name}", "out", 1) for name in _up_slots()),
        (f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/#", "in", 0),
        (f"{BINARY_ROOT}/{federation}/{above}/{MARK}/key/#", "in", 0),
    ]


def bridge_echo(federation: str, path: str) -> str:
    """Return a further topic of the data connection, as Mosquitto writes it: what proves both connections, both ways.

    What the node says on this topic of its own `stat` goes up as a command to itself, and the control connection brings
    it down again: two brokers alone answer `hfl doctor`. No node subscribes to anything so deep.

    >>> bridge_echo("fed1", "cloud/a")
    'doctor/echo out 1 hfl/fed1/cloud/a/@/stat/ hfl/fed1/cloud/a/@/cmnd/'
    """
    own = f"{JSON_ROOT}/{federation}/{path}/{MARK}"
    return f"{_ECHO} out 1 {own}/stat/ {own}/cmnd/"
