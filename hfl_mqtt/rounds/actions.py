"""What goes into a node and what comes out: events and actions, all values.

The order of a list of actions is part of the contract: a `Save` stands before the `Send` that reveals it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hfl_mqtt.protocol.messages import Message, Plan, Tally

# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The link is up and subscribed. Where the session was new, the broker may have lost what it retained."""

    session_present: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The link is down."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A valid message. `sender` is the node it comes from: the topic's path, or our parent for a command."""

    message: Message
    sender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What work gave: an encoded mean delta (empty after an evaluation) and the samples behind it."""

    payload: bytes = field(repr=False)
    weight: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    seconds: float = 0.0


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


Event = Connected | Lost | Received | Worked | WorkFailed

# ------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Say something. `to` is the child that a command addresses; all else stands on the node's own path."""

    message: Message
    to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearSlots:
    """Take model parts from `first` up to before `end` out of their retained slots."""

    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Train or evaluate, as `plan.kind` says, from the model `model`, whose weights hash to `digest`."""

    work_id: str
    run: str
    round: tuple[int, ...]
    plan: Plan
    codec: str
    model: bytes = field(repr=False)
    digest: str
    seed: int
    #: Score the node's own test sets instead of training (the cloud's).
    is_central: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWork:
    """Stop that work; its result will not be used."""

    work_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Make this model durable before going on."""

    run: str
    version: int
    round: tuple[int, ...]
    digest: str
    weights: Any = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A record for the journal. A peer's misbehaviour ends here, counted under `event`, never as an exception."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOver:
    """The run has ended; `failure` says why it has no result."""

    run: str
    failure: str | None = None


Action = Send | ClearSlots | Work | CancelWork | Save | Note | RunOver


def note(event: str, **fields: Any) -> Note:
    """Return a `Note`."""
    return Note(event=event, fields=fields)
