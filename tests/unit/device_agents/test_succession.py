"""A bundle's papers follow those of a board only within its fleet, and never with an older list of revoked cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.succession import succeed
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.trust.cards import Revoked, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey

FLEET, STRANGER = PrivateKey(bytes(32)), PrivateKey(b"s" * 32)


def revoked(number: int, by: PrivateKey = FLEET) -> str:
    return sign_revoked(Revoked(federation="fed1", number=number, serials=frozenset()), by) + "\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A board that trusts our fleet, with its list 7."""
    return folder(tmp_path / "old", fleet=FLEET.public, revoked=revoked(7))


def folder(path: Path, *, fleet: str | None = None, revoked: str | None = None) -> Path:
    path.mkdir()
    if fleet is not None:
        (path / "fleet.pub").write_text(fleet)
    if revoked is not None:
        (path / "revoked").write_text(revoked)
    return path


def test_a_board_that_trusts_nobody_yet_takes_any_papers(tmp_path: Path) -> None:
    new = folder(tmp_path / "new", fleet=STRANGER.public)
    assert succeed(folder(tmp_path / "bare"), new) == ""


def test_another_fleets_papers_are_refused_and_so_are_those_of_none(old: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not the one that this board trusts.*--new-fleet"):
        succeed(old, folder(tmp_path / "other", fleet=STRANGER.public))
    with pytest.raises(ConfigError, match=r"has no fleet\.pub.*--new-fleet"):
        succeed(old, folder(tmp_path / "none"))


def test_the_list_with_the_larger_number_stays(old: Path, tmp_path: Path) -> None:
    older = folder(tmp_path / "older", fleet=FLEET.public, revoked=revoked(6))
    assert succeed(old, older) == "kept list 7 of revoked cards, for the bundle's is list 6"
    assert (older / "revoked").read_text() == revoked(7)
    newer = folder(tmp_path / "newer", fleet=FLEET.public + "\n", revoked=revoked(8))
    assert succeed(old, newer) == ""
    assert (newer / "revoked").read_text() == revoked(8)


def test_a_bundle_without_a_list_leaves_that_of_the_board(old: Path, tmp_path: Path) -> None:
    new = folder(tmp_path / "new", fleet=FLEET.public)
    assert succeed(old, new) == ""
    assert not (new / "revoked").exists()


def test_a_list_that_is_not_the_fleets_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not signed by our fleet's key"):
        succeed(old, folder(tmp_path / "new", fleet=FLEET.public, revoked=revoked(9, STRANGER)))


def test_a_damaged_list_on_the_board_gives_way(old: Path, tmp_path: Path) -> None:
    (old / "revoked").write_bytes(b"\xff what an SD card gave back")
    new = folder(tmp_path / "new", fleet=FLEET.public, revoked=revoked(6))
    assert succeed(old, new) == ""
    assert (new / "revoked").read_text() == revoked(6)
