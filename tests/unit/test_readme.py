"""The README is a contract: its commands exist and run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfl_mqtt.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("    #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
#: These run until they are stopped and need brokers; tests/broker runs them as processes.
LONG = {"cloud", "edge", "client", "demo", "watch", "run", "fleet", "doctor"}
#: Their files are made by the commands before them.
MADE = ("local/", "agent.yaml")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("hfl ")])
def test_every_hfl_command_of_the_readme_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[1:]
    if words[0] in LONG:
        # Its file is right for its role, and its options exist.
        files = [word for word in words if word.endswith(".yaml") and not word.startswith(MADE)]
        assert not files or CliRunner().invoke(app, ["check", *files]).exit_code == 0
        words = [*words[: 2 if words[0] in ("run", "fleet") else 1], "--help"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_the_fleet_of_the_readme_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [shlex.split(command) for command in COMMANDS if command.startswith(("hfl fleet init", "hfl fleet "))]
    made = [
        [word for word in line if word not in ("&&", "cd")] for line in words if line[2] in ("init", "add", "render")
    ]
    for line in made:
        arguments = line[1:-1] if line[2] == "init" else line[1:]  # `cd orchard` is ours
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        monkeypatch.chdir(tmp_path / "orchard")
    assert len(list((tmp_path / "orchard" / "bundles").glob("*.tar"))) == 16


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", README)) - {"where"}))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE))))
def test_every_option_that_the_readme_names_is_an_option_of_the_demo(option: str) -> None:
    assert option in CliRunner().invoke(app, ["demo", "--help"]).output


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_ci_calls_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make check", "make test"} <= set(script.splitlines())
