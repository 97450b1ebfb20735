"""The command line: help with examples, exit codes, and one message without a trace for whatever is given."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hfl_mqtt import __version__, cli
from hfl_mqtt.errors import BrokerError, ConfigError, HflError, RunFailed, TaskError
from hfl_mqtt.ops import mosquitto

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["cloud", "edge", "client", "check", "watch", "brokers render", "demo"]
SITE = """\
role: site
federation: fed1
cloud: {host: cloud.example}
farms:
  - {name: farm-a, devices: [pi-1]}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hfl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run `hfl ...` here, through its entry point, and see it to its end."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hfl", *map(str, arguments)])
        monkeypatch.setattr(logging.getLogger("hfl_mqtt"), "handlers", [])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


Hfl = Callable[..., Ended]


# -------------------------------------------------------------- help


def test_the_first_help_names_every_command_and_one_to_begin_with(hfl: Hfl) -> None:
    ended = hfl("--help")
    assert ended.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command.split()[0]} ", ended.out, re.MULTILINE), command
    assert "Try it: hfl demo" in ended.out
    assert "Exit codes: 2" in ended.out


def test_the_version_is_said(hfl: Hfl) -> None:
    assert hfl("--version") == (0, f"hfl-mqtt {__version__}\n", "")


@pytest.mark.parametrize("command", [*COMMANDS, "brokers", "run", "sensors", "fleet", "device"])
def test_every_help_shows_an_example_of_this_very_command(hfl: Hfl, command: str) -> None:
    ended = hfl(*command.split(), "--help")
    assert ended.code == 0
    assert re.search(rf"Examples?:.*hfl {command}", " ".join(ended.out.split()))


@pytest.mark.parametrize("command", ["", "brokers"])
def test_a_command_without_a_word_more_shows_its_help(hfl: Hfl, command: str) -> None:
    ended = hfl(*command.split())
    assert ended.code == 2
    assert "--help" in ended.out + ended.err


@pytest.mark.parametrize("arguments", [["fly"], ["brokers", "fly"]])
def test_an_unknown_command_is_named(hfl: Hfl, arguments: list[str]) -> None:
    ended = hfl(*arguments)
    assert ended.code == 2
    assert "No such command 'fly'" in ended.err


def test_a_missing_option_is_named(hfl: Hfl) -> None:
    ended = hfl("edge")
    assert ended.code == 2
    assert "--config" in ended.err


# -------------------------------------------------------------- exit codes


def test_every_kind_of_failure_has_a_code_of_its_own() -> None:
    kinds = (HflError, ConfigError, TaskError, BrokerError, RunFailed)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5]


def test_no_word_of_a_node_reaches_the_terminal_as_a_command(
    hfl: Hfl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a run failed of may be told by a device: it ends up in this message.
    ended = hfl("check", tmp_path / "\x1b[2Jno\u202esuch.yaml")
    assert ended.code == 2
    assert r"\x1b[2Jno\u202esuch.yaml" in ended.err
    ended = hfl("cloud", "--config", tmp_path / "\x1b[2Jno\u202esuch.yaml")
    assert ended.code == 2
    assert r"\x1b[2Jno\u202esuch.yaml" in ended.err


# -------------------------------------------------------------- hfl check


def test_good_files_are_fine(hfl: Hfl) -> None:
    ended = hfl("check", ROOT / "configs" / "client.yaml", ROOT / "brokers" / "site.yaml")
    assert ended.code == 0
    assert [line.rpartition("/")[2] for line in ended.out.splitlines()] == [
        "client.yaml: fine, a client's configuration",
        "site.yaml: fine, a site's configuration",
    ]


BAD = """\
role: edge
federation: fed1
name: cloud/farm-a
broker:
  host: 127.0.0.1
  prot: 1883
  keepalive: soon
"""


def test_every_mistake_of_every_file_has_its_place_and_its_remedy(hfl: Hfl, tmp_path: Path) -> None:
    bad, empty, good = tmp_path / "bad.yaml", tmp_path / "empty.yaml", ROOT / "configs" / "edge.yaml"
    bad.write_text(BAD)
    empty.write_text("")
    ended = hfl("check", bad, good, empty, tmp_path / "none.yaml")
    assert ended.code == 2
    assert ended.out == f"{good}: fine, an edge's configuration\n"
    first, second, third, fourth = ended.err.splitlines()
    assert re.fullmatch(rf"{bad}:6:3 broker\.prot: .*did you mean 'port'\?", first)
    assert re.fullmatch(rf"{bad}:7:14 broker\.keepalive: .*", second)
    assert third.startswith(f"{empty}")
    assert fourth.startswith(f"{tmp_path / 'none.yaml'}: no such file")


def test_a_script_gets_the_mistakes_as_json(hfl: Hfl, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.yaml", ROOT / "configs" / "edge.yaml"
    bad.write_text(BAD)
    ended = hfl("check", "--json", bad, good)
    assert ended.code == 2
    rows = json.loads(ended.out)
    assert [(row["file"], row["ok"], len(row["mistakes"])) for row in rows] == [
        (str(bad), False, 2),
        (str(good), True, 0),
    ]


BAD_AGENTS = """\
role: site
federation: fed1
cloud: {host: cloud.example}
farms:
  - name: farm-a
    devices: [pi-1, pi-2]
    data:
      pi-2: {statoin: "03047"}
agents:
  task: {name: soil-moistur}
  data: {station: "03047"}
  cloud:
    rounds: five
    plan: {learnig_rate: 0.1}
  edge: {quorm: 2}
  client:
    broker: {keepalive: soon}
"""


def test_what_a_site_file_says_for_its_agents_is_checked_as_their_own_files_are(hfl: Hfl, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(BAD_AGENTS)
    ended = hfl("check", site)
    assert (ended.code, ended.out) == (2, "")
    lines = [line.removeprefix(f"{site}:") for line in ended.err.splitlines()]
    assert [line.partition(": ")[0] for line in lines] == [
        "10:16 agents.task.name",
        "13:13 agents.cloud.rounds",
        "14:12 agents.cloud.plan.learnig_rate",
        "15:10 agents.edge.quorm",
        "17:25 agents.client.broker.keepalive",
    ]
    assert "did you mean 'learning_rate'?" in lines[2]
    site.write_text(BAD_AGENTS.replace("soil-moistur", "soil-moisture"))
    told = hfl("check", site).err
    assert f"{site}:8:14 farms[0].data.pi-2.statoin: is no option of soil-moisture" in told
    assert "the agent" not in told


def test_a_file_for_another_role_is_said_so(hfl: Hfl) -> None:
    ended = hfl("edge", "--config", ROOT / "configs" / "cloud.yaml")
    assert ended.code == 2
    assert "this file is for 'cloud', a file for 'edge' is wanted" in ended.err


# -------------------------------------------------------------- hfl brokers render


def test_rendering_twice_changes_nothing(hfl: Hfl, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    out = tmp_path / "out"
    first = hfl("brokers", "render", tmp_path / "site.yaml", "--out", out)
    assert first.code == 0
    assert "wrote" in first.out
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(files) > 6
    second = hfl("brokers", "render", tmp_path / "site.yaml", "--out", out, "--json")
    assert second.code == 0
    rows = json.loads(second.out)
    assert {row["path"] for row in rows} == {str(path) for path in files}
    assert not any(row["changed"] for row in rows)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_a_site_that_cannot_be_rendered_is_one_message(hfl: Hfl, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(SITE.replace("farm-a", "farm a"))
    ended = hfl("brokers", "render", site, "--out", tmp_path / "out")
    assert ended.code == 2
    assert ended.err.startswith(f"hfl: {site}:5:")
    site.write_text(SITE)
    (tmp_path / "taken").write_text("a file")
    ended = hfl("brokers", "render", site, "--out", tmp_path / "taken" / "out")
    assert ended.code == 2
    assert "cannot read" in ended.err
    assert "Not a directory" in ended.err


# -------------------------------------------------------------- hfl watch, before it sees a broker


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--federation", "fed1", "--host", "bad host"], "--host: must be a host's name or address alone"),
        (["--federation", "a/b"], "--federation: must be one name"),
        (["--federation", "#"], "--federation: must be one name"),
        (["--federation", "f", "--password-file", "x", "--password-env", "Y"], "--password-env: stands beside"),
        (["--federation", "f", "--password-file", "missing-file"], "the password file missing-file cannot be read"),
        (["--federation", "f", "--password-env", "HFL_TEST_UNSET"], "HFL_TEST_UNSET holds no password"),
        (["--federation", "f", "--user", ""], "--user: "),
        (["--federation", "f", "--ca", __file__, "--cert", __file__], "--cert: stands without --key: "),
        (["--federation", "f", "--port", "70000"], "--port"),
        ([], "--federation"),
    ],
)
def test_a_wrong_option_of_watch_is_one_message(hfl: Hfl, arguments: list[str], words: str) -> None:
    ended = hfl("watch", *arguments)
    assert ended.code == 2
    assert words in ended.err


# -------------------------------------------------------------- hfl demo, before it starts anything


def test_a_machine_without_mosquitto_is_told_how_to_get_it(
    hfl: Hfl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mosquitto, "_SYSTEM_DIRS", str(tmp_path))
    ended = hfl("demo", "--rounds", "1", "--out", tmp_path / "out")
    assert ended.code == 4
    assert "no `mosquitto` on this machine; install it: sudo apt-get install mosquitto" in ended.err
