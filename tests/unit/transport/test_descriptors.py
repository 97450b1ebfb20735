"""The limit on open files is raised where that is allowed, and explained where it is not."""

from __future__ import annotations

import subprocess
import sys

RUN = """
import resource
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport.descriptors import allow
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    allow({connections})
except ConfigError as error:
    print(error)
else:
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def told(*, soft: int, hard: int, connections: int) -> str:
    """Ask in a process of its own: a hard limit cannot be raised again."""
    code = RUN.format(soft=soft, hard=hard, connections=connections)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_limit_that_is_high_enough_stays() -> None:
    assert told(soft=256, hard=4096, connections=100) == "256 4096"


def test_a_soft_limit_is_raised_to_what_is_needed_and_no_further() -> None:
    soft, hard = told(soft=256, hard=4096, connections=1000).split()
    assert 1064 <= int(soft) <= 1100
    assert hard == "4096"


def test_a_hard_limit_that_is_too_low_is_told_with_what_to_do() -> None:
    text = told(soft=256, hard=512, connections=1000)
    assert text.startswith("1000 clients in one process need 10")
    assert "open files, and the limit is 512: raise it, with LimitNOFILE= in the systemd unit" in text
