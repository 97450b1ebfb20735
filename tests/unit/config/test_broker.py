"""The sections `broker.tls` and `identity`: what is wrong with a file is said at its line, before anything connects."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import ValidationError

from hfl_mqtt.config.broker import BrokerConfig
from hfl_mqtt.config.models import ClientConfig, CloudConfig, EdgeConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport.link import TlsFiles
from tests.broker.certificates import HOSTS, Authority, Pair


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fleet(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture
def node(folder: Path, fleet: Authority) -> Pair:
    pair = fleet.issue("node")
    (folder / "node.card").write_text("a card")
    (folder / "fleet.pub").write_text("0" * 64)
    return pair


EDGE = """\
role: edge
federation: fed
name: cloud/farm-a
broker:
  host: farm-a.local
  tls:
    ca_file: ca.crt
    cert_file: node.crt
    key_file: node.key
identity:
  card_file: node.card
  key_file: node.key
  fleet_key_file: fleet.pub
"""


def edge(text: str = EDGE) -> EdgeConfig:
    Path("agent.yaml").write_text(text)
    return load_role(Path("agent.yaml"), EdgeConfig)


def mistake(text: str = EDGE) -> str:
    with pytest.raises(ConfigError) as raised:
        edge(text)
    return str(raised.value)


def test_paths_start_at_the_file_and_an_account_brings_them_along(folder: Path, node: Pair) -> None:
    config = edge()
    files = TlsFiles(ca=folder / "ca.crt", certificate=folder / "node.crt", key=folder / "node.key")
    assert config.account().tls == files
    assert config.identity is not None
    assert config.identity.at("cloud/farm-a").card_file == folder / "node.card"


@pytest.mark.parametrize(
    ("tls", "port"),
    [
        ("", 1883),
        ("tls: {ca_file: ca.crt}", 8883),
        ("tls: {ca_file: ca.crt, cert_file: node.crt, key_file: node.key}", 8884),
        ("tls: {ca_file: ca.crt}\n  port: 9999", 9999),
    ],
)
def test_the_port_is_the_usual_one_for_what_is_spoken(tls: str, port: int, node: Pair) -> None:
    head = EDGE.partition("  tls:")[0]
    assert edge(f"{head}  {tls}\n").account().port == port


def test_a_missing_file_is_told_at_its_line(folder: Path, node: Pair) -> None:
    node.key.unlink()
    (folder / "node.card").unlink()
    assert mistake() == (
        f"agent.yaml:9:15 broker.tls.key_file: no such file: {node.key}\n"
        f"agent.yaml:11:14 identity.card_file: no such file: {folder / 'node.card'}\n"
        f"agent.yaml:12:13 identity.key_file: no such file: {node.key}"
    )


def test_a_key_that_everybody_can_read_is_refused(node: Pair) -> None:
    node.key.chmod(0o644)
    told = f"{node.key} can be read by everybody on this machine, and is a private key: chmod o= {node.key}"
    assert mistake() == f"agent.yaml:9:15 broker.tls.key_file: {told}\nagent.yaml:12:13 identity.key_file: {told}"
    node.key.chmod(0o640)  # root's, for the agent's group
    edge()


def test_a_key_must_be_the_certificates(fleet: Authority, node: Pair) -> None:
    node.key.write_bytes(fleet.issue("cloud/b").key.read_bytes())
    assert mistake() == (
        f"agent.yaml:9:15 broker.tls.key_file: {node.key} is not the key of {node.certificate}: "
        "lay both down again, as one pair"
    )


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("ca.crt", b"\x30\x82 not text", "agent.yaml:7:14 broker.tls.ca_file: {} is not a certificate in PEM"),
        ("ca.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n", "broker.tls.ca_file: {} is not a certificate in PEM"),
        ("node.crt", b"", "agent.yaml:8:16 broker.tls.cert_file: {} is not a certificate in PEM: it has no line BEGIN"),
        ("node.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n", "broker.tls.cert_file: {} and"),
        ("node.key", b"secret", "agent.yaml:9:15 broker.tls.key_file: {} is not a private key in PEM"),
        ("node.key", b"-----BEGIN ENCRYPTED PRIVATE KEY-----", "{} is locked with a passphrase, which nobody"),
        ("node.key", b"-----BEGIN PRIVATE KEY-----" + b"x" * 1_000_000, "{} is larger than any certificate or key"),
    ],
)
def test_what_is_no_paper_is_told_and_quoted_nowhere(
    name: str, text: bytes, told: str, folder: Path, node: Pair
) -> None:
    (folder / name).write_bytes(text)
    said = mistake()
    assert told.format(folder / name) in said
    assert "AAAA" not in said


def test_an_authority_is_no_nodes_certificate(folder: Path, node: Pair) -> None:
    (folder / "ca.crt").write_bytes(node.certificate.read_bytes())
    assert "ca.crt is nobody's authority, but a certificate of one node: name the fleet's ca.crt" in mistake()


def test_a_certificate_and_its_key_go_together(node: Pair) -> None:
    assert mistake(EDGE.replace("    cert_file: node.crt\n", "")).startswith(
        "agent.yaml:8:15 broker.tls.key_file: stands without cert_file"
    )


def test_a_section_without_an_authority_trusts_nobody(node: Pair) -> None:
    assert "broker.tls.ca_file: is missing" in mistake(EDGE.replace("    ca_file: ca.crt\n", ""))


def test_there_is_no_way_around_checking(node: Pair) -> None:
    assert "broker.tls.insecure: is not a key here" in mistake(
        EDGE.replace("    ca_file: ca.crt\n", "    ca_file: ca.crt\n    insecure: true\n")
    )


CLIENTS = """\
role: client
federation: fed
task: {name: mnist}
broker:
  host: 10.0.0.1
  tls:
    ca_file: ca.crt
    cert_file: papers/{name}.crt
    key_file: papers/{name}.key
clients:
  - name: cloud/farm-a/pi-{1..3}
"""


def clients() -> ClientConfig:
    Path("clients.yaml").write_text(CLIENTS)
    return load_role(Path("clients.yaml"), ClientConfig)


def test_each_client_of_a_process_has_its_own_papers(folder: Path, fleet: Authority) -> None:
    papers = Authority(folder / "papers")
    (folder / "ca.crt").write_bytes(papers.certificate.read_bytes())
    for number in (1, 2, 3):
        papers.issue(f"pi-{number}")
    config = clients()
    accounts = [config.account(device) for device in config.devices]
    assert [(one.user, one.port, one.tls and one.tls.certificate) for one in accounts] == [
        (f"cloud/farm-a/pi-{number}", 8884, folder / "papers" / f"pi-{number}.crt") for number in (1, 2, 3)
    ]
    (folder / "papers" / "pi-2.key").unlink()
    with pytest.raises(ConfigError) as raised:
        clients()
    assert str(raised.value) == (
        f"clients.yaml:9:15 broker.tls.key_file: for cloud/farm-a/pi-2: no such file: {folder}/papers/pi-2.key"
    )


def test_papers_are_judged_without_a_file_too(folder: Path, fleet: Authority) -> None:
    pair = fleet.issue("broker", hosts=HOSTS)
    good = {"ca_file": fleet.certificate, "cert_file": pair.certificate, "key_file": pair.key}
    assert BrokerConfig.model_validate({"host": "h", "tls": good}).port == 8884
    with pytest.raises(ValidationError, match="no such file"):
        BrokerConfig.model_validate({"host": "h", "tls": {"ca_file": folder / "none"}})


CLOUD = """\
role: cloud
federation: fed
broker: {host: h}
task: {name: mnist}
rounds: 1
"""


def cloud(limits: str) -> CloudConfig:
    Path("cloud.yaml").write_text(CLOUD + dedent(limits))
    return load_role(Path("cloud.yaml"), CloudConfig)


def test_limits_give_what_the_file_says_and_nothing_else() -> None:
    assert cloud("").limits.given() == {}
    given = cloud("limits: {quarantine: 1 min, strikes: 3, max_norm_ratio: off, max_weight_ratio: 50}").limits.given()
    off = float("inf")
    assert given == {"quarantine_s": 60.0, "strikes": 3, "max_norm_ratio": off, "max_weight_ratio": 50.0}


def test_quarantines_grow() -> None:
    with pytest.raises(ConfigError, match=r"6:43 limits.max_quarantine: is shorter than the first one"):
        cloud("limits: {quarantine: 1 h, max_quarantine: 1 min}")
