"""Boards, told apart by what their file systems say."""

from __future__ import annotations

from pathlib import Path

from device_agents.boards import Kind, detect


def put(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_raspberry_pi_says_so_in_its_device_tree(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", b"Raspberry Pi 4 Model B Rev 1.4\0")
    put(tmp_path, "proc/stat", b"cpu  1 2 3 4\n" + b"".join(b"cpu%d 1 2 3 4\n" % core for core in range(4)))
    board = detect(tmp_path, "aarch64")
    assert board.kind is Kind.RASPBERRY_PI
    assert board.hardware == "Raspberry Pi 4 Model B Rev 1.4, aarch64, 4 cores"


def test_a_jetson_says_so_in_its_device_tree(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", b"NVIDIA Jetson Orin Nano Developer Kit\0")
    assert detect(tmp_path).kind is Kind.JETSON


def test_an_older_jetson_is_known_by_its_release_file(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", b"quill\0")
    put(tmp_path, "etc/nv_tegra_release", b"# R32 (release), REVISION: 7.1\n")
    board = detect(tmp_path, "aarch64")
    assert (board.kind, board.hardware) == (Kind.JETSON, "quill, aarch64, 1 core")


def test_a_jetson_in_a_container_has_no_device_tree(tmp_path: Path) -> None:
    put(tmp_path, "etc/nv_tegra_release", b"# R36\n")
    assert detect(tmp_path).model == "NVIDIA Jetson"


def test_another_board_is_generic_under_its_own_name(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", b"Xunlong Orange Pi Zero2\0")
    assert (detect(tmp_path).kind, detect(tmp_path).model) == (Kind.GENERIC, "Xunlong Orange Pi Zero2")


def test_a_pc_is_named_by_its_bios_and_a_nameless_machine_by_its_processor(tmp_path: Path) -> None:
    assert detect(tmp_path, "x86_64").hardware == "x86_64, 1 core"
    put(tmp_path, "sys/class/dmi/id/product_name", b"NUC11\n")
    assert detect(tmp_path, "x86_64").hardware == "NUC11, x86_64, 1 core"


def test_what_a_board_says_is_cut_and_holds_nothing_unprintable(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", b"\x1b[31m\xff" + b"x" * 1000)
    model = detect(tmp_path).model
    assert model.isprintable()
    assert len(model) <= 200
