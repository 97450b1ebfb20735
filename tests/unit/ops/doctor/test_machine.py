"""Disk, memory and secrets of a board."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hfl_mqtt.ops.doctor import machine
from hfl_mqtt.ops.doctor.findings import Verdict
from hfl_mqtt.state.lock import Lock


def meminfo(path: Path, *, total_mib: int, available_mib: int) -> Path:
    path.write_text(f"MemTotal: {total_mib * 1024} kB\nMemFree: 1 kB\nMemAvailable: {available_mib * 1024} kB\n")
    return path


@pytest.mark.parametrize(
    ("available_mib", "trains", "verdict"),
    [(900, True, Verdict.OK), (200, True, Verdict.WARN), (200, False, Verdict.OK), (20, False, Verdict.FAIL)],
)
def test_memory_is_judged_by_what_the_node_does(
    tmp_path: Path, available_mib: int, trains: bool, verdict: Verdict
) -> None:
    file = meminfo(tmp_path / "meminfo", total_mib=1024, available_mib=available_mib)
    assert machine.check_memory(trains=trains, meminfo=file).verdict is verdict


def test_a_system_that_says_nothing_of_memory_is_passed_over(tmp_path: Path) -> None:
    assert machine.check_memory(trains=True, meminfo=tmp_path / "none").verdict is Verdict.SKIPPED
    assert machine.available(tmp_path / "none") is None


def test_a_state_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    found = machine.check_writes(tmp_path)
    assert "takes 4 kB for good" in found.text
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "cloud"
    found = machine.check_writes(folder)
    assert found.verdict is Verdict.OK
    assert not folder.parent.exists()
    assert machine.check_space(folder).text.endswith(str(tmp_path))


def test_the_folder_of_a_running_agent_is_fine_and_stays_its_own(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    found = machine.check_writes(tmp_path)
    assert found.verdict is not Verdict.FAIL
    assert f"in use by the running agent {os.getpid()}" in found.text
    assert lock.is_held
    lock.release()
    assert "in use" not in machine.check_writes(tmp_path).text


def test_a_secret_that_every_user_can_read_fails_and_says_how_to_shut_it(tmp_path: Path) -> None:
    secret = tmp_path / "pi-1"
    secret.write_text("secret")
    secret.chmod(0o644)
    found = machine.check_secrets([secret])
    assert (found.verdict, found.remedy) == (Verdict.FAIL, f"chmod o-rwx {secret}")
    secret.chmod(0o640)
    assert machine.check_secrets([secret]).verdict is Verdict.OK
    assert machine.check_secrets([tmp_path / "none"]).verdict is Verdict.FAIL
    assert machine.check_secrets([]).verdict is Verdict.SKIPPED
