"""What goes into a node and what comes out: events and actions, all values.

The order of a list of actions is part of the contract: a `Persist` stands before the `Send` that reveals it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfl_mqtt.protocol.messages import Buffer, Keyframe, Message, Plan, Tally
from hfl_mqtt.rounds.arithmetic import Model

# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The link is up and subscribed. Where the session was new, the broker may have lost what it retained."""

    session_present: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The link is down. `is_cloned` where another program keeps connecting under our name."""

    reason: str = ""
    is_cloned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A valid message. `sender` is the node it comes from: the topic's path, or our parent for a command."""

    message: Message
    sender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What work gave: an encoded mean delta (empty after an evaluation) and the samples behind it."""

    payload: Buffer = field(repr=False)
    weight: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    seconds: float = 0.0
    #: Bytes sent and received for it below this node.
    sent: int = 0
    received: int = 0
    #: The model that the work was given, in one keyframe, where its deltas had become too many.
    keyframe: Keyframe | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """The work `work_id` is done."""

    work_id: str
    result: Contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFailed:
    """The work `work_id` gave nothing, and why."""

    work_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridged:
    """The bridge to our parent's broker is up, or down: nothing that is said to the parent arrives then."""

    is_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A client's own data has grown, or shrunk, to so many samples."""

    samples: int


Event = Connected | Lost | Received | Worked | WorkFailed | Bridged | Sampled

# ------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Say something. `to` is the child that a command addresses; all else stands on the node's own path."""

    message: Message
    to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearSlots:
    """Take parts of the own model out of their retained slots, keyframe or deltas."""

    slots: tuple[str, ...]
    is_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Ask the broker for what it retains in these slots of the parent's model, keyframe or deltas."""

    slots: tuple[str, ...]
    is_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Train or evaluate, as `plan.kind` says, from `model`; the result is coded in `codec`."""

    work_id: str
    run: str
    round: tuple[int, ...]
    plan: Plan
    codec: str
    model: Model
    seed: int
    #: Score the node's own test sets instead of training (the cloud's).
    is_central: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWork:
    """Stop that work; its result will not be used."""

    work_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The result of that work was accepted: what its coding cut off is now what the next update carries along.

    `payload` is the first sixteen digits of the SHA-256 of what was accepted. It may be said more than once, and after
    a restart; of which update the coding error at hand is, is told by `payload`.
    """

    work_id: str
    payload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Leave this place in the tree, and go on under another name: one of the node's own homes."""

    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """Connect anew, with the will, the filters and the client id that the node has now; the last of a list.

    What the old connection has not said yet is not said any more, nor what was held back by a full disk: the node has
    got another right to speak, or lost it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Make these changes durable, all or none, before anything that stands behind this action is said.

    A key is a text such as `down/accepted/cloud/farm-a/pi-1`; its value replaces what was there, None deletes it. The
    node's next life is given all of them. `is_urgent` False: they may wait for the next urgent ones, and be lost by a
    power cut until then, for what only saves work.
    """

    changes: Mapping[str, Buffer | None] = field(repr=False)
    is_urgent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Write this model down for people to look at; `lag` is what its way down has not carried yet.

    What a next life goes on from is in `Persist`.
    """

    run: str
    version: int
    round: tuple[int, ...]
    digest: str
    weights: Any = field(repr=False)
    lag: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A record for the journal. A peer's misbehaviour ends here, counted under `event`, never as an exception."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOver:
    """The run has ended; `failure` says why it has no result.

    Where it `is_drained` only the node's own part has ended: the run goes on when it is started again.
    """

    run: str
    failure: str | None = None
    is_drained: bool = False


Action = Send | ClearSlots | Fetch | Work | CancelWork | Counted | Move | Reconnect | Persist | Save | Note | RunOver


def note(event: str, **fields: Any) -> Note:
    """Return a `Note`."""
    return Note(event=event, fields=fields)
