"""What a device reaches alone: the same model from the same start, as many epochs or steps, only its own data."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from hfl_mqtt.config.sections import PlanConfig, TaskConfig
from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.jobs import ModelBytes
from hfl_mqtt.learning.trainer import Evaluated, EvaluateJob, Failed, Initial, Result, Trained, Trainer, TrainJob
from hfl_mqtt.ops.federation import RunPlan
from hfl_mqtt.ops.scenario import Scenario
from hfl_mqtt.protocol import blobs
from hfl_mqtt.protocol.blobs import next_digest
from hfl_mqtt.protocol.messages import Plan, Tally
from hfl_mqtt.rounds.arithmetic import LOSSLESS

R = TypeVar("R", Initial, Trained, Evaluated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Scores of the models trained alone: on their own held-out data pooled, and the median on the unseen set."""

    own: float | None
    unseen: float | None


def alone_plan(run: RunPlan) -> Plan:
    """Return what a device does alone: the epochs or steps of all its rounds of `run` in one go."""
    label = TaskConfig.model_validate(dict(run.task)).label
    plan = PlanConfig.model_validate(dict(run.plan)).to_plan(label, seed=run.seed)
    rounds = int(run.rounds * run.tiers[1].get("rounds", 1))
    if plan.steps is not None:
        return replace(plan, steps=rounds * plan.steps)
    return replace(plan, epochs=rounds * (plan.epochs or 1))


class Baselines:
    """Trains every device's model alone, beside a running federation, in one training process.

    Args:
        scenario: what runs; its devices, task and plan are used.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._task = dict(scenario.run.task)
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._trainer = Trainer(self._results.put, on_log=lambda _line: None)
        self._alone: Alone | None = None
        self._failure: TaskError | None = None
        self._thread = threading.Thread(target=self._run, name="baselines", daemon=True)
        self.done = 0

    @property
    def of(self) -> int:
        """How many models are trained."""
        return len(self._scenario.run.clients)

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def wait(self, timeout_s: float) -> Alone | None:
        """Return the scores, or None when they are not ready in time.

        Raises:
            TaskError: a model could not be trained.
        """
        self._thread.join(timeout_s)
        if self._failure is not None:
            raise self._failure
        return self._alone

    def close(self) -> None:
        """End the training process; what was not done stays undone."""
        self._trainer.close()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            self._alone = self._measure()
        except TaskError as error:
            self._failure = error

    def _measure(self) -> Alone:
        scenario, run = self._scenario, self._scenario.run
        plan = alone_plan(run)
        self._trainer.initial(self._task, run.seed)
        initial = self._expect(Initial)
        arithmetic = TensorArithmetic()
        model = ModelBytes(
            run="alone",
            version=0,
            digest=arithmetic.start_digest(initial.start),
            key_version=0,
            key_digest=arithmetic.start_digest(initial.start),
            size=arithmetic.model_size(arithmetic.layout(initial.start)),
            start=initial.start,
        )
        own: list[Tally] = []
        unseen: list[float] = []
        for farm in run.farms:
            for device in farm.devices:
                path = f"cloud/{farm.name}/{device.name}"
                self._trainer.train(
                    TrainJob(
                        id=path,
                        client=path,
                        task_options=self._task,
                        data_options=dict(device.data),
                        plan=plan,
                        seed=run.seed,
                        codec=LOSSLESS,
                        model=model,
                    )
                )
                trained = self._expect(Trained)
                name = next_digest(model.digest, blobs.digest(trained.payload))
                own_model = replace(model, version=1, digest=name, deltas=(trained.payload,))
                for data in (dict(device.data), None):
                    self._trainer.evaluate(
                        EvaluateJob(
                            id=f"{path}/{data is None}",
                            client=path,
                            task_options=self._task,
                            data_options=data,
                            model=own_model,
                        )
                    )
                own += self._expect(Evaluated).tallies.values()
                central = self._expect(Evaluated).tallies
                unseen += [
                    value
                    for name, tally in central.items()
                    if name.startswith(f"{scenario.unseen}_") and (value := tally.value) is not None
                ]
                self.done += 1
        pooled = Tally(total=sum(t.total for t in own), count=sum(t.count for t in own), is_root=own[0].is_root)
        return Alone(own=pooled.value, unseen=median(unseen) if unseen else None)

    def _expect(self, kind: type[R]) -> R:
        result = self._results.get()
        if isinstance(result, Failed):
            raise TaskError(f"the baseline could not be trained: {result.reason}")
        assert isinstance(result, kind)
        return result
