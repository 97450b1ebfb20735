"""What only a Jetson tells: its power mode, and its GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.boards.jetson import vitals

MODES = """\
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=7W >
"""


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_power_mode_has_the_name_that_the_board_gives_it(tmp_path: Path) -> None:
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0001 fmode:fanNull\n")
    assert vitals(tmp_path) == {"power_mode": "1"}
    put(tmp_path, "etc/nvpmodel.conf", MODES)
    assert vitals(tmp_path) == {"power_mode": "7W"}


@pytest.mark.parametrize(
    "where",
    [
        "sys/devices/gpu.0",  # JetPack 4, Nano
        "sys/devices/platform/gpu.0",  # JetPack 5, Orin
        "sys/class/devfreq/17000000.gpu/device",  # JetPack 6, Orin
        "sys/class/devfreq/17000000.gv11b/device",  # Xavier
        "sys/class/devfreq/17000000.ga10b/device",
    ],
)
def test_the_load_of_the_gpu_stands_elsewhere_in_each_jetpack(tmp_path: Path, where: str) -> None:
    put(tmp_path, f"{where}/load", "437\n")
    assert vitals(tmp_path) == {"gpu_percent": 43.7}


@pytest.mark.parametrize("said", ["", "busy", "-1", "1001"])
def test_a_load_that_cannot_be_is_left_out(tmp_path: Path, said: str) -> None:
    put(tmp_path, "sys/devices/gpu.0/load", said)
    assert vitals(tmp_path) == {}


def test_another_device_that_scales_its_clock_is_no_gpu(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/devfreq/15340000.vic/device/load", "900")
    assert vitals(tmp_path) == {}


def test_of_several_sensors_on_the_gpu_the_hottest_counts(tmp_path: Path) -> None:
    for number, (kind, millidegrees) in enumerate(
        [("cpu-thermal", "70000"), ("gpu-thermal", "51500"), ("GPU-therm", "-256000")]
    ):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", kind)
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", millidegrees)
    assert vitals(tmp_path) == {"gpu_temperature_c": 51.5}
