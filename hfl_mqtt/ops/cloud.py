"""`hfl cloud`: the cloud's role with its journal and its summary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hfl_mqtt import files
from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.journal import Journal
from hfl_mqtt.ops.serve import echo_line
from hfl_mqtt.ops.steering import RESUME, is_paused
from hfl_mqtt.roles import cloud as role
from hfl_mqtt.roles import runs
from hfl_mqtt.roles.process import Process, stopped_by_signals
from hfl_mqtt.rounds.actions import note
from hfl_mqtt.rounds.standing import KEY
from hfl_mqtt.state.vault import peek

SUMMARY = "summary.json"
JOURNAL = "journal.jsonl"
LATEST = "latest"
_REMEDY = "give this user the right to write there, or set out: to another folder"


def run_cloud(
    config: CloudConfig,
    *,
    quiet: bool,
    as_json: bool,
    is_new: bool = False,
    begun: Callable[[Process], None] = lambda _process: None,
) -> None:
    """Run a cloud to the end of its run, an unfinished one's first, and write its summary beside its model.

    Args:
        config: the cloud's YAML.
        quiet: print nothing but errors.
        as_json: print JSON lines rather than sentences.
        is_new: begin another run, also where one is unfinished.
        begun: told of the process before it runs, as by a service that is watched.

    Raises:
        HflError: what made it fail.
    """
    beginning = role.prepare(config, is_new=is_new)
    run, folder = beginning.run, Path(beginning.run.folder)
    is_shown = not quiet and not as_json
    try:
        make_folder(folder.parent, folder.name, is_there=beginning.is_resumed)
        if is_shown and beginning.is_resumed:
            echo_line(f"going on with the unfinished run {run.id}, life {run.lives}; another one begins with --new")
        with ExitStack() as stack:
            journal = Journal(folder / JOURNAL, echo=None if quiet else echo_line, as_json=as_json)
            stack.enter_context(journal)
            if beginning.is_resumed and is_paused(beginning.opened.vault.of(config.name), run.id):
                journal(config.name, note("paused", run=run.id, reason=f"by hand, before this start; {RESUME}"))

            def during(process: Process) -> None:
                begun(process)
                stack.enter_context(stopped_by_signals(process))

            result = role.run(config, journal, beginning, during=during)
    finally:
        beginning.opened.vault.close()
    if result is None:
        if is_shown:
            held = is_paused(peek(config.state_path(), config.name, KEY), run.id)
            echo_line(
                f"the run {run.id} is not over: start this cloud again and it goes on where it was, or begin another "
                f"with --new; its files lie in {folder}{f'; it is paused: {RESUME} then' if held else ''}"
            )
        return
    files.write_text(folder / SUMMARY, json.dumps(_summary(config, result), indent=2) + "\n")
    link_latest(folder.parent, folder.name)
    role.finish(config, run)
    if is_shown:
        scores = "  ".join(f"{name} {value:.5g}" for name, value in result.history[-1].items())
        moved = sum(map(sum, result.moved.values())) / 1e6
        rounds = "1 round" if result.rounds == 1 else f"{result.rounds} rounds"
        told = f"{rounds} in {result.seconds:.1f} s, {moved:.3g} MB on all links; {scores}"
        if result.stopped is not None:
            told = f"{told}; stopped: {result.stopped}"
        echo_line(f"{told}; the model lies in {result.model}")


def finished_run(config: CloudConfig) -> str | None:
    """Return what to tell where the last run gave all that this configuration asks for; None where there is work to do.

    For a service, which is started with its board: who types `hfl cloud` wants a run.
    """
    try:
        done = runs.finished(peek(config.state_path(), config.name, runs.FINISHED), config)
    except HflError:  # nothing is kept yet; or it cannot be read, and the run that begins says why
        return None
    if done is None:
        return None
    # Typed at a terminal without it, the command would keep its state elsewhere, and be another cloud of that name.
    home = os.environ.get("XDG_STATE_HOME", "") if config.state_dir is None else ""
    command = f"{f'XDG_STATE_HOME={home} ' if home else ''}hfl cloud --new"
    return (
        f"the run {done.run} is finished, its result lies in {done.folder}; nothing is begun: another run begins with "
        f"{command}, or when the YAML asks for more rounds or for something else"
    )


def make_folder(out: Path, run_id: str, *, is_there: bool = False) -> Path:
    """Make the run's own folder: a new run overwrites nothing of an old one, one that goes on has it already.

    Raises:
        HflError: it cannot be made; the message says what to do.
    """
    folder = out / run_id
    try:
        folder.mkdir(parents=True, exist_ok=is_there)
    except OSError as error:
        raise HflError(f"cannot make {folder}: {error.strerror}; {_REMEDY}") from None
    return folder


def link_latest(out: Path, run_id: str) -> None:
    """Let `latest` lead to this run, once it has a result: whoever copies the model from there gets a trained one.

    Raises:
        HflError: the link cannot be made; the message says what to do.
    """
    fresh = out / f".{LATEST}.{run_id}"
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(run_id)
        fresh.replace(out / LATEST)
    except OSError as error:
        raise HflError(f"cannot make {out / LATEST}: {error.strerror}; {_REMEDY}") from None


def _summary(config: CloudConfig, result: role.Result) -> dict[str, Any]:
    return {
        "task": config.task.label,
        "seed": config.seed,
        "run": result.run,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 3),
        "lives": result.lives,
        "parameters": result.parameters,
        "metric": {"name": result.metric, "higher_is_better": result.higher_is_better},
        "history": result.history,
        "stopped": result.stopped,
        "bytes": {child: {"up": up, "down": down} for child, (up, down) in sorted(result.moved.items())},
        "model": str(result.model),
    }
