"""The fleet commands as a person types them: words, exit codes, and the question before anything is overwritten."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hfl_mqtt import cli

COMMANDS = [
    "fleet init",
    "fleet add farm",
    "fleet add device",
    "fleet render",
    "fleet revoke",
    "fleet rotate",
    "fleet sign",
    "fleet status",
    "fleet up",
    "device request",
]
PI_1 = "cloud/farm-a/pi-1"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Hfl = Callable[..., Ended]


@pytest.fixture
def hfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Hfl:
    """Run `hfl ...` here, in an empty folder, where nobody can answer a question."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hfl", *line.split()])
        monkeypatch.setattr(logging.getLogger("hfl_mqtt"), "handlers", [])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


@pytest.fixture
def orchard(hfl: Hfl) -> Hfl:
    """A fleet of two devices in `orchard`, rendered."""
    for line in ("init orchard", "add farm farm-a --devices 2 --dir orchard", "render --dir orchard"):
        assert hfl(f"fleet {line}").code == 0
    return hfl


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example_of_this_very_command(hfl: Hfl, command: str) -> None:
    ended = hfl(f"{command} --help")
    assert ended.code == 0
    assert re.search(rf"Examples?:.*hfl {command}", " ".join(ended.out.split()))


def test_three_commands_make_a_fleet_and_the_fourth_says_that_all_is_well(hfl: Hfl) -> None:
    assert "Next: hfl fleet add farm" in hfl("fleet init orchard --cloud-host cloud.example").out
    assert hfl("fleet add farm farm-a --devices pi-1,jetson-1 --dir orchard").out == (
        "added      cloud/farm-a with 2 devices\n"
    )
    assert "2 brokers, 4 bundles: " in hfl("fleet render --dir orchard").out
    assert hfl("fleet status --dir orchard").code == 0


def test_rendering_again_says_that_nothing_has_changed(orchard: Hfl) -> None:
    ended = orchard("fleet render --dir orchard")
    assert (ended.code, ended.out) == (0, "2 brokers, 4 bundles: nothing has changed.\n")
    assert json.loads(orchard("fleet render --dir orchard --json").out) == {"changed": []}


def test_where_nobody_can_be_asked_nothing_is_overwritten_without_yes(orchard: Hfl, tmp_path: Path) -> None:
    assert orchard("fleet add device pi-3 --farm farm-a --dir orchard").out == "added      cloud/farm-a/pi-3\n"
    before = (tmp_path / "orchard/brokers/farm-a/acl").read_text()
    ended = orchard("fleet render --dir orchard")
    assert ended.code == 2
    assert "+user cloud/farm-a/pi-3" in ended.out
    assert "there is no terminal to ask at: give --yes" in ended.err
    assert (tmp_path / "orchard/brokers/farm-a/acl").read_text() == before
    assert orchard("fleet render --dir orchard --yes").code == 0
    assert "user cloud/farm-a/pi-3" in (tmp_path / "orchard/brokers/farm-a/acl").read_text()


@pytest.mark.parametrize("command", [f"revoke {PI_1}", f"rotate {PI_1}", "rotate --all"])
def test_papers_are_not_touched_either(orchard: Hfl, tmp_path: Path, command: str) -> None:
    book = (tmp_path / "orchard/authority/issued.json").read_text()
    ended = orchard(f"fleet {command} --dir orchard")
    assert ended.code == 2
    assert "give --yes" in ended.err
    assert (tmp_path / "orchard/authority/issued.json").read_text() == book


def test_a_stolen_board_is_shut_out_with_one_command_and_the_status_says_so(orchard: Hfl) -> None:
    ended = orchard(f"fleet revoke {PI_1} --dir orchard --yes")
    assert ended.code == 0
    assert re.search(rf"revoked    {PI_1} \(serial \d+\)", ended.out)
    assert "systemctl reload mosquitto" in ended.out
    told = orchard("fleet status --dir orchard")
    assert told.code == 1
    assert f"{PI_1}: revoked" in told.out
    rows = {row["name"]: row for row in json.loads(orchard("fleet status --dir orchard --json").out)["papers"]}
    assert (rows[PI_1]["standing"], rows["cloud"]["standing"]) == ("revoked", "good")
    assert rows["cloud"]["days_left"] == 729


def test_a_board_asks_with_a_key_of_its_own_and_is_signed_for(orchard: Hfl, tmp_path: Path) -> None:
    orchard("fleet add device own --farm farm-a --own-key --dir orchard")
    path = "cloud/farm-a/own"
    assert "hfl fleet sign own.request" in orchard(f"device request -f orchard --name {path} --out board").out
    ended = orchard("fleet sign board/own.request --dir orchard --yes")
    assert ended.code == 0
    assert f"signed     {path}\n" in ended.out
    assert (tmp_path / "orchard/bundles/cloud.farm-a.own.tar").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fleet render", "site.yaml: no such file; begin with `hfl fleet init NAME`"),
        ("fleet status --dir nowhere", "begin with `hfl fleet init NAME`"),
        ("fleet init a/b", "federation: a name is letters, digits"),
        ("fleet rotate", "say which: a node's path, or --all"),
        ("fleet sign none.request", "site.yaml: no such file"),
        ("device request -f orchard --name pi-1 --out board", "is no name for a device"),
    ],
)
def test_what_cannot_be_is_one_message(hfl: Hfl, line: str, words: str) -> None:
    ended = hfl(line)
    assert ended.code == 2
    assert words in ended.err


def test_a_fleet_that_is_not_rendered_does_not_come_up(hfl: Hfl) -> None:
    hfl("fleet init orchard")
    ended = hfl("fleet up --dir orchard")
    assert ended.code == 2
    assert "first: hfl fleet render" in ended.err
