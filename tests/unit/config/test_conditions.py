"""`may_train:` as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfl_mqtt.config.conditions import parse_hours
from hfl_mqtt.config.models import ClientConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.errors import ConfigError

CLIENT = """\
role: client
federation: fed1
name: cloud/farm-a/pi-1
broker: {host: farm-a.local}
task: {name: soil-moisture}
data: {station: "03047"}
"""


def load(tmp_path: Path, text: str) -> ClientConfig:
    path = tmp_path / "client.yaml"
    path.write_text(CLIENT + text)
    return load_role(path, ClientConfig)


def test_all_rules_are_read(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        "may_train:\n  hours: 22:00-06:00\n  temperature_below: 70\n  mains: true\n  battery_above: 40 %\n"
        "  load_below: 50 %\n  unmetered: true\n",
    ).may_train
    assert rules is not None
    assert (rules.hours, rules.temperature_below, rules.mains) == (((1320, 360),), 70.0, True)
    assert (rules.battery_above, rules.load_below, rules.unmetered) == (0.4, 0.5, True)


def test_without_rules_a_board_always_may(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert (config.may_train, config.priority) == (None, "low")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("hours: 25:00-26:00", "holds a time that no day has"),
        ("hours: 10:00-10:75", "holds a time that no day has"),
        ("hours: 10:00-10:00", "begins when it ends"),
        ("hours: at night", "must be a span of the day, such as 22:00-06:00"),
        ("hours: 22:00", "must be a span of the day"),
        ("hours: []", "must be one to 24 spans"),
        ("temperature_below: 500", "120"),
        ("load_below: 50", "did you mean '50 %'"),
        ("temprature_below: 70", "temperature_below"),
        ("mains: false", "has no rule: leave may_train out"),
    ],
)
def test_mistakes_are_told_at_their_place(tmp_path: Path, text: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"may_train:\n  {text}\n")
    assert mistake in str(caught.value)
    assert ":7:" in str(caught.value) or ":8:" in str(caught.value)


def test_a_span_may_go_over_midnight_and_a_day_ends_at_24() -> None:
    assert parse_hours("23:30-0:30") == ((1410, 30),)
    assert parse_hours("00:00-24:00") == ((0, 1440),)
