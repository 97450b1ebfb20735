"""What a machine persists of itself reads back as it was, and what is damaged counts as absent."""

from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.protocol.messages import Late, Manifest, Phase, Plan, RoundCall, Tally, Tier
from hfl_mqtt.rounds.records import pack, read

CALL = RoundCall(
    run="r",
    round=(3, 1),
    phase=Phase.CLOSED,
    asked=4,
    quorum=2,
    open_for_s=0.1,
    codec="raw",
    plan=Plan(task="t", tiers=(Tier(rounds=2, quorum=1), Tier(quorum=0.25))),
    model=Manifest(version=2, digest="a" * 16),
    late=Late.DISCOUNT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diary:
    name: str
    day: int = 0
    pages: tuple[tuple[int, ...], ...] = ()
    call: RoundCall | None = None
    scores: list[dict[str, float]] = field(default_factory=list)
    scan: bytes = b""
    tallies: dict[str, Tally] = field(default_factory=dict)


def test_a_record_reads_back_as_it_was_down_to_the_messages_in_it() -> None:
    diary = Diary(
        name="a",
        day=2**53,
        pages=((1, 2), ()),
        call=CALL,
        scores=[{}, {"accuracy": 0.1 + 0.2}],
        scan=bytes(range(256)),
        tallies={"loss": Tally(total=1e300, count=3, is_root=True)},
    )
    assert read(Diary, pack(diary)) == diary


def test_a_count_as_quorum_stays_a_count_and_a_share_stays_a_share() -> None:
    found = read(Diary, pack(Diary(name="a", call=CALL)))
    assert found is not None
    assert found.call is not None
    counted, shared = (tier.quorum for tier in found.call.plan.tiers)
    assert (counted, type(counted), shared) == (1, int, 0.25)


def test_nothing_reads_as_nothing() -> None:
    assert read(Diary, None) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(None),
        msgpack.packb([1, {}]),
        msgpack.packb([2, {"name": "of a later release"}]),
        msgpack.packb([1, {"name": "a", "day": "friday"}]),
        msgpack.packb([1, {"name": "a"}, 3]),
        pack(Diary(name="a"))[:-1],
        pack(Diary(name="a")) + b"\0",
    ],
)
def test_what_is_no_such_record_reads_as_nothing(data: bytes) -> None:
    assert read(Diary, data) is None


@given(st.binary(max_size=64))
def test_no_bytes_at_all_make_it_raise(data: bytes) -> None:
    found = read(Diary, data)
    assert found is None or isinstance(found, Diary)


def test_a_field_that_is_new_takes_its_usual_value_and_one_that_is_gone_is_passed_over() -> None:
    assert read(Diary, msgpack.packb([1, {"name": "a", "shoe_size": 43}])) == Diary(name="a")
