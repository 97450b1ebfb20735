"""The name of a session can only be known to who has the account's secret, and is the same at each start."""

from pathlib import Path

from hfl_mqtt.transport.link import Account, TlsFiles

PI = "cloud/farm-a/pi-1"


def with_password(password: str | None, user: str = PI) -> Account:
    return Account(host="farm", port=1883, user=user, password=password)


def with_key(key: Path) -> Account:
    return Account(host="farm", port=8884, user=PI, tls=TlsFiles(ca=key, certificate=key, key=key))


def test_it_begins_with_the_nodes_own_name_and_ends_with_what_its_password_makes_of_it() -> None:
    name = with_password("secret").session(PI)
    assert name.startswith(f"{PI}~")
    assert len(name) == len(PI) + 1 + 16
    assert with_password("secret").session(PI) == name
    assert with_password("another").session(PI) != name
    assert with_password("secret").session("cloud/farm-a@b") != name


def test_who_shows_a_certificate_is_named_by_its_key(tmp_path: Path) -> None:
    mine, yours = tmp_path / "mine.key", tmp_path / "yours.key"
    mine.write_bytes(b"one key")
    yours.write_bytes(b"another")
    assert with_key(mine).session(PI) != with_key(yours).session(PI)
    assert with_key(mine).session(PI) != PI


def test_who_has_no_secret_has_a_name_that_is_no_secret(tmp_path: Path) -> None:
    assert with_password(None).session(PI) == PI
    assert with_key(tmp_path / "gone.key").session(PI) == PI
