"""The broker's list of revoked certificates: a damaged one would be passed over without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.ops.doctor.crl import check_list
from hfl_mqtt.ops.doctor.findings import Verdict


@pytest.fixture
def mosquitto(tmp_path: Path) -> Path:
    folder = tmp_path / "mosquitto"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "conf.d" / "hfl.conf").write_text(f"listener 8884\ncrlfile {folder}/crl.pem\n")
    return folder


def test_a_list_as_the_fleet_writes_it_is_in_order(mosquitto: Path, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", "fed1")
    (mosquitto / "crl.pem").write_text(authority.crl_pem)
    assert check_list(mosquitto).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is damaged or empty"),
        ("-----BEGIN X509 CRL-----\nMIIB", "is damaged or empty"),
        (None, "is not there"),
    ],
)
def test_a_list_that_is_none_fails(mosquitto: Path, text: str | None, told: str) -> None:
    if text is not None:
        (mosquitto / "crl.pem").write_text(text)
    found = check_list(mosquitto)
    assert (found.verdict, told in found.text) == (Verdict.FAIL, True), found


def test_a_certificate_in_its_place_is_no_list(mosquitto: Path, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", "fed1")
    (mosquitto / "crl.pem").write_text(authority.ca_pem)
    assert "holds no list" in check_list(mosquitto).text


def test_where_no_broker_is_or_none_that_knows_certificates_there_is_nothing_to_see(tmp_path: Path) -> None:
    assert check_list(tmp_path / "none").verdict is Verdict.SKIPPED
    assert check_list(tmp_path).verdict is Verdict.SKIPPED
