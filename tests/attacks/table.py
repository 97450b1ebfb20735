"""The table of attacks, for a terminal and as Markdown."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any

from hfl_mqtt.errors import HflError
from tests.attacks.rows import Row, Seen
from tests.attacks.stage import Stage

_HEAD = ("attack", "what was tried", "what happened", "where it is reported")
_NOTE = (
    "A cloud, a farm with its edge and two honest devices, real Mosquittos with certificates for everybody, signatures "
    "on. Each attack uses the papers of a device of its own, as a thief has them who took its board, or speaks as a "
    "broker that was taken over, which may say and hear all. The federation trains through all of it. Every honest "
    "training adds one to the model's only number."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row as it ended; `wrong` says what was not as it should be."""

    row: Row
    seen: Seen | None
    wrong: str
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether the attack was refused, and that can be seen."""
        return self.seen is not None


def run(row: Row, stage: Stage) -> Outcome:
    """Attack, and see to it that the honest go on."""
    began_s = time.monotonic()
    seen, wrong = None, ""
    try:
        seen = row.act(stage)
        stage.goes_on()
    except (AssertionError, HflError, OSError, Empty, ValueError) as error:
        seen, wrong = None, f"{str(error)[:300]} ({traceback.extract_tb(error.__traceback__)[-1].name})"
    return Outcome(row=row, seen=seen, wrong=wrong, seconds=time.monotonic() - began_s)


def line(outcome: Outcome) -> str:
    """Return an outcome for a terminal."""
    if outcome.seen is None:
        return f"BAD  {outcome.row.name:<24} {outcome.seconds:5.1f} s  {outcome.wrong}"
    return (
        f"ok   {outcome.row.name:<24} {outcome.seconds:5.1f} s  {outcome.row.tried}\n"
        f"     -> {outcome.seen.happened}\n"
        f"     in {outcome.seen.reported}"
    )


def markdown(outcomes: Sequence[Outcome], about: Mapping[str, Any], number: float, rounds: int) -> str:
    """Return the whole table."""
    said = "\n".join(f"- {key}: {value}" for key, value in about.items())
    end = f"After all of it the number was {number:g}, after {rounds} rounds: nothing of an enemy's is in the model."
    lines = "\n".join(
        f"| {' | '.join(cells)} |" for cells in (_HEAD, tuple("---" for _ in _HEAD), *map(_cells, outcomes))
    )
    return (
        "# Attacks on a real federation\n\nWritten by `python -m tests.attacks` (`make attacks`); each row is a test, "
        f"too.\n\n{said}\n\n{_NOTE} {end}\n\n{lines}\n"
    )


def _cells(outcome: Outcome) -> tuple[str, ...]:
    seen = outcome.seen or Seen(happened=f"**not refused: {outcome.wrong}**", reported="")
    cells = (outcome.row.name, outcome.row.tried, seen.happened, seen.reported)
    return tuple(" ".join(_shown(cell).split()) for cell in cells)


def _shown(cell: str) -> str:
    return cell.replace("|", "&#124;").replace("<", "&lt;").replace("*not refused", "*not refused")
