"""`hfl doctor` where there is no broker: what it prints, and its exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfl_mqtt.cli import app
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet.rehearsal import Rehearsal
from hfl_mqtt.ops.doctor.findings import Finding, Verdict, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.patient import load
from tests.broker.certificates import Authority

YAML = """
role: client
federation: fed1
clients:
  - {name: cloud/a/pi-1, password_file: one}
  - {name: cloud/a/pi-2, password_file: two}
broker: {host: 127.0.0.1, port: PORT}
task: {name: soil-moisture}
state_dir: state
"""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is ours and at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path, closed_port: int) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).write_text("secret\n")
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "agent.yaml"
    path.write_text(YAML.replace("PORT", str(closed_port)))
    return path


def test_a_broker_that_is_not_there_fails_and_what_builds_on_it_is_skipped(config: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--config", str(config), "--quick", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert (report["node"], report["role"], report["is_fit"]) == ("cloud/a/pi-1", "client", False)
    found = {each["name"]: each for each in report["findings"]}
    assert found["reach"]["verdict"] == "fail"
    assert "start Mosquitto" in found["reach"]["remedy"]
    assert found["broker"]["verdict"] == "skipped"
    assert found["training"]["verdict"] == "skipped"
    assert found["secrets"]["text"] == "one is shut to other users"


def test_for_people_it_is_a_table_with_the_remedy_below_each_finding(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, ["doctor", "--config", str(config), "--quick", "--name", "cloud/a/pi-2"])
    assert result.exit_code == 1
    assert "client cloud/a/pi-2 at 127.0.0.1:" in result.output
    assert "-> start Mosquitto there" in result.output
    assert "1 fail" in result.output


def test_a_password_that_is_missing_is_a_finding_and_no_crash(config: Path) -> None:
    (config.parent / "one").unlink()
    result = CliRunner().invoke(app, ["doctor", "--config", str(config), "--quick", "--json"])
    assert result.exit_code == 1
    found = {each["name"]: each for each in json.loads(result.output)["findings"]}
    assert found["account"]["verdict"] == "fail"
    assert "cannot be read" in found["account"]["text"]


def test_it_examines_nodes_and_no_other_file(tmp_path: Path, config: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("role: site\nfederation: fed1\ncloud: {}\n")
    with pytest.raises(ConfigError, match="a client, an edge or the cloud"):
        load(site)
    with pytest.raises(ConfigError, match="no client cloud/a/pi-9; its first is cloud/a/pi-1"):
        load(config, "cloud/a/pi-9")


def test_a_topic_of_its_corner_is_below_its_own_channel_and_one_level_too_deep_for_any_ear(config: Path) -> None:
    from hfl_mqtt.protocol.topics import Channel, aggregator_filters, participant_filters
    from hfl_mqtt.transport.matching import matches

    patient = load(config)
    assert patient.corner(Channel.UP, "try") == "hflb/fed1/cloud/a/pi-1/@/up/doctor/try"
    ears = [*aggregator_filters("fed1", "cloud/a"), *participant_filters("fed1", patient.name)]
    for channel in Channel:
        assert not [ear for ear in ears if matches(ear.topic, patient.corner(channel, "try"))]


def test_findings_say_how_bad_they_are() -> None:
    assert [each.verdict for each in (ok("a", "b"), warn("a", "b", "c"), fail("a", "b", "c"), skipped("a", "b"))] == [
        Verdict.OK,
        Verdict.WARN,
        Verdict.FAIL,
        Verdict.SKIPPED,
    ]
    assert warn("a", "b", "c") == Finding(name="a", verdict=Verdict.WARN, text="b", remedy="c")


EDGE = """
role: edge
federation: fed1
name: cloud/farm-a
broker:
  host: 127.0.0.1
  port: PORT
  tls: {ca_file: ca.crt, cert_file: node.crt, key_file: node.key}
identity: {card_file: node.card, key_file: node.key, fleet_key_file: fleet.pub, revoked_file: revoked}
state_dir: state
"""


@pytest.fixture
def locked(tmp_path: Path, closed_port: int) -> Path:
    """The folder of an edge whose papers are all in order."""
    Rehearsal(tmp_path / "authority", "fed1").to_node("cloud/farm-a", tmp_path)
    (tmp_path / "agent.yaml").write_text(EDGE.replace("PORT", str(closed_port)))
    return tmp_path


def report(folder: Path) -> dict[str, dict[str, str]]:
    """Examine, see that it has failed as other failures do, and return the findings by name."""
    result = CliRunner().invoke(app, ["doctor", "--config", str(folder / "agent.yaml"), "--quick", "--json"])
    assert result.exit_code == 1, result.output
    document = json.loads(result.output)
    assert document["is_fit"] is False
    return {each["name"]: each for each in document["findings"]}


def gone(path: Path) -> None:
    path.unlink()


def unreadable(path: Path) -> None:
    """Put a folder in its place: this no user can read, root neither."""
    path.unlink()
    path.mkdir()


def no_pem(path: Path) -> None:
    path.write_bytes(b"no paper")


def of_another(path: Path) -> None:
    path.write_bytes(Authority(path.parent / "other", "other").issue("node").key.read_bytes())


@pytest.mark.parametrize(
    ("name", "harm", "row", "told"),
    [
        ("ca.crt", gone, "tls ca_file", "no such file: {}"),
        ("ca.crt", unreadable, "tls ca_file", "{} cannot be read: Is a directory"),
        ("ca.crt", no_pem, "tls ca_file", "{} is not a certificate in PEM: name the fleet's ca.crt"),
        ("node.crt", gone, "tls cert_file", "no such file: {}"),
        ("node.crt", unreadable, "tls cert_file", "{} cannot be read: Is a directory"),
        ("node.crt", no_pem, "tls cert_file", "{} is not a certificate in PEM: it has no line BEGIN CERTIFICATE"),
        ("node.key", gone, "tls key_file", "no such file: {}"),
        ("node.key", no_pem, "tls key_file", "{} is not a private key in PEM: it has no line BEGIN PRIVATE KEY"),
        ("node.key", of_another, "tls key_file", "{} is not the key of"),
    ],
)
def test_a_broken_paper_is_a_finding_and_all_that_does_not_need_it_is_still_examined(
    name: str, harm: Callable[[Path], None], row: str, told: str, locked: Path
) -> None:
    harm(locked / name)
    found = report(locked)
    assert found[row]["verdict"] == "fail"
    assert found[row]["text"].startswith(told.format(locked / name))
    assert found[row]["remedy"]
    assert {"clock", "disk", "memory", "name", "reach"} < found.keys()
    assert found["name"]["verdict"] == "ok"
    assert found["broker"]["verdict"] == "skipped"


def test_a_broken_paper_is_told_in_the_table_with_its_remedy(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    (locked / "node.crt").unlink()
    result = CliRunner().invoke(app, ["doctor", "--config", str(locked / "agent.yaml"), "--quick"])
    assert result.exit_code == 1
    rows = [line.split() for line in result.output.splitlines()]
    assert ["tls", "cert_file", "fail", "no", "such", "file:", str(locked / "node.crt")] in rows
    assert "-> copy the bundle of this node here again" in result.output


@pytest.mark.parametrize(
    ("name", "row"), [("node.card", "identity"), ("fleet.pub", "identity"), ("revoked", "revocations")]
)
@pytest.mark.parametrize("harm", [gone, unreadable, no_pem])
def test_a_broken_card_is_a_finding_and_the_certificate_is_still_looked_at(
    name: str, row: str, harm: Callable[[Path], None], locked: Path
) -> None:
    harm(locked / name)
    found = report(locked)
    assert found[row]["verdict"] == "fail"
    assert str(locked / name) in found[row]["text"]
    assert found[row]["remedy"]
    assert found["certificate"]["text"].startswith("cloud/farm-a's until ")


def test_what_is_wrong_in_the_yaml_itself_is_still_told_at_its_line_and_nothing_is_examined(locked: Path) -> None:
    (locked / "node.crt").unlink()
    path = locked / "agent.yaml"
    path.write_text(path.read_text().replace(", cert_file: node.crt", "").replace("state_dir", "stat_dir"))
    result = CliRunner().invoke(app, ["doctor", "--config", str(path), "--quick"])
    assert isinstance(result.exception, ConfigError)
    assert [line.partition(":")[2] for line in str(result.exception).splitlines()] == [
        "8:36 broker.tls.key_file: stands without cert_file: a certificate and its key go together",
        "10:1 stat_dir: is not a key here, did you mean 'state_dir'?",
    ]


def test_broken_papers_of_another_home_fail_too_for_the_agent_does_not_start_with_them(config: Path) -> None:
    text = config.read_text().replace("clients:", "name: cloud/a/pi-1")
    text = "".join(line for line in text.splitlines(keepends=True) if "{name:" not in line or "task" in line)
    config.write_text(text + "homes: [{name: cloud/b/pi-1, broker: {host: b, tls: {ca_file: gone.crt}}}]\n")
    found = report(config.parent)["papers of cloud/b/pi-1"]
    assert found["verdict"] == "fail"
    assert found["text"] == f"ca_file: no such file: {config.parent / 'gone.crt'}"
    assert found["remedy"] == "copy the bundle of cloud/b/pi-1 here again; hfl fleet render makes it"


def test_broken_papers_of_another_client_of_the_process_fail_too(config: Path, tmp_path: Path) -> None:
    papers = Authority(tmp_path / "papers")
    papers.issue("pi-1")
    papers.issue("pi-2").key.unlink()
    tls = "tls: {ca_file: papers/ca.crt, cert_file: 'papers/{name}.crt', key_file: 'papers/{name}.key'}"
    config.write_text(config.read_text().replace("host: 127.0.0.1", f"host: 127.0.0.1, {tls}"))
    found = report(config.parent)
    assert "tls key_file" not in found
    assert found["papers of cloud/a/pi-2"]["text"] == f"key_file: no such file: {tmp_path / 'papers' / 'pi-2.key'}"
