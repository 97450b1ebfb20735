"""What was committed is there in the next life, whole or not at all, and a folder belongs to one process."""

from __future__ import annotations

import mmap
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hfl_mqtt import files
from hfl_mqtt.errors import HflError, Unwritable
from hfl_mqtt.state.vault import DATABASE, LARGE, Buffer, Vault, peek

A, B = "cloud/farm-a/1", "cloud/farm-a/2"
BIG = bytes(range(256)) * (LARGE // 256) + b"!"


def kept(vault: Vault, node: str = A) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in vault.of(node).items()}


def large_files(path: Path) -> list[bytes]:
    return sorted(file.read_bytes() for file in path.glob("*.big"))


def test_what_was_committed_is_there_in_the_next_life_and_every_node_has_its_own(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "up/outbox"): b"one", (A, "up/past"): b"", (B, "up/outbox"): memoryview(b"two")})
    vault.commit({(A, "up/past"): None, (B, "x"): None})
    vault.close()
    vault = Vault(tmp_path)
    assert kept(vault) == {"up/outbox": b"one"}
    assert kept(vault, B) == {"up/outbox": b"two"}
    assert vault.of("cloud").get("up/outbox") is None
    assert vault.damage == ""
    vault.close()


def test_a_killed_process_leaves_what_was_committed_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from hfl_mqtt.state.vault import Vault
vault = Vault(Path({str(tmp_path)!r}))
vault.commit({{("n", "a"): b"1", ("n", "b"): b"x" * 300_000}})
vault.wait({{("n", "c"): b"lost"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    vault = Vault(tmp_path)
    assert kept(vault, "n") == {"a": b"1", "b": b"x" * 300_000}
    vault.close()


def test_what_may_wait_goes_with_the_next_commit_or_the_end(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.wait({(A, "a"): bytearray(b"1"), (A, "b"): b"2"})
    vault.wait({(A, "b"): b"3", (B, "b"): b"9"})
    assert kept(vault) == {}
    assert vault.latest(A) == {"a": b"1", "b": b"3"}
    vault.commit({(A, "c"): b"4"})
    assert kept(vault) == {"a": b"1", "b": b"3", "c": b"4"}
    vault.wait({(A, "a"): None})
    assert vault.latest(A) == {"b": b"3", "c": b"4"}
    vault.close()
    vault = Vault(tmp_path)
    assert kept(vault) == {"b": b"3", "c": b"4"}
    vault.close()


def test_a_newer_word_stands_over_one_that_waited(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.wait({(A, "a"): b"old"})
    vault.commit({(A, "a"): b"new"})
    assert kept(vault) == {"a": b"new"}
    vault.close()


def test_a_large_value_is_a_file_that_another_value_is_written_over_when_nothing_names_it(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "m"): BIG + b"!", (A, "n"): BIG[:-1]})
    assert large_files(tmp_path) == [BIG + b"!"], "one that just fits stands in its row"
    vault.commit({(A, "m"): BIG})
    assert large_files(tmp_path) == [BIG, BIG + b"!"], "never over what was named until then"
    vault.commit({(A, "m"): b"Y" + BIG[1:]})
    assert large_files(tmp_path) == [BIG, b"Y" + BIG[1:] + b"!"], "a shorter one leaves the end of the longer"
    vault.close()
    vault = Vault(tmp_path)
    assert kept(vault) == {"m": b"Y" + BIG[1:], "n": BIG[:-1]}, "but is read at its own length"
    assert (len(large_files(tmp_path)), vault.damage) == (1, ""), "what waited to be written over is swept"
    vault.close()


def test_what_somebody_has_mapped_is_not_written_over(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "m"): BIG})
    found = vault.of(A)["m"]
    vault.commit({(A, "m"): None})
    assert large_files(tmp_path) == []
    vault.commit({(A, "m"): bytes(len(BIG))})
    assert bytes(found) == BIG, "who holds it still has it"
    vault.close()


def test_no_more_than_a_few_files_wait_to_be_written_over_and_none_that_is_very_large(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, str(number)): BIG for number in range(9)} | {(A, "m"): bytes(2**20 + 1)})
    vault.commit({(A, key): None for key in [*map(str, range(9)), "m"]})
    assert large_files(tmp_path) == [BIG] * 4
    vault.commit({(A, "m"): bytes(2**20 + 1)})
    assert len(large_files(tmp_path)) == 5, "what is very large gets a file of its own"
    vault.close()


def test_what_a_crash_left_unnamed_is_swept_and_what_it_names_in_vain_is_told(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "m"): BIG, (A, "n"): BIG, (A, "o"): b"1"})
    vault.close()
    (tmp_path / "77.big").write_bytes(BIG)
    (tmp_path / "1.big").write_bytes(b"cut short")
    vault = Vault(tmp_path)
    assert kept(vault) == {"n": BIG, "o": b"1"}
    assert "damaged or lost m" in vault.damage
    assert [file.name for file in tmp_path.glob("*.big")] == ["2.big"]
    vault.commit({(A, "m"): BIG})
    assert kept(vault)["m"] == BIG
    vault.close()


def test_a_large_mapped_value_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """In a process of its own, for its peak must not be that of an earlier test."""
    code = f"""
import mmap, re, resource
from pathlib import Path
from hfl_mqtt.state.vault import Vault
path = Path({str(tmp_path)!r})
with (path / "model").open("wb") as file:
    file.truncate(100_000_000)
with (path / "model").open("rb") as file:
    view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
vault = Vault(path / "state")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vault.commit({{("n", "m"): view}})
vault.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert int(done.stdout) < 5_000_000


def test_one_folder_belongs_to_one_process_also_after_a_refusal(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for _ in range(2):
        with pytest.raises(HflError, match=f"belongs to the running process {os.getpid()}: one folder is one node's"):
            Vault(tmp_path)
    vault.close()
    Vault(tmp_path).close()


def fill(vault: Vault) -> None:
    """Let the database grow no further, as a full disk does; the same error comes of it."""
    database = vault._database
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_changes_nothing_and_what_waits_goes_on_waiting(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "a"): b"1", (A, "b"): b"2"})
    vault.wait({(A, "w"): b"3"})
    fill(vault)
    changes: dict[tuple[str, str], Buffer | None] = {(A, "a"): b"9" * 5000, (A, "b"): None, (A, "m"): BIG}
    with pytest.raises(Unwritable, match="database or disk is full; free some space or choose another directory"):
        vault.commit(changes)
    assert kept(vault) == {"a": b"1", "b": b"2"}
    assert large_files(tmp_path) == []
    vault._database.execute("PRAGMA max_page_count = 1000000")
    vault.commit(changes)
    assert kept(vault) == {"a": b"9" * 5000, "m": BIG, "w": b"3"}
    vault.close()


def test_a_disk_with_no_room_for_a_large_value_changes_nothing(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "a"): b"1"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE, limits[1]))
    try:
        with pytest.raises(Unwritable, match="File too large"):
            vault.commit({(A, "a"): b"2", (A, "m"): BIG})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(vault) == {"a": b"1"}
    assert large_files(tmp_path) == []
    vault.close()


def test_a_read_only_database_is_told_as_such(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault._database.execute("PRAGMA query_only = ON")
    with pytest.raises(Unwritable, match="readonly database; the file system is mounted read-only"):
        vault.commit({(A, "a"): b"1"})
    vault.close()


@pytest.mark.parametrize("damage", [b"not a database" * 100, b""])
def test_a_damaged_database_is_laid_aside_loudly_and_the_node_begins_anew(tmp_path: Path, damage: bytes) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, str(number)): bytes(900) for number in range(30)} | {(A, "m"): BIG})
    vault.close()
    path = tmp_path / DATABASE
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:4096] + b"\xff" * 3000 + whole[7096:])
    vault = Vault(tmp_path)
    assert kept(vault) == {}
    assert "is damaged" in vault.damage
    assert (tmp_path / f"{DATABASE}.damaged").is_file()
    assert large_files(tmp_path) == []
    vault.commit({(A, "a"): b"1"})
    vault.close()
    vault = Vault(tmp_path)
    assert (kept(vault), vault.damage) == ({"a": b"1"}, "")
    vault.close()


@pytest.mark.parametrize("size", [100, LARGE + 1])
def test_a_value_that_is_not_what_was_written_is_told_and_taken_as_never_kept(tmp_path: Path, size: int) -> None:
    vault = Vault(tmp_path)
    vault.commit({("a", "worn"): b"x" * size, ("a", "whole"): b"y" * size})
    vault.close()
    if size > LARGE:
        path = tmp_path / "1.big"
        path.write_bytes(b"X" + path.read_bytes()[1:])
    else:
        with sqlite3.connect(tmp_path / DATABASE) as database:
            database.execute("UPDATE kept SET value = ? WHERE key = 'worn'", (b"X" + b"x" * (size - 1),))
        database.close()
    for damage in (True, False):
        vault = Vault(tmp_path)
        assert ("damaged or lost worn" in vault.damage) == damage
        assert [(key, bytes(value)) for key, value in vault.of("a").items()] == [("whole", b"y" * size)]
        vault.close()


def test_a_later_release_is_told_and_nothing_is_laid_aside(tmp_path: Path) -> None:
    Vault(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("PRAGMA user_version = 4")
    database.close()
    for _ in range(2):  # the lock is given back
        with pytest.raises(HflError, match="another version of hfl-mqtt wrote it"):
            Vault(tmp_path)
    assert not (tmp_path / f"{DATABASE}.damaged").exists()


def test_nodes_that_are_no_longer_here_are_forgotten(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "a"): b"1", (B, "a"): b"2", ("", "home"): b"3", (B, "m"): BIG})
    vault.forget_others({A, ""})
    assert (kept(vault), kept(vault, B), kept(vault, "")) == ({"a": b"1"}, {}, {"home": b"3"})
    vault.close()


def test_somebody_else_may_look_while_it_is_open_and_when_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(HflError, match="nothing has been kept there yet"):
        peek(tmp_path, A, "a")
    vault = Vault(tmp_path)
    vault.commit({(A, "a"): b"1", (A, "m"): BIG, (A, "other"): b"2"})
    assert peek(tmp_path, A, "a", "m", "gone") == {"a": b"1", "m": BIG}
    vault.close()
    assert peek(tmp_path, A, "a") == {"a": b"1"}
    assert Vault(tmp_path).damage == ""


def test_commits_count_bytes_and_forced_writes_and_the_log_stays_short(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.commit({(A, "a"): b"1"})
    size, forced = files.worn.bytes, files.worn.forced
    vault.commit({(A, "a"): b"2"})
    assert files.worn.forced - forced == 1, "one wait for the disk a commit"
    assert 1024 <= files.worn.bytes - size <= 4 * 1048, "pages of 1 KiB, as many as changed"
    for number in range(150):
        vault.commit({(A, "a"): bytes(12_000 + number)})
    assert (tmp_path / f"{DATABASE}-wal").stat().st_size < 1_200_000
    assert (tmp_path / DATABASE).stat().st_size < 50_000
    assert 151 <= files.worn.forced - forced < 160
    vault.close()


def test_a_value_may_be_a_map_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    with (tmp_path / "f").open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    vault = Vault(tmp_path / "state")
    vault.commit({(A, "a"): view[1:3]})
    assert kept(vault) == {"a": b"23"}
    vault.close()
