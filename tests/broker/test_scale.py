"""Sixty clients on three farms, over real bridged brokers: nothing is lost, and nothing counts twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.scale import Crowd, crowded

pytestmark = pytest.mark.broker
FARMS, FEW, MANY, ROUNDS = 3, 2, 20, 3


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with crowded(FARMS, MANY) as crowd:
        yield crowd


@pytest.mark.parametrize(("devices", "clients", "updates"), [(FEW, 6, 27), (MANY, 60, 189)])
def test_every_update_of_every_round_is_counted_once(crowd: Crowd, devices: int, clients: int, updates: int) -> None:
    crowd.grow_to(devices, processes=2)
    run = crowd.run(ROUNDS, "int8 | zstd")
    assert run.clients == clients
    assert len(run.rounds_s) == ROUNDS
    assert run.tally.wanted == updates, "of each client and each edge, in each round"
    assert run.tally.is_whole, run.tally


def test_updates_that_are_together_larger_than_an_edge_wait_their_turn() -> None:
    """240 MB of updates at once, and an edge that has room for 64 MiB of them beside what it needs anyway."""
    with crowded(1, 24, task="idle_large") as crowd:
        crowd.grow_to(24, processes=1)
        run = crowd.run(1, "raw")
    assert run.lan_bytes > 240e6
    assert run.tally.is_whole, run.tally
    assert run.peak_mb["edges"] < 220
