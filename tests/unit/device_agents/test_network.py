"""Whether a link is metered, from routes as the kernel lists them and words as NetworkManager prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.network import default_interface, is_metered

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
ROUTES = (
    HEAD
    + "wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
    + "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    + "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)
MOBILE = HEAD + "wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
ZERO = "0" * 32
IPV6 = (
    f"fe800000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001 eth0\n"
    f"{ZERO} 00 {ZERO} 00 fe8000000000000000000000000000aa 00000400 00000003 00000000 00450003 wlan0\n"
    f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200 lo\n"
)


def put(root: Path, name: str, text: str) -> None:
    path = root / "proc/net" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def silent(*_command: str) -> str:
    return ""


def test_the_preferred_default_route_counts(tmp_path: Path) -> None:
    put(tmp_path, "route", ROUTES)
    put(tmp_path, "ipv6_route", IPV6)
    assert default_interface(tmp_path) == "eth0"
    put(tmp_path, "route", HEAD)
    assert default_interface(tmp_path) == "wlan0"
    put(tmp_path, "ipv6_route", "")
    assert default_interface(tmp_path) is None


@pytest.mark.parametrize(
    ("word", "metered"),
    [("yes", True), ("yes (guessed)", True), ("no", False), ("no (guessed)", False)],
)
def test_network_manager_knows_what_people_set(tmp_path: Path, word: str, metered: bool) -> None:
    put(tmp_path, "route", MOBILE)
    asked: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        asked.append(command)
        return f"GENERAL.METERED:{word}\n"

    assert is_metered(tmp_path, run) is metered
    assert asked == [("nmcli", "--terse", "--fields", "GENERAL.METERED", "device", "show", "wwan0")]


@pytest.mark.parametrize("said", ["", "GENERAL.METERED:unknown\n"])
def test_without_its_word_only_the_name_of_a_mobile_network_tells(tmp_path: Path, said: str) -> None:
    put(tmp_path, "route", MOBILE)
    assert is_metered(tmp_path, lambda *_command: said)
    put(tmp_path, "route", ROUTES)
    assert not is_metered(tmp_path, lambda *_command: said)


def test_a_board_without_a_way_out_has_no_metered_link(tmp_path: Path) -> None:
    assert not is_metered(tmp_path, silent)
