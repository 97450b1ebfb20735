"""Some rows of `make chaos`, one of a kind, so that the table cannot rot; all of them take half an hour."""

from __future__ import annotations

import pytest

from tests.chaos import brokers, farms, killed, links
from tests.chaos.rows import ROWS, Options

pytestmark = pytest.mark.broker

MODULES = (killed, farms, brokers, links)


@pytest.mark.parametrize(
    "name", ["client-sending", "edge-closing", "cloud-open", "farm-broker-bare", "power-cut", "parts-corrupted"]
)
def test_a_fault_costs_neither_the_run_nor_a_round_nor_an_update(name: str) -> None:
    outcome = ROWS[name].run(Options())
    assert outcome.is_finished
    assert not outcome.wrong
    assert (outcome.rounds_lost, outcome.lost, outcome.twice) == (0, 0, 0)
    assert outcome.updates >= 16, "four devices in four rounds, and what their edges made of it"


def test_a_standby_takes_over_within_the_lease_and_one_round() -> None:
    outcome = ROWS["edge-standby"].run(Options())
    assert outcome.is_good, outcome.wrong
    assert outcome.recover_s is not None
    assert outcome.recover_s < farms.LEASE_S + 10
