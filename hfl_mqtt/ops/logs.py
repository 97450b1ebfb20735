"""Where the log lines of this package go when it runs as a program."""

from __future__ import annotations

import logging


def to_stderr(*, quiet: bool) -> None:
    """Send log lines to stderr: an error always, for nothing else tells it; a warning where no note is printed."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING if quiet else logging.ERROR)
    logging.getLogger("hfl_mqtt").handlers = [handler]
