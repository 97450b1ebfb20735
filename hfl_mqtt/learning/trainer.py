"""The agent's side of training: a queue of jobs for a process of its own that holds torch.

On a board with 512 MB, torch must not live in the agent. The process is started by the first job, kept warm while jobs
keep coming, and ended when idle; a crash in user code ends it and never the agent; keep-alives go on while it computes.
One thread owns all state here; public methods, pipes and timers only put work into its inbox.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from hfl_mqtt.errors import Misuse
from hfl_mqtt.learning import jobs
from hfl_mqtt.learning.jobs import (
    Cancel,
    Evaluated,
    EvaluateJob,
    Failed,
    Frame,
    Initial,
    InitialJob,
    Job,
    Lacking,
    Ready,
    Result,
    Trained,
    TrainJob,
    Unready,
)
from hfl_mqtt.learning.priority import Priority

__all__ = [
    "EvaluateJob",
    "Evaluated",
    "Failed",
    "Initial",
    "InitialJob",
    "Result",
    "TrainJob",
    "Trained",
    "Trainer",
]

#: What a pipe to the training process holds: a small model goes through in one piece, and nobody wakes for each 64 KiB.
PIPE_BYTES = 2**18
Sink = Callable[[Result], None]


class Trainer:
    """Runs jobs one after another in a training process. All methods may be called from any thread.

    Each job gives exactly one result to `sink`, in the order given, save that a cancelled one may be answered earlier.
    `sink` is called from the trainer's own thread and must only enqueue.

    Args:
        sink: takes the results.
        idle_s: how long a process without jobs is kept warm, in seconds.
        device: "auto" takes CUDA where torch finds it; else as torch names it, "cpu" or "cuda:0".
        threads: how many threads torch may compute with.
        priority: how the process stands to the board's other programs.
        cancel_grace_s: a cancelled job that has not stopped after this many seconds is ended with its process.
        on_log: takes each line that the process prints, from a thread of its own; None leaves them on stderr.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        idle_s: float = 60.0,
        device: str = "auto",
        threads: int = 1,
        priority: Priority = "low",
        cancel_grace_s: float = 5.0,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self._sink = sink
        self._idle_s = idle_s
        self._device = device
        self._threads = threads
        self._priority: Priority = priority
        self._cancel_grace_s = cancel_grace_s
        self._on_log = on_log
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        #: Run, version and digest of the model that the process worked with last, and so has.
        self._held: tuple[str, int, str] | None = None
        self._is_cancelling = False
        self._process: _Process | None = None
        self._is_ready = False
        self._last_words = ""
        self._deadline: float | None = None  # of the idle process, or of the grace of a cancelled job
        self._is_closed = False  # takes no more jobs
        self._is_done = False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="trainer", daemon=True)
        self._thread.start()

    def train(self, job: TrainJob) -> None:
        """Train; gives `Trained`, `Evaluated` where the plan only evaluates, or `Failed`."""
        self._submit(job)

    def evaluate(self, job: EvaluateJob) -> None:
        """Score a model; gives `Evaluated` or `Failed`."""
        self._submit(job)

    def initial(self, options: dict[str, Any], seed: int, *, job_id: str = "initial") -> str:
        """Build a task's first model; gives `Initial` or `Failed` under the job id that is returned."""
        self._submit(InitialJob(id=job_id, task_options=options, seed=seed))
        return job_id

    def cancel(self, job_id: str) -> None:
        """Give a job up; gives `Failed(is_cancelled=True)`, or its result where that was on its way."""
        self._inbox.put(partial(self._on_cancel, job_id))

    def close(self) -> None:
        """End the process and fail what was not done. Idempotent; takes a few seconds at most."""
        if not self._is_closed:
            self._is_closed = True
            self._inbox.put(self._on_close)
        self._thread.join(timeout=15)

    @property
    def pid(self) -> int | None:
        """The training process, for vitals; None while there is none."""
        process = self._process
        return process.pid if process else None

    def _submit(self, job: Job) -> None:
        if self._is_closed:
            raise Misuse(f"job {job.id} for a trainer that is closed")
        jobs.check(job)  # here, so that options that cannot travel raise at the caller
        self._inbox.put(partial(self._waiting.append, job))

    # Everything below runs on the trainer's thread.

    def _run(self) -> None:
        while not self._is_done:
            wait_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            try:
                self._inbox.get(timeout=wait_s)()
            except Empty:
                self._on_deadline()
            self._advance()

    def _advance(self) -> None:
        """Start the process, hand it the next job, or let it idle, whichever is next."""
        if self._current is not None or self._is_closed:
            return
        if not self._waiting:
            if self._process and self._is_ready and self._deadline is None:
                self._deadline = time.monotonic() + self._idle_s
        elif self._process is None:
            self._start()
        elif self._is_ready:
            self._deadline = None
            self._current = self._waiting.popleft()
            self._hand_over(self._process, self._current)

    def _hand_over(self, process: _Process, job: Job) -> None:
        """Send a job, without what the process has of its model."""
        if self._held is not None and not isinstance(job, InitialJob):
            job = replace(job, model=job.model.after(*self._held))
        try:
            process.send(jobs.pack(job))
        except ValueError as error:
            self._forget_current()
            self._inbox.put(lambda: None)  # look at the next job
            self._sink(Failed(job_id=job.id, reason=str(error)))

    def _start(self) -> None:
        try:
            self._process = _Process(self._device, self._threads, self._priority, self._on_frame_later, self._on_log)
        except OSError as error:
            job = self._waiting.popleft()
            self._inbox.put(lambda: None)  # look at the next job
            self._sink(Failed(job_id=job.id, reason=f"cannot start a training process: {error}"))

    def _on_frame_later(self, process: _Process, frame: Frame | None) -> None:
        self._inbox.put(partial(self._on_frame, process, frame))

    def _on_frame(self, process: _Process, frame: Frame | None) -> None:
        if process is not self._process:
            return  # last words of one that was ended
        if frame is None:
            self._on_death(process.end())
        elif isinstance(frame, Ready):
            self._is_ready = True
            self._log(
                f"training process {process.pid}: torch {frame.torch}, {frame.device}, {frame.seconds:.1f} s to start"
            )
        elif isinstance(frame, Unready):
            self._last_words = frame.reason
        elif isinstance(frame, Lacking | Trained | Evaluated | Initial | Failed):
            self._on_answer(process, frame)

    def _on_answer(self, process: _Process, frame: Lacking | Result) -> None:
        job = self._current
        if job is None or frame.job_id != job.id:
            return
        if isinstance(frame, Lacking):
            self._held = None
            if not self._is_cancelling:
                self._hand_over(process, job)
                return
            frame = Failed(job_id=job.id, reason="cancelled", is_cancelled=True)  # sent again it would be begun
        if isinstance(frame, Trained | Evaluated) and not isinstance(job, InitialJob):
            self._held = job.model.run, job.model.version, job.model.digest
        self._forget_current()
        self._sink(frame)

    def _on_death(self, status: int) -> None:
        reason = self._last_words or _death(status)
        job = self._current
        if job is None and not self._is_ready and self._waiting:
            job = self._waiting.popleft()  # it died while starting for this job
        was_cancelled = self._is_cancelling
        self._process, self._is_ready, self._held, self._last_words = None, False, None, ""
        self._forget_current()
        if was_cancelled:
            reason = "cancelled; its code did not stop, so the training process was ended"
        self._log(reason)
        if job is not None:
            self._sink(Failed(job_id=job.id, reason=reason[: jobs.MAX_REASON], is_cancelled=was_cancelled))

    def _on_cancel(self, job_id: str) -> None:
        if self._current is not None and job_id == self._current.id:
            if self._process and not self._is_cancelling:
                self._is_cancelling = True
                self._deadline = time.monotonic() + self._cancel_grace_s
                self._process.send(jobs.pack(Cancel(id=job_id)))
            return
        for job in self._waiting:
            if job.id == job_id:
                self._waiting.remove(job)
                self._sink(Failed(job_id=job_id, reason="cancelled", is_cancelled=True))
                return

    def _on_deadline(self) -> None:
        self._deadline = None
        if self._process is None:
            return
        if self._is_cancelling:
            self._process.kill()  # the end of its stdout brings the rest
        else:
            self._process.end()
            self._process, self._is_ready, self._held = None, False, None
            self._log("training process ended: idle")

    def _on_close(self) -> None:
        self._is_done = True
        if self._process:
            self._process.end()
            self._process = None
        pending = [*([self._current] if self._current else []), *self._waiting]
        self._waiting.clear()
        self._forget_current()
        for job in pending:
            self._sink(Failed(job_id=job.id, reason="cancelled: the agent is closing", is_cancelled=True))

    def _forget_current(self) -> None:
        self._current, self._is_cancelling, self._deadline = None, False, None

    def _log(self, line: str) -> None:
        if self._on_log:
            self._on_log(line)


class _Process:
    """One training process with its pipes; says every frame, and None at its end, to `on_frame`."""

    def __init__(
        self,
        device: str,
        threads: int,
        priority: Priority,
        on_frame: Callable[[_Process, Frame | None], None],
        on_log: Callable[[str], None] | None,
    ) -> None:
        command = [sys.executable, "-m", "hfl_mqtt.learning.worker", "--device", device, "--threads", str(threads)]
        command += ["--priority", priority]
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if on_log else None,
            pipesize=PIPE_BYTES,
            # Read when libraries are loaded; set_num_threads is too late for some. The second makes cuBLAS repeatable.
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        )
        self.pid = self._popen.pid
        self._threads = [Thread(target=self._read, args=(on_frame,), name="trainer-read", daemon=True)]
        if on_log:
            self._threads.append(Thread(target=self._read_log, args=(on_log,), name="trainer-log", daemon=True))
        for thread in self._threads:
            thread.start()

    def send(self, frame: bytes) -> None:
        """Write a frame. A process that died meanwhile says so at the other pipe, so here that is no error."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(frame)
            self._popen.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()

    def end(self) -> int:
        """Close its stdin, upon which it ends itself; kill it if it does not; return its exit status."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        try:
            status = self._popen.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        for thread in self._threads:
            # A grandchild may hold the pipe open; it must not hold the agent.
            thread.join(timeout=2)
        return status

    def _read(self, on_frame: Callable[[_Process, Frame | None], None]) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            while True:
                try:
                    frame = jobs.read(stream)  # type: ignore[arg-type]
                except ValueError:
                    # Something other than the training process wrote on its pipe: no frame can be trusted any more.
                    self._popen.kill()
                    frame = None
                on_frame(self, frame)
                if frame is None:
                    return

    def _read_log(self, on_log: Callable[[str], None]) -> None:
        assert self._popen.stderr is not None
        with io.TextIOWrapper(self._popen.stderr, errors="replace") as stream:
            for line in stream:
                on_log(line.rstrip())


def _death(status: int) -> str:
    if status >= 0:
        return f"training process ended by itself with status {status}: see what it printed in the log"
    known: dict[int, str] = {
        signal.SIGKILL: "perhaps out of memory: use a smaller batch_size or model",
        signal.SIGSEGV: "a crash in native code: see the log",
        signal.SIGTERM: "somebody ended it",
    }
    remedy = known.get(-status, "see the log")
    return f"training process died (signal {-status}, {remedy}); the next round starts a new one"
