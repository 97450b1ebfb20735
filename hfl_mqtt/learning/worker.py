"""The process that holds torch: takes jobs on stdin, answers on stdout, ends when stdin does.

Run as `python -m hfl_mqtt.learning.worker` by `trainer`. A thread of its own reads stdin, so that a cancellation is
heard while the main thread trains, and so that this process vanishes with its agent, even one that was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

from hfl_mqtt.errors import HflError, Refused, TaskError
from hfl_mqtt.learning import jobs, priority, residuals
from hfl_mqtt.learning.jobs import (
    MAX_REASON,
    Cancel,
    Evaluated,
    EvaluateJob,
    Failed,
    Initial,
    InitialJob,
    Job,
    Lacking,
    Ready,
    Result,
    Trained,
    TrainJob,
    Unready,
)
from hfl_mqtt.protocol import blobs
from hfl_mqtt.protocol.blobs import next_digest
from hfl_mqtt.protocol.limits import MAX_TALLIES, MAX_TOTAL, MAX_WEIGHT
from hfl_mqtt.protocol.messages import Kind, Tally
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.rounds.arithmetic import DELTAS_PER_KEY, LOSSLESS, MAX_DELTAS

if TYPE_CHECKING:
    import torch

    from hfl_mqtt.learning.contracts import Options, Task, Weights

#: Models kept rebuilt: the newest, and the one that slower clients of this process still work with.
KEPT_MODELS = 2
#: The protocol's own bounds of a metric's name and of a tally's count.
MAX_NAME = 64
MAX_COUNT = 2**53


def main() -> None:
    """Serve jobs until stdin ends."""
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--priority", default="low")
    arguments = parser.parse_args()
    frames_in, frames_out = _take_pipes()
    _be_modest(arguments.priority)
    inbox = _Inbox(frames_in)
    try:
        import torch

        from hfl_mqtt.learning import sgd

        torch.set_num_threads(arguments.threads)
        device = sgd.pick_device(arguments.device)
        bench = Bench(device)
    except ImportError as error:
        _say(frames_out, Unready(reason=f"training needs torch ({error}): pip install 'hfl-mqtt[train]'"[:MAX_REASON]))
        sys.exit(3)
    except HflError as error:
        _say(frames_out, Unready(reason=str(error)[:MAX_REASON]))
        sys.exit(3)
    _say(frames_out, Ready(torch=str(torch.__version__), device=device, seconds=time.monotonic() - began))
    while True:
        _say(frames_out, bench.work(inbox.jobs.get(), inbox))


class _Lacks(HflError):
    """The model goes on from one that this process does not have, or that is not of its chain."""


class Bench:
    """What the process keeps warm between jobs: tasks and data sets, these per client, and the arithmetic."""

    def __init__(self, device: str) -> None:
        from hfl_mqtt.learning.arithmetic import TensorArithmetic
        from hfl_mqtt.learning.sources.prepared import Prepared

        self._arithmetic = TensorArithmetic()
        self._device = device
        self._tasks: dict[str, Task] = {}
        #: The sets read last, by task, client and kind, each under the options that it was read with.
        self._data: dict[str, tuple[str, Any]] = {}
        self._prepared = Prepared(print)
        #: The models worked with last, by task, run and digest: where they started, and how far they have come.
        self._models: OrderedDict[tuple[str, str, str], tuple[Weights, Weights | None]] = OrderedDict()

    def work(self, job: Job, inbox: _Inbox) -> Result | Lacking:
        """Do a job; whatever its code raises becomes `Failed`, with the traceback on stderr."""
        from hfl_mqtt.learning.sgd import Cancelled
        from hfl_mqtt.learning.tasks import user_code

        def stop() -> bool:
            return inbox.cancelled == job.id

        try:
            with user_code("the task"):
                match job:
                    case TrainJob():
                        return self._train(job, stop)
                    case EvaluateJob():
                        return self._evaluate(job, stop)
                    case InitialJob():
                        return self._initial(job)
        except Cancelled:
            return Failed(job_id=job.id, reason="cancelled", is_cancelled=True)
        except _Lacks:
            return Lacking(job_id=job.id)
        except HflError as error:
            traceback.print_exc()
            return Failed(job_id=job.id, reason=str(error)[:MAX_REASON])

    def _train(self, job: TrainJob, stop: Any) -> Trained | Evaluated:
        from hfl_mqtt.learning import sgd
        from hfl_mqtt.learning.weights import difference

        began = time.monotonic()
        options = self._prepared.options(job.client, job.data_options)
        task, model, base, plus = self._model(job)
        tallies: dict[str, Tally] = {}
        test = self._set(job, options, "test")
        if test is not None:
            score = sgd.evaluate(task, model, test, device=self._device, stop=stop)
            tallies[task.metric.name] = _tally(task.metric.name, score.total, score.count, task.metric.is_root)
        if job.plan.kind is Kind.EVALUATE:
            return Evaluated(job_id=job.id, tallies=tallies, seconds=time.monotonic() - began)
        data = self._set(job, options, "train")
        result = sgd.train(task, model, data, job.plan, job.seed, device=self._device, stop=stop)
        samples = _samples(result.samples)
        tallies["loss"] = _tally("loss", result.loss * samples, samples)
        payload, residual_bytes = self._encode(job, difference(sgd.weights_of(model, is_copied=False), base))
        return Trained(
            job_id=job.id,
            payload=payload,
            samples=samples,
            tallies=tallies,
            seconds=time.monotonic() - began,
            plus=plus,
            residual_bytes=residual_bytes,
        )

    def _encode(self, job: TrainJob, delta: Weights) -> tuple[bytes, int]:
        """Code a delta with what coding cut off before; what it cuts off now waits until the update is accepted.

        Returns:
            The update's payload, and the bytes that were written to the disk.
        """
        arithmetic, run, above = self._arithmetic, job.model.run, parent(job.client) or ""
        path = Path(job.residual) if job.residual is not None else None
        before = residuals.load(path, run, above) if path is not None else None
        if before is not None and before.keys() == delta.keys():
            delta = arithmetic.add(delta, before)
        payload, _, left = arithmetic.carry(delta, job.codec, job.seed)
        written = 0
        if path is not None:
            written = residuals.wait(path, left, run, above, blobs.digest(payload)[:16])
        return payload, written

    def _evaluate(self, job: EvaluateJob, stop: Any) -> Evaluated:
        from hfl_mqtt.learning import sgd

        began = time.monotonic()
        task, model, _, _ = self._model(job)
        if job.data_options is None:
            sets = {f"{name}_{task.metric.name}": data for name, data in self._set(job, {}, "central").items()}
        else:
            test = self._set(job, self._prepared.options(job.client, job.data_options), "test")
            sets = {} if test is None else {task.metric.name: test}
        _check_names(sets)
        scores = {name: sgd.evaluate(task, model, data, device=self._device, stop=stop) for name, data in sets.items()}
        tallies = {name: _tally(name, score.total, score.count, task.metric.is_root) for name, score in scores.items()}
        return Evaluated(job_id=job.id, tallies=tallies, seconds=time.monotonic() - began)

    def _initial(self, job: InitialJob) -> Initial:
        from hfl_mqtt.learning import sgd, start
        from hfl_mqtt.learning.weights import digest

        task = self._task(job)
        weights = self._build(task, job.seed)
        again = self._build(task, job.seed)
        return Initial(
            job_id=job.id,
            start=start.of_weights(weights),
            is_reproducible=digest(weights) == digest(again),
            parameters=sgd.parameter_count(task.model()),
            metric=task.metric.name,
            higher_is_better=task.metric.higher_is_better,
        )

    @staticmethod
    def _build(task: Task, seed: int) -> Weights:
        from hfl_mqtt.learning import sgd

        sgd.seed_all(seed)
        return sgd.weights_of(task.model())

    def _model(self, job: TrainJob | EvaluateJob) -> tuple[Task, torch.nn.Module, Weights, bytes | None]:
        """Return the task, the model that was sent, its weights, and one delta for all where they are too many."""
        from hfl_mqtt.learning import sgd

        task = self._task(job)
        try:
            weights, moved = self._weights(job, task)
        except Refused as error:
            raise TaskError(f"the model cannot be rebuilt: {error}") from error
        sent, plus = job.model, None
        count, size = sent.left_out + len(sent.deltas), sent.left_out_bytes + sum(map(len, sent.deltas))
        is_long = count >= MAX_DELTAS or size >= DELTAS_PER_KEY * sent.size
        if is_long and moved is not None:
            plus = self._arithmetic.encode(moved, LOSSLESS, 0)
        sgd.seed_all(0)
        # A new one each time: what a model keeps outside its state must not leak from one client into the next.
        model = task.model()
        sgd.load_(model, weights)
        return task, model, weights, plus

    def _weights(self, job: TrainJob | EvaluateJob, task: Task) -> tuple[Weights, Weights | None]:
        """Rebuild a model: from the last one where it is a few deltas further, else from its start."""
        from hfl_mqtt.learning.weights import layout_of

        arithmetic, sent = self._arithmetic, job.model
        digests = [sent.since or sent.key_digest]
        for delta in sent.deltas:
            digests.append(next_digest(digests[-1], blobs.digest(delta)))
        task_key = _key(job.task_options)
        keys = [(task_key, sent.run, name) for name in digests]
        known = next((at for at in range(len(keys) - 1, -1, -1) if keys[at] in self._models), None)
        if sent.since is not None and (known is None or digests[-1] != sent.digest):
            raise _Lacks
        if digests[-1] != sent.digest:
            raise Refused("its deltas do not lead to its digest")
        if known is None:
            known = 0
            initial = arithmetic.start(sent.start).weights(lambda seed: self._build(task, seed))
            layout = layout_of(initial)
            moved = arithmetic.decode(sent.plus, layout) if sent.plus is not None else None
        else:
            initial, moved = self._models[keys[known]]
            layout = layout_of(initial)
        for delta in sent.deltas[known:]:
            moved = arithmetic.add(moved, arithmetic.decode(delta, layout))
        self._models[keys[-1]] = (initial, moved)
        self._models.move_to_end(keys[-1])
        while len(self._models) > KEPT_MODELS:
            self._models.popitem(last=False)
        return (initial if moved is None else arithmetic.place(initial, moved)), moved

    def _task(self, job: Job) -> Task:
        from hfl_mqtt.learning.tasks import load_task

        key = _key(job.task_options)
        if key not in self._tasks:
            task = load_task(job.task_options)
            _check_name(task.metric.name)
            self._tasks[key] = task
        return self._tasks[key]

    def _set(self, job: TrainJob | EvaluateJob, options: Options, which: str) -> Any:
        place, key = _key(job.task_options, job.client, which), _key(options)
        known = self._data.get(place)
        if known is None or known[0] != key:
            task = self._task(job)
            if which == "central":
                found: Any = task.central_data()
            else:
                found = task.train_data(options) if which == "train" else task.test_data(options)
            known = self._data[place] = key, found
        return known[1]


class _Inbox:
    """Reads stdin on a thread: jobs into a queue, the id of the last cancelled one, and the end of this process."""

    def __init__(self, stream: BinaryIO) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.cancelled: str | None = None
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: BinaryIO) -> None:
        while True:
            try:
                frame = jobs.read(stream)
            except ValueError:
                frame = None  # not our agent: end as if it had gone
            if frame is None:
                os._exit(0)
            elif isinstance(frame, Cancel):
                self.cancelled = frame.id
            elif isinstance(frame, TrainJob | EvaluateJob | InitialJob):
                self.cancelled = None  # meant an earlier job, maybe of the same id
                self.jobs.put(frame)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for frames; user code that prints or reads gets stderr and nothing."""
    frames_in, frames_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return frames_in, frames_out


def _be_modest(wanted: priority.Priority) -> None:
    """Leave the core to the agent and the broker, memory too, and Ctrl-C to the agent, which then ends us."""
    priority.lower(wanted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # only Linux has it, and a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("500")


def _say(stream: BinaryIO, frame: Result | Lacking | Ready | Unready) -> None:
    try:
        stream.write(jobs.pack(frame))
        stream.flush()
    except BrokenPipeError:
        os._exit(0)  # the agent has gone


# What a task gives is held to the bounds of the protocol here, where it costs a round; the agent would end by it.


def _samples(samples: Any) -> int:
    count = int(samples)
    if count != samples or not 0 <= count <= MAX_WEIGHT:
        raise TaskError(
            f"train() gave samples={samples!r}: return how many examples were trained on, 0 to {MAX_WEIGHT}"
        )
    return count


def _tally(name: str, total: Any, count: Any, is_root: bool = False) -> Tally:
    total, count = float(total), float(count)
    if not (abs(total) <= MAX_TOTAL and 0 <= count <= MAX_COUNT):
        raise TaskError(
            f"{name} adds up to {total:g} over {count:g} examples: at most {MAX_TOTAL:g} over 0 to {MAX_COUNT:g} "
            "can be sent"
        )
    return Tally(total=total, count=count, is_root=is_root)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        shown = repr(name) if len(repr(name)) <= 100 else f"{repr(name)[:97]}..."
        raise TaskError(f"the metric's name {shown} is no text of at most {MAX_NAME} characters: take a shorter one")


def _check_names(sets: Mapping[str, Any]) -> None:
    if len(sets) > MAX_TALLIES:
        raise TaskError(f"central_data() gave {len(sets)} sets: at most {MAX_TALLIES} can be reported")
    for name in sets:
        _check_name(name)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


if __name__ == "__main__":
    main()
