"""`hfl doctor` and TLS: what is wrong with a certificate, the broker's or our own, is told with its date and name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hfl_mqtt.ops.doctor.examine import examine
from hfl_mqtt.ops.doctor.findings import Finding, Verdict
from hfl_mqtt.ops.doctor.patient import load
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from tests.broker.certificates import HOSTS, PAST, Authority, Pair

pytestmark = pytest.mark.broker

Start = Callable[..., Mosquitto]


class Home:
    """An authority, and a broker with a listener for its certificates."""

    def __init__(self, folder: Path, start_broker: Start) -> None:
        self.folder, self._start = folder, start_broker
        self.fleet = Authority(folder / "fleet")
        self.port = free_port()

    def serve(self, broker: Pair | None = None) -> None:
        self._start(*self.fleet.listener(self.port, broker or self.fleet.issue("broker cloud/a", hosts=HOSTS)))

    def examine(
        self, own: Pair | None, *, ca: Path | None = None, identity: dict[str, str] | None = None, **tls: str
    ) -> dict[str, Finding]:
        """Examine the device cloud/a, with these papers."""
        pair = {"cert_file": str(own.certificate), "key_file": str(own.key)} if own is not None else {}
        document = {
            "role": "client",
            "federation": "fed1",
            "name": "cloud/a",
            "broker": {
                "host": "127.0.0.1",
                "port": self.port,
                "tls": {"ca_file": str(ca or self.fleet.certificate), **pair, **tls},
            },
            "task": {"name": "soil-moisture"},
            "state_dir": str(self.folder / "state"),
            **({"identity": identity} if identity is not None else {}),
        }
        path = self.folder / "agent.yaml"
        path.write_text(yaml.safe_dump(document))
        return {each.name: each for each in examine(load(path), path, is_quick=True)}


@pytest.fixture
def home(tmp_path: Path, start_broker: Start) -> Home:
    return Home(tmp_path, start_broker)


def verdicts(found: dict[str, Finding], *names: str) -> list[str]:
    return [found[name].verdict.value for name in names]


def test_papers_in_order_are_told_with_the_days_that_they_have_left(home: Home) -> None:
    home.serve()
    found = home.examine(home.fleet.issue("cloud/a"))
    assert [name for name, each in found.items() if each.verdict is Verdict.FAIL] == []
    assert found["TLS handshake"].text.startswith("TLSv1.3 after ")
    assert found["certificate"].text.startswith("cloud/a's until 2099-01-01, ")
    assert "broker cloud/a, for localhost, 127.0.0.1, until 2099-01-01" in found["broker's certificate"].text
    assert found["account"].verdict is Verdict.OK
    assert found["secrets"].text == "cloud.a.key is shut to other users"


def test_a_broker_whose_certificate_has_expired_is_told_with_the_day(home: Home) -> None:
    home.serve(home.fleet.issue("broker cloud/a", hosts=HOSTS, not_after=PAST))
    found = home.examine(home.fleet.issue("cloud/a"))
    assert verdicts(found, "certificate", "TLS handshake", "broker's certificate") == ["ok", "fail", "fail"]
    assert "has expired" in found["TLS handshake"].text
    assert found["broker's certificate"].text.endswith("has expired on 2001-01-01")
    assert "account" not in found


def test_a_certificate_for_another_host_shows_the_names_that_it_has(home: Home) -> None:
    home.serve()
    found = home.examine(home.fleet.issue("cloud/a"), server_name="farm-b.local")
    assert found["TLS handshake"].text.endswith("its certificate is not for 'farm-b.local'")
    assert "server_name" in found["TLS handshake"].remedy
    assert "for localhost, 127.0.0.1," in found["broker's certificate"].text


def test_who_is_revoked_hears_it_from_the_broker(home: Home) -> None:
    own = home.fleet.issue("cloud/a")
    home.fleet.revoke(own)
    home.serve()
    found = home.examine(own)
    assert verdicts(found, "certificate", "TLS handshake") == ["ok", "fail"]
    assert "revoked" in found["TLS handshake"].text


def test_an_own_certificate_that_has_expired_is_seen_without_any_broker(home: Home) -> None:
    found = home.examine(home.fleet.issue("cloud/a", not_after=PAST))
    assert found["certificate"].text == "cloud/a's has expired on 2001-01-01"
    assert "hfl fleet rotate" in found["certificate"].remedy
    assert verdicts(found, "reach") == ["fail"]


def test_anothers_certificate_would_open_anothers_account(home: Home) -> None:
    home.serve()
    found = home.examine(home.fleet.issue("cloud/b"))
    assert found["certificate"].verdict is Verdict.FAIL
    assert found["certificate"].text == "it is cloud/b's, this node is cloud/a"


def test_papers_of_two_fleets_do_not_go_together(home: Home, tmp_path: Path) -> None:
    home.serve()
    stranger = Authority(tmp_path / "other", "other")
    found = home.examine(stranger.issue("cloud/a"))
    assert found["certificate"].verdict is Verdict.FAIL
    assert "ca.crt and it must be of one fleet" in found["certificate"].remedy
    found = home.examine(home.fleet.issue("cloud/a"), ca=stranger.certificate)
    assert found["TLS handshake"].verdict is Verdict.FAIL
    assert "not from the authority" in found["TLS handshake"].text
    assert found["broker's certificate"].verdict is Verdict.SKIPPED


def test_a_broker_that_asks_for_a_certificate_says_so(home: Home) -> None:
    home.serve()
    found = home.examine(None)
    assert verdicts(found, "certificate", "TLS handshake") == ["skipped", "fail"]
    assert "asks for a certificate" in found["TLS handshake"].text


def test_without_its_key_a_board_shows_nothing_to_the_broker_and_sees_that_it_is_there(home: Home) -> None:
    home.serve()
    own = home.fleet.issue("cloud/a")
    own.key.unlink()
    found = home.examine(own)
    assert verdicts(found, "tls key_file", "name", "reach") == ["fail", "ok", "ok"]
    assert found["tls key_file"].text == f"no such file: {own.key}"
    assert verdicts(found, "certificate", "TLS handshake", "broker") == ["skipped", "skipped", "skipped"]
    assert found["TLS handshake"].text == "not tried, for key_file failed"


def test_without_its_card_a_board_is_let_in_and_all_but_signatures_is_examined(home: Home, tmp_path: Path) -> None:
    home.serve()
    own = home.fleet.issue("cloud/a")
    files = {"card_file": tmp_path / "node.card", "key_file": own.key, "fleet_key_file": tmp_path / "fleet.pub"}
    found = home.examine(own, identity={key: str(path) for key, path in files.items()})
    assert verdicts(found, "identity", "certificate", "TLS handshake", "account") == ["fail", "ok", "ok", "ok"]
    assert "fleet.pub" in found["identity"].text
    assert found["packet limit"].verdict is Verdict.OK


def test_a_plain_port_is_no_tls(home: Home, start_broker: Start) -> None:
    home.port = start_broker().port
    found = home.examine(home.fleet.issue("cloud/a"))
    assert found["TLS handshake"].verdict is Verdict.FAIL
