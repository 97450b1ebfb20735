"""`hfl doctor` at real brokers: it finds what is wrong, and disturbs nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfl_mqtt.ops.brokers import secret_path
from hfl_mqtt.ops.doctor.examine import examine
from hfl_mqtt.ops.doctor.findings import Finding, Verdict
from hfl_mqtt.ops.doctor.patient import load
from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.messages import State, StateName
from hfl_mqtt.protocol.topics import bridge_state
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.transport.link import Up
from tests.broker.processes import hfl
from tests.broker.sites import WITNESS, RunningSite, running_site

pytestmark = pytest.mark.broker

TASK = {"task": {"name": "soil-moisture"}, "data": {"station": "03047"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    with running_site(tmp_path_factory.mktemp("site"), farm_a=["pi-1", "pi-2"]) as one:
        yield one


def written(site: RunningSite, role: str, name: str, **more: Any) -> Path:
    """Write the YAML of a node of the site."""
    broker = "farm-a" if name.startswith("cloud/farm-a") else "cloud"
    document = {
        "role": role,
        "federation": "fed1",
        "name": name,
        "broker": {
            "host": "127.0.0.1",
            "port": site.ports[broker],
            "password_file": str(secret_path(site.directory, name)),
        },
        "state_dir": str(site.directory / "state" / name.replace("/", "-")),
        **more,
    }
    path = site.directory / f"{name.replace('/', '-')}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


PART = "packet of a part's size"


def findings(config: Path, *, is_quick: bool = True, until: str = "") -> dict[str, Finding]:
    """Examine a node; no further than this check, where one is named."""
    found = {}
    for each in examine(load(config), config, is_quick=is_quick):
        found[each.name] = each
        if each.name == until:
            break
    return found


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, each in found.items() if each.verdict is Verdict.FAIL]


def test_a_device_in_order_passes_with_its_packet_and_its_step(site: RunningSite) -> None:
    state = encode(State(state=StateName.READY, boot=1), "fed1", "cloud/farm-a")
    site.person("farm-a", "cloud/farm-a").ready().say(state.topic, state.payload, retain=True)
    found = findings(written(site, "client", "cloud/farm-a/pi-1", **TASK), is_quick=False)
    assert failed(found) == []
    assert found["parent"].text == "cloud/farm-a is ready"
    assert found["write another's update"].text == "refused, as it must be"
    assert found["read own update"].text == "nothing came, as it must be"
    assert re.match(r"266 kB acknowledged after .* Mbit/s", found[PART].text)
    assert "a step of 32" in found["training step"].text


def test_an_edge_sees_its_bridge_up_and_gets_an_echo_through_both_connections(site: RunningSite) -> None:
    found = findings(written(site, "edge", "cloud/farm-a"))
    assert failed(found) == []
    assert found["bridge"].text == "up, says the broker"
    assert found["bridge, both ways"].verdict is Verdict.OK
    assert found["write a child's command"].verdict is Verdict.OK
    assert found["write a child's update"].verdict is Verdict.OK


def test_the_cloud_passes_on_the_command_line_too(site: RunningSite) -> None:
    state = encode(State(state=StateName.LOST, boot=1), "fed1", "cloud/farm-a")
    site.person("farm-a", "cloud/farm-a").ready().say(state.topic, state.payload, retain=True)
    site.person("cloud", WITNESS, state.topic).ready().hear(state.topic, state.payload)
    config = written(site, "cloud", "cloud", rounds=2, task=TASK["task"])
    done = hfl("doctor", "--config", config, "--quick", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["children"]["text"] == "0 of 1 are there; lost or ended: cloud/farm-a"
    assert found["children"]["verdict"] == "warn"


def test_nothing_of_it_stays_at_any_broker_or_reaches_a_node(site: RunningSite) -> None:
    edge = site.person("farm-a", "cloud/farm-a", "hfl/fed1/cloud/farm-a/+/@/tele/+", "hflb/fed1/+/+/+/@/up/+").ready()
    findings(written(site, "client", "cloud/farm-a/pi-1", **TASK), is_quick=False, until=PART)
    findings(written(site, "edge", "cloud/farm-a"), is_quick=False, until=PART)
    for broker in ("cloud", "farm-a"):
        late = site.person(broker, WITNESS, "hfl/#", "hflb/#").ready()
        late.say("hfl/fed1/last", "word")
        assert not [each.topic for each in late.hear("hfl/fed1/last", "word") if "doctor" in each.topic]
    assert edge.heard.empty()


def test_an_agent_under_the_same_account_keeps_its_connection_and_its_session(
    site: RunningSite, connect: Callable[..., Any]
) -> None:
    name, topic = "cloud/farm-a/pi-1", "hfl/fed1/cloud/farm-a/pi-1/@/cmnd/receipt"
    agent, inbox = connect(site.ports["farm-a"], name, (topic, 1), password=site.password(name))
    inbox.next(Up)
    assert failed(findings(written(site, "client", name, **TASK))) == []
    site.person("farm-a", "cloud/farm-a").ready().say(topic, "for pi-1")
    assert agent.maximum_packet_size == 1_000_000
    assert inbox._events.get(timeout=15).frame.payload == b"for pi-1"  # and no Down before it


def test_a_bridge_that_is_down_fails_and_comes_back(site: RunningSite) -> None:
    config = written(site, "edge", "cloud/farm-a")
    site.brokers["cloud"].stop()
    state = bridge_state("cloud/farm-a")
    site.person("farm-a", "cloud/farm-a", state).ready().hear(state, "0")
    found = findings(config)
    assert failed(found) == ["bridge"]
    assert "journalctl" in found["bridge"].remedy
    assert found["bridge, both ways"].verdict is Verdict.WARN
    site.brokers["cloud"].start()
    site.wait_for_bridge("farm-a")
    assert failed(findings(config)) == []


def test_a_wrong_password_is_told_by_the_account(site: RunningSite) -> None:
    config = written(site, "client", "cloud/farm-a/pi-1", **TASK)
    wrong = site.directory / "wrong"
    wrong.write_text("not it\n")
    wrong.chmod(0o600)
    document = yaml.safe_load(config.read_text())
    document["broker"]["password_file"] = str(wrong)
    config.write_text(yaml.safe_dump(document))
    found = findings(config)
    assert failed(found) == ["account"]
    assert "Not authorized" in found["account"].text
    assert "password file" in found["account"].remedy


def lax(site: RunningSite, tmp_path: Path, port: int, *lines: str) -> Iterator[Path]:
    """Run a broker that someone wrote by hand, and give the YAML of a device there."""
    conf = tmp_path / "mosquitto.conf"
    conf.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", *lines]) + "\n")
    config = written(site, "client", "cloud/farm-a/pi-1", **TASK)
    document = yaml.safe_load(config.read_text())
    document["broker"]["port"] = port
    config.write_text(yaml.safe_dump(document))
    with Mosquitto(conf, port):
        yield config


@pytest.fixture
def at(site: RunningSite, tmp_path: Path, free_port: int) -> Iterator[Callable[..., Path]]:
    started: list[Iterator[Path]] = []

    def at(*lines: str) -> Path:
        started.append(lax(site, tmp_path, free_port, *lines))
        return next(started[-1])

    yield at
    for one in started:
        assert next(one, None) is None


@pytest.fixture
def free_port() -> int:
    from hfl_mqtt.ops.mosquitto import free_port

    return free_port()


def test_a_broker_without_rights_fails_on_each_that_it_does_not_refuse(at: Callable[..., Path]) -> None:
    found = findings(at())
    assert failed(found) == [
        "write another's update",
        "write another's state",
        "write own command",
        "write the parent's call",
        "write the parent's model",
        "write another federation",
        "read own update",
    ]
    assert "acl_file" in found["write another's update"].remedy


def test_a_limit_that_a_part_does_not_fit_is_seen_before_it_costs_a_round(at: Callable[..., Path]) -> None:
    found = findings(at("max_packet_size 200000"), is_quick=False, until=PART)
    assert found["packet limit"].text == "the broker takes 200000 bytes, a part needs 266294"
    assert "max_packet_size 1000000" in found["packet limit"].remedy
    assert PART in failed(found)


def test_a_limit_that_the_broker_does_not_tell_shows_in_what_it_does(at: Callable[..., Path]) -> None:
    found = findings(at("message_size_limit 200000"), is_quick=False, until=PART)
    assert found["packet limit"].verdict is Verdict.OK
    assert "message_size_limit" in found[PART].remedy
