from dataclasses import replace
from typing import Any

import pytest

from hfl_mqtt.protocol.blobs import Cut
from hfl_mqtt.protocol.messages import (
    Decline,
    Draw,
    Info,
    ModelPart,
    Phase,
    Receipt,
    RoundCall,
    State,
    StateName,
    UpdatePart,
    Want,
    WantModel,
)
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds import cohort
from hfl_mqtt.rounds.actions import Action, CancelWork, Contribution, RunOver, Work
from hfl_mqtt.rounds.participant import PAST_RUNS, Participant, Stage
from tests.unit.rounds.trees import CODEC, PLAN, info, manifest, model_part, noted, notes, of, said, weights

PI = "cloud/a/pi"
MODEL, CUT = manifest(weights(1.0, 2.0))
LONG, LONG_CUT = manifest(weights(*range(100)), part_size=100)
OTHER, OTHER_CUT = manifest(weights(*range(100, 200)), part_size=100)
RESULT = Contribution(payload=b"delta", weight=3)


def call(*round_id: int, phase: Phase = Phase.OPEN, **fields: Any) -> RoundCall:
    return RoundCall(
        **{
            "run": "r",
            "round": round_id or (1,),
            "phase": phase,
            "asked": 1,
            "quorum": 1,
            "open_for_s": 60.0,
            "codec": CODEC,
            "draw": Draw(),
            "plan": PLAN,
            "model": MODEL,
            **fields,
        }
    )


def out(max_model: int = 2**20) -> Participant:
    return Participant(path=PI, boot=1, info=info(), max_model=max_model)


def joined(max_model: int = 2**20) -> Participant:
    pi = out(max_model)
    pi.connected(0.0)
    return pi


def fetching(heard: RoundCall | None = None) -> Participant:
    pi = joined()
    pi.hear(heard or call(), 0.0)
    assert pi.stage is Stage.FETCHING
    return pi


def working(heard: RoundCall | None = None) -> Participant:
    pi = fetching(heard)
    pi.hear(model_part(CUT), 0.0)
    assert pi.stage is Stage.WORKING
    return pi


def sending(result: Contribution = RESULT, at: float = 0.0) -> Participant:
    pi = working()
    pi.worked("r/g1", result, at)
    assert pi.stage is Stage.SENDING
    return pi


def answered() -> Participant:
    pi = sending()
    pi.hear(receipt(), 1.0)
    assert pi.stage is Stage.JOINED
    return pi


def receipt(*round_id: int, accepted: bool = True, run: str = "r", reason: str = "") -> Receipt:
    return Receipt(run=run, round=round_id or (1,), base=MODEL.digest, accepted=accepted, reason=reason)


def cancelled(actions: list[Action]) -> list[str]:
    return [action.work_id for action in of(actions, CancelWork)]


# ------------------------------------------------------------------ OUT -connected-> JOINED


def test_the_root_of_a_tree_contributes_to_nobody() -> None:
    with pytest.raises(ValueError, match="'cloud' has no parent"):
        Participant(path="cloud", boot=1, info=info(), max_model=1)


def test_it_announces_itself_when_it_is_connected() -> None:
    pi = out()
    actions = pi.connected(0.0)
    assert pi.stage is Stage.JOINED
    assert said(actions, Info) == [info()]
    assert said(actions, State) == [State(state=StateName.READY, boot=1)]


def test_it_says_again_that_it_is_there_until_it_is_called() -> None:
    pi = joined()
    said_at = []
    for _ in range(7):
        now = pi.next_deadline
        assert now is not None
        assert said(pi.tick(now), State) == [State(state=StateName.READY, boot=1)]
        said_at.append(now)
    assert said_at == [15.0, 45.0, 105.0, 225.0, 465.0, 765.0, 1065.0]
    pi.hear(call(phase=Phase.CLOSED), 1066.0)
    assert pi.next_deadline is not None
    pi.hear(call(2, draw=Draw(threshold=0)), 1067.0)
    assert pi.next_deadline is None


def test_it_does_not_say_that_it_is_idle_while_it_trains() -> None:
    pi = working()
    pi.connected(100.0)
    assert said(pi.tick(115.0), State) == [State(state=StateName.TRAINING, boot=1)]


def test_it_still_says_that_it_trains_when_the_link_comes_back() -> None:
    pi = working()
    assert said(pi.connected(5.0), State) == [State(state=StateName.TRAINING, boot=1)]
    assert pi.stage is Stage.WORKING


def test_a_call_that_arrives_before_the_link_says_it_is_up_is_taken() -> None:
    pi = out()
    pi.hear(call(), 0.0)
    assert pi.stage is Stage.FETCHING


# ------------------------------------------------------------------ JOINED -call-> FETCHING -model here-> WORKING


def test_a_call_is_worked_on_when_its_model_is_here() -> None:
    pi = joined()
    assert pi.hear(call(1, 2), 0.0) == []
    actions = pi.hear(model_part(CUT), 1.0)
    assert said(actions, State) == [State(state=StateName.TRAINING, boot=1)]
    (work,) = of(actions, Work)
    assert (work.work_id, work.run, work.round, work.plan, work.codec) == ("r/g1.e2", "r", (1, 2), PLAN, CODEC)
    assert (work.model, work.digest) == (CUT.blob, MODEL.digest)
    assert work.seed == cohort.lot(PLAN.seed, (1, 2), PI)
    assert pi.stage is Stage.WORKING
    assert pi.next_deadline is None


def test_a_model_may_come_before_its_call() -> None:
    pi = joined()
    assert pi.hear(model_part(CUT), 0.0) == []
    assert len(of(pi.hear(call(), 1.0), Work)) == 1


def test_the_model_of_the_last_round_need_not_be_sent_again() -> None:
    pi = answered()
    assert len(of(pi.hear(call(2), 2.0), Work)) == 1


def test_a_model_that_does_not_come_is_asked_for_again_and_again() -> None:
    pi = fetching(call(model=LONG))
    asked_at = []
    for _ in range(5):
        now = pi.next_deadline
        assert now is not None
        assert said(pi.tick(now), WantModel) == [WantModel(blob=LONG.blob, parts=tuple(range(LONG_CUT.count)))]
        asked_at.append(now)
    assert asked_at == [5.0, 15.0, 35.0, 75.0, 135.0]


def test_of_a_large_model_the_first_parts_are_asked_for_as_the_others_may_be_on_their_way() -> None:
    pi = fetching(call(model=replace(LONG, parts=100)))
    assert [want.parts for want in said(pi.tick(5.0), WantModel)] == [(0, 1, 2, 3)]


def test_a_reminder_makes_it_ask_for_the_model_at_once() -> None:
    pi = fetching(call(model=LONG))
    pi.tick(5.0)
    pi.hear(call(model=LONG), 7.0)
    assert pi.next_deadline == 7.0
    assert len(said(pi.tick(7.0), WantModel)) == 1


def test_a_lost_part_of_the_model_is_asked_for() -> None:
    pi = fetching(call(model=LONG))
    for index in range(LONG_CUT.count):
        if index != 2:
            pi.hear(model_part(LONG_CUT, index), 1.0)
    assert pi.next_deadline == 6.0
    assert said(pi.tick(6.0), WantModel) == [WantModel(blob=LONG.blob, parts=(2,))]
    assert len(of(pi.hear(model_part(LONG_CUT, 2), 7.0), Work)) == 1
    assert pi.next_deadline is None


def test_parts_that_came_before_the_call_are_kept_however_late_it_is() -> None:
    pi = joined()
    pi.hear(model_part(LONG_CUT, 0), 0.0)
    for now in (5.0, 15.0, 35.0, 75.0):
        assert said(pi.tick(now), WantModel) == []
    pi.hear(call(model=LONG), 80.0)
    assert said(pi.tick(85.0), WantModel) == [WantModel(blob=LONG.blob, parts=tuple(range(1, LONG_CUT.count)))]


def test_a_fetch_that_grew_too_old_begins_again() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(model_part(LONG_CUT, 1), 0.0)
    wanted: list[WantModel] = []
    while (now := pi.next_deadline) is not None and now < 700.0:
        wanted += said(pi.tick(now), WantModel)
    assert pi.next_deadline is not None, "it would fetch for ever"
    assert wanted[-1].parts[:2] == (0, 1)  # also the part it had


def test_a_model_that_does_not_hash_to_its_name_is_noted_and_asked_for_again() -> None:
    pi = fetching(call(model=LONG))
    for index in range(LONG_CUT.count - 1):
        pi.hear(model_part(LONG_CUT, index), 0.0)
    last = model_part(LONG_CUT, LONG_CUT.count - 1)
    actions = pi.hear(replace(last, data=bytes(len(last.data))), 0.0)
    assert "does not hash" in noted(actions, "malformed")["reason"]
    assert len(said(pi.tick(5.0), WantModel)) == 1


def test_a_malformed_part_leaves_the_others_alone() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(model_part(LONG_CUT, 0), 0.0)
    assert notes(pi.hear(replace(model_part(LONG_CUT, 1), data=b"x"), 0.0)) == ["malformed"]
    for index in range(1, LONG_CUT.count):
        actions = pi.hear(model_part(LONG_CUT, index), 0.0)
    assert len(of(actions, Work)) == 1


def test_parts_of_another_model_do_not_stop_the_asking_for_the_right_one() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(model_part(OTHER_CUT, 0), 1.0)
    assert [want.blob for want in said(pi.tick(6.0), WantModel)] == [LONG.blob]


def test_a_model_larger_than_this_node_takes_is_declined() -> None:
    pi = joined(max_model=50)
    (decline,) = said(pi.hear(call(model=LONG), 0.0), Decline)
    assert decline.reason == f"the model has {LONG.size} bytes, this node takes 50: raise max_model"
    assert pi.stage is Stage.JOINED


def test_it_keeps_at_most_two_models_that_are_not_whole() -> None:
    pi = joined()
    for value in range(5):
        cut = Cut.of(bytes([value] * 100), 50)
        pi.hear(model_part(cut, 0), float(value))
    assert len(pi._models) == 2


# ------------------------------------------------------------------ who is asked


def test_a_node_that_is_not_asked_stays_idle() -> None:
    drawn = cohort.draw(1, (1,), [f"cloud/a/{name}" for name in ("pi", "pj", "pk")], 0.1)
    pi, pj, pk = (Participant(path=f"cloud/a/{name}", boot=1, info=info(), max_model=99) for name in ("pi", "pj", "pk"))
    busy = []
    for node in (pi, pj, pk):
        node.connected(0.0)
        actions = node.hear(call(draw=drawn), 0.0)
        busy.append(node.stage is Stage.FETCHING)
        assert notes(actions) == ([] if busy[-1] else ["not_asked"])
    assert sum(busy) == 1


def test_a_round_that_is_already_closed_is_not_worked_on() -> None:
    pi = joined()
    assert pi.hear(call(phase=Phase.CLOSED), 0.0) == []
    assert pi.stage is Stage.JOINED


# ------------------------------------------------------------------ WORKING -worked-> SENDING


def test_the_update_says_what_it_is() -> None:
    pi = working()
    actions = pi.worked("r/g1", RESULT, 9.0)
    (part,) = said(actions, UpdatePart)
    assert (part.run, part.round, part.base, part.index, part.count) == ("r", (1,), MODEL.digest, 0, 1)
    update = unpack_update(part.data)
    assert (update.run, update.round, update.base) == ("r", (1,), MODEL.digest)
    assert (update.sender, update.weight, update.payload) == (PI, 3, b"delta")
    assert said(actions, State) == [State(state=StateName.READY, boot=1)]
    assert pi.stage is Stage.SENDING


def test_the_result_of_other_work_is_not_sent() -> None:
    pi = working()
    assert pi.worked("r/g2", RESULT, 1.0) == []
    assert pi.failed("r/g2", "crashed") == []
    assert pi.stage is Stage.WORKING


@pytest.mark.parametrize("stage", [out, joined, fetching, sending, answered])
def test_a_result_that_nobody_waits_for_is_not_sent(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    assert pi.worked("r/g1", RESULT, 1.0) == []
    assert pi.failed("r/g1", "crashed") == []
    assert pi.stage is before


def test_failed_work_is_declined_with_its_reason_cut_to_fit() -> None:
    pi = working()
    actions = pi.failed("r/g1", "no data" + "." * 1000)
    (decline,) = said(actions, Decline)
    assert (decline.run, decline.round, len(decline.reason)) == ("r", (1,), 300)
    assert said(actions, State) == [State(state=StateName.READY, boot=1)]
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


def test_a_decline_is_repeated_when_the_call_is_heard_again() -> None:
    pi = working()
    first = said(pi.failed("r/g1", "no data"), Decline)
    assert said(pi.hear(call(), 20.0), Decline) == first
    assert said(pi.hear(call(), 40.0), Decline) == first
    assert of(pi.hear(call(2), 50.0), Work), "the next round is another chance"


# ------------------------------------------------------------------ SENDING -receipt-> JOINED


def test_a_receipt_ends_the_upload() -> None:
    pi = sending()
    actions = pi.hear(receipt(), 1.0)
    assert noted(actions, "accepted")["round"] == "g1"
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


def test_a_refusal_ends_it_too_and_is_noted_with_its_reason() -> None:
    pi = sending()
    actions = pi.hear(receipt(accepted=False, reason="foreign base"), 1.0)
    assert noted(actions, "refused")["reason"] == "foreign base"
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


@pytest.mark.parametrize("stage", [out, joined, fetching, working, answered])
def test_a_receipt_out_of_place_changes_nothing(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    assert notes(pi.hear(receipt(), 1.0)) == ["receipt_out_of_place"]
    assert pi.stage is before


@pytest.mark.parametrize("wrong", [receipt(2), receipt(1, 1), receipt(run="other")])
def test_a_receipt_for_another_update_changes_nothing(wrong: Receipt) -> None:
    pi = sending()
    assert notes(pi.hear(wrong, 1.0)) == ["receipt_out_of_place"]
    assert pi.stage is Stage.SENDING


def test_without_a_receipt_the_first_part_is_sent_again_as_a_probe() -> None:
    pi = sending()
    probed_at = []
    for _ in range(5):
        now = pi.next_deadline
        assert now is not None
        assert [part.index for part in said(pi.tick(now), UpdatePart)] == [0]
        probed_at.append(now)
    assert probed_at == [5.0, 15.0, 35.0, 75.0, 135.0]


def test_a_probe_goes_out_as_soon_as_the_link_is_back_or_the_call_is_heard_again() -> None:
    pi = sending()
    pi.tick(5.0)
    pi.connected(6.0)
    assert [part.index for part in said(pi.tick(6.0), UpdatePart)] == [0]
    pi.tick(16.0)
    pi.tick(21.0)  # says again that it is there
    assert pi.next_deadline == 36.0
    pi.hear(call(), 30.0)
    assert [part.index for part in said(pi.tick(30.0), UpdatePart)] == [0]


def test_a_reminder_does_not_make_it_hasty_while_parts_are_under_way() -> None:
    pi = sending()
    for now in (5.0, 15.0):
        pi.tick(now)
    assert pi.next_deadline == 35.0
    pi.hear(call(), 16.0)
    assert pi.next_deadline == 30.0


# ------------------------------------------------------------------ an update of many parts

MIB = 1024 * 1024
BIG = Contribution(payload=bytes(3 * MIB), weight=1)


def test_four_parts_go_out_and_the_others_when_they_are_wanted() -> None:
    pi = working()
    parts = said(pi.worked("r/g1", BIG, 0.0), UpdatePart)
    assert [part.index for part in parts] == [0, 1, 2, 3]
    count, blob = parts[0].count, parts[0].blob
    assert count == 13  # 3 MiB and the envelope, in parts of 256 KiB
    more = said(pi.hear(Want(blob=blob, parts=(12, 5)), 1.0), UpdatePart)
    assert [part.index for part in more] == [5, 12]
    whole = {part.index: part.data for part in parts + more}
    assert len(whole[0]) == len(whole[5]) > len(whole[12])


def test_a_want_that_repeats_a_part_gets_it_once_and_one_beyond_the_end_nothing() -> None:
    pi = sending(BIG)
    blob = said(pi.tick(5.0), UpdatePart)[0].blob
    more = said(pi.hear(Want(blob=blob, parts=(7,) * 63 + (13,)), 6.0), UpdatePart)
    assert [part.index for part in more] == [7]


def test_a_want_for_another_blob_gets_nothing() -> None:
    assert sending(BIG).hear(Want(blob="0" * 64, parts=(1,)), 1.0) == []
    assert answered().hear(Want(blob="0" * 64, parts=(1,)), 1.0) == []


def test_on_a_slow_link_it_waits_longer_before_it_probes() -> None:
    pi = sending(BIG)
    blob = said(pi.tick(5.0), UpdatePart)[0].blob
    pi.hear(Want(blob=blob, parts=(4, 5)), 16.0)
    assert pi.next_deadline == 16.0 + 2 * 16.0
    pi.hear(Want(blob=blob, parts=(6, 7)), 16.1)  # two wants at once do not make it hasty
    assert pi.next_deadline == 16.1 + 16.0


# ------------------------------------------------------------------ a newer call, a close, the end


@pytest.mark.parametrize(
    ("stage", "given_up"), [(fetching, ["given_up"]), (working, ["cancelled"]), (sending, ["given_up"])]
)
def test_a_close_drops_what_was_being_done(stage: Any, given_up: list[str]) -> None:
    pi = stage()
    is_working = pi.stage is Stage.WORKING
    actions = pi.hear(call(phase=Phase.CLOSED), 1.0)
    assert notes(actions) == given_up
    assert cancelled(actions) == (["r/g1"] if is_working else [])
    assert said(actions, State) == ([State(state=StateName.READY, boot=1)] if is_working else [])
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


@pytest.mark.parametrize("stage", [joined, fetching, working, sending, answered])
@pytest.mark.parametrize("newer", [call(2, model=LONG), call(2, 1, model=LONG), call(1, model=LONG, run="s")])
def test_a_newer_call_takes_the_place_of_what_was_being_done(stage: Any, newer: RoundCall) -> None:
    pi = stage()
    is_working = pi.stage is Stage.WORKING
    actions = pi.hear(newer, 1.0)
    assert cancelled(actions) == (["r/g1"] if is_working else [])
    assert pi.stage is Stage.FETCHING
    assert pi.call == newer


def test_the_work_is_cancelled_before_the_new_begins() -> None:
    pi = working()
    kinds = [type(action) for action in pi.hear(call(2), 1.0) if isinstance(action, CancelWork | Work)]
    assert kinds == [CancelWork, Work]


def test_the_result_of_a_cancelled_round_is_not_sent() -> None:
    pi = working()
    pi.hear(call(2, model=LONG), 1.0)
    assert pi.worked("r/g1", RESULT, 2.0) == []


@pytest.mark.parametrize("stage", [fetching, working, sending, answered])
def test_an_older_call_is_not_listened_to(stage: Any) -> None:
    pi = stage()
    pi.hear(call(3), 1.0)
    for late in (call(2), call(2, phase=Phase.CLOSED), call(1, 5)):
        assert pi.hear(late, 2.0) == []
    assert pi.call == call(3)


@pytest.mark.parametrize("stage", [fetching, working, answered])
def test_a_call_heard_twice_is_one_call(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    assert pi.hear(call(), 1.0) == []
    assert pi.stage is before


@pytest.mark.parametrize("stage", [fetching, working, sending, answered])
def test_finished_ends_the_run_and_a_late_call_of_it_is_ignored(stage: Any) -> None:
    pi = stage()
    is_working = pi.stage is Stage.WORKING
    actions = pi.hear(call(phase=Phase.FINISHED), 1.0)
    assert of(actions, RunOver) == [RunOver(run="r")]
    assert cancelled(actions) == (["r/g1"] if is_working else [])
    assert (pi.stage, pi.call) == (Stage.JOINED, None)
    for late in (call(), call(9), call(9, phase=Phase.FINISHED)):
        assert pi.hear(late, 2.0) == []
    assert pi.hear(call(run="next"), 3.0) or pi.stage is Stage.FETCHING


def test_the_end_of_an_earlier_run_ends_nothing_here() -> None:
    fresh, busy = joined(), working()
    assert fresh.hear(call(phase=Phase.FINISHED), 1.0) == []
    assert busy.hear(call(run="before", phase=Phase.FINISHED), 1.0) == []
    assert busy.stage is Stage.WORKING
    assert of(busy.hear(call(phase=Phase.FINISHED), 2.0), RunOver) == [RunOver(run="r")]


def test_a_new_run_buries_the_old_one() -> None:
    pi = working()
    pi.hear(call(run="s", model=LONG), 1.0)
    assert pi.hear(call(99), 2.0) == []
    assert pi.call is not None
    assert pi.call.run == "s"


def test_a_model_that_is_not_whole_ends_with_its_run() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(model_part(LONG_CUT, 0), 0.0)
    pi.hear(call(phase=Phase.FINISHED), 1.0)
    assert len(pi._models) == 0


def test_only_the_last_runs_are_remembered() -> None:
    pi = joined()
    for number in range(100):
        pi.hear(call(run=f"r{number}"), 0.0)
    assert len(pi._past_runs) == PAST_RUNS


# ------------------------------------------------------------------ an aggregator that was restarted


def test_a_restarted_aggregator_gets_another_answer_for_it_has_forgotten_the_first() -> None:
    pi = answered()
    actions = pi.hear(call(boot=2), 10.0)
    assert len(of(actions, Work)) == 1


def test_a_restarted_aggregator_may_begin_at_an_earlier_round() -> None:
    pi = working(call(1, 2))
    actions = pi.hear(call(1, 1, boot=2), 10.0)
    assert cancelled(actions) == ["r/g1.e2"]
    assert [work.round for work in of(actions, Work)] == [(1, 1)]


@pytest.mark.parametrize("stage", [fetching, working, sending])
def test_what_is_being_done_for_the_same_round_goes_on(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    assert pi.hear(call(boot=2), 10.0) == []
    assert pi.stage is before


def test_what_was_done_for_a_restarted_aggregator_is_not_done_again_at_its_reminder() -> None:
    pi = sending()
    pi.hear(call(boot=2), 10.0)
    pi.hear(receipt(), 11.0)
    assert of(pi.hear(call(boot=2), 12.0), Work) == []


def test_a_restarted_aggregator_with_another_model_gets_other_work() -> None:
    pi = working()
    actions = pi.hear(call(boot=2, model=LONG), 10.0)
    assert cancelled(actions) == ["r/g1"]
    assert pi.stage is Stage.FETCHING


def test_a_receipt_for_another_base_is_not_ours() -> None:
    pi = sending()
    pi.hear(Receipt(run="r", round=(1,), base=LONG.digest, accepted=True), 1.0)
    assert pi.stage is Stage.SENDING


def test_a_parent_that_is_gone_is_probed_ten_times_and_its_next_call_wakes_the_upload() -> None:
    pi = sending()
    parts = 0
    while (now := pi.next_deadline) is not None:
        parts += len(said(pi.tick(now), UpdatePart))
    assert parts == 10
    pi.hear(call(), 5000.0)
    assert pi.next_deadline == 5000.0
    assert len(said(pi.tick(5000.0), UpdatePart)) == 1


def test_while_the_link_is_down_nothing_is_put_in_line() -> None:
    pi = sending()
    pi.lost()
    waits = [pi.next_deadline]
    assert pi.tick(1e6) == []
    pi.connected(2e6)
    assert [*waits, pi.next_deadline] == [None, 2e6]
    assert len(said(pi.tick(2e6), UpdatePart)) == 1


# ------------------------------------------------------------------ whatever comes


def test_it_is_never_without_a_deadline_while_it_fetches() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(ModelPart(blob=LONG.blob, index=1, count=2, size=3, data=b"x"), 1.0)
    for _ in range(100):
        now = pi.next_deadline
        assert now is not None
        pi.tick(now)
        assert pi.next_deadline is not None
        assert pi.next_deadline > now


def test_a_clock_that_jumps_back_only_makes_it_wait() -> None:
    pi = fetching(call(model=LONG))
    pi.hear(model_part(LONG_CUT, 0), 1000.0)
    pi.hear(call(model=LONG), 0.0)
    assert pi.tick(0.0) == []
    for index in range(1, LONG_CUT.count):
        actions = pi.hear(model_part(LONG_CUT, index), 1.0)
    assert len(of(actions, Work)) == 1


# ------------------------------------------------------------------ a round that is called again


def test_who_declined_tries_again_when_the_round_is_called_again() -> None:
    pi = working()
    pi.failed("r/g1", "no data yet")
    (work,) = of(pi.hear(call(attempt=1), 9.0), Work)
    assert work.round == (1,)
    pi.failed(work.work_id, "still none")
    assert said(pi.hear(call(attempt=1), 10.0), Decline)[0].reason == "still none"


def test_who_was_refused_tries_again_too_and_who_was_accepted_does_not() -> None:
    refused, accepted = sending(), sending()
    refused.hear(receipt(accepted=False, reason="NaN"), 1.0)
    accepted.hear(receipt(), 1.0)
    assert of(refused.hear(call(attempt=1), 9.0), Work)
    assert accepted.hear(call(attempt=1), 9.0) == []


@pytest.mark.parametrize("busy", [fetching, working, sending])
def test_what_is_being_done_goes_on_when_the_round_is_called_again(busy: Any) -> None:
    pi = busy()
    stage = pi.stage
    assert of(pi.hear(call(attempt=1), 1.0), Work) == []
    assert pi.stage is stage
