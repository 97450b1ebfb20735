"""The ways of brokers/README.md to run what was rendered: beside Debian's own file, by hand, with Docker."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from hfl_mqtt.config.site import MTLS_PORT, VIEWER_PORT
from hfl_mqtt.ops import brokers
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from tests.broker.processes import hfl

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "brokers" / "README.md").read_text(encoding="utf-8")
#: As the package of Debian 12 has it.
DEBIAN = """\
pid_file {folder}/mosquitto.pid
persistence true
persistence_location {folder}/lib/
log_dest file {folder}/mosquitto.log
include_dir {folder}/conf.d
"""


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    """A farm's folder, as `hfl brokers render` writes it."""
    assert hfl("brokers", "render", ROOT / "brokers" / "site.yaml", "--out", tmp_path).returncode == 0
    return tmp_path / "farm-a"


def at_port(conf: Path, port: int) -> None:
    text = conf.read_text().replace("listener 1883", f"listener {port} 127.0.0.1")
    conf.write_text(text + ("user root\n" if os.geteuid() == 0 else ""))


@pytest.mark.broker
def test_a_rendered_file_runs_beside_debians_own_without_the_line_that_it_has_too(farm: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"^    sed '(/\^persistence_location/d)' farm-a/mosquitto.conf", README, re.MULTILINE)
    folder, port = tmp_path / "etc", free_port()
    for each in ("conf.d", "lib"):
        (folder / each).mkdir(parents=True)
    main = folder / "mosquitto.conf"
    main.write_text(DEBIAN.format(folder=folder))
    done = subprocess.run(["sed", script, farm / "mosquitto.conf"], capture_output=True, text=True, check=True)  # noqa: S607
    (folder / "conf.d" / "hfl.conf").write_text(done.stdout.replace("/etc/mosquitto", str(farm)))
    at_port(folder / "conf.d" / "hfl.conf", port)
    with Mosquitto(main, port):
        pass
    assert "running" in (folder / "mosquitto.log").read_text()


@pytest.mark.broker
def test_a_rendered_folder_runs_by_hand_as_ones_own_user(farm: Path) -> None:
    lines = README.partition("## By hand")[2].partition("\n## ")[0]
    sed, run = re.findall(r"^    (sed .*|mkdir .*)$", lines, re.MULTILINE)
    subprocess.run(["bash", "-ec", sed], cwd=farm, check=True)  # noqa: S607
    subprocess.run(["bash", "-ec", run.partition(" && ")[0]], cwd=farm, check=True)  # noqa: S607
    port = free_port()
    at_port(farm / "here.conf", port)
    with Mosquitto(farm / "here.conf", port):
        pass
    assert (farm / "data").is_dir()


def test_the_compose_file_mounts_what_the_configuration_names_and_pins_its_image() -> None:
    document = yaml.safe_load((ROOT / "brokers" / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = document["services"].values()
    name, _, tag = service["image"].partition(":")
    assert name == "eclipse-mosquitto"
    assert re.fullmatch(r"2\.\d+\.\d+(-[a-z]+)?", tag)
    mounted = {volume.rsplit(":", 1)[0] if volume.endswith(":ro") else volume for volume in service["volumes"]}
    inside = {volume.rpartition(":")[2] for volume in mounted}
    assert inside == {brokers.INSTALLED.config_dir, brokers.INSTALLED.data_dir}
    assert service["command"][-1] == f"{brokers.INSTALLED.config_dir}/mosquitto.conf"
    assert set(service["ports"]) == {f"{port}:{port}" for port in (MTLS_PORT, VIEWER_PORT)}
    assert service["read_only"] is True
