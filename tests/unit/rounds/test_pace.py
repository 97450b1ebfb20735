from hfl_mqtt.protocol.messages import Metrics
from hfl_mqtt.rounds.actions import Action, Send
from hfl_mqtt.rounds.node import Pace


def figures(number: int) -> Send:
    return Send(message=Metrics(values={"round": number}))


def numbers(actions: list[Action]) -> list[object]:
    return [
        action.message.values["round"]
        for action in actions
        if isinstance(action, Send) and isinstance(action.message, Metrics)
    ]


def test_the_first_figures_are_said_at_once() -> None:
    pace = Pace()
    assert (numbers(pace.say(figures(1), 0.0)), pace.next_deadline) == ([1], None)


def test_what_comes_within_ten_seconds_waits_and_the_newest_is_said() -> None:
    pace = Pace()
    pace.say(figures(1), 0.0)
    assert pace.say(figures(2), 4.0) == []
    assert pace.say(figures(3), 9.0) == []
    deadlines = [pace.next_deadline]
    assert pace.tick(9.9) == []
    assert numbers(pace.tick(10.0)) == [3]
    assert [*deadlines, pace.next_deadline] == [10.0, None]
    assert pace.tick(100.0) == []


def test_what_comes_later_than_that_is_said_at_once() -> None:
    pace = Pace()
    pace.say(figures(1), 0.0)
    assert numbers(pace.say(figures(2), 10.0)) == [2]


def test_at_the_end_the_last_word_does_not_wait() -> None:
    pace = Pace()
    pace.say(figures(1), 0.0)
    pace.say(figures(2), 1.0)
    assert numbers(pace.rest()) == [2]
    assert pace.next_deadline is None


def test_at_the_end_the_last_word_is_said_again_for_what_the_shell_adds_is_newer() -> None:
    pace = Pace()
    assert pace.rest() == []
    pace.say(figures(1), 0.0)
    assert numbers(pace.rest()) == [1]
