"""The rules of a board: what speaks against a round, in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from device_agents.may_train import MayTrain, Surroundings, against
from hfl_mqtt.config.conditions import MayTrainConfig


def rules(**keys: Any) -> MayTrainConfig:
    return MayTrainConfig.model_validate(keys)


def refusals(rule: MayTrainConfig, **seen: Any) -> list[str]:
    return list(against(rule, Surroundings(**seen)))


@pytest.mark.parametrize(
    ("hours", "minute", "may"),
    [
        ("09:00-17:00", 9 * 60, True),
        ("09:00-17:00", 17 * 60, False),
        ("22:00-06:00", 23 * 60, True),
        ("22:00-06:00", 0, True),
        ("22:00-06:00", 6 * 60, False),
        (["01:00-02:00", "13:00-24:00"], 24 * 60 - 1, True),
        (["01:00-02:00", "13:00-24:00"], 3 * 60, False),
    ],
)
def test_it_trains_at_its_hours(hours: Any, minute: int, may: bool) -> None:
    assert (refusals(rules(hours=hours), minute=minute) == []) is may


def test_a_refusal_says_the_time_and_the_hours() -> None:
    said = refusals(rules(hours=["22:00-06:00", "12:00-13:00"]), minute=7 * 60 + 5)
    assert said == ["it is 07:05, it trains only at 22:00-06:00, 12:00-13:00"]


def test_a_clock_that_is_not_set_tells_no_hours() -> None:
    assert refusals(rules(hours="22:00-06:00"), minute=None) == [
        "the board's clock is not set, and it trains only at 22:00-06:00"
    ]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"temperature_c": 69.9}, []),
        ({"temperature_c": 70.0}, ["70 °C, it trains only below 70 °C"]),
        ({}, ["the board tells no temperature: leave temperature_below out"]),
    ],
)
def test_it_trains_while_it_is_cool(seen: dict[str, Any], said: list[str]) -> None:
    assert refusals(rules(temperature_below=70), **seen) == said


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({}, []),
        ({"is_on_battery": True, "has_battery": True}, ["on battery, it trains only on mains"]),
        ({"has_undervoltage": True}, ["under-voltage: its supply is too weak"]),
    ],
)
def test_it_trains_on_mains_that_give_enough(seen: dict[str, Any], said: list[str]) -> None:
    assert refusals(rules(mains=True), **seen) == said


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"has_battery": False}, []),
        ({"has_battery": True, "battery": 0.41}, []),
        ({"has_battery": True, "battery": 0.4}, ["battery at 40%, it trains only above 40%"]),
        ({"has_battery": True}, ["its battery does not tell how full it is: leave battery_above out"]),
    ],
)
def test_it_trains_on_a_battery_that_is_full_enough(seen: dict[str, Any], said: list[str]) -> None:
    assert refusals(rules(battery_above="40 %"), **seen) == said


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (0.49, []),
        (0.5, ["other programs use 50% of its cores, it trains only below 50%"]),
        (None, ["the board does not tell its load: leave load_below out"]),
    ],
)
def test_it_trains_while_other_programs_leave_room(others: float | None, said: list[str]) -> None:
    assert refusals(rules(load_below="50 %"), others=others) == said


def test_it_trains_over_links_that_are_not_metered() -> None:
    assert refusals(rules(unmetered=True), is_metered=False) == []
    assert refusals(rules(unmetered=True), is_metered=True) == ["its link is metered"]


def asked(
    rule: MayTrainConfig, vitals: dict[str, Any], metered: Callable[[], bool] = lambda: False, now: float = 0.0
) -> str | None:
    return MayTrain(rule, lambda: vitals, lambda: 0.0, metered, lambda: now)()


def test_every_rule_that_does_not_hold_is_named() -> None:
    vitals = {"temperature_c": 50.0, "gpu_temperature_c": 81.5, "on_battery": 1, "battery_percent": 12}
    assert asked(rules(temperature_below=80, mains=True, battery_above=0.2), vitals) == (
        "81.5 °C, it trains only below 80 °C; on battery, it trains only on mains; "
        "battery at 12%, it trains only above 20%"
    )


def test_nothing_speaks_against_a_board_that_is_well() -> None:
    vitals = {"temperature_c": 50.0, "undervoltage": 0, "load_percent": 300.0}
    assert asked(rules(temperature_below=80, mains=True, load_below=0.5, unmetered=True), vitals) is None


def test_the_hours_are_those_of_the_boards_own_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-05:30")  # as POSIX writes what is 5:30 ahead
    time.tzset()
    try:
        noon = datetime.fromisoformat("2026-06-01T12:00:00+00:00").timestamp()
        assert asked(rules(hours="17:30-17:31"), {}, now=noon) is None
        assert asked(rules(hours="12:00-12:01"), {}, now=noon) == "it is 17:30, it trains only at 12:00-12:01"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_board_that_boots_in_1970_waits_for_its_clock() -> None:
    assert "clock is not set" in (asked(rules(hours="00:00-24:00"), {}, now=3600.0) or "")


def test_network_manager_is_only_asked_where_a_rule_wants_to_know() -> None:
    def never() -> bool:
        raise AssertionError

    assert asked(rules(mains=True), {}, never) is None
