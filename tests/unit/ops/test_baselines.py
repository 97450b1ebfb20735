"""What a device does alone is as much as it does in the whole run it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hfl_mqtt.ops.baselines import alone_plan
from hfl_mqtt.ops.federation import RunPlan


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"epochs": 2}, (3 * 4 * 2, None)),
        ({"steps": 5}, (None, 3 * 4 * 5)),
        ({}, (3 * 4, None)),
    ],
)
def test_a_device_alone_gets_the_epochs_or_steps_of_all_its_rounds(
    plan: Mapping[str, Any], expected: tuple[int | None, int | None]
) -> None:
    tiers: tuple[Mapping[str, Any], ...] = ({}, {"rounds": 4})
    run = RunPlan(farms=(), task={"name": "soil-moisture"}, rounds=3, seed=7, plan=plan, tiers=tiers)
    alone = alone_plan(run)
    assert (alone.epochs, alone.steps) == expected
    assert (alone.task, alone.seed) == ("soil-moisture", 7)
