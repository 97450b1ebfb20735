"""Ed25519 keys: the same to us and to OpenSSL, never shown, and never a reason to raise on junk."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.trust.keys import PrivateKey, is_public_key, is_signed_by, read_public

#: RFC 8032, section 7.1, test 1, and RFC 8410, section 10.3.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
RFC_PEM = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""
RFC_PUBLIC = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"


def test_it_signs_as_the_standard_says() -> None:
    key = PrivateKey(SEED)
    assert key.public == PUBLIC
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465514143"
        "8e7a100b"
    )


def test_a_key_is_written_as_the_standard_says_and_read_again() -> None:
    key = PrivateKey.from_pem(RFC_PEM)
    assert key.public == RFC_PUBLIC
    assert key.pem() == RFC_PEM


def test_openssl_reads_our_keys_and_we_read_its(tmp_path: Path) -> None:
    ours, its = tmp_path / "ours", tmp_path / "its"
    ours.write_text(PrivateKey(SEED).pem())
    shown = subprocess.run(
        ["openssl", "pkey", "-in", str(ours), "-pubout", "-outform", "DER"],  # noqa: S607
        check=True,
        capture_output=True,
    )
    assert shown.stdout[-32:].hex() == PUBLIC
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(its)]
    subprocess.run(made, check=True, capture_output=True)
    assert PrivateKey.read(its).pem() == its.read_text()


def test_what_one_key_signed_no_other_did_and_nothing_else_is_signed() -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    signature = key.sign(b"update 7")
    assert is_signed_by(key.public, b"update 7", signature)
    assert not is_signed_by(other.public, b"update 7", signature)
    assert not is_signed_by(key.public, b"update 8", signature)
    assert not is_signed_by(key.public, b"update 7", bytes([signature[0] ^ 1]) + signature[1:])


def test_a_private_key_shows_itself_to_nobody() -> None:
    key = PrivateKey(SEED)
    shown = f"{key} {key!r} {[key]} {vars(PrivateKey)}"
    assert repr(key) == f"PrivateKey(public='{PUBLIC}')"
    assert SEED.hex() not in shown
    assert repr(SEED)[2:-1] not in shown
    with pytest.raises(TypeError):
        vars(key)  # slots: nothing that prints what an object holds finds it


@given(st.text(max_size=200), st.binary(max_size=100), st.binary(max_size=100))
@example(PUBLIC, b"", b"")
@example(PUBLIC.upper(), b"", bytes(64))
@example("00" * 32, b"", bytes(64))
@example("ff" * 32, b"", bytes(64))
@example("01" + "00" * 31, b"", b"\x01" + bytes(63))
def test_junk_signed_nothing_and_raises_nothing(public: str, statement: bytes, signature: bytes) -> None:
    assert not is_signed_by(public, statement, signature)


@given(
    st.one_of(st.text(max_size=300), st.text("ABCabc+/= \n", max_size=100).map(RFC_PEM.replace("MC4CAQ", "{}").format))
)
@example(RFC_PEM.replace("MC4CAQ", "MC4CAB"))
@example(RFC_PEM + "more")
@example(RFC_PEM.replace("PRIVATE", "PUBLIC"))
@example(RFC_PEM.replace("\n", ""))
def test_what_is_no_key_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^not an Ed25519 private key in PKCS8 PEM$"):
        PrivateKey.from_pem(text)


def test_lines_may_end_as_they_do_elsewhere() -> None:
    assert PrivateKey.from_pem(RFC_PEM.replace("\n", "\r\n")).public == RFC_PUBLIC


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path)]
    subprocess.run(made, check=True, capture_output=True)
    with pytest.raises(
        ConfigError, match=r"node\.key: not an Ed25519 private key in PKCS8 PEM; make one with `hfl device"
    ):
        PrivateKey.read(path)


def test_a_public_key_is_64_small_hex_digits(tmp_path: Path) -> None:
    assert is_public_key(PUBLIC)
    assert not is_public_key(PUBLIC.upper())
    assert not is_public_key(PUBLIC + "\n")
    path = tmp_path / "fleet.pub"
    path.write_text(PUBLIC + "\n")
    assert read_public(path) == PUBLIC
    path.write_text(PUBLIC[:-1])
    with pytest.raises(ConfigError, match=r"fleet\.pub: a public key is 64 hex digits; take it from the fleet's"):
        read_public(path)


def test_a_file_that_is_not_there_not_text_or_endless_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone: cannot be read: No such file"):
        read_public(tmp_path / "gone")
    (tmp_path / "x").write_bytes(b"\xff" * 10)
    with pytest.raises(ConfigError, match="x: is not the file that it is called"):
        read_public(tmp_path / "x")
    with pytest.raises(ConfigError, match="zero: is not the file that it is called"):
        read_public(Path("/dev/zero"))
