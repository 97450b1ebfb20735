"""Files that grow are read on from where they were left, whatever becomes of them meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.sources import following
from hfl_mqtt.learning.sources.following import follow
from hfl_mqtt.learning.sources.prepared import Prepared
from hfl_mqtt.learning.sources.source import SOURCE, TABLE, Column, Source
from hfl_mqtt.learning.sources.table import read_table
from hfl_mqtt.learning.sources.window import Window

Make = Callable[..., Source]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "log.csv"
    path.write_text("time,air,soil\n1,10,0.1\n2,20,0.2\n")
    return path


@pytest.fixture
def csv(source: Make, file: Path) -> Source:
    columns = (Column(name="t", field="air"), Column(name="soil", least=0, most=1))
    return source(kind="csv", columns=columns, time="time", every_s=None, files=str(file))


def look(source: Source, said: list[str] | None = None) -> list[tuple[float, float]]:
    """Follow the files once, as a training process does, and return time and t of all rows."""
    window = Window(Path(source.window), source)
    follow(source, window, (said if said is not None else []).append)
    window.close()
    table = read_table(source)
    return list(zip(table.times.tolist(), table["t"].tolist(), strict=True))


def counts(source: Source) -> dict[str, int]:
    window = Window(Path(source.window), source)
    window.close()
    return window.counts


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def test_what_is_appended_is_read_on_and_nothing_twice(csv: Source, file: Path) -> None:
    assert look(csv) == [(1, 10), (2, 20)]
    append(file, "3,30,0.3\n")
    assert look(csv) == [(1, 10), (2, 20), (3, 30)]
    assert look(csv) == [(1, 10), (2, 20), (3, 30)]
    assert counts(csv)["readings"] == 6


def test_a_half_written_last_line_waits_until_it_is_whole(csv: Source, file: Path) -> None:
    append(file, "3,30,0")
    assert look(csv) == [(1, 10), (2, 20)]
    append(file, ".3\n4,40")
    assert look(csv) == [(1, 10), (2, 20), (3, 30)]


def test_a_file_that_is_not_there_yet_or_has_half_a_header_is_no_harm(csv: Source, file: Path) -> None:
    file.write_text("time,ai")
    with pytest.raises(TaskError, match="0 rows of the 1"):
        look(csv)
    append(file, "r,soil\n1,2,3\n")
    assert look(csv) == [(1, 2)]
    file.unlink()
    with pytest.raises(TaskError, match="there is no file"):
        look(csv)


def test_a_rotated_file_is_finished_under_its_new_name(csv: Source, file: Path) -> None:
    look(csv)
    append(file, "3,30,0.3\n")
    file.rename(file.with_name("log.csv.1"))
    file.write_text("time,air,soil\n4,40,0.4\n")
    assert look(csv) == [(1, 10), (2, 20), (3, 30), (4, 40)]
    append(file, "5,50,0.5\n")
    assert look(csv) == [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]
    assert counts(csv)["readings"] == 10


def test_a_truncated_file_is_begun_anew_and_what_was_read_of_it_stays(csv: Source, file: Path) -> None:
    look(csv)
    file.write_text("time,air,soil\n7,70,0.7\n")
    said: list[str] = []
    assert look(csv, said) == [(1, 10), (2, 20), (7, 70)]
    assert "written anew" in said[0]


def test_a_copy_with_more_behind_is_read_on(csv: Source, file: Path) -> None:
    """As rsync and editors write: a new file in the old one's place."""
    look(csv)
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    append(copy, "3,30,0.3\n")
    copy.replace(file)
    assert look(csv) == [(1, 10), (2, 20), (3, 30)]
    assert counts(csv)["readings"] == 6


def test_a_pattern_follows_every_file_and_new_ones(csv: Source, file: Path, source: Make) -> None:
    every = source(kind="csv", columns=csv.columns, time="time", every_s=None, files=str(file.parent / "*.csv"))
    look(every)
    (file.parent / "other.csv").write_text("soil,time,air\n0.5,5,50\n")
    append(file, "3,30,0.3\n")
    assert look(every) == [(1, 10), (2, 20), (3, 30), (5, 50)]


def test_bad_cells_and_lines_are_counted_and_the_rest_counts(csv: Source, file: Path) -> None:
    append(file, "3,x,0.3\n4,40,9\n5,50\nnow,60,0.1\n6,,0.5\n\n7,70,\n")
    said: list[str] = []
    assert [row for row in look(csv, said) if row[0] > 2 and row[1] == row[1]] == [(4, 40), (7, 70)]
    assert counts(csv)["bad_readings"] == 4
    assert said == ["log.csv: t: 'x' is no number"]


def test_semicolons_and_decimal_commas_are_understood(csv: Source, file: Path) -> None:
    file.write_text("\ufefftime;air;soil\n1;2,5;0,5\n")
    assert look(csv) == [(1, 2.5)]


def test_a_line_without_an_end_is_skipped_and_reading_goes_on(
    csv: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STEP", 64)
    monkeypatch.setattr(following, "MAX_LINE", 32)
    append(file, "3," + "9" * 300 + "\n4,40,0.4\n")
    assert look(csv)[-1] == (4, 40)


def test_a_large_file_is_read_in_steps_that_are_kept_one_by_one(
    csv: Source, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STEP", 100)
    monkeypatch.setattr(following, "MAX_WAITING", 3)
    for at in range(3, 40):
        append(file, f"{at},{at}0,0.1\n")
    assert look(csv) == [(at, at * 10) for at in range(1, 40)]


def test_a_column_that_is_not_there_is_named(csv: Source, file: Path) -> None:
    file.write_text("time,temp,soil\n1,2,3\n")
    with pytest.raises(TaskError, match=r"log.csv: has no column 'air': it has time, temp, soil"):
        look(csv)


def test_lines_without_a_time_are_rows_in_their_order(source: Make, file: Path) -> None:
    one = source(kind="csv", columns=(Column(name="t", field="air"),), every_s=None, files=str(file))
    assert [value for _, value in look(one)] == [10, 20]
    append(file, "3,5,0.3\n")
    assert [value for _, value in look(one)] == [10, 20, 5]


def test_a_training_process_reads_a_table_anew_only_where_there_is_news(csv: Source, file: Path) -> None:
    prepared = Prepared(print)
    options = {SOURCE: csv.to_options(), "horizon": 3}
    first = prepared.options("cloud/a/pi-1", options)
    assert first["horizon"] == 3
    assert SOURCE not in first
    assert len(first[TABLE]) == 2
    assert prepared.options("cloud/a/pi-1", options)[TABLE] is first[TABLE]
    append(file, "3,30,0.3\n")
    assert len(prepared.options("cloud/a/pi-1", options)[TABLE]) == 3


def test_options_without_a_source_pass_as_they_are() -> None:
    options = {"station": "03047"}
    assert Prepared(print).options("cloud/a/pi-1", options) is options
