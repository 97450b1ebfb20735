"""Every attack of the table is refused and reported, and the honest go on; nothing of an enemy's is in the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.all_rows import ROWS
from tests.attacks.stage import Stage, staged

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    enemies = [name for row in ROWS.values() for name in row.enemies]
    with staged(tmp_path_factory.mktemp("stage"), enemies) as one:
        yield one


@pytest.mark.parametrize("name", ROWS)
def test_an_attack_is_refused_and_reported_and_the_honest_go_on(stage: Stage, name: str) -> None:
    seen = ROWS[name].act(stage)
    assert seen.happened
    assert seen.reported
    stage.goes_on()


def test_after_all_of_it_the_model_counts_the_rounds(stage: Stage) -> None:
    number, rounds = stage.count()
    assert number == rounds > 0
