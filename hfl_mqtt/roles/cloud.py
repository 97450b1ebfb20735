"""The cloud role: the schedule of a run, its model on disk, its result. Torch stays in the training process."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hfl_mqtt import __version__, files
from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import ConfigError, RunFailed, TaskError
from hfl_mqtt.learning import start, store
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.trainer import Failed, Initial
from hfl_mqtt.learning.weights import digest
from hfl_mqtt.protocol.limits import RECEIVE_MAXIMUM
from hfl_mqtt.protocol.messages import Buffer, Info, round_text
from hfl_mqtt.registry import make
from hfl_mqtt.roles import identities, runs
from hfl_mqtt.roles.opening import Opened, opened
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.runs import Run
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, Save, note
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.conduct import Bounds
from hfl_mqtt.rounds.signing import Signer
from hfl_mqtt.rounds.stopping import Stop
from hfl_mqtt.state.vault import Vault
from hfl_mqtt.transport.link import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run gave. `history[v]` holds the scores of version v by metric; version 0 is the initial model.

    `moved` are the bytes up and down on all links below each child of the cloud, its own included; `stopped` says why
    the run ended before its last round, None where it did not. `seconds` are those of all `lives` of the run, without
    what lay between them.
    """

    run: str
    metric: str
    higher_is_better: bool
    parameters: int
    rounds: int
    seconds: float
    lives: int
    history: list[dict[str, float]]
    moved: dict[str, tuple[int, int]]
    stopped: str | None
    model: Path


@dataclass(slots=True)
class Beginning:
    """A cloud that may begin, or go on: what it has kept is open, and its run has a name and a folder.

    `start` is where an unfinished run started from; None where another begins.
    """

    opened: Opened
    account: Account
    signer: Signer | None
    run: Run
    start: Buffer | None

    @property
    def is_resumed(self) -> bool:
        """Whether the run goes on, rather than begins."""
        return self.start is not None


def new_run() -> str:
    """Return a name for a run: when it was made, and something that no other has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def prepare(config: CloudConfig, *, is_new: bool = False) -> Beginning:
    """Open what the cloud has kept, and find the run that it is in the middle of, or name another.

    Args:
        config: the cloud's YAML.
        is_new: begin another run, also where one is unfinished.

    Raises:
        ConfigError: the password cannot be read, the identity is of another node, or an unfinished run was begun with
            something else.
        HflError: the state directory cannot be written, or belongs to another process.
    """
    account = config.account()  # what can be wrong at once is found before torch is loaded
    signer = identities.load(config.identity, config.federation, config.name)
    path = config.state_path()
    ready = opened(path, {config.name: path}, config.federation, {config.name: account})
    try:
        kept = ready.vault.of(config.name)
        run = None if is_new else runs.unfinished(kept, config)
        if run is not None:
            return Beginning(ready, account, signer, run, kept[runs.START])
        name = new_run()
        folder = str(config.out_path() / name)
        return Beginning(ready, account, signer, Run(id=name, folder=folder, config=runs.described(config)), None)
    except BaseException:
        ready.vault.close()
        raise


def run(
    config: CloudConfig,
    record: Record,
    beginning: Beginning,
    *,
    during: Callable[[Process], None] | None = None,
) -> Result | None:
    """Run the cloud until its run is over; None where it goes on when the cloud is started again.

    Args:
        config: the cloud's YAML.
        record: takes every note.
        beginning: what `prepare` gave; its vault is closed at the end. The run's folder exists.
        during: called with the process before anything starts, e.g. to let signals stop it.

    Raises:
        ConfigError: `stop` names a score that the task does not have.
        HflError: the state directory cannot be written.
        TaskError: the task cannot build its model.
        BrokerError: wrong password, or no right.
        RunFailed: no quorum, or no children; the message says who was waited for.
    """
    vault, out = beginning.opened.vault, Path(beginning.run.folder)
    clock = runs.Clock(vault.of(config.name) if beginning.is_resumed else {}, config.name)
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
        # For people to look at; the model itself is in the vault, and this is written again after a power cut.
        store.save(model_path, version.weights, tags, is_forced=False)

    process = Process(record, workshop=workshop, save=save, vault=vault, beside=clock.changes, until_finished=True)
    try:
        if during is not None:
            during(process)
        if vault.damage:
            record(config.name, note("damaged", reason=vault.damage))
        found = _begun(config, beginning, workshop, process)
        if found is None:
            return None
        run, start_bytes = found
        node = _node(config, run, beginning, start_bytes)
        process.add(
            Runner(
                node,
                config.federation,
                beginning.account,
                process,
                keepalive_s=int(config.broker.keepalive),
                session_expiry_s=int(config.broker.session_expiry),
                receive_maximum=RECEIVE_MAXIMUM,
            )
        )
        end = process.hold().get(config.name)
    finally:
        process.close()
    if end is None or end.is_drained:
        return None
    if end.failure is not None:
        finish(config, None)
        raise RunFailed(end.failure)
    files.settle(model_path)
    return Result(
        run=end.run,
        metric=run.metric,
        higher_is_better=run.higher_is_better,
        parameters=run.parameters,
        rounds=node.version,
        seconds=clock.seconds,
        lives=run.lives,
        history=node.history,
        moved=node.moved,
        stopped=node.stopped,
        model=model_path,
    )


def finish(config: CloudConfig, done: Run | None) -> None:
    """Forget a run that is over, but for that it is `done`, where it has a result and that is on the disk."""
    kept = None if done is None else runs.Finished(run=done.id, folder=done.folder, asked=runs.asked(config))
    vault = Vault(config.state_path())
    try:
        runs.end(vault, config.name, kept)
    finally:
        vault.close()


def _begun(
    config: CloudConfig, beginning: Beginning, workshop: Workshop, process: Process
) -> tuple[Run, Buffer] | None:
    """Return the run and the weights that it starts from, both on the disk; None where somebody asked to end."""
    vault = beginning.opened.vault
    if beginning.start is not None:
        runs.go_on(vault, config.name, beginning.run)
        return beginning.run, beginning.start
    initial = _initial(workshop, config.seed, process)
    if initial is None:
        return None
    run = replace(
        beginning.run,
        metric=initial.metric,
        higher_is_better=initial.higher_is_better,
        parameters=initial.parameters,
        is_reproducible=initial.is_reproducible,
    )
    _check_stop(config, run)
    runs.begin(vault, config.name, run, initial.start)
    return run, initial.start


def _check_stop(config: CloudConfig, run: Run) -> None:
    named = config.stop.metric
    if named is not None and named != run.metric and not named.endswith(f"_{run.metric}"):
        raise ConfigError(
            f"stop.metric {named!r} is no score of this task: the devices' own is {run.metric!r}, those of the "
            f"cloud's test sets are called after them, such as 'test_{run.metric}'"
        )


def _node(config: CloudConfig, run: Run, beginning: Beginning, start_bytes: Buffer) -> CloudNode:
    _check_stop(config, run)
    opened = beginning.opened
    arithmetic = TensorArithmetic(make("strategies", config.strategy))
    weights = arithmetic.start(start_bytes).weights()
    is_seed = config.initial == "seed" or (config.initial == "auto" and run.is_reproducible)
    schedule = Schedule(
        run=run.id,
        rounds=config.rounds,
        plan=config.to_plan(),
        tier=config.to_tiers()[0],
        seed=config.seed,
        wait_for=config.wait_for,
        wait_at_most_s=config.wait_at_most,
        is_scored=config.evaluate,
        stop=Stop(
            metric=config.stop.metric or run.metric,
            higher_is_better=run.higher_is_better,
            target=config.stop.target,
            patience=config.stop.patience,
            budget_bytes=config.stop.budget,
        ),
    )
    boot = opened.boots[config.name]
    info = Info(role="cloud", boot=boot, software=f"hfl-mqtt {__version__}", task=config.task.label)
    return CloudNode(
        path=config.name,
        boot=boot,
        info=info,
        arithmetic=arithmetic,
        schedule=schedule,
        weights=weights,
        start=start.of_seed(weights, config.seed) if is_seed else start_bytes,
        saved=opened.vault.of(config.name),
        signer=beginning.signer,
        bounds=Bounds(**config.limits.given()),
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
        raise TaskError(answer.reason)
    return answer
