"""The units of all roles: they start what exists, and systemd finds them right and tight."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device_agents.__main__ import _parser
from hfl_mqtt.errors import HflError
from hfl_mqtt.fleet.unit import unit

ROLES = ["client", "edge", "cloud"]
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_starts_the_agent_with_options_that_exist(role: str) -> None:
    (line,) = values(unit(role), "ExecStart")
    program, isolated, m, module, *arguments = shlex.split(line)
    assert (program, isolated, m, module) == ("/opt/hfl-mqtt/venv/bin/python", "-I", "-m", "device_agents")
    assert _parser().parse_args(arguments).config == Path("/etc/hfl-mqtt/agent.yaml")


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_is_whole_bounded_and_watched(role: str) -> None:
    text = unit(role)
    assert re.findall(r"@\w+@", text) == []
    assert values(text, "Description") == [f"hfl-mqtt {role}"]
    for key in ("CPUQuota", "MemoryMax", "Nice", "IOSchedulingClass", "WatchdogSec", "TasksMax"):
        assert len(values(text, key)) == 1
    assert values(text, "Type") == ["notify"]
    assert values(text, "User") == ["hfl"]


def test_there_is_no_unit_for_a_role_that_is_no_service() -> None:
    with pytest.raises(HflError, match="take one of client, edge, cloud"):
        unit("demo")


def test_it_is_printed_for_scripts() -> None:
    command = [sys.executable, "-m", "hfl_mqtt.fleet.unit"]
    done = subprocess.run([*command, "edge"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == unit("edge")
    done = subprocess.run([*command, "toaster"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no unit for the role 'toaster'" in done.stderr


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_nothing_to_complain_of(role: str, tmp_path: Path) -> None:
    path = tmp_path / "hfl.service"
    # It looks whether the program is there; on this machine another Python is.
    path.write_text(unit(role).replace("/opt/hfl-mqtt/venv/bin/python", sys.executable))
    done = analyze("verify", "--man=no", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_systemd_calls_its_exposure_ok_or_better(role: str, tmp_path: Path) -> None:
    path = tmp_path / "hfl.service"
    path.write_text(unit(role))
    done = analyze("security", "--offline=true", "--no-pager", str(path))
    match = re.search(r"Overall exposure level for hfl.service: ([\d.]+) (\w+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    assert match.group(2) in ("OK", "SAFE", "PERFECT")
    assert float(match.group(1)) <= 2.0
