from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.blobs import digest
from hfl_mqtt.protocol.limits import MAX_HEAD, MAX_WEIGHT, UNASKED
from hfl_mqtt.protocol.messages import (
    AUTO,
    Announce,
    Decline,
    KeyPart,
    Kind,
    Late,
    ModelPart,
    Moving,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import Action, Persist, Send
from hfl_mqtt.rounds.aggregator import MAX_CHILDREN, Aggregator
from hfl_mqtt.rounds.ladder import CODECS
from hfl_mqtt.rounds.open_round import Outcome
from tests.unit.rounds.trees import (
    LOST,
    MATH,
    PLAN,
    READY,
    keyframe,
    noted,
    notes,
    of,
    quick,
    said,
    update_parts,
    values,
    weights,
)

A, B, C, D = (f"cloud/{name}" for name in "abcd")
EVALUATE = Plan(kind=Kind.EVALUATE, task="t")


class Cloud(Aggregator):
    """An aggregator with a shorter mouth for these tests: it opens, and hears updates of one part."""

    def __init__(self, *children: str, model: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(path="cloud", arithmetic=MATH, **options)
        for child in children:
            self.hear(READY, child, 0.0)
        self.downlink.begin(keyframe(model or weights(1.0)))

    def begin(
        self, *round_id: int, plan: Plan = PLAN, now: float = 0.0, seed: int = 0, run: str = "r", **tier: Any
    ) -> RoundCall:
        actions = self.open(run=run, round_id=round_id or (1,), plan=plan, tier=quick(**tier), seed=seed, now=now)
        (call,) = said(actions, RoundCall)
        return call

    def get(self, call: RoundCall, child: str, delta: float, weight: int, now: float, **other: Any) -> list[Action]:
        (part,) = update_parts(call, weights(delta), weight, **other)
        return self.hear(part, child, now)

    def result(self) -> Outcome:
        outcome = self.take_outcome()
        assert outcome is not None
        return outcome


def receipts(actions: list[Action]) -> list[tuple[str | None, bool, str]]:
    return [
        (action.to, action.message.accepted, action.message.reason)
        for action in actions
        if isinstance(action, Send) and isinstance(action.message, Receipt)
    ]


def closed(actions: list[Action]) -> bool:
    return bool({"closed", "missed", "abandoned"} & set(notes(actions)))


def told(actions: list[Action]) -> list[Phase]:
    """What the children hear of it."""
    return [call.phase for call in said(actions, RoundCall)]


def moved(outcome: Outcome) -> list[float]:
    """How far the model moves."""
    return values(outcome.step)


# ------------------------------------------------------------------ opening


def test_a_call_says_all_that_a_child_needs() -> None:
    cloud = Cloud(A, B, C, boot=4)
    call = cloud.begin(12, quorum=0.5, open_for_s=60.0)
    assert (call.run, call.round, call.phase, call.boot) == ("r", (12,), Phase.OPEN, 4)
    assert (call.asked, call.quorum, call.open_for_s, call.plan) == (3, 2, 60.0, PLAN)
    assert (call.model.version, call.model.key, call.model.digest) == (0, 0, keyframe(weights(1.0)).digest[:16])
    assert cloud.is_open


def test_more_children_than_any_aggregator_has_are_not_heard() -> None:
    cloud = Cloud(A)
    for number in range(MAX_CHILDREN - 1):
        cloud.hear(READY, f"cloud/x{number}", 0.0)
    assert notes(cloud.hear(READY, B, 0.0)) == ["too_many_children"]
    assert notes(cloud.hear(LOST, A, 0.0)) == ["lost"]
    assert len(cloud.present) == MAX_CHILDREN - 1


def test_a_round_needs_a_model_and_no_other_open_round() -> None:
    bare = Aggregator(path="cloud", arithmetic=MATH)
    with pytest.raises(Misuse):
        bare.open(run="r", round_id=(1,), plan=PLAN, tier=quick(), seed=0, now=0.0)
    cloud = Cloud(A)
    cloud.begin(1)
    with pytest.raises(Misuse):
        cloud.begin(2)


def test_only_children_that_are_there_are_asked() -> None:
    cloud = Cloud(A, B, C)
    cloud.hear(State(state=StateName.SLEEPING, boot=1), B, 0.0)
    cloud.hear(LOST, C, 0.0)
    assert cloud.present == [A]
    assert cloud.begin().asked == 1


def test_a_sampled_cohort_is_the_one_that_each_child_works_out_for_itself() -> None:
    cloud = Cloud(A, B, C, D)
    call = cloud.begin(fraction=0.5, quorum=1.0)
    assert (call.asked, call.quorum) == (2, 2)
    asked = [child for child in (A, B, C, D) if cohort.is_asked(call.draw, (1,), child)]
    assert len(asked) == 2
    for child in asked:
        actions = cloud.get(call, child, 1.0, 1, 1.0)
    assert closed(actions)


def test_an_update_of_a_child_that_was_not_asked_is_refused() -> None:
    cloud = Cloud(A, B, C, D)
    call = cloud.begin(fraction=0.25)
    other = next(child for child in (A, B, C, D) if not cohort.is_asked(call.draw, (1,), child))
    actions = cloud.get(call, other, 1.0, 1, 1.0)
    assert receipts(actions) == [(other, False, "not asked in this round")]
    assert cloud.is_open


# ------------------------------------------------------------------ quorum, grace, deadline


def test_the_mean_is_weighted_by_samples() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    actions = cloud.get(call, A, 4.0, 3, 1.0)
    assert receipts(actions) == [(A, True, "")]
    assert closed(cloud.get(call, B, -4.0, 1, 2.0))
    outcome = cloud.result()
    assert moved(outcome) == [2.0]  # (3 x 4 - 1 x 4) / 4
    assert (outcome.accepted, outcome.is_missed, outcome.missing) == ({A: 3, B: 1}, False, ())
    assert outcome.seconds == 2.0
    assert cloud.take_outcome() is None


def test_the_model_is_the_same_to_the_last_bit_in_any_order_of_arrival() -> None:
    deltas = {A: (0.1, 7), B: (-0.3, 11), C: (1e-6, 13), D: (0.7, 1)}
    models = set()
    for order in permutations(deltas):
        cloud = Cloud(*deltas)
        call = cloud.begin()
        for child in order:
            cloud.get(call, child, *deltas[child], now=1.0)
        models.add(cloud.result().step["w"].tobytes())
    assert len(models) == 1


def test_a_round_closes_at_once_when_all_are_in() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    assert not closed(cloud.get(call, A, 1.0, 1, 1.0))
    assert closed(cloud.get(call, B, 1.0, 1, 1.0))
    assert (cloud.is_open, cloud.next_deadline) == (False, None)


def test_after_the_quorum_the_others_have_a_grace_period() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1, grace_s=2.0)
    cloud.get(call, A, 1.0, 1, 3.0)
    assert cloud.next_deadline == 5.0
    assert not closed(cloud.tick(4.9))
    assert closed(cloud.tick(5.0))
    outcome = cloud.result()
    assert (outcome.accepted, outcome.missing, outcome.is_missed) == ({A: 1}, (B,), False)
    assert outcome.waited_for() == "cloud/b (no answer)"


def test_below_the_quorum_nothing_but_the_deadline_ends_it() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin(quorum=2)
    cloud.get(call, A, 1.0, 1, 1.0)
    assert not closed(cloud.tick(9.9))
    assert closed(cloud.tick(10.0))
    outcome = cloud.result()
    assert (outcome.is_missed, outcome.step) == (True, None)
    assert outcome.missing == (B, C)


def test_a_missed_deadline_is_extended_and_what_was_accepted_stays() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2, retries=1)
    cloud.get(call, A, 3.0, 1, 1.0)
    actions = cloud.tick(10.0)
    assert noted(actions, "extended")["waiting_for"] == [B]
    assert said(actions, RoundCall) == [replace(call, attempt=1)]
    assert closed(cloud.get(call, B, 5.0, 1, 15.0))
    assert moved(cloud.result()) == [4.0]


def test_when_the_retries_are_used_up_the_round_is_missed() -> None:
    cloud = Cloud(A, B)
    cloud.begin(quorum=1, retries=2)
    ended_at = []
    now = 0.0
    while cloud.is_open:
        now = cloud.next_deadline or 0.0
        if closed(cloud.tick(now)):
            ended_at.append(now)
    assert ended_at == [30.0]
    assert cloud.result().is_missed


def test_a_round_without_children_ends_too() -> None:
    cloud = Cloud()
    call = cloud.begin()
    assert (call.asked, call.quorum) == (0, 1)
    assert closed(cloud.tick(10.0))
    assert cloud.result().is_missed


def test_who_has_not_answered_is_reminded_ever_more_seldom() -> None:
    cloud = Cloud(A)
    call = cloud.begin(open_for_s=1000.0)
    reminded_at = [at for at in range(1, 400) if call in said(cloud.tick(float(at)), RoundCall)]
    assert reminded_at == [10, 30, 70, 130, 190, 250, 310, 370]


def test_who_says_that_it_trains_has_heard_the_call_and_is_not_reminded() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(open_for_s=1000.0)
    for child in (A, B):
        cloud.hear(State(state=StateName.TRAINING, boot=1), child, 5.0)
    assert [at for at in range(6, 100) if said(cloud.tick(float(at)), RoundCall)] == []
    cloud.hear(State(state=StateName.READY, boot=1), A, 100.0)
    assert [at for at in range(100, 200) if call in said(cloud.tick(float(at)), RoundCall)] == [130, 190]


def test_nobody_is_reminded_when_all_have_answered() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2)
    cloud.get(call, A, 1.0, 1, 1.0)
    cloud.hear(Decline(run="r", round=(1,), reason="no data"), B, 1.0)
    assert said(cloud.tick(5.9), RoundCall) == []


def test_when_all_have_answered_and_it_was_not_enough_they_are_asked_again_after_a_pause() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2, retries=1)
    cloud.get(call, A, 1.0, 1, 1.0)
    cloud.hear(Decline(run="r", round=(1,), reason="no data"), B, 2.0)
    assert cloud.next_deadline == 7.0  # five seconds, not the ten until the deadline
    actions = cloud.tick(7.0)
    assert said(actions, RoundCall) == [replace(call, attempt=1)]
    assert noted(actions, "extended")["declined"] == [B]
    assert closed(cloud.get(call, B, 3.0, 1, 8.0))
    assert moved(cloud.result()) == [2.0]


def test_when_all_decline_again_and_no_retry_is_left_the_round_is_missed_at_once() -> None:
    cloud = Cloud(A)
    cloud.begin(quorum=1, retries=1)
    cloud.hear(Decline(run="r", round=(1,), reason="no data"), A, 0.0)
    assert not closed(cloud.tick(5.0))
    cloud.hear(Decline(run="r", round=(1,), reason="still none"), A, 6.0)
    assert closed(cloud.tick(11.0))
    assert cloud.result().declined == {A: "still none"}


def test_who_left_on_purpose_is_not_waited_for() -> None:
    cloud = Cloud(A, B)
    cloud.begin(quorum=2)
    cloud.hear(State(state=StateName.DISCONNECTED, boot=1), A, 1.0)
    assert cloud.next_deadline == 10.0
    cloud.hear(State(state=StateName.DISCONNECTED, boot=1), B, 2.0)
    assert cloud.next_deadline == 7.0
    cloud.hear(READY, B, 3.0)
    assert cloud.next_deadline == 10.0


def test_one_who_leaves_in_the_middle_of_an_upload_does_not_keep_the_clock_running() -> None:
    cloud = large(A, B)
    call = cloud.begin(quorum=2, retries=1)
    cloud.hear(Decline(run="r", round=(1,), reason="no data"), A, 0.0)
    cloud.hear(many_parts(call)[0], B, 4.0)
    cloud.hear(State(state=StateName.DISCONNECTED, boot=1), B, 4.5)
    moments = []
    while cloud.is_open:
        now = cloud.next_deadline or 0.0
        cloud.tick(now)
        moments.append(now)
    assert moments == sorted(set(moments)), "a moment came twice"
    assert len(moments) < 20


def test_a_refused_update_that_comes_again_when_the_round_is_called_again_is_answered_again() -> None:
    cloud = Cloud(A)
    call = cloud.begin(quorum=1, retries=1)
    (part,) = nan_parts(call)
    cloud.hear(part, A, 0.0)
    assert not closed(cloud.tick(5.0))
    actions = cloud.hear(part, A, 6.0)
    assert [accepted for _, accepted, _ in receipts(actions)] == [False]
    assert closed(cloud.tick(11.0))


def test_a_part_that_comes_behind_its_senders_will_does_not_bring_it_back() -> None:
    cloud = large(A, B)
    call = cloud.begin(quorum=1)
    first, second, *_ = many_parts(call)
    cloud.hear(first, B, 1.0)
    cloud.hear(State(state=StateName.LOST, boot=1), B, 2.0)
    cloud.hear(second, B, 2.1)
    assert cloud.present == [A]


def test_who_is_lost_or_still_to_come_is_waited_for_though_all_others_declined() -> None:
    cloud = Cloud(A, B)
    cloud.begin(quorum=1)
    cloud.hear(State(state=StateName.LOST, boot=1), B, 0.0)
    cloud.hear(Decline(run="r", round=(1,), reason="no data"), A, 0.0)
    assert cloud.next_deadline == 10.0
    late = Cloud(A)
    late.begin(quorum=1)
    late.hear(Decline(run="r", round=(1,), reason="no data"), A, 0.0)
    assert late.next_deadline == 5.0
    late.hear(State(state=StateName.READY, boot=1), B, 1.0)
    assert late.next_deadline == 10.0


def test_a_model_is_applied_only_in_rounds_that_train() -> None:
    cloud = Cloud(A)
    call = cloud.begin(plan=EVALUATE)
    tallies = {"rmse": Tally(total=8.0, count=2, is_root=True)}
    assert closed(cloud.get(call, A, 0.0, 0, 1.0, tallies=tallies))
    outcome = cloud.result()
    assert outcome.step is None
    assert outcome.tallies["rmse"].value == 2.0
    assert outcome.accepted == {A: 0}


def test_an_evaluation_that_carries_weights_is_refused() -> None:
    cloud = Cloud(A)
    call = cloud.begin(plan=EVALUATE)
    assert receipts(cloud.get(call, A, 0.0, 1, 1.0)) == [(A, False, "an evaluation carries no weights")]


def test_tallies_add_up_over_the_children() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 0.0, 1, 1.0, tallies={"loss": Tally(total=3.0, count=1)})
    cloud.get(call, B, 0.0, 1, 1.0, tallies={"loss": Tally(total=1.0, count=3), "acc": Tally(total=1.0, count=2)})
    tallies = cloud.result().tallies
    assert {name: tally.value for name, tally in tallies.items()} == {"loss": 1.0, "acc": 0.5}


def test_a_round_that_came_to_nothing_is_opened_once_more_as_another_attempt() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2, retries=1)
    cloud.get(call, A, 3.0, 1, 1.0)
    cloud.tick(10.0)
    assert told(cloud.tick(20.0)) == [Phase.CLOSED]
    assert cloud.result().is_missed
    again = cloud.begin(quorum=2, now=30.0)
    assert again.attempt == 2
    cloud.get(again, A, 3.0, 1, 31.0)
    assert closed(cloud.get(again, B, 5.0, 1, 31.0))
    assert cloud.begin(2).attempt == 0


# ------------------------------------------------------------------ children that come and go


def test_calls_are_numbered_in_the_order_in_which_they_were_opened_whatever_their_run() -> None:
    cloud = Cloud(A)
    numbers = []
    for round_id in ((1, 1), (1, 2), (1, 1)):
        call = cloud.begin(*round_id)
        numbers.append(call.number)
        assert closed(cloud.get(call, A, 1.0, 1, 1.0))
    assert numbers == [0, 1, 2]
    cloud.finish("r")
    assert cloud.begin(1, 1, run="s").number == 3


def test_a_child_that_joins_an_open_round_is_asked_too() -> None:
    cloud = Cloud(A)
    call = cloud.begin(quorum=1.0)
    assert notes(cloud.hear(READY, B, 1.0)) == ["joined"]
    assert not closed(cloud.get(call, A, 1.0, 1, 2.0))
    assert closed(cloud.get(call, B, 3.0, 1, 3.0))
    assert moved(cloud.result()) == [2.0]


def test_a_child_whose_state_was_never_heard_is_known_by_its_update() -> None:
    cloud = Cloud()
    call = cloud.begin()
    assert closed(cloud.get(call, A, 1.0, 1, 1.0))
    assert cloud.present == [A]


def test_a_child_known_by_its_first_part_is_waited_for() -> None:
    cloud = large(A)
    call = cloud.begin(quorum=1)
    cloud.hear(many_parts(call)[0], B, 1.0)
    cloud.hear(many_parts(call)[0], A, 1.0)
    for part in many_parts(call)[1:]:
        actions = cloud.hear(part, A, 1.0)
    assert not closed(actions)
    assert closed(cloud.tick(3.0))
    assert cloud.result().missing == (B,)


def test_a_child_that_joins_in_the_grace_period_does_not_take_the_quorum_back() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=0.5, retries=3)
    cloud.get(call, A, 1.0, 1, 1.0)
    cloud.hear(READY, C, 1.5)  # half of three would be two
    assert cloud.next_deadline == 3.0
    assert closed(cloud.tick(3.0))
    outcome = cloud.result()
    assert (outcome.is_missed, outcome.accepted, outcome.missing) == (False, {A: 1}, (B, C))


def test_a_child_that_is_lost_is_not_waited_for_once_the_quorum_is_in() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    cloud.get(call, A, 1.0, 1, 1.0)
    actions = cloud.hear(LOST, B, 1.5)
    assert notes(actions)[0] == "lost"
    assert closed(actions)
    assert cloud.result().missing == (B,)


def test_a_child_that_comes_back_is_waited_for_again() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2)
    cloud.hear(LOST, B, 1.0)
    cloud.get(call, A, 1.0, 1, 2.0)
    cloud.hear(State(state=StateName.READY, boot=2), B, 3.0)
    assert closed(cloud.get(call, B, 1.0, 1, 4.0))
    assert not cloud.result().is_missed


def test_a_late_will_of_an_old_session_does_not_bury_a_living_child() -> None:
    cloud = Cloud()
    cloud.hear(State(state=StateName.READY, boot=2), A, 0.0)
    assert notes(cloud.hear(State(state=StateName.LOST, boot=1), A, 1.0)) == ["late_will"]
    assert cloud.present == [A]
    assert notes(cloud.hear(State(state=StateName.LOST, boot=2), A, 2.0)) == ["lost"]
    assert cloud.present == []


def test_a_child_whose_card_was_written_anew_counts_its_boots_from_one_and_is_heard() -> None:
    cloud = Cloud()
    cloud.hear(State(state=StateName.READY, boot=57), A, 0.0)
    cloud.hear(State(state=StateName.LOST, boot=57), A, 1.0)
    assert notes(cloud.hear(READY, A, 2.0)) == ["joined"]
    assert cloud.present == [A]
    assert notes(cloud.hear(LOST, A, 3.0)) == ["lost"]


def test_joining_twice_is_said_once() -> None:
    cloud = Cloud(A)
    assert cloud.hear(READY, A, 1.0) == []
    assert cloud.hear(State(state=StateName.TRAINING, boot=1), A, 2.0) == []
    assert notes(cloud.hear(State(state=StateName.DISCONNECTED, boot=1), A, 3.0)) == ["left"]


@pytest.mark.parametrize("stranger", ["cloud", "cloud/a/pi", "other/a", "clouds/a", "a"])
def test_a_stranger_is_not_listened_to(stranger: str) -> None:
    cloud = Cloud()
    call = cloud.begin()
    assert notes(cloud.hear(READY, stranger, 1.0)) == ["stranger"]
    assert cloud.present == []
    assert notes(cloud.hear(Decline(run="r", round=(1,), reason=""), stranger, 1.0)) == ["stranger"]
    (part,) = update_parts(call, weights(1.0), 1)
    assert notes(cloud.hear(part, stranger, 1.0)) == ["stranger"]
    assert cloud.is_open


# ------------------------------------------------------------------ declines


def test_who_declined_is_not_waited_for_and_stands_in_the_outcome_with_the_reason() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    cloud.get(call, A, 1.0, 1, 1.0)
    actions = cloud.hear(Decline(run="r", round=(1,), reason="no data"), B, 2.0)
    assert notes(actions) == ["declined", "closed"]
    assert cloud.result().waited_for() == "cloud/b (no data)"


def test_a_decline_heard_twice_is_counted_once() -> None:
    cloud = Cloud(A, B)
    cloud.begin()
    assert notes(cloud.hear(Decline(run="r", round=(1,), reason="no data"), B, 1.0)) == ["declined"]
    assert cloud.hear(Decline(run="r", round=(1,), reason="no data"), B, 2.0) == []


def test_an_update_after_a_decline_counts() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    cloud.hear(Decline(run="r", round=(1,), reason="busy"), A, 1.0)
    assert closed(cloud.get(call, A, 1.0, 1, 2.0))
    assert cloud.result().declined == {}


def test_a_decline_after_an_update_does_not_take_it_back() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0)
    assert notes(cloud.hear(Decline(run="r", round=(1,), reason="no"), A, 2.0)) == ["decline_out_of_place"]


@pytest.mark.parametrize(("run", "round_id"), [("other", (1,)), ("r", (2,)), ("r", (1, 1))])
def test_a_decline_of_another_round_changes_nothing(run: str, round_id: tuple[int, ...]) -> None:
    cloud = Cloud(A)
    decline = Decline(run=run, round=round_id, reason="")
    assert notes(cloud.hear(decline, A, 1.0)) == ["decline_out_of_place"]
    cloud.begin()
    assert notes(cloud.hear(decline, A, 1.0)) == ["decline_out_of_place"]


# ------------------------------------------------------------------ updates that must not count


def test_an_update_sent_twice_counts_once_and_has_its_receipt_again() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 2.0, 1, 1.0)
    actions = cloud.get(call, A, 2.0, 1, 2.0)
    assert (receipts(actions), notes(actions)) == ([(A, True, "")], ["duplicate"])
    cloud.get(call, B, 4.0, 1, 3.0)
    assert moved(cloud.result()) == [3.0]  # (2 + 4) / 2


def test_another_update_of_the_same_child_counts_no_second_time() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 2.0, 1, 1.0)
    assert receipts(cloud.get(call, A, 100.0, 50, 2.0)) == [(A, True, "")]
    cloud.get(call, B, 4.0, 1, 3.0)
    outcome = cloud.result()
    assert (moved(outcome), outcome.accepted) == ([3.0], {A: 1, B: 1})


def test_after_the_close_a_child_without_a_receipt_gets_it_again() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0)
    actions = cloud.get(call, A, 1.0, 1, 2.0)
    assert (receipts(actions), notes(actions)) == ([(A, True, "")], ["duplicate"])


def test_an_update_that_comes_too_late_is_told_so() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    cloud.get(call, A, 1.0, 1, 1.0)
    cloud.tick(3.0)
    assert receipts(cloud.get(call, B, 1.0, 1, 4.0)) == [(B, False, "too late: g1 is closed")]
    cloud.begin(2, now=5.0)
    actions = cloud.get(call, B, 1.0, 1, 6.0)
    assert receipts(actions) == [(B, False, "too late: g1 is closed")]
    assert said(actions, Receipt)[0].round == (1,)
    assert cloud.is_open


def test_only_the_first_part_of_a_late_update_is_answered() -> None:
    cloud = Cloud(A, model=weights(*range(50)))
    call = cloud.begin()
    parts = update_parts(call, np.arange(50, dtype=np.float32).tobytes(), 1, part_size=100)
    cloud.tick(10.0)
    assert [len(receipts(cloud.hear(part, A, 11.0))) for part in parts] == [1] + [0] * (len(parts) - 1)


def test_an_update_from_another_model_is_refused() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    (part,) = update_parts(call, weights(1.0), 1)
    actions = cloud.hear(replace(part, base="0" * 16), A, 1.0)
    assert receipts(actions) == [(A, False, "foreign base: this update starts from another model")]


@pytest.mark.parametrize(
    ("delta", "weight", "reason"),
    [
        (weights(1.0, 2.0), 1, "coded for another model"),
        ({"v": np.ones(1, np.float32)}, 1, "coded for another model"),
        ({"w": np.ones(1, np.float64)}, 1, "coded for another model"),
        (weights(1.0), 0, "weight 0: must be positive"),
        (b"junk", 1, "not a compact payload"),
        (b"", 1, "ends after 0 bytes"),
        (weights(3e38), 1, "one child's part of a sum"),
        (weights(1.0), 2**30 + 1, "at most 1073741824 samples are believed of one child"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_the_reason(delta: Any, weight: int, reason: str) -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    (part,) = update_parts(call, delta, weight)
    actions = cloud.hear(part, A, 1.0)
    ((to, accepted, said_why),) = receipts(actions)
    assert (to, accepted) == (A, False)
    assert reason in said_why
    assert noted(actions, "refused")["reason"] == said_why
    assert closed(cloud.get(call, B, 2.0, 1, 2.0)), "the round goes on without it"
    outcome = cloud.result()
    assert moved(outcome) == [2.0]
    assert outcome.declined == {A: f"refused: {said_why}"}


def nan_parts(call: RoundCall) -> list[UpdatePart]:
    """Encode a delta that our own encoder refuses to encode: take a legal one and turn its value into NaN."""
    raw = replace(call, codec="raw")
    (part,) = update_parts(raw, weights(1.0), 1)
    payload = bytes(unpack_update(part.data).payload)
    one, nan = np.float32(1.0).tobytes(), np.float32(np.nan).tobytes()
    assert payload.count(one) == 1
    return update_parts(raw, payload.replace(one, nan), 1)


def test_nan_is_refused_once_and_the_round_goes_on() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1, codec="raw")
    (part,) = nan_parts(call)
    actions = cloud.hear(part, A, 1.0)
    assert receipts(actions) == [(A, False, "'w' holds NaN or infinity")]
    again = cloud.hear(part, A, 1.5)
    assert (receipts(again), notes(again)) == (receipts(actions), ["duplicate"])
    assert closed(cloud.get(call, B, 2.0, 1, 2.0))
    assert moved(cloud.result()) == [2.0]


def test_after_a_refusal_a_right_update_counts() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    (junk,) = update_parts(call, b"junk", 1)
    cloud.hear(junk, A, 1.0)
    assert closed(cloud.get(call, A, 1.0, 1, 2.0))
    outcome = cloud.result()
    assert (outcome.accepted, outcome.declined) == ({A: 1}, {})


def test_an_update_in_another_codec_is_refused() -> None:
    cloud = Cloud(A)
    call = cloud.begin(codec="raw | zstd")
    (part,) = update_parts(replace(call, codec="fp16"), weights(1.0), 1)
    ((_, accepted, reason),) = receipts(cloud.hear(part, A, 1.0))
    assert not accepted
    assert reason == "coded in 'fp16', asked was raw | zstd"


def test_bytes_that_are_no_update_are_refused() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    (part,) = update_parts(call, weights(1.0), 1)
    junk = replace(part, data=b"junk", size=4, blob=digest(b"junk")[:16])
    ((_, accepted, reason),) = receipts(cloud.hear(junk, A, 2.0))
    assert not accepted
    assert reason.startswith("Update is not a msgpack map")


def test_an_update_that_was_changed_on_its_way_is_asked_for_again_but_not_for_ever() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    (part,) = update_parts(call, weights(1.0), 1)
    changed = replace(part, data=bytes(len(part.data)))
    for _ in range(3):
        actions = cloud.hear(changed, A, 1.0)
        assert notes(actions) == ["corrupted"]
        assert said(actions, Want) == [Want(blob=part.blob, parts=(0,))]
    assert receipts(cloud.hear(changed, A, 1.0)) == [(A, False, "a blob does not hash to its name")]


def test_an_update_that_comes_whole_the_second_time_counts() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    (part,) = update_parts(call, weights(1.0), 1)
    cloud.hear(replace(part, data=bytes(len(part.data))), A, 1.0)
    assert receipts(cloud.hear(part, A, 2.0)) == [(A, True, "")]
    assert moved(cloud.result()) == [1.0]


def test_of_a_score_that_comes_in_two_kinds_the_one_that_most_gave_counts_and_nobody_is_refused() -> None:
    mean, root = Tally(total=1.0, count=1), Tally(total=1.0, count=1, is_root=True)
    cloud = Cloud(A, B, C)
    call = cloud.begin()
    for child, tally in ((A, root), (B, mean), (C, mean)):
        ((_, accepted, _),) = receipts(cloud.get(call, child, 2.0, 1, 1.0, tallies={"acc": tally}))
        assert accepted
    assert cloud.result().tallies == {"acc": Tally(total=2.0, count=2)}


def test_junk_metrics_of_one_child_cost_the_others_neither_their_updates_nor_their_metrics() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin()
    one = Tally(total=1.0, count=1)
    cloud.get(call, A, 2.0, 1, 1.0, tallies={f"a{number:02}": one for number in range(16)})
    for child in (B, C):
        cloud.get(call, child, 2.0, 1, 1.0, tallies={"z": one, "loss": one})
    outcome = cloud.result()
    assert (outcome.accepted, moved(outcome)) == ({A: 1, B: 1, C: 1}, [2.0])
    assert outcome.tallies["z"] == outcome.tallies["loss"] == Tally(total=2.0, count=2)
    assert len(outcome.tallies) == 16, "what an edge can pass on"


def test_nobody_takes_so_much_of_the_range_of_weights_or_sums_that_others_are_refused() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    assert receipts(cloud.get(call, A, 0.2, MAX_WEIGHT // 1024, 1.0)) == [(A, True, "")]
    assert receipts(cloud.get(call, B, 0.2, MAX_WEIGHT // 1024, 1.0)) == [(B, True, "")]
    assert moved(cloud.result()) == pytest.approx([0.2])


# ------------------------------------------------------------------ updates of many parts


def many_parts(call: RoundCall) -> list[UpdatePart]:
    delta = {"w": np.random.default_rng(0).standard_normal(500).astype(np.float32)}
    return update_parts(call, delta, 1, part_size=200)


def large(*children: str, **options: Any) -> Cloud:
    return Cloud(*children, model={"w": np.zeros(500, np.float32)}, **options)


def test_an_update_of_many_parts_is_fetched_a_few_at_a_time() -> None:
    cloud = large(A)
    call = cloud.begin()
    parts = many_parts(call)
    assert len(parts) > 8
    under_way = parts[:4]
    most = 4
    while under_way:
        actions = cloud.hear(under_way.pop(0), A, 1.0)
        under_way += [parts[index] for want in said(actions, Want) for index in want.parts]
        most = max(most, len(under_way))
    assert closed(actions)
    assert most == 4
    assert [action.to for action in of(actions, Send) if isinstance(action.message, Want | Receipt)] == [A]


def test_parts_that_got_lost_are_asked_for() -> None:
    cloud = large(A)
    call = cloud.begin(open_for_s=100.0)
    parts = many_parts(call)
    for index, part in enumerate(parts):
        if index not in (2, 5):
            cloud.hear(part, A, 1.0)
    assert cloud.next_deadline == 6.0
    (want,) = said(cloud.tick(6.0), Want)
    assert want == Want(blob=parts[0].blob, parts=(2, 5))
    cloud.hear(parts[5], A, 7.0)
    assert closed(cloud.hear(parts[2], A, 7.0))


def test_the_deadline_moves_on_while_parts_arrive() -> None:
    cloud = large(A)
    call = cloud.begin(open_for_s=10.0, retries=0)
    parts = many_parts(call)
    for index, part in enumerate(parts[:-1]):
        now = 9.0 * index
        assert not closed(cloud.tick(now))
        cloud.hear(part, A, now)
    assert now > 60.0
    assert closed(cloud.hear(parts[-1], A, now + 9.0))
    assert not cloud.result().is_missed


def test_without_progress_the_deadline_stands() -> None:
    cloud = large(A)
    call = cloud.begin(open_for_s=10.0, retries=0)
    cloud.hear(many_parts(call)[0], A, 1.0)
    while cloud.is_open:
        now = cloud.next_deadline
        assert now is not None
        actions = cloud.tick(now)
    assert closed(actions)
    assert now == 40.0  # at 10 s there had been progress within 30 s


def test_an_update_in_parts_whose_child_leaves_goes_on_when_it_is_back() -> None:
    cloud = large(A)
    call = cloud.begin(open_for_s=100.0)
    parts = many_parts(call)
    for part in parts[:5]:
        cloud.hear(part, A, 1.0)
    cloud.hear(LOST, A, 2.0)
    cloud.hear(State(state=StateName.READY, boot=1), A, 50.0)
    actions = cloud.hear(parts[0], A, 51.0)  # the probe
    assert said(actions, Want) == [Want(blob=parts[0].blob, parts=(5, 6, 7, 8))]


def test_where_there_is_no_room_an_update_waits_and_is_not_refused() -> None:
    cloud = large(A, B, max_under_way=1)
    call = cloud.begin()
    mine, yours = many_parts(call), many_parts(call)
    cloud._updates._max_total = mine[0].size
    cloud.hear(mine[0], A, 1.0)
    actions = cloud.hear(yours[0], B, 1.0)
    assert (notes(actions), receipts(actions)) == (["no_room"], [])
    for part in mine[1:]:
        cloud.hear(part, A, 2.0)
    for part in yours:
        actions = cloud.hear(part, B, 3.0)
    assert closed(actions)
    assert cloud.result().accepted == {A: 1, B: 1}


@pytest.mark.parametrize(("codec", "most"), [("raw", 2000), ("int8", 500)])
def test_an_update_larger_than_the_codec_can_need_is_refused_by_its_first_part(codec: str, most: int) -> None:
    cloud = large(A)
    call = cloud.begin(codec=codec)
    limit = MATH.update_limit(cloud.downlink.layout, (codec,)) + MAX_HEAD
    assert most <= limit - MAX_HEAD < most + 300
    parts = [update_parts(call, bytes(size), 1, part_size=1000)[0] for size in (limit + 1, limit - 100)]
    ((_, accepted, reason),) = receipts(cloud.hear(parts[0], A, 1.0))
    assert not accepted
    assert "at most" in reason
    assert receipts(cloud.hear(parts[1], A, 1.0)) == []


def test_nothing_of_a_round_is_kept_after_it() -> None:
    cloud = large(A)
    call = cloud.begin()
    cloud.hear(many_parts(call)[0], A, 1.0)
    cloud.cancel("enough")
    assert (len(cloud._updates), cloud.next_deadline) == (0, None)


# ------------------------------------------------------------------ slots for large updates


def announced(call: RoundCall, sender: str, size: int = 1000, count: int = 1) -> Announce:
    blob = digest(sender.encode())[:16]
    return Announce(run=call.run, round=call.round, base=call.model.digest[:16], blob=blob, size=size, count=count)


def wanted(actions: list[Action]) -> list[str | None]:
    """Who is given a slot."""
    return [action.to for action in of(actions, Send) if isinstance(action.message, Want)]


def small(*children: str, **tier: Any) -> Cloud:
    """A cloud with room for two updates of a thousand bytes, and a half."""
    cloud = large(*children)
    cloud.begin(quorum=len(children), **tier)
    cloud._updates._max_total = 2500
    return cloud


def call_of(cloud: Cloud) -> RoundCall:
    call = cloud._last_call
    assert call is not None
    return call


def test_what_may_be_sent_unasked_is_shared_out_among_those_asked() -> None:
    limit = MATH.update_limit(large().downlink.layout, ("raw | zstd",)) + MAX_HEAD
    assert large(A, max_under_way=1).begin().unasked == limit  # room for one, whatever it needs
    assert large(A, B, C, D, max_under_way=1).begin().unasked == limit // 4
    assert large(A, B, C, D).begin().unasked == UNASKED


def test_slots_are_granted_in_turn_as_they_become_free() -> None:
    cloud = small(A, B, C, D)
    call = call_of(cloud)
    assert [wanted(cloud.hear(announced(call, child), child, 1.0)) for child in (A, B, C, D)] == [[A], [B], [], []]
    assert cloud.hear(announced(call, C), C, 2.0) == []  # it asks again, and stays third in line
    actions = cloud.hear(LOST, A, 3.0)
    assert (wanted(actions), notes(actions)) == ([C], ["lost"])
    actions = cloud.hear(State(state=StateName.DISCONNECTED, boot=1), B, 4.0)
    assert wanted(actions) == [D]


def test_an_update_that_is_whole_makes_room_for_the_next() -> None:
    cloud = large(A, B)
    call = cloud.begin(quorum=2)
    mine, yours = many_parts(call), many_parts(call)
    cloud._updates._max_total = mine[0].size
    said_of = {
        child: replace(announced(call, child, parts[0].size, parts[0].count), blob=parts[0].blob)
        for child, parts in ((A, mine), (B, yours))
    }
    (want,) = said(cloud.hear(said_of[A], A, 1.0), Want)
    assert want.parts == (0, 1, 2, 3)
    assert cloud.hear(said_of[B], B, 1.0) == []
    for part in mine:
        actions = cloud.hear(part, A, 2.0)
    assert (notes(actions), wanted(actions)) == (["accepted"], [B])
    for part in yours:
        actions = cloud.hear(part, B, 3.0)
    assert cloud.result().accepted == {A: 1, B: 1}


def test_one_who_waits_and_dies_loses_its_place() -> None:
    cloud = small(A, B, C, D)
    call = call_of(cloud)
    for child in (A, B, C, D):
        cloud.hear(announced(call, child), child, 1.0)
    assert wanted(cloud.hear(LOST, C, 2.0)) == []
    assert wanted(cloud.hear(LOST, A, 3.0)) == [D]


def test_a_slot_whose_owner_says_nothing_more_is_given_away_in_the_end() -> None:
    cloud = small(A, B, C, open_for_s=10_000.0)
    call = call_of(cloud)
    for child in (A, B, C):
        cloud.hear(announced(call, child), child, 1.0)
    granted: list[tuple[float, str | None]] = []
    while (now := cloud.next_deadline) is not None and now < 1000.0:
        granted += [(now, to) for to in wanted(cloud.tick(now)) if to == C]
    assert 61.0 <= granted[0][0] < 95.0


def test_who_announces_an_update_again_that_is_under_way_is_told_what_is_missing() -> None:
    cloud = large(A)
    call = cloud.begin()
    parts = many_parts(call)
    mine = replace(announced(call, A, parts[0].size, parts[0].count), blob=parts[0].blob)
    cloud.hear(mine, A, 1.0)
    for part in parts[:3]:
        cloud.hear(part, A, 1.0)
    assert said(cloud.hear(mine, A, 60.0), Want) == [Want(blob=parts[0].blob, parts=(3, 4, 5, 6))]


def test_an_announcement_that_cannot_count_is_refused_at_once() -> None:
    cloud = large(A, B)
    call = cloud.begin()
    huge = cloud.hear(announced(call, A, 10**9), A, 1.0)
    ((to, accepted, reason),) = receipts(huge)
    assert (to, accepted) == (A, False)
    assert "at most" in reason
    foreign = cloud.hear(replace(announced(call, B), base="0" * 16), B, 1.0)
    assert receipts(foreign) == [(B, False, "foreign base: this update starts from another model")]


def test_who_announces_too_late_is_told_so_and_who_was_accepted_has_its_receipt_again() -> None:
    cloud = large(A, B)
    call = cloud.begin(quorum=1)
    for part in many_parts(call):
        cloud.hear(part, A, 1.0)
    assert receipts(cloud.hear(announced(call, A), A, 1.5)) == [(A, True, "")]
    cloud.tick(3.0)
    assert receipts(cloud.hear(announced(call, A), A, 4.0)) == [(A, True, "")]
    assert receipts(cloud.hear(announced(call, B), B, 4.0)) == [(B, False, "too late: g1 is closed")]


def test_of_a_thousand_that_announce_at_once_never_more_is_under_way_than_there_is_room_for() -> None:
    names = [f"cloud/c{number}" for number in range(1000)]
    cloud = Cloud(*names, model={"w": np.zeros(500, np.float32)}, max_under_way=100_000)
    call = cloud.begin(quorum=1000, codec="raw")
    parts = {name: many_parts(replace(call, codec="raw")) for name in names}
    line = [
        cloud.hear(replace(announced(call, name, p[0].size, p[0].count), blob=p[0].blob), name, 1.0)
        for name, p in parts.items()
    ]
    granted = [to for actions in line for to in wanted(actions)]
    assert granted == names[: 100_000 // parts[names[0]][0].size]
    while granted:
        child = granted.pop(0)
        assert child is not None
        for part in parts[child]:
            actions = cloud.hear(part, child, 2.0)
            granted += [to for to in wanted(actions) if to != child]
            assert cloud._updates._promised <= 100_000
    assert len(cloud.result().accepted) == 1000


# ------------------------------------------------------------------ who hears that a round is closed


def test_where_all_were_accepted_nobody_needs_to_hear_of_the_close() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0)
    actions = cloud.get(call, B, 1.0, 1, 1.0)
    assert (closed(actions), told(actions)) == (True, [])


def test_where_somebody_still_works_the_close_is_told() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    cloud.get(call, A, 1.0, 1, 1.0)
    assert told(cloud.tick(3.0)) == [Phase.CLOSED]


def test_where_one_declined_the_close_is_told_for_it_might_try_again() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1)
    cloud.hear(Decline(run="r", round=(1,), reason="busy"), B, 1.0)
    assert told(cloud.get(call, A, 1.0, 1, 1.0)) == [Phase.CLOSED]


def test_who_joins_between_two_rounds_hears_once_that_the_last_one_is_closed() -> None:
    cloud = Cloud(A)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0)
    assert told(cloud.hear(READY, B, 2.0)) == [Phase.CLOSED]
    assert told(cloud.hear(READY, C, 3.0)) == []  # it is retained


def test_who_joins_before_the_first_round_hears_of_none() -> None:
    cloud = Cloud()
    assert told(cloud.hear(READY, A, 2.0)) == []


# ------------------------------------------------------------------ a codec that each link chooses


def test_where_the_codec_is_auto_any_rung_of_the_ladder_counts() -> None:
    delta = {"w": np.linspace(-1, 1, 500, dtype=np.float32)}
    cloud = large(*(f"cloud/{index}" for index in range(len(CODECS))))
    call = cloud.begin(codec=AUTO, quorum=1.0)
    for index, codec in enumerate(CODECS):
        (part,) = update_parts(replace(call, codec=codec), delta, 1)
        assert receipts(cloud.hear(part, f"cloud/{index}", 1.0)) == [(f"cloud/{index}", True, "")], codec
    assert len(cloud.result().accepted) == len(CODECS)


def test_where_the_codec_is_auto_what_is_no_rung_is_refused() -> None:
    cloud = large(A)
    call = cloud.begin(codec=AUTO)
    (part,) = update_parts(replace(call, codec="bf16"), {"w": np.zeros(500, np.float32)}, 1)
    ((_, accepted, reason),) = receipts(cloud.hear(part, A, 1.0))
    assert not accepted
    assert reason.startswith("coded in 'bf16', asked was")


def test_a_call_says_the_budget_only_where_links_choose() -> None:
    assert Cloud(A).begin(codec=AUTO, budget=5000).budget == 5000
    assert Cloud(A).begin(codec="int8", budget=5000).budget is None


# ------------------------------------------------------------------ the bytes that were moved


def test_the_bytes_that_children_moved_add_up() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0, sent=100, received=7)
    cloud.get(call, A, 1.0, 1, 1.0, sent=100, received=7)  # heard twice
    cloud.get(call, B, 1.0, 1, 1.0, sent=20, received=1)
    outcome = cloud.result()
    assert (outcome.sent, outcome.received) == (120, 8)


# ------------------------------------------------------------------ the model in its slots


def test_what_a_child_misses_is_put_into_its_slots_again() -> None:
    cloud = large()
    (part,) = said(cloud.hear(WantModel(version=0, parts=(0,), is_key=True), A, 10.0), KeyPart)
    assert part.version == 0
    cloud.downlink.move({"w": np.ones(500, np.float32)})
    cloud.downlink.show(quick(), 0)
    (delta,) = said(cloud.hear(WantModel(version=1, parts=(0,)), A, 10.0), ModelPart)
    assert delta.version == 1


def test_a_part_that_there_is_not_is_not_given() -> None:
    cloud, bare = Cloud(), Aggregator(path="cloud", arithmetic=MATH)
    for want in (
        WantModel(version=0, parts=(1, 4095), is_key=True),
        WantModel(version=1, parts=(0,)),
        WantModel(version=0, parts=(0,)),
    ):
        assert notes(cloud.hear(want, A, 1.0)) == ["want_out_of_place"]
    assert notes(bare.hear(WantModel(version=0, parts=(0,), is_key=True), A, 1.0)) == ["want_out_of_place"]


def test_after_a_new_session_the_retained_is_said_again() -> None:
    cloud = large(A)
    assert cloud.connected(session_present=False, now=1.0) == []  # nothing was called yet
    cloud.downlink.move({"w": np.ones(500, np.float32)})
    cloud.downlink.show(quick(), 0)
    call = cloud.begin()
    assert cloud.connected(session_present=True, now=1.0) == []
    actions = cloud.connected(session_present=False, now=1.0)
    assert [type(action.message) for action in of(actions, Send)] == [KeyPart, ModelPart, RoundCall]
    assert said(actions, RoundCall) == [call]


# ------------------------------------------------------------------ the end


def test_a_cancelled_round_is_closed_without_an_outcome() -> None:
    cloud = Cloud(A)
    cloud.begin()
    actions = cloud.cancel("the call from above ended")
    assert (closed(actions), notes(actions)) == (True, ["abandoned"])
    assert cloud.take_outcome() is None
    assert cloud.cancel("again") == []


def test_finish_tells_the_children_that_the_run_is_over() -> None:
    cloud = Cloud(A)
    cloud.begin()
    assert [call.phase for call in said(cloud.finish("r"), RoundCall)] == [Phase.CLOSED, Phase.FINISHED]
    assert cloud.finish("another") == []
    assert said(cloud.connected(session_present=False, now=1.0), RoundCall)[0].phase is Phase.FINISHED


def test_a_clock_that_jumps_back_only_makes_it_wait() -> None:
    cloud = large(A)
    call = cloud.begin(now=1000.0)
    parts = many_parts(call)
    cloud.hear(parts[0], A, 1001.0)
    assert cloud.tick(0.0) == []
    cloud.hear(WantModel(version=0, parts=(0,), is_key=True), A, 0.0)
    for part in parts[1:]:
        actions = cloud.hear(part, A, 0.0)
    assert closed(actions)


# ------------------------------------------------------------------ who is slow


def test_a_child_at_which_parts_keep_coming_is_waited_for() -> None:
    cloud = Cloud(A)
    call = cloud.begin(open_for_s=60.0)
    for now in (40.0, 50.0):
        assert cloud.hear(Moving(), A, now) == []
    assert cloud.tick(60.0) == []
    assert cloud.next_deadline is not None
    assert not closed(cloud.tick(119.9))  # it has as long to work as if its model had come at once
    assert "accepted" in notes(cloud.get(call, A, 1.0, 1, 119.95))


def test_a_child_that_says_no_more_that_parts_come_is_given_up() -> None:
    cloud = Cloud(A)
    cloud.begin(open_for_s=60.0)
    cloud.hear(Moving(), A, 29.9)
    assert notes(cloud.tick(60.0)) == ["missed"]


def test_no_deadline_moves_for_who_is_not_waited_for() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin(open_for_s=60.0, quorum=3)
    cloud.get(call, A, 1.0, 1, 10.0)
    cloud.hear(Decline(run="r", round=(1,), reason="none"), B, 20.0)
    for who in (A, B, D):
        cloud.hear(Moving(), who, 59.0)
    assert notes(cloud.tick(60.0)) == ["missed"]


def test_nobody_waits_for_a_slow_child_that_is_lost_or_declines() -> None:
    cloud = Cloud(A, B)
    cloud.begin(open_for_s=60.0)
    for who in (A, B):
        cloud.hear(Moving(), who, 50.0)
    cloud.hear(LOST, A, 51.0)
    assert cloud.moving_since(51.0) == 41.0
    cloud.hear(Decline(run="r", round=(1,), reason="none"), B, 52.0)
    assert cloud.moving_since(52.0) is None
    assert notes(cloud.tick(60.0)) == ["missed"]


def test_a_quorum_does_not_wait_for_who_is_slow() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(open_for_s=60.0, quorum=1, grace_s=2.0)
    cloud.hear(Moving(), B, 9.0)
    cloud.get(call, A, 1.0, 1, 10.0)
    assert closed(cloud.tick(12.0))


def test_parts_are_moving_below_while_they_come_up_or_a_child_says_that_they_come_down() -> None:
    cloud = Cloud(A, B)
    cloud.hear(Moving(), A, 0.0)
    assert cloud.moving_since(0.0) is None  # in no round
    call = cloud.begin()
    assert cloud.moving_since(0.0) is None
    cloud.hear(Moving(), A, 15.0)
    assert [cloud.moving_since(now) for now in (15.0, 45.0, 45.1)] == [5.0, 35.0, None]
    first, *_ = update_parts(call, weights(1.0), 1, part_size=20)
    cloud.hear(first, B, 50.0)
    assert [cloud.moving_since(now) for now in (50.0, 80.0, 80.1)] == [50.0, 80.0, None]


# ------------------------------------------------------------------ late updates


def late_cloud(*children: str, **tier: Any) -> tuple[Cloud, RoundCall, RoundCall]:
    """Return a cloud in its second round, the first of which closed with one update of the last child."""
    cloud = Cloud(*children)
    tier = {"quorum": 1, "grace_s": 0.0, "late": Late.NEXT, **tier}
    first = cloud.begin(1, **tier)
    assert closed(cloud.get(first, children[-1], 1.0, 1, 1.0))
    return cloud, first, cloud.begin(2, now=1.0, **{**tier, "quorum": 2})


def test_a_late_update_joins_the_open_round_as_its_senders_answer() -> None:
    cloud, first, second = late_cloud(A, B)
    actions = cloud.get(first, A, 3.0, 1, 2.0)
    (receipt,) = said(actions, Receipt)
    assert (receipt.accepted, receipt.round, receipt.joined) == (True, (1,), (2,))
    found = noted(actions, "accepted")
    assert (found["round"], found["of"], found["late"], found["staleness"]) == ("g2", "g1", True, 1)
    assert closed(cloud.get(second, B, 1.0, 1, 3.0))
    assert moved(cloud.result()) == [2.0]


def test_a_late_update_that_comes_again_counts_once_and_is_told_where() -> None:
    cloud, first, second = late_cloud(A, B)
    cloud.get(first, A, 3.0, 1, 2.0)
    (again,) = said(cloud.get(first, A, 3.0, 1, 2.0), Receipt)
    assert (again.accepted, again.joined) == (True, (2,))
    cloud.get(second, B, 1.0, 1, 3.0)
    cloud.begin(3, late=Late.NEXT)
    (later,) = said(cloud.get(first, A, 3.0, 1, 4.0), Receipt)
    assert (later.accepted, later.joined) == (True, (2,))
    assert cloud.result().accepted == {A: 1, B: 1}


def test_a_discounted_update_moves_the_model_by_its_share_while_all_its_samples_count() -> None:
    cloud, first, second = late_cloud(A, B, late=Late.DISCOUNT, staleness_exponent=1.0)
    found = noted(cloud.get(first, A, 6.0, 10, 2.0), "accepted")
    assert (found["weight"], found["share"]) == (10, 0.5)
    cloud.get(second, B, 0.0, 10, 3.0)
    assert moved(cloud.result()) == [1.5]  # (5 x 6 + 10 x 0) / 20


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_an_update_of_the_open_round_counts_whole(exponent: float) -> None:
    cloud, _, second = late_cloud(A, B, late=Late.DISCOUNT, staleness_exponent=exponent)
    cloud.get(second, A, 2.0, 10, 2.0)
    cloud.get(second, B, 4.0, 10, 3.0)
    assert moved(cloud.result()) == [3.0]


def test_an_update_of_more_rounds_ago_than_the_tier_allows_is_refused() -> None:
    cloud, first, second = late_cloud(A, B, C, max_staleness=1)
    cloud.get(second, B, 1.0, 1, 2.0)
    assert closed(cloud.get(second, C, 1.0, 1, 2.0))
    third = cloud.begin(3, late=Late.NEXT, max_staleness=1)
    actions = cloud.get(first, A, 1.0, 1, 3.0)
    assert receipts(actions) == [(A, False, "too old: g1 is none of the 1 rounds before g3")]
    assert receipts(cloud.get(third, A, 1.0, 1, 4.0)) == [(A, True, "")]  # and it answers the round itself


def test_where_late_updates_are_dropped_they_are_told_so() -> None:
    cloud, first, _ = late_cloud(A, B, late=Late.DROP)
    assert receipts(cloud.get(first, A, 1.0, 1, 2.0)) == [(A, False, "too late: g1 is closed")]


def test_a_late_update_is_held_while_no_round_is_open_and_joins_the_next() -> None:
    cloud, first, second = late_cloud(A, B)
    cloud.get(second, A, 1.0, 1, 2.0)
    assert closed(cloud.get(second, B, 1.0, 1, 2.0))
    cloud.hear(READY, C, 2.0)
    held = cloud.get(first, C, 1.0, 1, 3.0)
    assert (receipts(held), notes(held)) == ([], ["held"])
    cloud.begin(3, late=Late.NEXT)
    assert receipts(cloud.get(first, C, 1.0, 1, 4.0)) == [(C, True, "")]


def test_who_has_opened_no_round_yet_calls_none_closed_for_its_predecessors_may_go_on() -> None:
    before, after = Cloud(A), Cloud(A)
    call = before.begin()
    for actions in (after.get(call, A, 1.0, 1, 1.0), after.hear(announced(call, A), A, 1.0)):
        assert (receipts(actions), notes(actions)) == ([], ["held"])
    assert after.begin() == call
    assert receipts(after.get(call, A, 1.0, 1, 2.0)) == [(A, True, "")]


def test_a_second_update_for_one_round_is_held_for_the_next() -> None:
    cloud, first, second = late_cloud(A, B, C)
    cloud.get(first, A, 1.0, 1, 2.0)
    held = cloud.get(second, A, 5.0, 1, 2.0)
    assert (receipts(held), notes(held)) == ([], ["held"])
    assert closed(cloud.get(second, B, 1.0, 1, 3.0)) or closed(cloud.tick(4.0))
    cloud.begin(3, late=Late.NEXT)
    assert noted(cloud.get(second, A, 5.0, 1, 5.0), "accepted")["staleness"] == 1


def test_a_late_update_is_not_judged_by_its_base_for_an_edge_goes_on_with_a_model_of_its_own() -> None:
    cloud, first, _ = late_cloud(A, B)
    (part,) = update_parts(first, weights(1.0), 1)
    assert receipts(cloud.hear(replace(part, base="5" * 16), A, 2.0)) == [(A, True, "")]


def test_a_late_update_that_cannot_be_added_does_not_stand_for_its_senders_answer() -> None:
    cloud, first, second = late_cloud(A, B)
    (junk,) = update_parts(first, b"junk", 1)
    assert not receipts(cloud.hear(junk, A, 2.0))[0][1]
    assert receipts(cloud.get(second, A, 1.0, 1, 3.0)) == [(A, True, "")]


def test_no_late_update_joins_a_round_that_evaluates() -> None:
    cloud = Cloud(A, B)
    first = cloud.begin(1, quorum=1, grace_s=0.0, late=Late.NEXT)
    cloud.get(first, B, 1.0, 1, 1.0)
    cloud.begin(2, plan=EVALUATE, late=Late.NEXT)
    assert receipts(cloud.get(first, A, 1.0, 1, 2.0)) == [(A, False, "too late: g1 is closed")]


def test_parts_that_came_before_the_close_serve_in_the_next_round() -> None:
    cloud = Cloud(A, B, model=weights(*range(100)))
    first = cloud.begin(1, quorum=1, grace_s=0.0, late=Late.NEXT)
    parts = update_parts(first, weights(*(1 / (1 + place) for place in range(100))), 1, part_size=60)
    cloud.hear(parts[0], A, 1.0)
    (part,) = update_parts(first, weights(*([1.0] * 100)), 1)
    assert closed(cloud.hear(part, B, 1.0))
    cloud.begin(2, quorum=1, grace_s=0.0, late=Late.NEXT, now=1.0)
    for part in parts[1:]:
        actions = cloud.hear(part, A, 2.0)
    assert receipts(actions) == [(A, True, "")]


def test_a_buffer_that_is_full_closes_its_round_at_once() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin(quorum=2, grace_s=0.0, late=Late.DISCOUNT)  # what `mode: async` is
    cloud.get(call, A, 1.0, 1, 1.0)
    assert closed(cloud.get(call, B, 1.0, 1, 1.0))


# ------------------------------------------------------------------ after a crash


class Vault:
    """What an aggregator persisted, and its next lives."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def take(self, actions: list[Action]) -> list[Action]:
        for action in of(actions, Persist):
            for key, value in action.changes.items():
                if value is None:
                    self.held.pop(key, None)
                else:
                    self.held[key] = bytes(value)
        return actions

    def next_life(self, now: float = 0.0, boot: int = 2) -> tuple[Aggregator, list[Action]]:
        cloud = Aggregator(path="cloud", arithmetic=MATH, boot=boot, saved=dict(self.held))
        return cloud, self.take(cloud.start(now))


def crashed(*children: str, **tier: Any) -> tuple[Vault, RoundCall, Cloud]:
    """Return what an aggregator leaves that was killed in its first round, with one update of the first child."""
    vault, cloud = Vault(), Cloud()
    vault.take(cloud.downlink.begin(keyframe(weights(1.0))))
    for child in children:
        cloud.hear(READY, child, 0.0)
    tier = {"quorum": 1.0, **tier}
    actions = cloud.open(run="r", round_id=(1,), plan=PLAN, tier=quick(**tier), seed=0, now=0.0)
    (call,) = said(vault.take(actions), RoundCall)
    vault.take(cloud.get(call, children[0], 4.0, 3, 1.0))
    return vault, call, cloud


def test_after_a_crash_the_round_goes_on_with_the_call_and_the_updates_it_had() -> None:
    vault, call, _ = crashed(A, B)
    cloud, restored = vault.next_life(now=100.0)
    assert noted(restored, "restored")["updates"].keys() == {A}
    assert said(cloud.connected(session_present=True, now=101.0), RoundCall) == [call]
    (part,) = update_parts(call, weights(-4.0), 1)
    assert closed(cloud.hear(part, B, 102.0))
    outcome = cloud.take_outcome()
    assert outcome is not None
    assert moved(outcome) == [2.0]  # (3 x 4 - 1 x 4) / 4
    assert outcome.accepted == {A: 3, B: 1}


def test_who_was_asked_before_the_crash_is_waited_for_until_something_else_is_heard() -> None:
    vault, _, _ = crashed(A, B, quorum=1)
    cloud, _ = vault.next_life()
    cloud.connected(session_present=True, now=0.0)
    assert cloud.is_open
    assert cloud.present == [A, B]
    assert closed(cloud.hear(replace(LOST, boot=1), B, 0.1))


def test_a_round_that_had_its_quorum_before_the_crash_has_its_grace_once_more() -> None:
    vault, _, _ = crashed(A, B, quorum=1, grace_s=2.0)
    cloud, _ = vault.next_life(now=50.0)
    cloud.connected(session_present=True, now=60.0)
    assert cloud.is_open
    assert cloud.next_deadline == 62.0
    assert closed(cloud.tick(62.0))


def test_who_joined_the_round_before_the_crash_is_waited_for_too() -> None:
    vault, call, before = crashed(A, B)
    vault.take(before.hear(READY, C, 1.0))
    cloud, _ = vault.next_life()
    (part,) = update_parts(call, weights(-4.0), 1)
    assert not closed(cloud.hear(part, B, 1.0))
    assert closed(cloud.hear(part, C, 1.0))


def test_an_update_whose_receipt_a_crash_swallowed_has_it_when_it_comes_again() -> None:
    vault, call, _ = crashed(A, B)
    cloud, _ = vault.next_life()
    (part,) = update_parts(call, weights(4.0), 3)
    actions = cloud.hear(part, A, 1.0)
    assert (receipts(actions), notes(actions)) == ([(A, True, "")], ["duplicate"])


def test_while_the_own_link_is_down_no_deadline_passes() -> None:
    vault, call, _ = crashed(A, B)
    cloud, _ = vault.next_life(now=0.0)
    assert cloud.next_deadline is None  # not connected yet
    cloud.connected(session_present=True, now=500.0)
    assert not closed(cloud.tick(509.9))
    cloud.lost(509.9)
    assert cloud.tick(600.0) == []
    cloud.connected(session_present=True, now=600.0)
    assert not closed(cloud.tick(600.05))
    assert closed(cloud.tick(600.2))
    assert call.open_for_s == 10.0


def test_after_a_crash_the_newest_delta_is_said_again_and_where_the_session_is_gone_the_keyframe_too() -> None:
    vault, before = Vault(), Cloud(A)
    vault.take(before.downlink.begin(keyframe(weights(*range(100)))))
    before.downlink.move(weights(*range(100)))
    vault.take(before.downlink.show(quick(), 0)[0])
    vault.take(before.open(run="r", round_id=(1,), plan=PLAN, tier=quick(), seed=0, now=0.0))
    for is_there, keys in ((True, 0), (False, 1)):
        cloud, _ = vault.next_life()
        actions = cloud.connected(session_present=is_there, now=1.0)
        assert (len(said(actions, ModelPart)), len(said(actions, KeyPart))) == (1, keys)
        assert cloud.connected(session_present=True, now=2.0) == []


def test_a_round_whose_model_cannot_be_read_is_given_up_and_nothing_is_left_of_it() -> None:
    vault, _, _ = crashed(A, B)
    vault.held["chain/key"] = b"worn out"
    cloud, actions = vault.next_life()
    assert notes(actions) == ["unreadable", "unreadable"]
    assert not cloud.is_open
    assert vault.held == {}


def test_an_update_that_cannot_be_read_any_more_is_asked_for_again() -> None:
    vault, call, _ = crashed(A, B)
    vault.held["down/update/cloud/a"] = b"worn out"
    cloud, actions = vault.next_life()
    assert notes(actions) == ["unreadable", "restored"]
    (part,) = update_parts(call, weights(4.0), 3)
    assert receipts(cloud.hear(part, A, 1.0)) == [(A, True, "")]


def test_a_former_life_of_another_run_leaves_no_receipts() -> None:
    vault, _, before = crashed(A)
    assert f"down/receipts/{A}" in vault.held
    vault.take(before.finish("r"))
    vault.take(before.open(run="s", round_id=(1,), plan=PLAN, tier=quick(), seed=0, now=9.0))
    assert set(vault.held) == {"chain/key", "down/round"}


def test_a_round_that_is_opened_once_more_after_it_was_closed_counts_its_updates_anew() -> None:
    vault, call, before = crashed(A)
    assert not before.is_open
    actions = vault.take(before.open(run="r", round_id=(1,), plan=PLAN, tier=quick(), seed=0, now=9.0))
    assert noted(actions, "undone")["round"] == "g1"
    (part,) = update_parts(call, weights(4.0), 3)
    assert receipts(before.hear(part, A, 10.0)) == [(A, True, "")]
    assert closed(before.tick(100.0)) or not before.is_open


def test_a_closed_round_stands_in_the_note_of_the_next_life_for_the_crash_may_have_hidden_it() -> None:
    vault, _, _ = crashed(A)
    _, actions = vault.next_life()
    found = noted(actions, "restored")
    assert (found["phase"], found["closed_round"], found["updates"]) == ("closed", "g1", {})
    assert found["closed"].keys() == {A}


# ------------------------------------------------------------------ two boards of one name


def test_boots_that_go_back_and_forth_are_two_boards_of_one_name() -> None:
    cloud = Cloud()
    said_at = [(5, False), (9, False), (5, False), (9, True), (5, True)]
    for boot, is_told in said_at:
        actions = cloud.hear(State(state=StateName.READY, boot=boot), A, 0.0)
        assert ("cloned" in notes(actions)) is is_told


def test_a_board_that_restarts_or_was_set_up_anew_is_no_clone() -> None:
    cloud = Cloud()
    for boot in (1, 2, 3, 1, 2, 3, 4):
        assert "cloned" not in notes(cloud.hear(State(state=StateName.READY, boot=boot), A, 0.0))
