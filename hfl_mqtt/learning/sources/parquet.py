"""Parquet files into a window; the only file that knows pyarrow, which is the extra `parquet`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hfl_mqtt.errors import Malformed, TaskError
from hfl_mqtt.learning.sources import readings
from hfl_mqtt.learning.sources.following import next_moment
from hfl_mqtt.learning.sources.source import Source
from hfl_mqtt.learning.sources.window import MAX_WAITING, Window

#: Rows that are decoded at once.
_BATCH = MAX_WAITING // 2


def follow(source: Source, window: Window, paths: list[Path], say: Callable[[str], None]) -> None:
    """Read the files that are new; all of them where one has changed or gone.

    Raises:
        TaskError: pyarrow is not installed, or a file has not the columns.
    """
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TaskError(f"source: parquet needs pyarrow ({error}): pip install 'hfl-mqtt[parquet]'") from error
    before: dict[str, list[int]] = window.remembered("files") or {}
    now = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    if any(now.get(name) != seen for name, seen in before.items()):
        window.clear()
        before = {}
    read = dict(before)
    for name in [name for name in now if name not in before]:
        try:
            with ParquetFile(name) as file:
                _take(source, window, file, Path(name), say)
        except ArrowInvalid as error:
            say(f"{name}: is no whole Parquet file yet ({str(error)[:100]}): it is read when it is")
            continue
        read[name] = now[name]
        window.remember("files", read)
        window.commit()


def _take(source: Source, window: Window, file: Any, path: Path, say: Callable[[str], None]) -> None:
    fields = [column.field or column.name for column in source.columns]
    wanted = [*dict.fromkeys([*fields, *([source.time] if source.time else [])])]
    known = file.schema_arrow.names
    for name in wanted:
        if name not in known:
            raise TaskError(f"{path}: has no column {name!r}: it has {', '.join(known)[:200]}")
    for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
        told = {name: batch.column(name).to_pylist() for name in wanted}
        for index in range(batch.num_rows):
            try:
                moment_s = _moment(told[source.time][index]) if source.time else next_moment(window)
            except Malformed as error:
                _bad(window, path, str(error), say)
                continue
            values = dict(_values(source, fields, told, index, lambda reason: _bad(window, path, reason, say)))
            if values:
                window.put(moment_s, values)
        window.commit()


def _values(
    source: Source, fields: list[str], told: dict[str, list[Any]], index: int, bad: Callable[[str], None]
) -> Iterator[tuple[str, float]]:
    for column, field in zip(source.columns, fields, strict=True):
        value = told[field][index]
        if value is None or value != value:  # NaN: missing, as pandas writes it
            continue
        try:
            yield column.name, readings.checked(readings.read_number(value), column)
        except Malformed as error:
            bad(f"{column.name}: {error}")


def _moment(value: Any) -> float:
    # A timestamp comes as a datetime, a date as a date; both write themselves in ISO 8601.
    return readings.read_time(value.isoformat() if hasattr(value, "isoformat") else value)


def _bad(window: Window, path: Path, reason: str, say: Callable[[str], None]) -> None:
    if window.count_bad() == 1:
        say(f"{path.name}: {reason}")
