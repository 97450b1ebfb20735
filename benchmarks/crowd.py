"""Many clients of several farms in one process, as `hfl client` has them, but without a training process.

Real links, real nodes, the real rounds: only training is left out. All clients send the same noise, coded once, so that
what a round costs is the framework's own. Run as `python -m benchmarks.crowd FILE`, with the federation, the task and
the clients in the file, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.weights import delta_layout
from hfl_mqtt.ops import journal, logs
from hfl_mqtt.protocol.messages import Info, Keyframe, Kind
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles.process import Process, Record, stopped_by_signals
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Contribution, Event, Work, Worked
from hfl_mqtt.rounds.arithmetic import DELTAS_PER_KEY
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.transport import descriptors
from hfl_mqtt.transport.link import Account

#: As small as the changes of a trained model are.
SPREAD = 1e-3


class IdleWorkshop(Workshop):
    """A workshop whose work is done at once: the same noise for every client, behind weights that tell them apart.

    Args:
        task: the task's label.
        weights: the samples that each client says are behind its update, by path.
    """

    def __init__(self, task: str, weights: Mapping[str, int]) -> None:
        super().__init__(task, {})
        self._weights = weights
        self._noise = cache(_noise)
        self._short: Keyframe | None = None

    def do(self, path: str, data: Mapping[str, Any], work: Work, then: Callable[[Event], None]) -> None:  # noqa: ARG002
        """Answer with noise, and with one delta for all where they are too many, as a training process does."""
        model, payload, keyframe = work.model, b"", None
        if work.plan.kind is Kind.TRAIN:
            payload = self._noise(bytes(model.keyframe.start), work.codec)
        if model.size_bytes >= DELTAS_PER_KEY * model.keyframe.size:
            if self._short is None or self._short.digest != model.digest:
                self._short = TensorArithmetic().shorten(model)
            keyframe = self._short
        weight = self._weights[path] if payload else 0
        result = Contribution(payload=payload, weight=weight, keyframe=keyframe)
        then(Worked(work_id=work.work_id, result=result))


def make(plan: Mapping[str, Any], record: Record) -> Process:
    """Put the process of the plan's clients together.

    Args:
        plan: `federation`, `task` (its label), and `clients`: for each its `path`, `port`, `password` and `weight`.
        record: takes every note.
    """
    clients = plan["clients"]
    descriptors.allow(len(clients))
    workshop = IdleWorkshop(plan["task"], {client["path"]: client["weight"] for client in clients})
    process = Process(record, workshop=workshop)
    for client in clients:
        path = client["path"]
        info = Info(role="client", boot=1, parent=parent(path), task=plan["task"])
        account = Account(host="127.0.0.1", port=client["port"], user=path, password=client["password"])
        process.add(Runner(ClientNode(path=path, boot=1, info=info), plan["federation"], account, process))
    return process


def main() -> None:
    """Run the clients until a signal ends them; the notes go into a journal beside the file."""
    logs.to_stderr(quiet=True)
    path = Path(sys.argv[1])
    with journal.Journal(path.with_name("journal.jsonl")) as record:
        process = make(json.loads(path.read_text()), record)
        with stopped_by_signals(process):
            process.hold()


def _noise(start: bytes, codec: str) -> bytes:
    arithmetic, rng = TensorArithmetic(), np.random.default_rng(1)
    layout = delta_layout(arithmetic.layout(start))
    delta = {name: rng.normal(0, SPREAD, spec.shape).astype(spec.dtype) for name, spec in layout.items()}
    return arithmetic.encode(delta, codec, 1)


if __name__ == "__main__":
    main()
