"""What a participant says of itself: at birth, when its state has lasted, and again until its parent calls it."""

from __future__ import annotations

from hfl_mqtt.protocol.messages import Info, State, StateName
from hfl_mqtt.rounds.actions import Action, Send

#: Work that is done sooner is not told of, nor is a pause that is over sooner: the state that people see would only
#: flicker, and every message costs. So from its first long work to the end of the run a node says that it is training.
TELL_S = 5.0
REST_S = 30.0
#: A node that has heard nothing of its parent says again that it is there.
ANNOUNCE_S = 15.0
MAX_ANNOUNCE_S = 300.0
#: How long after the last trouble its name is taken to be its own again.
CLONED_S = 900.0


class Presence:
    """A node's own word on its state.

    Args:
        path: the node's name.
        boot: how often it has been started.
        info: what it says of itself at birth.
    """

    def __init__(self, path: str, boot: int, info: Info) -> None:
        self._path, self._boot, self._info = path, boot, info
        #: The state, and the one last said.
        self._state = self._told = StateName.READY
        self._tell_at_s: float | None = None
        self._announce_at_s: float | None = None
        self._announce_wait_s = ANNOUNCE_S
        self._trouble = ""
        self._trouble_ends_s: float | None = None

    def hello(self, state: StateName, now: float) -> list[Action]:
        """Say who is there."""
        self._announce_at_s, self._announce_wait_s = now + ANNOUNCE_S, ANNOUNCE_S
        self._trouble_ends_s = now + CLONED_S if self._trouble else None
        self._state = self._told = state
        self._tell_at_s = None
        return [Send(message=self._info), self._said()]

    def is_cloned(self) -> None:
        """Take it that another program keeps connecting under our name."""
        self._trouble = f"another board seems to be called {self._path} too: give each its own name"

    def called(self) -> None:
        """Take it that the parent works with those it knows; our answer will tell it of us."""
        self._announce_at_s = None

    def change(self, state: StateName, now: float) -> None:
        """Have this state said once it has lasted, where it is another than the last one said."""
        patience_s = TELL_S if state is StateName.TRAINING else REST_S
        self._state = state
        self._tell_at_s = None if self._told is state else now + patience_s

    def tell(self, state: StateName) -> list[Action]:
        """Say this state where it is another than the last one said."""
        self._state, self._tell_at_s = state, None
        if self._told is state:
            return []
        self._told = state
        return [self._said()]

    def tick(self, now: float) -> list[Action]:
        """Say what is due."""
        actions: list[Action] = []
        if self._tell_at_s is not None and now >= self._tell_at_s:
            actions += self.tell(self._state)
        if self._trouble_ends_s is not None and now >= self._trouble_ends_s:
            self._trouble, self._trouble_ends_s = "", None
            actions.append(self._said())
        if self._announce_at_s is not None and now >= self._announce_at_s:
            self._announce_wait_s = min(self._announce_wait_s * 2, MAX_ANNOUNCE_S)
            self._announce_at_s = now + self._announce_wait_s
            self._told, self._tell_at_s = self._state, None
            actions.append(self._said())
        return actions

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        moments = (self._tell_at_s, self._announce_at_s, self._trouble_ends_s)
        return min((moment for moment in moments if moment is not None), default=None)

    def answer(self, reason: str) -> Send:
        """Say the state now, and beside it this."""
        return self._said(reason)

    def _said(self, reason: str = "") -> Send:
        return Send(message=State(state=self._told, boot=self._boot, reason=(reason or self._trouble)[:300]))
