"""A signed federation ends with the very model of one that signs nothing, whoever else speaks on its brokers."""

from __future__ import annotations

from dataclasses import replace

from hfl_mqtt.protocol.blobs import Cut
from hfl_mqtt.protocol.messages import Identity, Message, Phase, RoundCall, Tier, Update, UpdatePart
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import decode, encode, pack_update
from hfl_mqtt.sim import FEDERATION, Fault, Moment, Setting, Trial, What, tree_of
from hfl_mqtt.sim.papers import Papers
from hfl_mqtt.transport.link import Arrived, LinkEvent
from hfl_mqtt.transport.memory import MemoryLink

TIERS = (
    Tier(rounds=4, quorum=1.0, open_for_s=600.0, retries=100),
    Tier(rounds=2, quorum=1.0, open_for_s=60.0, retries=100),
)
PLAIN = Setting(tree=tree_of(2, 4), tiers=TIERS, work_s=(1.0, 3.0))
SIGNED = replace(PLAIN, signed=True)
FARM, PI = "cloud/farm-1", "cloud/farm-1/pi-1"


def test_signatures_change_no_bit_of_the_model_and_refuse_nothing() -> None:
    trial = Trial(SIGNED)
    signed, plain = trial.finish(), Trial(PLAIN).finish()
    assert (signed.problems, plain.problems) == ([], [])
    assert signed.model == plain.model
    assert signed.virtual_s == plain.virtual_s
    for event in ("refused", "call_refused", "identity_refused", "unidentified", "forged"):
        assert trial.notes(event) == []


def test_killed_at_each_commit_a_signed_federation_ends_with_the_same_model() -> None:
    kills = [
        Fault(who=who, what=What.KILL, at_s=at_s, lasts_s=2.0, moment=moment)
        for at_s, (who, moment) in enumerate(
            [
                (FARM, Moment.AFTER_COMMIT),
                (PI, Moment.AFTER_COMMIT),
                ("cloud", Moment.BEFORE_COMMIT),
                (FARM, Moment.AFTER_SEND),
                ("cloud", Moment.AFTER_COMMIT),
            ],
            start=2,
        )
    ]
    killed = Trial(SIGNED, kills).finish()
    assert killed.problems == []
    assert killed.model == Trial(PLAIN).finish().model


def test_two_boxes_at_each_farm_with_a_key_each_take_turns() -> None:
    setting = replace(SIGNED, holders=2, lease_s=5.0)
    kills = [
        Fault(who="cloud/*@box-1", what=What.KILL, at_s=9.0, lasts_s=60.0),
        Fault(who="cloud/*@box-2", what=What.KILL, at_s=80.0, lasts_s=60.0),
    ]
    trial = Trial(setting, kills)
    result = trial.finish()
    assert result.problems == []
    assert len(trial.notes("leads")) > 2
    assert trial.notes("refused") == []


class Mallory:
    """Hears all that is said at a farm's broker, and may say what it likes there: nobody has rights in a simulation."""

    def __init__(self, trial: Trial) -> None:
        self.calls: list[RoundCall] = []
        self._link = MemoryLink(
            trial.brokers[FARM], "mallory", [Filter(topic=f"hfl/{FEDERATION}/{FARM}/@/stat/round", qos=0)], self._hear
        )
        self._link.open()

    def _hear(self, event: LinkEvent) -> None:
        if isinstance(event, Arrived):
            message, _ = decode(event.frame)
            if isinstance(message, RoundCall) and message not in self.calls:
                self.calls.append(message)
                self._speak(message)

    def _speak(self, call: RoundCall) -> None:
        if call.phase is Phase.OPEN and call.plan.learning_rate != 1e-9:
            for message, path in self.lies(call):
                self._link.publish(encode(message, FEDERATION, path))

    def lies(self, call: RoundCall) -> list[tuple[Message, str]]:
        """Other orders in the edge's name, and a device's update, with a card of its own making."""
        orders = replace(call, plan=replace(call.plan, learning_rate=1e-9), number=call.number + 1)
        ended = replace(call, phase=Phase.FINISHED)
        cut = Cut.of(pack_update(Update(weight=10**9, payload=b"x" * 200)))
        update = UpdatePart(
            run=call.run, round=call.round, base=call.model.base, blob=cut.name, size=cut.size, data=bytes(cut.blob)
        )
        card = Identity(card=Papers(666).identity(PI).card)
        return [(orders, FARM), (ended, FARM), (card, PI), (update, PI)]


def test_who_may_say_anything_at_a_broker_changes_nothing_but_is_noted() -> None:
    trial = Trial(SIGNED)
    mallory = Mallory(trial)
    result = trial.finish()
    assert result.problems == []
    assert result.model == Trial(PLAIN).finish().model
    assert len(mallory.calls) > 4 * 2
    assert {path for path, _ in trial.notes("call_refused")} == {PI, f"{FARM}/pi-2"}
    assert {entry.fields["sender"] for _, entry in trial.notes("identity_refused")} == {PI}
    reasons = {entry.fields["reason"] for path, entry in trial.notes("refused") if path == FARM}
    assert len(reasons) == 1
    assert f"the signature is not {PI}'s" in reasons.pop()


def test_the_same_words_end_a_federation_that_signs_nothing() -> None:
    """So the test above tests something."""
    trial = Trial(replace(PLAIN, patience_s=600.0))
    Mallory(trial)
    assert trial.finish().problems != []
