"""Where the log lines of this package go when it runs as a program."""

from __future__ import annotations

import logging


def to_stderr(*, quiet: bool) -> None:
    """Send log lines to stderr: the trace of a fault of ours always, a warning only where no note says it already."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: bool(record.exc_info) or (quiet and record.levelno == logging.WARNING))
    logging.getLogger("hfl_mqtt").handlers = [handler]
