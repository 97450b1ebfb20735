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

JSON_ROOT = "hfl"
BINARY_ROOT = "hflb"
MARK = "@"
MAX_DEPTH = 8
MAX_PATH = 200

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
    DOWN = "down"  # parts of a model, for the children, retained

    @property
    def is_binary(self) -> bool:
        """Whether this channel lies under the binary root."""
        return self in (Channel.UP, Channel.DOWN)

    @property
    def is_retained(self) -> bool:
        """Whether the broker keeps the last message of each topic."""
        return self in (Channel.STAT, Channel.DOWN)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, taken apart. `name` is the message's name, or the slot of a part as decimal digits."""

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


def participant_filters(federation: str, path: str) -> list[tuple[str, int]]:
    """What a participant reads, with the QoS: its parent's broadcast and its own commands. The filters are disjoint.

    What is retained is taken at QoS 0: each subscription brings it anew, and a broker must not queue old calls and
    models for a sleeper, nor old states for an aggregator, which would take them for news.
    """
    above = parent(path)
    return [
        (f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/round", 0),
        (f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/+", 0),
        (f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/+", 1),
    ]


def aggregator_filters(federation: str, path: str) -> list[tuple[str, int]]:
    """What an aggregator reads of its direct children, with the QoS. The filters are disjoint."""
    return [
        (f"{JSON_ROOT}/{federation}/{path}/+/{MARK}/stat/state", 0),
        (f"{JSON_ROOT}/{federation}/{path}/+/{MARK}/tele/+", 1),
        (f"{BINARY_ROOT}/{federation}/{path}/+/{MARK}/up/+", 1),
    ]


def viewer_filter(federation: str) -> str:
    """What people and the watcher read: all JSON of one federation."""
    return f"{JSON_ROOT}/{federation}/#"


def acl_patterns(federation: str) -> list[tuple[str, str]]:
    """Rights as (access, pattern) that hold for every account on every broker; `%u` is the user name, a node's path."""
    own_json, own_binary = f"{JSON_ROOT}/{federation}/%u", f"{BINARY_ROOT}/{federation}/%u"
    return [
        ("write", f"{own_json}/{MARK}/stat/#"),
        ("write", f"{own_json}/{MARK}/tele/#"),
        ("read", f"{own_json}/{MARK}/cmnd/#"),
        ("write", f"{own_binary}/{MARK}/up/#"),
        ("write", f"{own_binary}/{MARK}/down/#"),
        ("read", f"{own_json}/+/{MARK}/stat/#"),
        ("read", f"{own_json}/+/{MARK}/tele/#"),
        ("write", f"{own_json}/+/{MARK}/cmnd/#"),
        ("read", f"{own_binary}/+/{MARK}/up/#"),
    ]


def acl_broadcast(federation: str, path: str) -> list[tuple[str, str]]:
    """Rights of the node `path` that a pattern cannot say: to read its parent's broadcast."""
    above = parent(path)
    if above is None:
        return []
    return [
        ("read", f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/#"),
        ("read", f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/#"),
    ]


def acl_viewer() -> list[tuple[str, str]]:
    """Rights of an account for people: all JSON of every federation, the broker's own figures, no weights."""
    return [("read", f"{JSON_ROOT}/#"), ("read", "$SYS/#")]


def acl_bridge(federation: str, path: str) -> list[tuple[str, str]]:
    """Rights at the upper broker of the bridge that carries the subtree of `path`."""
    above = parent(path)
    return [
        ("write", f"{JSON_ROOT}/{federation}/{path}/#"),
        ("write", f"{BINARY_ROOT}/{federation}/{path}/{MARK}/up/#"),
        ("write", "$SYS/broker/connection/#"),
        ("read", f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/#"),
        ("read", f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/#"),
        ("read", f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/#"),
    ]


def bridge_control(federation: str, path: str) -> list[tuple[str, str]]:
    """What the control connection of that bridge carries, as (pattern, direction seen from the lower broker)."""
    above = parent(path)
    return [
        (f"{JSON_ROOT}/{federation}/{path}/#", "out"),
        (f"{JSON_ROOT}/{federation}/{above}/{MARK}/stat/#", "in"),
        (f"{JSON_ROOT}/{federation}/{path}/{MARK}/cmnd/#", "in"),
    ]


def bridge_data(federation: str, path: str) -> list[tuple[str, str]]:
    """What the data connection of that bridge carries: this node's updates out, its parent's model in."""
    above = parent(path)
    return [
        (f"{BINARY_ROOT}/{federation}/{path}/{MARK}/up/#", "out"),
        (f"{BINARY_ROOT}/{federation}/{above}/{MARK}/down/#", "in"),
    ]
