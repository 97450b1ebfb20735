"""The benchmarks' tables, and the one that needs no broker, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import codecs
from benchmarks.federations import TASKS
from benchmarks.figures import Figure, markdown_table, spread_of, text_table
from hfl_mqtt.protocol.messages import Plan

FIGURES = [spread_of("a round", "ms", [30.0, 10.0, 20.0], "3 rounds"), Figure(what="a | b", value=1234.5, unit="B")]


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert FIGURES[0] == Figure(what="a round", unit="ms", value=20.0, low=10.0, high=30.0, note="3 rounds")


def test_a_table_for_the_terminal_has_its_columns_in_line() -> None:
    assert text_table("T", FIGURES) == "T\n  a round    20 ms  10 to 30  3 rounds\n  a | b    1,234 B"


def test_a_table_in_markdown_keeps_bars_inside_cells() -> None:
    assert markdown_table("T", FIGURES).splitlines()[-2:] == [
        "| a round | 20 ms | 10 to 30 | 3 rounds |",
        "| a &#124; b | 1,234 B |  |  |",
    ]


def test_results_are_saved_as_markdown_and_json(tmp_path: Path) -> None:
    path = program.save({"x": ("T", FIGURES)}, {"cores": 2}, tmp_path / "results")
    assert "- cores: 2\n" in path.read_text()
    saved = json.loads(path.with_suffix(".json").read_text())
    assert saved["machine"] == {"cores": 2}
    assert [figure["value"] for figure in saved["results"]["x"]] == [20.0, 1234.5]


def test_a_name_that_is_no_benchmark_is_told_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "memoy"])
    with pytest.raises(SystemExit):
        program.main()
    assert f"no benchmark is called 'memoy'; there are {', '.join(program.NAMES)}" in capsys.readouterr().err


def test_codecs_are_measured_both_ways_beside_the_yardstick() -> None:
    figures = codecs.measure(size_mb=0.01, repeats=1)
    names = [figure.what for figure in figures]
    assert {"raw: encode", "raw: decode", "int8 | zstd: encode"} <= set(names)
    assert all(figure.value > 0 for figure in figures)


@pytest.mark.parametrize("path", sorted(TASKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_task_file_of_the_benchmarks_is_a_task(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from hfl_mqtt.learning.tasks import load_task

    monkeypatch.setenv("HFL_BULK_MB", "0.01")
    task = load_task({"file": str(path)})
    inputs, targets = task.train_data({})
    if task.train is not None:  # it trains by itself
        result = task.train(task.model(), (inputs, targets), Plan(task=path.stem), lambda: False)
        assert result.samples == len(inputs)
        return
    with torch.no_grad():
        scores = task.score(task.model()(inputs[:4]), targets[:4])
    assert scores.shape == (4,)
