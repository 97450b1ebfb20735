"""What every node of the tree has in common: events in, actions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

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
from hfl_mqtt.rounds.ladder import Choice
from hfl_mqtt.rounds.signing import Signer

#: A node that is no cloud publishes its metrics at most this often: on a metered link they would be most of the control
#: traffic of short rounds, and MQTT Explorer plots a hundred points.
METRICS_EVERY_S = 10.0


class Pace:
    """Says metrics, but not too often: what comes too early waits, and the newest is what is said then.

    While parts move for longer than that, how far they are stands beside the newest.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._newest: Send | None = None
        self._is_waiting = False
        self._moving_s: float | None = None
        self._shown: dict[str, float] = {}

    def say(self, metrics: Send, now: float) -> list[Action]:
        """Say these now, or later."""
        self._newest, self._is_waiting = metrics, True
        return self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Say what has waited long enough."""
        if not self._is_waiting or (self._last_s is not None and now < self._last_s + METRICS_EVERY_S):
            return []
        self._last_s = now
        return self.rest()

    def rest(self) -> list[Action]:
        """Say the newest now, whether or not it was said: what the shell adds to it is newer."""
        self._is_waiting = False
        return [self._newest] if self._newest is not None else []

    def watch(self, is_moving: bool, progress: Callable[[], dict[str, float]], now: float) -> list[Action]:
        """Look how far parts are once they have been on their way for long; to be called after every event."""
        if not is_moving:
            self._moving_s = None
            if self._shown:  # what was said of them is past
                self._shown, self._is_waiting = {}, True
                self._newest = self._newest or Send(message=Metrics(values={}))
            return []
        if self._moving_s is None:
            self._moving_s = now
        if now < self._moving_s + METRICS_EVERY_S:
            return []
        self._moving_s, found = now, progress()
        if not found or found == self._shown:
            return []
        self._shown, self._last_s, self._is_waiting = found, now, False
        figures = self._newest.message.values if self._newest and isinstance(self._newest.message, Metrics) else {}
        return [Send(message=Metrics(values={**figures, **found}))]

    @property
    def next_deadline(self) -> float | None:
        """When `tick` or `watch` has something to say."""
        moments = (self._last_s if self._is_waiting else None, self._moving_s)
        return min((moment + METRICS_EVERY_S for moment in moments if moment is not None), default=None)


class Node(ABC):
    """One place in the tree: events in, actions out; no sockets, clocks, threads or files."""

    def __init__(self, path: str, boot: int, signer: Signer | None = None) -> None:
        self.path = path
        self.boot = boot
        #: Signs and checks for it; None where its federation signs nothing.
        self.signer = signer

    @abstractmethod
    def start(self, now: float) -> list[Action]:
        """Begin. Called once, before anything else."""

    @abstractmethod
    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""

    @abstractmethod
    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""

    def judge(self, sender: str, size_bytes: int, now: float) -> list[Action] | None:  # noqa: ARG002  (of aggregators)
        """Look at who has sent something before it is read; returns what is done instead, None to go on."""
        return None

    def malformed(self, sender: str, reason: str, now: float) -> list[Action]:  # noqa: ARG002  (of aggregators)
        """Take it that somebody said what cannot be read."""
        return []

    @property
    @abstractmethod
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""

    @property
    def may_speak(self) -> bool:
        """Whether this node is the one that speaks at its place now; a standby is not."""
        return True

    def has_expired(self, now: float) -> bool:  # noqa: ARG002  (for those that hold a lease)
        """Whether its right to speak has run out since it last spoke: what it wanted to say must not be said."""
        return False

    @property
    def session_at_most_s(self) -> float | None:
        """How long the broker may keep its session, 0 for not at all; None where that is not for it to say."""
        return None

    @property
    def client_id(self) -> str:
        """The name of its session at the broker."""
        return self.path

    @property
    def will(self) -> State | None:
        """What the broker says for this node when it is gone."""
        return State(state=StateName.LOST, boot=self.boot)

    def leave(self) -> list[Action]:
        """Leave on purpose; nothing is handled after this."""
        return [Send(message=State(state=StateName.DISCONNECTED, boot=self.boot))]


def progress_of(what: str, progress: tuple[int, int] | None) -> dict[str, float]:
    """Return as figures how many bytes of all are over; none where nothing is on its way.

    >>> progress_of("receiving", (40_250_000, 100_000_000))
    {'receiving_mb': 40.2, 'of_mb': 100.0}
    """
    return {} if progress is None else {f"{what}_mb": round(progress[0] / 1e6, 1), "of_mb": round(progress[1] / 1e6, 1)}


def choices_of(*, up: Choice | None = None, down: Choice | None = None) -> dict[str, int | str]:
    """Return for the metrics which codec was chosen for updates up and for the model down, and why."""
    said: dict[str, int | str] = {}
    for way, choice in (("up", up), ("down", down)):
        if choice is not None:
            said |= {f"{way}_codec": choice.codec, f"{way}_codec_why": choice.reason}
    return said


def metrics_of(
    round_id: Sequence[int],
    tallies: dict[str, Tally],
    samples: int,
    seconds: float,
    into: dict[str, int | str] | None = None,
) -> Send:
    """Return a round's figures for people, with four digits; `into` stands before the scores."""
    own: dict[str, int | float | str | None] = {
        "round": round_text(tuple(round_id)),
        **(into or {}),
        "samples": samples,
        "seconds": float(f"{seconds:.4g}"),
    }
    values = {name: tally.value for name, tally in tallies.items() if name not in own}
    scores = {name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}
    return Send(message=Metrics(values={**own, **scores}))
