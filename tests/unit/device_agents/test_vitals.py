"""Vitals read from trees of files as boards have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.vitals import FRESH_S, Vitals, battery, cores, cpu_percent, cpu_ticks, load, memory, temperature

#: user nice system idle iowait irq softirq steal guest guest_nice
STAT = "cpu  {busy} 0 0 {idle} 100 0 0 0 7 7\ncpu0 1 0 0 1 0 0 0 0 0 0\ncpu1 1 0 0 1 0 0 0 0 0 0\nintr 5\n"


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_zone(root: Path, number: int, kind: str, millidegrees: str) -> None:
    put(root, f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
    put(root, f"sys/class/thermal/thermal_zone{number}/temp", f"{millidegrees}\n")


def test_waiting_for_the_disk_is_not_being_busy_and_guests_count_once(tmp_path: Path) -> None:
    put(tmp_path, "proc/stat", STAT.format(busy=300, idle=600))
    assert cpu_ticks(tmp_path) == (300, 1000)
    assert cores(tmp_path) == 2


@pytest.mark.parametrize("text", ["", "cpu 1 2", "cpu a b c d e", "intr 1 2 3 4 5"])
def test_a_processor_that_says_nothing_is_left_out(tmp_path: Path, text: str) -> None:
    put(tmp_path, "proc/stat", text)
    assert cpu_ticks(tmp_path) is None
    assert cores(tmp_path) == 1


def test_the_share_is_that_between_two_looks() -> None:
    assert cpu_percent((0, 0), (1, 4)) == 25.0
    assert cpu_percent((0, 0), (3, 3)) == 100.0
    assert cpu_percent((5, 10), (5, 10)) is None
    assert cpu_percent(None, (1, 2)) is None
    assert cpu_percent((8, 10), (4, 20)) == 0.0  # counters of a core that went offline


def test_memory_in_use_is_what_is_not_available(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal:  1000000 kB\nMemFree:  10 kB\nMemAvailable:  750000 kB\n")
    assert memory(tmp_path) == {"memory_mb": 256.0, "memory_percent": 25.0}


def test_load_is_in_percent_of_the_cores(tmp_path: Path) -> None:
    put(tmp_path, "proc/stat", STAT.format(busy=1, idle=1))
    put(tmp_path, "proc/loadavg", "3.00 1.50 0.90 2/345 6789\n")
    assert load(tmp_path) == {"load_percent": 150.0}


def test_a_raspberry_pi_has_one_sensor(tmp_path: Path) -> None:
    put_zone(tmp_path, 0, "cpu-thermal", "48312")
    assert temperature(tmp_path) == {"temperature_c": 48.3}


def test_of_a_jetson_the_hottest_processor_sensor_counts_and_never_its_power_chip(tmp_path: Path) -> None:
    for number, (kind, millidegrees) in enumerate(
        [("GPU-therm", "61000"), ("CPU-therm", "52500"), ("CPU1-therm", "53500"), ("PMIC-Die", "100000")]
    ):
        put_zone(tmp_path, number, kind, millidegrees)
    assert temperature(tmp_path) == {"temperature_c": 53.5}


def test_without_a_sensor_on_the_processor_the_hottest_counts(tmp_path: Path) -> None:
    put_zone(tmp_path, 0, "acpitz", "27800")
    put_zone(tmp_path, 1, "iwlwifi_1", "41000")
    assert temperature(tmp_path) == {"temperature_c": 41.0}


@pytest.mark.parametrize("said", ["", "no data", "-274000", "250000"])
def test_a_sensor_that_cannot_be_read_or_says_nonsense_is_left_out(tmp_path: Path, said: str) -> None:
    put_zone(tmp_path, 0, "cpu-thermal", said)
    assert temperature(tmp_path) == {}


def test_where_no_zone_is_the_hardware_monitors_are_read(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "k10temp\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", "55125\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "nvme\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/temp1_input", "70000\n")
    assert temperature(tmp_path) == {"temperature_c": 55.1}


def test_a_board_that_tells_nothing_has_no_vitals(tmp_path: Path) -> None:
    assert Vitals(tmp_path)() == {}


def test_vitals_are_of_the_time_since_the_last_look_and_shared_by_those_who_look_at_once(tmp_path: Path) -> None:
    now = 0.0
    put(tmp_path, "proc/stat", STAT.format(busy=0, idle=0))
    vitals = Vitals(tmp_path, lambda: now)
    put(tmp_path, "proc/stat", STAT.format(busy=10, idle=30))
    assert vitals() == {"cpu_percent": 25.0}
    put(tmp_path, "proc/stat", STAT.format(busy=20, idle=30))
    assert vitals() == {"cpu_percent": 25.0}
    now = FRESH_S
    assert vitals() == {"cpu_percent": 100.0}


def put_supply(root: Path, name: str, **files: str) -> None:
    for file, text in files.items():
        put(root, f"sys/class/power_supply/{name}/{file}", f"{text}\n")


def test_a_board_without_a_battery_says_nothing_of_one(tmp_path: Path) -> None:
    put_supply(tmp_path, "rpi-usb", type="USB", online="1")
    put_supply(tmp_path, "hid-mouse", type="Battery", scope="Device", capacity="3", status="Discharging")
    assert battery(tmp_path) == {}


@pytest.mark.parametrize(
    ("plugged", "status", "on_battery"),
    [("1", "Discharging", 0), ("0", "Charging", 0), ("0", "Full", 0), ("0", "Discharging", 1), ("0", "Unknown", 1)],
)
def test_a_board_is_on_battery_where_nothing_feeds_it(
    tmp_path: Path, plugged: str, status: str, on_battery: int
) -> None:
    put_supply(tmp_path, "AC", type="Mains", online=plugged)
    put_supply(tmp_path, "BAT0", type="Battery", capacity="64", status=status)
    assert battery(tmp_path) == {"on_battery": on_battery, "battery_percent": 64}


def test_of_two_batteries_the_emptier_counts_and_a_gauge_may_be_silent(tmp_path: Path) -> None:
    put_supply(tmp_path, "BAT0", type="Battery", capacity="64", status="Discharging")
    put_supply(tmp_path, "BAT1", type="UPS", capacity="31", status="Discharging")
    put_supply(tmp_path, "BAT2", type="Battery", capacity="400")
    assert battery(tmp_path) == {"on_battery": 1, "battery_percent": 31}
    put_supply(tmp_path, "BAT0", capacity="")
    put_supply(tmp_path, "BAT1", capacity="")
    assert battery(tmp_path) == {"on_battery": 1}


def test_what_only_such_a_board_tells_stands_beside_the_rest(tmp_path: Path) -> None:
    assert Vitals(tmp_path, own=lambda root: {"undervoltage": int(root == tmp_path)})() == {"undervoltage": 1}
