"""The options of a task, under `task:` and `data:`: whether the task has them, told without loading it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from hfl_mqtt.config.wording import KeyPath, Mistake, near
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.sources.source import SOURCE


def unknown_options(role: str, data: dict[str, Any]) -> Iterator[Mistake]:
    """Yield each option of a file that its task does not have; those of tasks outside the package are not known here.

    It reads what may be wrong in other ways, and leaves those to the models.
    """
    task = data.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    if not isinstance(name, str) or name not in KEYS:
        return
    yield from _unknown(name, ("task",), task, KEYS[name].task, besides=("name", "file"))
    if role == "client":
        yield from _unknown(name, ("data",), data.get("data"), KEYS[name].data)
        clients = data.get("clients")
        for index, client in enumerate(clients if isinstance(clients, list) else ()):
            own = client.get("data") if isinstance(client, dict) else None
            yield from _unknown(name, ("clients", index, "data"), own, KEYS[name].data)


def _unknown(
    task: str, path: KeyPath, options: Any, known: Collection[str], besides: Collection[str] = ()
) -> Iterator[Mistake]:
    if isinstance(options, dict) and SOURCE in options:
        return  # `config.sources` tells the keys of a source from those of the task
    for key in options if isinstance(options, dict) else ():
        if key not in known and key not in besides:
            meant = near(key, [*known, *besides])
            hint = f", did you mean {meant!r}?" if meant else f"; the options are {', '.join(known)}"
            yield Mistake(path=(*path, key), text=f"is no option of {task}{hint}", at_key=True)
