"""`python -m tests.chaos.kills --moments 200 --role cloud`: kill at random moments, and compare the models' bits.

A synchronous run, in which every round waits for everybody, is killed into again and again: a real process, real
brokers, a small model, two edge rounds in each global one. Its final model must be that of a run that nobody disturbed,
to the last bit. Each life lasts a random while, so that moments fall into coming up as well as into rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, machine
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import journal, signals
from hfl_mqtt.ops.federation import RunPlan
from tests.chaos import ledger
from tests.chaos.tree import EDGE_A, PLACES, Tree, plan, running

ROLES = {"cloud": "cloud", "edge": EDGE_A}
#: How long a life lasts, in seconds, at least and at most; coming up takes half a second.
LIFE_S = (0.05, 2.5)
#: Global rounds of a run, and what it may take.
ROUNDS, LIMIT_S = 25, 180.0


@dataclass(slots=True)
class Found:
    """What came of some runs."""

    moments: int = 0
    runs: int = 0
    #: Runs whose model is that of the undisturbed one.
    identical: int = 0
    wrong: list[str] = field(default_factory=list)
    #: What the process that was killed had noted last, and how often.
    last_notes: Counter[str] = field(default_factory=Counter)
    trained_again: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "moments": self.moments,
            "runs": self.runs,
            "identical": self.identical,
            "trained_again": self.trained_again,
            "seconds": round(self.seconds, 1),
            "last_notes": dict(self.last_notes.most_common()),
            "wrong": self.wrong,
        }


def plan_of(rounds: int, late: str) -> RunPlan:
    """Return a run whose rounds wait for everybody."""
    # A count: 100 % are all who are there when a round opens, and an edge that was killed between two is not.
    patient = {"quorum": 2, "late": late}
    tiers = ({**patient, "open_for": "20 min"}, {**patient, "open_for": "10 min", "rounds": 2})
    return plan(rounds=rounds, tiers=tiers, is_split=False)


def undisturbed(rounds: int, directory: Path) -> str:
    """Return the digest of the model that comes of no disturbance at all."""
    with running(plan_of(rounds, "drop"), directory) as tree:
        tree.await_end(LIMIT_S)
        return ledger.digest(tree.out / "model.safetensors")


def disturbed(
    role: str, rounds: int, most: int, seed: int, directory: Path, found: Found, say: Callable[[str], None]
) -> str:
    """Kill that role's process until the run is over, or `most` times; return the digest of the model."""
    chance, name = random.Random(seed), ROLES[role]
    with running(plan_of(rounds, "next" if seed % 2 else "drop"), directory) as tree:
        tree.note("cloud", "opened")  # building the first model takes seconds; until then there is nothing to lose
        for _ in range(most):
            if _ends_within(tree, chance.uniform(*LIFE_S)):
                break
            tree.kill(name)
            found.moments += 1
            last = _last_note(tree, name)
            found.last_notes[last] += 1
            say(f"  {found.moments}: {role} killed after {last}")
            if (tree.out / "summary.json").exists():
                break  # between its summary and its exit: the run was over, and one more start begins another
            tree.restart(name)
        if not (tree.out / "summary.json").exists():
            tree.await_end(LIMIT_S)
        found.trained_again += tree.trained_again()
        notes = ledger.read_all(directory)
        audit = ledger.of_journals(notes, tree.killed)
        audit += ledger.of_model(tree.out / "model.safetensors", notes, PLACES)
        found.wrong += [f"seed {seed}: {one}" for one in (*audit.lost, *audit.twice, *audit.odd)]
        return ledger.digest(tree.out / "model.safetensors")


def measure(role: str, moments: int, seed: int, rounds: int, home: Path, say: Callable[[str], None]) -> Found:
    """Run and kill until there were so many moments; the folders of runs that went wrong stay in `home`."""
    began_s, found = time.monotonic(), Found()
    expected = undisturbed(rounds, home / "undisturbed")
    say(f"undisturbed: {expected[:16]}")
    while found.moments < moments:
        found.runs += 1
        directory = home / f"{role}-{seed}"
        before = len(found.wrong)
        try:
            digest = disturbed(role, rounds, moments - found.moments, seed, directory, found, say)
        except HflError as error:
            found.wrong.append(f"seed {seed}: {error}")
        else:
            if digest != expected:
                found.wrong.append(f"seed {seed}: the model is {digest[:16]}, undisturbed it is {expected[:16]}")
            found.identical += digest == expected
        verdict = "identical" if len(found.wrong) == before else "; ".join(found.wrong[before:])
        say(f"run {found.runs} (seed {seed}), {found.moments} moments so far: {verdict}")
        seed += 1
    found.seconds = time.monotonic() - began_s
    return found


def main() -> int:
    """Kill as often as asked for; returns 1 where a model came out otherwise."""
    parser = argparse.ArgumentParser(prog="kills", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--moments", type=int, default=200, help="how often to kill (200)")
    parser.add_argument("--role", choices=[*ROLES, "both"], default="both", help="whom (both, one after the other)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further has the next")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"global rounds of a run ({ROUNDS})")
    parser.add_argument("--out", type=Path, help=f"folder to save to, e.g. {RESULTS.name}")
    arguments = parser.parse_args()
    results: dict[str, Found] = {}
    home = Path(tempfile.mkdtemp(prefix="hfl-kills-"))
    with signals.as_interrupt():
        for role in ROLES if arguments.role == "both" else [arguments.role]:
            (home / role).mkdir()
            found = measure(role, arguments.moments, arguments.seed, arguments.rounds, home / role, _say)
            results[role] = found
            _say(f"{role}: {found.moments} moments in {found.runs} runs, {found.identical} of them bit-identical, "
                 f"{found.trained_again} trainings done again, {found.seconds:.0f} s")  # fmt: skip
            for one in found.wrong:
                _say(f"  {one}")
    if arguments.out is not None:
        document = {"machine": machine(), **{role: found.as_json() for role, found in results.items()}}
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "kills.json").write_text(json.dumps(document, indent=2) + "\n")
    is_good = not any(found.wrong for found in results.values())
    if not is_good:
        _say(f"everything lies in {home}")
    return 0 if is_good else 1


def _ends_within(tree: Tree, seconds: float) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if tree.check_cloud() is not None:
            return True
        time.sleep(0.005)
    return False


def _last_note(tree: Tree, name: str) -> str:
    """Return what a node noted last, the notes of its trainer aside."""
    last = "nothing"
    for path in tree.journals():
        if any(above.is_symlink() for above in path.parents):
            continue
        for note in journal.read(path):
            if note["node"] == name and note["event"] != "trainer":
                last = note["event"]
    return last


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
