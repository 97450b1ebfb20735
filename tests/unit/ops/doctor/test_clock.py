"""Whether a clock can be believed, by its year and by files."""

from __future__ import annotations

import os
from pathlib import Path

from hfl_mqtt.ops.doctor.clock import check_clock
from hfl_mqtt.ops.doctor.findings import Verdict

NOON_2026_S = 1_782_043_200.0


def test_a_clock_that_was_never_set_is_a_warning_since_rounds_go_on_without() -> None:
    found = check_clock([], now_s=90.0)
    assert found.verdict is Verdict.WARN
    assert found.text.startswith("1970-01-01 00:01 UTC")
    assert "timedatectl" in found.remedy


def test_a_file_from_the_future_shows_how_far_the_clock_is_behind(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    for path, written_s in ((old, NOON_2026_S - 5), (new, NOON_2026_S + 3 * 86_400)):
        path.touch()
        os.utime(path, (written_s, written_s))
    found = check_clock([old, new, tmp_path / "not there"], now_s=NOON_2026_S)
    assert found.verdict is Verdict.FAIL
    assert "at least 3 days behind, as new.yaml was written later" in found.text
    assert check_clock([old], now_s=NOON_2026_S).verdict in (Verdict.OK, Verdict.WARN)


def test_a_minute_between_two_machines_is_no_finding(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.touch()
    os.utime(path, (NOON_2026_S + 60, NOON_2026_S + 60))
    assert check_clock([path], now_s=NOON_2026_S).verdict is not Verdict.FAIL
