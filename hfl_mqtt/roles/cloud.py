"""The cloud role: the schedule of a run, its model on disk, its result. Torch stays in the training process."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hfl_mqtt import __version__
from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import ConfigError, RunFailed, TaskError
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning import residuals, start, store
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.trainer import Failed, Initial
from hfl_mqtt.learning.weights import digest
from hfl_mqtt.protocol.messages import Info, round_text
from hfl_mqtt.registry import make
from hfl_mqtt.roles.edge import RECEIVE_MAXIMUM
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, Save
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.stopping import Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run gave. `history[v]` holds the scores of version v by metric; version 0 is the initial model.

    `moved` are the bytes up and down on all links below each child of the cloud, its own included; `stopped` says why
    the run ended before its last round, None where it did not.
    """

    run: str
    metric: str
    higher_is_better: bool
    parameters: int
    rounds: int
    seconds: float
    history: list[dict[str, float]]
    moved: dict[str, tuple[int, int]]
    stopped: str | None
    model: Path


def new_run() -> str:
    """Return a name for a run: when it was made, and something that no other has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def run(
    config: CloudConfig,
    record: Record,
    *,
    run_id: str,
    out: Path,
    during: Callable[[Process], None] | None = None,
) -> Result | None:
    """Run the cloud until its run is over; None where somebody asked it to end before.

    Args:
        config: the cloud's YAML.
        record: takes every note.
        run_id: the run's name.
        out: the run's own folder, which exists.
        during: called with the process before anything starts, e.g. to let signals stop it.

    Raises:
        ConfigError: the password cannot be read, or `stop` names a score that the task does not have.
        HflError: the state directory cannot be written.
        TaskError: the task cannot build its model.
        BrokerError: wrong password, or no right.
        RunFailed: no quorum, or no children; the message says who was waited for.
    """
    started_s = time.monotonic()
    account = config.account()  # what can be wrong at once is found before torch is loaded
    boot = next_boot(config.state_path(), config.name)
    model_path = out / "model.safetensors"
    workshop = Workshop(
        config.task.label,
        config.task.options,
        on_log=lambda line: record(config.name, Note(event="trainer", fields={"line": line})),
    )

    def save(version: Save) -> None:
        tags = store.Tags(
            task=config.task.label, run=version.run, round=round_text(version.round), digest=digest(version.weights)
        )
        store.save(model_path, version.weights, tags)
        residuals.save(out / "model.residual", version.lag, version.run, config.name)

    process = Process(record, workshop=workshop, save=save, until_finished=True)
    if during is not None:
        during(process)
    initial = _initial(workshop, config.seed, process)
    if initial is None:
        process.close()
        return None
    arithmetic = TensorArithmetic(make("strategies", config.strategy))
    try:
        node = _node(config, run_id, boot, arithmetic, initial)
    except ConfigError:
        process.close()
        raise
    process.add(
        Runner(
            node,
            config.federation,
            account,
            process,
            keepalive_s=int(config.broker.keepalive),
            session_expiry_s=int(config.broker.session_expiry),
            receive_maximum=RECEIVE_MAXIMUM,
        )
    )
    end = process.hold().get(config.name)
    if end is None:
        return None
    if end.failure is not None:
        raise RunFailed(end.failure)
    return Result(
        run=end.run,
        metric=initial.metric,
        higher_is_better=initial.higher_is_better,
        parameters=initial.parameters,
        rounds=node.version,
        seconds=time.monotonic() - started_s,
        history=node.history,
        moved=node.moved,
        stopped=node.stopped,
        model=model_path,
    )


def _node(config: CloudConfig, run_id: str, boot: int, arithmetic: TensorArithmetic, initial: Initial) -> CloudNode:
    named = config.stop.metric
    if named is not None and named != initial.metric and not named.endswith(f"_{initial.metric}"):
        raise ConfigError(
            f"stop.metric {named!r} is no score of this task: the devices' own is {initial.metric!r}, those of the "
            f"cloud's test sets are called after them, such as 'test_{initial.metric}'"
        )
    weights = arithmetic.start(initial.start).weights()
    is_seed = config.initial == "seed" or (config.initial == "auto" and initial.is_reproducible)
    schedule = Schedule(
        run=run_id,
        rounds=config.rounds,
        plan=config.to_plan(),
        tier=config.to_tiers()[0],
        seed=config.seed,
        wait_for=config.wait_for,
        wait_at_most_s=config.wait_at_most,
        is_scored=config.evaluate,
        stop=Stop(
            metric=config.stop.metric or initial.metric,
            higher_is_better=initial.higher_is_better,
            target=config.stop.target,
            patience=config.stop.patience,
            budget_bytes=config.stop.budget,
        ),
    )
    info = Info(role="cloud", boot=boot, software=f"hfl-mqtt {__version__}", task=config.task.label)
    return CloudNode(
        path=config.name,
        boot=boot,
        info=info,
        arithmetic=arithmetic,
        schedule=schedule,
        weights=weights,
        start=start.of_seed(weights, config.seed) if is_seed else initial.start,
    )


def _initial(workshop: Workshop, seed: int, process: Process) -> Initial | None:
    """Have the task's first model built; None where somebody asked to end before it was."""
    built = threading.Event()
    answers: list[Initial | Failed] = []

    def take(answer: Initial | Failed) -> None:
        answers.append(answer)
        built.set()

    workshop.initial(seed, take)
    if not process.wait(built):
        return None
    answer = answers[0]
    if isinstance(answer, Failed):
        process.close()
        raise TaskError(answer.reason)
    return answer
