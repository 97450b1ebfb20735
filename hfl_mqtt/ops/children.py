"""Programs that we start and that must not outlive us."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

#: How many of a log's last lines an error shows.
LOG_LINES = 8


def start(command: list[str], log_path: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program as our child, its output going to the end of `log_path`.

    It dies with us even if we are killed: it is started through `setpriv --pdeathsig` (util-linux), because a
    `preexec_fn` is unsafe beside threads. Linux ties that signal to the *thread* that called this, so call it from one
    that lives as long as the child, normally the main thread. Where `setpriv` is missing the child outlives a SIGKILL
    of ours. It has a session of its own, so that Ctrl-C reaches only us and we end our children in order.
    """
    guard = shutil.which("setpriv")
    guarded = [*([guard, "--pdeathsig", "TERM"] if guard else []), *command]
    with log_path.open("ab") as log:
        return subprocess.Popen(
            guarded, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def stop(children: list[subprocess.Popen[bytes]], deadline_s: float) -> None:
    """Ask all children to end, wait `deadline_s` for all together, kill what is left."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    give_up_s = time.monotonic() + deadline_s
    for child in children:
        try:
            child.wait(max(0.0, give_up_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def end_of(status: int) -> str:
    """Say how a program ended: one that a signal killed may have had no time to say why.

    >>> end_of(5), end_of(-9)
    ('ended with status 5', 'was killed by SIGKILL')
    """
    if status >= 0:
        return f"ended with status {status}"
    known = {each.value: each.name for each in signal.Signals}
    return f"was killed by {known.get(-status, f'signal {-status}')}"


def log_tail(log_path: Path) -> str:
    """Return the last lines of a log, indented, for the end of an error."""
    lines = log_path.read_text(errors="replace").splitlines()[-LOG_LINES:] if log_path.exists() else []
    return "".join(f"\n    {line}" for line in lines) if lines else f"; {log_path} is empty"
