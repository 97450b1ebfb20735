import pytest

from hfl_mqtt.protocol.messages import Tier
from hfl_mqtt.rounds.policy import Waiting, quorum_of, share_of


@pytest.mark.parametrize(
    ("quorum", "asked", "needed"),
    [(0.5, 4, 2), (0.5, 5, 3), (1.0, 3, 3), (0.01, 3, 1), (0.5, 0, 1), (1, 100, 1), (7, 3, 7)],
)
def test_a_quorum_is_a_count_or_a_share_of_those_asked_rounded_up(quorum: float, asked: int, needed: int) -> None:
    assert quorum_of(Tier(quorum=quorum), asked) == needed


def test_a_share_that_is_whole_on_paper_is_not_rounded_up_by_floats() -> None:
    # 0.07 * 100 is 7.000000000000001, 0.55 * 100 is 55.00000000000001
    assert [share_of(100, share) for share in (0.07, 0.55, 0.29)] == [7, 55, 29]
    assert share_of(1_000_000, 0.1234561) == 123_457


def waiting(**fields: float) -> Waiting:
    return Waiting.begin(Tier(**{"open_for_s": 60.0, "grace_s": 5.0, "retries": 2, **fields}), 100.0)  # type: ignore[arg-type]


def test_the_clock_starts_when_the_round_opens() -> None:
    assert waiting().next_s == 160.0


def test_grace_starts_once() -> None:
    clock = waiting()
    clock.quorum_in(110.0)
    clock.quorum_in(114.0)
    assert clock.next_s == 115.0


def test_grace_never_outlasts_the_deadline() -> None:
    clock = waiting()
    clock.quorum_in(158.0)
    assert clock.next_s == 160.0


def test_a_quorum_after_the_deadline_ends_the_round_now() -> None:
    clock = waiting()
    clock.quorum_in(170.0)
    assert clock.next_s == 170.0


def test_a_missed_deadline_is_extended_as_often_as_there_are_retries() -> None:
    clock = waiting()
    assert [clock.extend(160.0), clock.extend(220.0), clock.extend(280.0)] == [True, True, False]
    assert clock.next_s == 280.0


def test_progress_extends_without_taking_a_retry() -> None:
    clock = waiting(retries=0)
    assert [clock.extend(160.0, by_s=15.0) for _ in range(3)] == [True] * 3
    assert clock.next_s == 175.0
    assert not clock.extend(175.0)


def test_a_clock_that_stood_still_goes_on_where_it_was() -> None:
    clock = waiting()
    clock.quorum_in(110.0)
    clock.stand_still(1000.0)
    assert clock.next_s == 1115.0
