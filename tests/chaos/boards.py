"""What happens to boards: full disks, clocks that jump, cores that are busy for long, two with one name."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hfl_mqtt.errors import HflError
from hfl_mqtt.protocol.messages import State, StateName
from tests.chaos.rows import Case, row
from tests.chaos.tree import A1, A2, EDGE_A, Tree, Wrap, plan

DAY_S = 86_400
#: Moves the wall clock of whoever it is loaded into by the seconds that stand in a file, at once when it changes.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile int64_t *shift;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CHAOS_CLOCK"), O_RDONLY);
    void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) shift = page;
    real = dlsym(RTLD_NEXT, "clock_gettime");
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return status;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


# -------------------------------------------------------------- disks


def on_a_small_disk(tree: Tree, name: str, size: str = "3m") -> Wrap:
    """Put a process's state folder on a tmpfs of its own, in a mount namespace of its own."""
    folder = tree.state_path(name)
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    return lambda command: ["unshare", "--mount", "sh", "-c", script, str(folder), *command]


@contextmanager
def full_disk(tree: Tree, name: str) -> Iterator[None]:
    """Fill that disk to the last byte, as logs or photos do, and free it again."""
    ballast = Path(f"/proc/{tree.processes[name].pid}/root{tree.state_path(name)}/ballast")
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


def _disk_full(case: Case, name: str, broker: str, act: str) -> None:
    """Fill a node's disk in the middle of g2, see it say so, free the disk, and see it go on."""

    def mount(tree: Tree) -> None:
        tree.wrap[name] = on_a_small_disk(tree, name)
        # What a journal says must be there to be read, so it lies on another disk.
        tree.extra[EDGE_A] = {"journal": str(tree.directory / "journals" / "journal.jsonl")}

    with case.running(plan(), before=mount) as tree:
        tree.hold("a1", "a2", "b1")
        tree.await_training("a1", 2)
        tree.await_training("a2", 2)
        pid = tree.processes[name].pid
        with full_disk(tree, name):
            began_s = time.monotonic()
            if name == "cloud":
                tree.release("a1", "a2", "b1")
            else:
                tree.release("a1", "a2")
            said = tree.witness(broker).until(lambda heard: _is_halted(heard.message, heard.path, name), "HALTED", 30)
            halted_s = time.monotonic() - began_s
        assert isinstance(said.message, State)
        with case.recovery(tree):
            if name != "cloud":
                tree.release("b1")
        if tree.processes[name].pid != pid or tree.processes[name].poll() not in (None, 0):
            case.wrong.append(f"{name} ended")
        reason = said.message.reason.replace(str(tree.state_path(name)), "its folder")
        case.more |= {"halted_after_s": round(halted_s, 1), "reason": reason}
        case.finish(tree, f"{act}; its state said after {halted_s:.1f} s: {reason}")


def _is_halted(message: object, path: str, name: str) -> bool:
    return path == name and isinstance(message, State) and message.state is StateName.HALTED


@row("disk-full-client", "disk full, then freed", "a device in its round", needs_root=True)
def _(case: Case) -> None:
    _disk_full(case, A1, EDGE_A, "it sent nothing that it could not keep")


@row("disk-full-edge", "disk full, then freed", "an edge in its round", needs_root=True)
def _(case: Case) -> None:
    _disk_full(case, EDGE_A, EDGE_A, "it gave no receipt that it could not keep")


@row("disk-full-cloud", "disk full, then freed", "the cloud in its round", needs_root=True)
def _(case: Case) -> None:
    _disk_full(case, "cloud", "cloud", "it gave no receipt that it could not keep")


# -------------------------------------------------------------- cores


@row("busy-core", "training keeps the core busy for ten keepalives", "training")
def _(case: Case) -> None:
    keepalive_s = 60 if case.options.is_full else 5
    busy = {"seconds": 10.0 * keepalive_s, "busy": True}
    what = plan(rounds=1, data={A1: busy, A2: busy}, tiers=({"quorum": "100 %", "open_for": "1 h"},) * 2)
    with case.running(what, extra={"*": {"broker": {"keepalive": f"{keepalive_s} s"}}}) as tree:
        case.finish(tree, f"{10 * keepalive_s} s of training under a keepalive of {keepalive_s} s", 1200)
        lost = tree.notes(EDGE_A, "lost", sender=A1) + tree.notes(A1, "disconnected")
        if lost:
            case.wrong.append(f"the connection was lost {len(lost)} times")
        case.happened += "; no connection was lost" if not lost else ""


# -------------------------------------------------------------- clocks


class Clock:
    """A wall clock for others to wear; `jump` moves it, in both directions."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise HflError("no C compiler here, which builds what moves the clock")
        directory.mkdir(parents=True, exist_ok=True)
        source, library, self._file = directory / "clock.c", directory / "clock.so", directory / "clock"
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self._file.write_bytes(bytes(mmap.PAGESIZE))
        self._environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Have all that is started meanwhile go by this clock, brokers too."""
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name in self._environment:
                del os.environ[name]

    def jump(self, seconds: int) -> None:
        """Move the clock for all at once."""
        with self._file.open("r+b") as file:
            file.write(ctypes.c_int64(seconds))


def _clock_jumps(case: Case, seconds: int, said: str) -> None:
    clock = Clock(case.directory / "clock")

    with clock.worn(), case.running(plan()) as tree:
        tree.hold("a1", "b1")
        tree.note(EDGE_A, "accepted", sender=A2, round="g2.e1")
        with case.recovery(tree):
            clock.jump(seconds)
            tree.release("a1", "b1")
        tree.kill(EDGE_A)
        tree.restart(EDGE_A)
        case.finish(tree, said)


@row("clock-forward", "wall clock of all jumps a day forward, brokers too", "round open; then an edge restarted")
def _(case: Case) -> None:
    _clock_jumps(case, DAY_S, "no deadline passed, no session expired; all durations are monotonic")


@row("clock-back", "wall clock of all jumps a day back, brokers too", "round open; then an edge restarted")
def _(case: Case) -> None:
    _clock_jumps(case, -DAY_S, "no deadline moved; all durations are monotonic")


@row("clock-restart", "edge killed, back on a board that has been up a day less", "round open", needs_root=True)
def _(case: Case) -> None:
    def shifted(command: list[str]) -> list[str]:
        return ["unshare", "--time", "--monotonic", str(DAY_S), "--", *command]

    with case.running(plan(), wrap={EDGE_A: shifted}) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        tree.kill(EDGE_A)
        del tree.wrap[EDGE_A]
        with case.recovery(tree):
            tree.restart(EDGE_A)
            tree.release("a2")
        case.finish(tree, "its round went on; its former life's monotonic times mean nothing")


# -------------------------------------------------------------- two boards, one name


@row("cloned-board", "two boards with one name", "from g3 on")
def _(case: Case) -> None:
    with case.running(plan(rounds=6)) as tree:
        tree.hold("b1", number=3)
        tree.await_training("b1", 3)
        tree.start_twin(A1, f"{A1}-twin")
        said = tree.witness(EDGE_A).until(lambda heard: _is_warning(heard.message, heard.path), "a warning", 60)
        assert isinstance(said.message, State)
        with case.recovery(tree):
            tree.release("b1")
        # Both train what they are asked for; one update of each round counts.
        case.finish(tree, "", 240, again=6)
        takeovers = len(tree.notes(A1, "disconnected"))
        case.more |= {"takeovers": takeovers, "noted_by_edge": len(tree.notes(EDGE_A, "cloned", sender=A1))}
        case.happened = f"told after {takeovers} takeovers in all: {said.message.reason}; the run went on with either"


def _is_warning(message: object, path: str) -> bool:
    return path == A1 and isinstance(message, State) and "another board" in message.reason
