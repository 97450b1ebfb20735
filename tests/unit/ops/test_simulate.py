"""`hfl simulate`: what it prints, its JSON, and its exit code where an invariant breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.simulate import simulate

SMALL = "role: simulation\nedges: 2\nclients: 4\nrounds: 2\n"
KILLED = "faults:\n- {who: cloud/farm-1/pi-1, what: kill, at: 500 ms, lasts: 5 s}\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "sim.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_it_tells_what_happens_and_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(written(tmp_path, SMALL + KILLED), as_json=False)
    out = capsys.readouterr().out
    assert "cloud/farm-1/pi-1        fault what=kill" in out
    assert "g1 train: 2 of 2 edges" in out
    assert "every invariant held" in out


def test_equal_seeds_give_equal_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def facts(seed: int) -> dict[str, object]:
        simulate(written(tmp_path, SMALL + KILLED), as_json=True, seed=seed)
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return {key: value for key, value in found.items() if key not in ("real_s", "client_rounds_per_s")}

    assert facts(1) == facts(1)
    assert facts(1) != facts(2)
    assert facts(1)["problems"] == []


def test_a_run_that_does_not_end_is_a_broken_invariant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = SMALL + "patience: 1 h\nfaults:\n- {who: cloud, what: broker, at: 1 s}\n"
    with pytest.raises(HflError, match="the run is not over 3600 s after the last fault") as caught:
        simulate(written(tmp_path, dead), as_json=True)
    assert caught.value.exit_code == 1
    assert json.loads(capsys.readouterr().out)["failure"] == "not over"
