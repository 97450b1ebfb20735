"""Whom an aggregator knows of its children."""

from __future__ import annotations

from dataclasses import dataclass

from hfl_mqtt.protocol.messages import State, StateName


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A child, as it was heard last."""

    boot: int = 0
    is_present: bool = True
    has_left: bool = False
    #: Whether it says that it works: then it has heard the call, or it will say within half a minute that it does not.
    is_training: bool = False
    #: The boot it had before this one, and how often it has come back to such a one.
    boot_before: int | None = None
    returns: int = 0

    @classmethod
    def of(cls, state: State, before: Member | None) -> Member:
        """Return what is known of a child once it has said this."""
        name, boot_before, returns = state.state, None, 0
        if before is not None:
            boot_before, returns = before.boot_before, before.returns
            if name.is_present and state.boot != before.boot:
                returns += state.boot == boot_before
                boot_before = before.boot
        return cls(
            boot=state.boot,
            is_present=name.is_present,
            has_left=name is StateName.DISCONNECTED,
            is_training=name is StateName.TRAINING,
            boot_before=boot_before,
            returns=returns,
        )

    def is_cloned(self, before: Member | None) -> bool:
        """Whether its boots go back and forth, and did so once more: two boards say that they are this child.

        Once, it may be a word that came out of its order.
        """
        return before is not None and self.returns > max(before.returns, 1)
