"""Random moments to kill in: a handful here, two hundred with `python -m tests.chaos.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kills import ROLES, measure

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("role", ROLES)
def test_a_run_that_is_killed_into_at_random_ends_with_the_model_of_an_undisturbed_one(
    role: str, tmp_path: Path
) -> None:
    said: list[str] = []
    found = measure(role, moments=5, seed=7, rounds=12, home=tmp_path, say=said.append)
    assert found.wrong == [], said
    assert found.moments == 5
    assert found.identical == found.runs
    assert found.trained_again == 0, "only cloud and edge are killed: no device loses what it trained"
