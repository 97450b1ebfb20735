"""What a participant says of itself: at birth, when its state has lasted, and again until its parent calls it."""

from __future__ import annotations

from dataclasses import replace

from hfl_mqtt.protocol.messages import Info, State, StateName
from hfl_mqtt.rounds.actions import Action, Send

#: Work that is done sooner is not told of, nor is a pause that is over sooner: the state that people see would only
#: flicker, and every message costs. So from its first long work to the end of the run a node says that it is training.
TELL_S = 5.0
REST_S = 30.0
#: A node that has heard nothing of its parent says again that it is there.
ANNOUNCE_S = 15.0
MAX_ANNOUNCE_S = 300.0
#: A node that was in quarantine says that it is there so long after its end, as its parent's clock is another.
HEARD_AGAIN_S = 2.0
#: How long after the last trouble its name is taken to be its own again.
CLONED_S = 900.0
#: What keeps a node from its work is told once it has lasted: a card may come a moment after the call it is for.
COMPLAIN_S = 5.0


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
        #: When our parent hears us again, that has us in quarantine.
        self._shunned_ends_s: float | None = None
        #: What keeps it from its work, by subject; when that is told, and of what it was.
        self._complaints: dict[str, str] = {}
        self._complain_at_s: float | None = None
        self._complained: set[str] = set()

    def hello(self, state: StateName, now: float) -> list[Action]:
        """Say who is there."""
        self._announce_at_s, self._announce_wait_s = now + ANNOUNCE_S, ANNOUNCE_S
        self._trouble_ends_s = now + CLONED_S if self._trouble else None
        self._state = self._told = state
        self._tell_at_s = None
        self._complained, self._complain_at_s = set(self._complaints), None
        return [Send(message=self._info), self._said()]

    def is_cloned(self) -> None:
        """Take it that another program keeps connecting under our name."""
        self._trouble = f"another board seems to be called {self._path} too: give each its own name"

    def shunned(self, reason: str, for_s: float, now: float) -> None:
        """Take it that the parent does not hear us for a while; once it does again, it is told that we are there."""
        self.complain("quarantine", reason, now)
        self._shunned_ends_s = now + for_s + HEARD_AGAIN_S

    def complain(self, about: str, reason: str, now: float) -> None:
        """Take it that something keeps us from our work; it is told if nothing better comes soon."""
        if about not in self._complaints and self._complain_at_s is None:
            self._complain_at_s = now + COMPLAIN_S
        if about not in self._complained:  # else whoever gives ever new reasons would have us tell them all
            self._complaints[about] = reason

    def content(self, about: str) -> list[Action]:
        """Take it that this does not keep us any more; say so where it was told."""
        self._complaints.pop(about, None)
        if not self._complaints:
            self._complain_at_s = None
        if about not in self._complained:
            return []
        self._complained.discard(about)
        return [self._said()]

    def sampled(self, samples: int) -> list[Action]:
        """Take it that there are so many samples now; said anew where they are a tenth more or fewer."""
        known = self._info.samples
        if known is not None and abs(samples - known) * 10 <= known:
            return []
        self._info = replace(self._info, samples=samples)
        return [Send(message=self._info)]

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
        if self._shunned_ends_s is not None and now >= self._shunned_ends_s:
            self._shunned_ends_s, self._told, self._tell_at_s = None, self._state, None
            actions += self.content("quarantine") or [self._said()]
        if self._complain_at_s is not None and now >= self._complain_at_s:
            self._complain_at_s, self._complained = None, set(self._complaints)
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
        state_s = (self._tell_at_s, self._announce_at_s, self._shunned_ends_s)
        moments = (*state_s, self._trouble_ends_s, self._complain_at_s)
        return min((moment for moment in moments if moment is not None), default=None)

    def answer(self, reason: str) -> Send:
        """Say the state now, and beside it this."""
        return self._said(reason)

    def _said(self, reason: str = "") -> Send:
        told = reason or self._trouble or "; ".join(self._complaints.values())
        return Send(message=State(state=self._told, boot=self._boot, reason=told[:300]))
