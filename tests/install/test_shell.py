"""install.sh as a text: bash and shellcheck can read it, and its help says all."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "device_agents" / "install.sh"


def test_bash_can_read_it() -> None:
    command = ["bash", "-n", str(SCRIPT)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command = ["shellcheck", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == ""


def test_root_imports_nothing_from_the_folder_it_stands_in_nor_does_the_service() -> None:
    """`python -m` and `python -c` look there first, unless they are told -I."""
    started = re.findall(
        r'^.*(?:python"|has_venv\(\) \{ "\$1") -(?!-version).*', SCRIPT.read_text("utf-8"), re.MULTILINE
    )
    assert len(started) > 9
    assert [line for line in started if not re.search(r'(python|\$1)" -I -[mc] ', line)] == []
    unit = SCRIPT.with_name("hfl.service").read_text(encoding="utf-8")
    assert "ExecStart=/opt/hfl-mqtt/venv/bin/python -I -m device_agents " in unit


def test_its_help_names_every_option_and_every_exit_code_and_has_examples() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    told = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    options = re.findall(r"^        (?:-h \| )?(--[a-z-]+)\)", text, re.MULTILINE)
    assert len(options) > 10
    assert [option for option in options if option not in told] == []
    codes = {int(code) for code in re.findall(r"\bdie (\d)", text)}
    assert [code for code in codes if not re.search(rf"(^|  ){code}  \S", told, re.MULTILINE)] == []
    assert "sudo ./install.sh --bundle" in told
