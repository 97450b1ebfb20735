"""A board that was assigned elsewhere goes on there, also after a restart, and forgets what it kept before."""

from __future__ import annotations

from pathlib import Path

from hfl_mqtt.roles import homes
from hfl_mqtt.rounds.participant import HOME
from hfl_mqtt.state.vault import Vault

A, B, C = NAMES = ("cloud/a/1", "cloud/b/1", "cloud/c/1")


def test_a_board_goes_where_it_was_sent_and_back(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert homes.settle(vault, NAMES) == A
    vault.commit({(A, HOME): B.encode(), (A, "up/past"): b"1"})  # as a node does that leaves
    assert homes.settle(vault, NAMES) == B
    assert dict(vault.of(A)) == {}
    assert homes.settle(vault, NAMES) == B
    vault.commit({(B, HOME): A.encode()})
    assert homes.settle(vault, NAMES) == A
    assert homes.settle(vault, NAMES) == A
    vault.close()


def test_a_home_that_is_no_longer_configured_is_left_for_the_first(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    homes.settle(vault, NAMES)
    vault.commit({(A, HOME): C.encode()})
    assert homes.settle(vault, NAMES) == C
    assert homes.settle(vault, (A, B)) == A
    vault.close()
