"""The vocabulary, the same at every tier: frozen, validated on construction, so a wrong message cannot be built.

`channel` and `name` of a message class say where it stands (see `topics`). A round is named by one counter per tier
from the cloud down: `(12,)` is the cloud's round 12 and prints `g12`, `(12, 3)` its third edge round, `g12.e3`.
Durations are seconds; a deadline always travels as a duration, for boards without a clock boot in 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from enum import Enum
from math import fsum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from hfl_mqtt.protocol.limits import (
    MAX_ASK,
    MAX_BLOB,
    MAX_CARD,
    MAX_CODEC,
    MAX_FRAMES,
    MAX_LABEL,
    MAX_METRICS,
    MAX_PARTS,
    MAX_PATH,
    MAX_REASON,
    MAX_SHUNNED,
    MAX_TALLIES,
    MAX_TOTAL,
    MAX_WEIGHT,
    PART_SIZE,
    UNASKED,
)
from hfl_mqtt.protocol.topics import PATH_PATTERN, Channel

#: Raised only together with new golden files; `wire` refuses other versions by name.
PROTOCOL = 1
#: How updates come up and models go down where nothing is said.
USUAL_CODEC = "raw | zstd"
#: Stands for a codec that each link chooses for itself.
AUTO = "auto"
#: How often a node says that it is `Moving`, in seconds, and only of what takes longer than that.
MOVING_EVERY_S = 10.0

Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=366 * 86400, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: The first eight bytes of a digest, where it only tells one of ours from another.
ShortDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
#: Either of the two.
AnyDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}([0-9a-f]{48})?$")]
Path = Annotated[str, Field(pattern=PATH_PATTERN, max_length=MAX_PATH)]
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
RoundId = Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(min_length=1, max_length=8)]
Text = Annotated[str, Field(max_length=MAX_REASON)]
ShortText = Annotated[str, Field(max_length=MAX_LABEL)]
CodecText = Annotated[str, Field(min_length=1, max_length=MAX_CODEC)]


def _check_blob(value: object) -> Buffer:
    if not isinstance(value, bytes | bytearray | memoryview) or len(value) > MAX_BLOB:
        raise ValueError(f"at most {MAX_BLOB} bytes")
    return value


#: Bytes in whatever holds them: a hundred megabytes are not copied to be looked at.
Buffer = bytes | bytearray | memoryview
Blob = Annotated[Any, AfterValidator(_check_blob)]


class Piece:
    """Bytes of a part that are read each time they are asked for: a hundred megabytes in line to be sent lie elsewhere.

    Args:
        size: how many there are.
        read: gives them.
    """

    __slots__ = ("_read", "_size")

    def __init__(self, size: int, read: Callable[[], bytes]) -> None:
        self._size, self._read = size, read

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._read()


def _check_part(value: object) -> bytes | Piece:
    if not isinstance(value, bytes | Piece) or not 0 < len(value) <= PART_SIZE:
        raise ValueError(f"1 to {PART_SIZE} bytes")
    return value


#: What is heard are bytes; what is sent may be a `Piece`.
PartData = Annotated[Any, AfterValidator(_check_part)]

#: Validators are built when they are first used: a board uses few of them.
_CONFIG = ConfigDict(extra="ignore", allow_inf_nan=False)


def round_text(round_id: tuple[int, ...]) -> str:
    """Print a round for people.

    >>> round_text((12,)), round_text((12, 3)), round_text((12, 2, 3))
    ('g12', 'g12.e3', 'g12.e2.e3')
    """
    return ".".join(f"{'e' if depth else 'g'}{count}" for depth, count in enumerate(round_id))


class StateName(Enum):
    """What a node is doing; the words are Homie's where it has one."""

    READY = "ready"
    TRAINING = "training"  # works for a run; pauses that are short are part of it, and work that is short is not told
    SLEEPING = "sleeping"
    DISCONNECTED = "disconnected"  # said on leaving
    LOST = "lost"  # said by the will
    PAUSED = "paused"  # a run that somebody holds back, said by its cloud
    HALTED = "halted"  # it cannot go on until somebody helps: a full disk, a second board of the same name

    @property
    def is_present(self) -> bool:
        """Whether a node in this state can be asked for work."""
        return self in (StateName.READY, StateName.TRAINING)


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class State:
    """A node's state, also its will. A will whose `boot` is older than the last one heard is ignored.

    `reason` says to people what is wrong, where something is, and what to do.
    """

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "state"
    state: StateName
    boot: Count
    reason: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Info:
    """What a node says of itself at birth."""

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "info"
    role: ShortText
    boot: Count
    parent: Path | None = None
    protocol: Count = PROTOCOL
    software: ShortText = ""
    hardware: Text = ""
    task: Text = ""
    samples: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Identity:
    """By which key to check what a node signs: its card, which the fleet's key has signed (see `trust.cards`)."""

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "identity"
    card: Annotated[str, Field(min_length=1, max_length=MAX_CARD, pattern=r"^[A-Za-z0-9_\-.]+$")]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Metrics:
    """Flat numbers for people; MQTT Explorer plots each. On the wire it is the bare mapping."""

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "metrics"
    values: Annotated[dict[ShortText, int | float | Text | None], Field(max_length=MAX_METRICS)]


class Late(Enum):
    """What becomes of an update whose round is closed."""

    DROP = "drop"  # refused, and work for a closed round is cancelled
    NEXT = "next"  # it joins the round that is open now, as its sender's answer to it
    DISCOUNT = "discount"  # the same, and it counts the less the older its base is


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Tier:
    """How one tier of aggregators below runs its rounds. `quorum` is a share of those asked, or a count.

    An asynchronous tier is no more than a count as quorum (the buffer), no grace, and late updates that are discounted
    by (1 + staleness)^-`staleness_exponent` (FedBuff, Nguyen et al. 2022, arXiv:2106.06639).
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    quorum: Fraction | Annotated[int, Field(ge=1, le=1_000_000)] = 0.5
    fraction: Fraction = 1.0
    open_for_s: Seconds = 60.0
    grace_s: Seconds = 5.0
    retries: Annotated[int, Field(ge=0, le=1000)] = 2
    #: How its updates come up, and how its model goes down.
    codec: CodecText = USUAL_CODEC
    downlink: CodecText = USUAL_CODEC
    #: Most bytes of one update, and of one delta down, where these are "auto".
    budget: Count | None = None
    late: Late = Late.DROP
    staleness_exponent: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.5
    #: An update whose base is more versions behind than this is refused.
    max_staleness: Annotated[int, Field(ge=0, le=10_000)] = 20
    #: How many rounds such an aggregator goes on with its children while its own parent is out of reach.
    offline_rounds: Annotated[int, Field(ge=0, le=10_000)] = 0


class Kind(Enum):
    """What a round asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Plan:
    """What a device does in a round: `epochs` over its data, or `steps` batches, of SGD."""

    kind: Kind = Kind.TRAIN
    task: ShortText
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = 1
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    seed: Count = 0
    #: The tiers of aggregators still below the one that reads this; empty for devices.
    tiers: Annotated[tuple[Tier, ...], Field(max_length=8)] = ()

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a plan says either epochs or steps")


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Manifest:
    """Which model a call starts from: version and digest, and the version of the keyframe that leads to it.

    The digest of version 0 is the SHA-256 of the initial weights; each delta makes a new one, see `blobs.next_digest`.
    So a digest names the model by how it came about, and an aggregator that never saw the weights, only deltas, can
    still say it. Its first eight bytes, which stand here, hold all before them as well; where the call is signed, all
    32 do, for eight can be met by who tries long enough.
    """

    version: Count
    digest: AnyDigest
    key: Count = 0

    @property
    def base(self) -> str:
        """What updates that start from it call it."""
        return self.digest[:16]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Draw:
    """Who is asked: every child whose lot (`cohort.lot`) is at most `threshold`. A child decides this by itself."""

    seed: Count = 0
    threshold: Count = 2**53


class Phase(Enum):
    """Where a round stands."""

    OPEN = "open"
    CLOSED = "closed"
    FINISHED = "finished"  # the run is over


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class RoundCall:
    """An aggregator's call to its children. While it is retained and open, whoever comes late may still answer."""

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "round"
    run: RunId
    round: RoundId
    phase: Phase = Phase.OPEN
    asked: Count
    quorum: Count
    open_for_s: Seconds
    #: How updates are coded: a chain, or "auto" for a rung of `ladder` that each link chooses for itself.
    codec: CodecText = USUAL_CODEC
    plan: Plan
    model: Manifest
    draw: Draw = field(default_factory=Draw)
    #: Most bytes an update may have to be sent unasked; a larger one is announced, and waits for a slot.
    unasked: Count = UNASKED
    #: Most bytes of one update where the codec is "auto".
    budget: Count | None = None
    #: Raised when a round that found no quorum is called again: who declined may try once more.
    attempt: Count = 0
    #: The boot of the aggregator when it opened the round. One that was restarted and remembers the round says it
    #: again as it was; one that says another boot has forgotten who answered. A lower one is out of date: not heard.
    boot: Count = 0
    #: What becomes of an update that comes when the round is closed.
    late: Late = Late.DROP
    #: How many rounds of the run its aggregator has opened before: the order of its calls. A round that is opened once
    #: more is a newer call than those that came after its first opening.
    number: Count = 0
    #: Its aggregator's, see `statements.of_call`; empty where no identities are in use.
    signature: Annotated[str, Field(pattern=r"^([A-Za-z0-9_\-]{86})?$")] = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Receipt:
    """An aggregator's word on an update: it counts (`accepted`), or why it does not.

    `joined` is the round in which it counts, where that is a later one than its own.
    """

    channel: ClassVar[Channel] = Channel.CMND
    name: ClassVar[str] = "receipt"
    run: RunId
    round: RoundId
    base: ShortDigest
    accepted: bool = True
    reason: Text = ""
    joined: RoundId | None = None


class Order(Enum):
    """What people ask of a run."""

    PAUSE = "pause"  # open no round after this one until "resume"
    RESUME = "resume"
    STOP = "stop"  # the run is over with this round, and has a result
    DRAIN = "drain"  # end the cloud's process with this round; the run goes on when it is started again


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Control:
    """What people ask of the cloud, and of which run; any run where `run` is empty."""

    channel: ClassVar[Channel] = Channel.CMND
    name: ClassVar[str] = "control"
    order: Order
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{0,64}$")] = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Assign:
    """A device is to go on under another name, and so under another parent: one of its own configured homes."""

    channel: ClassVar[Channel] = Channel.CMND
    name: ClassVar[str] = "assign"
    to: Path


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Lease:
    """Who speaks for a place that several could speak for, retained on its own path.

    `epoch` only grows and is the holder's boot: whatever is said under a lower one is out of date. The lease is lost
    when its holder has not renewed it for `for_s`, and at once where that is 0: the holder has left.
    """

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "lease"
    epoch: Count
    holder: ShortText
    for_s: Seconds
    #: Counts what the holder says, so that it knows which of its own words has come back.
    beat: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Quarantine:
    """An aggregator hears nothing of this child for so long, and why; the child says it to people in its own state."""

    channel: ClassVar[Channel] = Channel.CMND
    name: ClassVar[str] = "quarantine"
    reason: Text
    for_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Quarantined:
    """Which children an aggregator does not hear, and why, for people; `more` are not named, to keep it short."""

    channel: ClassVar[Channel] = Channel.STAT
    name: ClassVar[str] = "quarantine"
    children: Annotated[dict[Path, Text], Field(max_length=MAX_SHUNNED)] = field(default_factory=dict)
    more: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Want:
    """The receiver of a blob asks for these parts next: flow control and repair in one. An aggregator sends it to a
    child that uploads (`resend`)."""

    channel: ClassVar[Channel] = Channel.CMND
    name: ClassVar[str] = "resend"
    blob: ShortDigest
    parts: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_PARTS)], ...], Field(max_length=MAX_ASK)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class WantModel:
    """A child asks its parent to put parts of a frame into their slots again, for its broker no longer has them.

    `version` is the frame's; of the keyframe where `is_key`.
    """

    channel: ClassVar[Channel] = Channel.TELE
    name: ClassVar[str] = "resend"
    version: Count
    parts: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_PARTS)], ...], Field(max_length=MAX_ASK)]
    is_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Announce:
    """A child has an update of this size and waits to be asked for its parts: its parent grants slots with `Want`."""

    channel: ClassVar[Channel] = Channel.TELE
    name: ClassVar[str] = "update"
    run: RunId
    round: RoundId
    base: ShortDigest
    blob: ShortDigest
    size: Annotated[int, Field(ge=1, le=MAX_BLOB)]
    count: Annotated[int, Field(ge=1, le=MAX_PARTS)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Decline:
    """A child has nothing to contribute to this round, and why."""

    channel: ClassVar[Channel] = Channel.TELE
    name: ClassVar[str] = "decline"
    run: RunId
    round: RoundId
    reason: Text


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Moving:
    """Parts of a model or an update keep coming at this node or below it: it is slow, and must not be given up.

    It names no round, for a model may be on its way before the call is.
    """

    channel: ClassVar[Channel] = Channel.TELE
    name: ClassVar[str] = "moving"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class UpdatePart:
    """One part of an update on its way up. `size` and `blob`, its name, are of the whole."""

    channel: ClassVar[Channel] = Channel.UP
    run: RunId
    round: RoundId
    base: ShortDigest
    blob: ShortDigest
    index: Annotated[int, Field(ge=0, lt=MAX_PARTS)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    size: Annotated[int, Field(ge=1, le=MAX_BLOB)]
    data: PartData


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ModelPart:
    """One part of the delta that leads to `version`, in its slot."""

    channel: ClassVar[Channel] = Channel.DOWN
    #: The slot: how many deltas stand between the keyframe and this one.
    frame: Annotated[int, Field(ge=0, le=MAX_FRAMES)]
    version: Count
    blob: ShortDigest
    index: Annotated[int, Field(ge=0, lt=MAX_PARTS)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    size: Annotated[int, Field(ge=1, le=MAX_BLOB)]
    data: PartData


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class KeyPart:
    """One part of the keyframe of `version`, in its slot."""

    channel: ClassVar[Channel] = Channel.KEY
    version: Count
    blob: ShortDigest
    index: Annotated[int, Field(ge=0, lt=MAX_PARTS)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    size: Annotated[int, Field(ge=1, le=MAX_BLOB)]
    data: PartData


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Keyframe:
    """Where a chain of deltas starts: the blob of `KeyPart`s.

    `start` says the run's initial weights: themselves, or the seed they are built from. `plus` is how far the model has
    come since, without loss; None at the beginning of a run.
    """

    run: RunId
    version: Count
    digest: Digest
    #: Bytes of the model's values, as float32 and the like.
    size: Count
    start: Blob
    plus: Blob | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Tally:
    """A metric on its way up: a sum over examples and their number; `is_root` asks for the root of the mean."""

    total: Annotated[float, Field(ge=-MAX_TOTAL, le=MAX_TOTAL, allow_inf_nan=False)]
    count: Annotated[float, Field(ge=0, le=2**53, allow_inf_nan=False)]
    is_root: bool = False

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Tally:
        """Add tallies of one kind up, to the same bits in any order; beyond their bounds they stay at them.

        Raises:
            ValueError: some are roots and some are not, or there are none.
        """
        if len({tally.is_root for tally in tallies}) != 1:
            raise ValueError("a mean and a root mean do not add up")
        total = fsum(tally.total for tally in tallies)
        return cls(
            total=min(max(total, -MAX_TOTAL), MAX_TOTAL),
            count=min(fsum(tally.count for tally in tallies), 2.0**53),
            is_root=tallies[0].is_root,
        )

    @property
    def value(self) -> float | None:
        """The mean, or the root of the mean; None of nothing, or where it is beyond every float."""
        if self.count <= 0:
            return None
        mean = self.total / self.count
        if mean - mean != 0:  # the quotient of two finite numbers may still be infinite
            return None
        return max(mean, 0.0) ** 0.5 if self.is_root else mean


Tallies = Annotated[dict[ShortText, Tally], Field(max_length=MAX_TALLIES)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Update:
    """A contribution: the encoded mean delta and the samples behind it. The blob of `UpdatePart`s, which say the base.

    In a round that evaluates, `payload` is empty and `weight` 0. `tallies` score the model that was sent down.
    """

    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT)]
    payload: Blob = b""
    tallies: Tallies = field(default_factory=dict)
    #: Bytes that were moved for it, on all links below: up and down. The cloud's byte budget is kept by them.
    sent: Count = 0
    received: Count = 0


#: What may stand on a topic.
Message = (
    State
    | Info
    | Identity
    | Metrics
    | RoundCall
    | Receipt
    | Want
    | WantModel
    | Announce
    | Decline
    | Moving
    | UpdatePart
    | ModelPart
    | KeyPart
    | Control
    | Assign
    | Quarantine
    | Quarantined
    | Lease
)
