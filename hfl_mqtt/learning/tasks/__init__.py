"""The tasks that come with the package, and how one is chosen; a user's own is a file (see `tasks.file`)."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, HflError, TaskError
from hfl_mqtt.learning.contracts import Options, Task

_PACKAGE = Path(__file__).resolve().parents[2]
_STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<")


def load_task(options: Options) -> Task:
    """Make the task that stands under `task:` in a node's own YAML.

    `{"name": "mnist", ...}` is a registered task with its options; `{"file": "task.py"}` is the user's own. No message
    from the network reaches these options, so none can name a path.

    Raises:
        TaskError: there is no such task, or it refuses its options; the message names the remedy.
    """
    rest = dict(options)
    name = rest.pop("name", None)
    if name is None and "file" in rest:
        from hfl_mqtt.learning.tasks.file import FileTask

        return FileTask.make(rest)
    if not isinstance(name, str):
        raise TaskError("task: says neither which `name` nor which `file`: set one")
    try:
        kind = registry.load("tasks", name)
    except ConfigError as error:
        raise TaskError(str(error)) from None
    except ImportError as error:
        raise TaskError(f"task {name!r} cannot be loaded: {error}: pip install 'hfl-mqtt[train]'") from error
    task: Task = kind.make(rest)
    return task


def check_keys(options: Options, known: Collection[str], where: str) -> None:
    """Refuse options that do not exist, so that a typo is not a new setting.

    >>> check_keys({"indx": 0}, ("index", "of"), "data")
    Traceback (most recent call last):
    hfl_mqtt.errors.TaskError: data.indx is no option, did you mean 'index'? Known: index, of
    """
    for key in options:
        if key not in known:
            raise TaskError(f"{where}.{key} is no option{registry.known_names(str(key), known)}")


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn what a user's code raises into a `TaskError` that says `file:line`, what was raised, and what to do.

    The line is the deepest one that is neither this package's nor a library's. Errors of this package pass.
    """
    try:
        yield
    except HflError:
        raise
    except (Exception, SystemExit) as error:
        text = str(error).removesuffix(".")
        where = f" (a relative path starts at {Path.cwd()})" if isinstance(error, FileNotFoundError) else ""
        raise TaskError(
            f"{_place(error)}{what} raised {type(error).__name__}: {text}. Correct it there{where}"
        ) from error


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        is_library = frame.filename.startswith(_STANDARD) or {"site-packages", "dist-packages"} & set(path.parts)
        if not is_library and not path.is_relative_to(_PACKAGE):
            return f"{frame.filename}:{frame.lineno}: "
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
