"""A federation of real processes on real bridged brokers, for a test, and a witness who hears all of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hfl_mqtt.ops.brokers import password_hash
from hfl_mqtt.ops.federation import LocalFederation, RunPlan
from tests.broker.sites import WITNESS

LIMIT_S = 120.0


@contextmanager
def running_brokers(plan: RunPlan, directory: Path) -> Iterator[LocalFederation]:
    """Start the brokers of a plan, with a witness admitted at each; everything is ended after."""
    federation = LocalFederation(plan, directory)
    try:
        federation.render_brokers()
        for broker in federation.brokers.values():
            _admit_witness(broker.conf_path.parent)
        federation.start_brokers()
        yield federation
    finally:
        federation.stop()


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait that long at most; whether the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_for_the_result(federation: LocalFederation) -> None:
    """Return once the cloud has ended well; its log is in the error if it has not."""
    assert ended_within(federation.processes["cloud"], LIMIT_S), federation.log_path("cloud").read_text()
    federation.check_cloud()


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def speakers_of(text: str) -> list[psutil.Process]:
    """All processes of this machine whose command line has this text."""
    return [one for one in psutil.process_iter(["cmdline"]) if text in " ".join(one.info["cmdline"] or [])]


def still_there(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Wait for all to be gone; the command lines of those that are not."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [" ".join(one.cmdline()) for one in alive if one.is_running()]


def until(deadline_s: float, what: str) -> Iterator[None]:
    """Yield again and again, a moment apart, until the caller breaks off; AssertionError after `deadline_s`."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        yield
    raise AssertionError(f"{what}: not within {deadline_s:g} s")


def _admit_witness(broker_dir: Path) -> None:
    with (broker_dir / "passwd").open("a") as passwd:
        passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
    with (broker_dir / "acl").open("a") as acl:
        acl.write(f"user {WITNESS}\ntopic readwrite #\n")
