"""What every node of the tree has in common: events in, actions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from hfl_mqtt.protocol.messages import (
    Metrics,
    State,
    StateName,
    Tally,
    round_text,
)
from hfl_mqtt.rounds.actions import (
    Action,
    Event,
    Send,
)

#: Most bytes of a model a node takes unless it is told otherwise.
MAX_MODEL = 2**30


class Node(ABC):
    """One place in the tree: events in, actions out; no sockets, clocks, threads or files."""

    def __init__(self, path: str, boot: int) -> None:
        self.path = path
        self.boot = boot

    @abstractmethod
    def start(self, now: float) -> list[Action]:
        """Begin. Called once, before anything else."""

    @abstractmethod
    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""

    @abstractmethod
    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""

    @property
    @abstractmethod
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""

    @property
    def will(self) -> State:
        """What the broker says for this node when it is gone."""
        return State(state=StateName.LOST, boot=self.boot)

    def leave(self) -> list[Action]:
        """Leave on purpose; nothing is handled after this."""
        return [Send(message=State(state=StateName.DISCONNECTED, boot=self.boot))]


def metrics_of(
    round_id: Sequence[int],
    tallies: dict[str, Tally],
    samples: int,
    seconds: float,
    into: dict[str, int] | None = None,
) -> Send:
    """Return a round's figures for people; `into` stands before the scores."""
    own: dict[str, int | float | str | None] = {
        "round": round_text(tuple(round_id)),
        **(into or {}),
        "samples": samples,
        "seconds": round(seconds, 4),
    }
    scores = {name: tally.value for name, tally in tallies.items() if name not in own}
    return Send(message=Metrics(values={**own, **scores}))
