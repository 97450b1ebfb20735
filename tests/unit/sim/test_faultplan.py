"""Faults as text and as data, and that each strikes and is mended when it should."""

from __future__ import annotations

import pytest

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.messages import Tier
from hfl_mqtt.sim import Fault, Keeps, Moment, Setting, Trial, What, tree_of

EDGE, DEVICE = "cloud/farm-1", "cloud/farm-1/pi-1"
SETTING = Setting(tree=tree_of(1, 2), tiers=(Tier(rounds=20, retries=1000), Tier(retries=1000)))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(who=EDGE, what=What.KILL, at_s=1.5),
        Fault(who="cloud/*", what=What.BROKER, at_s=0.25, lasts_s=3.0, keeps=Keeps.SAVED, saved_s=4.0),
        Fault(who=EDGE, what=What.NOISE, at_s=1.0, lasts_s=9.0, on_bridge=True, loss=0.1, corruption=0.5),
        Fault(who=DEVICE, what=What.SLOW_WORK, at_s=0.0, factor=3.0, moment=Moment.NOW, every_s=2.0, lasts_s=5.0),
    ],
)
def test_what_is_written_is_read_as_the_same(fault: Fault) -> None:
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("who=cloud what=kill", "a fault needs who, what and at"),
        ("who=cloud what=melt at=1", "'what=melt' is no what of a fault"),
        ("who=cloud what=kill at=soon", "'at=soon' is no at of a fault"),
        ("who=cloud what=kill when=1", "a fault has no 'when'"),
    ],
)
def test_what_is_no_fault_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Fault.parse(text)


def test_nobody_of_that_name_or_nobody_to_whom_it_can_happen_is_refused() -> None:
    for who, what in (("cloud/farm-2", What.KILL), ("cloud", What.BRIDGE), (DEVICE, What.BROKER), (EDGE, What.NO_WORK)):
        with pytest.raises(ConfigError):
            Trial(SETTING, [Fault(who=who, what=what, at_s=1.0)])


def test_a_fault_with_turns_comes_and_goes_and_is_mended_at_the_end() -> None:
    trial = Trial(SETTING, [Fault(who=DEVICE, what=What.LINK, at_s=1.0, lasts_s=5.0, every_s=2.0)])
    assert trial.last_fault_s == 6.0
    trial.start()
    seen = []
    for now in (0.5, 1.5, 3.5, 5.5, 6.5):
        trial.run(until_s=now)
        seen.append(trial.places[DEVICE].is_cut_off)
    assert seen == [False, True, False, True, False]


def test_a_fault_whose_last_turn_falls_on_its_end_is_mended_for_good() -> None:
    trial = Trial(SETTING, [Fault(who=DEVICE, what=What.LINK, at_s=5.322, lasts_s=3.246, every_s=0.541)])
    trial.start()
    trial.run(until_s=9.0)
    assert not trial.places[DEVICE].is_cut_off


def test_a_pattern_befalls_all_of_them() -> None:
    trial = Trial(SETTING, [Fault(who="cloud/farm-1/*", what=What.KILL, at_s=0.5)])
    trial.start()
    trial.run(until_s=0.75)
    assert [path for path, place in trial.places.items() if place.shell is None] == [DEVICE, "cloud/farm-1/pi-2"]


def test_a_node_that_is_to_die_before_its_commit_keeps_nothing_of_it_and_after_it_all() -> None:
    for moment, is_kept in ((Moment.BEFORE_COMMIT, False), (Moment.AFTER_COMMIT, True)):
        trial = Trial(SETTING, [Fault(who=DEVICE, what=What.KILL, at_s=0.9, moment=moment)])
        trial.start()
        trial.run(until_s=1.5)
        assert trial.places[DEVICE].shell is None
        assert any(key.startswith("up/") for key in trial.places[DEVICE].vault) is is_kept


def test_a_node_that_lost_its_disk_has_nothing_left() -> None:
    trial = Trial(SETTING, [Fault(who=DEVICE, what=What.WIPE, at_s=1.5)])
    trial.start()
    trial.run(until_s=1.4)
    assert trial.places[DEVICE].vault
    trial.run(until_s=1.6)
    assert not trial.places[DEVICE].vault


def test_a_power_cut_takes_the_edge_its_devices_and_its_broker_and_no_more() -> None:
    trial = Trial(SETTING, [Fault(who=EDGE, what=What.POWER, at_s=0.5)])
    trial.start()
    trial.run(until_s=0.6)
    assert [path for path, place in trial.places.items() if place.shell is not None] == ["cloud"]
    assert [path for path, broker in trial.brokers.items() if broker.is_up] == ["cloud"]
