"""A few hundred random plans of faults, and that a plan is its number and nothing else."""

from __future__ import annotations

import pytest

from hfl_mqtt.sim import Trial
from hfl_mqtt.sim.fuzz import Fuzz, draw, main


def test_a_plan_is_its_number() -> None:
    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_the_same_plan_gives_the_same_run_to_the_last_note() -> None:
    def trace() -> list[str]:
        trouble = draw(3)
        trial = Trial(trouble.setting, trouble.faults)
        trial.finish()
        return [f"{at_s!r} {path} {entry}" for at_s, path, entry in trial.trace]

    assert trace() == trace()


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_no_plan_breaks_an_invariant(first: int) -> None:
    fuzz = Fuzz()
    broken = {number: found for number in range(first, first + 50) if (found := fuzz.run(draw(number)).problems)}
    assert broken == {}


@pytest.mark.parametrize("number", [1598, 1837, 7322, 9552])
def test_what_was_broken_once_is_mended(number: int) -> None:
    assert Fuzz().run(draw(number)).problems == []


def test_the_command_line_runs_plans_and_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plans", "2", "--seed", "0"]) == 0
    assert "2 plans, 0 broke an invariant" in capsys.readouterr().out
