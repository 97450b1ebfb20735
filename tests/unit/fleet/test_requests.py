"""A device that keeps its own key asks for papers, and nobody else gets them in its name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfl_mqtt.errors import ConfigError, HflError, Malformed
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.requests import fingerprint, read_request, read_request_file, sign, write_request
from hfl_mqtt.trust.cards import read_card
from hfl_mqtt.trust.keys import PrivateKey

PI_1 = "cloud/farm-a/pi-1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "fed1")


def test_a_device_gets_papers_for_the_key_that_never_left_it(tmp_path: Path, authority: Authority) -> None:
    file = write_request("fed1", PI_1, tmp_path / "board")
    key = PrivateKey.read(tmp_path / "board" / "node.key")
    assert file.name == "pi-1.request"
    papers = sign(authority, read_request_file(file))
    card = read_card(papers.card, authority.fleet_key)
    assert (card.path, card.key, card.serial) == (PI_1, key.public, papers.serial)
    assert papers.key == ""


def test_its_files_are_for_their_owner_only_and_the_request_has_no_secret(tmp_path: Path) -> None:
    file = write_request("fed1", PI_1, tmp_path / "board")
    key_file = tmp_path / "board" / "node.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o700
    assert key_file.read_text().splitlines()[1][22:] not in file.read_text()
    assert json.loads(file.read_text()).keys() == {"federation", "path", "key", "signature"}


def test_asking_again_keeps_the_key_and_signing_again_renews_the_papers(tmp_path: Path, authority: Authority) -> None:
    first = write_request("fed1", PI_1, tmp_path / "board").read_text()
    second = write_request("fed1", PI_1, tmp_path / "board").read_text()
    assert first == second
    old, new = sign(authority, read_request(first)), sign(authority, read_request(second))
    assert old.serial != new.serial
    assert len({one.key for one in authority.issued}) == 1


def test_anothers_request_under_ones_own_name_does_not_hold(tmp_path: Path) -> None:
    body = json.loads(write_request("fed1", PI_1, tmp_path / "board").read_text())
    for change in ({"path": "cloud/farm-a/pi-2"}, {"federation": "fed2"}, {"key": PrivateKey.generate().public}):
        with pytest.raises(Malformed, match="its proof does not hold: the name or the key was changed on the way"):
            read_request(json.dumps({**body, **change}))


def test_who_has_the_name_of_another_does_not_get_its_papers(tmp_path: Path, authority: Authority) -> None:
    sign(authority, read_request_file(write_request("fed1", PI_1, tmp_path / "board")))
    thief = read_request_file(write_request("fed1", PI_1, tmp_path / "thief"))
    with pytest.raises(
        HflError, match=f"{PI_1}: has papers for another key. If this is a new board .* hfl fleet revoke"
    ):
        sign(authority, thief)
    authority.revoke(PI_1)
    assert sign(authority, thief).card


def test_one_key_is_not_two_nodes(tmp_path: Path, authority: Authority) -> None:
    sign(authority, read_request_file(write_request("fed1", PI_1, tmp_path / "board")))
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / "board" / "node.key", tmp_path / "copy")
    twin = read_request_file(write_request("fed1", "cloud/farm-a/pi-2", tmp_path / "copy"))
    with pytest.raises(HflError, match=f"pi-2: this key is that of {PI_1}; make another on the board"):
        sign(authority, twin)


@pytest.mark.parametrize("other", ["cloud/farm-a/pi-2", "cloud/farm-b/pi-1"])
def test_a_folder_is_one_devices(tmp_path: Path, other: str) -> None:
    before = write_request("fed1", PI_1, tmp_path / "board").read_text()
    with pytest.raises(ConfigError, match=rf"node\.key: is the key of {PI_1} \(pi-1\.request\).* another --out"):
        write_request("fed1", other, tmp_path / "board")
    assert [file.name for file in sorted((tmp_path / "board").iterdir())] == ["node.key", "pi-1.request"]
    assert (tmp_path / "board" / "pi-1.request").read_text() == before


def test_requests_of_other_boards_may_lie_beside_ones_own(tmp_path: Path) -> None:
    foreign = write_request("fed1", "cloud/farm-a/pi-2", tmp_path / "other")
    write_request("fed1", PI_1, tmp_path / "board")
    shutil.copy2(foreign, tmp_path / "board")
    (tmp_path / "board" / "junk.request").write_text("{}")
    assert write_request("fed1", PI_1, tmp_path / "board").name == "pi-1.request"


def test_a_fingerprint_is_half_the_sha_256_of_the_public_key_in_groups() -> None:
    # printf 'aa...aa' | xxd -r -p | sha256sum
    assert fingerprint("aa" * 32) == "e0e7 7a50 7412 b120 f6ed e61f 6229 5b1a"


def test_a_revoked_key_gets_no_papers_again(tmp_path: Path, authority: Authority) -> None:
    request = read_request_file(write_request("fed1", PI_1, tmp_path / "board"))
    sign(authority, request)
    authority.revoke(PI_1)
    with pytest.raises(HflError, match=r"this key was revoked; delete node\.key on the board and request again"):
        sign(authority, request)


def test_another_federations_device_gets_no_papers(tmp_path: Path, authority: Authority) -> None:
    request = read_request_file(write_request("fed2", PI_1, tmp_path / "board"))
    with pytest.raises(
        HflError, match="asks for papers in fed2, and this is the authority of fed1; request again with"
    ):
        sign(authority, request)


@pytest.mark.parametrize(("federation", "path"), [("fed1", "pi-1"), ("fed1", "cloud/../x"), ("a/b", PI_1), ("", "")])
def test_a_name_that_no_device_has_is_refused_on_the_board(tmp_path: Path, federation: str, path: str) -> None:
    with pytest.raises(ConfigError, match=r"is no name for a device: .* as in cloud/farm-a/pi-1"):
        write_request(federation, path, tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_a_damaged_key_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("damaged")
    with pytest.raises(ConfigError, match=r"node\.key: not an Ed25519 private key"):
        write_request("fed1", PI_1, tmp_path)
    assert (tmp_path / "node.key").read_text() == "damaged"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "federation": st.just("fed1"),
    "path": st.just(PI_1),
    "key": st.just("aa" * 32),
    "signature": st.just("A" * 86),
}


@given(st.text(max_size=300) | JUNK.map(json.dumps))
@example("[" * 2000)
@example('{"signature":' * 150)
@example("9" * 2000)
@example("\ud800")
@example(" " * 3000)
def test_junk_is_malformed_and_nothing_else(text: str) -> None:
    with pytest.raises(Malformed):
        read_request(text)


@given(st.fixed_dictionaries({name: field | JUNK for name, field in FIELDS.items()}, optional={"more": JUNK}))
@example({"federation": "fed1", "path": "cloud/\x1b[2J", "key": "aa" * 32, "signature": "A" * 86})
@example({"federation": "fed1", "path": "\ud800", "key": "aa" * 32, "signature": "A" * 86})
def test_what_is_nearly_a_request_is_malformed_and_shown_harmless(body: dict[str, object]) -> None:
    with pytest.raises(Malformed) as caught:
        read_request(json.dumps(body))
    assert str(caught.value).isprintable()


def test_a_file_that_is_no_request_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.request").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"x\.request: not a request as `hfl device request` writes it; request again"
    ):
        read_request_file(tmp_path / "x.request")


def test_a_board_needs_no_library_for_certificates() -> None:
    code = "import sys, hfl_mqtt.fleet.requests; sys.exit(str({'cryptography', 'numpy', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"
