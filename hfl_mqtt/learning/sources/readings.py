"""What a sensor says, read as numbers and a time. Any sensor may be broken, and any may be a stranger's.

>>> moisture = Column(name="moisture", field="soil.vwc")
>>> read_payload(b'{"soil": {"vwc": 0.21}, "ts": "2026-05-01T06:00:00Z"}', [moisture], "ts")
Reading(time_s=1777615200.0, values={'moisture': 0.21}, faults=())
>>> read_payload(b"21.5", [Column(name="air_c")], "")
Reading(time_s=None, values={'air_c': 21.5}, faults=())
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NoReturn

from hfl_mqtt.errors import Malformed
from hfl_mqtt.learning.sources.source import Column

#: Bytes of one message; what is longer is not looked at.
MAX_READING = 16_384
#: Opening braces and brackets in one message: bounds its depth, and what reading it takes, before it is read.
MAX_CONTAINERS = 64
MAX_DIGITS = 64
#: The end of the year 2199: no reading is later.
MAX_TIME_S = 7_258_118_400.0
#: A sensor's reading from so far ahead of our clock is not believed, where the clock itself is.
MAX_AHEAD_S = 86_400.0
#: 2025-01-01: a board whose clock says less has none.
BELIEVABLE_S = 1_735_689_600.0
#: A time this large is not in seconds but in milli-, micro- or nanoseconds.
_FINER = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
#: How files write that a reading is missing.
_MISSING = frozenset({"", "na", "nan", "null", "none", "-"})


@dataclass(frozen=True, slots=True)
class Reading:
    """What one message or line says: values by column, when they were measured, and what of it cannot be believed."""

    time_s: float | None
    values: dict[str, float]
    faults: tuple[str, ...] = ()


def read_payload(payload: bytes, columns: Sequence[Column], time: str) -> Reading:
    """Read a message: a number alone, or JSON with numbers in it.

    Args:
        payload: a stranger's bytes.
        columns: those that are fed by its topic.
        time: the field that says when it was; "" where none does.

    Raises:
        Malformed: nothing of it can be used; `str()` is the reason.
    """
    if len(payload) > MAX_READING:
        raise Malformed(f"{len(payload)} bytes, at most {MAX_READING} are read")
    if payload.count(b"{") + payload.count(b"[") > MAX_CONTAINERS:
        raise Malformed(f"more than {MAX_CONTAINERS} lists and objects")
    try:
        said = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Malformed("neither a number nor JSON") from None
    time_s = read_time(_at(said, time)) if time else None
    values: dict[str, float] = {}
    faults: list[str] = []
    for column in columns:
        value = _at(said, column.field) if column.field else said
        if value is None:
            continue
        try:
            values[column.name] = checked(read_number(value), column)
        except Malformed as error:
            faults.append(f"{column.name}: {error}")
    if not values and not faults:
        fields = ", ".join(column.field or column.name for column in columns)
        raise Malformed(f"has none of {fields}")
    return Reading(time_s, values, tuple(faults))


def read_cell(text: str, column: Column) -> float | None:
    """Read a cell of a file; None where it is empty.

    Raises:
        Malformed: it is no number, or not one to believe.
    """
    text = text.strip()
    return None if text.lower() in _MISSING else checked(read_number(text), column)


def read_number(value: Any) -> float:
    """Return a finite number; true and false are 1 and 0, and a text may hold a number.

    Raises:
        Malformed: it is none.
    """
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise Malformed(f"a text of {len(value)} characters is no number")
    if isinstance(value, dict | list) or value is None:
        raise Malformed(f"{'nothing' if value is None else 'a list or an object'} is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Malformed(f"{str(value)[:MAX_DIGITS]!r} is no number") from None
    if not math.isfinite(number):
        raise Malformed(f"{number} is no reading")
    return number


def checked(number: float, column: Column) -> float:
    """Return the number, where it may be one of this column.

    Raises:
        Malformed: it is out of the column's range.
    """
    if not column.least <= number <= column.most:
        raise Malformed(f"{number:g} is not within {column.least:g} to {column.most:g}")
    return number


def read_time(value: Any) -> float:
    """Return seconds since 1970 of a number (seconds, or finer) or of a text such as 2026-05-01T06:00:00Z.

    A text without a zone is taken as UTC.

    Raises:
        Malformed: it is no time, or not one between 1970 and 2200.
    """
    if value is None:
        raise Malformed("has no time")
    try:
        moment_s = read_number(value)
    except Malformed:
        moment_s = _date(value)
    else:
        moment_s /= next((unit for limit, unit in _FINER if moment_s >= limit), 1.0)
    if not 0 <= moment_s < MAX_TIME_S:
        raise Malformed(f"{str(value)[:MAX_DIGITS]!r} is no time between 1970 and 2200")
    return moment_s


def _date(value: Any) -> float:
    text = str(value).strip()[:MAX_DIGITS]
    try:
        # Python 3.10 reads no Z.
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise Malformed(f"{text!r} is no time: write seconds since 1970, or 2026-05-01T06:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()


def _at(said: Any, field: str) -> Any:
    """Return what stands at `a.b.0` in it; None where nothing does."""
    for step in field.split("."):
        if isinstance(said, dict):
            said = said.get(step)
        elif isinstance(said, list) and step.isdecimal() and int(step) < len(said):
            said = said[int(step)]
        else:
            return None
    return said


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
