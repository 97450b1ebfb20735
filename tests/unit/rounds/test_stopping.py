import pytest

from hfl_mqtt.rounds.stopping import Stop

UP = Stop(metric="accuracy", target=0.9)
DOWN = Stop(metric="rmse", higher_is_better=False, target=0.5)


def scored(name: str, *values: float | None) -> list[dict[str, float]]:
    return [{} if value is None else {name: value} for value in values]


def test_without_rules_a_run_does_all_its_rounds() -> None:
    assert Stop().reason(scored("accuracy", 0.1, 1.0), 10**15) is None


def test_a_run_ends_when_a_version_scores_what_was_asked_for() -> None:
    assert UP.reason(scored("accuracy", 0.1, 0.89), 0) is None
    assert UP.reason(scored("accuracy", 0.1, 0.9), 0) == "accuracy 0.9 of version 1 reaches the target 0.9"


def test_where_less_is_better_the_target_is_reached_from_above() -> None:
    assert DOWN.reason(scored("rmse", 2.0, 0.51), 0) is None
    assert DOWN.reason(scored("rmse", 2.0, 0.4), 0) == "rmse 0.4 of version 1 reaches the target 0.5"


def test_the_newest_version_that_has_a_score_counts() -> None:
    assert UP.reason(scored("accuracy", 0.1, 0.95, None), 0) is not None
    assert UP.reason(scored("accuracy", 0.95, 0.1, None), 0) is None


@pytest.mark.parametrize("history", [[], [{}], [{}, {"loss": 99.0}]])
def test_without_that_score_nothing_is_reached(history: list[dict[str, float]]) -> None:
    assert UP.reason(history, 0) is None


def test_a_target_is_reached_when_half_of_those_who_gave_the_score_reach_it_and_not_by_one_of_many() -> None:
    history = scored("accuracy", 0.1, 5.0)
    assert UP.reason(history, 0, [0.5, 0.5, 99.0]) is None
    assert UP.reason(history, 0, [0.5, 0.9]) is not None
    assert UP.reason(history, 0, [0.5, 0.9, 0.91]) is not None
    assert UP.reason(history, 0, [0.95]) is not None, "there is one child"


def test_a_run_ends_when_the_bytes_are_spent() -> None:
    stop = Stop(budget_bytes=2_000_000)
    assert stop.reason([], 1_999_999) is None
    assert stop.reason([], 2_000_000) == "2 MB of a budget of 2 MB are spent"


def test_a_run_ends_when_versions_in_a_row_were_no_better_than_the_best() -> None:
    stop = Stop(metric="accuracy", patience=2)
    assert stop.reason(scored("accuracy", 0.5, 0.7, 0.6), 0) is None
    assert stop.reason(scored("accuracy", 0.5, 0.7, 0.6, 0.7), 0) == (
        "accuracy has not improved for 2 versions on the 0.7 of 1"
    )
    assert stop.reason(scored("accuracy", 0.5, 0.7, 0.6, 0.71), 0) is None
    falling = Stop(metric="rmse", higher_is_better=False, patience=1)
    assert falling.reason(scored("rmse", 3.0, 2.0), 0) is None
    assert falling.reason(scored("rmse", 3.0, 3.0), 0) is not None


def test_a_version_without_a_score_is_not_one_without_improvement() -> None:
    stop = Stop(metric="accuracy", patience=2)
    assert stop.reason(scored("accuracy", 0.5, None), 0) is None
    assert stop.reason(scored("accuracy", 0.5, None, None), 0) is None


def test_a_model_that_nobody_trained_reaches_no_target() -> None:
    stop = Stop(metric="rmse", higher_is_better=False, target=0.5)
    assert stop.reason([{"rmse": 0.1}], 0) is None
    assert stop.reason([{"rmse": 0.1}, {"rmse": 0.4}], 0) == "rmse 0.4 of version 1 reaches the target 0.5"
