"""Daily readings of 76 weather and soil stations, and the examples made of them. No torch here.

An example stands on the evening of one day and looks at the next. It knows that station's readings up to this
evening, and the next day's weather as a forecast (here: as it was then measured, so a perfect one). Everything is
scaled by fixed physical constants; whatever describes a station as a whole (its driest and wettest reading, how it
answers to rain) is taken from its days up to this evening only. So nothing leaks from later days, and a station never
seen before is read the same way.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.sources.table import Table
from hfl_mqtt.registry import known_names

Floats = NDArray[np.float64]

_FILE = "uscrn-daily-2020.csv.gz"
_COLUMNS = KEYS["soil-moisture"].columns
_FIRST_DAY = date(2020, 1, 1)
_DAYS = 366
_DAY_S = 86_400
#: Ten years: an example costs a regression over all days before it.
_MOST_DAYS = 3660
#: Days since 1 January from which on the target day is held out: 1 October.
LATER_FROM = (date(2020, 10, 1) - _FIRST_DAY).days
#: An example needs a month of history before it, or the station's own figures mean nothing.
_HISTORY_DAYS = 30
#: The unit of the targets: a change of 0.02 m3/m3, about what a day's change is (persistence's RMSE is 0.0185).
CHANGE_M3_M3 = 0.02


@dataclass(frozen=True, slots=True)
class Station:
    """One station: where it stands, and its readings as rows of days and `_COLUMNS`, NaN where missing."""

    longitude_deg: float
    latitude_deg: float
    readings: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of one station: `inputs` (n, features), `changes` (n, 1) in units of `CHANGE_M3_M3`, target `days`."""

    inputs: NDArray[np.float32]
    changes: NDArray[np.float32]
    days: NDArray[np.int64]

    def later(self, is_later: bool, held_out_from: int = LATER_FROM) -> Examples:
        """Return those whose target day is held out (by default from 1 October on), or those before."""
        keep = (self.days >= held_out_from) == is_later
        return Examples(self.inputs[keep], self.changes[keep], self.days[keep])


@cache
def stations() -> dict[str, Station]:
    """Read all stations by WBAN number, sorted; read once per process (0.3 s, 1 MB)."""
    found: dict[str, Station] = {}
    packed = (files("hfl_mqtt.learning.tasks") / "data" / _FILE).read_bytes()
    with gzip.open(io.BytesIO(packed), "rt", encoding="ascii", newline="") as text:
        rows = csv.reader(text)
        header = next(rows)
        columns = [header.index(name) for name in _COLUMNS]
        for row in rows:
            station = found.get(row[0])
            if station is None:
                readings = np.full((_DAYS, len(_COLUMNS)), np.nan, dtype=np.float32)
                station = found[row[0]] = Station(float(row[2]), float(row[3]), readings)
            day = (date.fromisoformat(row[1]) - _FIRST_DAY).days
            station.readings[day] = [float(row[column] or "nan") for column in columns]
    return dict(sorted(found.items()))


def check_station(name: Any) -> str:
    """Return `name` if a station is called so.

    Raises:
        TaskError: it is not text (YAML reads 03047 without quotes as a number), or no such station.
    """
    if not isinstance(name, str):
        raise TaskError(f'a station\'s number is text, got {name!r}: write it in quotes, as in station: "03047"')
    if name not in stations():
        raise TaskError(f"no station is called {name!r}{known_names(name, stations())}")
    return name


@cache
def examples(name: str) -> Examples:
    """Return every example of a station, by target day; days without today's or tomorrow's moisture give none."""
    return make_examples(stations()[check_station(name)].readings)


def own_examples(table: Table) -> tuple[Examples, Examples]:
    """Return the examples of a table of daily rows: those to train on, and the last quarter of the days, held out.

    Raises:
        TaskError: there is no moisture in it, or its rows are no days.
    """
    moisture = table[_COLUMNS[0]]
    days = np.floor(table.times / _DAY_S).astype(np.int64)
    if not len(days) or not np.isfinite(moisture).any():
        raise TaskError(f"the table has no {_COLUMNS[0]} yet: a forecast starts from the soil moisture of today")
    if len(np.unique(days)) < len(days):
        raise TaskError("the table has several rows a day: this task looks at days, set data.every to 1 d")
    days -= days[0]
    if days[-1] >= _MOST_DAYS:
        raise TaskError(f"the table spans {days[-1]} days, at most {_MOST_DAYS}: set data.keep.age")
    readings = np.full((days[-1] + 1, len(_COLUMNS)), np.nan, dtype=np.float32)
    for index, name in enumerate(_COLUMNS):
        if name in table:
            readings[days, index] = table[name]
    found = make_examples(readings)
    held_out_from = int(found.days[len(found.days) * 3 // 4]) if len(found.days) else 0
    return found.later(False, held_out_from), found.later(True, held_out_from)


def make_examples(readings: NDArray[np.float32]) -> Examples:
    """Turn readings (days, `_COLUMNS`) into examples; see `_inputs` for what a model is told."""
    moisture = readings[:, 0].astype(np.float64)
    change = (_shifted(moisture, -1) - moisture) / CHANGE_M3_M3
    usable = np.isfinite(change) & (np.arange(len(change)) >= _HISTORY_DAYS)
    inputs = _inputs(readings.astype(np.float64), change)[usable]
    return Examples(
        inputs.astype(np.float32), change[usable, None].astype(np.float32), np.flatnonzero(usable).astype(np.int64) + 1
    )


def _inputs(readings: Floats, change: Floats) -> Floats:
    """Return one row of inputs per day. A missing reading stands at the middle of its scale, that is at 0.

    `change[t]` is the change from day t to day t + 1; only `_own_forecast` takes it, and only those before day t.
    """
    moisture, precip_mm, air, air_max, air_min, solar, humidity, soil = readings.T
    driest, wettest = np.fmin.accumulate(moisture), np.fmax.accumulate(moisture)
    gap = wettest - moisture
    span = wettest - driest + 0.03
    level = (moisture - driest) / span * 2 - 1
    rain = np.log1p(precip_mm) / 2
    pack, melt = _snow(precip_mm, air)
    air, solar, humidity = air / 20 - 0.5, solar / 15 - 1, humidity / 50 - 1
    rain_next, solar_next = _shifted(rain, -1), _shifted(solar, -1)
    own = np.stack(
        [
            np.ones_like(rain),
            rain_next,
            rain,
            gap / 0.1 * rain_next,
            (moisture - _shifted(moisture, 1)) / CHANGE_M3_M3,
            solar_next,
            (level + 1) / 2,
        ],
        axis=1,
    )
    columns = [
        (moisture - 0.2) / 0.1,
        *((moisture - _shifted(moisture, back)) / 0.05 for back in (1, 2, 3)),
        level,
        (driest - 0.1) / 0.1,
        (wettest - 0.35) / 0.1,
        (span - 0.2) / 0.1,
        gap / 0.1,
        _own_forecast(np.nan_to_num(own), change),
        *(_shifted(rain, back) for back in (-1, 0, 1, 2, 3)),
        _shifted(precip_mm, -1) / 20,
        precip_mm / 20,
        np.isnan(rain_next),
        np.log1p(pack) / 2,
        np.log1p(melt) / 2,
        np.log1p(_shifted(melt, -1)) / 2,
        *(_shifted(weather, back) for weather in (air, solar, humidity) for back in (-1, 0, 1)),
        _shifted(air_max / 20 - 1, -1),
        _shifted(air_min / 20 - 0.2, -1),
        soil / 20 - 0.5,
    ]
    return np.nan_to_num(np.stack(columns, axis=1), nan=0.0)


def _shifted(values: Floats, back: int) -> Floats:
    """Return the value `back` days earlier (later where negative), NaN beyond the ends."""
    out = np.full_like(values, np.nan)
    if back > 0:
        out[back:] = values[:-back]
    elif back < 0:
        out[:back] = values[-back:]
    else:
        out[:] = values
    return out


def _snow(precip_mm: Floats, air_c: Floats) -> tuple[Floats, Floats]:
    """Return the snow on the ground at the end of each day and the day's melt, in mm of water.

    The degree-day rule: below 0.5 deg C it snows, above it melts at 3 mm per degree. A day without a reading is dry and
    mild. Without it a frosty rain gauge looks like wet soil, and a thaw like rain from nowhere.
    """
    fallen, warmth = np.nan_to_num(precip_mm), np.nan_to_num(air_c, nan=5.0)
    pack, melt = np.zeros_like(fallen), np.zeros_like(fallen)
    lying = 0.0
    for day in range(len(fallen)):
        if warmth[day] < 0.5:
            lying += fallen[day]
        else:
            melt[day] = min(lying, 3 * warmth[day])
            lying -= melt[day]
        pack[day] = lying
    return pack, melt


def _own_forecast(own: Floats, change: Floats) -> Floats:
    """Return what a ridge regression on this station's own past would forecast, refitted every evening.

    It carries what no two sensors share (texture, depth, contact) to a model that is shared by all. On evening t it
    knows the changes up to day t, never the one it forecasts.
    """
    squares, products = np.eye(own.shape[1]) * 3.0, np.zeros(own.shape[1])
    forecast = np.zeros(len(own))
    for day, row in enumerate(own):
        forecast[day] = row @ np.linalg.solve(squares, products)
        if np.isfinite(change[day]):
            squares += np.outer(row, row)
            products += row * change[day]
    return np.clip(forecast, -5.0, 10.0)
