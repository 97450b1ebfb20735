"""Programs that we started end within one deadline, however many they are and whatever they ignore."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from hfl_mqtt.ops import children

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"


def test_those_that_do_not_listen_share_one_deadline(tmp_path: Path) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    deaf = [children.start([sys.executable, "-c", DEAF], log) for log in logs]
    give_up_s = time.monotonic() + 30
    while not all("deaf" in log.read_text() for log in logs):
        assert time.monotonic() < give_up_s
    began_s = time.monotonic()
    children.stop(deaf, 5.0)
    assert 5.0 <= time.monotonic() - began_s < 14, "each its own would be 20 s"
    assert [child.returncode for child in deaf] == [-signal.SIGKILL] * 4


def test_how_a_program_ended_is_said_even_where_its_log_is_empty(tmp_path: Path) -> None:
    killed = children.start([sys.executable, "-c", "import signal; signal.raise_signal(9)"], tmp_path / "log")
    killed.wait(30)
    assert children.end_of(killed.returncode) == "was killed by SIGKILL"
    assert children.end_of(5) == "ended with status 5"
    assert children.end_of(-250) == "was killed by signal 250"


def test_a_crash_in_native_code_leaves_its_trace(tmp_path: Path) -> None:
    crash = "import faulthandler, hfl_mqtt.cli as cli; cli.app = faulthandler._sigsegv; cli.main()"
    log = tmp_path / "log"
    crashed = children.start([sys.executable, "-c", crash], log)
    crashed.wait(30)
    assert children.end_of(crashed.returncode) == "was killed by SIGSEGV"
    assert "in main" in log.read_text()
