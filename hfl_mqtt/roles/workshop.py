"""The bench where the work of several nodes of one process is done: one trainer, results back to whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from hfl_mqtt import files
from hfl_mqtt.learning import residuals
from hfl_mqtt.learning.jobs import ModelBytes
from hfl_mqtt.learning.trainer import Evaluated, EvaluateJob, Failed, Initial, Result, Trained, Trainer, TrainJob
from hfl_mqtt.rounds.actions import Contribution, Event, Work, Worked, WorkFailed
from hfl_mqtt.rounds.arithmetic import Model


class Workshop:
    """Turns `Work` into jobs of a trainer and its results into events.

    Args:
        task: the task's label; calls for another task are declined.
        options: what stands under `task:`.
        residual: where a node keeps what coding cuts off from its updates, by path; None where it keeps nothing.
        trainer: arguments of `Trainer`: `idle_s`, `device`, `threads`, `priority`, `on_log`.
    """

    def __init__(
        self,
        task: str,
        options: Mapping[str, Any],
        *,
        residual: Callable[[str], Path | None] = lambda _path: None,
        **trainer: Any,
    ) -> None:
        self._task, self._options = task, dict(options)
        self._residual = residual
        self._lock = Lock()
        self._asked: dict[str, tuple[Work, Callable[[Event], None]]] = {}
        self._initial: Callable[[Initial | Failed], None] | None = None
        self._trainer = Trainer(self._take, **trainer)

    @property
    def pid(self) -> int | None:
        """The training process, while there is one."""
        return self._trainer.pid

    def initial(self, seed: int, then: Callable[[Initial | Failed], None]) -> None:
        """Build the task's first model; `then` is called from the trainer's thread."""
        self._initial = then
        self._trainer.initial(self._options, seed)

    def do(self, path: str, data: Mapping[str, Any], work: Work, then: Callable[[Event], None]) -> None:
        """Do the work of the node `path` on its `data`; `then` takes the event, from the trainer's thread."""
        if work.plan.task != self._task:
            reason = f"the call is for the task {work.plan.task!r}, this node has {self._task!r}: change its task:"
            then(WorkFailed(work_id=work.work_id, reason=reason))
            return
        job_id = self._job_id(path, work.work_id)
        with self._lock:
            self._asked[job_id] = (work, then)
        if work.is_central:
            self._trainer.evaluate(
                EvaluateJob(
                    id=job_id,
                    client=path,
                    task_options=self._options,
                    model=_bytes_of(work.model),
                )
            )
            return
        residual = self._residual(path)
        self._trainer.train(
            TrainJob(
                id=job_id,
                client=path,
                task_options=self._options,
                data_options=dict(data),
                plan=work.plan,
                seed=work.seed,
                codec=work.codec,
                model=_bytes_of(work.model),
                residual=str(residual) if residual is not None else None,
            )
        )

    def counted(self, path: str, update: str) -> None:
        """Take it that an update of the node was accepted, told by the first 16 digits of its payload's SHA-256."""
        residual = self._residual(path)
        if residual is not None:
            residuals.keep(residual, update)

    def forget(self, path: str) -> None:
        """Drop what a node owes to a parent that is no longer its own."""
        residual = self._residual(path)
        if residual is not None:
            residuals.forget(residual)

    def cancel(self, path: str, work_id: str) -> None:
        """Give that work up; no event will come of it."""
        job_id = self._job_id(path, work_id)
        with self._lock:
            self._asked.pop(job_id, None)
        self._trainer.cancel(job_id)

    def close(self) -> None:
        """End the training process."""
        with self._lock:
            self._asked.clear()
        self._trainer.close()

    def _take(self, result: Result) -> None:
        if isinstance(result, Initial) or (isinstance(result, Failed) and result.job_id == "initial"):
            if self._initial is not None:
                self._initial(result)
            return
        if isinstance(result, Failed) and result.is_cancelled:
            return  # nobody waits for it; the same work may have been asked for again since
        with self._lock:
            asked = self._asked.pop(result.job_id, None)
        if asked is None:
            return
        work, then = asked
        work_id = work.work_id
        match result:
            case Trained():
                model, keyframe = work.model, None
                if result.plus is not None:
                    keyframe = replace(model.keyframe, version=model.version, digest=model.digest, plus=result.plus)
                contribution = Contribution(
                    payload=result.payload,
                    weight=result.samples,
                    tallies=result.tallies,
                    seconds=result.seconds,
                    keyframe=keyframe,
                )
                files.worn.add(result.residual_bytes, forced=2 if result.residual_bytes else 0)
                then(Worked(work_id=work_id, result=contribution))
            case Evaluated():
                contribution = Contribution(payload=b"", weight=0, tallies=result.tallies, seconds=result.seconds)
                then(Worked(work_id=work_id, result=contribution))
            case Failed():
                then(WorkFailed(work_id=work_id, reason=result.reason))

    @staticmethod
    def _job_id(path: str, work_id: str) -> str:
        return f"{path}#{work_id}"


def _bytes_of(model: Model) -> ModelBytes:
    keyframe = model.keyframe
    return ModelBytes(
        run=keyframe.run,
        version=model.version,
        digest=model.digest,
        key_version=keyframe.version,
        key_digest=keyframe.digest,
        size=keyframe.size,
        start=bytes(keyframe.start),
        plus=None if keyframe.plus is None else bytes(keyframe.plus),
        deltas=tuple(map(bytes, model.deltas)),
    )
