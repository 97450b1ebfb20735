"""Rows are joined by a grid, bounded, and there after a restart; a table is what a task sees of them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from hfl_mqtt.errors import TaskError, Unwritable
from hfl_mqtt.learning.sources.source import Column, Source, Take
from hfl_mqtt.learning.sources.table import Table, read_mark, read_table
from hfl_mqtt.learning.sources.window import Window, peek

Make = Callable[..., Source]


DAY_S = 86_400.0
#: 2026-05-01, and what a board says that was never set.
NOW_S, UNSET_S = 1_777_593_600.0, 86_400.0


def filled(source: Source, *readings: tuple[float, Mapping[str, float]], now_s: float = NOW_S) -> Window:
    window = Window(Path(source.window), source, clock=lambda: now_s)
    for time_s, values in readings:
        window.put(time_s, values)
    window.commit()
    return window


def rows_of(source: Source) -> list[tuple[float, ...]]:
    table = read_table(source)
    return [tuple(row) for row in np.column_stack([table.times, *table.columns.values()]).tolist()]


def test_readings_of_several_topics_become_rows_of_a_grid_and_the_newest_is_not_whole_yet(source: Make) -> None:
    one = source()
    filled(one, (1, {"a": 2}), (9, {"a": 4}), (5, {"b": 7}), (11, {"a": 6}), (25, {"a": 1})).close()
    table = read_table(one)
    assert table.times.tolist() == [0, 10]
    assert table["a"].tolist() == [3, 6]
    assert table["b"][0] == 7
    assert np.isnan(table["b"][1])


def test_a_row_takes_means_sums_extremes_or_the_last(source: Make) -> None:
    columns = tuple(Column(name=take.value, take=take) for take in Take)
    one = source(columns=columns)
    filled(
        one, *((at, {take.value: value for take in Take}) for at, value in ((0, 3), (1, 8), (2, 1), (30, 0)))
    ).close()
    table = read_table(one)
    assert {name: column.tolist() for name, column in table.columns.items()} == {
        "mean": [4], "sum": [12], "min": [1], "max": [8], "last": [1],
    }  # fmt: skip


def test_a_late_reading_finds_its_row_also_after_a_restart(source: Make) -> None:
    one = source()
    filled(one, (1, {"a": 2}), (11, {"a": 5}), (21, {"a": 9})).close()
    filled(one, (3, {"a": 4})).close()
    assert rows_of(source(columns=one.columns[:1])) == [(0, 3), (10, 5)]


def test_without_a_grid_every_moment_is_a_row(source: Make) -> None:
    one = source(every_s=None)
    filled(one, (1.5, {"a": 1}), (1.75, {"a": 2}), (1.5, {"b": 3})).close()
    assert rows_of(one)[0] == (1.5, 1, 3)
    assert read_table(one).times.tolist() == [1.5, 1.75]


def test_the_oldest_rows_go_where_there_are_too_many(source: Make) -> None:
    one = source(keep_rows=3, every_s=None)
    window = filled(one, *((at, {"a": at}) for at in range(10)))
    assert window.rows == 3
    assert read_table(one).times.tolist() == [7, 8, 9]


def test_the_oldest_rows_go_where_they_are_too_old_for_the_newest(source: Make) -> None:
    one = source(keep_s=20.0, every_s=None)
    filled(one, (100, {"a": 1}), (105, {"a": 1}), (125, {"a": 1})).close()
    assert read_table(one).times.tolist() == [105, 125]


def test_a_reading_of_the_year_2199_heard_before_the_clock_was_set_costs_no_other_row(source: Make) -> None:
    one = source(keep_s=20.0, every_s=None)
    filled(one, (NOW_S - 5, {"a": 1}), (7e9, {"a": 9}), now_s=UNSET_S).close()
    assert read_table(one).times.tolist() == [NOW_S - 5, 7e9]
    window = filled(one, (NOW_S, {"a": 2}), (NOW_S + DAY_S, {"a": 3}))  # a day may be another clock's fault
    assert window.rows == 3
    window.close()
    assert read_table(one).times.tolist() == [NOW_S - 5, NOW_S, NOW_S + DAY_S]


def test_while_the_clock_is_not_set_no_row_is_too_old(source: Make) -> None:
    one = source(keep_s=20.0, every_s=None)
    filled(one, (NOW_S - 100, {"a": 1}), (NOW_S, {"a": 2}), (UNSET_S, {"a": 3}), now_s=UNSET_S).close()
    assert read_table(one).times.tolist() == [UNSET_S, NOW_S - 100, NOW_S]
    filled(one, (NOW_S + 1, {"a": 4})).close()
    assert read_table(one).times.tolist() == [NOW_S, NOW_S + 1]


def test_a_file_may_speak_of_what_is_to_come_and_loses_no_row_by_it(source: Make) -> None:
    one = source(kind="csv", keep_s=2 * DAY_S, every_s=None)
    filled(one, (NOW_S - 3 * DAY_S, {"a": 1}), (NOW_S, {"a": 2}), (NOW_S + 9 * DAY_S, {"a": 3})).close()
    assert read_table(one).times.tolist() == [NOW_S, NOW_S + 9 * DAY_S]


def test_the_file_stays_within_its_bytes(source: Make) -> None:
    one = source(keep_bytes=100_000, every_s=None)
    window = Window(Path(one.window), one)
    for start in range(0, 20_000, 1000):
        for at in range(start, start + 1000):
            window.put(at, {"a": 1, "b": 2})
        window.commit()
    window.close()
    assert 1000 < len(read_table(one)) < 3000
    assert read_table(one).times[-1] == 19_999
    assert Path(one.window).stat().st_size < 200_000


def test_counts_and_what_is_remembered_survive_a_restart(source: Make) -> None:
    window = filled(source(), (1, {"a": 2, "b": 1}))
    assert window.count_bad() == 1
    window.remember("files", {"x": 1})
    window.close()
    again = Window(Path(source().window), source())
    assert (again.counts, again.remembered("files")) == ({"readings": 2, "bad_readings": 1}, {"x": 1})
    assert peek(Path(source().window)) == {"rows": 1, "readings": 2, "bad_readings": 1}
    again.close()


def test_a_table_is_marked_so_that_it_is_read_again_only_where_there_is_news(source: Make) -> None:
    one = source()
    window = filled(one, (1, {"a": 2}), (11, {"a": 2}))
    mark = read_mark(one)
    window.commit()
    assert read_mark(one) == mark
    window.put(2, {"a": 3})
    assert read_mark(one) == mark
    window.commit()
    assert read_mark(one) > mark
    window.close()


def test_another_grid_begins_anew_and_another_column_joins(source: Make) -> None:
    filled(source(), (1, {"a": 2}), (11, {"a": 5}), (21, {"a": 5})).close()
    more = source(columns=(*source().columns, Column(name="c")))
    filled(more, (12, {"c": 1})).close()
    assert read_table(more)["c"].tolist()[1] == 1
    assert read_table(more)["a"].tolist() == [2, 5]
    other = source(every_s=5.0)
    window = filled(other, (1, {"a": 2}))
    assert "begun anew" in window.damage
    window.close()
    assert peek(Path(other.window))["rows"] == 1


def test_a_column_that_is_taken_otherwise_forgets_what_it_was(source: Make) -> None:
    filled(source(), (1, {"a": 2, "b": 4}), (21, {"a": 5})).close()
    other = source(columns=(Column(name="a", take=Take.SUM), Column(name="b")))
    filled(other, (1, {"a": 3})).close()
    assert rows_of(other) == [(0, 3, 4)]


def test_too_few_rows_say_how_many_there_are(source: Make) -> None:
    one = source(least_rows=3)
    with pytest.raises(TaskError, match="0 rows of the 3"):
        read_table(one)
    filled(one, (1, {"a": 2}), (11, {"a": 2}), (21, {"a": 1})).close()
    with pytest.raises(TaskError, match="2 rows of the 3"):
        read_table(one)


def test_a_damaged_window_is_laid_aside(source: Make) -> None:
    filled(source(), (1, {"a": 2})).close()
    path = Path(source().window)
    path.write_bytes(b"what an SD card gave back" * 1000)
    window = filled(source(), (1, {"a": 3}))
    assert "laid aside" in window.damage
    assert window.rows == 1
    assert path.with_name("window.db.damaged").exists()
    window.close()


def test_what_a_full_disk_refuses_waits(source: Make) -> None:
    window = filled(source(), (1, {"a": 2}), (11, {"a": 2}))
    other = sqlite3.connect(source().window, timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    window.put(3, {"a": 4})
    window._database.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(Unwritable, match="cannot be kept"):
        window.commit()
    other.execute("ROLLBACK")
    other.close()
    window.commit()
    window.close()
    assert rows_of(source(columns=source().columns[:1])) == [(0, 3)]


def test_a_process_killed_at_any_moment_leaves_whole_rows(source: Make) -> None:
    path = source().window
    code = (
        "import sys; from pathlib import Path; from hfl_mqtt.learning.sources.window import Window\n"
        "from hfl_mqtt.learning.sources.source import Column, Source\n"
        f"s = Source(kind='mqtt', columns=(Column(name='a'), Column(name='b')), window={path!r})\n"
        "w = Window(Path(s.window), s)\n"
        "for n in range(10**6):\n"
        "    w.put(n, {'a': n, 'b': -n}); w.commit(); n == 50 and print(flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    one = source(every_s=None)
    window = Window(Path(path), one)
    assert window.damage == ""
    window.close()
    table = read_table(one)
    assert len(table) > 50
    assert (table["a"] == -table["b"]).all()


def test_a_table_gives_what_torch_takes_and_names_what_it_has(source: Make) -> None:
    table = Table(np.array([0.0, 86_400.0]), {"a": np.array([1.0, np.nan]), "b": np.array([3.0, 4.0])}, mark=7)
    assert table.matrix("b", "a").dtype == np.float32
    assert table.complete().times.tolist() == [0.0]
    assert table.complete("b")["b"].tolist() == [3, 4]
    assert repr(table) == "<Table 7: 2 rows from 1970-01-01 to 1970-01-02 of a, b>"
    assert ("a" in table, "c" in table) == (True, False)
    with pytest.raises(TaskError, match=r"no column 'temp'.*Known: a, b"):
        table["temp"]
