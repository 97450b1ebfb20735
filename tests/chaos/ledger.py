"""Whether every accepted update is in the model exactly once: by the journals of all nodes, and by the model itself.

The journals are read as whoever wrote them may have been killed at any moment: a last line may be half written, and the
note of what was made durable may be missing. What an aggregator remembers after a restart stands in its `restored`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from hfl_mqtt.ops import journal
from hfl_mqtt.protocol.messages import Kind
from hfl_mqtt.sim.invariants import Ledger

Notes = list[dict[str, Any]]
_LOST = ("lost ", "forgot ", "never accepted")
_TWICE = ("once more", "closed twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found: sentences about updates that are lost, that count more than once, and about all else."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    #: Updates that were accepted, at all aggregators together, and those of them that a policy gave up.
    accepted: int = 0
    given_up: int = 0

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            lost=[*self.lost, *other.lost],
            twice=[*self.twice, *other.twice],
            odd=[*self.odd, *other.odd],
            accepted=self.accepted + other.accepted,
            given_up=self.given_up + other.given_up,
        )


def read_all(directory: Path) -> Notes:
    """Return the notes of all journals below a directory; those of a node that has several are put in order by time."""
    files: dict[str, list[Notes]] = defaultdict(list)
    for path in sorted(directory.rglob("journal.jsonl")):
        if not any(above.is_symlink() for above in path.parents):
            by_node: dict[str, Notes] = defaultdict(list)
            for note in journal.read(path):
                by_node[note["node"]].append(note)
            for node, notes in by_node.items():
                files[node].append(notes)
    found: Notes = []
    for several in files.values():
        found += several[0] if len(several) == 1 else sorted(chain(*several), key=lambda note: str(note["at"]))
    return found


def of_journals(notes: Notes, killed: Iterable[str] = ()) -> Audit:
    """Compare what each aggregator accepted with what it closed its rounds with.

    Args:
        notes: of all journals.
        killed: the nodes that were killed, once for each time: a receipt may have outlived the note of its update.
    """
    ledger = Ledger.of([*({"node": node, "event": "killed"} for node in killed), *notes])
    audit = Audit(accepted=ledger.train.accepted, given_up=ledger.train.given_up)
    for problem in ledger.check():
        is_in = [any(part in problem for part in parts) for parts in (_LOST, _TWICE)]
        (audit.lost if is_in[0] else audit.twice if is_in[1] else audit.odd).append(problem)
    return audit


def of_model(path: Path, notes: Notes, places: Mapping[str, int]) -> Audit:
    """Compare what clients have a receipt for with the ledger in the model (see `counting`).

    Args:
        path: the model.
        notes: of all journals.
        places: each client's place in the ledger.
    """
    ledger = load_file(path)["places"]
    lost, twice = [], []
    for client, place in places.items():
        receipts = {
            (note["run"], note["round"])
            for note in notes
            if note["node"] == client and note["event"] == "accepted" and note["kind"] == Kind.TRAIN.value
        }
        entries = int(np.count_nonzero(ledger[place] > 1e-6))
        if entries < len(receipts):
            lost.append(f"{client} has receipts of {len(receipts)} updates, the model holds {entries}")
    for at in range(ledger.shape[1]):
        shares = ledger[:, at][ledger[:, at] > 1e-6]
        if len(shares) and shares.max() > 1.01 * shares.min():
            twice.append(f"the shares of round {at + 1} are not equal: {sorted(shares.tolist())}")
    return Audit(lost=lost, twice=twice)


def digest(path: Path) -> str:
    """Return a digest of a model's tensors: equal where all bits are."""
    from hfl_mqtt.learning.weights import digest as of_weights

    return of_weights(load_file(path))
