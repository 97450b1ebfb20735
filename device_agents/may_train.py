"""Whether the board takes part in a round, by the rules under `may_train:` in its YAML.

Asked when a round opens, before its model is fetched. What it says becomes the reason of the decline that the parent
hears and shows; the next round asks anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device_agents.reading import Values

if TYPE_CHECKING:
    from hfl_mqtt.config.conditions import MayTrainConfig

#: A clock that says an earlier year was never set: a board without a battery boots in 1970.
_FIRST_YEAR = 2025


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the rules are about, now; None where the board does not tell."""

    #: Of the local day; None where the clock is not set.
    minute: int | None = None
    temperature_c: float | None = None
    is_on_battery: bool = False
    has_undervoltage: bool = False
    has_battery: bool = False
    battery: float | None = None
    #: The share of all cores that other programs use.
    others: float | None = None
    is_metered: bool = False


class MayTrain:
    """Looks around and says why this board takes part in no round just now, or None.

    Args:
        rules: what stands under `may_train:`.
        vitals: the board's.
        others: the share of all cores that other programs use.
        is_metered: whether the link is; only asked where a rule wants to know, for it starts a program.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        rules: MayTrainConfig,
        vitals: Callable[[], Mapping[str, int | float | str | None]],
        others: Callable[[], float | None],
        is_metered: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules, self._vitals, self._others = rules, vitals, others
        self._is_metered, self._clock = is_metered, clock

    def __call__(self) -> str | None:
        """Return what speaks against a round now, every rule that does not hold; None where all do."""
        vitals = dict(self._vitals())
        local = time.localtime(self._clock())
        seen = Surroundings(
            minute=60 * local.tm_hour + local.tm_min if local.tm_year >= _FIRST_YEAR else None,
            temperature_c=max(_numbers(vitals, "temperature_c", "gpu_temperature_c"), default=None),
            is_on_battery=bool(vitals.get("on_battery")),
            has_undervoltage=bool(vitals.get("undervoltage")),
            has_battery="on_battery" in vitals,
            battery=next((percent / 100 for percent in _numbers(vitals, "battery_percent")), None),
            others=self._others(),
            is_metered=self._rules.unmetered and self._is_metered(),
        )
        return "; ".join(against(self._rules, seen)) or None


def _numbers(vitals: Values, *names: str) -> list[float]:
    return [float(value) for name in names if isinstance(value := vitals.get(name), int | float)]


def against(rules: MayTrainConfig, seen: Surroundings) -> Iterator[str]:
    """Yield each rule that does not hold, in words."""
    if rules.hours is not None:
        hours = ", ".join(f"{_time(first)}-{_time(last)}" for first, last in rules.hours)
        if seen.minute is None:
            yield f"the board's clock is not set, and it trains only at {hours}"
        elif not any(_is_within(seen.minute, *span) for span in rules.hours):
            yield f"it is {_time(seen.minute)}, it trains only at {hours}"
    if rules.temperature_below is not None:
        if seen.temperature_c is None:
            yield "the board tells no temperature: leave temperature_below out"
        elif seen.temperature_c >= rules.temperature_below:
            yield f"{seen.temperature_c:g} °C, it trains only below {rules.temperature_below:g} °C"
    if rules.mains and seen.is_on_battery:
        yield "on battery, it trains only on mains"
    if rules.mains and seen.has_undervoltage:
        yield "under-voltage: its supply is too weak"
    if rules.battery_above is not None and seen.has_battery:
        if seen.battery is None:
            yield "its battery does not tell how full it is: leave battery_above out"
        elif seen.battery <= rules.battery_above:
            yield f"battery at {seen.battery:.0%}, it trains only above {rules.battery_above:.0%}"
    if rules.load_below is not None:
        if seen.others is None:
            yield "the board does not tell its load: leave load_below out"
        elif seen.others >= rules.load_below:
            yield f"other programs use {seen.others:.0%} of its cores, it trains only below {rules.load_below:.0%}"
    if rules.unmetered and seen.is_metered:
        yield "its link is metered"


def _is_within(minute: int, first: int, last: int) -> bool:
    """
    >>> _is_within(23 * 60, 22 * 60, 6 * 60), _is_within(6 * 60, 22 * 60, 6 * 60)
    (True, False)
    """
    return first <= minute < last if first < last else minute >= first or minute < last


def _time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
