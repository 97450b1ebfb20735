"""Signed federations of real processes: killed, revoked, given new keys, given the papers of another."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.trust.cards import Card, Revoked, sign_card, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey
from tests.broker.conftest import FEDERATION, PASSWORD
from tests.broker.processes import Program, until
from tests.broker.test_resuming import CHILDREN, Tree

pytestmark = pytest.mark.broker
FLEET = PrivateKey(b"f" * 32)
IDENTITY = """
identity: {{card_file: {0}/node.card, key_file: {0}/node.key, fleet_key_file: {0}/fleet.pub, revoked_file: revoked}}
"""


class SignedTree(Tree):
    """The same with an identity for each; `revoked` is one list for all."""

    def __init__(self, folder: Path, port: int, stack: ExitStack) -> None:
        self.folder = folder
        self.revoke(1)
        super().__init__(folder, port, stack)
        for name in CHILDREN:
            self.give_papers(name, f"cloud/{name}")
            with (folder / f"{name}.yaml").open("a") as file:
                file.write(IDENTITY.format(f"papers-{name}"))

    def write(self, **options: Any) -> None:
        super().write(**options)
        if not (self.folder / "papers-cloud").exists():
            self.give_papers("cloud", "cloud")
        config = self.folder / "cloud.yaml"
        text = config.read_text().replace("quorum: 100 %", "quorum: 1, grace: 1 s")
        config.write_text(text + IDENTITY.format("papers-cloud"))

    def give_papers(self, name: str, path: str, serial: int = 0) -> int:
        """Lay a new key and its card down; returns the serial."""
        folder = self.folder / f"papers-{name}"
        folder.mkdir(exist_ok=True)
        key, number = PrivateKey.generate(), serial or 1 + len(list(self.folder.glob("papers-*")))
        card = Card(federation=FEDERATION, key=key.public, not_after=2**40, path=path, serial=str(number))
        (folder / "node.card").write_text(sign_card(card, FLEET) + "\n")
        (folder / "fleet.pub").write_text(FLEET.public + "\n")
        (folder / "node.key").touch(0o600)
        (folder / "node.key").write_text(key.pem())
        return number

    def revoke(self, number: int, *serials: int) -> None:
        """Replace the list of revoked cards, in one step."""
        listed = Revoked(federation=FEDERATION, number=number, serials=frozenset(map(str, serials)))
        new = self.folder / "revoked.new"
        new.write_text(sign_revoked(listed, FLEET) + "\n")
        new.replace(self.folder / "revoked")


@pytest.fixture
def tree(
    start_broker: Callable[..., Mosquitto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SignedTree]:
    pytest.importorskip("torch")
    monkeypatch.setitem(os.environ, "PASSWORD", PASSWORD)
    monkeypatch.setattr("tests.broker.processes._ENVIRONMENT", {**os.environ, "OMP_NUM_THREADS": "1"})
    with ExitStack() as stack:
        yield SignedTree(tmp_path, start_broker().port, stack)


def test_killed_in_the_middle_of_a_signed_run_all_go_on_where_they_were(tree: SignedTree) -> None:
    tree.write(rounds=8)
    devices = {name: tree.start("client", name=name) for name in CHILDREN}
    cloud = tree.start()
    until(lambda: len(tree.notes("accepted", round="g2")) == 2, "two updates of the second round")
    cloud.end(signal.SIGKILL)
    devices["a"].end(signal.SIGKILL)
    tree.start("client", name="a")
    assert tree.start().end(None)[0] == 0
    assert (tree.summary()["rounds"], tree.summary()["lives"]) == (8, 2)
    assert tree.notes("refused") == []
    assert tree.notes("call_refused") == []


def test_who_is_revoked_in_the_middle_of_a_run_counts_no_more_and_the_run_goes_on(tree: SignedTree) -> None:
    tree.write(rounds=10_000)
    tree.start_devices()
    cloud = tree.start()
    until(lambda: tree.notes("accepted", sender="cloud/b"), "an update of b")
    tree.revoke(2, 4)
    refused = until(lambda: tree.notes("refused", sender="cloud/b"), "b to be refused")
    assert refused[0]["reason"] == "the card 4 of cloud/b is revoked: give it a new one"
    (noted,) = tree.notes("revoked")
    assert (noted["number"], noted["serials"]) == (2, 1)
    last = len(tree.notes("closed"))
    until(lambda: len(tree.notes("closed")) > last + 2, "rounds with a alone")
    assert all(record["accepted"] == 1 for record in tree.notes("closed")[last + 1 :])
    assert tree.run("status")["metrics"]["refused"] >= 1
    cloud.end()


def test_a_device_with_a_new_key_counts_as_soon_as_it_is_back(tree: SignedTree) -> None:
    tree.write(rounds=10_000)
    tree.start("client", name="a")
    device = tree.start("client", name="b")
    cloud = tree.start()
    until(lambda: tree.notes("accepted", sender="cloud/b"), "an update of b")
    device.end(signal.SIGKILL)
    tree.give_papers("b", "cloud/b", serial=40)
    tree.revoke(2, 4)
    before = len(tree.notes("accepted", sender="cloud/b"))
    tree.start("client", name="b")
    until(lambda: len(tree.notes("accepted", sender="cloud/b")) > before + 1, "b under its new key")
    cloud.end()


def test_the_papers_of_another_node_are_told_of_before_anything_begins(tree: SignedTree) -> None:
    text = (tree.folder / "a.yaml").read_text().replace("papers-a", "papers-b")
    (tree.folder / "a.yaml").write_text(text)
    device: Program = tree.start("client", name="a")
    device.hear("is the card of the node cloud/b, not cloud/a: take its own bundle")
    assert device.end(None)[0] == 2
