"""What a cloud keeps of its run beside what its node keeps: which run it is, where its files lie, how it began.

An unfinished run is gone on with by whoever starts the same cloud again, if what is configured is still that run. Of a
finished one it is kept that it is: a service that starts with its board shall not begin another at every boot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.config.wording import KeyPath, key_text
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.messages import Buffer
from hfl_mqtt.rounds.records import pack, read
from hfl_mqtt.state.vault import Changes, Vault

#: What may be another in each life of a run: when it ends, whom it waits for, and where it is reached.
FREE = {"rounds", "stop", "wait_for", "wait_at_most", "broker", "out", "state_dir", "role"}
#: Of these, what says how much is wanted: who asks for more than a finished run gave wants another one.
_WANTED = {"rounds", "stop"}
RUN, START, SECONDS, FINISHED = "role/run", "role/start", "role/seconds", "role/finished"
#: The time that a run has taken is written down this often at most, with what is written anyway.
_SECONDS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a cloud.

    `folder` is where its files lie; `config` is what it was begun with, as JSON; the rest is what its task says of the
    model that it begins with.
    """

    id: str
    folder: str
    config: str
    metric: str = ""
    higher_is_better: bool = True
    parameters: int = 0
    is_reproducible: bool = False
    #: How often a cloud has been started for it.
    lives: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has a result, which lies in `folder`; `asked` is what was asked of it, as JSON."""

    run: str
    folder: str
    asked: str


@dataclass(frozen=True, slots=True)
class _Seconds:
    seconds: float


def described(config: CloudConfig) -> str:
    """Return what of a configuration must stay as it is while a run goes on, as JSON."""
    return _as_json(config, FREE)


def asked(config: CloudConfig) -> str:
    """Return what of a configuration says which run is wanted, and how much of it, as JSON."""
    return _as_json(config, FREE - _WANTED)


def finished(kept: Mapping[str, Buffer], config: CloudConfig) -> Finished | None:
    """Return the last run, where it gave all that this configuration asks for; None where another one is wanted."""
    done = read_finished(kept)
    if done is None or any(_changed((), json.loads(done.asked), json.loads(asked(config)))):
        return None
    return done


def read_finished(kept: Mapping[str, Buffer]) -> Finished | None:
    """Return the last run, if it has a result and none has begun since, whatever is configured."""
    return read(Finished, kept.get(FINISHED))


def unfinished(kept: Mapping[str, Buffer], config: CloudConfig) -> Run | None:
    """Return the run that this cloud was in the middle of, in its next life; None where there was none.

    Raises:
        ConfigError: what is configured is no longer that run; the message says what was changed.
    """
    run = read_run(kept)
    if run is None or START not in kept:
        return None
    changed = list(_changed((), json.loads(run.config), json.loads(described(config))))
    if changed:
        lines = "\n".join(f"  {key_text(path)}: was {_shown(old)}, is {_shown(new)}" for path, old, new in changed)
        raise ConfigError(
            f"the run {run.id} is unfinished, and what it was begun with has been changed since:\n{lines}\n"
            "put that back to go on with the run, or begin another one with --new; rounds, stop and broker may change"
        )
    return replace(run, lives=run.lives + 1)


def read_run(kept: Mapping[str, Buffer]) -> Run | None:
    """Return the run that is kept, whatever is configured; None where there is none."""
    return read(Run, kept.get(RUN))


def read_seconds(kept: Mapping[str, Buffer]) -> float:
    """Return how long it has taken so far, as far as that was put down."""
    found = read(_Seconds, kept.get(SECONDS))
    return 0.0 if found is None else found.seconds


class Clock:
    """How long a run has taken, in all its lives: the time between them does not count."""

    def __init__(self, kept: Mapping[str, Buffer], node: str) -> None:
        self._before_s = read_seconds(kept)
        self._began_s = time.monotonic()
        self._written_s = 0.0
        self._node = node

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before_s + time.monotonic() - self._began_s

    def changes(self) -> Changes:
        """Return what to write down beside something else; nothing where that was done just now."""
        now_s = self.seconds
        if now_s < self._written_s + _SECONDS_EVERY_S:
            return {}
        self._written_s = now_s
        return {(self._node, SECONDS): pack(_Seconds(round(now_s, 1)))}


def begin(vault: Vault, node: str, run: Run, start: bytes) -> None:
    """Put down that a run has begun, with the weights it starts from; whatever was kept before is swept."""
    old: dict[tuple[str, str], Buffer | None] = {(node, key): None for key in vault.of(node)}
    vault.commit({**old, (node, RUN): pack(run), (node, START): start})


def go_on(vault: Vault, node: str, run: Run) -> None:
    """Put down that another life of a run has begun."""
    vault.commit({(node, RUN): pack(run)})


def end(vault: Vault, node: str, done: Finished | None = None) -> None:
    """Forget a run: one that has no result, or but for that it is done, one whose result is on the disk."""
    changes: dict[tuple[str, str], Buffer | None] = {(node, key): None for key in vault.of(node)}
    if done is not None:
        changes[node, FINISHED] = pack(done)
    vault.commit(changes)


def _as_json(config: CloudConfig, but: set[str]) -> str:
    return json.dumps(config.model_dump(mode="json", exclude=but), sort_keys=True, default=str)


def _changed(path: KeyPath, old: Any, new: Any) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield what differs. A key that an older release did not know has no old value, and only a task's own counts."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {**old, **new} if path[:1] == ("task",) else old
        for key in keys:
            yield from _changed((*path, key), old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _changed((*path, index), a, b)
    elif old != new:
        yield path, old, new


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
