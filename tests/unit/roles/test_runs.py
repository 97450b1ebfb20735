"""Which run a cloud goes on with, what may have changed meanwhile, and how long it has taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.roles import runs
from hfl_mqtt.roles.runs import Clock, Run
from hfl_mqtt.rounds.records import pack
from hfl_mqtt.state.vault import Vault

GIVEN: dict[str, Any] = {
    "role": "cloud",
    "federation": "fed1",
    "broker": {"host": "127.0.0.1"},
    "task": {"name": "mnist", "data_dir": "a"},
    "rounds": 3,
    "tiers": [{"quorum": 0.5}, {}],
}


def config(**more: Any) -> CloudConfig:
    return CloudConfig.model_validate(GIVEN | more)


def begun(tmp_path: Path) -> Vault:
    vault = Vault(tmp_path)
    vault.commit({("cloud", "run/state"): b"of an older run"})
    runs.begin(vault, "cloud", Run(id="r1", folder="out/r1", config=runs.described(config()), metric="rmse"), b"start")
    return vault


def test_an_unfinished_run_is_gone_on_with_and_its_lives_are_counted(tmp_path: Path) -> None:
    vault = begun(tmp_path)
    kept = vault.of("cloud")
    assert set(kept) == {runs.RUN, runs.START}, "what was kept of an older run is swept"
    for life in (2, 3):
        run = runs.unfinished(kept, config())
        assert run is not None
        assert (run.id, run.folder, run.metric, run.lives) == ("r1", "out/r1", "rmse", life)
        runs.go_on(vault, "cloud", run)
    runs.end(vault, "cloud")
    assert set(kept) == set()
    assert runs.unfinished(kept, config()) is None
    vault.close()


def test_when_it_ends_and_where_it_is_reached_may_change(tmp_path: Path) -> None:
    vault = begun(tmp_path)
    changed = config(rounds=9, stop={"target": 0.9}, wait_for=1, broker={"host": "10.0.0.1"}, state_dir="/elsewhere")
    assert runs.unfinished(vault.of("cloud"), changed) is not None
    vault.close()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"tiers": [{"quorum": 1.0}, {}]}, r"tiers\[0\].quorum: was 0.5, is 1.0"),
        ({"tiers": [{"quorum": 0.5}]}, "tiers: was "),
        ({"task": {"name": "mnist", "data_dir": "b"}}, 'task.data_dir: was "a", is "b"'),
        ({"task": {"name": "mnist", "data_dir": "a", "width": 3}}, "task.width: was nothing, is 3"),
        ({"plan": {"steps": 4}}, "plan.steps: was nothing, is 4"),
        ({"strategy": "fedavg(2)"}, r'strategy: was "fedavg", is "fedavg\(2\)"'),
    ],
)
def test_what_would_make_another_run_of_it_is_refused_with_what_changed_and_the_remedy(
    tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    vault = begun(tmp_path)
    with pytest.raises(ConfigError, match=f"(?s)the run r1 is unfinished.*{told}.*begin another one with --new"):
        runs.unfinished(vault.of("cloud"), config(**more))
    vault.close()


def test_what_an_older_release_did_not_know_has_not_changed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    old = runs.described(config()).replace('"mode": "sync", ', "")
    runs.begin(vault, "cloud", Run(id="r1", folder="out/r1", config=old), b"start")
    assert runs.unfinished(vault.of("cloud"), config()) is not None
    vault.close()


def test_a_run_with_a_result_stays_known_until_another_begins(tmp_path: Path) -> None:
    vault = begun(tmp_path)
    kept = vault.of("cloud")
    assert runs.finished(kept, config()) is None
    runs.end(vault, "cloud", runs.Finished(run="r1", folder="out/r1", asked=runs.asked(config())))
    assert set(kept) == {runs.FINISHED}, "all else of it is swept"
    assert runs.unfinished(kept, config()) is None
    elsewhere = config(wait_for=1, wait_at_most=9, broker={"host": "10.0.0.1"}, out="/elsewhere")
    for again in (config(), elsewhere):
        done = runs.finished(kept, again)
        assert done is not None
        assert (done.run, done.folder) == ("r1", "out/r1")
    runs.begin(vault, "cloud", Run(id="r2", folder="out/r2", config=runs.described(config())), b"start")
    assert runs.finished(kept, config()) is None
    vault.close()


@pytest.mark.parametrize("more", [{"rounds": 4}, {"stop": {"target": 0.9}}, {"seed": 1}, {"plan": {"steps": 4}}])
def test_who_asks_for_something_else_than_what_is_finished_wants_another_run(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    vault = begun(tmp_path)
    runs.end(vault, "cloud", runs.Finished(run="r1", folder="out/r1", asked=runs.asked(config())))
    assert runs.finished(vault.of("cloud"), config(**more)) is None
    vault.close()


def test_the_time_of_all_lives_is_added_up(tmp_path: Path) -> None:
    vault = begun(tmp_path)
    clock = Clock(vault.of("cloud"), "cloud")
    assert 0 <= clock.seconds < 5
    vault.commit({("cloud", runs.SECONDS): pack(runs._Seconds(40.0))})
    clock = Clock(vault.of("cloud"), "cloud")
    assert 40 <= clock.seconds < 45
    written = clock.changes()
    assert clock.changes() == {}, "not at every commit"
    vault.commit(written)
    assert 40 <= runs.read_seconds(vault.of("cloud")) < 45
    vault.close()
