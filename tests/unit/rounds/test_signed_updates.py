"""An aggregator with an identity: it counts what its children have signed for this very round, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.blobs import digest
from hfl_mqtt.protocol.messages import Announce, Identity, Phase, Receipt, RoundCall, Tally, UpdatePart, Want
from hfl_mqtt.protocol.statements import from_text, of_call
from hfl_mqtt.rounds.actions import Action, Persist
from hfl_mqtt.rounds.aggregator import MAX_STRANGERS, Aggregator
from hfl_mqtt.rounds.open_round import Outcome
from hfl_mqtt.rounds.signing import Signer, update_seal
from hfl_mqtt.sim.papers import FEDERATION, Papers
from hfl_mqtt.trust.identity import Identity as Papered
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
    weights,
)

PAPERS = Papers(0)
A, B = "cloud/a", "cloud/b"
OF_A, OF_B = PAPERS.identity(A), PAPERS.identity(B)
MODEL = weights(1.0)
#: So that an update without a trailer is longer than one.
MANY = {f"score {number}": Tally(total=1.0, count=1) for number in range(4)}


class Cloud(Aggregator):
    """An aggregator that keeps what it persists, and may be born again with it."""

    def __init__(self, *, signer: Signer | None = None, saved: dict[str, bytes] | None = None, boot: int = 1) -> None:
        self.kept = dict(saved or {})
        super().__init__(path="cloud", arithmetic=MATH, boot=boot, saved=dict(self.kept), signer=signer)

    def keep(self, actions: list[Action]) -> list[Action]:
        for action in of(actions, Persist):
            for key, value in action.changes.items():
                self.kept.pop(key, None)
                if value is not None:
                    self.kept[key] = bytes(value)
        return actions

    def begin(self, **tier: Any) -> RoundCall:
        for child in (A, B):
            self.hear(READY, child, 0.0)
        self.keep(self.downlink.begin(keyframe(MODEL)))
        actions = self.open(run="r", round_id=(1,), plan=PLAN, tier=quick(quorum=2, **tier), seed=0, now=0.0)
        (call,) = said(self.keep(actions), RoundCall)
        return call

    def get(self, *parts: UpdatePart | Announce | Identity, sender: str = A, now: float = 1.0) -> list[Action]:
        return [action for part in parts for action in self.keep(self.hear(part, sender, now))]

    def result(self) -> Outcome:
        outcome = self.take_outcome()
        assert outcome is not None
        return outcome


def cloud(**options: Any) -> Cloud:
    """A cloud that has heard the cards of both children."""
    found = Cloud(signer=PAPERS.identity("cloud"), **options)
    introduce(found)
    return found


def introduce(found: Cloud) -> None:
    found.get(Identity(card=OF_A.card), sender=A)
    found.get(Identity(card=OF_B.card), sender=B)


def sealed(call: RoundCall, value: float = 3.0, signer: Signer | None = OF_A, **other: Any) -> UpdatePart:
    (part,) = update_parts(call, weights(value), 10, signer=signer, **other)
    return part


def named(part: UpdatePart, data: bytes) -> UpdatePart:
    """Return a part with other bytes under a name that fits them."""
    return replace(part, data=data, size=len(data), blob=digest(data)[:16])


def receipt(actions: list[Action]) -> Receipt:
    (found,) = said(actions, Receipt)
    return found


def test_what_two_children_signed_counts_and_gives_the_same_step_as_without_signatures() -> None:
    signed, plain = cloud(), Cloud()
    call, unsigned = signed.begin(), plain.begin()
    assert receipt(signed.get(sealed(call))).accepted
    signed.get(sealed(call, 5.0, OF_B), sender=B)
    plain.get(sealed(unsigned, 3.0, None))
    plain.get(sealed(unsigned, 5.0, None), sender=B)
    assert signed.result().step["w"] == plain.result().step["w"] == [4.0]
    assert signed.faults == {}


def test_a_call_is_signed_and_names_its_model_by_the_whole_digest() -> None:
    call = cloud().begin()
    assert len(call.model.digest) == 64
    child = PAPERS.identity(A)
    child.learn("cloud", PAPERS.identity("cloud").card)
    child.check("cloud", of_call(FEDERATION, "cloud", call), from_text(call.signature))


def test_closing_and_finishing_are_signed_too() -> None:
    found = cloud()
    found.begin()
    child = PAPERS.identity(A)
    child.learn("cloud", PAPERS.identity("cloud").card)
    calls = said([*found.cancel("enough"), *found.finish("r")], RoundCall)
    assert [call.phase for call in calls] == [Phase.CLOSED, Phase.FINISHED]
    for call in calls:
        child.check("cloud", of_call(FEDERATION, "cloud", call), from_text(call.signature))


def other_round(call: RoundCall) -> UpdatePart:
    """A replay: sealed for the second round, and said of the first."""
    return replace(sealed(replace(call, round=(2,))), round=(1,))


def other_run(call: RoundCall) -> UpdatePart:
    return replace(sealed(replace(call, run="s")), run="r")


def other_base(call: RoundCall) -> UpdatePart:
    part = sealed(replace(call, model=replace(call.model, digest="0" * 64)))
    return replace(part, base=call.model.base)


def altered(call: RoundCall) -> UpdatePart:
    """One bit of the numbers, by somebody who knows how parts are named."""
    part = sealed(call)
    data = bytearray(part.data)
    data[-65] ^= 1
    return named(part, bytes(data))


def unsigned(call: RoundCall) -> UpdatePart:
    return sealed(call, signer=None)


def zeros(call: RoundCall) -> UpdatePart:
    part = sealed(call, signer=None)
    return named(part, bytes(part.data) + bytes(64))


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (other_round, "the signature is not cloud/a's"),
        (other_run, "the signature is not cloud/a's"),
        (other_base, "the signature is not cloud/a's"),
        (altered, "the signature is not cloud/a's"),
        (lambda call: sealed(call, signer=OF_B), "the signature is not cloud/a's"),
        (zeros, "not signed by cloud/a"),
        (unsigned, "carries no signature"),
        (lambda call: sealed(call, signer=None, part_size=1000, tallies=MANY), "or none at all"),
        (lambda call: named(sealed(call), b"x" * 64), "carries no signature"),
    ],
)
def test_what_its_sender_did_not_sign_for_this_round_is_refused_counted_and_shown(forge: Any, reason: str) -> None:
    found = cloud()
    actions = found.get(forge(found.begin()))
    refused = receipt(actions)
    assert not refused.accepted
    assert reason in refused.reason
    assert reason in noted(actions, "refused")["reason"]
    assert found.faults["refused"] == 1
    assert reason in str(found.faults["refused_why"])


def test_after_a_forged_update_the_true_one_counts() -> None:
    found = cloud()
    call = found.begin()
    found.get(altered(call))
    assert receipt(found.get(sealed(call))).accepted


def test_an_update_that_comes_twice_counts_once_and_is_no_fault() -> None:
    found = cloud()
    call = found.begin()
    found.get(sealed(call))
    again = found.get(sealed(call))
    assert receipt(again).accepted
    assert notes(again) == ["duplicate"]
    assert found.faults == {}


def test_of_whom_no_card_was_heard_nothing_is_kept_or_answered_until_the_card_comes() -> None:
    found = Cloud(signer=PAPERS.identity("cloud"))
    call = found.begin()
    parts = update_parts(call, weights(3.0), 10, part_size=50, signer=OF_A)
    assert len(parts) > 2
    early = found.get(*parts, _announced(parts[0]))
    assert (said(early, Receipt), said(early, Want)) == ([], [])
    assert set(notes(early)) == {"unidentified"}
    assert not found.is_receiving
    found.get(Identity(card=OF_A.card))
    assert receipt(found.get(*parts)).accepted


def _announced(part: UpdatePart) -> Announce:
    return Announce(run=part.run, round=part.round, base=part.base, blob=part.blob, size=part.size, count=part.count)


def test_a_card_that_is_not_its_showers_is_refused_with_a_note() -> None:
    found = Cloud(signer=PAPERS.identity("cloud"))
    told = found.get(Identity(card=OF_B.card), sender=A)
    assert noted(told, "identity_refused")["reason"] == "cloud/a shows the card of cloud/b"
    strange = found.get(Identity(card=Papers(1).identity(A).card), sender=A)
    assert "not signed by our fleet's key" in noted(strange, "identity_refused")["reason"]


class Revoking(Papered):
    """An identity whose list may grow by hand."""

    def objection(self, sender: str) -> str | None:
        return f"the card of {sender} is revoked" if sender == B else super().objection(sender)


def test_who_is_revoked_is_refused_before_a_part_is_taken() -> None:
    signer = PAPERS.identity("cloud")
    signer.__class__ = Revoking
    found = Cloud(signer=signer)
    introduce(found)
    call = found.begin()
    actions = found.get(_announced(sealed(call, signer=OF_B)), sender=B)
    assert receipt(actions).reason == "the card of cloud/b is revoked"
    assert not found.is_receiving
    assert found.faults["refused"] == 1


def test_after_a_restart_what_was_counted_counts_and_the_same_call_is_said_to_the_last_byte() -> None:
    before = cloud()
    call = before.begin()
    before.get(sealed(call))
    after = cloud(saved=before.kept, boot=2)
    after.keep(after.start(10.0))
    (again,) = said(after.connected(session_present=True, now=10.0), RoundCall)
    assert wire.encode(again, "f", "cloud") == wire.encode(call, "f", "cloud")
    after.get(sealed(call, 5.0, OF_B), sender=B)
    assert after.result().accepted == {A: 10, B: 10}


def test_after_a_restart_it_knows_whose_cards_it_had_heard() -> None:
    """What waits for it at the broker comes before what the broker retains."""
    before = cloud()
    call = before.begin()
    after = Cloud(signer=PAPERS.identity("cloud"), saved=before.kept, boot=2)
    after.keep(after.start(10.0))
    assert receipt(after.get(sealed(call))).accepted
    assert of(after.get(Identity(card=OF_A.card)), Persist) == [], "the same card is put down once"


def test_a_run_that_began_unsigned_goes_on_signed_and_the_other_way_round() -> None:
    for first, second in ((None, PAPERS.identity("cloud")), (PAPERS.identity("cloud"), None)):
        before = Cloud(signer=first)
        introduce(before)
        call = before.begin()
        before.get(sealed(call, signer=OF_A if first else None))
        after = Cloud(signer=second, saved=before.kept, boot=2)
        after.keep(after.start(10.0))
        introduce(after)
        (again,) = said(after.connected(session_present=True, now=10.0), RoundCall)
        assert (again.signature != "", again.round) == (second is not None, (1,))
        assert second is None or len(again.model.digest) == 64
        after.get(sealed(again, 5.0, OF_B if second else None), sender=B)
        assert after.result().accepted == {A: 10, B: 10}


def test_a_seal_is_made_for_the_sender_itself() -> None:
    seal = update_seal(OF_A, "r", (1,), "0" * 16)
    assert seal is not None
    assert len(seal(bytes(32))) == 64
    assert update_seal(None, "r", (1,), "0" * 16) is None


# ------------------------------------------------------------------ strangers


def test_of_whom_no_card_was_heard_no_state_counts_until_the_card_comes() -> None:
    """What a broker retains comes in any order, so the state waits for the card."""
    found = Cloud(signer=PAPERS.identity("cloud"))
    assert notes(found.hear(READY, A, 0.0)) == ["unidentified"]
    assert found.present == []
    assert "joined" in notes(found.get(Identity(card=OF_A.card), sender=A))
    assert found.present == [A]


def test_the_last_state_counts_once_the_card_comes() -> None:
    found = Cloud(signer=PAPERS.identity("cloud"))
    found.hear(READY, A, 0.0)
    found.hear(LOST, A, 0.0)
    found.get(Identity(card=OF_A.card), sender=A)
    assert found.present == []


def test_the_states_of_few_strangers_wait() -> None:
    found = Cloud(signer=PAPERS.identity("cloud"))
    for number in range(3 * MAX_STRANGERS):
        found.judge(f"cloud/x{number}", 100, 0.0)
        found.hear(READY, f"cloud/x{number}", 0.0)
    assert len(found._unproven) == len(found._strangers) == MAX_STRANGERS
    assert found.present == []
    found.get(Identity(card=OF_A.card), sender=A)
    found.hear(READY, A, 0.0)
    assert found.present == [A]


def test_strangers_beyond_the_first_share_one_allowance_and_a_child_has_its_own() -> None:
    found = cloud()
    for number in range(MAX_STRANGERS):
        found.judge(f"cloud/x{number}", 100, 0.0)
    most = found.conduct.bounds.messages_per_minute
    told = [found.judge(f"cloud/y{number}", 100, 0.0) for number in range(most + 1)]
    assert (told[0], told[most - 1], told[most]) == (None, None, [])
    assert found.malformed("cloud/z", "no JSON", 0.0) == []
    assert found.judge(A, 100, 0.0) is None
    assert found.judge("cloud/y0", 100, 60.0) is None, "a minute later they are heard again"
    assert found.conduct.shown.children == {}
