"""What people ask of a run while it goes: pause, resume, stop, drain; and what is left of it for a next life."""

from typing import Any

import pytest

from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.protocol.messages import Control, Order, Phase, RoundCall, State, StateName
from hfl_mqtt.rounds.actions import Action, Connected, Persist, Received, RunOver, Save, Work
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.standing import Standing
from tests.unit.rounds.trees import MATH, PLAN, READY, info, notes, of, quick, said, update_parts, values, weights

A = "cloud/a"


class Life:
    """A cloud with one child, and what it persisted."""

    def __init__(
        self, *, held: dict[str, bytes] | None = None, boot: int = 1, initial: float = 1.0, **other: Any
    ) -> None:
        self.held = {} if held is None else held
        schedule = Schedule(**{"run": "r", "rounds": 3, "plan": PLAN, "tier": quick(), **other})
        model = weights(initial)
        self.node = CloudNode(
            path="cloud",
            boot=boot,
            info=info("cloud", boot),
            arithmetic=MATH,
            schedule=schedule,
            weights=model,
            start=of_weights(model),
            saved=dict(self.held),
        )
        self.begun = self.take(self.node.start(0.0))

    def take(self, actions: list[Action]) -> list[Action]:
        for action in of(actions, Persist):
            for key, value in action.changes.items():
                self.held.pop(key, None)
                self.held |= {key: bytes(value)} if value is not None else {}
        return actions

    def connect(self) -> list[Action]:
        connected = self.take(self.node.handle(Connected(session_present=True), 1.0))
        return connected + self.take(self.node.handle(Received(message=READY, sender=A), 1.0))

    def order(self, order: Order, run: str = "") -> list[Action]:
        return self.take(self.node.handle(Received(message=Control(order=order, run=run), sender=""), 2.0))

    def answer(self, delta: float = 1.0) -> list[Action]:
        call = self.node.aggregator.call
        assert call is not None
        (part,) = update_parts(call, weights(delta), 1)
        return self.take(self.node.handle(Received(message=part, sender=A), 3.0))

    def next_life(self, **other: Any) -> "Life":
        return Life(held=self.held, boot=self.node.boot + 1, **other)


def standing(life: Life) -> Standing:
    found = Standing.read(life.held)
    assert found is not None
    return found


def running(**other: Any) -> Life:
    life = Life(**other)
    life.connect()
    return life


def opened(actions: list[Action]) -> list[tuple[int, ...]]:
    return [call.round for call in said(actions, RoundCall) if call.phase is Phase.OPEN]


def states(actions: list[Action]) -> list[tuple[StateName, str]]:
    return [(state.state, state.reason) for state in said(actions, State)]


def test_a_run_that_is_paused_finishes_its_round_and_opens_no_other() -> None:
    life = running()
    assert states(life.order(Order.PAUSE)) == [(StateName.PAUSED, "paused by hand; g1 is finished first")]
    actions = life.answer()
    assert (opened(actions), states(actions)) == ([], [(StateName.PAUSED, "paused by hand")])
    assert [call.phase for call in said(actions, RoundCall)] == [Phase.CLOSED], "no next call says so"
    assert life.node.next_deadline is None
    actions = life.order(Order.RESUME)
    assert (opened(actions), states(actions)) == ([(2,)], [(StateName.READY, "")])


def test_a_pause_survives_a_restart() -> None:
    life = running()
    life.order(Order.PAUSE)
    life.answer()
    after = life.next_life()
    actions = after.connect()
    assert (opened(actions), states(actions)) == ([], [(StateName.PAUSED, "paused by hand")])
    assert opened(after.order(Order.RESUME)) == [(2,)]


def test_a_pause_in_the_middle_of_a_round_that_is_taken_back_changes_nothing() -> None:
    life = running()
    life.order(Order.PAUSE)
    assert opened(life.order(Order.RESUME)) == []
    assert opened(life.answer()) == [(2,)]


def test_a_run_that_waits_for_its_children_waits_no_longer_than_it_is_paused() -> None:
    life = Life(wait_for=2)
    life.order(Order.PAUSE)
    assert life.node.next_deadline is None
    life.order(Order.RESUME)
    assert life.node.next_deadline == 302.0


def test_a_run_that_is_stopped_ends_with_its_round_and_has_a_result() -> None:
    life = running()
    assert states(life.order(Order.STOP)) == [(StateName.READY, "stopping with g1")]
    actions = life.answer()
    assert of(actions, RunOver) == [RunOver(run="r")]
    assert said(actions, RoundCall)[-1].phase is Phase.FINISHED
    assert (life.node.version, values(life.node.weights), life.node.stopped) == (1, [2.0], "stopped by hand")


def test_a_run_that_is_stopped_while_it_is_paused_ends_at_once() -> None:
    life = running()
    life.order(Order.PAUSE)
    life.answer()
    assert of(life.order(Order.STOP), RunOver) == [RunOver(run="r")]


def test_a_run_that_is_stopped_in_a_round_that_finds_no_quorum_has_the_result_of_the_round_before() -> None:
    life = running()
    life.answer()
    life.order(Order.STOP)
    assert of(life.take(life.node.tick(100.0)), RunOver) == [RunOver(run="r")]
    assert life.node.version == 1


def test_a_run_that_is_stopped_before_it_began_ends_at_once() -> None:
    life = Life(wait_for=2)
    assert of(life.order(Order.STOP), RunOver) == [RunOver(run="r")]


def test_a_cloud_that_is_drained_ends_with_its_round_and_the_run_goes_on_when_it_is_started_again() -> None:
    life = running()
    assert states(life.order(Order.DRAIN)) == [(StateName.READY, "draining: ends with g1")]
    actions = life.answer()
    assert of(actions, RunOver) == [RunOver(run="r", is_drained=True)]
    assert (opened(actions), [call.phase for call in said(actions, RoundCall)]) == ([], [Phase.CLOSED])
    assert not standing(life).is_over
    after = life.next_life()
    assert after.node.version == 1
    assert opened(after.connect()) == [(2,)]


def test_a_cloud_that_has_no_open_round_is_drained_at_once() -> None:
    life = Life(wait_for=2)
    assert of(life.order(Order.DRAIN), RunOver) == [RunOver(run="r", is_drained=True)]


def test_a_run_that_was_begun_is_not_given_up_where_no_child_is_there_after_a_restart() -> None:
    life = running()
    life.order(Order.DRAIN)
    life.answer()
    after = life.next_life()
    after.take(after.node.handle(Connected(session_present=True), 1.0))
    due_s = after.node.next_deadline
    assert due_s is not None
    assert not of(after.take(after.node.tick(due_s)), RunOver)
    assert after.node.next_deadline is None  # whoever comes first wakes it
    late = after.take(after.node.handle(Received(message=READY, sender=A), 5000.0))
    assert opened(late) == [(2,)]


@pytest.mark.parametrize("order", list(Order))
def test_an_order_to_another_run_is_answered_and_not_obeyed(order: Order) -> None:
    life = running()
    assert states(life.order(order, run="x")) == [(StateName.READY, "no run x here, this is r")]
    assert opened(life.answer()) == [(2,)]


def test_an_order_that_comes_from_anywhere_else_is_a_strangers() -> None:
    life = running()
    heard = life.node.handle(Received(message=Control(order=Order.STOP), sender=A), 2.0)
    assert notes(heard) == ["stranger"]


def test_an_order_that_comes_twice_is_obeyed_once() -> None:
    life = running()
    life.order(Order.PAUSE)
    life.answer()
    assert opened(life.order(Order.RESUME)) == [(2,)]
    assert opened(life.order(Order.RESUME)) == []


# ------------------------------------------------------------------ from one life to the next


def test_a_cloud_that_leaves_keeps_its_round_open_for_its_next_life() -> None:
    life = running()
    assert said(life.take(life.node.leave()), RoundCall) == []
    after = life.next_life()
    assert after.node.aggregator.call == life.node.aggregator.call
    assert opened(after.answer()) == [(2,)]


def test_the_scores_of_all_versions_and_the_bytes_moved_are_there_in_the_next_life() -> None:
    life = running()
    life.answer()
    life.node.history[0]["accuracy"] = 0.5
    life.node._newly_scored.add(0)
    life.answer()
    after = life.next_life()
    assert after.node.history == [{"accuracy": 0.5}, {}, {}]
    assert after.node.moved == life.node.moved
    assert values(after.node.weights) == [3.0]


def test_the_model_is_saved_again_and_the_last_version_scored_again() -> None:
    life = running(is_scored=True)
    life.answer()
    after = life.next_life(is_scored=True)
    (save,) = of(after.begun, Save)
    assert (save.version, values(save.weights)) == (1, [2.0])
    assert [work.work_id for work in of(after.begun, Work)] == ["r/v1"]


def test_a_run_that_is_over_says_so_once_more_to_children_who_may_not_have_heard_it() -> None:
    life = running(rounds=1)
    assert of(life.answer(), RunOver) == [RunOver(run="r")]
    assert standing(life).is_over
    after = life.next_life(rounds=1)
    assert of(after.begun, RunOver) == []
    actions = after.node.handle(Connected(session_present=True), 1.0)
    assert [call.phase for call in said(actions, RoundCall)] == [Phase.FINISHED]
    assert of(actions, RunOver) == [RunOver(run="r")]
    assert after.node.next_deadline is None


def test_a_run_that_is_over_is_over_without_a_broker_too() -> None:
    life = running(rounds=1)
    life.answer()
    after = life.next_life(rounds=1)
    due_s = after.node.next_deadline
    assert due_s == 30.0
    assert of(after.node.tick(due_s), RunOver) == [RunOver(run="r")]


def test_a_run_that_failed_says_why_in_its_next_life_too() -> None:
    life = running()
    (end,) = of(life.take(life.node.tick(100.0)), RunOver)
    assert end.failure is not None
    after = life.next_life()
    assert of(after.node.handle(Connected(), 1.0), RunOver) == [end]


def test_another_run_begins_from_nothing_and_leaves_nothing_of_the_old_one_but_what_others_put_there() -> None:
    life = running()
    life.answer()
    life.held["role/run"] = b"theirs"
    after = life.next_life(run="s")
    assert after.node.version == 0
    assert set(after.held) == {"role/run", "run/state"}
    assert standing(after).run == "s"


def test_a_run_whose_model_cannot_be_read_begins_anew() -> None:
    life = running()
    life.answer()
    life.held["chain/key"] = b"worn out"
    after = life.next_life()
    assert "not_resumed" in notes(after.begun)
    assert after.node.version == 0
    assert opened(after.connect()) == [(1,)]


def test_a_run_that_now_starts_from_another_model_begins_anew() -> None:
    life = running()
    life.answer()
    assert "not_resumed" in notes(life.next_life(initial=7.0).begun)


def test_more_rounds_may_be_asked_for_in_the_next_life() -> None:
    life = running(rounds=2)
    life.answer()
    after = life.next_life(rounds=5)
    after.connect()
    assert opened(after.answer()) == [(3,)]
