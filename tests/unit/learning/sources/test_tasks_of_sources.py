"""Tasks read a table of named columns, the package's own as well as a user's file, in a real training process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.sources.source import TABLE, Column, Source
from hfl_mqtt.learning.sources.table import Table
from hfl_mqtt.learning.tasks import load_task
from hfl_mqtt.learning.tasks.stations import examples, own_examples, stations
from hfl_mqtt.learning.trainer import Failed
from tests.unit.learning.desks import Desk

COLUMNS = KEYS["soil-moisture"].columns
DAY_S = 86_400.0


def table_of(station: str) -> Table:
    readings = stations()[station].readings
    days = np.flatnonzero(np.isfinite(readings).any(axis=1))
    return Table(
        (days * DAY_S).astype(np.float64),
        {name: readings[days, index].astype(float) for index, name in enumerate(COLUMNS)},
    )


def test_a_stations_days_from_a_source_are_the_examples_that_it_brings_itself() -> None:
    train, test = own_examples(table_of("03047"))
    own = examples("03047")
    assert np.array_equal(np.concatenate([train.inputs, test.inputs]), own.inputs)
    assert np.array_equal(np.concatenate([train.changes, test.changes]), own.changes)
    assert abs(len(test.days) * 4 - len(own.days)) <= 4
    assert train.days.max() < test.days.min()


def test_days_without_a_row_and_columns_that_are_not_there_are_missing() -> None:
    table = table_of("03047")
    some = Table(table.times, {name: table[name] for name in ("soil_moisture_5cm", "precip_mm")})
    train, _ = own_examples(some)
    assert np.isfinite(train.inputs).all()


def test_what_cannot_be_days_is_said() -> None:
    with pytest.raises(TaskError, match=r"several rows a day.*data\.every to 1 d"):
        own_examples(Table(np.array([0.0, 3600.0]), {"soil_moisture_5cm": np.array([0.1, 0.2])}))
    with pytest.raises(TaskError, match="no column 'soil_moisture_5cm'"):
        own_examples(Table(np.array([0.0]), {"precip_mm": np.array([0.1])}))
    with pytest.raises(TaskError, match="has no soil_moisture_5cm yet"):
        own_examples(Table(np.array([0.0]), {"soil_moisture_5cm": np.array([np.nan])}))


def test_the_default_task_takes_a_table_in_place_of_a_station() -> None:
    task = load_task({"name": "soil-moisture"})
    inputs, targets = task.train_data({TABLE: table_of("03047")})
    assert inputs.shape[0] == targets.shape[0] > 200
    held_out = task.test_data({TABLE: table_of("03047")})
    assert held_out is not None
    assert len(held_out[0]) > 70


OF_ROWS = """
import torch
from hfl_mqtt.learning.contracts import Metric

metric = Metric("rmse", higher_is_better=False, is_root=True)

def model():
    return torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Dropout(0.0))

def data(options):
    rows = options["table"].complete("a", "b")
    return (torch.from_numpy(rows.matrix("a")), torch.from_numpy(rows.matrix("b"))), None

def loss(output, target):
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return ((output - target) ** 2).squeeze(1)
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.trainer.close()


def test_a_users_task_trains_on_a_file_that_grows_between_rounds(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("a,b,at\n1,3,1\n2,6,2\n3,,3\n")
    source = Source(
        kind="csv",
        columns=(Column(name="a"), Column(name="b")),
        time="at",
        least_rows=3,
        files=str(file),
        window=str(tmp_path / "window.db"),
    )
    assert desk.train(desk.job("first", task=OF_ROWS, source=source.to_options())).samples == 2
    with file.open("a") as stream:
        stream.write("4,12,4\n5,x,5\n6,18,6\n")
    assert desk.train(desk.job("second", task=OF_ROWS, source=source.to_options())).samples == 4
    desk.wait_for_line("log.csv: b: 'x' is no number")


def test_too_few_rows_fail_the_round_with_their_number(desk: Desk, tmp_path: Path) -> None:
    source = Source(kind="mqtt", columns=(Column(name="a"),), least_rows=5, window=str(tmp_path / "none.db"))
    desk.trainer.train(desk.job("early", task=OF_ROWS, source=source.to_options()))
    result = desk.result()
    assert isinstance(result, Failed)
    assert result.reason == "0 rows of the 5 that data.least asks for are gathered so far"


def test_the_agents_side_of_sources_holds_neither_torch_nor_numpy_nor_pyarrow() -> None:
    code = (
        "import sys, hfl_mqtt.roles.sensors, hfl_mqtt.config.sources; "
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
