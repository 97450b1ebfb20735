"""What a demo prints and leaves behind: where the model lies, and a dash where a score is not known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hfl_mqtt.ops.report import Bytes, Report, Scores, show, write

SCORES = Scores(
    name="rmse", higher_is_better=False, final=None, history=[0.5, None], persistence=0.25, unseen_persistence=0.125
)
REPORT = Report(task="soil-moisture", seed=1, rounds=2, seconds=1.0, scores=SCORES, bytes=Bytes(), model=None)


def test_a_score_that_is_not_known_is_a_dash_on_its_own_line() -> None:
    out = io.StringIO()
    show(REPORT, Console(file=out, width=120))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "later days, same stations - - 0.25000" in lines
    assert "stations never trained on - - 0.12500" in lines


def test_the_model_that_is_told_is_the_one_that_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "gone.safetensors").write_bytes(b"weights")
    out = tmp_path / "out"
    out.mkdir()
    kept = write(replace(REPORT, model=tmp_path / "gone.safetensors"), out, [])
    assert kept.model == out / "model.safetensors"
    assert kept.model.read_bytes() == b"weights"
    assert json.loads((out / "summary.json").read_text()) == kept.as_json()
    assert kept.as_json()["model"] == str(out / "model.safetensors")


def test_a_model_that_was_not_kept_is_null() -> None:
    assert REPORT.as_json()["model"] is None
