"""What a source is, in plain values: as the agent hands it to the training process. YAML is `config.sources`' business.

Importing this file imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from math import inf
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from hfl_mqtt.errors import TaskError

#: The key under a client's `data:` that says that its data comes from a source.
SOURCE = "source"
#: The key under which a task finds the `Table`.
TABLE = "table"
MAX_COLUMNS = 64

_CONFIG = ConfigDict(extra="forbid")


class Take(Enum):
    """What becomes of several readings that fall into one row."""

    MEAN = "mean"
    SUM = "sum"
    LEAST = "min"
    MOST = "max"
    LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Column:
    """One column: where its readings stand, and which are believed.

    `field` is the way to a number in a JSON payload, with dots between keys, or a header of a file; without one the
    payload is the number. A reading under `least` or over `most` is a bad one.
    """

    name: str
    topic: str = ""
    field: str = ""
    take: Take = Take.MEAN
    least: float = -inf
    most: float = inf


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Source:
    """Where a client's rows come from, how readings are joined into them, and how many are kept.

    Args:
        kind: sensor topics, or files.
        columns: what a row has.
        time: the field or header that says when it was; without one it is when it came.
        every_s: the grid: all readings of so many seconds are one row. Without one, all of one moment are.
        keep_rows, keep_s, keep_bytes: how far the window reaches back; whichever is met first.
        least_rows: with fewer there is no training.
        write_s: how long readings wait in memory, and so what a power cut costs at most.
        per_minute: so many messages a minute are taken at most.
        files: a path, or a pattern of paths.
        window: the file of the window.
    """

    kind: Literal["mqtt", "csv", "parquet"]
    columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=MAX_COLUMNS)]
    time: str = ""
    every_s: float | None = None
    keep_rows: int = 100_000
    keep_s: float | None = None
    keep_bytes: int = 50_000_000
    least_rows: int = 1
    write_s: float = 60.0
    per_minute: int = 600
    files: str = ""
    window: str = ""

    def to_options(self) -> dict[str, Any]:
        """Return it as it stands under `SOURCE` in the data options that go to the training process."""
        options: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return options


def source_of(options: Mapping[str, Any]) -> Source | None:
    """Return the source that data options name, None where the task gets its data by itself.

    Raises:
        TaskError: what stands there is none.
    """
    if SOURCE not in options:
        return None
    try:
        source: Source = _adapter().validate_python(options[SOURCE])
    except ValueError as error:
        raise TaskError(f"data.source cannot be used: {error}") from None
    return source


@cache
def _adapter() -> TypeAdapter[Source]:
    return TypeAdapter(Source)
