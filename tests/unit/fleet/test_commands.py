"""The fleet commands as a person types them: words, exit codes, and the question before anything is overwritten."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
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


def answered(line: str, answer: str, folder: Path) -> Ended:
    """Run `hfl ...` with a terminal at which somebody types one answer to its questions."""
    ours, its = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "hfl_mqtt.cli", *line.split()],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200"},
            stdin=its,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(its)
    return Ended(done.returncode, done.stdout, done.stderr)


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


@pytest.mark.parametrize("command", [f"revoke {PI_1}", f"rotate {PI_1}"])
def test_who_says_no_at_a_terminal_has_done_nothing(orchard: Hfl, tmp_path: Path, command: str) -> None:
    book = (tmp_path / "orchard/authority/issued.json").read_text()
    ended = answered(f"fleet {command} --dir orchard", "n", tmp_path)
    assert ended.code == 2
    assert PI_1 in ended.out
    assert re.search(r"nothing was (revoked|issued)", ended.err)
    assert (tmp_path / "orchard/authority/issued.json").read_text() == book


def test_who_says_yes_to_revoking_and_no_to_the_files_is_told_what_holds(orchard: Hfl, tmp_path: Path) -> None:
    ended = answered(f"fleet revoke {PI_1} --dir orchard", "y\nn", tmp_path)
    assert ended.code == 2
    assert f"{PI_1} is revoked, and only the files are not rendered" in " ".join(ended.err.split())
    assert f"{PI_1}: revoked" in orchard("fleet status --dir orchard").out


@pytest.mark.parametrize(("command", "what"), [("revoke", "papers"), ("rotate", "papers"), ("sign", "fingerprint")])
def test_the_help_of_yes_says_what_is_not_asked(hfl: Hfl, command: str, what: str) -> None:
    assert re.search(rf"--yes.*{what}.*without asking", " ".join(hfl(f"fleet {command} --help").out.split()))


def test_a_viewers_password_is_rotated_as_papers_are_and_shown_nowhere(orchard: Hfl, tmp_path: Path) -> None:
    secret = tmp_path / "orchard/secrets/viewer"
    old = secret.read_text().strip()
    passwords = (tmp_path / "orchard/passwords.yaml").read_text()
    ended = orchard("fleet rotate viewer --dir orchard")
    assert ended.code == 2
    assert "viewer: a new password" in ended.out
    assert "there is no terminal to ask at: give --yes" in ended.err
    ended = answered("fleet rotate viewer --dir orchard", "n", tmp_path)
    assert ended.code == 2
    assert "nothing was drawn" in ended.err
    assert (tmp_path / "orchard/passwords.yaml").read_text() == passwords
    ended = orchard("fleet rotate viewer --dir orchard --yes")
    assert ended.code == 0
    assert "drawn      a new password of viewer, in orchard/secrets/viewer" in ended.out
    assert "Next: brokers/cloud/passwd to the machine of the broker of cloud, and reload it" in ended.out
    assert "Next: brokers/farm-a/passwd to the machine of the broker of farm-a, and reload it" in ended.out
    assert old not in ended.out
    assert secret.read_text().strip() not in ended.out
    assert secret.read_text().strip() != old
    assert orchard("fleet status --dir orchard").code == 0


def test_who_says_yes_to_a_new_password_and_no_to_the_files_is_told_what_holds(orchard: Hfl, tmp_path: Path) -> None:
    ended = answered("fleet rotate viewer --dir orchard", "y\nn", tmp_path)
    assert ended.code == 2
    assert "viewer has a new password, and only the files are not rendered: hfl fleet render does so" in " ".join(
        ended.err.split()
    )
    told = orchard("fleet status --dir orchard").out
    assert "Not as the site file says: secrets/viewer, brokers/cloud/passwd, brokers/farm-a/passwd" in told


@pytest.mark.parametrize("command", [f"revoke {PI_1}", f"rotate {PI_1}"])
def test_where_there_are_only_passwords_no_authority_is_missed(hfl: Hfl, command: str) -> None:
    hfl("fleet init orchard --passwords")
    hfl("fleet add farm farm-a --devices 1 --dir orchard")
    ended = hfl(f"fleet {command} --dir orchard --yes")
    assert ended.code == 2
    assert "security is passwords, so there are no papers" in ended.err


def test_who_is_revoked_already_is_said_to_be(orchard: Hfl) -> None:
    assert orchard(f"fleet revoke {PI_1} --dir orchard --yes").code == 0
    ended = orchard(f"fleet revoke {PI_1} --dir orchard --yes")
    assert ended.code == 2
    assert f"{PI_1}: is revoked already" in ended.err
    assert "did you mean" not in ended.err


def test_a_slip_of_the_hand_is_guessed_at_within_its_farm_only(orchard: Hfl) -> None:
    assert "did you mean cloud/farm-a/pi-1?" in orchard("fleet revoke farm-a/pi-11 --dir orchard --yes").err
    assert "did you mean" not in orchard("fleet revoke farm-b/pi-1 --dir orchard --yes").err
    # Of a device that is there and has nothing but its newest papers nobody else is meant.
    ended = orchard(f"fleet revoke {PI_1} --old --dir orchard --yes")
    assert "has no papers but the newest that are good" in ended.err
    assert "did you mean" not in ended.err


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
    assert "bundles/cloud.farm-a.own.tar to its board" in ended.out
    assert (tmp_path / "orchard/bundles/cloud.farm-a.own.tar").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fleet render", "site.yaml: no such file; begin with `hfl fleet init NAME`"),
        ("fleet status --dir nowhere", "begin with `hfl fleet init NAME`"),
        ("fleet init a/b", "federation: a name is letters, digits"),
        ("fleet rotate", "say which: a node's path, an account with a password, or --all"),
        ("fleet sign none.request", "site.yaml: no such file"),
        ("device request -f orchard --name pi-1 --out board", "is no name for a device"),
    ],
)
def test_what_cannot_be_is_one_message(hfl: Hfl, line: str, words: str) -> None:
    ended = hfl(line)
    assert ended.code == 2
    assert words in ended.err


def test_the_same_fingerprint_stands_on_the_board_and_where_it_is_signed(orchard: Hfl, tmp_path: Path) -> None:
    orchard("fleet add device own --farm farm-a --own-key --dir orchard")
    asked = orchard("device request -f orchard --name cloud/farm-a/own --out board").out
    found = re.search(r"fingerprint ((?:[0-9a-f]{4} ){7}[0-9a-f]{4})\n", asked)
    assert found is not None
    book = (tmp_path / "orchard/authority/issued.json").read_text()
    nobody = orchard("fleet sign board/own.request --dir orchard")
    assert (nobody.code, found[1] in nobody.out) == (2, True)
    assert "give --yes" in nobody.err
    no = answered("fleet sign board/own.request --dir orchard", "n", tmp_path)
    assert (no.code, found[1] in no.out) == (2, True)
    assert "nothing was signed" in no.err
    assert (tmp_path / "orchard/authority/issued.json").read_text() == book


def test_a_key_that_lay_there_is_said_to_be_kept(hfl: Hfl) -> None:
    line = f"device request -f orchard --name {PI_1} --out board"
    assert "kept" not in hfl(line).out
    assert "kept       board/node.key" in hfl(line).out


def test_each_step_says_what_to_do_next(orchard: Hfl) -> None:
    orchard("fleet add device pi-3 --farm farm-a --dir orchard")
    ended = orchard("fleet render --dir orchard --yes")
    assert (
        "Next: bundles/cloud.farm-a.pi-3.tar to its board, there: sudo device_agents/install.sh --bundle" in ended.out
    )
    assert "Next: brokers/farm-a/acl to the machine of the broker of farm-a, and reload it" in ended.out
    ended = orchard(f"fleet rotate {PI_1} --dir orchard --yes")
    assert "Next: bundles/cloud.farm-a.pi-1.tar to its board" in ended.out
    ended = orchard("fleet rotate cloud/farm-a --dir orchard --yes")
    assert (
        "Next: brokers/farm-a/bridge.crt and its key and brokers/farm-a/broker.crt and its key to the machine of the "
        "broker of farm-a, and restart it" in ended.out
    )
    assert "Next: bundles/cloud.farm-a.tar to its board" in ended.out


def test_a_first_rendering_is_summed_up_by_folder_and_leads_on(hfl: Hfl) -> None:
    hfl("fleet init orchard")
    hfl("fleet add farm farm-a --devices 9 --dir orchard")
    ended = hfl("fleet render --dir orchard")
    assert len(ended.out.splitlines()) < 16
    assert re.search(r"^wrote      bundles/: 11 files$", ended.out, re.MULTILINE)
    assert "Next: hfl fleet up --dir orchard" in ended.out


def test_an_authority_that_is_away_is_not_to_be_made_anew(orchard: Hfl, tmp_path: Path) -> None:
    (tmp_path / "orchard/authority").rename(tmp_path / "away")
    for folder in (None, tmp_path / "orchard/authority"):
        if folder is not None:  # where a stick was, an empty folder is
            folder.mkdir()
        ended = orchard("fleet status --dir orchard")
        assert ended.code == 2
        assert "mount the stick that `authority:` in the site file names, or restore the backup" in " ".join(
            ended.err.split()
        )
        assert "fleet init" not in ended.err


def test_what_was_not_begun_leaves_nothing_and_claims_nothing(hfl: Hfl, tmp_path: Path) -> None:
    ended = hfl("fleet init a/b --dir x1")
    assert ended.code == 2
    assert "site.yaml:" not in ended.err.replace("site.yaml: nothing was written", "")
    (tmp_path / "file").write_text("")
    ended = hfl("fleet init orchard --dir x3 --authority ../file/authority")
    assert (ended.code, ended.out) == (1, "")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_a_fleet_that_is_not_rendered_does_not_come_up(hfl: Hfl) -> None:
    hfl("fleet init orchard")
    ended = hfl("fleet up --dir orchard")
    assert ended.code == 2
    assert "first: hfl fleet render" in ended.err
