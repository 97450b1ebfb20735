"""Scenarios as text: commands, a line of dashes, and the notes that must come of them. See README.md beside this.

python -m tests.scenarios.test_scenarios writes what comes of them now into the files, for a person to read the diff.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.protocol.messages import Late, Tier
from hfl_mqtt.rounds.actions import Note
from hfl_mqtt.sim import Fault, Setting, Trial, tree_of
from hfl_mqtt.sim.faultplan import schedule

FILES = sorted(Path(__file__).parent.glob("*.txt"))
DASHES = "----"
#: Notes that are shown, and what of them; digests, bytes and seconds are not for people.
SHOWN = (
    *("fault", "mended", "accepted", "closed", "missed", "abandoned", "restored", "refused", "declined"),
    *(
        "duplicate",
        "held",
        "extended",
        "halted",
        "went_on",
        "malformed",
        "out_of_date",
        "carries_on",
        "leads",
        "steps_down",
    ),
)
FIELDS = ("what", "epoch", "sender", "round", "of", "staleness", "accepted", "asked", "updates", "waited_for")


class Scene:
    """What a scenario file plays in."""

    def __init__(self) -> None:
        self._trial: Trial | None = None
        self._shown = 0

    def do(self, line: str) -> Iterator[str]:
        """Do one command; gives what is to be seen of it."""
        command, _, rest = line.partition(" ")
        if command == "federation":
            self._trial, self._shown = Trial(_setting(dict(word.split("=") for word in rest.split()))), 0
            self._trial.start()
            return
        assert self._trial is not None, "a scenario starts with: federation edges=... clients=... rounds=..."
        if command == "fault":
            schedule(self._trial, [Fault.parse(rest)])
        elif command == "run":
            yield from self._run(dict(word.split("=") for word in rest.split()))
        elif command == "result":
            yield from self._result()
        else:
            raise AssertionError(f"no command is called {command!r}")

    def _run(self, options: dict[str, str]) -> Iterator[str]:
        assert self._trial is not None
        self._trial.run(until_s=float(options.get("until", 1e6)))
        events = options["show"].split(",") if "show" in options else SHOWN
        whom = options["of"].split(",") if "of" in options else None
        for at_s, path, entry in self._trial.trace[self._shown :]:
            if entry.event in events and (whom is None or path in whom):
                yield _line(at_s, path, entry)
        self._shown = len(self._trial.trace)

    def _result(self) -> Iterator[str]:
        assert self._trial is not None
        trial = self._trial
        result = trial.result(trial.ends.get(trial.root), 0.0)
        train = result.train
        yield f"{result.rounds} rounds; {train.accepted} accepted, {train.counted} counted, {train.late} of them late"
        yield f"{train.given_up} given up, {train.forgotten} forgotten, {train.lost} lost, {train.twice} twice"
        yield from result.problems or ["every invariant held"]
        calm = Trial(replace(trial.setting)).finish()
        yield f"the model is {'that' if calm.model == result.model else 'not that'} of an undisturbed run"


def _setting(given: dict[str, str]) -> Setting:
    edges, clients = int(given.pop("edges")), int(given.pop("clients"))
    late = Late(given.pop("late", "drop"))
    quorum: Any = given.pop("quorum", "all")
    cloud = Tier(
        rounds=int(given.pop("rounds")),
        quorum=edges if quorum == "all" else float(quorum),
        open_for_s=float(given.pop("open_for", 600.0)),
        grace_s=float(given.pop("grace", 30.0)),
        retries=1000,
        codec=(codec := given.pop("codec", "raw").replace("+", " | ")),
        downlink=codec,
        late=late,
    )
    edge = replace(
        cloud,
        rounds=int(given.pop("edge_rounds", 1)),
        quorum=clients // edges if quorum == "all" else float(quorum),
        open_for_s=60.0,
        grace_s=5.0,
        offline_rounds=int(given.pop("offline_rounds", 0)),
    )
    if "buffer" in given:
        cloud = replace(cloud, quorum=int(given.pop("buffer")), grace_s=0.0)
    holders, lease_s = int(given.pop("holders", 1)), float(given.pop("lease", 15.0))
    size, low_s = int(given.pop("size", 4)), float(given.pop("work", 2.0))
    high_s = float(given.pop("work_at_most", low_s))
    assert not given, f"no federation has {given}"
    return Setting(
        tree=tree_of(edges, clients),
        tiers=(cloud, edge),
        size=size,
        work_s=(low_s, high_s),
        holders=holders,
        lease_s=lease_s,
    )


def _line(at_s: float, path: str, entry: Note) -> str:
    said = []
    for key in FIELDS:
        value = entry.fields.get(key)
        if key == "of" and value == entry.fields.get("round"):
            continue
        if isinstance(value, dict):
            value = len(value)
        if value not in (None, "", []) and not (key == "updates" and entry.event == "closed"):
            said.append(f"{key}={_short(str(value))}")
    return f"{at_s:8.2f}  {_short(path):14}  {entry.event:9}  {' '.join(said)}".rstrip()


def _short(path: str) -> str:
    return path.removeprefix("cloud/")


def played(text: str) -> str:
    """Play a scenario and return its text with what came of it."""
    scene = Scene()
    lines: list[str] = []
    found: list[str] = []
    is_expected = False
    for line in text.splitlines():
        if is_expected:
            is_expected = bool(line)
            if is_expected:
                continue
        if line == DASHES:
            lines += [line, *found]
            found, is_expected = [], True
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            found += scene.do(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_comes_of_it_is_what_stands_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert played(text) == text


def test_there_is_a_scenario_for_every_fault() -> None:
    from hfl_mqtt.sim import What

    told = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert [what.value for what in What if f"what={what.value.replace(' ', '-')}" not in told] == []


def main(names: Sequence[str]) -> None:
    """Write what comes of the scenarios of these names, or of all."""
    for path in FILES:
        if not names or path.stem in names:
            path.write_text(played(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
