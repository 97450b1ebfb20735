"""The values people write in YAML: durations, sizes, shares, quorums and paths, as Annotated types for pydantic models.

A unit stands beside its number (`5 min`, `256 KiB`, `50 %`), so no key needs one in its name and nobody has to guess.
What `duration_text` writes is read again as the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

_NUMBER = re.compile(r"\s*(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE]([+-]?\d{1,3}))?\s*([^\d\s.].*?)?\s*", re.DOTALL)

_LONGEST_S = 366 * 86400
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_DURATION = "a duration such as 90 s, 5 min, 2 h, 1 d or 250 ms"
_SIZE = "a size such as 256 KiB, 2 MB or 1 GiB"
_SHARE = "a share such as 50 % or 0.5"


def parse_duration(value: Any) -> float:
    """Return seconds.

    >>> parse_duration(90), parse_duration("5 min"), parse_duration("250 ms")
    (90.0, 300.0, 0.25)

    Raises:
        ValueError: the value is no duration.
    """
    number, unit = _split(value, _DURATION)
    factor = Decimal("0.001") if unit == "ms" else _SECONDS.get(unit or "s")
    if factor is None:
        hint = ": write min, or ms" if unit == "m" else ""
        raise ValueError(f"must be {_DURATION}, got {_shown(value)}{hint}")
    seconds = float(number * factor)
    if seconds > _LONGEST_S:
        raise ValueError(f"must be at most {duration_text(_LONGEST_S)}, got {_shown(value)}")
    return seconds


def duration_text(seconds: float) -> str:
    """Write a duration so that `parse_duration` gives it back.

    >>> duration_text(300), duration_text(90), duration_text(0.25)
    ('5 min', '90 s', '250 ms')
    """
    for unit in ("d", "h", "min", "s"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds) // _SECONDS[unit]} {unit}"
    millis = round(seconds * 1000)
    return f"{millis} ms" if seconds and millis / 1000 == seconds else f"{seconds!r} s"


def parse_size(value: Any) -> int:
    """Return bytes.

    >>> parse_size(512), parse_size("256 KiB"), parse_size("1.5 MB")
    (512, 262144, 1500000)

    Raises:
        ValueError: the value is no size, or not whole bytes.
    """
    number, unit = _split(value, _SIZE)
    factor = _BYTES.get(unit or "B")
    if factor is None:
        raise ValueError(f"must be {_SIZE}, got {_shown(value)}")
    size = number * factor
    if size > 2**53 or size != int(size):
        raise ValueError(f"must be {_SIZE}, and come to whole bytes, got {_shown(value)}")
    return int(size)


def parse_share(value: Any) -> float:
    """Return a share over 0 and at most 1.

    >>> parse_share("50 %"), parse_share(0.5), parse_share(1)
    (0.5, 0.5, 1.0)

    Raises:
        ValueError: the value is no share, or out of bounds.
    """
    number, unit = _split(value, _SHARE)
    if unit not in (None, "%"):
        raise ValueError(f"must be {_SHARE}, got {_shown(value)}")
    share = float(number / 100) if unit else float(number)
    if not 0 < share <= 1:
        hint = f", did you mean '{_shown(value)} %'?" if unit is None and 1 < number <= 100 else ""
        raise ValueError(f"must be {_SHARE}, over 0 and at most 1 (100 %), got {_shown(value)}{hint}")
    return share


def parse_quorum(value: Any) -> float | int:
    """Return a share of those asked (float), or a count (int): 1 is one of them, 1.0 and 100 % are all.

    >>> parse_quorum("50 %"), parse_quorum(0.5), parse_quorum(3), parse_quorum("100 %")
    (0.5, 0.5, 3, 1.0)

    Raises:
        ValueError: the value is neither.
    """
    wanted = "a share such as 50 % or 0.5, or a count such as 3"
    number, unit = _split(value, wanted)
    if unit is None and not isinstance(value, float) and number == int(number):
        if not 1 <= number <= 1_000_000:
            raise ValueError(f"must be {wanted}, a count of at least 1 and at most 1000000, got {_shown(value)}")
        return int(number)
    share = float(number / 100) if unit == "%" else float(number)
    if unit not in (None, "%") or not 0 < share <= 1:
        raise ValueError(f"must be {wanted}, got {_shown(value)}")
    return share


def _split(value: Any, wanted: str) -> tuple[Decimal, str | None]:
    """Return the number, exact as written, and the unit beside it."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        text = value if isinstance(value, str) else repr(value)
        match = _NUMBER.fullmatch(text) if len(text) <= 60 else None
        if match:
            digits, exponent, unit = match.groups()
            return Decimal(f"{digits}E{exponent or 0}"), unit
    raise ValueError(f"must be {wanted}, got {_shown(value)}")


def _shown(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str() if len(value) <= 60:
            return repr(value)
        case int() | float() if len(repr(value)) <= 60:
            return repr(value)
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
    return f"{str(value)[:57]!r}..."


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        # Python takes True for 1; nobody who writes `rounds: true` means one round.
        raise ValueError(f"must be a number, got {_shown(value)}")
    return value


def located(path: Path, info: ValidationInfo) -> Path:
    """Return `path` without `~`, from the folder of the file that is read; ValueError where it cannot be resolved."""
    try:
        expanded = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"cannot be resolved: {error}") from None
    folder = (info.context or {}).get("folder")
    return folder / expanded if folder else expanded


#: Seconds, written `90`, `"90 s"`, `"5 min"`, `"2 h"`, `"1 d"`, `"250 ms"`.
Duration = Annotated[float, BeforeValidator(parse_duration)]
#: Bytes, written `512`, `"256 KiB"`, `"2 MB"`, `"1 GiB"`.
Size = Annotated[int, BeforeValidator(parse_size)]
#: Over 0 and at most 1, written `0.5` or `"50 %"`.
Share = Annotated[float, BeforeValidator(parse_share)]
#: A share of those asked (float), or a count (int).
Quorum = Annotated[float | int, BeforeValidator(parse_quorum)]
#: A whole number; true and false are none.
Whole = Annotated[int, BeforeValidator(_not_bool)]
#: A finite number; true and false are none.
Real = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
#: A path; `~` is the home folder, and what is relative is relative to the folder of the configuration file.
LocalPath = Annotated[Path, AfterValidator(located)]
