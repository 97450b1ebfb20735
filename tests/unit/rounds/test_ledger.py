"""An update that has counted counts no more, however much is forgotten of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hfl_mqtt.protocol.messages import Announce, Buffer, Late, Manifest, Phase, Plan, RoundCall, Tier
from hfl_mqtt.rounds.ledger import KNOWN, Entry, Identity, Ledger

PI, PJ = "cloud/pi", "cloud/pj"
BASE = "00" * 8
TIER = Tier(late=Late.NEXT, max_staleness=16)


def call(number: int, run: str = "r") -> RoundCall:
    return RoundCall(
        run=run,
        round=(number,),
        asked=1,
        quorum=1,
        open_for_s=60.0,
        plan=Plan(task="t"),
        model=Manifest(version=0, digest=BASE),
        late=Late.NEXT,
        number=number,
    )


def update(of: int, run: str = "r") -> Announce:
    return Announce(run=run, round=(of,), base=BASE, blob=f"{of:016x}", size=1, count=1)


class Kept(Ledger):
    """A ledger whose every word is kept, so that it may be born again."""

    def __init__(self, disk: dict[str, Buffer] | None = None) -> None:
        self.disk = dict(disk or {})
        super().__init__(dict(self.disk))

    def reborn(self) -> Kept:
        for persist in self.flush():
            for key, value in persist.changes.items():
                self.disk.pop(key, None)
                if value is not None:
                    self.disk[key] = bytes(value)
        return Kept(self.disk)

    def begin(self, number: int, run: str = "r") -> None:
        self.open(call(number, run), TIER, {PI})

    def take_of(self, of: int, now: int) -> None:
        self.take(PI, Entry(identity=Identity.of(update(of), (now,))), b"x")

    def end(self, number: int, *, is_counted: bool = True) -> None:
        self.close(replace(call(number), phase=Phase.CLOSED), is_counted=is_counted)

    def went(self, *numbers: int) -> Kept:
        for number in numbers:
            self.begin(number)
            self.take_of(number, number)
            self.end(number)
        return self


def test_what_was_forgotten_stays_counted_when_a_round_comes_to_nothing() -> None:
    """Seven rounds, of which four are known; the last is given up, so that only three are: the second is no news."""
    ledger = Kept().went(1, 2, 3, 4, 5, 6)
    ledger.begin(7)
    ledger.take_of(7, 7)
    ledger.end(7, is_counted=False)
    ledger.begin(8)
    assert [ledger.find(PI, update(of)) is None for of in (2, 3, 4)] == [True, True, False]
    for found in (ledger, ledger.reborn()):
        assert [found.staleness(PI, update(of)) for of in (1, 2, 3)] == [None, None, None]
        assert found.staleness(PI, update(7)) == 1, "what came to nothing may count"


def test_it_stays_so_when_an_update_cannot_be_read_any_more_and_when_rounds_are_undone() -> None:
    ledger = Kept().went(1, 2, 3, 4, 5, 6)
    ledger.begin(7)
    ledger.take_of(7, 7)
    ledger.give_up(PI)
    assert ledger.staleness(PI, update(2)) is None
    ledger.begin(6)  # the sixth once more: it and the seventh came to nothing
    assert ledger.find(PI, update(6)) is None
    assert ledger.staleness(PI, update(2)) is None


def test_an_update_that_never_counted_may_though_it_is_older_than_all_that_are_known() -> None:
    ledger = Kept()
    ledger.begin(1)
    ledger.end(1)
    ledger.went(*range(2, 2 + KNOWN)).begin(9)
    assert ledger.staleness(PI, update(1)) == KNOWN + 1
    assert ledger.staleness(PJ, update(2)) == KNOWN, "and of another child nothing is forgotten"


@pytest.mark.parametrize("is_reborn", [False, True])
def test_a_parent_that_begins_anew_long_before_makes_late_updates_of_its_new_rounds_count(is_reborn: bool) -> None:
    """Nine rounds, then the second again: all since came to nothing, also what is known no more."""
    ledger = Kept().went(*range(1, 10))
    ledger.begin(2)
    ledger = ledger.reborn() if is_reborn else ledger
    ledger.end(2)
    ledger.begin(3)
    assert ledger.staleness(PI, update(2)) == 1
    assert ledger.staleness(PI, update(1)) is None


def test_another_run_begins_with_nothing_forgotten() -> None:
    ledger = Kept().went(1, 2, 3, 4, 5, 6)
    ledger.begin(1, "s")
    ledger.begin(2, "s")
    assert ledger.staleness(PI, update(1, "s")) == 1
