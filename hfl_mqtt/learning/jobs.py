"""What an agent and its training process say to each other, and how it is framed on the pipe between them.

A frame is a four-byte length and a msgpack map; both ends run the same installation, so there is no version. Nothing is
pickled. Importing this file imports neither torch nor numpy: the idle agent stays small.
"""

from __future__ import annotations

import datetime
import struct
from dataclasses import field, replace
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, BinaryIO

import msgpack
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from hfl_mqtt.protocol.limits import MAX_BLOB, MAX_WEIGHT
from hfl_mqtt.protocol.messages import Plan, Tallies

#: A model and what stands around it.
MAX_FRAME = MAX_BLOB + 1024 * 1024
#: A reason fits the decline that it may become.
MAX_REASON = 300

_LENGTH = struct.Struct(">I")
_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ModelBytes:
    """A model as `rounds.arithmetic.Model` has it: where it starts, and the deltas since; `digest` is of the last.

    Where the training process has a model of that chain already, `since` is its digest, and what leads there is left
    out: the start, and so many deltas of so many bytes.
    """

    run: str
    version: int
    digest: str
    key_version: int
    key_digest: str
    size: int
    start: bytes = field(repr=False)
    plus: bytes | None = field(default=None, repr=False)
    deltas: tuple[bytes, ...] = field(default=(), repr=False)
    since: str | None = None
    left_out: int = 0
    left_out_bytes: int = 0

    def after(self, run: str, version: int, digest: str) -> ModelBytes:
        """Return this model for a process that has that one: no more than what comes after it, where it may be one.

        Whether it is one of this chain is for the process to find out, which says `Lacking` if it is not.
        """
        at = version - self.key_version
        if run != self.run or not 0 <= at <= len(self.deltas):
            return self
        before, deltas = self.deltas[:at], self.deltas[at:]
        return replace(
            self, start=b"", plus=None, deltas=deltas, since=digest, left_out=at, left_out_bytes=sum(map(len, before))
        )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class TrainJob:
    """One client's share of a round: score the model that was sent, train it, encode the delta.

    `task_options` is what stands under `task:` (see `tasks.load_task`). A plan that evaluates is answered with
    `Evaluated`. `seed` decides the order of batches and everything random in training; the caller derives it from the
    run's seed, the round and the client. `residual` is the file of what coding cut off before (see `residuals`), None
    where nothing is carried along.
    """

    id: str
    client: str
    task_options: dict[str, Any]
    data_options: dict[str, Any]
    plan: Plan
    seed: int
    codec: str
    model: ModelBytes
    residual: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class EvaluateJob:
    """Score a model: on a client's held-out data, or with `data_options` None on the task's central sets."""

    id: str
    client: str
    task_options: dict[str, Any]
    data_options: dict[str, Any] | None = None
    model: ModelBytes


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class InitialJob:
    """Build the task's model from a seed: what a run starts from."""

    id: str
    task_options: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Cancel:
    """Stop working on this job."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Lacking:
    """The process does not have what the model of this job goes on from: it wants all of it."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Ready:
    """The training process has loaded torch and takes jobs."""

    torch: str
    device: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Unready:
    """The training process cannot work at all, and ends."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Trained:
    """An encoded mean delta and the samples behind it; tallies: "loss", and the metric of the model that was *sent*.

    The bounds are those of the update that it becomes: what passes here, the agent can send.
    """

    job_id: str
    payload: Annotated[bytes, Field(max_length=MAX_BLOB)] = field(repr=False)
    samples: Annotated[int, Field(ge=0, le=MAX_WEIGHT)]
    tallies: Tallies
    seconds: float
    #: How far the model that was sent had come from its start, without loss, where its deltas had become too many.
    plus: Annotated[bytes, Field(max_length=MAX_BLOB)] | None = field(default=None, repr=False)
    #: What was written to the disk of what coding cut off.
    residual_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Evaluated:
    """Tallies by metric, for central data by `set_metric`. Empty where there is no held-out data."""

    job_id: str
    tallies: Tallies
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Initial:
    """A fresh model, and how its task scores it.

    `start` holds the weights, see `learning.start`; `is_reproducible` says whether building it once more gave the same.
    """

    job_id: str
    start: bytes = field(repr=False)
    is_reproducible: bool
    parameters: int
    metric: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Failed:
    """A job has no result; `reason` is for people. `is_cancelled` where that was asked for."""

    job_id: str
    reason: str
    is_cancelled: bool = False


Job = TrainJob | EvaluateJob | InitialJob
Result = Trained | Evaluated | Initial | Failed
Frame = Job | Result | Cancel | Lacking | Ready | Unready

_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        TrainJob,
        EvaluateJob,
        InitialJob,
        Trained,
        Evaluated,
        Initial,
        Failed,
        Cancel,
        Lacking,
        Ready,
        Unready,
    )
}


def check(job: Job) -> None:
    """Check that a job can travel.

    Raises:
        TypeError: the options hold what YAML cannot.
    """
    options = [job.task_options, getattr(job, "data_options", None)]
    msgpack.packb(options, use_bin_type=True, default=_plain)


def pack(frame: Frame) -> bytes:
    """Return a frame's bytes, length first.

    Raises:
        ValueError: it is larger than `MAX_FRAME`.
        TypeError: the options hold what YAML cannot.
    """
    name = type(frame).__name__
    fields = _ADAPTERS[name].dump_python(frame)
    body: bytes = msgpack.packb({"type": name, **fields}, use_bin_type=True, default=_plain)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a {name} of {len(body)} bytes, at most {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def read(stream: BinaryIO) -> Frame | None:
    """Wait for the next frame; None at the end of the stream, also when it ends within a frame.

    Raises:
        ValueError: what came is no frame.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes, at most {MAX_FRAME}")
    body = stream.read(size)
    if len(body) < size:
        return None
    # YAML allows numbers as keys of options, so keys are not held to be text; what is read comes from our own process.
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except msgpack.exceptions.UnpackException as error:
        raise ValueError(f"bytes that are no frame: {error!r}") from error
    if not isinstance(fields, dict) or fields.get("type") not in _ADAPTERS:
        raise ValueError("bytes that are no frame")
    frame: Frame = _ADAPTERS[fields.pop("type")].validate_python(fields)
    return frame


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime.date | PurePath):
        return str(value)
    raise TypeError(f"options hold a {type(value).__name__}, which no YAML gives: {value!r}")
