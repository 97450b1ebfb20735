"""`python -m tests.chaos [ROW...]`: pull plugs on real processes, print a table, save it under benchmarks/results/."""

from __future__ import annotations

import argparse
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.__main__ import RESULTS, machine
from hfl_mqtt.ops import signals
from tests.chaos import boards, brokers, farms, killed, links, namespaces, people
from tests.chaos.rows import ROWS, Options, Outcome
from tests.chaos.table import line, save

#: Where the rows stand, in the order of the table.
MODULES = (killed, farms, brokers, links, namespaces, boards, people)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what was asked for, by default all; returns 1 where a row is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="chaos",
        description="Kill, cut, corrupt and fill up a federation of real processes, row by row.",
        epilog="All of it takes half an hour. Example: make chaos ARGS='edge-* cloud-open'",
    )
    parser.add_argument("names", nargs="*", metavar="ROW", help="rows by name or pattern; by default all")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    parser.add_argument("--full", action="store_true", help="train ten minutes under a keepalive of 60 s, not less")
    parser.add_argument("--cut-s", type=float, default=60.0, help="how long a bridge is cut (60)")
    parser.add_argument("--repeat", type=int, default=1, help="run each row so often; the table has the last of each")
    parser.add_argument("--keep", action="store_true", help="keep the folders of good rows too")
    parser.add_argument("--out", type=Path, help="folder to save to (benchmarks/results, where all rows are run)")
    arguments = parser.parse_args()
    patterns = arguments.names or ["*"]
    order = [module.__name__ for module in MODULES]
    rows = sorted(ROWS.values(), key=lambda row: order.index(row.act.__module__))
    chosen = [row for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]
    if odd := [one for one in patterns if not any(fnmatchcase(name, one) for name in ROWS)]:
        parser.error(f"no row is called {odd[0]!r}; there are {', '.join(ROWS)}")
    if arguments.list:
        _say("\n".join(f"{row.name:<22} {row.fault}; {row.moment}" for row in chosen))
        return 0
    about = {**machine(), "bridge cut for": f"{arguments.cut_s:g} s"}
    skipped: dict[str, str] = {}
    outcomes: list[Outcome] = []
    began_s, are_good = time.monotonic(), True
    with signals.as_interrupt():
        options = Options(is_full=arguments.full, cut_s=arguments.cut_s, is_kept=arguments.keep)
        for row in chosen:
            if why := row.why_not():
                skipped[row.name] = why
                _say(f"skip {row.name:<22} {why}")
                continue
            for _ in range(arguments.repeat):
                outcome = row.run(options)
                are_good = are_good and outcome.is_good
                _say(line(outcome))
            outcomes.append(outcome)
    _say(f"{sum(outcome.is_good for outcome in outcomes)} of {len(outcomes)} rows are good, "
          f"in {(time.monotonic() - began_s) / 60:.1f} min")  # fmt: skip
    out = arguments.out or (RESULTS if not arguments.names else None)
    if out is not None:
        _say(f"Saved as {save(outcomes, about, skipped, out)} and .json")
    return 0 if are_good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
