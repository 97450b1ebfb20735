import hashlib
from dataclasses import replace
from typing import Any

import pytest

from hfl_mqtt.protocol.messages import (
    AUTO,
    Announce,
    Decline,
    Draw,
    Info,
    Kind,
    Moving,
    Phase,
    Receipt,
    RoundCall,
    State,
    StateName,
    UpdatePart,
    Want,
)
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds import cohort, ladder
from hfl_mqtt.rounds.actions import Action, CancelWork, Contribution, Counted, Fetch, Persist, RunOver, Work
from hfl_mqtt.rounds.participant import PAST_RUNS, Participant, Stage
from tests.unit.rounds.trees import (
    CODEC,
    MATH,
    PLAN,
    delta_parts,
    info,
    key_parts,
    noted,
    notes,
    of,
    offered,
    said,
    values,
    weights,
)

PI = "cloud/a/pi"
OFFER = offered(weights(1.0, 2.0))
MODEL, KEY = OFFER.manifest, key_parts(OFFER)[0]
#: The same model one step further.
STEPPED = offered(weights(1.0, 2.0), weights(3.0, 4.0))
NEXT, DELTA = STEPPED.manifest, delta_parts(STEPPED, 1)[0]
MIB = 1024 * 1024
RESULT = Contribution(payload=b"delta", weight=3)
PAYLOAD = hashlib.sha256(b"delta").hexdigest()[:16]


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
            "unasked": 4 * MIB,
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
    pi.hear(KEY, 0.0)
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
    return Receipt(run=run, round=round_id or (1,), base=MODEL.digest[:16], accepted=accepted, reason=reason)


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


def test_that_it_trains_is_told_when_it_takes_five_seconds_and_that_it_rests_after_half_a_minute() -> None:
    pi = working()
    assert said(pi.tick(4.9), State) == []
    deadlines = [pi.next_deadline]
    assert said(pi.tick(5.0), State) == [State(state=StateName.TRAINING, boot=1)]
    assert [*deadlines, pi.next_deadline] == [5.0, None]
    assert said(pi.worked("r/g1", RESULT, 9.0), State) == []
    pi.hear(receipt(), 10.0)
    assert pi.next_deadline == 39.0
    assert said(pi.tick(39.0), State) == [State(state=StateName.READY, boot=1)]


def test_from_round_to_round_it_says_nothing_new_of_itself_until_the_run_is_over() -> None:
    pi = working()
    states = said(pi.tick(5.0), State)
    states += said(pi.worked("r/g1", RESULT, 20.0), State)
    states += said(pi.hear(receipt(), 21.0), State)
    states += said(pi.hear(call(2, model=NEXT), 22.0), State)
    states += said(pi.hear(DELTA, 23.0), State)
    states += said(pi.tick(60.0), State)
    assert (pi.stage, states) == (Stage.WORKING, [State(state=StateName.TRAINING, boot=1)])
    over = pi.hear(call(2, model=NEXT, phase=Phase.FINISHED), 70.0)
    assert said(over, State) == [State(state=StateName.READY, boot=1)]


def test_of_work_that_takes_less_than_five_seconds_nobody_hears() -> None:
    pi = working()
    assert said(pi.worked("r/g1", RESULT, 4.0), State) == []
    assert said(pi.tick(5.0), State) == []


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
    assert pi.hear(call(1, 2), 0.0) == [Fetch(slots=("0",), is_key=True)]
    (work,) = pi.hear(KEY, 1.0)
    assert isinstance(work, Work)
    assert (work.work_id, work.run, work.round, work.plan, work.codec) == ("r/g1.e2", "r", (1, 2), PLAN, CODEC)
    assert (work.model.version, work.model.digest[:16]) == (0, MODEL.digest)
    assert values(MATH.weights(work.model)) == [1.0, 2.0]
    assert work.seed == cohort.lot(PLAN.seed, (1, 2), PI)
    assert pi.stage is Stage.WORKING


def test_the_next_model_is_worked_on_when_its_delta_is_here() -> None:
    pi = answered()
    assert pi.hear(call(2, model=NEXT), 2.0) == []
    (work,) = of(pi.hear(DELTA, 2.1), Work)
    assert values(MATH.weights(work.model)) == [4.0, 6.0]


def test_a_delta_may_come_before_its_call() -> None:
    pi = answered()
    assert pi.hear(DELTA, 2.0) == []
    assert len(of(pi.hear(call(2, model=NEXT), 2.1), Work)) == 1


def test_a_delta_that_comes_while_it_still_works_is_there_for_the_next_call() -> None:
    pi = working()
    assert pi.hear(DELTA, 2.0) == []
    assert pi.stage is Stage.WORKING
    pi.worked("r/g1", RESULT, 3.0)
    pi.hear(receipt(), 3.0)
    assert len(of(pi.hear(call(2, model=NEXT), 4.0), Work)) == 1


def test_the_model_of_the_last_round_need_not_be_sent_again() -> None:
    pi = answered()
    assert len(of(pi.hear(call(2), 2.0), Work)) == 1


def test_a_keyframe_that_the_work_made_of_a_long_chain_takes_its_place() -> None:
    pi = answered()
    pi.hear(call(2, model=NEXT), 2.0)
    (work,) = of(pi.hear(DELTA, 2.1), Work)
    short = MATH.shorten(work.model)
    pi.worked("r/g2", replace(RESULT, keyframe=short), 3.0)
    assert pi.chain is not None
    assert (pi.chain.keyframe, pi.chain.links, pi.chain.manifest.digest) == (short, [], NEXT.digest)


@pytest.mark.parametrize("is_key", [True, False])
def test_a_model_larger_than_this_node_takes_is_declined(is_key: bool) -> None:
    pi = joined(max_model=8)
    pi.hear(call(model=NEXT), 0.0)
    part = replace(KEY if is_key else DELTA, size=10**6, count=4, data=bytes(250_000))
    (decline,) = said(pi.hear(part, 0.0), Decline)
    assert decline.reason == "the model has 1000000 bytes, this node takes 8: raise max_model"
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)
    assert pi.hear(part, 1.0) == []  # its other parts need no second answer


def test_a_model_is_measured_by_its_values_and_not_by_what_its_keyframe_says_beside_them() -> None:
    assert len(KEY.data) > 8
    pi = joined(max_model=8)
    pi.hear(call(), 0.0)
    assert of(pi.hear(KEY, 0.0), Work)
    pi = joined(max_model=7)
    pi.hear(call(), 0.0)
    (decline,) = said(pi.hear(KEY, 0.0), Decline)
    assert decline.reason == "the model has 8 bytes, this node takes 7: raise max_model"


# ------------------------------------------------------------------ what is slow


def moving(pi: Participant, now: float) -> bool:
    return bool(said(pi.watch(now), Moving))


def test_while_a_model_keeps_coming_the_parent_is_told_every_ten_seconds() -> None:
    pi = joined()
    pi.hear(call(), 0.0)
    parts = key_parts(OFFER, 10)
    told = []
    for now in range(31):
        if now % 2:
            pi.hear(parts[now // 2 % 3], float(now))
        told += [now] if moving(pi, float(now)) else []
    assert told == [10, 20, 30]
    assert pi.next_deadline is not None
    assert pi.next_deadline <= 40.0


def test_a_model_of_ten_seconds_is_not_told_of() -> None:
    pi = joined()
    pi.hear(call(), 0.0)
    parts = key_parts(OFFER, 10)
    for index, part in enumerate(parts):
        assert not moving(pi, 9.0 * index / len(parts))
        pi.hear(part, 9.0 * index / len(parts))
    assert pi.stage is Stage.WORKING
    assert not moving(pi, 20.0)
    assert not moving(pi, 40.0)


def test_a_model_of_which_nothing_comes_is_not_told_of() -> None:
    pi = fetching()
    assert [moving(pi, now) for now in (0.0, 20.0, 40.0)] == [False] * 3


def test_nothing_is_told_over_a_link_that_is_down() -> None:
    pi = joined()
    pi.hear(call(), 0.0)
    pi.hear(key_parts(OFFER, 10)[0], 0.0)
    moving(pi, 0.0)
    pi.lost()
    assert not moving(pi, 15.0)


def test_who_works_is_not_moving_unless_its_children_are() -> None:
    pi = working()
    assert [moving(pi, now) for now in (0.0, 20.0)] == [False, False]
    pi.moving_below_since = lambda now: 25.0 if now < 50.0 else None
    assert [now for now in range(25, 70) if moving(pi, float(now))] == [35, 45]


def test_a_model_that_cannot_be_used_is_fetched_from_its_keyframe() -> None:
    pi = answered()
    pi.hear(call(2, model=NEXT), 2.0)
    pi.hear(DELTA, 2.1)
    fetches = of(pi.fetch_anew(3.0), Fetch)
    assert [(fetch.is_key, len(fetch.slots)) for fetch in fetches] == [(True, 1), (False, 1)]
    assert pi.stage is Stage.FETCHING
    pi.hear(DELTA, 3.1)
    (work,) = of(pi.hear(KEY, 3.2), Work)
    assert (work.model.digest[:16], len(work.model.deltas)) == (NEXT.digest, 1)


def test_where_the_codec_is_auto_it_takes_a_rung_and_says_which_and_why() -> None:
    pi = working(call(codec=AUTO))
    assert pi.choice is not None
    assert (pi.choice.codec, pi.choice.reason) == (ladder.FIRST, "goodput not known yet, no budget")
    pi.worked("r/g1", Contribution(payload=bytes(1000), weight=1), 10.0)
    pi.hear(receipt(), 12.0)
    assert pi.goodput is not None
    assert 500 < pi.goodput < 550  # a thousand bytes and their head in two seconds
    (work,) = of(pi.hear(call(2, codec=AUTO), 13.0), Work)
    assert work.codec == pi.choice.codec == ladder.CODECS[0]  # all of eight bytes
    (work,) = of(pi.hear(call(3, codec=AUTO, budget=10), 14.0), Work)
    assert work.codec == ladder.CODECS[-1]
    assert "budget 0.01 kB" in pi.choice.reason


def test_the_time_that_an_update_waits_for_a_slot_does_not_slow_its_link_down() -> None:
    pi = working(call(unasked=10))
    (said_first,) = said(pi.worked("r/g1", RESULT, 0.0), Announce)
    pi.hear(Want(blob=said_first.blob, parts=(0,)), 100.0)
    pi.hear(receipt(), 101.0)
    assert pi.goodput == said_first.size / 1.0


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
    assert (part.run, part.round, part.base, part.index, part.count) == ("r", (1,), MODEL.digest[:16], 0, 1)
    update = unpack_update(part.data)
    assert (update.weight, bytes(update.payload)) == (3, b"delta")
    assert pi.stage is Stage.SENDING


def test_the_result_of_other_work_is_not_sent() -> None:
    pi = working()
    assert pi.worked("r/g2", RESULT, 1.0) == []
    assert pi.failed("r/g2", "crashed", 9.0) == []
    assert pi.stage is Stage.WORKING


@pytest.mark.parametrize("stage", [out, joined, fetching, sending, answered])
def test_a_result_that_nobody_waits_for_is_not_sent(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    assert pi.worked("r/g1", RESULT, 1.0) == []
    assert pi.failed("r/g1", "crashed", 9.0) == []
    assert pi.stage is before


def test_failed_work_is_declined_with_its_reason_cut_to_fit() -> None:
    pi = working()
    pi.tick(5.0)
    actions = pi.failed("r/g1", "no data" + "." * 1000, 9.0)
    (decline,) = said(actions, Decline)
    assert (decline.run, decline.round, len(decline.reason)) == ("r", (1,), 300)
    assert said(actions, State) == []
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, 39.0)
    assert said(pi.tick(39.0), State) == [State(state=StateName.READY, boot=1)]


def test_a_decline_is_repeated_when_the_call_is_heard_again() -> None:
    pi = working()
    first = said(pi.failed("r/g1", "no data", 9.0), Decline)
    assert said(pi.hear(call(), 20.0), Decline) == first
    assert said(pi.hear(call(), 40.0), Decline) == first
    assert of(pi.hear(call(2), 50.0), Work), "the next round is another chance"


# ------------------------------------------------------------------ SENDING -receipt-> JOINED


def test_a_receipt_ends_the_upload_and_its_work_has_counted() -> None:
    pi = sending()
    actions = pi.hear(receipt(), 1.0)
    assert of(actions, Counted) == [Counted(work_id="r/g1", payload=PAYLOAD)]
    assert noted(actions, "accepted")["round"] == "g1"
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


def test_a_refusal_ends_it_too_and_is_noted_with_its_reason() -> None:
    pi = sending()
    actions = pi.hear(receipt(accepted=False, reason="foreign base"), 1.0)
    assert of(actions, Counted) == []
    assert noted(actions, "refused")["reason"] == "foreign base"
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


@pytest.mark.parametrize("stage", [out, joined, fetching, working, answered])
def test_a_receipt_out_of_place_changes_nothing(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    actions = pi.hear(receipt(), 1.0)
    assert (notes(actions), len(actions)) == (["receipt_out_of_place"], 1)
    assert pi.stage is before


def test_a_receipt_that_the_close_or_the_next_call_overtook_still_counts_and_once() -> None:
    closed, called = sending(), sending()
    closed.hear(call(phase=Phase.CLOSED), 1.0)
    called.hear(call(2, model=NEXT), 1.0)
    for pi in (closed, called):
        assert of(pi.hear(receipt(), 1.1), Counted) == [Counted(work_id="r/g1", payload=PAYLOAD)]
        assert of(pi.hear(receipt(), 1.2), Counted) == []


def test_a_refusal_that_the_close_overtook_does_not_count() -> None:
    pi = sending()
    pi.hear(call(phase=Phase.CLOSED), 1.0)
    assert of(pi.hear(receipt(accepted=False), 1.1), Counted) == []


def test_a_receipt_of_an_earlier_round_does_not_cost_the_last_one_its_own() -> None:
    pi = answered()
    pi.hear(call(2), 2.0)
    pi.worked("r/g2", RESULT, 3.0)
    assert of(pi.hear(receipt(1), 3.1), Counted) == []
    pi.hear(call(2, phase=Phase.CLOSED), 3.2)
    assert of(pi.hear(receipt(2), 3.3), Counted) == [Counted(work_id="r/g2", payload=PAYLOAD)]


def test_once_the_next_work_has_begun_with_the_old_residual_a_late_receipt_counts_no_more() -> None:
    pi = sending()
    assert of(pi.hear(call(2), 1.0), Work)
    assert of(pi.hear(receipt(), 1.1), Counted) == []


def test_an_evaluation_has_coded_nothing_so_nothing_counts() -> None:
    scored, late = (working(call(plan=replace(PLAN, kind=Kind.EVALUATE))) for _ in range(2))
    for pi in (scored, late):
        pi.worked("r/g1", Contribution(payload=b"", weight=0), 1.0)
    late.hear(call(phase=Phase.CLOSED, plan=replace(PLAN, kind=Kind.EVALUATE)), 1.5)
    assert of(scored.hear(receipt(), 2.0), Counted) == []
    assert of(late.hear(receipt(), 2.0), Counted) == []


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

BIG = Contribution(payload=bytes(3 * MIB + 1), weight=1)


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
    assert sending(BIG).hear(Want(blob="0" * 16, parts=(1,)), 1.0) == []
    assert answered().hear(Want(blob="0" * 16, parts=(1,)), 1.0) == []


def test_on_a_slow_link_it_waits_longer_before_it_probes() -> None:
    pi = sending(BIG)
    blob = said(pi.tick(5.0), UpdatePart)[0].blob
    pi.hear(Want(blob=blob, parts=(4, 5)), 16.0)
    assert pi.next_deadline == 16.0 + 2 * 16.0
    pi.hear(Want(blob=blob, parts=(6, 7)), 16.1)  # two wants at once do not make it hasty
    assert pi.next_deadline == 16.1 + 16.0


# ------------------------------------------------------------------ an update that waits for a slot


def waiting() -> tuple[Participant, Announce]:
    pi = working(call(unasked=10))
    (first,) = said(pi.worked("r/g1", BIG, 0.0), Announce)
    return pi, first


def test_an_update_larger_than_the_call_allows_is_announced_and_not_sent() -> None:
    pi = working(call(unasked=3 * MIB))
    actions = pi.worked("r/g1", BIG, 0.0)
    assert said(actions, UpdatePart) == []
    (first,) = said(actions, Announce)
    assert (first.run, first.round, first.base, first.count) == ("r", (1,), MODEL.digest[:16], 13)
    assert 3 * MIB < first.size < 3 * MIB + 100
    small = working(call(unasked=3 * MIB + 100))
    assert len(said(small.worked("r/g1", BIG, 0.0), UpdatePart)) == 4


def test_the_parts_go_out_when_they_are_wanted() -> None:
    pi, first = waiting()
    parts = said(pi.hear(Want(blob=first.blob, parts=(0, 1)), 100.0), UpdatePart)
    assert [part.index for part in parts] == [0, 1]
    assert [part.index for part in said(pi.tick(pi.next_deadline or 0.0), UpdatePart)] == [0]  # a probe from now on


def test_until_it_has_a_slot_it_announces_itself_ever_more_seldom_and_never_stops() -> None:
    pi, first = waiting()
    at = []
    for _ in range(15):
        now = pi.next_deadline
        assert now is not None
        assert said(pi.tick(now), Announce) == [first]
        at.append(now)
    assert at[:6] == [5.0, 15.0, 35.0, 75.0, 135.0, 195.0]


def test_an_announced_update_may_have_its_receipt_without_a_slot() -> None:
    pi, _ = waiting()
    pi.hear(receipt(accepted=False, reason="too large"), 1.0)
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, None)


# ------------------------------------------------------------------ what was moved for an update


def test_an_update_says_the_bytes_moved_since_the_last_one_that_was_accepted() -> None:
    pi = joined()
    moved = (100, 10)
    pi.meter = lambda: moved

    def sent(work_id: str, result: Contribution = RESULT) -> tuple[int, int]:
        (part,) = said(pi.worked(work_id, result, 1.0), UpdatePart)
        update = unpack_update(part.data)
        return update.sent, update.received

    pi.hear(call(), 0.0)
    pi.hear(KEY, 0.0)
    assert sent("r/g1", replace(RESULT, sent=7, received=5)) == (107, 15)
    pi.hear(receipt(accepted=False), 1.0)
    moved = (150, 30)
    pi.hear(call(2), 2.0)
    assert sent("r/g2") == (150, 30)  # what was refused was moved all the same
    pi.hear(receipt(2), 3.0)
    moved = (180, 31)
    pi.hear(call(3), 4.0)
    assert sent("r/g3") == (30, 1)


# ------------------------------------------------------------------ a newer call, a close, the end


@pytest.mark.parametrize(
    ("stage", "given_up"), [(fetching, ["given_up"]), (working, ["cancelled"]), (sending, ["given_up"])]
)
def test_a_close_drops_what_was_being_done(stage: Any, given_up: list[str]) -> None:
    pi = stage()
    is_working = pi.stage is Stage.WORKING
    if is_working:
        pi.tick(5.0)
    actions = pi.hear(call(phase=Phase.CLOSED), 6.0)
    assert notes(actions) == given_up
    assert (cancelled(actions), of(actions, Counted)) == (["r/g1"] if is_working else [], [])
    assert said(actions, State) == []
    assert (pi.stage, pi.next_deadline) == (Stage.JOINED, 36.0 if is_working else None)


@pytest.mark.parametrize("stage", [joined, fetching, working, sending, answered])
@pytest.mark.parametrize("newer", [call(2, model=NEXT), call(2, 1, model=NEXT), call(1, model=NEXT, run="s")])
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
    pi.hear(call(2, model=NEXT), 1.0)
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
    pi.hear(call(run="s", model=NEXT), 1.0)
    assert pi.hear(call(99), 2.0) == []
    assert pi.call is not None
    assert pi.call.run == "s"


def test_a_model_ends_with_its_run() -> None:
    pi = answered()
    pi.hear(DELTA, 0.5)
    pi.hear(call(phase=Phase.FINISHED), 1.0)
    assert pi.chain is None
    assert pi.following._loose == {}


def test_only_the_last_runs_are_remembered() -> None:
    pi = joined()
    for number in range(100):
        pi.hear(call(run=f"r{number}"), 0.0)
    assert len(pi._past_runs) == PAST_RUNS


# ------------------------------------------------------------------ an aggregator that was restarted


def test_a_restarted_aggregator_that_has_forgotten_the_update_gets_the_same_again_and_nobody_trains_twice() -> None:
    pi = sending()
    sent = said(pi.tick(5.0), UpdatePart)
    assert of(pi.hear(receipt(), 6.0), Counted)
    actions = pi.hear(call(boot=2), 10.0)
    assert (of(actions, Work), said(actions, UpdatePart)) == ([], sent)
    assert pi.stage is Stage.SENDING
    counted = Counted(work_id="r/g1", payload=PAYLOAD)
    assert of(pi.hear(receipt(), 11.0), Counted) == [counted], "the same coding error as before"


def test_who_declined_or_was_refused_by_an_aggregator_that_was_restarted_tries_again() -> None:
    declined, refused = working(), sending()
    declined.failed("r/g1", "no data yet", 1.0)
    refused.hear(receipt(accepted=False, reason="NaN"), 1.0)
    for pi in (declined, refused):
        assert len(of(pi.hear(call(boot=2), 10.0), Work)) == 1


def test_a_call_of_a_lower_boot_is_out_of_date_and_not_heard() -> None:
    pi = fetching(call(boot=5))
    for late in (call(2, boot=4), call(1, boot=4), call(1, boot=4, phase=Phase.CLOSED), call(phase=Phase.FINISHED)):
        assert notes(pi.hear(late, 1.0)) == ["out_of_date"]
    assert (pi.call, pi.stage) == (call(boot=5), Stage.FETCHING)


def test_a_restarted_aggregator_may_begin_at_an_earlier_round() -> None:
    pi = working(call(1, 2))
    actions = pi.hear(call(1, 1, boot=2), 10.0)
    assert cancelled(actions) == ["r/g1.e2"]
    assert [work.round for work in of(actions, Work)] == [(1, 1)]


def test_a_restarted_aggregator_that_begins_at_a_round_that_counted_before_gets_a_new_update_of_it() -> None:
    pi = answered()
    pi.hear(call(2), 2.0)
    assert of(pi.hear(call(boot=2), 10.0), Work)
    assert len(said(pi.worked("r/g1", RESULT, 11.0), UpdatePart)) == 1
    assert of(pi.hear(receipt(), 12.0), Counted)


@pytest.mark.parametrize("stage", [fetching, working, sending])
def test_what_is_being_done_for_the_same_round_goes_on(stage: Any) -> None:
    pi = stage()
    before = pi.stage
    actions = pi.hear(call(boot=2), 10.0)
    assert [each for each in actions if not isinstance(each, Persist)] == []
    assert pi.stage is before


def test_another_aggregator_in_its_place_gets_the_update_at_once() -> None:
    pi = sending()
    pi.tick(5.0)
    pi.hear(call(boot=2), 6.0)
    assert len(said(pi.tick(6.0), UpdatePart)) == 1


def test_what_was_done_for_a_restarted_aggregator_is_not_done_again_at_its_reminder() -> None:
    pi = sending()
    pi.hear(call(boot=2), 10.0)
    pi.hear(receipt(), 11.0)
    assert of(pi.hear(call(boot=2), 12.0), Work) == []


def test_a_restarted_aggregator_with_another_model_gets_other_work() -> None:
    pi = working()
    actions = pi.hear(call(boot=2, model=NEXT), 10.0)
    assert cancelled(actions) == ["r/g1"]
    assert pi.stage is Stage.FETCHING


def test_a_receipt_for_another_base_is_not_ours() -> None:
    pi = sending()
    pi.hear(Receipt(run="r", round=(1,), base=NEXT.digest[:16], accepted=True), 1.0)
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


# ------------------------------------------------------------------ an aggregator that begins at an earlier round again


def test_a_call_of_an_earlier_round_and_a_higher_number_is_the_newer_one() -> None:
    pi = working(call(1, 2, number=2))
    assert pi.hear(call(1, 3, number=1), 1.0) == []
    actions = pi.hear(call(1, 1, number=3), 2.0)
    assert (cancelled(actions), [work.round for work in of(actions, Work)]) == (["r/g1.e2"], [(1, 1)])
    assert pi.hear(call(1, 2, number=2), 3.0) == []


def test_an_update_that_counted_in_a_round_that_came_to_nothing_is_sent_again() -> None:
    pi = answered()
    sent = pi.hear(call(number=2), 2.0)  # whatever was between
    assert (len(said(sent, UpdatePart)), of(sent, Work)) == (1, [])
    pi.hear(receipt(), 3.0)
    pi.hear(call(2, number=3, model=NEXT), 4.0)
    sent = pi.hear(call(number=4), 5.0)
    assert (len(said(sent, UpdatePart)), of(sent, Work)) == (1, [])


@pytest.mark.parametrize("old", [{"boot": 3, "number": 9}, {"boot": 4, "number": 6}])
@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.CLOSED, Phase.FINISHED])
def test_a_call_of_a_run_that_was_over_before_this_one_began_ends_nothing(old: dict[str, int], phase: Phase) -> None:
    """All calls of a parent stand in one order, whatever their run: who says an old one again expels nobody."""
    pi = working(call(7, boot=4, number=7))
    told = pi.hear(call(3, phase=phase, run="last-year", **old), 1.0)
    assert notes(told) == ["out_of_date"]
    assert pi.stage is Stage.WORKING
    actions = pi.hear(call(8, boot=4, number=8, model=NEXT), 2.0)
    assert (cancelled(actions), pi.stage) == (["r/g7"], Stage.FETCHING)


def test_a_new_run_of_a_parent_that_was_not_restarted_goes_on_counting_its_calls() -> None:
    pi = working(call(7, run="r", boot=4, number=7))
    pi.hear(call(1, run="s", boot=4, number=8, model=NEXT), 1.0)
    assert pi.working_for is not None
    assert pi.working_for.run == "s"


# ------------------------------------------------------------------ a round that is called again


def test_who_declined_tries_again_when_the_round_is_called_again() -> None:
    pi = working()
    pi.failed("r/g1", "no data yet", 9.0)
    (work,) = of(pi.hear(call(attempt=1), 9.0), Work)
    assert work.round == (1,)
    pi.failed(work.work_id, "still none", 9.0)
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


def test_a_round_that_closed_without_a_result_and_is_opened_once_more_gets_the_same_update_again() -> None:
    pi, given_up = answered(), sending()
    for each in (pi, given_up):
        each.hear(call(phase=Phase.CLOSED, attempt=2), 9.0)
        assert each.hear(call(attempt=2), 9.5) == [], "an old call that comes late"
        actions = each.hear(call(attempt=3), 10.0)
        assert (len(said(actions, UpdatePart)), of(actions, Work)) == (1, [])
