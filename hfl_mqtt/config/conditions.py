"""`may_train:` in a client's YAML: when its board takes part in a round."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config.sections import Section
from hfl_mqtt.config.units import Real, Share
from hfl_mqtt.config.wording import misplaced

_SPAN = re.compile(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")
_DAY_MIN = 24 * 60

#: Minutes of the day, from the first up to the second; over midnight where the second is the smaller one.
Span = tuple[int, int]


def parse_hours(value: Any) -> tuple[Span, ...]:
    """Return spans of the day, in minutes since midnight.

    >>> parse_hours("22:00-06:30"), parse_hours(["01:00-02:00", "13:00-24:00"])
    (((1320, 390),), ((60, 120), (780, 1440)))

    Raises:
        ValueError: the value is no span, or a list of up to 24.
    """
    texts = value if isinstance(value, list) else [value]
    if not 1 <= len(texts) <= 24:
        raise ValueError("must be one to 24 spans of the day, such as 22:00-06:00")
    return tuple(_span(text) for text in texts)


def _span(text: Any) -> Span:
    match = _SPAN.fullmatch(text) if isinstance(text, str) and len(text) <= 40 else None
    if match is None:
        raise ValueError(f"must be a span of the day, such as 22:00-06:00, got {str(text)[:40]!r}")
    hour, minute, last_hour, last_minute = map(int, match.groups())
    first, last = 60 * hour + minute, 60 * last_hour + last_minute
    if minute > 59 or last_minute > 59 or first >= _DAY_MIN or last > _DAY_MIN:
        raise ValueError(f"holds a time that no day has: {text[:40]!r}")
    if first == last:
        raise ValueError(f"begins when it ends: {text[:40]!r}; a whole day is 00:00-24:00")
    return first, last


Hours = Annotated[tuple[Span, ...], BeforeValidator(parse_hours)]


class MayTrainConfig(Section):
    """Rules of a board, all of which must hold when a round opens; else it declines that round and says why.

    A rule about what the board cannot tell does not hold, except that a board without a battery is on mains, and a link
    of which nobody says that it is metered is not.
    """

    hours: Hours | None = Field(
        default=None, description="Only at these hours of the board's local time: 22:00-06:00, or a list of such."
    )
    temperature_below: Annotated[Real, Field(gt=0, le=120)] | None = Field(
        default=None, description="Only while processor and GPU are cooler than this, in °C."
    )
    mains: bool = Field(
        default=False, description="Only while the board has mains, and enough: not on battery, not under-voltage."
    )
    battery_above: Share | None = Field(default=None, description="Only while its battery is fuller than this: 40 %.")
    load_below: Share | None = Field(
        default=None,
        description="Only while other programs use less than this share of all cores, since the last look: 50 %.",
    )
    unmetered: bool = Field(
        default=False, description="Only over a link that is not metered: not over a mobile network, a phone's hotspot."
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if self == type(self).model_construct():
            raise misplaced(((), "has no rule: leave may_train out, or say when the board may train"))
        return self
