"""What a run prints: a reader that goes away takes nothing with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hfl_mqtt.ops.journal import Journal, read
from hfl_mqtt.ops.serve import echo_line
from hfl_mqtt.rounds.actions import note


def test_a_run_whose_reader_has_gone_goes_on_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As `hfl cloud -c cloud.yaml | head -1` leaves it.
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        echo_line("one")
        os.close(reading)
        with Journal(tmp_path / "journal.jsonl", echo=echo_line) as journal:
            for round_name in ("g1", "g2"):
                journal("cloud", note("closed", round=round_name))
    # That it could be closed shows that nothing was left to be flushed, which would fail at the program's end.
    assert [record["round"] for record in read(tmp_path / "journal.jsonl")] == ["g1", "g2"]


def test_a_full_disk_below_the_output_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        echo_line("one")
        echo_line("two")


def test_a_run_without_any_output_has_nothing_to_print_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as `hfl cloud ... >&-` has it
    echo_line("one")
