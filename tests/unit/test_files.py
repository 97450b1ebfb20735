"""Files that survive: small texts and the boot counter."""

import errno
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from hfl_mqtt import files
from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.files import LOST_BOOT, next_boot, write_bytes, write_text


def test_a_missing_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(HflError, match=r"gone/m: cannot be written: No such file or directory; create the directory"):
        write_text(tmp_path / "gone" / "m", "x")


def test_a_file_in_place_of_a_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HflError, match="a file stands where a directory should be"):
        write_text(tmp_path / "file" / "m", "x")


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    # A limit on file sizes is the one full disk that a test can have.
    script = f"""
import resource
from pathlib import Path
from hfl_mqtt.errors import HflError
from hfl_mqtt.files import write_bytes
path = Path({str(tmp_path / "m")!r})
write_bytes(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes(path, bytes(400_000))
except HflError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    expected = (
        f"{tmp_path / 'm'}: cannot be written: File too large; a limit on file sizes stands in the way, see ulimit -f\n"
    )
    assert (done.stdout, done.stderr) == (expected, "")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m": b"old"}


def test_a_full_disk_is_told_with_what_to_do() -> None:
    told = "No space left on device; free some space or choose another directory"
    assert files._reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == told


def test_an_error_nobody_knows_advice_for_is_told_as_it_is() -> None:
    assert files._reason(OSError(errno.ENXIO, "x")) == os.strerror(errno.ENXIO)
    assert files._reason(OSError("something else")) == "something else"


def test_the_rest_of_a_killed_write_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".m.tmp").write_bytes(b"half of something long")
    write_bytes(tmp_path / "m", b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m": b"new"}


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "m", "21 °C\n")
    assert (tmp_path / "m").read_bytes() == b"21 \xc2\xb0C\n"


def test_a_boot_counter_counts_starts_of_each_node(tmp_path: Path) -> None:
    state = tmp_path / "made" / "here"
    write_text(state_of(state) / "cloud+farm-a.boot", "5\n")
    first = next_boot(state, "cloud/farm-a/pi-07")
    assert [next_boot(state, "cloud/farm-a/pi-07") for _ in range(2)] == [first + 1, first + 2]
    assert next_boot(state, "cloud/farm-a") == 6


def state_of(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_a_node_whose_disk_was_replaced_speaks_above_its_former_life(tmp_path: Path) -> None:
    before = next_boot(tmp_path / "old", "n")
    assert before == pytest.approx(time.time() - datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp(), abs=60)
    assert next_boot(tmp_path / "new", "n") >= before


def test_a_board_without_a_clock_counts_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 42.0)  # January 1970
    assert [next_boot(tmp_path, "n") for _ in range(2)] == [1, 2]
    assert files.last_boot(tmp_path, "n") == 2
    assert files.last_boot(tmp_path, "another") == 0


def test_what_is_written_for_good_is_counted(tmp_path: Path) -> None:
    size, forced = files.worn.bytes, files.worn.forced
    write_bytes(tmp_path / "m", b"12345")
    assert (files.worn.bytes - size, files.worn.forced - forced) == (5, 2)  # the file, and the folder that names it
    files.replace(tmp_path / "m", lambda path: path.write_bytes(b"123"), is_forced=False)
    assert (files.worn.bytes - size, files.worn.forced - forced) == (8, 2)


def test_what_may_pass_by_itself_is_an_error_of_its_own(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EIO):
        assert isinstance(files.failure(tmp_path, OSError(number, "x")), Unwritable)
    assert not isinstance(files.failure(tmp_path, OSError(errno.EACCES, "x")), Unwritable)


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"7x", b"-3\n", b"9" * 30, b"\xff\xfe"])
def test_one_damaged_copy_of_the_counter_costs_nothing(tmp_path: Path, content: bytes) -> None:
    for name in ("n.boot", "n.boot-copy"):
        before = next_boot(tmp_path, "n")
        (tmp_path / name).write_bytes(content)
        assert next_boot(tmp_path, "n") == before + 1


def test_the_higher_copy_of_the_counter_counts(tmp_path: Path) -> None:
    for name, other in (("n.boot", "n.boot-copy"), ("n.boot-copy", "n.boot")):
        write_text(tmp_path / name, "50\n")
        write_text(tmp_path / other, "40\n")
        assert next_boot(tmp_path, "n") == 51


def test_a_counter_lost_altogether_goes_on_far_above_any_number_of_starts(tmp_path: Path) -> None:
    next_boot(tmp_path, "n")
    for name in ("n.boot", "n.boot-copy"):
        (tmp_path / name).write_bytes(b"")
    lost = next_boot(tmp_path, "n")
    assert lost >= LOST_BOOT
    assert next_boot(tmp_path, "n") == lost + 1


def test_a_counter_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    with pytest.raises(HflError, match="state: cannot be written"):
        next_boot(tmp_path / "state", "n")
