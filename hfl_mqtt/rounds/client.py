"""A device: a participant whose work is done by a trainer."""

from __future__ import annotations

from hfl_mqtt.protocol.messages import Info, Receipt
from hfl_mqtt.rounds.actions import (
    Action,
    Connected,
    Event,
    Received,
    RunOver,
    Send,
    Worked,
    WorkFailed,
    note,
)
from hfl_mqtt.rounds.node import MAX_MODEL, Node, Pace, choices_of, metrics_of, progress_of
from hfl_mqtt.rounds.participant import FromParent, Participant


class ClientNode(Node):
    """A device: a participant whose work is done by a trainer."""

    def __init__(self, *, path: str, boot: int, info: Info, max_model: int = MAX_MODEL) -> None:
        super().__init__(path, boot)
        self.participant = Participant(path=path, boot=boot, info=info, max_model=max_model)
        self._metrics: Send | None = None
        self._pace = Pace()

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Begin; a device waits to be connected."""
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event."""
        return self._take(event, now) + self._watch(now)

    def _watch(self, now: float) -> list[Action]:
        participant = self.participant

        def progress() -> dict[str, float]:
            return progress_of("receiving", participant.received) or progress_of("sending", participant.sent)

        return self._pace.watch(participant.is_moving, progress, now) + participant.watch(now)

    def _take(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Connected):
            return self.participant.connected(now)
        if isinstance(event, Worked):
            call = self.participant.call
            actions = self.participant.worked(event.work_id, event.result, now)
            if actions and call is not None:
                result = event.result
                into = choices_of(up=self.participant.choice)
                self._metrics = metrics_of(call.round, result.tallies, result.weight, result.seconds, into)
            return actions
        if isinstance(event, WorkFailed):
            return self.participant.failed(event.work_id, event.reason)
        if isinstance(event, Received):
            message = event.message
            if event.sender == self.participant.parent and isinstance(message, FromParent):
                actions = self.participant.hear(message, now)
                if isinstance(message, Receipt) and self._metrics is not None:
                    actions += self._pace.say(self._metrics, now)  # with all that the round cost
                    self._metrics = None
                if any(isinstance(action, RunOver) for action in actions):
                    actions += self._pace.rest()
                return actions
            return [note("stranger", sender=event.sender, said=type(message).__name__)]
        self.participant.lost()
        return []

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self.participant.tick(now) + self._pace.tick(now) + self._watch(now)

    def leave(self) -> list[Action]:
        """Leave on purpose, with the last figures."""
        return [*self._pace.rest(), *super().leave()]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        moments = (self.participant.next_deadline, self._pace.next_deadline)
        return min((moment for moment in moments if moment is not None), default=None)
