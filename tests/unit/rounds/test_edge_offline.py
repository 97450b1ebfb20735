"""An edge whose bridge is down goes on with its children, and hands in one contribution, late, when it is back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hfl_mqtt.protocol.messages import Buffer, Late, Phase, Plan, RoundCall, Tier
from hfl_mqtt.rounds.actions import Action, Bridged, Connected, Event, Persist, Received
from hfl_mqtt.rounds.edge import BRIDGE_WAIT_S, OFFLINE_AFTER_S, EdgeNode
from hfl_mqtt.sim.invariants import Ledger
from tests.unit.rounds.farms import TREE, Farms
from tests.unit.rounds.trees import MATH, READY, info, key_parts, notes, of, offered, quick, said, update_parts, weights

#: A client works for so long.
WORK_S = 10.0


def farms_of(offline_rounds: int, late: Late = Late.DISCOUNT, *, quorum: int = 1, **options: Any) -> Farms:
    top = Tier(open_for_s=20.0, quorum=quorum, retries=20, grace_s=15.0, codec="raw", downlink="raw", late=late)
    return Farms(
        TREE,
        size=10,
        rounds=options.pop("rounds", 14),
        tier={"quorum": 1.0, "retries": 3, "offline_rounds": offline_rounds},
        schedule={"tier": top},
        work_s=lambda _path: WORK_S,
        **options,
    )


def cut(farms: Farms, from_s: float, to_s: float, path: str = "cloud/a") -> None:
    farms.at(from_s, lambda: farms.bridges[path].cut())
    farms.at(to_s, lambda: farms.bridges[path].restore())


def finished(farms: Farms) -> Farms:
    farms.start()
    end = farms.run(until_s=20_000)
    assert end is not None, "the run hangs"
    assert end.failure is None
    ledger = Ledger.of({"node": path, "event": entry.event, **entry.fields} for _, path, entry in farms.trace)
    assert ledger.problems == []
    return farms


def fields(farms: Farms, path: str, event: str) -> list[Mapping[str, Any]]:
    return [entry.fields for place, entry in farms.notes(event) if place == path]


def accepted_late(farms: Farms, sender: str = "cloud/a") -> list[tuple[str, int]]:
    """Return of which rounds updates of this farm came late, and how late."""
    found = [each for each in fields(farms, "cloud", "accepted") if each["sender"] == sender and each.get("late")]
    return [(each["of"], each["staleness"]) for each in found]


def rounds_of(farms: Farms, path: str = "cloud/a") -> list[str]:
    return [each["round"] for each in fields(farms, path, "opened")]


def test_rounds_without_a_parent_are_merged_into_the_contribution_that_waits() -> None:
    farms = farms_of(4)
    cut(farms, 15.0, 150.0)
    finished(farms)
    assert rounds_of(farms)[:6] == ["g1.e1", "g2.e1", "g2.e2", "g2.e3", "g2.e4", "g2.e5"]
    first, *_ = accepted_late(farms)
    assert first[0] == "g2"
    assert first[1] > 3
    worked = [each["round"] for each in fields(farms, "cloud/a", "worked")]
    assert worked.count("g2") == 2, "what was ready after g2.e1 was replaced by what there was after g2.e5"
    assert [each["done"] for each in fields(farms, "cloud/a", "carries_on")] == [1]
    (update,) = [each for each in fields(farms, "cloud", "accepted") if each["of"] == "g2" and each["weight"] == 2]
    assert update["sender"] == "cloud/a", "each child counts once"


def test_an_outage_that_is_short_or_offline_rounds_that_are_not_wanted_change_nothing() -> None:
    for farms, to_s in ((farms_of(4), 14.0 + OFFLINE_AFTER_S), (farms_of(0), 150.0), (farms_of(4, Late.DROP), 150.0)):
        cut(farms, 15.0, to_s)
        finished(farms)
        assert not farms.notes("carries_on")
        assert all(name.endswith(".e1") for name in rounds_of(farms))


def test_after_a_contribution_that_counted_another_one_is_made() -> None:
    farms = farms_of(2, quorum=2)  # the cloud waits for farm b, which is slow
    farms.places["cloud/b/3"].slowness = 12.0
    cut(farms, 15.0, 100.0)
    finished(farms)
    (told,) = fields(farms, "cloud/a", "carries_on")
    assert rounds_of(farms)[:3] == ["g1.e1", "g1.e2", "g1.e3"]
    late = [each for each in fields(farms, "cloud", "accepted") if each["sender"] == "cloud/a" and each.get("late")]
    assert (late[0]["of"], late[0]["base"]) == ("g1", told["base"]), "it starts from the farm's own model"
    assert late[0]["round"] == "g2"


@pytest.mark.parametrize("edge_rounds", [1, 2])
@pytest.mark.parametrize("codecs", [("raw", "raw"), ("stc(0.1)", "int8")])
def test_killed_while_its_parent_is_out_of_reach_an_edge_goes_on_to_the_same_bits(
    edge_rounds: int, codecs: tuple[str, str]
) -> None:
    models = []
    for deaths in ((), (50.0, 58.0, 71.0, 88.0)):
        codec, downlink = codecs
        farms = farms_of(3, quorum=2, codec=codec, downlink=downlink, edge_rounds=edge_rounds, rounds=6)
        cut(farms, 15.0, 300.0)
        for at_s in deaths:
            farms.at(at_s, lambda farms=farms: farms.kill("cloud/a"))  # type: ignore[misc]
            farms.at(at_s + 0.1, lambda farms=farms: farms.start_node("cloud/a"))  # type: ignore[misc]
        finished(farms)
        assert f"e{edge_rounds + 3}" in {name.partition(".")[2] for name in rounds_of(farms)}, "all of them were done"
        models.append(farms.cloud.weights["w"].tobytes())
    assert models[0] == models[1]


# ------------------------------------------------------------------ one edge, by hand


class Farm:
    """An edge with one child, and its parent's first call."""

    def __init__(self, **tier: Any) -> None:
        self.now = 0.0
        self.vault: dict[str, Buffer] = {}
        self.node = EdgeNode(path="cloud/a", boot=1, info=info("edge"), arithmetic=MATH)
        self.node.start(0.0)
        self.node.handle(Connected(), 0.0)
        self.hear(READY, "cloud/a/i")
        offer = offered(weights(0.0))
        self.call = RoundCall(
            run="r",
            round=(1,),
            asked=1,
            quorum=1,
            open_for_s=60.0,
            codec="raw",
            plan=Plan(task="t", tiers=(quick(codec="raw", downlink="raw", **tier),)),
            model=offer.manifest,
            late=Late.NEXT,
        )
        self.opened = self._opened(self.hear(self.call) + self.hear(key_parts(offer)[0]))

    def hear(self, message: Any, sender: str = "cloud") -> list[Action]:
        return self.handle(Received(message=message, sender=sender))

    def bridged(self, is_up: bool) -> list[Action]:
        return self.handle(Bridged(is_up=is_up))

    def handle(self, event: Event) -> list[Action]:
        actions = self.node.handle(event, self.now)
        for persist in of(actions, Persist):
            self.vault.update({key: value for key, value in persist.changes.items() if value is not None})
        return actions

    def learn(self, value: float) -> list[Action]:
        """Let the child answer the call it has; what is opened then is the next."""
        (part,) = update_parts(self.opened, weights(value), 1)
        actions = self.hear(part, "cloud/a/i")
        found = [call for call in said(actions, RoundCall) if call.phase is Phase.OPEN]
        self.opened = found[-1] if found else self.opened
        return actions

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.node.tick(self.now)

    @staticmethod
    def _opened(actions: list[Action]) -> RoundCall:
        (call,) = [call for call in said(actions, RoundCall) if call.phase is Phase.OPEN]
        return call


def test_a_state_of_the_bridge_that_is_told_twice_is_noted_once() -> None:
    farm = Farm(offline_rounds=1)
    assert [notes(farm.bridged(is_up)) for is_up in (True, False, False, True)] == [[], ["bridge"], [], ["bridge"]]


def test_a_further_round_that_nobody_answers_ends_it_until_the_bridge_has_been_up_again() -> None:
    farm = Farm(offline_rounds=3, open_for_s=10.0)
    farm.bridged(is_up=False)
    assert "worked" in notes(farm.learn(1.0))
    assert farm.node.next_deadline is not None
    assert "carries_on" in notes(farm.wait(OFFLINE_AFTER_S))
    missed = farm.wait(10.0)
    assert [each for each in notes(missed) if each in ("missed", "worked")] == ["missed", "worked"]
    assert not any("carries_on" in notes(farm.wait(10.0)) for _ in range(20))


def test_a_word_that_can_only_have_come_over_the_bridge_says_that_it_is_up() -> None:
    farm = Farm(offline_rounds=1)
    farm.bridged(is_up=False)
    assert "bridge" not in notes(farm.hear(farm.call)), "our own broker retains that one"
    again = RoundCall(**{**{name: getattr(farm.call, name) for name in farm.call.__slots__}, "attempt": 1})
    assert "bridge" in notes(farm.hear(again))


def test_an_edge_that_died_while_its_bridge_was_down_takes_it_as_down_until_it_hears_or_long_hears_nothing() -> None:
    farm = Farm()
    farm.bridged(is_up=False)
    for word in (True, None):
        again = EdgeNode(path="cloud/a", boot=2, info=info("edge"), arithmetic=MATH, saved=farm.vault)
        again.start(0.0)
        assert not again.participant.is_bridged
        again.handle(Connected(), 5.0)
        if word is not None:
            again.handle(Bridged(is_up=word), 5.0)
        else:
            assert again.next_deadline == 5.0 + BRIDGE_WAIT_S
            again.tick(5.0 + BRIDGE_WAIT_S)
        assert again.participant.is_bridged


def test_what_an_edge_put_down_before_its_first_run_can_be_read_again() -> None:
    node = EdgeNode(path="cloud/a", boot=1, info=info("edge"), arithmetic=MATH)
    node.start(0.0)
    (persist,) = of(node.handle(Bridged(is_up=False), 0.0), Persist)
    saved = {key: value for key, value in persist.changes.items() if value is not None}
    again = EdgeNode(path="cloud/a", boot=2, info=info("edge"), arithmetic=MATH, saved=saved)
    assert notes(again.start(0.0)) == []
    assert not again.participant.is_bridged
