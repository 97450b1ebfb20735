"""A participant with an identity: it works for what its parent has signed, on the model that the parent has signed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hfl_mqtt.protocol.blobs import Cut, digest, in_memory
from hfl_mqtt.protocol.messages import (
    Announce,
    Identity,
    KeyPart,
    Manifest,
    ModelPart,
    Phase,
    Receipt,
    RoundCall,
    State,
    UpdatePart,
    Want,
)
from hfl_mqtt.protocol.statements import of_update, unsealed
from hfl_mqtt.protocol.wire import keyframe_pieces
from hfl_mqtt.rounds.actions import Action, Contribution, Note, Persist, Work
from hfl_mqtt.rounds.participant import Participant, Stage
from hfl_mqtt.rounds.presence import COMPLAIN_S
from hfl_mqtt.rounds.signing import Signer, keyframe_seal, signed
from hfl_mqtt.rounds.upload import PROBE_S
from hfl_mqtt.sim.papers import FEDERATION, Papers
from hfl_mqtt.trust.cards import Card, sign_card
from hfl_mqtt.trust.identity import Identity as Papered
from hfl_mqtt.trust.keys import PrivateKey
from tests.unit.rounds.trees import (
    CODEC,
    MATH,
    PLAN,
    delta_parts,
    info,
    key_parts,
    keyframe,
    noted,
    notes,
    of,
    offered,
    said,
    values,
    weights,
)

PAPERS = Papers(0)
PARENT, PI = "cloud/a", "cloud/a/pi"
OF_PARENT, OF_PI = PAPERS.identity(PARENT), PAPERS.identity(PI)
CARD = Identity(card=OF_PARENT.card)
OFFER = offered(weights(1.0), signer=OF_PARENT)
STEPPED = offered(weights(1.0), weights(3.0), signer=OF_PARENT)
KEY, DELTA = key_parts(OFFER)[0], delta_parts(STEPPED, 1)[0]
RESULT = Contribution(payload=b"delta", weight=3)


def whole(manifest: Manifest, digest: str) -> Manifest:
    return replace(manifest, digest=digest)


MODEL = whole(OFFER.manifest, OFFER.chain.digest)
NEXT = whole(STEPPED.manifest, STEPPED.chain.digest)


def call(*round_id: int, signer: Signer | None = OF_PARENT, **fields: Any) -> RoundCall:
    said: dict[str, Any] = {"run": "r", "round": round_id or (1,), "asked": 1, "quorum": 1, "open_for_s": 60.0}
    return signed(signer, RoundCall(**{**said, "codec": CODEC, "plan": PLAN, "model": MODEL, **fields}))


class Pi(Participant):
    """A participant that keeps what it persists."""

    def __init__(self, signer: Signer | None = None, saved: Mapping[str, bytes] | None = None) -> None:
        self.kept = dict(saved or {})
        super().__init__(
            path=PI, boot=1, info=info(), max_model=2**20, signer=signer or PAPERS.identity(PI), saved=dict(self.kept)
        )
        self.keep(self.start())

    def keep(self, actions: list[Action]) -> list[Action]:
        for action in of(actions, Persist):
            for key, value in action.changes.items():
                self.kept.pop(key, None)
                if value is not None:
                    self.kept[key] = bytes(value)
        return actions


def joined(*, knows_parent: bool = True, **options: Any) -> Pi:
    pi = Pi(**options)
    pi.connected(0.0)
    if knows_parent:
        pi.hear(CARD, 0.0)
    return pi


def working(pi: Pi, heard: RoundCall | None = None) -> list[Action]:
    pi.hear(heard or call(), 0.0)
    return pi.hear(KEY, 0.1)


def handed_in(pi: Pi) -> UpdatePart:
    working(pi)
    (part,) = said(pi.keep(pi.worked("r/g1", RESULT, 1.0)), UpdatePart)
    return part


def is_signed_by_pi(part: UpdatePart, signer: Signer = OF_PI) -> bool:
    body, signature = unsealed(part.data)
    parent = PAPERS.identity(PARENT)
    parent.learn(PI, signer.card)
    digest_ = bytes.fromhex(digest(body))
    parent.check(PI, of_update(FEDERATION, part.run, part.round, PI, part.base, digest_), signature)
    return True


def test_it_shows_its_card_first_of_all_whenever_it_connects() -> None:
    pi = Pi()
    for _ in range(2):
        first, *_ = pi.connected(0.0)
        assert said([first], Identity) == [Identity(card=OF_PI.card)]


def test_it_works_for_a_signed_call_on_the_signed_model_and_seals_what_it_hands_in() -> None:
    pi = joined()
    (work,) = of(working(pi), Work)
    assert values(MATH.weights(work.model)) == [1.0]
    (part,) = said(pi.worked("r/g1", RESULT, 1.0), UpdatePart)
    assert is_signed_by_pi(part)
    assert part.base == MODEL.digest[:16]
    receipt = Receipt(run="r", round=(1,), base=part.base)
    assert "accepted" in notes(pi.hear(receipt, 2.0))


def forged(**fields: Any) -> RoundCall:
    """A call whose signature is of another one."""
    return replace(call(), **fields)


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (call(signer=None), "what cloud/a calls is not signed"),
        (forged(run="s"), "the signature is not cloud/a's"),
        (forged(round=(2,)), "the signature is not cloud/a's"),
        (forged(plan=replace(PLAN, learning_rate=0.5)), "the signature is not cloud/a's"),
        (forged(model=replace(MODEL, digest="0" * 64)), "the signature is not cloud/a's"),
        (forged(phase=Phase.FINISHED), "the signature is not cloud/a's"),
        (call(signer=PAPERS.identity("cloud/b")), "the signature is not cloud/a's"),
        (call(signer=OF_PI), "the signature is not cloud/a's"),
        (call(model=OFFER.manifest), "names its model by a part of its digest only"),
    ],
)
def test_what_the_parent_did_not_sign_is_not_done_and_its_state_says_why(heard: RoundCall, reason: str) -> None:
    pi = joined()
    actions = pi.hear(heard, 1.0)
    assert pi.stage is Stage.JOINED
    assert reason in noted(actions, "call_refused")["reason"]
    assert said(actions, State) == []
    (state,) = said(pi.tick(1.0 + COMPLAIN_S), State)
    assert reason in state.reason
    assert said(pi.tick(2.0 + COMPLAIN_S), State) == []


def test_what_was_wrong_is_taken_back_once_a_good_call_comes() -> None:
    pi = joined()
    pi.hear(forged(run="s"), 1.0)
    assert said(pi.tick(1.0 + COMPLAIN_S), State)[0].reason
    (state,) = said(pi.hear(call(), 20.0), State)
    assert state.reason == ""
    assert pi.stage is Stage.FETCHING


def test_a_forged_call_among_good_ones_is_noted_and_tells_nobody_anything() -> None:
    pi = joined()
    pi.hear(forged(run="s"), 1.0)
    pi.hear(call(), 2.0)
    assert said(pi.tick(1.0 + COMPLAIN_S), State) == []


def test_a_call_that_comes_before_the_card_is_begun_when_the_card_comes() -> None:
    pi = joined(knows_parent=False)
    assert noted(pi.hear(call(), 0.0), "call_refused")["reason"] == "no identity of cloud/a has been heard yet"
    actions = pi.hear(CARD, 0.1)
    assert pi.working_for == call()
    assert said([*actions, *pi.tick(COMPLAIN_S)], State) == []


def test_a_card_that_is_not_the_parents_is_refused_and_shown() -> None:
    pi = joined(knows_parent=False)
    told = pi.hear(Identity(card=PAPERS.identity("cloud/b").card), 0.0)
    assert noted(told, "identity_refused")["reason"] == "cloud/a shows the card of cloud/b"
    assert said(pi.tick(COMPLAIN_S), State)[0].reason == "cloud/a shows the card of cloud/b"


def other_key_of(path: str, seed: int) -> Papered:
    """A second card of the same name, as after its key was changed, or of a second box at its place."""
    key, fleet = PrivateKey(seed.to_bytes(32, "big")), PAPERS.fleet
    card = Card(federation=FEDERATION, key=key.public, not_after=2**53, path=path, serial=str(seed))
    return Papered(sign_card(card, fleet), key, fleet.public, clock=lambda: 0.0)


def test_after_the_parents_key_was_changed_its_call_counts_as_soon_as_the_new_card_is_heard() -> None:
    pi, new = joined(), other_key_of(PARENT, 7)
    assert notes(pi.hear(call(signer=new), 0.0)) == ["call_refused"]
    pi.hear(Identity(card=new.card), 0.1)
    assert pi.stage is Stage.FETCHING
    pi.hear(call(2), 1.0)
    assert pi.working_for is not None
    assert pi.working_for.round == (2,), "what the old key signed holds as well, until it is revoked"


# ------------------------------------------------------------------ the model


def test_a_keyframe_that_the_parent_did_not_seal_is_not_used() -> None:
    """One in the middle of a run holds numbers that no digest of the chain covers: only its seal does."""
    pi = joined()
    pi.hear(call(), 0.0)
    lie = replace(keyframe(weights(66.0)), digest=OFFER.chain.digest)
    for signer in (None, OF_PI, PAPERS.identity("cloud/b")):
        cut = Cut.kept(keyframe_pieces(lie), in_memory, seal=keyframe_seal(signer, lie))
        part = KeyPart(version=0, blob=cut.name, size=cut.size, data=bytes(cut.blob))
        assert set(notes(pi.hear(part, 1.0))) & {"forged", "malformed"}
        assert pi.stage is Stage.FETCHING
    assert "is not the one it signed" in said(pi.tick(1.0 + COMPLAIN_S), State)[0].reason
    actions = pi.hear(KEY, 20.0)
    assert values(MATH.weights(of(actions, Work)[0].model)) == [1.0]
    assert said(actions, State)[0].reason == ""


def test_a_sealed_keyframe_of_another_digest_does_not_lead_to_what_was_called() -> None:
    """The parent's own, of another run that began elsewhere: a replay."""
    other = offered(weights(5.0), signer=OF_PARENT)
    pi = joined()
    pi.hear(call(), 0.0)
    assert "chain_broken" in notes(pi.hear(key_parts(other)[0], 1.0))
    assert pi.stage is Stage.FETCHING


def test_an_altered_delta_does_not_lead_to_the_signed_digest() -> None:
    pi = joined()
    pi.hear(call(model=NEXT), 0.0)
    pi.hear(KEY, 0.1)
    wrong = delta_parts(offered(weights(1.0), weights(4.0), signer=OF_PARENT), 1)[0]
    assert "chain_broken" in notes(pi.hear(wrong, 0.2))
    pi.hear(KEY, 0.3)
    (work,) = of(pi.hear(DELTA, 0.4), Work)
    assert values(MATH.weights(work.model)) == [4.0]


def test_all_of_the_digest_counts_not_its_first_digits() -> None:
    pi = joined()
    near = whole(OFFER.manifest, MODEL.digest[:16] + "0" * 48)
    assert "chain_broken" in notes(working(pi, call(model=near)))
    assert pi.stage is Stage.FETCHING


# ------------------------------------------------------------------ what it hands in


def test_an_update_that_nobody_answers_is_probed_for_together_with_the_card() -> None:
    """The parent may not have heard it, and would not keep a part before it has."""
    pi = joined()
    handed_in(pi)
    probe = pi.tick(1.0 + PROBE_S)
    assert (len(said(probe, Identity)), len(said(probe, UpdatePart))) == (1, 1)


def test_after_a_restart_it_hands_in_the_very_same_bytes() -> None:
    pi = joined()
    part = handed_in(pi)
    assert said(Pi(saved=pi.kept).connected(2.0), UpdatePart) == [part]


def test_after_a_change_of_its_key_what_is_in_the_outbox_is_sealed_anew() -> None:
    pi = joined()
    part = handed_in(pi)
    new = other_key_of(PI, 9)
    again = Pi(saved=pi.kept, signer=new)
    actions = again.connected(2.0)
    assert said(actions, UpdatePart) == [], "over a bridge it could overtake the new card, an announcement cannot"
    (announced,) = said(actions, Announce)
    (found,) = said(again.hear(Want(blob=announced.blob, parts=(0,)), 2.1), UpdatePart)
    assert found.blob != part.blob
    assert is_signed_by_pi(found, new)
    assert bytes(unsealed(found.data)[0]) == bytes(unsealed(part.data)[0])
    assert said(Pi(saved=again.kept, signer=new).connected(3.0), UpdatePart) == [found], "and that is kept"
    assert sum(key.startswith("up/blob/") for key in again.kept) == 1


# ------------------------------------------------------------------ beside those who sign nothing


def _asked_for(pi: Participant) -> UpdatePart:
    (announced,) = said(pi.connected(2.0), Announce)
    (found,) = said(pi.hear(Want(blob=announced.blob, parts=(0,)), 2.1), UpdatePart)
    return found


def plain() -> Participant:
    pi = Participant(path=PI, boot=1, info=info(), max_model=2**20)
    pi.connected(0.0)
    return pi


def test_a_node_without_an_identity_says_that_its_parent_signs() -> None:
    pi = plain()
    assert "give this node its identity" in noted(pi.hear(call(), 0.0), "call_refused")["reason"]
    assert pi.stage is Stage.JOINED
    assert pi.hear(CARD, 0.0) == []
    assert "give this node its identity" in said(pi.tick(COMPLAIN_S), State)[0].reason


def test_an_update_made_before_signing_began_is_sealed_and_one_made_when_it_ended_is_not() -> None:
    pi = joined()
    part = handed_in(pi)
    later = Participant(path=PI, boot=2, info=info(), max_model=2**20, saved=dict(pi.kept))
    bare = _asked_for(later)
    assert bytes(bare.data) == bytes(unsealed(part.data)[0])
    old = plain()
    old.hear(call(signer=None, model=OFFER.manifest), 0.0)
    old.hear(key_parts(offered(weights(1.0)))[0], 0.1)
    kept = {
        key: bytes(value)
        for one in of(old.worked("r/g1", RESULT, 1.0), Persist)
        for key, value in one.changes.items()
        if value
    }
    assert is_signed_by_pi(_asked_for(Pi(saved=kept)))


def test_nothing_at_all_is_signed_where_there_is_no_identity() -> None:
    pi = plain()
    said_at_first = pi.connected(0.0)
    assert said(said_at_first, Identity) == []
    assert [type(action) for action in said_at_first if isinstance(action, Note | Persist)] == []
    pi.hear(call(signer=None, model=OFFER.manifest), 0.0)
    assert said(pi.hear(DELTA, 0.0), ModelPart) == []
