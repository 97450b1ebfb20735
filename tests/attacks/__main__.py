"""`python -m tests.attacks [ROW...]`: attack a federation of real processes, print a table, save docs/attacks.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.__main__ import machine
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import signals
from tests.attacks.all_rows import ROWS
from tests.attacks.stage import staged
from tests.attacks.table import Outcome, line, markdown, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attacks.md"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what was asked for, by default all; returns 1 where an attack was not refused and reported."""
    parser = argparse.ArgumentParser(
        prog="attacks", description="Attack a federation of real processes and brokers over mTLS, row by row."
    )
    parser.add_argument("names", nargs="*", metavar="ROW", help="rows by name or pattern; by default all")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--out", type=Path, help="where to save the table (docs/attacks.md, where all rows are run)")
    arguments = parser.parse_args()
    patterns = arguments.names or ["*"]
    if odd := [one for one in patterns if not any(fnmatchcase(name, one) for name in ROWS)]:
        parser.error(f"no row is called {odd[0]!r}; there are {', '.join(ROWS)}")
    chosen = [one for one in ROWS.values() if any(fnmatchcase(one.name, pattern) for pattern in patterns)]
    if arguments.list:
        _say("\n".join(f"{one.name:<24} {one.tried}" for one in chosen))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="hfl-attacks-"))
    outcomes: list[Outcome] = []
    began_s = time.monotonic()
    try:
        with signals.as_interrupt(), staged(directory, [name for one in chosen for name in one.enemies]) as stage:
            for one in chosen:
                outcomes.append(run(one, stage))
                _say(line(outcomes[-1]))
            number, rounds = stage.count()
    except HflError as error:
        _say(f"attacks: {error}")
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    is_good = all(outcome.is_good for outcome in outcomes) and number == rounds
    _say(f"The model's number is {number:g} after {rounds} rounds{'' if number == rounds else ': WRONG'}")
    _say(f"{sum(each.is_good for each in outcomes)} of {len(outcomes)} attacks refused and reported, "
         f"in {time.monotonic() - began_s:.0f} s")  # fmt: skip
    out = arguments.out or (PAGE if not arguments.names else None)
    if out is not None:
        out.write_text(markdown(outcomes, machine(), number, rounds))
        _say(f"Saved as {out.name}")
    return 0 if is_good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
