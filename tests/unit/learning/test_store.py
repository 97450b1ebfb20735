"""Checkpoints that survive."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from hfl_mqtt import __version__
from hfl_mqtt.errors import HflError
from hfl_mqtt.learning import store
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.store import Tags, load, save
from hfl_mqtt.learning.weights import digest

WEIGHTS: Weights = {
    "z": np.array([[1.5, -0.0], [3, 4]], dtype="f4"),
    "a": np.array(7, dtype="i8"),
    "flag": np.array([True, False]),
    "none": np.zeros((0, 3), dtype="f2"),
}
TAGS = Tags(task="mnist", run="r1", round="g12", digest=digest(WEIGHTS))


def test_a_checkpoint_comes_back_as_it_was_with_its_order_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, WEIGHTS, TAGS)
    weights, tags = load(path)
    assert list(weights) == list(WEIGHTS)
    assert digest(weights) == digest(WEIGHTS)
    assert tags == TAGS
    assert tags.software == __version__
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_strided_tensors_are_saved_by_value(tmp_path: Path) -> None:
    weights: Weights = {"w": np.arange(12, dtype="f4").reshape(3, 4).T[::2]}
    save(tmp_path / "m", weights, Tags(task="t", run="r", round="g1", digest=digest(weights)))
    assert np.array_equal(load(tmp_path / "m")[0]["w"], weights["w"])


def test_a_later_checkpoint_replaces_an_earlier_one(tmp_path: Path) -> None:
    later: Weights = {"w": np.ones(3, dtype="f4")}
    save(tmp_path / "m", WEIGHTS, TAGS)
    save(tmp_path / "m", later, Tags(task="t", run="r", round="g13", digest=digest(later)))
    assert load(tmp_path / "m")[1].round == "g13"


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(path, WEIGHTS, TAGS)
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for place in [0, 4, 8, 9, *range(header_end, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(HflError, match="damaged"):
            load(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 100, b"x" * 1000])
def test_what_is_no_checkpoint_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(HflError, match=r"m: damaged .*; restore a copy, or delete it"):
        load(tmp_path / "m")


def test_a_missing_checkpoint_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(HflError, match=r"m: no such checkpoint; check the path"):
        load(tmp_path / "m")


def test_a_checkpoint_of_another_program_is_told(tmp_path: Path) -> None:
    save_file({"w": np.zeros(1)}, tmp_path / "m")
    with pytest.raises(HflError, match="not a checkpoint of hfl-mqtt, it has no 'task'"):
        load(tmp_path / "m")


def test_a_missing_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(HflError, match=r"gone/m: cannot be written: No such file or directory; create the directory"):
        save(tmp_path / "gone" / "m", WEIGHTS, TAGS)


def test_a_write_that_fails_half_way_leaves_the_old_checkpoint_and_no_rest(tmp_path: Path) -> None:
    # A limit on file sizes is the one full disk that a test can have.
    script = f"""
import resource, numpy as np
from pathlib import Path
from hfl_mqtt.errors import HflError
from hfl_mqtt.learning.store import Tags, save
from hfl_mqtt.learning.weights import digest
path = Path({str(tmp_path / "m")!r})
path.write_bytes(b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
large = {{"w": np.zeros(100_000, dtype="f4")}}
try:
    save(path, large, Tags(task="t", run="r", round="g1", digest=digest(large)))
except HflError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    expected = (
        f"{tmp_path / 'm'}: cannot be written: File too large; a limit on file sizes stands in the way, see ulimit -f\n"
    )
    assert (done.stdout, done.stderr) == (expected, "")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m": b"old"}


def test_a_full_disk_is_known_from_what_safetensors_says() -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    error = store._system_error(SafetensorError(text))
    assert (error.errno, error.strerror) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(store._system_error(SafetensorError("no number here"))) == "no number here"
