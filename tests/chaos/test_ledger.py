"""The ledger in the model: what it says of lost updates, and of those that count twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.chaos import ledger

PLACES = {"cloud/f/a": 0, "cloud/f/b": 1}


def model(path: Path, *rounds: tuple[float, float]) -> Path:
    save_file({"places": np.array(rounds, dtype="f4").T.copy()}, path)
    return path


def receipt(client: str, number: int) -> dict[str, object]:
    return {"node": client, "event": "accepted", "kind": "train", "run": "r", "round": f"g{number}.e1"}


def test_two_equal_updates_of_a_round_have_a_half_each(tmp_path: Path) -> None:
    notes = [receipt(client, number) for client in PLACES for number in (1, 2)]
    audit = ledger.of_model(model(tmp_path / "m", (0.5, 0.5), (0.5, 0.5)), notes, PLACES)
    assert (audit.lost, audit.twice) == ([], [])


def test_an_update_with_a_receipt_that_the_model_does_not_hold_is_lost(tmp_path: Path) -> None:
    notes = [receipt(client, number) for client in PLACES for number in (1, 2)]
    audit = ledger.of_model(model(tmp_path / "m", (0.5, 0.5), (0.0, 1.0)), notes, PLACES)
    assert audit.lost == ["cloud/f/a has receipts of 2 updates, the model holds 1"]


def test_an_update_that_counts_twice_has_twice_the_share_of_the_other(tmp_path: Path) -> None:
    notes = [receipt(client, 1) for client in PLACES]
    audit = ledger.of_model(model(tmp_path / "m", (2 / 3, 1 / 3)), notes, PLACES)
    assert len(audit.twice) == 1
    assert "round 1" in audit.twice[0]


def test_a_receipt_that_was_noted_twice_is_one_receipt(tmp_path: Path) -> None:
    notes = [receipt("cloud/f/a", 1), receipt("cloud/f/a", 1), receipt("cloud/f/b", 1)]
    assert ledger.of_model(model(tmp_path / "m", (0.5, 0.5)), notes, PLACES).lost == []


def entry(event: str, at: int, **fields: object) -> str:
    return json.dumps({"at": f"2026-01-01T00:00:0{at}", "node": "cloud/f", "event": event, "run": "r", **fields})


def accepted(at: int) -> str:
    return entry("accepted", at, round="g1.e1", sender="cloud/f/a", kind="train", update="11", of="g1.e1", base="22")


@pytest.mark.parametrize(
    ("updates", "found"),
    [({"cloud/f/a": "11"}, (0, 0)), ({}, (1, 0))],
)
def test_what_was_accepted_is_in_the_round_that_closed_or_lost(
    tmp_path: Path, updates: dict[str, str], found: tuple[int, int]
) -> None:
    closed = entry("closed", 2, round="g1.e1", kind="train", updates=updates)
    (tmp_path / "journal.jsonl").write_text(f"{accepted(1)}\n{closed}\n")
    audit = ledger.of_journals(ledger.read_all(tmp_path))
    assert (len(audit.lost), len(audit.twice)) == found


def test_journals_of_two_boxes_with_one_name_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    for box in ("1", "2"):
        (tmp_path / box).mkdir()
    (tmp_path / "2" / "journal.jsonl").write_text(
        f"{accepted(2)}\n{entry('closed', 3, round='g1.e1', kind='train', updates={'cloud/f/a': '11'})}\n"
    )
    (tmp_path / "1" / "journal.jsonl").write_text(f'{accepted(1)}\n{{"at": "2026-01-01T00:00:02", "no')
    audit = ledger.of_journals(ledger.read_all(tmp_path))
    assert (audit.lost, audit.twice, audit.odd, audit.accepted) == ([], [], [], 1)
