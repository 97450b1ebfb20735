"""Whose papers a node takes, what it then reads besides, and when it looks whether others were revoked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.config.broker import IdentityConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.roles import identities
from hfl_mqtt.roles.shell import LOOK_AGAIN_S, Shell, filters
from hfl_mqtt.rounds.actions import Bridged, Note
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.rounds.signing import Signer
from hfl_mqtt.sim.papers import FEDERATION, Papers
from hfl_mqtt.sim.simulation import Simulation
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink
from hfl_mqtt.trust.cards import Card, sign_card
from hfl_mqtt.trust.identity import Identity
from hfl_mqtt.trust.keys import PrivateKey

FLEET, KEY = PrivateKey(b"f" * 32), PrivateKey(b"k" * 32)
PI = "cloud/a/pi"


def bundle(folder: Path, path: str = PI, federation: str = "f") -> IdentityConfig:
    card = Card(federation=federation, key=KEY.public, not_after=2**40, path=path, serial="7")
    (folder / "node.card").write_text(sign_card(card, FLEET))
    (folder / "fleet.pub").write_text(FLEET.public)
    (folder / "node.key").touch(0o600)
    (folder / "node.key").write_text(KEY.pem())
    return IdentityConfig(
        card_file=folder / "node.card", key_file=folder / "node.key", fleet_key_file=folder / "fleet.pub"
    )


def test_a_node_without_the_section_signs_nothing() -> None:
    assert identities.load(None, "f", PI) is None


def test_a_node_takes_its_own_papers(tmp_path: Path) -> None:
    found = identities.load(bundle(tmp_path), "f", PI)
    assert found is not None
    assert (found.path, found.federation, found.key) == (PI, "f", KEY.public)


@pytest.mark.parametrize(
    ("federation", "path", "told"),
    [("f", "cloud/a/pj", "the card of the node cloud/a/pi, not cloud/a/pj"), ("g", PI, "of the federation f, not g")],
)
def test_it_takes_no_others(tmp_path: Path, federation: str, path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        identities.load(bundle(tmp_path), federation, path)


def client(signer: Signer | None) -> ClientNode:
    return ClientNode(path=PI, boot=1, info=Info(role="client", boot=1), signer=signer)


def test_only_who_checks_signatures_reads_cards() -> None:
    plain = filters(client(None), "f")
    signed = filters(client(Papers(0).identity(PI)), "f")
    assert [one.topic for one in signed[:1]] == ["hfl/f/cloud/a/@/stat/identity"]
    assert signed[1:] == plain


class Looking(Identity):
    """An identity that counts how often it looks, and finds something new each time."""

    looks = 0

    def look_again(self) -> Mapping[str, Any] | None:
        self.looks += 1
        return {"number": self.looks, "serials": 0}


class Journal(Simulation):
    """A world that only takes notes."""

    def __init__(self) -> None:
        self.notes_taken: list[Note] = []

    def record(self, node: Node, entry: Note) -> None:  # noqa: ARG002 - part of the contract
        self.notes_taken.append(entry)


def test_it_looks_whether_keys_were_revoked_when_something_happens_and_seldom_enough() -> None:
    papers, world = Papers(0), Journal()
    key = papers.key(PI)
    signer = Looking(papers.identity(PI).card, key, papers.fleet.public)
    node = client(signer)
    shell = Shell(node, FEDERATION, MemoryLink(MemoryBroker("b"), PI, [], lambda _event: None), world)
    at_first = signer.looks
    for now in (0.0, 1.0, LOOK_AGAIN_S - 0.1, LOOK_AGAIN_S, LOOK_AGAIN_S + 1.0):
        shell.feed(Bridged(is_up=True), now)
    assert signer.looks == at_first + 2
    assert [entry.event for entry in world.notes_taken] == ["revoked", "revoked"]
    assert shell.next_deadline is None, "it never wakes for that alone"
