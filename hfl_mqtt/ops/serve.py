"""Run a role's process in the foreground: journal, terminal, signals, exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hfl_mqtt.ops.journal import Journal, plain
from hfl_mqtt.roles.process import Process, Record, stopped_by_signals


def echo_line(line: str) -> None:
    """Print one line at once, to be read while a run goes on; what a peer put into it commands no terminal.

    Where nobody reads any more, as after `| head -1`, all that follows is dropped: a run is worth more than its words.
    """
    if sys.stdout is None:  # closed before we began
        return
    try:
        sys.stdout.write(plain(line) + "\n")
        sys.stdout.flush()
    except OSError:
        # What could not be written is still buffered and would fail again at the program's end; it goes nowhere now.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def serve(make: Callable[[Record], Process], journal_path: Path, *, quiet: bool, as_json: bool) -> None:
    """Make a process and hold it until it is done or a signal ends it.

    Args:
        make: puts the process together, given what takes its notes.
        journal_path: the journal, appended to.
        quiet: print nothing but errors.
        as_json: print JSON lines rather than sentences.

    Raises:
        HflError: what made it fail.
    """
    with Journal(journal_path, echo=None if quiet else echo_line, as_json=as_json) as journal:
        process = make(journal)
        with stopped_by_signals(process):
            ends = process.hold()
    for end in ends.values():
        if end.failure is not None and not quiet:
            echo_line(f"the run {end.run} ended without a result: {end.failure}")
