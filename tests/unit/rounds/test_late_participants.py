"""Late is not lost: work is finished before newer work begins, and held back while nobody takes what it gave."""

from dataclasses import replace
from typing import Any

import pytest

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.messages import (
    Assign,
    Decline,
    Kind,
    Late,
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
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Connected,
    Contribution,
    Counted,
    Lost,
    Move,
    Persist,
    Received,
    RunOver,
    Send,
    Work,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.participant import HOME, MOVE_S, Participant, Stage
from tests.unit.rounds.test_participant import KEY, MODEL, PI, RESULT, call, cancelled, receipt
from tests.unit.rounds.trees import PLAN, info, noted, notes, of, said

OTHER = Contribution(payload=b"other", weight=5)


def late_call(*round_id: int, **fields: Any) -> RoundCall:
    return call(*round_id, **{"late": Late.NEXT, **fields})


def working(heard: RoundCall | None = None, **options: Any) -> Participant:
    pi = Participant(path=PI, boot=1, info=info(), max_model=2**20, **options)
    pi.connected(0.0)
    pi.hear(heard or late_call(), 0.0)
    pi.hear(KEY, 0.0)
    assert pi.stage is Stage.WORKING
    return pi


def sending(heard: RoundCall | None = None, **options: Any) -> Participant:
    pi = working(heard, **options)
    assert pi.work_id is not None
    pi.worked(pi.work_id, RESULT, 0.0)
    return pi


def joined(own: int, newest: int, *, accepted: bool = True) -> Receipt:
    return replace(receipt(own, accepted=accepted), joined=(newest,) if accepted else None)


def sent(actions: list[Action]) -> list[tuple[tuple[int, ...], str]]:
    return [(part.round, part.base) for part in said(actions, UpdatePart)]


# ------------------------------------------------------------------ late updates


@pytest.mark.parametrize("late", [Late.NEXT, Late.DISCOUNT])
def test_work_goes_on_when_a_newer_round_begins_and_its_update_joins_that_round(late: Late) -> None:
    pi = working(late_call(late=late))
    assert pi.hear(late_call(phase=Phase.CLOSED, late=late), 1.0) == []
    assert pi.hear(late_call(2, late=late), 2.0) == []
    assert sent(pi.worked("r/g1", RESULT, 3.0)) == [((1,), MODEL.digest)]
    actions = pi.hear(joined(1, 2), 4.0)
    assert [each.work_id for each in of(actions, Counted)] == ["r/g1"]
    assert (of(actions, Work), pi.stage) == ([], Stage.JOINED), "it has its part in this round"
    assert pi.hear(late_call(2, late=late), 5.0) == []
    assert of(pi.hear(late_call(3, late=late), 6.0), Work)


def test_where_its_update_is_refused_it_begins_the_newest_round_at_once() -> None:
    pi = working()
    for number in (2, 3):
        pi.hear(late_call(number), 1.0)
    pi.worked("r/g1", RESULT, 2.0)
    (work,) = of(pi.hear(joined(1, 3, accepted=False), 3.0), Work)
    assert work.round == (3,)


def test_an_update_that_counted_in_its_own_round_does_not_stand_for_the_newest() -> None:
    pi = sending()
    pi.hear(late_call(2), 1.0)
    actions = pi.hear(receipt(1), 2.0)  # given before round 2 was opened, and it comes late
    assert [work.round for work in of(actions, Work)] == [(2,)]


def test_while_no_round_is_open_an_update_is_held_back_and_goes_out_with_the_next_call() -> None:
    pi = working()
    pi.hear(late_call(phase=Phase.CLOSED), 1.0)
    assert sent(pi.worked("r/g1", RESULT, 2.0)) == []
    assert (pi.stage, pi.is_untouched, pi.next_deadline) == (Stage.SENDING, True, None)
    assert pi.hear(Want(blob=pi.letter.blob if pi.letter else "", parts=(0,)), 3.0) == []
    assert sent(pi.hear(late_call(2), 4.0)) == [((1,), MODEL.digest)]


def test_an_update_whose_round_closes_while_it_is_sent_is_probed_for_in_the_next() -> None:
    pi = sending()
    assert pi.hear(late_call(phase=Phase.CLOSED), 1.0) == []
    assert pi.next_deadline is None
    pi.hear(late_call(2), 9.0)
    assert sent(pi.tick(9.0)) == [((1,), MODEL.digest)]


def test_a_round_that_is_opened_once_more_takes_its_own_update_in_time() -> None:
    pi = working()
    pi.hear(late_call(phase=Phase.CLOSED), 1.0)
    pi.hear(late_call(attempt=1), 2.0)
    assert sent(pi.worked("r/g1", RESULT, 3.0)) == [((1,), MODEL.digest)]
    assert notes(pi.hear(receipt(1), 4.0)) == ["accepted"]


def test_a_model_that_is_still_fetched_is_given_up_for_the_newest() -> None:
    pi = Participant(path=PI, boot=1, info=info(), max_model=2**20)
    pi.connected(0.0)
    pi.hear(late_call(), 0.0)
    assert notes(pi.hear(late_call(2), 1.0)) == ["given_up"]
    assert pi.call == late_call(2)


@pytest.mark.parametrize(
    "newer",
    [
        call(2),  # late updates are dropped there
        late_call(2, plan=replace(PLAN, kind=Kind.EVALUATE)),
        late_call(run="s"),
    ],
)
def test_what_could_not_join_is_cancelled(newer: RoundCall) -> None:
    pi = working()
    actions = pi.hear(newer, 1.0)
    assert cancelled(actions) == ["r/g1"]
    assert pi.call == newer


def test_late_work_that_gives_nothing_declines_nothing_and_the_newest_begins() -> None:
    pi = working()
    pi.hear(late_call(2), 1.0)
    actions = pi.failed("r/g1", "no data", 2.0)
    assert said(actions, Decline) == []
    assert [work.round for work in of(actions, Work)] == [(2,)]


def test_a_restarted_aggregator_with_a_newer_round_does_not_cost_the_work() -> None:
    pi = working()
    assert pi.hear(late_call(2, boot=3), 1.0) == []
    assert sent(pi.worked("r/g1", RESULT, 2.0)) == [((1,), MODEL.digest)]


def test_one_that_forgot_and_begins_at_an_earlier_round_gets_other_work() -> None:
    pi = working(late_call(1, 2))
    actions = pi.hear(late_call(1, 1, boot=3), 1.0)
    assert (cancelled(actions), [work.round for work in of(actions, Work)]) == (["r/g1.e2"], [(1, 1)])


# ------------------------------------------------------------------ a bridge that is down


def test_while_the_bridge_is_down_nothing_goes_up_and_then_what_is_due() -> None:
    pi = working()
    assert pi.bridged(False, 1.0) == []
    assert next(type(action) for action in pi.worked("r/g1", RESULT, 2.0)) is Persist, "durable all the same"
    assert (said(pi.tick(100.0), UpdatePart), pi.is_untouched) == ([], True)
    assert sent(pi.bridged(True, 200.0)) == [((1,), MODEL.digest)]
    assert not pi.is_untouched
    pi.bridged(False, 201.0)
    assert sent(pi.tick(300.0)) == []
    pi.bridged(True, 400.0)
    assert sent(pi.tick(400.0)) == [((1,), MODEL.digest)]


def test_a_decline_waits_for_the_bridge() -> None:
    pi = working()
    pi.bridged(False, 1.0)
    assert said(pi.failed("r/g1", "no data", 2.0), Decline) == []
    assert said(pi.hear(late_call(), 3.0), Decline) == []
    (decline,) = said(pi.bridged(True, 4.0), Decline)
    assert decline.reason == "no data"


def test_it_does_not_ask_a_parent_for_parts_that_cannot_hear_it() -> None:
    pi = Participant(path=PI, boot=1, info=info(), max_model=2**20)
    pi.connected(0.0)
    pi.hear(late_call(), 0.0)
    pi.bridged(False, 1.0)
    assert [said(pi.tick(now), WantModel) for now in (3.0, 9.0, 21.0)] == [[], [], []]
    pi.bridged(True, 30.0)
    assert said(pi.tick(100.0), WantModel)


def offline(*, is_sent: bool) -> Participant:
    """Return one whose update is in the outbox when the bridge goes down: sent without a receipt, or held back."""
    pi = working(is_lasting=True)
    if not is_sent:
        pi.bridged(False, 0.0)
    pi.worked("r/g1", RESULT, 1.0)
    pi.bridged(False, 2.0)
    return pi


def test_more_work_takes_the_place_of_an_update_that_was_never_sent() -> None:
    pi = offline(is_sent=False)
    assert (pi.can_carry_on, pi.is_untouched) == (True, True)
    assert pi.letter is not None
    pi.carry_on(pi.letter.work_id, pi.letter.base)
    assert (pi.stage, pi.work_id) == (Stage.WORKING, "r/g1")
    assert sent(pi.bridged(True, 3.0)) == [], "the round that is open is finished first"
    pi.hear(late_call(4), 3.0)
    (part,) = said(pi.worked("r/g1", OTHER, 4.0), UpdatePart)
    assert (part.round, bytes(unpack_update(part.data).payload)) == ((1,), b"other")
    assert len(of(pi.hear(joined(1, 4), 5.0), Counted)) == 1
    assert (pi.stage, pi._outbox.due) == (Stage.JOINED, None)


def test_more_work_behind_an_update_that_was_sent_waits_until_that_has_its_receipt_and_a_newer_round_is_open() -> None:
    pi = offline(is_sent=True)
    assert (pi.can_carry_on, pi.is_untouched) == (True, False)
    with pytest.raises(Misuse, match="take another base"):
        pi.carry_on("r/g1", MODEL.digest)
    base = "ab" * 8
    pi.carry_on("r/g1+", base)
    pi.worked("r/g1+", OTHER, 3.0)
    pi.carry_on("r/g1+", base)  # once more: the second takes it in
    pi.worked("r/g1+", OTHER, 4.0)
    pi.hear(late_call(5), 9.0)
    assert sent(pi.bridged(True, 10.0)) == [((1,), MODEL.digest)]
    (counted,) = of(pi.hear(joined(1, 5), 11.0), Counted)
    assert (counted.work_id, sent(pi.tick(99.0))) == ("r/g1", []), "it has its part in round 5 already"
    assert sent(pi.hear(late_call(6), 100.0)) == [((1,), base)]
    (counted,) = of(pi.hear(replace(joined(1, 6), base=base), 101.0), Counted)
    assert counted.work_id == "r/g1+"
    assert [work.round for work in of(pi.hear(late_call(7), 102.0), Work)] == [(7,)]


def test_an_update_that_counted_is_carried_on_from_too() -> None:
    pi = sending(is_lasting=True)
    pi.hear(receipt(), 1.0)
    pi.bridged(False, 2.0)
    assert pi.can_carry_on
    pi.carry_on("r/g1+", "ab" * 8)
    pi.worked("r/g1+", OTHER, 3.0)
    pi.bridged(True, 4.0)
    assert sent(pi.hear(late_call(3), 5.0)) == [((1,), "ab" * 8)]


@pytest.mark.parametrize("newer", [call(2), late_call(run="s"), late_call(phase=Phase.FINISHED)])
def test_more_work_ends_with_the_run_or_where_it_came_in_vain(newer: RoundCall) -> None:
    pi = offline(is_sent=False)
    pi.carry_on("r/g1", MODEL.digest)
    actions = pi.hear(newer, 3.0)
    assert cancelled(actions) == ["r/g1"]
    assert pi._outbox.due is None
    assert len(of(actions, RunOver)) == (newer.phase is Phase.FINISHED)


def test_more_work_that_gives_nothing_leaves_what_was_there() -> None:
    pi = offline(is_sent=False)
    pi.carry_on("r/g1", MODEL.digest)
    assert said(pi.failed("r/g1", "nobody came", 3.0), Decline) == []
    assert sent(pi.bridged(True, 4.0)) == [((1,), MODEL.digest)]


def test_it_cannot_carry_on_while_the_bridge_is_up_or_where_late_is_dropped_or_nothing_was_answered() -> None:
    up, dropping, declined = sending(), sending(call()), working()
    dropping.bridged(False, 1.0)
    declined.failed("r/g1", "no data", 1.0)
    declined.bridged(False, 1.0)
    assert [pi.can_carry_on for pi in (up, dropping, declined)] == [False, False, False]
    with pytest.raises(Misuse, match="carry_on"):
        up.carry_on("w", "ab" * 8)


def test_two_updates_and_the_work_behind_them_outlive_a_restart() -> None:
    pi = working(is_lasting=True)
    vault: dict[str, bytes] = {}

    def keep(actions: list[Action]) -> list[Action]:
        for persist in of(actions, Persist):
            for key, value in persist.changes.items():
                vault.pop(key, None) if value is None else vault.__setitem__(key, bytes(value))
        return actions

    keep(pi.worked("r/g1", RESULT, 1.0))
    pi.bridged(False, 2.0)
    keep(pi.carry_on("r/g1+", "ab" * 8))
    keep(pi.worked("r/g1+", OTHER, 3.0))
    keep(pi.carry_on("r/g1+", "ab" * 8))
    pi = Participant(path=PI, boot=2, info=info(), max_model=2**20, saved=vault, is_lasting=True)
    keep(pi.start())
    assert (pi.stage, pi.work_id) == (Stage.WORKING, "r/g1+")
    pi.connected(4.0)
    assert sent(keep(pi.worked("r/g1+", OTHER, 5.0))) == [((1,), MODEL.digest)]
    assert [letter.base for letter in pi._outbox.letters] == [MODEL.digest, "ab" * 8]


# ------------------------------------------------------------------ another home


HOMES = {"homes": ("cloud/b/pi", "cloud/c/pi")}


def moves(actions: list[Action]) -> list[str]:
    return [move.to for move in of(actions, Move)]


def test_between_rounds_it_leaves_at_once_and_takes_nothing_along() -> None:
    pi = sending(call(), **HOMES)
    pi.hear(receipt(), 1.0)
    actions = pi.hear(Assign(to="cloud/b/pi"), 2.0)
    assert moves(actions) == ["cloud/b/pi"]
    changes = {key: value for persist in of(actions, Persist) for key, value in persist.changes.items()}
    assert changes.pop(HOME) == b"cloud/b/pi"
    assert set(changes.values()) == {None}
    assert pi.hear(call(2), 3.0) == pi.connected(4.0) == pi.tick(500.0) == []
    assert pi.next_deadline is None


@pytest.mark.parametrize("stage", [working, sending])
def test_an_answer_under_way_is_finished_first(stage: Any) -> None:
    pi = stage(call(), **HOMES)
    assert notes(pi.hear(Assign(to="cloud/b/pi"), 1.0)) == ["moving"]
    if pi.stage is Stage.WORKING:
        assert sent(pi.worked("r/g1", RESULT, 2.0)) == [((1,), MODEL.digest)]
    actions = pi.hear(receipt(), 3.0)
    assert [type(action) for action in actions if isinstance(action, Counted | Move)] == [Counted, Move]


@pytest.mark.parametrize("how", ["failed", "refused", "closed", "newer", "silent"])
def test_it_moves_when_its_answer_came_to_nothing(how: str) -> None:
    pi = working(call(), **HOMES)
    pi.hear(Assign(to="cloud/b/pi"), 1.0)
    if how == "failed":
        actions = pi.failed("r/g1", "no data", 2.0)
        assert len(said(actions, Decline)) == 1
        assert moves(actions) == ["cloud/b/pi"]
        return
    pi.worked("r/g1", RESULT, 2.0)
    if how == "refused":
        actions = pi.hear(receipt(accepted=False), 3.0)
    elif how == "closed":
        actions = pi.hear(call(phase=Phase.CLOSED), 3.0)
    elif how == "newer":
        actions = pi.hear(call(2), 3.0)
    else:
        assert moves(pi.tick(2.0 + MOVE_S - 0.1)) == []
        actions = pi.tick(2.0 + MOVE_S)
    assert (moves(actions), of(actions, Work)) == (["cloud/b/pi"], [])


def test_only_its_own_homes_are_gone_to_and_it_may_be_called_back() -> None:
    pi = sending(call(), **HOMES)
    actions = pi.hear(Assign(to="cloud/z/pi"), 1.0)
    reason = "cloud/z/pi is not among its homes (cloud/b/pi, cloud/c/pi): add it there"
    assert noted(actions, "assign_refused")["reason"] == reason
    assert said(actions, State) == [State(state=StateName.READY, boot=1, reason=reason)]
    pi.hear(Assign(to="cloud/b/pi"), 1.0)
    assert pi.hear(Assign(to=PI), 2.0) == []
    assert moves(pi.hear(receipt(), 3.0)) == []


def test_the_device_says_where_it_has_gone() -> None:
    node = ClientNode(path=PI, boot=1, info=info(), homes=HOMES["homes"])
    node.handle(Connected(), 0.0)
    node.handle(Received(message=Assign(to="cloud/b/pi"), sender="cloud/a"), 1.0)
    gone = Send(message=State(state=StateName.DISCONNECTED, boot=1, reason="moved to cloud/b/pi"))
    assert node.leave()[-1] == gone


# ------------------------------------------------------------------ another board of the same name


def test_a_board_with_a_double_says_so_until_a_quarter_of_an_hour_has_passed() -> None:
    node = ClientNode(path=PI, boot=1, info=info())
    node.handle(Connected(), 0.0)
    node.handle(Lost(is_cloned=True), 1.0)
    (state,) = said(node.handle(Connected(), 10.0), State)
    assert state.reason == "another board seems to be called cloud/a/pi too: give each its own name"
    assert said(node.tick(25.0), State) == [state], "it stands in every state it says"
    (cleared,) = said(node.tick(910.0), State)[-1:]
    assert cleared == State(state=StateName.READY, boot=1)
    assert of(node.handle(Received(message=call(phase=Phase.CLOSED), sender="cloud/a"), 911.0), CancelWork) == []
