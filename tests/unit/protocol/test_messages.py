import dataclasses
import math
from itertools import permutations
from typing import Any

import pytest
from pydantic import ValidationError

from hfl_mqtt.protocol.messages import (
    Decline,
    Info,
    Manifest,
    Metrics,
    ModelPart,
    Plan,
    State,
    StateName,
    Tally,
    Tier,
    Update,
    UpdatePart,
    Want,
    round_text,
)

D = "0" * 64
MANIFEST = {"run": "r", "version": 0, "digest": D, "blob": D, "size": 1, "parts": 1, "codec": "raw"}
PART = {"blob": D, "index": 0, "count": 1, "size": 1, "data": b"x"}


def test_a_message_cannot_be_changed() -> None:
    state = State(state=StateName.READY, boot=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.boot = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (State, {"state": "dancing", "boot": 1}),
        (State, {"state": "ready", "boot": -1}),
        (State, {"state": "ready", "boot": 2**53 + 1}),
        (Info, {"role": "client", "boot": 1, "parent": "cloud/../x"}),
        (Info, {"role": "client", "boot": 1, "parent": "cloud\n"}),
        (Info, {"role": "x" * 65, "boot": 1}),
        (Metrics, {"values": {"loss": math.nan}}),
        (Metrics, {"values": {"loss": math.inf}}),
        (Metrics, {"values": {str(number): number for number in range(65)}}),
        (Tier, {"quorum": 0}),
        (Tier, {"quorum": 1.5}),
        (Tier, {"fraction": 0.0}),
        (Tier, {"open_for_s": math.inf}),
        (Tier, {"open_for_s": -1.0}),
        (Tier, {"rounds": 0}),
        (Plan, {"task": "t", "epochs": None}),
        (Plan, {"task": "t", "epochs": 1, "steps": 1}),
        (Plan, {"task": "t", "learning_rate": math.nan}),
        (Plan, {"task": "t", "tiers": [Tier()] * 9}),
        (Manifest, MANIFEST | {"digest": "A" * 64}),
        (Manifest, MANIFEST | {"digest": D + "\n"}),
        (Manifest, MANIFEST | {"run": "../../etc"}),
        (Manifest, MANIFEST | {"run": "r\n"}),
        (Manifest, MANIFEST | {"size": 2**30 + 1}),
        (Manifest, MANIFEST | {"parts": 0}),
        (Decline, {"run": "r", "round": [], "reason": ""}),
        (Decline, {"run": "r", "round": [0], "reason": ""}),
        (Decline, {"run": "r", "round": [1] * 9, "reason": ""}),
        (Decline, {"run": "r", "round": [1], "reason": "x" * 301}),
        (Want, {"blob": D, "parts": list(range(65))}),
        (Want, {"blob": D, "parts": [4096]}),
        (ModelPart, PART | {"data": b""}),
        (ModelPart, PART | {"data": bytes(256 * 1024 + 1)}),
        (ModelPart, PART | {"count": 4097}),
        (UpdatePart, PART | {"run": "r", "round": [1], "base": D, "index": -1}),
        (Update, {"run": "r", "round": [1], "sender": "c/a", "base": D, "weight": 2**40 + 1, "payload": b""}),
        (Update, {"run": "r", "round": [1], "sender": "c/@", "base": D, "weight": 1, "payload": b""}),
        (Tally, {"total": math.inf, "count": 1}),
        (Tally, {"total": 1.0, "count": -1}),
    ],
)
def test_a_wrong_message_cannot_be_built(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)


def test_a_quorum_of_one_is_a_count_and_of_one_point_zero_a_share() -> None:
    assert isinstance(Tier(quorum=1).quorum, int)
    assert isinstance(Tier(quorum=1.0).quorum, float)


def test_a_node_can_be_asked_for_work_while_it_is_ready_or_training() -> None:
    assert [name.value for name in StateName if name.is_present] == ["ready", "training"]


def test_tallies_add_up_to_the_score_of_all_examples() -> None:
    both = Tally.of([Tally(total=3.0, count=1), Tally(total=1.0, count=3)])
    assert (both.total, both.count, both.value) == (4.0, 4, 1.0)


def test_the_root_is_taken_of_the_mean_and_not_of_each() -> None:
    both = Tally.of([Tally(total=9.0, count=1, is_root=True), Tally(total=23.0, count=1, is_root=True)])
    assert both.value == 4.0


def test_a_mean_and_a_root_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Tally.of([Tally(total=1.0, count=1), Tally(total=1.0, count=1, is_root=True)])


def test_tallies_add_up_to_the_same_bits_in_any_order() -> None:
    tallies = [Tally(total=total, count=1) for total in (1e16, 1.0, -1e16, 0.1)]
    assert len({Tally.of(order).total for order in permutations(tallies)}) == 1
    assert Tally.of(tallies).total == 1.1


def test_the_largest_tallies_add_up_without_an_error() -> None:
    assert Tally.of([Tally(total=1e300, count=2**53)] * 3) == Tally(total=1e300, count=2**53)


def test_a_tally_of_nothing_has_no_value() -> None:
    assert Tally(total=0.0, count=0).value is None


def test_a_value_beyond_every_float_is_none() -> None:
    assert Tally(total=1e300, count=1e-300).value is None
    assert Tally(total=1e300, count=1e-300, is_root=True).value is None


def test_a_part_is_not_copied_when_it_is_validated() -> None:
    data = bytes(1000)
    assert ModelPart(blob=D, index=0, count=1, size=1000, data=data).data is data


def test_a_round_prints_as_people_say_it() -> None:
    assert [round_text(count) for count in ((12,), (12, 3), (12, 2, 3))] == ["g12", "g12.e3", "g12.e2.e3"]
