"""A device: a participant whose work is done by a trainer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from hfl_mqtt.protocol.limits import MAX_MODEL
from hfl_mqtt.protocol.messages import Buffer, Info, Receipt, State, StateName
from hfl_mqtt.rounds.actions import (
    Action,
    Bridged,
    Connected,
    Event,
    Lost,
    Received,
    RunOver,
    Sampled,
    Send,
    Worked,
    WorkFailed,
    note,
)
from hfl_mqtt.rounds.node import Node, Pace, choices_of, metrics_of, progress_of
from hfl_mqtt.rounds.participant import FromParent, Participant
from hfl_mqtt.rounds.signing import Signer


class ClientNode(Node):
    """A device: a participant whose work is done by a trainer.

    Args:
        path, boot, info, max_model: see `Participant`.
        saved: what its former life persisted.
        homes: the other names under which it may go on.
        signer: signs what it says that counts, and checks what its parent says; None where nothing is signed.
    """

    def __init__(
        self,
        *,
        path: str,
        boot: int,
        info: Info,
        max_model: int = MAX_MODEL,
        saved: Mapping[str, Buffer] = MappingProxyType({}),
        homes: Collection[str] = (),
        signer: Signer | None = None,
    ) -> None:
        super().__init__(path, boot, signer)
        self.participant = Participant(
            path=path, boot=boot, info=info, max_model=max_model, saved=saved, homes=homes, signer=signer
        )
        self._metrics: Send | None = None
        self._pace = Pace()

    def start(self, now: float) -> list[Action]:  # noqa: ARG002  (part of the contract)
        """Take up what its former life left behind; a device waits to be connected."""
        return self.participant.start()

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
            call = self.participant.working_for
            actions = self.participant.worked(event.work_id, event.result, now)
            if actions and call is not None:
                result = event.result
                into = choices_of(up=self.participant.choice)
                self._metrics = metrics_of(call.round, result.tallies, result.weight, result.seconds, into)
            return actions
        if isinstance(event, WorkFailed):
            return self.participant.failed(event.work_id, event.reason, now)
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
        if isinstance(event, Sampled):
            return self.participant.sampled(event.samples)
        if isinstance(event, Bridged):
            return self.participant.bridged(event.is_up, now)
        if isinstance(event, Lost):
            self.participant.lost(is_cloned=event.is_cloned)
        return []

    def tick(self, now: float) -> list[Action]:
        """Do what the clock asks for."""
        return self.participant.tick(now) + self._pace.tick(now) + self._watch(now)

    def leave(self) -> list[Action]:
        """Leave on purpose, with the last figures; for good, or for another home."""
        gone = State(state=StateName.DISCONNECTED, boot=self.boot, reason=self.participant.parting)
        return [*self._pace.rest(), Send(message=gone)]

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        moments = (self.participant.next_deadline, self._pace.next_deadline)
        return min((moment for moment in moments if moment is not None), default=None)
