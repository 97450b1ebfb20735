"""What a row of the table is, how one is run, and what is found when it is over."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import children
from hfl_mqtt.ops.federation import RunPlan
from tests.chaos import ledger
from tests.chaos.ledger import Audit
from tests.chaos.tree import LIMIT_S, PLACES, TASK, Tree, is_root, running

#: What the peers of `../shared/baselines.md` do; where nothing stands, nobody measured it.
PEER_CLIENT = "AIoTwin, SDFLMQ: hang for ever; Flower: goes on after 92 s; Flame: after 12 s"
PEER_EDGE = (
    "AIoTwin: hangs, its clients crash; SDFLMQ: hangs; Flame: goes on without the farm, its clients wait for ever"
)
PEER_EDGE_BACK = "AIoTwin: hangs, weights wrong; SDFLMQ, Flame: never rejoins"
PEER_CLOUD = "Flower: the run is lost with its server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    is_full: bool = False
    #: How long a bridge is cut.
    cut_s: float = 60.0
    #: Whether the folders of good rows are kept; those of others are.
    is_kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row as it ended; None where there was nothing to measure."""

    name: str
    fault: str
    moment: str
    happened: str
    is_finished: bool
    rounds: int = 0
    rounds_lost: int = 0
    updates: int = 0
    lost: int = 0
    twice: int = 0
    recover_s: float | None = None
    #: Further figures, by name.
    more: Mapping[str, Any] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    seconds: float = 0.0
    peer: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the run went to its end, nothing was lost and nothing counted twice."""
        return self.is_finished and not self.wrong and not self.lost and not self.twice

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return {**asdict(self), "is_good": self.is_good}


class Case:
    """One row while it runs: makes federations, measures the recovery, and looks at what is left.

    Attributes:
        wrong: what is not as it should be; a row adds to it.
        more: further figures for the JSON.
    """

    def __init__(self, directory: Path, options: Options) -> None:
        self.directory, self.options = directory, options
        self.happened = ""
        self.recover_s: float | None = None
        self.wrong: list[str] = []
        self.more: dict[str, Any] = {}
        self.audit = Audit()
        self.rounds = self.rounds_lost = 0
        self.is_finished = False
        self._count = 0

    @contextmanager
    def running(self, what: RunPlan, **options: Any) -> Iterator[Tree]:
        """Start a federation in a folder of its own; it is ended after."""
        self._count += 1
        with running(what, self.directory / str(self._count), **options) as tree:
            try:
                yield tree
            except (HflError, AssertionError):
                self._look_at(tree)
                raise

    @contextmanager
    def recovery(self, tree: Tree, limit_s: float = LIMIT_S) -> Iterator[None]:
        """Measure from the beginning of what is done inside, the end of a fault, to the next global round to close."""
        closed, began_s = tree.closed(), time.monotonic()
        yield
        tree.await_closed(closed + 1, limit_s)
        self.recover_s = time.monotonic() - began_s

    def finish(self, tree: Tree, said: str, limit_s: float = LIMIT_S, *, missed: int = 0, again: int = 0) -> None:
        """Wait for the run's end and look at what became of every update.

        Args:
            tree: the federation.
            said: what happened, for people.
            limit_s: how long the run may go on.
            missed: rounds that are lost by intention.
            again: trainings that may have been done twice, because they were not done when the fault came.
        """
        self.happened = said
        tree.await_end(limit_s)
        self._look_at(tree)
        if self.rounds_lost > missed:
            self.wrong.append(f"{self.rounds_lost} rounds lost")
        if tree.trained_again() > again:
            self.wrong.append(f"{tree.trained_again()} trainings done again, what was trained is lost")

    def take(self, found: Mapping[str, Any]) -> None:
        """Take over the outcome of the row as it ran elsewhere."""
        self.happened, self.recover_s, self.is_finished = found["happened"], found["recover_s"], found["is_finished"]
        self.rounds, self.rounds_lost = found["rounds"], found["rounds_lost"]
        self.wrong += found["wrong"]
        self.more |= found["more"]
        self.audit = Audit(accepted=found["updates"])

    def _look_at(self, tree: Tree) -> None:
        notes = ledger.read_all(tree.directory)
        self.audit += ledger.of_journals(notes, tree.killed)
        summary_path = tree.out / "summary.json"
        done = 0
        if summary_path.exists():
            summary = json.loads(summary_path.read_text())
            done, self.is_finished = summary["rounds"], True
            if tree.plan.task.get("file") == str(TASK):
                self.audit += ledger.of_model(tree.out / "model.safetensors", notes, PLACES)
        self.rounds = tree.plan.rounds
        given_up = [note for note in notes if note["event"] in ("missed", "abandoned") and note["node"] == "cloud"]
        self.rounds_lost = self.rounds - done + len(given_up)
        again = tree.trained_again()
        if again:
            self.happened = f"{self.happened}; {again} {'training' if again == 1 else 'trainings'} done again"
        self.wrong += [f"{path.name}: Traceback" for path in sorted(tree.directory.glob("*.log")) if _fell(path)]
        self.more["given_up"] = self.audit.given_up
        self.more["events"] = _events(notes)


Act = Callable[[Case], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table."""

    name: str
    fault: str
    moment: str
    act: Act
    peer: str = ""
    needs_root: bool = False

    def run(self, options: Options) -> Outcome:
        """Do it, from nothing to what is left."""
        began_s = time.monotonic()
        directory = Path(tempfile.mkdtemp(prefix=f"hfl-chaos-{self.name}-"))
        case = Case(directory, options)
        try:
            self.act(case)
        except HflError as error:
            case.wrong.append(str(error))
        except Exception:  # noqa: BLE001 - told in the table, and the other rows go on
            case.wrong.append(traceback.format_exc(limit=-2))
        if case.wrong or case.audit.lost or case.audit.twice or case.audit.odd or options.is_kept:
            case.more["directory"] = str(directory)
        outcome = Outcome(
            name=self.name,
            fault=self.fault,
            moment=self.moment,
            happened=case.happened,
            is_finished=case.is_finished,
            rounds=case.rounds,
            rounds_lost=case.rounds_lost,
            updates=case.audit.accepted,
            lost=len(case.audit.lost),
            twice=len(case.audit.twice),
            recover_s=None if case.recover_s is None else round(case.recover_s, 2),
            more=case.more,
            wrong=(*case.wrong, *case.audit.lost, *case.audit.twice, *case.audit.odd),
            seconds=round(time.monotonic() - began_s, 1),
            peer=self.peer,
        )
        if outcome.is_good and not options.is_kept:
            shutil.rmtree(directory, ignore_errors=True)
        return outcome

    def why_not(self) -> str:
        """Return why it cannot be run here; nothing where it can."""
        return "needs root, for namespaces" if self.needs_root and not is_root() else ""


ROWS: dict[str, Row] = {}


def row(name: str, fault: str, moment: str, *, peer: str = "", needs_root: bool = False) -> Callable[[Act], Act]:
    """Enter a function into the table; its rows stand in the order of the functions."""

    def enter(act: Act) -> Act:
        assert name not in ROWS, name
        ROWS[name] = Row(name=name, fault=fault, moment=moment, act=act, peer=peer, needs_root=needs_root)
        return act

    return enter


def log_of(tree: Tree, name: str) -> str:
    """Return what a process printed last, for an error."""
    return children.log_tail(tree.log_path(name))


def _fell(path: Path) -> bool:
    with suppress(OSError):
        return "Traceback" in path.read_text(errors="replace")
    return False


def _events(notes: ledger.Notes) -> dict[str, int]:
    """Count the notes that are not of every day."""
    everyday = {"accepted", "opened", "closed", "joined", "trainer", "connected", "delta", "keyframe", "run", "left"}
    found: dict[str, int] = {}
    for note in notes:
        if note["event"] not in everyday:
            found[note["event"]] = found.get(note["event"], 0) + 1
    return dict(sorted(found.items()))
