"""`hfl doctor`: examine, print, and say with the exit code whether the node can do its work."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfl_mqtt.ops.doctor.examine import examine
from hfl_mqtt.ops.doctor.findings import Finding, Verdict
from hfl_mqtt.ops.doctor.patient import Patient, load
from hfl_mqtt.ops.journal import plain

FAILED = 1
_STYLE = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIPPED: "dim"}


def doctor(config: Path, *, name: str | None, is_quick: bool, as_json: bool) -> int:
    """Examine a node, print what was found, and return the exit code: 0, or 1 where something failed.

    Raises:
        ConfigError: the file is wrong, or is no client's, edge's or cloud's.
    """
    patient = load(config, name)
    findings = examine(patient, config, is_quick=is_quick)
    found = list(findings) if as_json else _watched(patient, findings)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(patient, found), indent=2) + "\n")
    return FAILED if any(each.verdict is Verdict.FAIL for each in found) else 0


def _watched(patient: Patient, findings: Iterator[Finding]) -> list[Finding]:
    """Show on a terminal which check was the last, and then all of them."""
    console, found = Console(), []
    with console.status(f"examining {patient.name}", spinner="line") as status:
        for each in findings:
            found.append(each)
            status.update(f"examining {patient.name}: after {each.name}")
    console.print(table(patient, found))
    return found


def table(patient: Patient, found: list[Finding]) -> Table:
    """Return the findings as a table for people: each remedy below what it is for, and the sum at the bottom."""
    counts = Counter(each.verdict for each in found)
    shown = Table(
        title=f"{patient.role} {patient.name} at {patient.place}",
        caption=", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]),
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("check", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("what was found, and what to do", overflow="fold")
    for each in found:
        text = Text(plain(each.text))
        if each.remedy:
            text.append(f"\n-> {plain(each.remedy)}", style="bold")
        shown.add_row(each.name, Text(each.verdict.value, style=_STYLE[each.verdict]), text)
    return shown


def _as_json(patient: Patient, found: list[Finding]) -> dict[str, object]:
    return {
        "node": patient.name,
        "role": patient.role,
        "federation": patient.federation,
        "broker": patient.place,
        "is_fit": not any(each.verdict is Verdict.FAIL for each in found),
        "findings": [
            {"name": each.name, "verdict": each.verdict.value, "text": each.text, "remedy": each.remedy}
            for each in found
        ],
    }
