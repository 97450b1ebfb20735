"""A simulation's YAML: what it says becomes the plan, and what goes wrong in it is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfl_mqtt.config.roles import load_role
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.sim import Fault, Keeps, Moment, What
from hfl_mqtt.sim.config import SimulationConfig


def load(folder: Path, text: str) -> SimulationConfig:
    file = folder / "sim.yaml"
    file.write_text(f"role: simulation\n{text}", encoding="utf-8")
    return load_role(file, SimulationConfig)


def test_what_is_said_becomes_the_plan(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "edges: 2\nclients: 3\nrounds: 4\nfaults:\n"
        "- {who: cloud/farm-1, what: kill, at: 5 s, lasts: 1 min, moment: after commit}\n"
        "- {who: cloud/*/pi-1, what: noise, at: 0, lasts: 10, loss: 20 %}\n"
        "- {who: cloud, what: broker, at: 1, lasts: 2, keeps: nothing}\n",
    )
    assert config.tree() == {
        "cloud": ["farm-1", "farm-2"],
        "cloud/farm-1": ["pi-1", "pi-2"],
        "cloud/farm-2": ["pi-1"],
    }
    assert [tier.rounds for tier in config.to_tiers()] == [4, 1]
    assert not config.to_setting().signed
    assert load(tmp_path, "signed: true\n").to_setting().signed
    assert config.to_faults() == (
        Fault(who="cloud/farm-1", what=What.KILL, at_s=5.0, lasts_s=60.0, moment=Moment.AFTER_COMMIT),
        Fault(who="cloud/*/pi-1", what=What.NOISE, at_s=0.0, lasts_s=10.0, loss=0.2),
        Fault(who="cloud", what=What.BROKER, at_s=1.0, lasts_s=2.0, keeps=Keeps.NOTHING),
    )


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("{who: cloud/farm-9, what: kill, at: 1}", "5:9 faults[0].who: 'cloud/farm-9' is no node of this federation"),
        ("{who: cloud, what: bridge, at: 1}", "5:9 faults[0].who: 'bridge' befalls an edge, not 'cloud'"),
        ("{who: cloud, what: no work, at: 1}", "5:9 faults[0].who: 'no work' befalls a device, not 'cloud'"),
        ("{who: cloud, what: explode, at: 1}", "5:22 faults[0].what: must be 'kill', 'wipe', 'power'"),
        ("{who: cloud, what: kill, at: 1, loss: 5 %}", "loss: goes with what: noise, not with kill"),
        ("{who: cloud, what: noise, at: 1}", "noise needs at least one of loss, duplication, reordering, corruption"),
        ("{who: cloud, what: kill, at: 1, every: 2}", "every: needs lasts: for how long it comes and goes"),
        ("{who: cloud, what: kill, at: 1, last: 2}", "did you mean"),
    ],
)
def test_what_does_not_go_together_is_told_with_its_line(tmp_path: Path, fault: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"rounds: 2\nclients: 3\nfaults:\n- {fault}\n")
    assert told in str(caught.value), str(caught.value)


def test_farms_without_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 devices do not fill 3 farms"):
        load(tmp_path, "edges: 3\nclients: 2\n")
