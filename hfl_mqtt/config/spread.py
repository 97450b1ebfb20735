"""Ranges in names: `cloud/farm-a/pi-{01..50}` stands for fifty clients, and what belongs to each is written once.

>>> [written("pi-{08..10}", number) for number in numbers("pi-{08..10}")]
['pi-08', 'pi-09', 'pi-10']
>>> written({"index": "{index}", "hive": "{n}", "file": "hive-{n}.csv"}, numbers("pi-{08..10}")[2])
{'index': 2, 'hive': 10, 'file': 'hive-10.csv'}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: As many as one process may hold; see `models.MAX_CLIENTS`.
MAX_RANGE = 10_000

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_WORD = re.compile(r"\{(?:n|index)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One of a range: its place in it, from 0, and the number as the name has it, with its leading zeros."""

    index: int
    text: str


def numbers(name: str) -> tuple[Number | None, ...]:
    """Return the numbers of the range in a name; where there is none, None alone: the name stands for itself.

    Raises:
        ValueError: the range is empty, too long, or not the only one.
    """
    ranges = _RANGE.findall(name)
    if not ranges:
        return (None,)
    if len(ranges) > 1:
        raise ValueError(f"must have one range at most, got {name[:60]!r}")
    first, last = ranges[0]
    size = int(last) - int(first) + 1
    if not 0 < size <= MAX_RANGE:
        raise ValueError(f"must have a range of 1 to {MAX_RANGE} upwards, such as {{01..50}}, got {name[:60]!r}")
    return tuple(Number(index=index, text=str(int(first) + index).zfill(len(first))) for index in range(size))


def written(value: Any, number: Number | None) -> Any:
    """Return a value as it is for one of a range, in every text of it, however deep.

    In a name the range becomes the number. `{n}` is the number as the name has it, and `{index}` its place, from 0; a
    text that is nothing else becomes a whole number.
    """
    if number is None:
        return value
    match value:
        case "{n}":
            return int(number.text)
        case "{index}":
            return number.index
        case str():
            told = {"{n}": number.text, "{index}": str(number.index)}
            return _WORD.sub(lambda found: told[found.group()], _RANGE.sub(number.text, value))
        case Path():
            return Path(written(str(value), number))
        case dict():
            return {key: written(each, number) for key, each in value.items()}
        case list():
            return [written(each, number) for each in value]
        case _:
            return value
