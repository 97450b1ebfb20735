"""What coding cut off, on disk: of one run and one parent, and only of updates that were accepted."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hfl_mqtt.errors import HflError
from hfl_mqtt.learning import residuals
from hfl_mqtt.learning.contracts import Weights

ABOVE = "cloud/farm-a"


FIRST, SECOND = "a" * 16, "b" * 16


def cut_off(value: float) -> Weights:
    return {"w": np.full((2, 2), value, dtype="f4"), "b": np.array(value, dtype="f8")}


def values(path: Path) -> list[float] | None:
    """The two numbers in a residual of run r1, or None."""
    found = residuals.load(path, "r1", ABOVE)
    return None if found is None else [float(found["w"][1, 1]), float(found["b"])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return residuals.path_of(tmp_path, f"{ABOVE}/pi-07")


def test_every_node_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert residuals.path_of(tmp_path, "cloud/farm-a/pi-07") == tmp_path / "cloud+farm-a+pi-07.residual"


def test_an_idle_agent_renames_without_numpy() -> None:
    code = (
        "import sys; from pathlib import Path; from hfl_mqtt.learning import residuals; "
        "residuals.keep(Path('/no/such/folder/x'), 'a' * 16); "
        "print([m for m in ('numpy', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_cut_off_comes_back_as_it_was(path: Path) -> None:
    residuals.save(path, cut_off(0.25), "r1", ABOVE)
    found = residuals.load(path, "r1", ABOVE)
    assert found is not None
    assert {name: (array.dtype.str, array.shape) for name, array in found.items()} == {
        "w": ("<f4", (2, 2)),
        "b": ("<f8", ()),
    }
    assert values(path) == [0.25, 0.25]


def test_the_new_one_waits_until_its_update_was_accepted(path: Path) -> None:
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    assert residuals.wait(path, cut_off(2.0), "r1", ABOVE, FIRST) == residuals.pending(path, FIRST).stat().st_size
    assert values(path) == [1.0, 1.0]
    residuals.keep(path, FIRST)
    assert values(path) == [2.0, 2.0]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_receipt_that_comes_again_changes_nothing_nor_does_one_for_an_update_before(path: Path) -> None:
    residuals.wait(path, cut_off(1.0), "r1", ABOVE, FIRST)
    residuals.keep(path, FIRST)
    residuals.wait(path, cut_off(2.0), "r1", ABOVE, SECOND)
    residuals.keep(path, FIRST)
    assert values(path) == [1.0, 1.0]
    residuals.keep(path, SECOND)
    residuals.keep(path, SECOND)
    assert values(path) == [2.0, 2.0]


def test_a_refused_update_leaves_it_as_it_was_and_the_next_takes_the_place_of_what_waited(path: Path) -> None:
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    residuals.wait(path, cut_off(2.0), "r1", ABOVE, FIRST)  # no `keep`: refused
    residuals.wait(path, cut_off(3.0), "r1", ABOVE, SECOND)
    assert values(path) == [1.0, 1.0]
    assert not residuals.pending(path, FIRST).exists()
    residuals.keep(path, SECOND)
    assert values(path) == [3.0, 3.0]


def test_an_update_that_lost_nothing_takes_along_what_was_owed(path: Path) -> None:
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    residuals.wait(path, None, "r1", ABOVE, FIRST)
    assert values(path) == [1.0, 1.0], "it is not accepted yet"
    residuals.keep(path, FIRST)
    assert residuals.load(path, "r1", ABOVE) == {}


def test_where_nothing_was_owed_and_nothing_is_no_file_is_written(path: Path) -> None:
    assert residuals.wait(path, None, "r1", ABOVE, FIRST) == 0
    residuals.keep(path, FIRST)
    assert list(path.parent.iterdir()) == []


def test_what_is_owed_to_a_parent_that_was_left_is_dropped_and_no_other_nodes(path: Path) -> None:
    other = residuals.path_of(path.parent, f"{ABOVE}/pi-07.residual.x")
    for one in (path, other):
        residuals.save(one, cut_off(1.0), "r1", ABOVE)
        residuals.wait(one, cut_off(2.0), "r1", ABOVE, FIRST)
    residuals.forget(path)
    assert {one.name for one in path.parent.iterdir()} == {other.name, f"{other.name}.{FIRST}"}


def test_another_run_or_another_parent_finds_nothing(path: Path) -> None:
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    assert residuals.load(path, "r2", ABOVE) is None
    assert residuals.load(path, "r1", "cloud/farm-b") is None


def test_no_file_and_a_damaged_one_are_nothing(path: Path) -> None:
    assert values(path) is None
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    whole = path.read_bytes()
    for damaged in (b"", b"\xff" * 40, whole[:5], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        assert values(path) is None


def test_a_file_without_tags_is_nothing(path: Path) -> None:
    save_file(cut_off(1.0), path)
    assert values(path) is None


def test_a_folder_that_cannot_be_written_is_told_with_its_name(tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path / "gone", "cloud/farm-a/pi-07")
    with pytest.raises(HflError, match="gone"):
        residuals.save(path, cut_off(1.0), "r1", ABOVE)


def test_nobody_else_reads_it_halfway(path: Path) -> None:
    residuals.save(path, cut_off(1.0), "r1", ABOVE)
    before = path.stat().st_ino
    residuals.save(path, cut_off(2.0), "r1", ABOVE)
    assert path.stat().st_ino != before, "a new file in its place, not the old one written over"
    assert stat.S_ISREG(path.stat().st_mode)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
