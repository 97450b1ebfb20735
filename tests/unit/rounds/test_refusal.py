"""A board that may not train just now declines the round, before it fetches anything, and is asked anew by the next."""

from __future__ import annotations

from dataclasses import replace

from hfl_mqtt.protocol.messages import Decline, Draw, Phase, RoundCall, State, WantModel
from hfl_mqtt.rounds.actions import Fetch, Work
from hfl_mqtt.rounds.participant import Participant, Stage
from tests.unit.rounds.trees import CODEC, PLAN, info, key_parts, noted, of, offered, said, weights

OFFER = offered(weights(1.0, 2.0))


def call(*round_id: int, attempt: int = 0, phase: Phase = Phase.OPEN) -> RoundCall:
    return RoundCall(
        run="r",
        round=round_id or (1,),
        phase=phase,
        asked=1,
        quorum=1,
        open_for_s=60.0,
        codec=CODEC,
        draw=Draw(),
        plan=PLAN,
        model=OFFER.manifest,
        unasked=4 * 2**20,
        attempt=attempt,
    )


class Board:
    """A board whose rules say what the test does, and count how often they are asked."""

    def __init__(self, reason: str | None) -> None:
        self.reason, self.asked = reason, 0
        self.pi = Participant(path="cloud/a/pi", boot=1, info=info(), max_model=2**20)
        self.pi.refusal = self.refusal
        self.pi.connected(0.0)

    def refusal(self) -> str | None:
        self.asked += 1
        return self.reason


def test_a_refusal_is_a_decline_with_its_reason_and_nothing_is_fetched() -> None:
    board = Board("its link is metered")
    actions = board.pi.hear(call(), 0.0)
    (decline,) = said(actions, Decline)
    assert (decline.run, decline.round, decline.reason) == ("r", (1,), "its link is metered")
    assert (of(actions, Fetch), said(actions, WantModel), said(actions, State)) == ([], [], [])
    assert noted(actions, "declined")
    assert board.pi.hear(key_parts(OFFER)[0], 1.0) == []
    assert board.pi.stage is Stage.JOINED


def test_the_same_call_heard_again_is_answered_the_same_and_the_board_not_asked() -> None:
    board = Board("on battery")
    board.pi.hear(call(), 0.0)
    board.reason = None
    (decline,) = said(board.pi.hear(call(), 30.0), Decline)
    assert (decline.reason, board.asked) == ("on battery", 1)


def test_the_next_round_asks_anew() -> None:
    board = Board("70 °C, it trains only below 60 °C")
    board.pi.hear(call(1), 0.0)
    board.pi.hear(call(1, phase=Phase.CLOSED), 60.0)
    board.reason = None
    board.pi.hear(call(2), 61.0)
    assert of(board.pi.hear(key_parts(OFFER)[0], 61.0), Work)
    assert board.asked == 2


def test_a_round_that_is_called_once_more_asks_anew() -> None:
    board = Board("on battery")
    board.pi.hear(call(), 0.0)
    board.reason = None
    board.pi.hear(call(attempt=1), 60.0)
    assert of(board.pi.hear(key_parts(OFFER)[0], 60.0), Work)


def test_a_board_whose_turn_it_is_not_is_not_asked() -> None:
    board = Board("on battery")
    board.pi.hear(replace(call(), draw=Draw(threshold=0)), 0.0)
    assert board.asked == 0
