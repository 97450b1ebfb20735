"""A participant that is killed and started again from what it persisted: nothing is trained twice, nothing is lost."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfl_mqtt.protocol.messages import (
    Announce,
    Kind,
    Late,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    UpdatePart,
    Want,
)
from hfl_mqtt.rounds.actions import Action, CancelWork, Contribution, Counted, Persist, Send, Work
from hfl_mqtt.rounds.outbox import BLOBS, LETTERS
from hfl_mqtt.rounds.participant import CALL, PAST, Participant, Stage
from tests.unit.rounds.test_participant import KEY, NEXT, PI, RESULT, call, receipt
from tests.unit.rounds.trees import PLAN, info, noted, notes, of, said

SCORE = replace(PLAN, kind=Kind.EVALUATE)


class Board:
    """A device with a vault that keeps what was committed; what is not urgent waits for what is."""

    def __init__(self, *, is_lasting: bool = False) -> None:
        self.vault: dict[str, bytes] = {}
        self._waiting: dict[str, bytes | None] = {}
        self._is_lasting = is_lasting
        self.boot = 0
        self.pi: Participant
        self.start()

    def start(self) -> list[Action]:
        self.boot += 1
        self.pi = Participant(
            path=PI, boot=self.boot, info=info(), max_model=2**20, saved=dict(self.vault), is_lasting=self._is_lasting
        )
        return self.take(self.pi.start())

    def kill(self, *, is_power_cut: bool = False) -> list[Action]:
        """End it and start it anew; with the power what had not to be urgent is lost."""
        if is_power_cut:
            self._waiting.clear()
        self._commit()
        return self.start()

    def take(self, actions: list[Action]) -> list[Action]:
        for persist in of(actions, Persist):
            self._waiting |= {key: None if value is None else bytes(value) for key, value in persist.changes.items()}
        if any(persist.is_urgent for persist in of(actions, Persist)):
            self._commit()
        return actions

    def _commit(self) -> None:
        for key, value in self._waiting.items():
            if value is None:
                self.vault.pop(key, None)
            else:
                self.vault[key] = value
        self._waiting.clear()

    def hear(self, message: Any, now: float = 0.0) -> list[Action]:
        return self.take(self.pi.hear(message, now))

    def worked(self, result: Contribution = RESULT, now: float = 0.0) -> list[Action]:
        assert self.pi.work_id is not None
        return self.take(self.pi.worked(self.pi.work_id, result, now))

    def sending(self, *calls: RoundCall) -> list[Action]:
        self.take(self.pi.connected(0.0))
        for each in calls or (call(),):
            self.hear(each)
        self.hear(KEY)
        return self.worked()


def test_an_update_is_durable_before_its_first_part_is_sent() -> None:
    board = Board()
    actions = board.sending()
    kinds = [type(action) for action in actions]
    (persist,) = of(actions, Persist)
    (part,) = said(actions, UpdatePart)
    assert kinds[0] is Persist
    assert (persist.is_urgent, set(persist.changes)) == (True, {LETTERS, BLOBS + part.blob})
    assert board.vault[BLOBS + part.blob] == bytes(part.data)


def test_scores_need_not_outlive_a_restart() -> None:
    board = Board()
    board.take(board.pi.connected(0.0))
    board.hear(call(plan=SCORE))
    board.hear(KEY)
    assert len(said(board.worked(Contribution(payload=b"", weight=0)), UpdatePart)) == 1
    assert board.vault == {}


@pytest.mark.parametrize("is_power_cut", [False, True])
def test_one_that_is_killed_while_it_sends_goes_on_sending_and_does_not_train_again(is_power_cut: bool) -> None:
    board = Board()
    (first,) = said(board.sending(), UpdatePart)
    assert notes(board.kill(is_power_cut=is_power_cut)) == ["resumed"]
    assert board.pi.stage is Stage.SENDING
    actions = board.take(board.pi.connected(100.0)) + board.hear(call(), 100.0)
    assert said(actions, UpdatePart) == [first]
    assert of(actions, Work) == []
    counted = of(board.hear(receipt(), 101.0), Counted)
    assert [each.work_id for each in counted] == ["r/g1"]


def test_a_large_update_is_announced_anew_after_a_restart() -> None:
    board = Board()
    (first,) = said(board.sending(call(unasked=10)), Announce)
    board.kill()
    assert said(board.take(board.pi.connected(100.0)), Announce) == [first]
    assert len(said(board.hear(Want(blob=first.blob, parts=(0,)), 101.0), UpdatePart)) == 1


def test_one_that_is_killed_after_its_receipt_says_again_that_it_counted_and_trains_no_more() -> None:
    board = Board()
    board.sending()
    counted = of(board.hear(receipt(), 1.0), Counted)
    assert of(board.kill(), Counted) == counted
    actions = board.take(board.pi.connected(2.0)) + board.hear(call(), 2.0) + board.hear(KEY, 2.0)
    assert (of(actions, Work), said(actions, UpdatePart)) == ([], [])


def test_where_the_mark_of_the_receipt_is_lost_it_sends_again_and_gets_the_same_receipt() -> None:
    board = Board()
    (first,) = said(board.sending(), UpdatePart)
    counted = of(board.hear(receipt(), 1.0), Counted)
    assert of(board.kill(is_power_cut=True), Counted) == []
    assert said(board.take(board.pi.connected(2.0)), UpdatePart) == [first]
    assert of(board.hear(receipt(), 3.0), Counted) == counted


def test_after_a_restart_a_parent_of_a_higher_boot_gets_the_update_again() -> None:
    board = Board()
    (first,) = said(board.sending(), UpdatePart)
    board.hear(receipt(), 1.0)
    board.kill()
    board.take(board.pi.connected(2.0))
    actions = board.hear(call(boot=7), 2.0)
    assert (said(actions, UpdatePart), of(actions, Work)) == ([first], [])
    board.kill()
    assert notes(board.hear(call(2, boot=6), 3.0)) == ["out_of_date"], "the fence stands after a restart too"


def test_the_outbox_is_empty_once_new_work_has_begun_and_a_late_receipt_means_nothing() -> None:
    board = Board()
    board.sending()
    board.hear(call(2))
    board.kill()
    assert board.vault == {}
    assert notes(board.hear(receipt(), 1.0)) == ["receipt_out_of_place"]


def test_a_receipt_that_comes_after_the_next_call_and_a_restart_still_says_whose_coding_error_was_left() -> None:
    board = Board()
    board.sending()
    board.hear(call(2, model=NEXT))
    board.kill()
    assert of(board.hear(receipt(), 1.0), Counted) != []


def test_after_a_restart_it_still_knows_which_round_its_late_update_has_joined() -> None:
    board = Board()
    board.sending(call(late=Late.NEXT))
    board.hear(call(2, late=Late.NEXT), 1.0)
    assert of(board.hear(replace(receipt(), joined=(2,)), 2.0), Counted)
    board.kill()
    board.take(board.pi.connected(3.0))
    board.hear(call(2, late=Late.NEXT), 3.0)
    assert of(board.hear(KEY, 3.0), Work) == []
    board.hear(call(3, late=Late.NEXT), 4.0)
    assert of(board.hear(KEY, 4.0), Work)


def test_a_run_that_is_over_leaves_only_its_name() -> None:
    board = Board()
    board.sending()
    board.hear(call(phase=Phase.FINISHED))
    board.kill()
    assert board.vault.keys() == {PAST}
    assert board.hear(call(9)) == [], "its late call is no new run"


def test_what_cannot_be_read_is_as_if_it_were_not_there() -> None:
    board = Board()
    (part,) = said(board.sending(), UpdatePart)
    board.vault[BLOBS + part.blob] = b"half of i"
    board.vault[BLOBS + "0" * 16] = b"nobody's"
    assert notes(board.kill()) == ["unreadable"]
    board.kill()
    assert board.vault == {}
    board.vault[LETTERS] = b"\xc1"
    assert noted(board.kill(), "unreadable") == {"key": LETTERS}
    board.take(board.pi.connected(1.0))
    board.hear(call())
    assert of(board.hear(KEY), Work)


def test_lasting_work_goes_on_after_a_restart_where_it_was() -> None:
    board = Board(is_lasting=True)
    board.take(board.pi.connected(0.0))
    board.hear(call())
    board.hear(KEY)
    board.kill()
    assert (board.pi.stage, board.pi.work_id) == (Stage.WORKING, "r/g1")
    actions = board.take(board.pi.connected(1.0)) + board.hear(call(), 1.0)
    assert (of(actions, Work), of(actions, CancelWork)) == ([], [])
    assert len(said(board.worked(), UpdatePart)) == 1
    assert CALL not in board.vault


def test_lasting_work_whose_own_state_is_lost_is_begun_anew() -> None:
    board = Board(is_lasting=True)
    board.take(board.pi.connected(0.0))
    board.hear(call())
    board.hear(KEY)
    board.kill()
    board.pi.forget_work()
    board.take(board.pi.connected(1.0))
    board.hear(call(), 1.0)
    assert of(board.hear(KEY, 1.0), Work)


# ------------------------------------------------------------------ whatever happens


LATE = st.sampled_from(Late)


def likely_call(data: st.DataObject, last: RoundCall, plans: dict[int, Plan]) -> RoundCall:
    """Return what a parent may say after `last`: the same again, its close, the next round, or something old.

    Whether a round trains or scores follows from its number, in `plans`: also for a parent that begins it anew.
    """
    how = data.draw(st.sampled_from(["again", "again", "close", "next", "next", "attempt", "reborn", "old", "other"]))
    late = data.draw(LATE)
    if how == "close":
        return replace(last, phase=Phase.CLOSED)
    if how == "next":
        number = last.round[0] + 1
        if number not in plans:
            plans[number] = data.draw(st.sampled_from([PLAN, PLAN, PLAN, SCORE]))
        return replace(last, round=(number,), phase=Phase.OPEN, late=late, plan=plans[number], attempt=0)
    if how == "attempt":
        return replace(last, phase=Phase.OPEN, attempt=last.attempt + 1)
    if how == "reborn":
        number = max(last.round[0] - data.draw(st.integers(0, 1)), 1)
        return replace(last, boot=last.boot + 1, round=(number,), phase=Phase.OPEN, plan=plans[number], attempt=0)
    if how == "old":
        return replace(last, boot=max(last.boot - 1, 0))
    if how == "other":
        run = data.draw(st.sampled_from(["r", "s"]))
        phase = data.draw(st.sampled_from([Phase.OPEN, Phase.FINISHED]))
        return call(1, run=run, phase=phase, late=late, unasked=data.draw(st.sampled_from([1, 2**20])))
    return last


EVENTS = [*["call"] * 4, *["work"] * 4, *["kill", "receipt"] * 2, "want", "tick", "link", "bridge"]
Key = tuple[str, tuple[int, ...], str]


class Witness:
    """Sees all that a participant does, and what its vault holds; knows what must never be."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.now = 0.0
        self.count = 0
        #: What was sent under which key; and which update it was, by what was coded.
        self.sent: dict[Key, str] = {}
        self.payloads: dict[Key, str] = {}
        self.works: list[Work] = []
        self.parts: list[UpdatePart | Announce] = []
        self.trained: set[Key] = set()

    def see(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Work):
                key = (action.run, action.round, action.model.digest[:16])
                if action.plan.kind is Kind.TRAIN:
                    assert key not in self.trained, f"{key} was trained, and its update is in the outbox"
                self.sent.clear()  # from here on what was before is no more
                self.trained.clear()
                self.works.append(action)
            if isinstance(action, Counted):
                assert action.payload in self.payloads.values()
        parts: list[UpdatePart | Announce] = [*said(actions, UpdatePart), *said(actions, Announce)]
        for part in parts:
            key = (part.run, part.round, part.base)
            assert self.sent.setdefault(key, part.blob) == part.blob, "other bytes under the same key"
            self.parts.append(part)
            if key in self.trained:
                assert BLOBS + part.blob in self.board.vault, "revealed before it was durable"

    def work(self, data: st.DataObject) -> None:
        work, pi = self.works[-1], self.board.pi
        if pi.stage is not Stage.WORKING:
            return
        if data.draw(st.integers(0, 4)) == 0:
            self.see(self.board.take(pi.failed(work.work_id, "no data", self.now)))
            return
        self.count += 1
        is_train = work.plan.kind is Kind.TRAIN
        result = Contribution(payload=b"%d" % self.count if is_train else b"", weight=int(is_train))
        key = (work.run, work.round, work.model.digest[:16])
        actions = self.board.take(pi.worked(work.work_id, result, self.now))
        if is_train and noted(actions, "worked"):
            self.trained.add(key)
            letter = pi._outbox.find(*key)
            assert letter is not None
            self.payloads[key] = letter.payload
        newest = pi.call
        assert newest is not None
        is_in_time = (newest.run, newest.round, newest.phase) == (work.run, work.round, Phase.OPEN)
        if is_in_time and pi.is_bridged:
            assert any(isinstance(each, Send) for each in actions), "it keeps what is waited for to itself"
        self.see(actions)

    def answer(self, data: st.DataObject) -> None:
        part = self.parts[-1] if data.draw(st.booleans()) else data.draw(st.sampled_from(self.parts))
        key = (part.run, part.round, part.base)
        is_accepted = data.draw(st.integers(0, 3)) > 0
        newest = self.board.pi.call
        joined = newest.round if newest is not None and newest.round > part.round else None
        said_now = Receipt(run=part.run, round=part.round, base=part.base, accepted=is_accepted, joined=joined)
        letter = self.board.pi._outbox.find(*key)
        before = self.payloads.get(key)
        actions = self.board.hear(said_now, self.now)
        if not is_accepted and letter is not None and letter.fate.value != "counted":
            self.sent.pop(key, None)
            self.trained.discard(key)
        assert {each.payload for each in of(actions, Counted)} <= {before}
        self.see(actions)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_however_often_it_is_killed_it_sends_the_same_bytes_and_trains_nothing_twice(data: st.DataObject) -> None:
    board = Board()
    witness = Witness(board)
    witness.see(board.take(board.pi.connected(0.0)))
    last = call(late=data.draw(LATE))
    plans = {1: last.plan}
    for _ in range(data.draw(st.integers(10, 50))):
        witness.now += data.draw(st.sampled_from([0.0, 1.0, 10.0, 100.0]))
        now = witness.now
        what = data.draw(st.sampled_from(EVENTS))
        if what == "call":
            heard = last = likely_call(data, last, plans)
            if heard.phase is Phase.FINISHED or (board.pi.call is not None and heard.run != board.pi.call.run):
                witness.sent.clear()
                witness.trained.clear()
            witness.see(board.hear(heard, now))
            witness.see(board.hear(KEY, now))
        elif what == "work" and witness.works:
            witness.work(data)
        elif what == "receipt" and witness.parts:
            witness.answer(data)
        elif what == "want" and witness.parts:
            part = data.draw(st.sampled_from(witness.parts))
            witness.see(board.hear(Want(blob=part.blob, parts=(0,)), now))
        elif what == "tick":
            witness.see(board.take(board.pi.tick(now)))
        elif what == "link":
            board.pi.lost()
            witness.see(board.take(board.pi.connected(now)))
        elif what == "bridge":
            witness.see(board.take(board.pi.bridged(not board.pi.is_bridged, now)))
        elif what == "kill":
            witness.see(board.kill(is_power_cut=data.draw(st.booleans())))
            witness.see(board.take(board.pi.connected(now)))
