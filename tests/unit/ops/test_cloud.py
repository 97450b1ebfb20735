"""Where a run's files go."""

from pathlib import Path

import pytest

from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.cloud import finished_run, link_latest, make_folder
from hfl_mqtt.roles import runs
from hfl_mqtt.state.vault import Vault


def test_every_run_has_a_folder_of_its_own_and_latest_leads_to_the_last_with_a_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = make_folder(out, "run-1")
    (first / "model.safetensors").write_bytes(b"first")
    link_latest(out, "run-1")
    second = make_folder(out, "run-2")
    assert (out / "latest").resolve() == first.resolve()  # the second has no result yet
    link_latest(out, "run-2")
    assert (out / "latest").resolve() == second.resolve()
    assert (first / "model.safetensors").read_bytes() == b"first"
    assert sorted(path.name for path in out.iterdir()) == ["latest", "run-1", "run-2"]


def test_a_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(HflError, match="set out: to another folder"):
        make_folder(tmp_path / "out", "run-1")
    with pytest.raises(HflError, match="set out: to another folder"):
        link_latest(tmp_path / "out", "run-1")


def test_the_command_for_another_run_finds_the_state_that_the_service_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    given = {"role": "cloud", "federation": "fed1", "broker": {"host": "x"}, "task": {"name": "mnist"}, "rounds": 3}
    config = CloudConfig.model_validate(given)
    assert finished_run(config) is None, "nothing is kept yet"
    vault = Vault(config.state_path())
    runs.end(vault, "cloud", runs.Finished(run="r1", folder="out/r1", asked=runs.asked(config)))
    vault.close()
    assert f"begins with XDG_STATE_HOME={tmp_path} hfl cloud --new" in str(finished_run(config))
