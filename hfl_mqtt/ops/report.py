"""What a demo leaves behind: `summary.json`, one journal, the model, a plot; and the lines a person reads."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hfl_mqtt import files
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.fleet import NodeView, size

SUMMARY, JOURNAL, MODEL, PLOT = "summary.json", "journal.jsonl", "model.safetensors", "progress.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """All bytes on the sockets so far: over the bridges (WAN), and between devices and their farm's broker (LAN)."""

    wan_up: int = 0
    wan_down: int = 0
    lan_up: int = 0
    lan_down: int = 0

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return it as it stands in the summary."""
        return {
            "wan": {"up": self.wan_up, "down": self.wan_down},
            "lan": {"up": self.lan_up, "down": self.lan_down},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A metric of the global model and of what it is compared with; None where there is nothing to compare."""

    name: str
    higher_is_better: bool
    final: float | None
    history: Sequence[float | None]
    persistence: float | None = None
    alone: float | None = None
    unseen: float | None = None
    unseen_persistence: float | None = None
    unseen_alone: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the summary."""
        beside = {
            "persistence": self.persistence,
            "alone": self.alone,
            "unseen": self.unseen,
            "unseen_persistence": self.unseen_persistence,
            "unseen_alone": self.unseen_alone,
        }
        given = {name: value for name, value in beside.items() if value is not None}
        return {"name": self.name, "global": self.final, "history": list(self.history), **given}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a demo; `model` is None where none was kept."""

    task: str
    seed: int
    rounds: int
    seconds: float
    scores: Scores
    bytes: Bytes
    per_round: list[Bytes] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    model: Path | None

    def as_json(self) -> dict[str, Any]:
        """Return the summary."""
        return {
            "task": self.task,
            "seed": self.seed,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 2),
            "metric": self.scores.as_json(),
            "bytes": self.bytes.as_json(),
            "bytes_per_round": [one.as_json() for one in self.per_round],
            "nodes": self.nodes,
            "model": str(self.model) if self.model is not None else None,
        }


def rows(views: Sequence[NodeView], journals: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one row per node.

    An aggregator's rounds are those it closed and its updates those it accepted; a device's are those it was thanked
    for. The evaluation at the end counts for neither.
    """
    rounds: dict[str, set[str]] = defaultdict(set)
    updates: dict[str, int] = defaultdict(int)
    aggregators = {view.path for view in views if view.role != "client"}
    for path in journals:
        for record in journal.read(path):
            node, event = str(record.get("node")), record.get("event")
            is_receiver = "sender" in record
            if record.get("kind", "train") != "train" or (is_receiver != (node in aggregators) and event == "accepted"):
                continue
            if event == "accepted":
                updates[node] += 1
            if event == ("closed" if node in aggregators else "accepted"):
                rounds[node].add(str(record.get("round")))
    return [
        {
            "path": view.path,
            "role": view.role,
            "rss_peak_mb": view.metrics.get("rss_peak_mb"),
            "trainer_peak_mb": view.metrics.get("trainer_peak_mb"),
            "rounds": len(rounds[view.path]),
            "updates": updates[view.path],
        }
        for view in views
        if view.role
    ]


def write(report: Report, out_dir: Path, journals: Sequence[Path]) -> Report:
    """Write everything into `out_dir`, the model copied there; return the report of what lies there.

    Raises:
        HflError: the folder cannot be written.
    """
    kept = report
    if report.model is not None:
        shutil.copyfile(report.model, out_dir / MODEL)
        kept = replace(report, model=out_dir / MODEL)
    records = sorted((record for path in journals for record in journal.read(path)), key=lambda r: str(r.get("at")))
    files.write_text(out_dir / JOURNAL, "".join(json.dumps(record) + "\n" for record in records))
    files.write_text(out_dir / SUMMARY, json.dumps(kept.as_json(), indent=2) + "\n")
    plot(kept, out_dir / PLOT)
    return kept


def plot(report: Report, path: Path) -> None:
    """Draw the metric and the bytes per round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    scores = report.scores
    versions = [index + 1 for index, value in enumerate(scores.history) if value is not None]
    above.plot(versions, [value for value in scores.history if value is not None], "o-", label="federated")
    for name, value in (("alone", scores.alone), ("persistence", scores.persistence)):
        if value is not None:
            above.axhline(value, linestyle="--", color="tab:orange" if name == "alone" else "tab:gray", label=name)
    above.set_ylabel(scores.name)
    above.set_title(f"{report.task}: {scores.name} of the global model, and bytes, by global round")
    above.legend()
    steps = _differences(report.per_round)
    numbers = range(1, len(steps) + 1)
    bottom = [0.0] * len(steps)
    for name in ("wan_up", "wan_down", "lan_up", "lan_down"):
        kilobytes = [getattr(step, name) / 1e3 for step in steps]
        below.bar(
            numbers, kilobytes, bottom=bottom, label=name.replace("_", " ").replace("wan", "WAN").replace("lan", "LAN")
        )
        bottom = [low + value for low, value in zip(bottom, kilobytes, strict=True)]
    below.set_ylabel("kB on the sockets")
    below.set_xlabel("global round")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.legend()
    figure.savefig(path, dpi=110)


def show(report: Report, console: Console) -> None:
    """Print the result for a person."""
    scores = report.scores
    result = Table(title=f"{report.task}, {scores.name}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "federated", "trained alone", "persistence"):
        result.add_column(name, justify="left" if not name else "right")
    own = "later days, same stations" if scores.persistence is not None else "result"
    lines = [(own, scores.final, scores.alone, scores.persistence)]
    if scores.unseen is not None or scores.unseen_persistence is not None:
        lines.append(("stations never trained on", scores.unseen, scores.unseen_alone, scores.unseen_persistence))
    for label, *values in lines:
        result.add_row(label, *("-" if value is None else f"{value:.5f}" for value in values))
    console.print(result)
    moved = report.bytes
    console.print(
        f"{report.rounds} global rounds in {report.seconds:.1f} s.  "
        f"WAN: {size(moved.wan_up)} up, {size(moved.wan_down)} down.  "
        f"LAN: {size(moved.lan_up)} up, {size(moved.lan_down)} down."
    )


def _differences(totals: Sequence[Bytes]) -> list[Bytes]:
    steps, before = [], Bytes()
    for total in totals:
        steps.append(
            Bytes(
                wan_up=total.wan_up - before.wan_up,
                wan_down=total.wan_down - before.wan_down,
                lan_up=total.lan_up - before.lan_up,
                lan_down=total.lan_down - before.lan_down,
            )
        )
        before = total
    return steps
