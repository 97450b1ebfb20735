"""`source:` under a client's `data:`: its data comes from sensor topics, or from CSV or Parquet files that grow.

What stands there beside the keys of the source is the task's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from hfl_mqtt.config.broker import BrokerConfig
from hfl_mqtt.config.sections import Section
from hfl_mqtt.config.units import Duration, Real, Size, Whole, located
from hfl_mqtt.config.wording import KeyPath, explain, misplaced, near
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.sources.source import MAX_COLUMNS, SOURCE, TABLE, Column, Source, Take
from hfl_mqtt.protocol import topics


def _topic(text: str) -> str:
    """Check a filter of sensor topics: `+` stands for one level; none of it may ever cross a bridge."""
    if text.partition("/")[0] in ("+", topics.JSON_ROOT, topics.BINARY_ROOT):
        raise ValueError(
            "takes in topics of the federation, which cross bridges: begin with another word, such as sensors/, "
            f"got {text[:60]!r}"
        )
    if not topics.is_sensor_topic(text):
        raise ValueError(f"must be a topic such as sensors/field-1/soil, with + for one level, got {text[:60]!r}")
    return text


TopicFilter = Annotated[str, AfterValidator(_topic)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]


class ColumnConfig(Section):
    """One column of the rows, and where its readings stand."""

    topic: TopicFilter | None = Field(
        default=None, description="The topic of its readings, if not that of the source; + stands for one level."
    )
    field: ShortText | None = Field(
        default=None,
        description="The way to the number in a JSON message, with dots: soil.vwc; or a header of the file. By default "
        "the message is the number, and the header is the column's name.",
    )
    take: Literal["mean", "sum", "min", "max", "last"] = Field(
        default="mean", description="What becomes of several readings in one row."
    )
    range: tuple[Real, Real] | None = Field(
        default=None, description="The least and the most that can be true: [-40, 60]; what is outside is not taken."
    )


class KeepConfig(Section):
    """How far the window reaches back: whichever is met first."""

    rows: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(default=100_000, description="So many rows.")
    age: Duration | None = Field(default=None, description="So long before the newest row.")
    size: Annotated[Size, Field(ge=100_000)] = Field(default=50_000_000, description="So many bytes on the disk.")


class SourceConfig(Section):
    """Where a client's rows come from, and how readings are joined into them."""

    source: Literal["mqtt", "csv", "parquet"] = Field(description="Sensor topics, or files.")
    columns: Annotated[dict[ShortText, ColumnConfig], Field(max_length=MAX_COLUMNS)] = Field(
        description="What a row has; in short the topic or field alone."
    )
    time: ShortText | None = Field(
        default=None, description="The field or header that says when it was measured; by default it is when it came."
    )
    every: Annotated[Duration, Field(ge=0.001)] | None = Field(
        default=None, description="The grid: all readings of 10 min, or of 1 d, are one row; by default of one moment."
    )
    keep: KeepConfig = Field(default=KeepConfig(), description="How much is kept.")
    least: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(
        default=32, description="With fewer rows the client declines to train."
    )
    topic: TopicFilter | None = Field(default=None, description="mqtt: the topic of columns that name none.")
    broker: BrokerConfig | None = Field(default=None, description="mqtt: where the sensors are, if not the client's.")
    write: Annotated[Duration, Field(ge=0.1, le=3600)] = Field(
        default=60.0, description="mqtt: readings wait so long before they are written; a power cut costs no more."
    )
    per_minute: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        default=600, description="mqtt: so many messages a minute are taken, more are dropped."
    )
    path: str | None = Field(default=None, description="csv, parquet: the file, or a pattern such as /data/*.csv.")

    @model_validator(mode="before")
    @classmethod
    def _takes_short_columns(cls, given: Any) -> Any:
        return _expanded(given)

    @field_validator("path")
    @classmethod
    def _starts_at_the_file(cls, path: str | None, info: ValidationInfo) -> str | None:
        return None if path is None else str(located(Path(path), info))

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        mistakes = list(self._misfits())
        if mistakes:
            raise misplaced(*mistakes)
        return self

    def _misfits(self) -> Iterator[tuple[KeyPath, str]]:
        given, is_mqtt = self.model_fields_set, self.source == "mqtt"
        for key in ("path",) if is_mqtt else ("topic", "broker", "write", "per_minute"):
            if key in given:
                yield (key,), f"has no say where source is {self.source}: leave it out"
        if not is_mqtt and self.path is None:
            yield (SOURCE,), f"{self.source} needs path beside it: the file to follow"
        if not self.columns:
            yield ("columns",), "must name a column at least"
        for name, column in self.columns.items():
            if column.topic is not None and not is_mqtt:
                yield ("columns", name, "topic"), f"has no say where source is {self.source}: leave it out"
            elif is_mqtt and column.topic is None and self.topic is None:
                yield ("columns", name), "needs topic: where its readings are said"
            if column.range is not None and column.range[0] >= column.range[1]:
                yield ("columns", name, "range"), "must be the least and the most that can be true, such as [-40, 60]"
        if is_mqtt:
            yield from self._misfits_of_topics()

    def _misfits_of_topics(self) -> Iterator[tuple[KeyPath, str]]:
        filters = list(dict.fromkeys(self._topic_of(column) for column in self.columns.values()))
        for index, one in enumerate(filters):
            other = next((each for each in filters[:index] if _overlap(one, each)), None)
            if other is not None:
                yield ("columns",), f"{one} and {other} take in the same topics: a message would count twice"
        if len(filters) > 1 and self.every is None:
            yield ("columns",), "are of several topics, which only a grid joins into rows: set every, such as 10 min"

    def _topic_of(self, column: ColumnConfig) -> str:
        return column.topic or self.topic or ""

    def to_source(self, window: Path | None = None) -> Source:
        """Return it as those take it who gather and who read; `window` is the file of the rows."""
        is_mqtt = self.source == "mqtt"
        return Source(
            kind=self.source,
            columns=tuple(
                Column(
                    name=name,
                    topic=self._topic_of(column) if is_mqtt else "",
                    # Columns that share a topic without a word on where they stand there are called as they are.
                    field=column.field or ("" if column.topic is not None else name),
                    take=Take(column.take),
                    **({} if column.range is None else {"least": column.range[0], "most": column.range[1]}),
                )
                for name, column in self.columns.items()
            ),
            time=self.time or "",
            every_s=self.every,
            keep_rows=self.keep.rows,
            keep_s=self.keep.age,
            keep_bytes=self.keep.size,
            least_rows=self.least,
            write_s=self.write,
            per_minute=self.per_minute,
            files=self.path or "",
            window=str(window) if window is not None else "",
        )


_KEYS = tuple(SourceConfig.model_fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A client's data options taken apart: its source, the task's own options, and what is wrong with them."""

    source: SourceConfig | None
    options: dict[str, Any]
    mistakes: tuple[tuple[KeyPath, str], ...] = ()


def taken_apart(data: Mapping[str, Any], task: str | None, folder: Path | None) -> Taken:
    """Take a client's data options apart.

    Args:
        data: what stands under `data:`.
        task: the name of its task; of the package's own it is known what they read.
        folder: where relative paths start.
    """
    if SOURCE not in data:
        return Taken(source=None, options=dict(data))
    known = KEYS.get(task or "")
    own = _expanded({key: value for key, value in data.items() if key in _KEYS})
    rest = {key: value for key, value in data.items() if key not in _KEYS}
    source, mistakes = None, list(_mistaken(rest, task if known is not None else None))
    try:
        source = SourceConfig.model_validate(own, context={"folder": folder} if folder is not None else None)
    except ValidationError as error:
        mistakes += [(each.path, each.text) for each in explain(error, SourceConfig, own, lambda _path: None)]
    if source is not None and known is not None:
        mistakes += _strangers(source, task or "", known.columns)
    return Taken(source=source, options=rest, mistakes=tuple(mistakes))


def _expanded(given: Any) -> Any:
    """Write out short columns: a text is a field where no topic is needed, or one stands above for all."""
    columns = given.get("columns") if isinstance(given, dict) else None
    if not isinstance(columns, dict):
        return given
    key = "field" if given.get(SOURCE) != "mqtt" or given.get("topic") is not None else "topic"
    long = {
        name: {key: text} if isinstance(text, str) else {} if text is None else text for name, text in columns.items()
    }
    return given | {"columns": long}


def _mistaken(rest: Mapping[str, Any], task: str | None) -> Iterator[tuple[KeyPath, str]]:
    """Yield what stands beside a source and is most likely meant otherwise; all of it where the package's own task is.

    What a user's task takes is not known here: only what is called nearly as a key of the source.
    """
    for key in rest:
        meant = near(str(key), list(_KEYS), 0.75)
        if key == TABLE:
            yield (key,), "is where the task finds the rows of the source: call it otherwise"
        elif meant:
            yield (key,), f"is not a key here, did you mean {meant!r}?"
        elif task is not None:
            yield (key,), f"has no say where {task} reads a source: leave it out"


def _strangers(source: SourceConfig, task: str, columns: tuple[str, ...]) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong with a source for a task of which the package knows what it reads."""
    if not columns:
        yield (SOURCE,), f"gives rows of columns, and the task {task} reads none: leave it out"
        return
    for name in source.columns:
        if name not in columns:
            meant = near(name, list(columns))
            hint = f", did you mean {meant!r}?" if meant else f"; it reads {', '.join(columns)}"
            yield ("columns", name), f"is no column of {task}{hint}"


def _overlap(one: str, other: str) -> bool:
    """Whether a topic may be in both filters."""
    levels, others = one.split("/"), other.split("/")
    return len(levels) == len(others) and all(a == b or "+" in (a, b) for a, b in zip(levels, others, strict=True))
