"""Whose signature counts: a card of this fleet, federation and name, in its time, and not revoked."""

import os
from pathlib import Path

import pytest

from hfl_mqtt.errors import ConfigError, Forged, Refused
from hfl_mqtt.trust.cards import Card, Revoked, sign_card, sign_revoked
from hfl_mqtt.trust.identity import MAX_CARDS, Identity
from hfl_mqtt.trust.keys import PrivateKey

FLEET = PrivateKey(b"f" * 32)
#: 2026-01-01 and a year later.
NOW, LATER = 1_767_225_600, 1_798_761_600
PI = "cloud/a/pi"


def key_of(name: str) -> PrivateKey:
    return PrivateKey(name.encode().ljust(32, b"-"))


def card_of(path: str, name: str = "", *, serial: int = 1, fleet: PrivateKey = FLEET, **other: object) -> str:
    fields = {"federation": "f", "key": key_of(name or path).public, "not_after": LATER, "path": path}
    return sign_card(Card.model_validate({**fields, "serial": str(serial), **other}), fleet)


def identity(path: str = "cloud/a", *, now: float = NOW, revoked_file: Path | None = None) -> Identity:
    return Identity(card_of(path), key_of(path), FLEET.public, clock=lambda: now, revoked_file=revoked_file)


def revoke(file: Path, number: int, *serials: int, federation: str = "f") -> None:
    listed = Revoked(federation=federation, number=number, serials=frozenset(map(str, serials)))
    file.write_text(sign_revoked(listed, FLEET))
    os.utime(file, ns=(number, number))  # a clock of its own: two writes within its grain must differ


def test_a_signature_holds_by_the_card_that_was_heard() -> None:
    edge = identity()
    assert edge.learn(PI, card_of(PI))
    assert not edge.learn(PI, card_of(PI)), "the same again is nothing new"
    edge.check(PI, b"said", key_of(PI).sign(b"said"))
    assert edge.objection(PI) is None


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (key_of(PI).sign(b"else"), "the signature is not cloud/a/pi's"),
        (key_of("cloud/a/pj").sign(b"said"), "the signature is not cloud/a/pi's"),
        (bytes(64), "not signed by cloud/a/pi"),
        (b"", "not signed by cloud/a/pi"),
        (b"x" * 63, "the signature is not cloud/a/pi's"),
    ],
)
def test_another_statement_another_key_and_none_are_forged(signature: bytes, reason: str) -> None:
    edge = identity()
    edge.learn(PI, card_of(PI))
    with pytest.raises(Forged, match=reason):
        edge.check(PI, b"said", signature)


def test_nothing_holds_of_whom_no_card_was_heard() -> None:
    edge = identity()
    assert not edge.knows(PI)
    with pytest.raises(Forged, match="no identity of cloud/a/pi has been heard yet"):
        edge.check(PI, b"said", key_of(PI).sign(b"said"))


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("non sense", "not a card"),
        (card_of(PI, fleet=key_of("stranger")), "not signed by our fleet's key"),
        (card_of(PI, federation="g"), "a card of another federation, g"),
        (card_of("cloud/a/pj"), "the card of cloud/a/pj"),
        (card_of(PI, not_after=NOW - 1), "out of date"),
    ],
)
def test_a_card_that_says_nothing_that_counts_is_not_taken(card: str, reason: str) -> None:
    edge = identity()
    with pytest.raises(Refused, match=reason):
        edge.learn(PI, card)
    assert not edge.knows(PI)


def test_a_card_that_went_out_of_date_counts_no_more() -> None:
    clock = [float(NOW)]
    edge = Identity(card_of("cloud/a"), key_of("cloud/a"), FLEET.public, clock=lambda: clock[0])
    edge.learn(PI, card_of(PI))
    clock[0] = LATER + 1
    assert edge.objection(PI) == "the card 1 of cloud/a/pi is out of date: give it a new one"
    with pytest.raises(Forged, match="out of date"):
        edge.check(PI, b"said", key_of(PI).sign(b"said"))


def test_a_board_whose_clock_was_never_set_judges_no_date() -> None:
    edge = identity(now=100.0)
    edge.learn(PI, card_of(PI, not_after=NOW - 1))
    edge.check(PI, b"said", key_of(PI).sign(b"said"))


def test_after_a_change_of_keys_both_hold_until_the_old_one_is_revoked(tmp_path: Path) -> None:
    """An update that was sealed before may still be under way."""
    file = tmp_path / "revoked"
    revoke(file, 1)
    edge = identity(revoked_file=file)
    edge.learn(PI, card_of(PI, "old", serial=7))
    edge.learn(PI, card_of(PI, "new", serial=8))
    for name in ("old", "new"):
        edge.check(PI, b"said", key_of(name).sign(b"said"))
    revoke(file, 2, 7)
    assert edge.look_again() == {"number": 2, "serials": 1}
    assert edge.objection(PI) is None
    with pytest.raises(Forged, match="the card 7 of cloud/a/pi is revoked"):
        edge.check(PI, b"said", key_of("old").sign(b"said"))
    edge.check(PI, b"said", key_of("new").sign(b"said"))
    with pytest.raises(Refused, match="revoked"):
        edge.learn(PI, card_of(PI, "old", serial=7))


def test_who_has_only_revoked_cards_is_objected_to(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    edge = identity(revoked_file=file)
    edge.learn(PI, card_of(PI, serial=7))
    revoke(file, 1, 7)
    edge.look_again()
    assert edge.objection(PI) == "the card 7 of cloud/a/pi is revoked: give it a new one"


def test_of_ever_new_cards_the_last_few_are_kept() -> None:
    edge = identity()
    for serial in range(1, MAX_CARDS + 2):
        edge.learn(PI, card_of(PI, f"k{serial}", serial=serial))
    edge.check(PI, b"said", key_of("k2").sign(b"said"))
    with pytest.raises(Forged):
        edge.check(PI, b"said", key_of("k1").sign(b"said"))


def test_old_cards_that_are_shown_once_more_do_not_put_the_newest_out() -> None:
    """Whoever kept them may show them again: the last to end stay, and of those that end together the last drawn."""
    edge = identity()
    cards = [card_of(PI, f"k{serial}", serial=serial) for serial in range(7, 8 + MAX_CARDS)]
    for card in cards:
        edge.learn(PI, card)
    assert [edge.learn(PI, card) for card in cards[:MAX_CARDS]] == [False] * MAX_CARDS
    edge.check(PI, b"said", key_of("k11").sign(b"said"))
    assert edge.learn(PI, card_of(PI, "k1", serial=1, not_after=LATER + 1)), "this one ends later"
    edge.check(PI, b"said", key_of("k1").sign(b"said"))
    edge.check(PI, b"said", key_of("k11").sign(b"said"))


def test_a_list_that_is_older_or_cannot_be_read_takes_nothing_back(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    revoke(file, 5, 7)
    edge = identity(revoked_file=file)
    revoke(file, 4)
    assert edge.look_again() is None
    file.write_text("non sense")
    trouble = edge.look_again()
    assert trouble is not None
    assert "not a list of revoked cards" in trouble["reason"]
    assert edge.look_again() is None, "told once"
    file.unlink()
    assert edge.look_again() is not None, "another trouble is told"
    with pytest.raises(Refused, match="revoked"):
        edge.learn(PI, card_of(PI, serial=7))


def test_a_list_of_another_federation_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    revoke(file, 9, 7, federation="g")
    edge = identity(revoked_file=file)
    assert edge.learn(PI, card_of(PI, serial=7))


def test_what_does_not_belong_together_is_no_identity() -> None:
    with pytest.raises(ConfigError, match="of another key"):
        Identity(card_of(PI), key_of("other"), FLEET.public)
    with pytest.raises(ConfigError, match="not signed by our fleet's key"):
        Identity(card_of(PI), key_of(PI), key_of("other").public)


def test_an_identity_is_read_from_a_bundle_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "node.card").write_text(card_of(PI) + "\n")
    (tmp_path / "node.key").write_text(key_of(PI).pem())
    (tmp_path / "fleet.pub").write_text(FLEET.public + "\n")
    revoke(tmp_path / "revoked", 1)
    files = [tmp_path / name for name in ("node.card", "node.key", "fleet.pub", "revoked")]
    found = Identity.load(*files)
    assert (found.federation, found.path, found.key, found.card) == ("f", PI, key_of(PI).public, card_of(PI))
    assert repr(found) == f"Identity(path='{PI}', key='{key_of(PI).public}')"
    files[3].write_text("nonsense")
    with pytest.raises(ConfigError, match="revoked"):
        Identity.load(*files)
