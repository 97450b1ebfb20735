"""`python -m benchmarks [NAME...]`: measure, print tables, and save them under benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, markdown_table, text_table
from hfl_mqtt import __version__
from hfl_mqtt.errors import HflError

#: Each is a module here with a TITLE, a `measure()`, and where there is something to draw, a `draw(path)`.
NAMES = (
    *("memory", "rounds", "wear", "codecs", "aggregation"),
    *("security", "traffic", "convergence", "scale", "bulk", "peers"),
)
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Run what was asked for, by default all."""
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description="Measure what the framework costs, on real processes and brokers. Half an hour in all: each of the "
        "first five takes about a minute, each of the others some.",
        epilog="Example: python -m benchmarks memory codecs",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to save to (benchmarks/results)")
    arguments = parser.parse_args()
    if odd := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no benchmark is called {odd[0]!r}; there are {', '.join(NAMES)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        run(arguments.names or NAMES, arguments.out)
    except HflError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        sys.exit(error.exit_code)


def run(names: Sequence[str], out: Path) -> None:
    """Measure and print one after another, then save everything."""
    tables: dict[str, tuple[str, list[Figure]]] = {}
    about = machine()
    print(" ".join(f"{key} {value}," for key, value in about.items()).rstrip(","), flush=True)
    for name in names:
        module, began = import_module(f"benchmarks.{name}"), time.monotonic()
        tables[name] = module.TITLE, module.measure()
        print(f"\n{text_table(*tables[name])}\n  ({time.monotonic() - began:.0f} s)", flush=True)
        if hasattr(module, "draw"):
            out.mkdir(parents=True, exist_ok=True)
            module.draw(out / f"{name}.png")
    print(f"\nSaved as {save(tables, about, out)} and .json")


def save(tables: Mapping[str, tuple[str, list[Figure]]], about: Mapping[str, Any], out: Path) -> Path:
    """Write Markdown and JSON, named by the time; returns the Markdown's path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{time.strftime('%Y%m%d-%H%M%S')}.md"
    said = "\n".join(f"- {key}: {value}" for key, value in about.items())
    text = "\n".join(markdown_table(title, figures) for title, figures in tables.values())
    path.write_text(f"# Benchmarks\n\n{said}\n\n{text}")
    results = {name: [figure.as_json() for figure in figures] for name, (_, figures) in tables.items()}
    path.with_suffix(".json").write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """Return what the figures depend on; the load says how busy the machine was with other things."""
    try:
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return {
        "hfl-mqtt": __version__,
        "Python": platform.python_version(),
        "processor": model.group(1) if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load before": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
