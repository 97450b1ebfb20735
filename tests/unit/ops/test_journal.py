"""The journal: one JSON line per note for machines, sentences for people, and nothing a peer says breaks either."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.journal import Journal, plain, read, sentence
from hfl_mqtt.rounds.actions import note

#: Clears the screen, names the window, hides a word from the eye, moves the text's direction, and breaks the line.
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \x08\x7f \u202e\u2028\r\nfake: all is well"


def record(**fields: Any) -> dict[str, Any]:
    return {"at": "2026-01-01T00:00:00.000+00:00", "s": 1.25, "node": "cloud/farm-a", "event": "closed", **fields}


def test_a_record_becomes_a_line_for_people() -> None:
    line = sentence(record(run="r1", round="g1.e1", accepted=2, asked=3, loss=0.123456, waited_for="", ids=["a", "b"]))
    # The clock on the wall, so that the lines of two machines can be laid side by side.
    assert re.fullmatch(
        r"\d\d:\d\d:00  cloud/farm-a  closed  round=g1.e1 accepted=2 asked=3 loss=0.12346 ids=a,b", line
    )


def test_what_is_for_programs_is_left_out_of_a_line_and_the_rest_is_words() -> None:
    line = sentence(record(round="g1", updates={"cloud/farm-a/pi-1": "2421fe4fd5e6d224"}, late=True, is_cut=False))
    assert line.partition("  closed  ")[2] == "round=g1 late=yes is_cut=no"


def test_a_reason_of_several_lines_is_one_line_for_people() -> None:
    line = sentence(record(reason="train.py:9: it says:\n\n    disk gone\r\n  and more\n"))
    assert line.partition("  closed  ")[2] == "reason=train.py:9: it says: / disk gone / and more"


def test_nothing_a_peer_says_moves_the_cursor_or_begins_a_line() -> None:
    line = sentence(record(reason=HOSTILE))
    assert line.isprintable()
    assert r"\x1b[2J\x1b]0;owned\x07" in line
    assert r"\u202e\u2028 / fake: all is well" in line


def test_words_of_all_languages_stay_as_they_are() -> None:
    assert plain("Hühner füttern 🐔 за 5 °C") == "Hühner füttern 🐔 за 5 °C"


def test_an_error_of_several_lines_keeps_its_lines() -> None:
    assert plain("one\ntwo\x1b[m", keep="\n") == "one\ntwo\\x1b[m"


def test_a_terminal_gets_what_a_person_wants_and_the_file_all(tmp_path: Path) -> None:
    said: list[str] = []
    with Journal(tmp_path / "deep" / "journal.jsonl", echo=said.append) as journal:
        journal("cloud", note("trainer", line="torch 2.13"))
        journal("cloud", note("closed", round="g1", accepted=2, asked=2))
    assert [line.split(maxsplit=1)[1] for line in said] == ["cloud  closed  round=g1 accepted=2 asked=2"]
    found = list(read(tmp_path / "deep" / "journal.jsonl"))
    assert [(one["node"], one["event"]) for one in found] == [("cloud", "trainer"), ("cloud", "closed")]
    assert {"at", "s", "round", "accepted", "asked"} <= found[1].keys()


def test_a_script_gets_every_note_as_plain_ascii_json() -> None:
    said: list[str] = []
    Journal(None, echo=said.append, as_json=True)("cloud", note("declined", reason=HOSTILE, of="ü"))
    assert said[0].isascii()
    assert said[0].isprintable()
    assert json.loads(said[0])["reason"] == HOSTILE


def test_figures_that_json_does_not_know_stay_readable_for_every_parser(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal("cloud", note("scored", rmse=float("nan"), best=[float("inf"), 1.0], where=Path("model")))
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    fields = json.loads(text)
    assert (fields["rmse"], fields["best"], fields["where"]) == (None, [None, 1.0], "model")


def test_a_second_start_goes_on_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for count in (1, 2):
        with Journal(path) as journal:
            journal("cloud", note("opened", count=count))
    assert [one["count"] for one in read(path)] == [1, 2]


def test_a_line_cut_off_by_a_power_cut_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal("cloud", note("opened", count=1))
    path.write_bytes(path.read_bytes() + b'{"at": "2026", "node": "clo\xc3')
    with Journal(path) as journal:
        journal("cloud", note("opened", count=2))
    assert [one["count"] for one in read(path)] == [1, 2]


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n\n"text"\n{"event": "opened"}\n')
    assert [one["event"] for one in read(path)] == ["opened"]


def test_a_folder_that_cannot_be_made_is_said_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(HflError, match=r"cannot write the journal .*taken/journal\.jsonl.*: .*; .*state_dir"):
        Journal(tmp_path / "taken" / "journal.jsonl")


def test_a_full_disk_is_said_once_and_stops_no_node() -> None:
    said: list[str] = []
    with Journal(Path("/dev/full"), echo=said.append) as journal:
        journal("cloud", note("opened", round="g1"))
        journal("cloud", note("closed", round="g1"))
    assert [line for line in said if "No space left" in line] == said[:1]
    assert "cloud  opened  round=g1" in said[1]
    assert "cloud  closed  round=g1" in said[2]


def test_a_full_file_is_laid_aside_in_place_of_the_one_before_and_both_are_read(tmp_path: Path) -> None:
    path, older = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.1"
    for first in (1, 4):  # A second start goes on where the first stopped
        with Journal(path, max_bytes=300) as journal:
            for count in range(first, first + 3):
                journal("cloud", note("opened", count=count, text="x" * 20))
    sizes = [one.stat().st_size for one in (older, path)]
    assert all(100 < size_bytes <= 300 for size_bytes in sizes)
    counts = [one["count"] for one in read(path)]
    assert len(counts) == 4, "two lines of 125 bytes a file"
    assert counts == [3, 4, 5, 6]
    assert sorted(tmp_path.iterdir()) == [path, older]


def test_a_journal_that_cannot_be_laid_aside_is_said_and_begun_anew_when_it_can(tmp_path: Path) -> None:
    said: list[str] = []
    path, older = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.1"
    (older / "in the way").mkdir(parents=True)
    with Journal(path, echo=said.append, max_bytes=100) as journal:
        for count in (1, 2):
            journal("cloud", note("trainer", count=count))
        (older / "in the way").rmdir()
        older.rmdir()
        journal("cloud", note("trainer", count=3))
    assert [one["count"] for one in read(path)] == [1, 3]
    assert [line for line in said if "notes are lost" in line] == said[:1]


def test_notes_after_the_end_are_only_echoed(tmp_path: Path) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "journal.jsonl", echo=said.append)
    journal.close()
    journal.close()
    journal("cloud", note("closed"))
    assert len(said) == 1
