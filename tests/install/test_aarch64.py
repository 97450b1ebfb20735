"""Every pinned package installs on an ARM board without a compiler: the index has a wheel for it, or a pure one.

Asked through pip, so of the index that pip is configured for; pip reads names and metadata, it fetches no wheel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
#: The oldest C library of these boards is that of JetPack 6, Ubuntu 22.04.
GLIBC = 35
#: It asks the index some sixty times for each Python.
ASK = "HFL_ASK_INDEX"


def pins(python: str) -> list[str]:
    """Return what constraints.txt pins for a Python on an ARM board: `name==version`."""
    board = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "aarch64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }

    def needed() -> Iterator[str]:
        for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate(board):
                    yield f"{requirement.name}{requirement.specifier}"

    return list(needed())


def lacking(python: str, requirements: list[str]) -> list[str]:
    """Return those for which pip finds no wheel for a board with that Python; nothing is installed."""
    found = ask(python, *requirements)
    if found is None and len(requirements) > 1:  # it stops at the first: ask for each
        return [one for requirement in requirements for one in lacking(python, [requirement])]
    if found is None:
        return requirements
    return [
        f"{name}=={version}"
        for name, version, takes in found
        # A pip that is older than 24 holds what packages say of this to its own Python, so it is told not to look.
        if not SpecifierSet(takes).contains(f"{python}.12")
    ]


def ask(python: str, *requirements: str) -> list[tuple[str, str, str]] | None:
    """Return name, version and the Pythons taken of what pip would install on a board; None where it finds no wheel."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1))]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--no-deps", "--only-binary=:all:", "--target", tempfile.gettempdir()]
    command += ["--implementation", "cp", "--python-version", python, "--ignore-requires-python", "--report", "-"]
    command += [part for platform in platforms for part in ("--platform", platform)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        return None
    told = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return [(item["name"], item["version"], item.get("requires_python", "")) for item in told]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_is_pinned_once(python: str) -> None:
    names = [pin.partition("==")[0] for pin in pins(python)]
    assert [name for name in names if names.count(name) > 1] == []
    assert {"torch", "numpy", "paho-mqtt", "pydantic-core", "zstandard"} <= set(names)


@pytest.mark.skipif(ASK not in os.environ, reason=f"takes minutes and the network: set {ASK}=1")
@pytest.mark.parametrize("python", PYTHONS)
def test_an_arm_board_needs_no_compiler(python: str) -> None:
    if ask(python, "packaging") is None:
        pytest.skip("no index answers")
    assert lacking(python, pins(python)) == []
