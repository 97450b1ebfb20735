"""The one tree of exceptions: everything this package raises on purpose is an `HflError`.

Two branches matter. `Malformed` is what a peer did wrong: it is caught at the border, counted and noted, and never
stops a node. Everything else is for the person in front of the screen: it says what, where, and what to do.
"""

from __future__ import annotations


class HflError(Exception):
    """Base of every error raised on purpose by this package."""

    exit_code = 1


class ConfigError(HflError):
    """A configuration file cannot be used; the message lists every mistake as `file:line:column key: what`."""

    exit_code = 2


class TaskError(HflError):
    """A learning task cannot be loaded, or its code raised; the message names the task and the remedy."""

    exit_code = 3


class BrokerError(HflError):
    """The broker cannot be reached, refuses the credentials, or refuses a topic; the message names the remedy."""

    exit_code = 4


class RunFailed(HflError):
    """A run ended without its result, for example because no quorum came in; the message says what was missing."""

    exit_code = 5


class Unwritable(HflError):
    """The disk cannot take what must be durable: it is full, read-only or failing. Who waits may go on later."""


class Malformed(HflError):
    """Bytes from the network that are not what they should be. Caught at the border; `str()` is the reason."""


class Refused(HflError):
    """A well-formed message that must not count (wrong shape, wrong base, NaN). `str()` is the receipt's reason."""


class Forged(Refused):
    """A signature that does not hold, or is missing. `str()` is the reason."""


class Misuse(HflError):
    """Our own shell used a state machine in a way its contract forbids: a bug, never a peer's fault."""
