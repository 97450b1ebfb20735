"""A whole federation with certificates and signatures, and people who look at it and steer it over TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.federations import plan
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.fleet.rehearsal import Rehearsal
from hfl_mqtt.ops.brokers import CRL_FILE
from hfl_mqtt.ops.federation import LocalFederation
from tests.broker.certificates import Authority
from tests.broker.federations import ended_within, wait_for_the_result
from tests.broker.processes import LIMIT_S, hfl, until

pytestmark = pytest.mark.broker


PLAN = plan("idle_line", farms=2, devices=2, is_split=False)


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(tmp_path / "authority", PLAN.federation)


@pytest.fixture
def federation(tmp_path: Path, rehearsal: Rehearsal) -> Iterator[LocalFederation]:
    federation = LocalFederation(PLAN, tmp_path, papers=rehearsal)
    try:
        federation.start_brokers()
        yield federation
    finally:
        federation.stop()


def test_it_learns_and_is_watched_and_steered_over_tls(federation: LocalFederation, tmp_path: Path) -> None:
    federation.start_farms()
    viewer = federation.account("viewer")
    assert viewer.tls is not None
    look = [
        "watch",
        "-f",
        "bench",
        "--port",
        str(viewer.port),
        "--password-file",
        str(federation.secret_path("viewer")),
    ]

    def states() -> dict[str, str]:
        shown = hfl(*look, "--ca", viewer.tls.ca if viewer.tls else "", "--json")
        assert shown.returncode == 0, shown.stderr
        return {node["path"]: node["state"] for node in json.loads(shown.stdout)["nodes"]}

    until(lambda: states().get("cloud/farm-1") == "ready", "an edge")
    federation.start_cloud()
    wait_for_the_result(federation)
    assert states()["cloud"] == "disconnected"

    cloud = tmp_path / "cloud.yaml"
    status = hfl("run", "status", "--config", cloud, "--json")
    assert json.loads(status.stdout)["phase"] == "finished", status.stderr
    moved = hfl("assign", "cloud/farm-0/pi-9", "cloud/farm-1/pi-9", "--config", tmp_path / "cloud-farm-0.yaml")
    assert "cloud/farm-0/pi-9 has never been heard of" in moved.stderr

    plainly = hfl(*look, "--once")
    assert plainly.returncode == 4
    assert "give --ca" in plainly.stderr
    stranger = Authority(tmp_path / "stranger", "stranger").certificate
    distrusted = hfl(*look, "--ca", stranger, "--once")
    assert distrusted.returncode == 4
    assert f"its certificate is not from the authority in {stranger}" in distrusted.stderr
    missing = hfl(*look, "--ca", tmp_path / "none.crt", "--once")
    assert missing.returncode == 2
    assert missing.stderr == f"hfl: --ca: no such file: {tmp_path / 'none.crt'}\n"


def test_a_node_that_is_revoked_ends_and_says_why(federation: LocalFederation, rehearsal: Rehearsal) -> None:
    rehearsal.authority.revoke("cloud/farm-0", kinds=["node"])
    broker = federation.brokers["cloud/farm-0"]
    write_private(broker.conf_path.parent / CRL_FILE, rehearsal.authority.crl_pem.encode())
    broker.reload()
    federation.start_edge("farm-0")
    assert ended_within(federation.processes["cloud/farm-0"], LIMIT_S)
    assert federation.processes["cloud/farm-0"].returncode == 4, "as with a wrong password"
    said = federation.log_path("cloud/farm-0").read_text()
    assert f"refuses {federation.papers_dir('cloud/farm-0')}/node.crt: it has been told that this certificate" in said
