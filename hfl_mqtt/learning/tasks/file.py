"""A user's own task: a Python file with a few functions, named by `file:` under `task:` (see docs/tasks.md).

The path comes from the node's own configuration, never from the network: a cloud cannot make a device run code.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.contracts import Metric, Options, Score, Task, TrainResult
from hfl_mqtt.learning.tasks import check_keys, user_code

if TYPE_CHECKING:
    import torch

_REQUIRED = ("model", "data", "loss", "score", "metric")


class FileTask(Task):
    """Wraps a file: `model`, `data`, `loss`, `score`, `metric`, and `train`, `evaluate`, `central_data` at will."""

    def __init__(self, path: Path, module: ModuleType) -> None:
        self._path = path
        self._module = module
        self._data: tuple[str, tuple[Any, Any]] | None = None
        self.metric = module.metric
        # The contract reads None as "use the trainer's own loop".
        self.train = self._train if hasattr(module, "train") else None
        self.evaluate = self._evaluate if hasattr(module, "evaluate") else None

    @classmethod
    def make(cls, options: Options) -> FileTask:
        """Run the file.

        Raises:
            TaskError: it is not there, raises, or lacks something; the message says where.
        """
        check_keys(options, ("file",), "task")
        path = Path(str(options["file"])).expanduser().resolve()
        if not path.is_file():
            raise TaskError(
                f"task.file: there is no file {path}: correct the path (a relative one starts at {Path.cwd()})"
            )
        module = _run(path)
        missing = [name for name in _REQUIRED if not hasattr(module, name)]
        if missing:
            raise TaskError(f"{path}: has no {', '.join(missing)}: a task file defines {', '.join(_REQUIRED)}")
        if not isinstance(module.metric, Metric):
            raise TaskError(
                f"{path}: metric is a {type(module.metric).__name__}: "
                "write metric = Metric('accuracy', higher_is_better=True), from hfl_mqtt.learning.contracts"
            )
        return cls(path, module)

    def model(self) -> torch.nn.Module:
        """Call the file's `model()`."""
        import torch

        with user_code("model()"):
            model = self._module.model()
        if not isinstance(model, torch.nn.Module):
            raise TaskError(f"{self._path}: model() gave a {type(model).__name__}: return a torch.nn.Module")
        return model

    def train_data(self, data: Options) -> Any:
        """Return the first of the file's `data(options)`."""
        return self._pair(data)[0]

    def test_data(self, data: Options) -> Any | None:
        """Return the second of the file's `data(options)`; None where nothing is held out."""
        return self._pair(data)[1]

    def central_data(self) -> dict[str, Any]:
        """Call the file's `central_data()`, if it has one."""
        if not hasattr(self._module, "central_data"):
            return {}
        with user_code("central_data()"):
            sets: dict[str, Any] = dict(self._module.central_data())
        return sets

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Call the file's `loss(output, target)`."""
        with user_code("loss()"):
            loss: torch.Tensor = self._module.loss(output, target)
        return loss

    def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Call the file's `score(output, target)`."""
        with user_code("score()"):
            score: torch.Tensor = self._module.score(output, target)
        return score

    def _train(self, *arguments: Any) -> TrainResult:
        with user_code("train()"):
            result = self._module.train(*arguments)
        if not isinstance(result, TrainResult):
            raise TaskError(f"{self._path}: train() gave a {type(result).__name__}: return a TrainResult")
        return result

    def _evaluate(self, *arguments: Any) -> Score:
        with user_code("evaluate()"):
            result = self._module.evaluate(*arguments)
        if not isinstance(result, Score):
            raise TaskError(f"{self._path}: evaluate() gave a {type(result).__name__}: return a Score")
        return result

    def _pair(self, data: Options) -> tuple[Any, Any]:
        # Train and test come from one call; the last is remembered, since both are asked for, one after the other.
        key = repr(sorted(data.items(), key=repr))
        if self._data is None or self._data[0] != key:
            with user_code("data()"):
                pair = self._module.data(dict(data))
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise TaskError(
                    f"{self._path}: data() must return (train, test), test being None where nothing is held out"
                )
            self._data = (key, pair)
        return self._data[1]


def _run(path: Path) -> ModuleType:
    name = f"hfl_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task.file: {path} is not a Python file: name it task.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a module up by name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # its neighbours, as in a script, but never before a library
    with user_code("the file"):
        spec.loader.exec_module(module)
    return module
