"""The ledger finds what is lost, what counts twice, and receipts for nothing; and it believes a restart's own words."""

from __future__ import annotations

from typing import Any

from hfl_mqtt.sim.invariants import Ledger

EDGE, CLOUD = "cloud/a", "cloud"


def accepted(sender: str, update: str, round_: str = "g1.e1", **more: Any) -> dict[str, Any]:
    fields = {"run": "r", "round": round_, "of": round_, "base": "b", "kind": "train", **more}
    return {"node": EDGE, "event": "accepted", "sender": f"{EDGE}/{sender}", "update": update, **fields}


def closed(updates: dict[str, str], round_: str = "g1.e1") -> dict[str, Any]:
    named = {f"{EDGE}/{sender}": update for sender, update in updates.items()}
    return {"node": EDGE, "event": "closed", "run": "r", "round": round_, "updates": named}


def said(event: str, node: str = EDGE, **fields: Any) -> dict[str, Any]:
    return {"node": node, "event": event, "run": "r", "round": "g1.e1", **fields}


def test_a_round_in_which_everything_accepted_is_counted_is_well() -> None:
    ledger = Ledger.of([accepted("1", "x"), accepted("2", "y"), closed({"1": "x", "2": "y"})])
    assert ledger.check() == []
    assert (ledger.train.accepted, ledger.train.counted) == (2, 2)
    assert ledger.entered == {EDGE: 2}


def test_an_update_that_was_accepted_and_not_counted_is_lost() -> None:
    ledger = Ledger.of([accepted("1", "x"), accepted("2", "y"), closed({"1": "x"})])
    assert ledger.check() == ["cloud/a, r g1.e1: lost y of cloud/a/2, which was accepted"]
    assert ledger.train.lost == 1


def test_an_update_that_counts_without_having_been_accepted_is_told() -> None:
    assert Ledger.of([closed({"1": "x"})]).check() == [
        "cloud/a, r g1.e1: counted x of cloud/a/1, which was not accepted"
    ]


def test_an_answer_that_counts_in_two_rounds_counts_twice_though_its_bytes_differ() -> None:
    late = accepted("1", "z", "g1.e2", of="g1.e1", late=True)
    ledger = Ledger.of([accepted("1", "x"), closed({"1": "x"}), late, closed({"1": "z"}, "g1.e2")])
    assert ledger.check() == ["cloud/a, r g1.e2: counted cloud/a/1's answer to g1.e1 once more, as in g1.e1"]
    assert (ledger.train.twice, ledger.train.late) == (1, 1)


def test_the_same_bytes_in_two_rounds_are_two_answers() -> None:
    again = accepted("1", "x", "g2.e1")
    assert Ledger.of([accepted("1", "x"), closed({"1": "x"}), again, closed({"1": "x"}, "g2.e1")]).check() == []


def test_two_updates_of_one_child_in_one_round_are_told() -> None:
    assert Ledger.of([accepted("1", "x"), accepted("1", "y")]).check() == [
        "cloud/a, r g1.e1: accepted two updates of cloud/a/1, x and y"
    ]


def test_a_round_that_came_to_nothing_gives_up_what_it_had_and_may_be_held_once_more() -> None:
    ledger = Ledger.of([accepted("1", "x"), said("abandoned"), accepted("1", "x"), closed({"1": "x"})])
    assert ledger.check() == []
    assert (ledger.train.given_up, ledger.train.counted) == (1, 1)


def test_a_round_that_was_closed_in_vain_is_undone_before_it_is_held_once_more() -> None:
    once = [accepted("1", "x"), closed({"1": "x"})]
    assert Ledger.of([*once, said("undone"), *once]).check() == []
    assert Ledger.of([*once, *once]).check() == ["cloud/a, r g1.e1: accepted cloud/a/1 when it was closed"]
    # The last round that was closed is told after a restart, in vain or not.
    restored = said("restored", round="g1.e2", updates={}, closed_round="g1.e1", closed={f"{EDGE}/1": "x"})
    assert Ledger.of([*once, said("undone"), restored, *once]).check() == []


def test_what_was_forgotten_in_a_restart_is_lost() -> None:
    restored = said("restored", updates={f"{EDGE}/1": "x"})
    ledger = Ledger.of([accepted("1", "x"), accepted("2", "y"), restored])
    assert ledger.check() == ["cloud/a, r g1.e1: forgot y of cloud/a/2 when it was restarted"]


def test_who_was_killed_before_it_noted_an_update_or_a_close_says_so_when_it_is_back() -> None:
    receipt = {"node": f"{EDGE}/1", "event": "accepted", "update": "x"}
    restored = said("restored", round="g1.e2", updates={}, closed_round="g1.e1", closed={f"{EDGE}/1": "x"})
    ledger = Ledger.of([receipt, restored])
    assert ledger.check() == []
    assert (ledger.train.accepted, ledger.train.counted) == (1, 1)


def test_a_receipt_for_what_was_never_accepted_is_told() -> None:
    receipt = {"node": f"{EDGE}/1", "event": "accepted", "update": "x"}
    assert Ledger.of([receipt]).check() == ["cloud/a/1 has a receipt for x, which was never accepted"]
    assert Ledger.of([receipt, accepted("1", "x")]).check() == []
    other_bytes = {**receipt, "update": "y", "run": "r", "round": "g1.e1"}
    assert Ledger.of([other_bytes, accepted("1", "x")]).check() == []


def test_who_lost_its_disk_begins_a_new_book() -> None:
    ledger = Ledger.of([accepted("1", "x"), {"node": EDGE, "event": "wiped"}, accepted("1", "x"), closed({"1": "x"})])
    assert ledger.check() == []
    assert (ledger.train.forgotten, ledger.train.counted) == (1, 1)


def test_a_delta_of_the_cloud_starts_where_the_last_one_led() -> None:
    first = said("delta", CLOUD, version=1, base="00", digest="11")
    second = said("delta", CLOUD, version=2, base="11", digest="22")
    assert Ledger.of([first, second, second]).check() == []
    assert Ledger.of([first, {**second, "base": "99"}]).check() == [
        "cloud, r version 2: starts from 99, the version before is 11"
    ]
    assert Ledger.of([first, {**first, "digest": "99"}]).check() == ["cloud, r version 1: is 99 now, and was 11"]


def test_who_is_killed_may_have_sent_one_receipt_that_it_could_not_note() -> None:
    receipts = [{"node": f"{EDGE}/{child}", "event": "accepted", "update": "x"} for child in "12"]
    killed = {"node": EDGE, "event": "killed"}
    assert Ledger.of([killed, receipts[0]]).check() == []
    assert len(Ledger.of([killed, *receipts]).check()) == 1


def test_who_leads_a_place_once_more_without_its_memory_begins_a_new_book() -> None:
    box = f"{EDGE}@box-1"
    once = [{**record, "node": box} for record in (accepted("1", "x"), closed({"1": "x"}))]
    leads, opened = said("leads", box), said("opened", box)
    assert Ledger.of([*once, leads, opened, *once]).check() == []
    assert Ledger.of([*once, leads, said("restored", box, updates={}), opened, *once]).check() != []
