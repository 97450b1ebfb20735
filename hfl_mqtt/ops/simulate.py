"""`hfl simulate`: a federation under a virtual clock, with a plan of faults; progress, a result, and what broke."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from hfl_mqtt.config.roles import load_role
from hfl_mqtt.errors import HflError
from hfl_mqtt.rounds.actions import Note
from hfl_mqtt.sim.config import SimulationConfig
from hfl_mqtt.sim.invariants import Tally
from hfl_mqtt.sim.trial import Result, Trial

#: What a person wants to see pass by.
_LOUD = {"run", "fault", "mended", "missed", "stopping"}
#: Columns of the table; what each counts stands in `invariants.Tally`.
_COLUMNS = tuple(field.name for field in dataclasses.fields(Tally))


def simulate(config_file: Path, *, as_json: bool, quiet: bool = False, seed: int | None = None) -> None:
    """Simulate what the file says.

    Raises:
        ConfigError: the file has mistakes.
        HflError: an invariant broke, or the run did not end; the message says which.
    """
    config = load_role(config_file, SimulationConfig)
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    trial = Trial(config.to_setting(), config.to_faults())
    if not quiet and not as_json:
        trial.listener = _Progress(trial).hear
    result = trial.finish()
    if as_json:
        sys.stdout.write(json.dumps(_facts(config, result), indent=2) + "\n")
    elif not quiet:
        sys.stdout.write(table(result))
    if result.problems:
        raise HflError(f"{len(result.problems)} invariants broke: " + "; ".join(result.problems[:5]))


class _Progress:
    """Prints what the cloud closes and what befalls whom."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def hear(self, at_s: float, path: str, entry: Note) -> None:
        fields = entry.fields
        if path == self._trial.root and entry.event == "closed":
            cloud = self._trial.cloud
            error = "" if cloud is None else f", error {self._trial.task.error(cloud.weights, self._trial.devices):.3g}"
            said = f"{fields['round']} {fields['kind']}: {fields['accepted']} of {fields['asked']} edges{error}"
        elif entry.event in _LOUD and (path == self._trial.root or entry.event in ("fault", "mended")):
            said = f"{entry.event} " + " ".join(
                f"{key}={value}" for key, value in fields.items() if value not in ("", [])
            )
        else:
            return
        sys.stdout.write(f"{at_s:10.1f} s  {path:24} {said}\n")


def table(result: Result) -> str:
    """Return a result for people."""
    rows = [
        ("", *(name.replace("_", " ") for name in _COLUMNS)),
        ("training", *(str(getattr(result.train, name)) for name in _COLUMNS)),
        ("evaluation", *(str(getattr(result.evaluate, name)) for name in _COLUMNS)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    error = "" if result.error is None else f", error {result.error:.3g}"
    lines += [
        f"{result.rounds} rounds in {result.virtual_s:.1f} virtual seconds{error}",
        f"{result.client_rounds} client-rounds in {result.real_s:.2f} s: {result.client_rounds_per_s:.0f} a second",
        "every invariant held"
        if not result.problems
        else "\n".join(f"BROKEN  {problem}" for problem in result.problems),
    ]
    return "\n".join(lines) + "\n"


def _facts(config: SimulationConfig, result: Result) -> dict[str, Any]:
    facts = dataclasses.asdict(result)
    return {
        "seed": config.seed,
        "edges": config.edges,
        "clients": config.clients,
        **facts,
        "client_rounds_per_s": round(result.client_rounds_per_s, 1),
    }
