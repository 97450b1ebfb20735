"""Card, key, fleet and list of revoked ones: whether they are one node's, and hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hfl_mqtt.config.broker import BrokerConfig, IdentityConfig
from hfl_mqtt.ops.doctor.findings import Finding, Verdict
from hfl_mqtt.ops.doctor.identity import check_identity
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.transport.link import Account
from hfl_mqtt.trust.cards import Card, Revoked, sign_card, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey

FLEET, NODE = PrivateKey(b"f" * 32), PrivateKey(b"n" * 32)
END_2099_S = 4_070_908_800
CARD = Card(federation="fed1", key=NODE.public, not_after=END_2099_S, path="cloud/a/pi-1", serial="77")


class Bundle:
    """The files of a node, and the node that has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.put("node.key", NODE.pem())
        self.put("fleet.pub", FLEET.public)
        self.card(CARD)
        self.revoke()
        broker = BrokerConfig(host="127.0.0.1")
        self.patient = Patient(
            role="client",
            federation="fed1",
            name="cloud/a/pi-1",
            broker=broker,
            account=lambda: Account(host="127.0.0.1", port=1883, user="cloud/a/pi-1"),
            state_dir=folder,
            identity=IdentityConfig(
                card_file=folder / "node.card",
                key_file=folder / "node.key",
                fleet_key_file=folder / "fleet.pub",
                revoked_file=folder / "revoked",
            ),
        )

    def put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o600)

    def card(self, card: Card, by: PrivateKey = FLEET) -> None:
        self.put("node.card", sign_card(card, by))

    def revoke(self, *serials: str) -> None:
        self.put("revoked", sign_revoked(Revoked(federation="fed1", number=3, serials=frozenset(serials)), FLEET))

    def examine(self) -> list[Finding]:
        return list(check_identity(self.patient, None))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path)


def test_a_bundle_in_order_has_a_card_a_date_and_a_list(bundle: Bundle) -> None:
    found = bundle.examine()
    assert [each.verdict for each in found] == [Verdict.OK] * 3
    assert found[0].text == "the fleet's key has signed cloud/a/pi-1's card, number 77, and its key is here"
    assert found[1].text.startswith("cloud/a/pi-1's until 2099-01-01, ")
    assert found[2].text == "list 3 has 0 cards, not this one"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"path": "cloud/a/pi-2"}, "the card is cloud/a/pi-2's, this node is cloud/a/pi-1"),
        ({"federation": "fed2"}, "the card is of the federation fed2, this node is in fed1"),
        ({"key": FLEET.public}, "the key is not the card's"),
    ],
)
def test_a_card_that_is_not_this_nodes_fails_and_a_bundle_is_the_remedy(
    bundle: Bundle, change: dict[str, str], told: str
) -> None:
    bundle.card(CARD.model_copy(update=change))
    (found,) = bundle.examine()
    assert (found.verdict, found.text) == (Verdict.FAIL, told)
    assert "bundle" in found.remedy


def test_a_card_of_another_fleet_fails(bundle: Bundle) -> None:
    bundle.card(CARD, by=NODE)
    (found,) = bundle.examine()
    assert found.verdict is Verdict.FAIL
    assert "not signed by our fleet's key" in found.text


def test_the_own_card_on_the_list_of_revoked_ones_fails(bundle: Bundle) -> None:
    bundle.revoke("5", "77")
    found = bundle.examine()[-1]
    assert (found.name, found.verdict) == ("revocations", Verdict.FAIL)
    assert "number 77, is revoked" in found.text
    assert "hfl fleet rotate cloud/a/pi-1" in found.remedy


def test_an_end_that_is_past_or_near_is_told_with_its_day(bundle: Bundle) -> None:
    bundle.card(CARD.model_copy(update={"not_after": 978_307_200}))
    found = bundle.examine()[1]
    assert (found.name, found.verdict) == ("card", Verdict.FAIL)
    assert found.text == "cloud/a/pi-1's has expired on 2001-01-01"


def test_without_a_section_nothing_is_signed(bundle: Bundle) -> None:
    bundle.patient = replace(bundle.patient, identity=None)
    (found,) = bundle.examine()
    assert found.verdict is Verdict.SKIPPED


def test_without_a_list_a_stolen_board_counts_on(bundle: Bundle) -> None:
    assert bundle.patient.identity is not None
    bare = bundle.patient.identity.model_copy(update={"revoked_file": None})
    bundle.patient = replace(bundle.patient, identity=bare)
    assert bundle.examine()[-1].verdict is Verdict.WARN
