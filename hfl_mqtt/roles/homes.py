"""Which of its homes a board is at, over restarts: one that was assigned elsewhere goes on there."""

from __future__ import annotations

from collections.abc import Sequence

from hfl_mqtt.rounds.participant import HOME
from hfl_mqtt.state.vault import Buffer, Vault

#: In a vault, what belongs to the board, whatever name it has now.
BOARD = ""


def settle(vault: Vault, names: Sequence[str]) -> str:
    """Return the name under which the board goes on, and forget what it kept under its others.

    Args:
        vault: the board's. A node that leaves puts its next name under `HOME` among its own keys.
        names: all its homes, the first one first.
    """
    here = _said(vault, BOARD, names) or names[0]
    here = _said(vault, here, names) or here
    old: dict[tuple[str, str], Buffer | None] = {
        (name, key): None for name in names if name != here for key in vault.of(name)
    }
    vault.commit({**old, (BOARD, HOME): here.encode()})
    return here


def _said(vault: Vault, node: str, names: Sequence[str]) -> str | None:
    said = bytes(vault.of(node).get(HOME, b"")).decode(errors="replace")
    return said if said in names else None
