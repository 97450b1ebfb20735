"""The table of faults, for a terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.rows import Outcome

TITLE = "Faults on real processes and brokers"
_HEAD = (
    "fault", "moment", "what happened", "rounds lost", "updates lost", "counted twice", "recovered in", "peers"
)  # fmt: skip
_NOTE = (
    "Two farms with two devices each, four global rounds; every process, Mosquitto and bridge is real. A round is lost "
    "if the cloud called it and it gave no model. An update is lost if its sender has a receipt and the model does not "
    "have it, and counted twice if the model has it twice: by the journals of all nodes, and by the model, which keeps "
    "a ledger. *Recovered* is from the end of the fault (a restart, a link that is back; where nothing comes back, the "
    "fault) to the next global round that closes, with all the work in between; the row without a fault is there to "
    "compare. Peers as measured on their own, see baselines; where nothing stands, nobody measured it."
)


def line(outcome: Outcome) -> str:
    """Return an outcome as one line for a terminal."""
    recovered = "" if outcome.recover_s is None else f", recovered in {outcome.recover_s:.1f} s"
    told = f"lost {outcome.lost}, twice {outcome.twice}, rounds lost {outcome.rounds_lost}{recovered}"
    wrong = "".join(f"\n      {one}" for one in (*outcome.wrong, *filter(None, [outcome.more.get("directory")])))
    return f"{'ok  ' if outcome.is_good else 'BAD '} {outcome.name:<22} {outcome.seconds:>6.1f} s  {told}{wrong}"


def markdown(outcomes: Sequence[Outcome], about: Mapping[str, Any], skipped: Mapping[str, str]) -> str:
    """Return the whole table."""
    said = "\n".join(f"- {key}: {value}" for key, value in about.items())
    rows = [_HEAD, tuple("---" for _ in _HEAD), *map(_cells, outcomes)]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    left_out = "".join(f"\n- left out: {name}: {why}" for name, why in skipped.items())
    return f"# {TITLE}\n\n{said}{left_out}\n\n{_NOTE}\n\n{lines}\n"


def save(outcomes: Sequence[Outcome], about: Mapping[str, Any], skipped: Mapping[str, str], out: Path) -> Path:
    """Write Markdown and JSON; returns the Markdown's path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "chaos.md"
    path.write_text(markdown(outcomes, about, skipped))
    document = {
        "machine": dict(about),
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "rows": [_public(outcome.as_json()) for outcome in outcomes],
        "left_out": dict(skipped),
    }
    path.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    return path


def _public(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out where it was on this machine."""
    return {**document, "more": {key: value for key, value in document["more"].items() if key != "directory"}}


def _cells(outcome: Outcome) -> tuple[str, ...]:
    happened = outcome.happened or "-"
    if not outcome.is_finished:
        happened = f"**the run did not finish**: {happened}"
    if outcome.wrong:
        happened = f"{happened} (**{'; '.join(outcome.wrong[:3])}**)"
    recovered = "" if outcome.recover_s is None else f"{outcome.recover_s:.1f} s"
    cells = (
        outcome.fault,
        outcome.moment,
        happened,
        str(outcome.rounds_lost),
        str(outcome.lost),
        str(outcome.twice),
        recovered,
        outcome.peer,
    )
    return tuple(" ".join(cell.replace("|", "&#124;").split()) for cell in cells)
