"""Cards and the list of revoked ones: only the fleet's key makes them, in one way of writing."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfl_mqtt.errors import ConfigError, Malformed
from hfl_mqtt.protocol.limits import MAX_CARD, MAX_REVOKED, MAX_SERIALS
from hfl_mqtt.trust import cards
from hfl_mqtt.trust.cards import Card, Revoked, read_card, read_revoked, sign_card, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey

FLEET = PrivateKey(bytes(32))
STRANGER = PrivateKey(b"s" * 32)
KEY = "aa" * 32
CARD = Card(
    federation="fed1", path="cloud/farm-a/pi-1", key=KEY, serial="18446744073709551615", not_after=1_800_000_000
)
REVOKED = Revoked(federation="fed1", number=7, serials=frozenset(("10", "9")))
TEXT = sign_card(CARD, FLEET)


def signed(kind: bytes, body: bytes) -> str:
    """A text as the fleet's key would make it of any body."""
    return f"{cards.encode(body)}.{cards.encode(FLEET.sign(kind + body))}"


def test_a_card_says_whose_a_key_is() -> None:
    assert read_card(TEXT, FLEET.public) == CARD


def test_a_card_is_one_short_line_of_sorted_json_and_a_signature() -> None:
    body, _, signature = TEXT.partition(".")
    assert base64.urlsafe_b64decode(body + "==") == (
        b'{"federation":"fed1","key":"' + KEY.encode() + b'","not_after":1800000000,"path":"cloud/farm-a/pi-1",'
        b'"serial":"18446744073709551615"}'
    )
    assert len(signature) == 86


def test_the_longest_card_fits() -> None:
    longest = Card(federation="f" * 63, path="/".join(["p" * 24] * 8), key=KEY, serial="9" * 20, not_after=2**53)
    assert len(sign_card(longest, FLEET)) < MAX_CARD


def test_a_card_of_another_fleet_is_none() -> None:
    with pytest.raises(Malformed, match="this card is not signed by our fleet's key"):
        read_card(sign_card(CARD, STRANGER), FLEET.public)


def test_a_list_is_no_card_and_a_card_no_list() -> None:
    with pytest.raises(Malformed, match="this list of revoked cards is not signed"):
        read_revoked(TEXT, FLEET.public)
    with pytest.raises(Malformed, match="this card is not signed"):
        read_card(sign_revoked(REVOKED, FLEET), FLEET.public)


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("AZaz09-_.="))
def test_one_character_changed_is_another_card(at: int, character: str) -> None:
    changed = TEXT[:at] + character + TEXT[at + 1 :]
    if changed != TEXT:
        with pytest.raises(Malformed):
            read_card(changed, FLEET.public)


@pytest.mark.parametrize(
    "text", [TEXT + "=", TEXT + "\n", " " + TEXT, TEXT + ".", TEXT.replace(".", ".."), f"{TEXT}AAA="]
)
def test_the_same_content_has_one_text(text: str) -> None:
    with pytest.raises(Malformed, match=r"not a card: not body\.signature in base64url"):
        read_card(text, FLEET.public)


@pytest.mark.parametrize(
    "body",
    [
        {"path": "cloud/../x"},
        {"path": "cloud/#"},
        {"path": "_bridge/cloud/farm-a"},
        {"path": "/".join(["p" * 60] * 8)},
        {"federation": "a/b"},
        {"key": KEY.upper()},
        {"key": KEY + "\n"},
        {"serial": 5},
        {"serial": "05"},
        {"serial": "-1"},
        {"not_after": -1},
        {"not_after": "5"},
        {"not_after": 5.5},
        {"not_after": 2**60},
        {"role": "cloud"},
    ],
)
def test_what_the_fleet_itself_signs_wrongly_is_refused_too(body: dict[str, object]) -> None:
    data = json.dumps({**CARD.model_dump(), **body}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Malformed, match="not a card: "):
        read_card(signed(b"hfl-mqtt card 1\0", data), FLEET.public)


@pytest.mark.parametrize("body", [b"", b"[" * 700, b"null", b"{}", b"\xff", b'{"serial":' + b"9" * 600 + b"}"])
def test_signed_junk_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed, match="not a card: "):
        read_card(signed(b"hfl-mqtt card 1\0", body), FLEET.public)


def test_signed_json_in_another_order_is_refused() -> None:
    data = json.dumps(CARD.model_dump()).encode()
    with pytest.raises(Malformed, match="its JSON is not in order"):
        read_card(signed(b"hfl-mqtt card 1\0", data), FLEET.public)


@given(st.one_of(st.text(max_size=1200), st.text("abcAZ09-_.", max_size=1200)))
@example("." * 500)
@example("")
@example("A" * (MAX_CARD + 1))
@example("\ud800.\ud800")
def test_junk_is_malformed_and_nothing_else(text: str) -> None:
    with pytest.raises(Malformed):
        read_card(text, FLEET.public)
    with pytest.raises(Malformed):
        read_revoked(text, FLEET.public)


def test_no_date_is_judged_by_a_clock_that_is_not_set() -> None:
    assert not CARD.is_expired(now_s=0)
    assert not CARD.is_expired(now_s=1_735_689_599)
    assert not CARD.is_expired(now_s=1_800_000_000)
    assert CARD.is_expired(now_s=1_800_000_001)
    assert not CARD.model_copy(update={"not_after": 5}).is_expired(now_s=6)
    assert CARD.model_copy(update={"not_after": 5}).is_expired(now_s=1_735_689_600)


def test_a_list_says_which_serials_no_longer_count() -> None:
    revoked = read_revoked(sign_revoked(REVOKED, FLEET), FLEET.public)
    assert revoked == REVOKED
    assert "9" in revoked.serials
    assert CARD.serial not in revoked.serials


def test_a_list_is_written_in_one_order() -> None:
    body = cards.decode(sign_revoked(REVOKED, FLEET).partition(".")[0])
    assert body == b'{"federation":"fed1","number":7,"serials":["9","10"]}'
    with pytest.raises(Malformed, match="not in order"):
        read_revoked(signed(b"hfl-mqtt revoked 1\0", body.replace(b'"9","10"', b'"10","9"')), FLEET.public)
    with pytest.raises(Malformed, match="not in order"):
        read_revoked(signed(b"hfl-mqtt revoked 1\0", body.replace(b'"9","10"', b'"9","10","10"')), FLEET.public)


def test_the_longest_list_fits() -> None:
    serials = frozenset(str(2**64 - 1 - each) for each in range(MAX_SERIALS))
    longest = Revoked(federation="f" * 63, number=2**53, serials=serials)
    text = sign_revoked(longest, FLEET)
    assert len(text) < MAX_REVOKED
    assert read_revoked(text, FLEET.public) == longest


@given(st.binary(max_size=200))
def test_base64url_comes_back(data: bytes) -> None:
    text = cards.encode(data)
    assert cards.decode(text) == data
    assert base64.urlsafe_b64encode(data).decode().rstrip("=") == text


@pytest.mark.parametrize("text", ["=", "A", "AB=", "AB==", "AB", "A+==", "AA\n", "\xe9A", "AAAAA"])
def test_other_ways_to_write_the_same_bytes_are_refused(text: str) -> None:
    if text == "AB":  # its last four bits are no part of the byte
        assert base64.urlsafe_b64decode("AB==") == base64.urlsafe_b64decode("AA==")
    with pytest.raises(Malformed, match=r"^not base64url$"):
        cards.decode(text)


def test_files_are_read_with_their_name_in_what_is_wrong(tmp_path: Path) -> None:
    card, revoked = tmp_path / "node.card", tmp_path / "revoked"
    card.write_text(TEXT + "\n")
    revoked.write_text(sign_revoked(REVOKED, FLEET) + "\n")
    assert cards.read_card_file(card, FLEET.public) == (CARD, TEXT)
    assert cards.read_revoked_file(revoked, FLEET.public) == REVOKED
    with pytest.raises(
        ConfigError, match=r"node\.card: this card is not signed by our fleet's key; take it and fleet.p"
    ):
        cards.read_card_file(card, STRANGER.public)
    with pytest.raises(ConfigError, match=r"revoked: this list of revoked cards is not signed by our fleet's key"):
        cards.read_revoked_file(revoked, STRANGER.public)
