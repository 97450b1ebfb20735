"""Torch and torchvision as they are installed, and what one training step of the configured task takes.

All of it in processes of their own and with a time limit: an installation may hang, or crash, and the doctor must live
to tell of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.jobs import Failed, Initial, ModelBytes, Result, Trained, TrainJob
from hfl_mqtt.learning.sources.source import SOURCE
from hfl_mqtt.learning.sources.window import peek
from hfl_mqtt.learning.trainer import Trainer
from hfl_mqtt.ops.doctor.findings import Finding, Verdict, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.protocol.messages import Plan

#: A Pi Zero imports torch in half a minute; what takes longer than this hangs.
IMPORT_S = 180.0
#: For the model, the data and a few steps; a task that reads a large file may need most of it.
STEP_S = 300.0
#: The first steps load and warm up; these many more are what is timed.
_STEPS = 10
_INSTALL = "pip install 'hfl-mqtt[train]' into the agent's venv"

#: Run in a process of their own, so that this one stays small and alive.
_TORCH = """
import json, sys
import torch
gpu = torch.cuda.is_available()
sum = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name() if gpu
    else "", "right": sum == 512.0, "python": sys.version.split()[0]}))
"""
_TORCHVISION = """
import json
from hfl_mqtt.learning import torchvision_ops
found = torchvision_ops.load_torchvision()
import torch
from torchvision import transforms
small = transforms.Resize((2, 2))(torch.zeros(1, 4, 4))
print(json.dumps({"version": found.__version__, "is_declared": bool(torchvision_ops._declared), "right":
    list(small.shape) == [1, 2, 2]}))
"""
R = TypeVar("R", bound=Result)


def check_torch(patient: Patient) -> Finding:
    """Import torch as the training process would, and let it multiply two matrices."""
    name = "torch"
    found, why = _run(_TORCH)
    if found is None:
        return fail(
            name, why, _INSTALL if "No module named 'torch'" in why else f"{_INSTALL}, of one version with the rest"
        )
    on = f"GPU {found['gpu']}" if found["gpu"] else "processor"
    text = f"{found['version']} on Python {found['python']}, {on}"
    if not found["right"]:
        return fail(
            name, f"{text}; it multiplies wrongly", "the wheel is not for this processor: take PyPI's, or NVIDIA's"
        )
    if patient.device == "cuda" and not found["gpu"]:
        built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
        return fail(name, f"{text}, {built}, finds no GPU", "set device: auto, or install the wheel for this JetPack")
    return ok(name, text)


def check_torchvision() -> Finding:
    """Import torchvision as tasks do; its compiled operators may be missing, as on many Jetsons."""
    name = "torchvision"
    found, why = _run(_TORCHVISION)
    if found is None and "No module named 'torchvision'" in why:
        return skipped(name, "not installed; only a task that imports it needs it")
    if found is None:
        return warn(name, why, "install the torchvision that goes with this torch; tasks without it are not held up")
    if found["is_declared"]:
        text = f"{found['version']}, without its compiled operators: data sets and transforms work, nms does not"
        return warn(name, text, "for a task that calls nms, install the torchvision that goes with this torch")
    return ok(name, f"{found['version']}, transforms work")


def check_rows(patient: Patient) -> Finding:
    """See how many rows a device has gathered from its sensors."""
    name, source = "rows", patient.source
    if source is None or source.kind != "mqtt":
        return skipped(name, "no sensors are listened to")
    found = peek(Path(source.window))
    rows, bad = found.get("rows", 0), found.get("bad_readings", 0)
    text = f"{rows} of {found.get('readings', 0)} readings, {bad} of them bad; {source.least_rows} are needed"
    if rows < source.least_rows:
        remedy = "wait, or look whether sensors speak on these topics and the agent runs; lower data.least"
        return warn(name, text, remedy)
    return ok(name, text)


def check_step(patient: Patient) -> Finding:
    """Build the task's model; on a device, also load its data and time some training steps, which change nothing."""
    name = "training step"
    if patient.task is None:
        return skipped(name, "an edge trains nothing")
    if patient.source is not None and patient.source.kind == "mqtt" and check_rows(patient).verdict is not Verdict.OK:
        return skipped(name, "there are too few rows yet")
    results: SimpleQueue[Result] = SimpleQueue()
    lines: list[str] = []
    trainer = Trainer(results.put, device=patient.device, threads=patient.threads, on_log=lines.append)
    deadline_s = time.monotonic() + STEP_S
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _timed(_apart(patient, Path(scratch)), trainer, results, deadline_s)
    except TaskError as error:
        return fail(name, str(error), "correct task: and data: here; hfl check shows mistakes of the file itself")
    except Empty:
        said = f"; the last it said: {lines[-1]}" if lines else ""
        return fail(
            name, f"not done within {STEP_S:g} s{said}", "use a smaller model or batch, or see what its code waits for"
        )
    finally:
        trainer.close()


def _timed(patient: Patient, trainer: Trainer, results: SimpleQueue[Result], deadline_s: float) -> Finding:
    name, task = "training step", patient.task
    assert task is not None
    trainer.initial(task.options, seed=0)
    initial = _next(Initial, results, deadline_s)
    model = f"{task.label}, {initial.parameters} parameters"
    if patient.role == "cloud":
        return ok(name, f"{model}; its first model can be built")

    def train(steps: int) -> Trained:
        trainer.train(_job(patient, initial, steps))
        return _next(Trained, results, deadline_s)

    began_s = time.monotonic()
    first = train(1)
    loaded_s = time.monotonic() - began_s
    if not first.samples:
        return warn(name, f"{model}; there is no data yet", "see data: here; until there is some, rounds are declined")
    # Each job also scores the model and codes the delta; the difference is steps alone.
    short, long = train(1), train(1 + _STEPS)
    step_s = max(long.seconds - short.seconds, 0.0) / _STEPS
    text = f"{model}: {_span(step_s)} a step of {patient.plan.batch_size}, after {_span(loaded_s)} to load and warm up"
    return ok(name, f"{text}; {first.samples} examples seen in the first")


def _apart(patient: Patient, scratch: Path) -> Patient:
    """Return the patient with its data as the training process takes it; files are read into a window of our own."""
    source = patient.source
    if source is None:
        return patient
    if source.kind != "mqtt":
        source = replace(source, window=str(scratch / "window.db"))
    return replace(patient, data={**patient.data, SOURCE: source.to_options()})


def _job(patient: Patient, initial: Initial, steps: int) -> TrainJob:
    from hfl_mqtt.learning.arithmetic import TensorArithmetic  # it brings numpy
    from hfl_mqtt.rounds.arithmetic import LOSSLESS

    assert patient.task is not None
    arithmetic, plan = TensorArithmetic(), patient.plan
    digest = arithmetic.start_digest(initial.start)
    return TrainJob(
        id=f"doctor-{steps}",
        client=patient.name,
        task_options=patient.task.options,
        data_options=dict(patient.data),
        plan=Plan(
            task=patient.task.label,
            epochs=None,
            steps=steps,
            learning_rate=plan.learning_rate,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            batch_size=plan.batch_size,
        ),
        seed=0,
        codec=LOSSLESS,
        model=ModelBytes(
            run="doctor",
            version=0,
            digest=digest,
            key_version=0,
            key_digest=digest,
            size=arithmetic.model_size(arithmetic.layout(initial.start)),
            start=initial.start,
        ),
    )


def _next(kind: type[R], results: SimpleQueue[Result], deadline_s: float) -> R:
    result = results.get(timeout=max(deadline_s - time.monotonic(), 0.001))
    if isinstance(result, Failed):
        raise TaskError(result.reason)
    assert isinstance(result, kind), result
    return result


def _run(code: str) -> tuple[dict[str, Any] | None, str]:
    """Run a piece of Python in a process of its own; return what it printed as JSON, or None and why."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"not imported within {IMPORT_S:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        last = lines[-1][:300] if lines else "it said nothing"
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else "failed"
        return None, f"the import was {how}: {last}" if done.returncode < 0 else last
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None, "it printed something else than was asked"
    return found, ""


def _span(seconds: float) -> str:
    """
    >>> _span(0.00053), _span(0.13), _span(75)
    ('0.53 ms', '130 ms', '75 s')
    """
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2g} ms"
