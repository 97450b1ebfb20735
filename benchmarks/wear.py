"""What a round writes to the disk, and how often a process waits for it: what wears an SD card.

Counted by the processes themselves, from their start to the end of the run: what they made durable, the boot counters,
and the cloud's model file; not the journal, which nobody waits for, some hundred bytes a note.
"""

from __future__ import annotations

from benchmarks.federations import Bench, plan, running
from benchmarks.figures import Figure

TITLE = "Written to the disk in a global round: 2 edges x 2 clients, 1 edge round"
ROUNDS = 25
MODELS = {"idle_line": "65 parameters", "idle_digits": "LeNet, 44,426 parameters"}
NODES = {"client": "cloud/farm-0/pi-0", "edge": "cloud/farm-0", "cloud": "cloud"}


def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Run each model, and ask the processes of each tier."""
    figures = []
    for task, said in MODELS.items():
        with running(plan(task, farms=2, devices=2), is_watched=False) as bench:
            bench.run(rounds)
            for role, path in NODES.items():
                written, forced = _worn(bench, path)
                note = f"{forced / rounds:.1f} fsyncs a round"
                figures.append(Figure(what=f"{said}: {role}", value=written / rounds / 1000, unit="kB", note=note))
    return figures


def _worn(bench: Bench, path: str) -> tuple[int, int]:
    """Return the bytes and the fsyncs of a process between its start and the end of its run."""
    before, *_, after = bench.notes(path, "wear")
    return after["state_bytes"] - before["state_bytes"], after["fsyncs"] - before["fsyncs"]
