"""Room for many connections in one process: each takes a file descriptor, and systems start with 1,024 or 256."""

from __future__ import annotations

import resource
from pathlib import Path

from hfl_mqtt.errors import ConfigError

#: What a process opens besides, later on: journal, training process, state files, connections in the making.
SPARE = 64


def allow(connections: int) -> None:
    """Raise this process's own limit on open files, where it is too low for so many more connections.

    Raises:
        ConfigError: the system's limit does not allow it.
    """
    needed = _open_now() + connections + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{connections} clients in one process need {needed} open files, and the limit is {hard}: raise it, with "
            "LimitNOFILE= in the systemd unit or in /etc/security/limits.conf, or spread the clients over more "
            "processes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_now() -> int:
    folder = Path("/dev/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
