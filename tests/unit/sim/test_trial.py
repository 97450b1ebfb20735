"""What a run tells of itself, and what becomes of a farm that is cut off for long."""

from __future__ import annotations

from dataclasses import replace

from hfl_mqtt.protocol.messages import Late, Tier
from hfl_mqtt.rounds.actions import Persist
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.sim import Fault, Setting, Trial, What, tree_of

CLOUD = Tier(rounds=14, quorum=0.5, open_for_s=600.0, grace_s=5.0, retries=1000, codec="raw", late=Late.DISCOUNT)
FARM = replace(CLOUD, rounds=1, quorum=1.0, open_for_s=60.0, offline_rounds=3)
SETTING = Setting(tree=tree_of(2, 4), tiers=(CLOUD, FARM), work_s=(4.0, 4.0))


def test_a_run_tells_what_was_accepted_and_what_counted() -> None:
    result = Trial(Setting(tree=tree_of(2, 4), tiers=(Tier(rounds=3), Tier(rounds=2)))).finish()
    assert result.problems == []
    assert (result.rounds, result.client_rounds) == (3, 3 * 2 * 4)
    assert (result.train.accepted, result.train.counted) == (3 * 2 * 4 + 3 * 2, 3 * 2 * 4 + 3 * 2)
    assert result.entered == {"cloud": 6, "cloud/farm-1": 12, "cloud/farm-2": 12}


def test_a_farm_cut_off_for_ten_rounds_returns_with_staleness_ten_and_the_model_is_better_for_it() -> None:
    cut = Fault(who="cloud/farm-2", what=What.BRIDGE, at_s=5.0, lasts_s=91.0)
    trial = Trial(SETTING, [cut])
    returned = trial.finish()
    late = [entry for path, entry in trial.notes("accepted") if path == "cloud" and entry.fields.get("late")]
    assert [entry.fields["staleness"] for entry in late] == [10]
    absent = Trial(SETTING, [replace(cut, lasts_s=None)]).finish()
    assert (returned.problems, absent.problems) == ([], [])
    assert returned.error is not None
    assert absent.error is not None
    assert returned.error < absent.error


def test_a_thousand_devices_take_part_and_all_of_them_count() -> None:
    tiers = (Tier(rounds=1, grace_s=60.0), Tier(grace_s=30.0, quorum=1.0))
    result = Trial(Setting(tree=tree_of(10, 1000), tiers=tiers, work_s=(1.0, 10.0))).finish()
    assert result.problems == []
    assert result.client_rounds == 1000


class Forgetful(Trial):
    """Disks that lose one kind of thing."""

    def persist(self, node: Node, changes: Persist) -> None:
        kept = {key: value for key, value in changes.changes.items() if not key.startswith("down/accepted")}
        super().persist(node, Persist(changes=kept, is_urgent=changes.is_urgent))


def test_an_edge_that_forgets_what_it_accepted_breaks_an_invariant() -> None:
    # Their own paces: the third is done after 2 s, the others after more than 6.
    setting = Setting(tree=tree_of(1, 3), tiers=(Tier(rounds=1), Tier(quorum=3, retries=100)), work_s=(1.0, 9.0))
    killed = Fault(who="cloud/farm-1", what=What.KILL, at_s=5.0, lasts_s=1.0)
    assert Trial(setting, [killed]).finish().problems == []
    problems = Forgetful(setting, [killed]).finish().problems
    assert any("forgot" in problem and "when it was restarted" in problem for problem in problems), problems
