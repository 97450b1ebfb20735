"""An edge and its standby on a real broker: one speaks, whoever is killed or sleeps, and it knows of its bridge."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.ops import journal
from hfl_mqtt.ops.brokers import secret_path
from tests.broker.processes import Program, until
from tests.broker.sites import WITNESS, Person, RunningSite, running_site

pytestmark = pytest.mark.broker

EDGE = "cloud/farm-a"
STATE, LEASE = f"hfl/fed1/{EDGE}/@/stat/state", f"hfl/fed1/{EDGE}/@/stat/lease"
FOR_S = 3
YAML = """\
role: edge
federation: fed1
name: cloud/farm-a
broker: {{host: 127.0.0.1, port: {port}, password_file: {secret}}}
lease: {{holder: {holder}, for: {for_s} s}}
state_dir: {holder}
"""


class Boards:
    """The processes that may be the edge, and somebody who listens at the farm's broker."""

    def __init__(self, site: RunningSite, folder: Path, stack: ExitStack) -> None:
        self.site, self._folder, self._stack = site, folder, stack
        self.programs: dict[str, Program] = {}
        self.witness = site.person("farm-a", WITNESS, STATE, LEASE).ready()

    def start(self, holder: str) -> None:
        config = self._folder / f"{holder}.yaml"
        secret = secret_path(self.site.directory, EDGE)
        config.write_text(YAML.format(port=self.site.ports["farm-a"], secret=secret, holder=holder, for_s=FOR_S))
        self.programs[holder] = program = Program("edge", "--config", config)
        self._stack.callback(program.kill)
        self.seen(holder, "stands_by")

    def records(self, holder: str, event: str) -> list[dict[str, Any]]:
        path = self._folder / holder / "journal.jsonl"
        return [record for record in journal.read(path) if record["event"] == event] if path.exists() else []

    def seen(self, holder: str, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until so many notes of a kind are in a journal; return the last."""
        return until(lambda: self.records(holder, event)[count - 1 : count], f"{holder}: {event} {count}")[0]

    def said(self, state: str, boot: int) -> None:
        """Wait until the place says this state under this boot."""
        while True:
            heard = json.loads(self.witness.hear(STATE)[-1].payload)
            if (heard["state"], heard["boot"]) == (state, boot):
                return


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Boards]:
    with running_site(tmp_path / "site", farm_a=[]) as site, ExitStack() as stack:
        yield Boards(site, tmp_path, stack)


def test_a_standby_goes_on_when_the_edge_is_killed_and_the_edge_that_comes_back_stands_by(boards: Boards) -> None:
    boards.start("box-1")
    first = boards.seen("box-1", "leads")["epoch"]
    boards.said("ready", first)
    boards.start("box-2")
    boards.programs["box-1"].kill()
    boards.said("lost", first)
    second = boards.seen("box-2", "leads")["epoch"]
    assert second > first
    boards.said("ready", second)
    boards.start("box-1")
    boards.programs["box-2"].end()  # it leaves on purpose: nobody waits for its lease to run out
    boards.said("disconnected", second)
    third = boards.seen("box-1", "leads", 2)["epoch"]
    assert third > second
    boards.said("ready", third)
    assert boards.records("box-1", "steps_down") == []


def test_an_edge_that_slept_steps_down_when_it_wakes_and_says_nothing_more(boards: Boards) -> None:
    boards.start("box-1")
    first = boards.seen("box-1", "leads")["epoch"]
    boards.start("box-2")
    boards.programs["box-1"].signal(signal.SIGSTOP)
    second = boards.seen("box-2", "leads")["epoch"]
    boards.said("ready", second)
    boards.programs["box-1"].signal(signal.SIGCONT)
    assert boards.seen("box-1", "steps_down")["epoch"] == first
    late: Person = boards.site.person("farm-a", WITNESS, STATE).ready()
    heard = json.loads(late.hear(STATE)[-1].payload)
    assert (heard["state"], heard["boot"]) == ("ready", second)


def test_an_edge_knows_when_its_bridge_is_down(boards: Boards) -> None:
    boards.start("box-1")
    boards.seen("box-1", "leads")
    boards.site.relays["farm-a"].cut()
    assert boards.seen("box-1", "bridge")["is_up"] is False
    boards.site.relays["farm-a"].restore()
    assert boards.seen("box-1", "bridge", 2)["is_up"] is True
