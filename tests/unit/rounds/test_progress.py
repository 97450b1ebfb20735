"""While parts move for long, the metrics say how far they are, every 10 s and no more often."""

from hfl_mqtt.protocol.messages import Metrics
from hfl_mqtt.rounds.actions import Action, Send
from hfl_mqtt.rounds.node import Pace, progress_of

FIGURES = Send(message=Metrics(values={"loss": 0.5}))


def moved(megabytes: float) -> dict[str, float]:
    return progress_of("receiving", (round(megabytes * 1e6), 93_000_000))


def said(actions: list[Action]) -> list[dict[str, object]]:
    return [dict(a.message.values) for a in actions if isinstance(a, Send) and isinstance(a.message, Metrics)]


def watch(pace: Pace, megabytes: float | None, now: float) -> list[dict[str, object]]:
    is_moving = megabytes is not None
    return said(pace.watch(is_moving, lambda: moved(megabytes or 0.0), now))


def test_what_is_quick_is_not_told() -> None:
    pace = Pace()
    assert watch(pace, 1.0, 0.0) == watch(pace, 90.0, 9.9) == watch(pace, None, 12.0) == []
    assert pace.next_deadline is None


def test_what_takes_long_is_told_every_ten_seconds() -> None:
    pace = Pace()
    told = [(now, watch(pace, now, float(now))) for now in range(35)]
    assert [(now, one) for now, one in told if one] == [
        (10, [{"receiving_mb": 10.0, "of_mb": 93.0}]),
        (20, [{"receiving_mb": 20.0, "of_mb": 93.0}]),
        (30, [{"receiving_mb": 30.0, "of_mb": 93.0}]),
    ]
    assert pace.next_deadline == 40.0


def test_what_stands_still_is_told_once() -> None:
    pace = Pace()
    assert [len(watch(pace, 4.0, now)) for now in (0.0, 10.0, 20.0, 30.0)] == [0, 1, 0, 0]


def test_it_stands_beside_the_last_figures_and_goes_when_all_has_come() -> None:
    pace = Pace()
    assert said(pace.say(FIGURES, 0.0)) == [{"loss": 0.5}]
    watch(pace, 1.0, 1.0)
    assert watch(pace, 9.0, 11.0) == [{"loss": 0.5, "receiving_mb": 9.0, "of_mb": 93.0}]
    assert watch(pace, None, 12.0) == said(pace.tick(20.9)) == []
    assert pace.next_deadline == 21.0
    assert said(pace.tick(21.0)) == [{"loss": 0.5}]
    assert said(pace.tick(40.0)) == []


def test_a_second_movement_is_timed_from_its_own_beginning() -> None:
    pace = Pace()
    watch(pace, 1.0, 0.0)
    watch(pace, None, 5.0)
    assert watch(pace, 1.0, 8.0) == watch(pace, 1.0, 17.9) == []
    assert len(watch(pace, 2.0, 18.0)) == 1
