"""Federations of real processes on real brokers, and the waiting and reading that all measurements share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from hfl_mqtt.errors import HflError
from hfl_mqtt.fleet.rehearsal import Rehearsal
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.ops.fleet import Fleet, Viewer

TASKS = Path(__file__).resolve().parent / "tasks"
LIMIT_S = 90.0


class Security(Enum):
    """What protects a federation."""

    PLAIN = "plain"
    TLS = "TLS, with certificates for all"
    SIGNED = "TLS and signatures"


def plan(
    task: str, *, farms: int, devices: int, is_split: bool = True, data: Mapping[str, Any] | None = None
) -> RunPlan:
    """Return a plan for one of the task files beside this one, with `data` for each device; nobody scores anything."""
    return RunPlan(
        farms=tuple(
            FarmPlan(
                name=f"farm-{farm}",
                devices=tuple(Device(name=f"pi-{device}", data=data or {}) for device in range(devices)),
                is_split=is_split,
            )
            for farm in range(farms)
        ),
        task={"file": str(TASKS / f"{task}.py")},
        rounds=1,
        seed=0,
        evaluate=False,
        federation="bench",
    )


class Bench:
    """A federation whose edges and clients are up and idle, and a viewer's eyes on it."""

    def __init__(self, federation: LocalFederation, fleet: Fleet) -> None:
        self.federation = federation
        self.fleet = fleet

    def pid(self, path: str) -> int:
        """Return the process of a node."""
        return self.federation.processes[path].pid

    def is_ready(self, path: str) -> bool:
        """Whether a node's retained state says that it is there."""
        return _is_ready(self.fleet, path)

    def run(
        self,
        rounds: int,
        *,
        meanwhile: Callable[[], object] = lambda: None,
        tiers: Sequence[dict[str, Any]] | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """Have a cloud run `rounds` rounds from start to end; `meanwhile` is called all the time.

        Raises:
            HflError: the cloud failed, or took longer than `limit_s`.
        """
        old = self.federation.plan
        self.federation.plan = replace(old, rounds=rounds, tiers=tuple(tiers) if tiers else old.tiers)
        self.federation.start_cloud()

        def is_over() -> bool:
            meanwhile()
            return self.federation.check_cloud() is not None

        wait_until(is_over, "the cloud's end", limit_s)

    def calm(self, reading: Callable[[], Any], quiet_s: float = 0.6) -> Any:
        """Return a reading once it has not changed for a while, so that nothing is on its way any more."""
        last, since_s = reading(), time.monotonic()

        def is_calm() -> bool:
            nonlocal last, since_s
            if (now := reading()) != last:
                last, since_s = now, time.monotonic()
            return time.monotonic() - since_s >= quiet_s

        wait_until(is_calm, "the links to be quiet")
        return last

    def notes(self, node: str, event: str) -> list[dict[str, Any]]:
        """Return all notes of this name of a node, in order."""
        paths = self.federation.journals()
        return [
            note for path in paths for note in journal.read(path) if note["node"] == node and note["event"] == event
        ]


@contextmanager
def running(
    what: RunPlan, *, is_watched: bool = True, is_metered: bool = False, security: Security = Security.PLAIN
) -> Iterator[Bench]:
    """Start the brokers, the edges and the clients, wait until all are ready, and end everything afterwards.

    Where it is not watched, nobody counts bytes on the bridges and reads along while it runs: that would cost it time.
    Where it is metered, the bytes between devices and their brokers are counted as well.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfl-bench-"))
        federation = LocalFederation(
            what,
            Path(directory),
            is_relayed=is_watched,
            is_metered=is_metered,
            papers=None if security is Security.PLAIN else Rehearsal(Path(directory, "authority"), what.federation),
            is_signed=security is Security.SIGNED,
        )
        stack.callback(federation.stop)
        federation.start_brokers()
        viewer = Viewer(federation.account("viewer"), what.federation)
        stack.callback(viewer.close)
        viewer.open()
        for farm in what.farms:
            federation.start_edge(farm.name)
            for name in federation.client_processes(farm):
                federation.start_client(name)
        paths = [*(f"cloud/{farm.name}" for farm in what.farms), *what.clients]
        wait_until(lambda: all(_is_ready(viewer.fleet, path) for path in paths), "all edges and clients to be ready")
        if not is_watched:
            viewer.close()
        yield Bench(federation, viewer.fleet)


def wait_until(is_so: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again until it is so.

    Raises:
        HflError: it was not within `limit_s`.
    """
    give_up_s = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > give_up_s:
            raise HflError(f"waited {limit_s:g} s for {what}")
        time.sleep(0.02)


def at_ms(note: dict[str, Any]) -> float:
    """Return when a note was written, in milliseconds; comparable between the processes of one machine."""
    return datetime.fromisoformat(note["at"]).timestamp() * 1000


def _is_ready(fleet: Fleet, path: str) -> bool:
    state = fleet[path].state if path in fleet else None
    return state is not None and state.is_present
