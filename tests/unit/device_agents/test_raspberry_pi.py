"""What only a Raspberry Pi tells: weak supplies and a firmware that slows it down."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.boards.raspberry_pi import vitals


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def silent(*_command: str) -> str:
    return ""


FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("flags", "undervoltage", "throttled", "since_start"),
    [
        ("0\n", 0, 0, "never"),
        ("50005\n", 1, 1, "under-voltage, throttled"),
        ("0x50000", 0, 0, "under-voltage, throttled"),
        ("80008", 0, 1, "soft temperature limit"),
        ("2", 0, 1, "never"),
    ],
)
def test_the_firmwares_flags_say_what_is_and_what_has_been(
    tmp_path: Path, flags: str, undervoltage: int, throttled: int, since_start: str
) -> None:
    put(tmp_path, FLAGS, flags)
    assert vitals(tmp_path, silent) == {
        "undervoltage": undervoltage,
        "throttled": throttled,
        "throttled_since_start": since_start,
    }


def test_a_kernel_without_the_flags_leaves_the_boards_own_tool(tmp_path: Path) -> None:
    said = {("vcgencmd", "get_throttled"): "throttled=0x10001\n"}
    assert vitals(tmp_path, lambda *command: said[command]) == {
        "undervoltage": 1,
        "throttled": 0,
        "throttled_since_start": "under-voltage",
    }


@pytest.mark.parametrize(("alarm", "undervoltage"), [("1\n", 1), ("0\n", 0)])
def test_where_neither_speaks_the_monitor_of_the_supply_does(tmp_path: Path, alarm: str, undervoltage: int) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", alarm)
    assert vitals(tmp_path, silent) == {"undervoltage": undervoltage}


@pytest.mark.parametrize(
    "said", ["VCHI initialization failed\n", "throttled=", "throttled=0xzz", "throttled=0x123456789"]
)
def test_a_board_that_says_nothing_of_use_has_no_such_vitals(tmp_path: Path, said: str) -> None:
    put(tmp_path, FLAGS, "no firmware")
    assert vitals(tmp_path, lambda *_command: said) == {}
