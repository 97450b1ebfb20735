"""`hfl doctor` where there is no broker: what it prints, and its exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfl_mqtt.cli import app
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.doctor.findings import Finding, Verdict, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.patient import load

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
