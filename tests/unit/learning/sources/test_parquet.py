"""Parquet files do not grow in place: new ones are read, and where one has changed all are read anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.sources.following import follow
from hfl_mqtt.learning.sources.source import Column, Source
from hfl_mqtt.learning.sources.table import read_table
from hfl_mqtt.learning.sources.window import Window

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: list[Any]) -> None:
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def of_days(source: Callable[..., Source], tmp_path: Path) -> Source:
    (tmp_path / "data").mkdir()
    columns = (Column(name="t", field="air"),)
    return source(kind="parquet", columns=columns, time="at", every_s=None, files=str(tmp_path / "data" / "*.parquet"))


def look(source: Source, said: list[str] | None = None) -> list[tuple[float, float]]:
    window = Window(Path(source.window), source)
    follow(source, window, (said if said is not None else []).append)
    window.close()
    table = read_table(source)
    return list(zip(table.times.tolist(), table["t"].tolist(), strict=True))


def test_new_files_are_read_and_a_changed_one_has_all_read_anew(of_days: Source, tmp_path: Path) -> None:
    day = tmp_path / "data" / "day-1.parquet"
    write(day, at=[1.0, 2.0], air=[10, 20], other=["x", "y"])
    assert look(of_days) == [(1, 10), (2, 20)]
    write(tmp_path / "data" / "day-2.parquet", at=[3.0], air=[30.5])
    assert look(of_days) == [(1, 10), (2, 20), (3, 30.5)]
    write(day, at=[1.0, 2.0, 2.5], air=[10, 22, 25])
    assert look(of_days) == [(1, 10), (2, 22), (2.5, 25), (3, 30.5)]
    day.unlink()
    assert look(of_days) == [(3, 30.5)]


def test_timestamps_dates_and_missing_values_are_understood(of_days: Source, tmp_path: Path) -> None:
    at = [datetime(1970, 1, 1, 0, 0, 5, tzinfo=timezone.utc), datetime(1970, 1, 2, tzinfo=timezone.utc)]
    write(tmp_path / "data" / "a.parquet", at=at, air=[1.5, None])
    write(tmp_path / "data" / "b.parquet", at=[datetime(1970, 1, 3).date()], air=[float("nan")])
    write(tmp_path / "data" / "c.parquet", at=["1970-01-04"], air=["7"])
    assert look(of_days) == [(5, 1.5), (3 * 86_400, 7)]


def test_a_file_that_is_still_being_written_waits(of_days: Source, tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", at=[1.0], air=[1])
    half = tmp_path / "data" / "b.parquet"
    half.write_bytes(b"PAR1 and no end")
    said: list[str] = []
    assert look(of_days, said) == [(1, 1)]
    assert "no whole Parquet file yet" in said[0]
    write(half, at=[2.0], air=[2])
    assert look(of_days) == [(1, 1), (2, 2)]


def test_a_column_that_is_not_there_is_named(of_days: Source, tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", at=[1.0], temp=[1])
    with pytest.raises(TaskError, match="has no column 'air': it has at, temp"):
        look(of_days)


def test_without_pyarrow_it_is_said_what_to_install(
    of_days: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "a.parquet", at=[1.0], air=[1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TaskError, match=r"pip install 'hfl-mqtt\[parquet\]'"):
        look(of_days)
