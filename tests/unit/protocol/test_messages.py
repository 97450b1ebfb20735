import dataclasses
import math
import subprocess
import sys
from itertools import permutations
from typing import Any

import pytest
from pydantic import ValidationError

from hfl_mqtt.protocol.limits import MAX_BLOB, MAX_FRAMES
from hfl_mqtt.protocol.messages import (
    Announce,
    Decline,
    Identity,
    Info,
    Keyframe,
    KeyPart,
    Manifest,
    Metrics,
    ModelPart,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    Update,
    UpdatePart,
    Want,
    WantModel,
    round_text,
)

#: A digest, and what tells it from others of ours.
D, H = "0" * 64, "0" * 16
MANIFEST = {"version": 0, "digest": H}
CALL: dict[str, Any] = {
    "run": "r",
    "round": [1],
    "phase": "open",
    "asked": 1,
    "quorum": 1,
    "open_for_s": 1.0,
    "codec": "raw",
}
CALL |= {"plan": {"task": "t"}, "model": MANIFEST}
HALF: dict[str, Any] = {"run": "r", "round": [1], "base": H}
KEYFRAME = {"run": "r", "version": 0, "digest": D, "size": 4, "start": b"start"}
PART = {"blob": H, "index": 0, "count": 1, "size": 1, "data": b"x"}
SLOT = PART | {"frame": 0, "version": 1}
ONE = Tally(total=1.0, count=1)


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
        (Manifest, MANIFEST | {"digest": "A" * 16}),
        (Manifest, MANIFEST | {"digest": H + "\n"}),
        (Manifest, MANIFEST | {"digest": D + "0"}),
        (Manifest, MANIFEST | {"digest": D[:32]}),
        (RoundCall, CALL | {"signature": "A" * 85}),
        (RoundCall, CALL | {"signature": "A" * 85 + "="}),
        (RoundCall, CALL | {"signature": "A" * 86 + "\n"}),
        (Identity, {"card": ""}),
        (Identity, {"card": "a" * 1001}),
        (Identity, {"card": "a b"}),
        (Identity, {"card": "a.b\n"}),
        (Manifest, MANIFEST | {"version": -1}),
        (Manifest, MANIFEST | {"key": -1}),
        (Tier, {"codec": ""}),
        (Tier, {"downlink": "x" * 121}),
        (Tier, {"budget": -1}),
        (RoundCall, CALL | {"run": "../../etc"}),
        (RoundCall, CALL | {"run": "r\n"}),
        (RoundCall, CALL | {"phase": "ajar"}),
        (RoundCall, CALL | {"codec": ""}),
        (RoundCall, CALL | {"unasked": -1}),
        (RoundCall, CALL | {"attempt": 2**53 + 1}),
        (RoundCall, CALL | {"draw": {"threshold": -1}}),
        (Receipt, HALF | {"base": D}),
        (Receipt, HALF | {"base": "0" * 15}),
        (Receipt, HALF | {"base": "A" * 16}),
        (Announce, HALF | {"blob": H, "size": 0, "count": 1}),
        (Announce, HALF | {"blob": H, "size": MAX_BLOB + 1, "count": 1}),
        (Announce, HALF | {"blob": H, "size": 1, "count": 0}),
        (Announce, HALF | {"blob": H, "size": 1, "count": 4097}),
        (Announce, HALF | {"blob": D, "size": 1, "count": 1}),
        (WantModel, {"version": -1, "parts": []}),
        (WantModel, {"version": 1, "parts": list(range(65))}),
        (WantModel, {"version": 1, "parts": [4096]}),
        (Decline, {"run": "r", "round": [], "reason": ""}),
        (Decline, {"run": "r", "round": [0], "reason": ""}),
        (Decline, {"run": "r", "round": [1] * 9, "reason": ""}),
        (Decline, {"run": "r", "round": [1], "reason": "x" * 301}),
        (Want, {"blob": H, "parts": list(range(65))}),
        (Want, {"blob": H, "parts": [4096]}),
        (ModelPart, SLOT | {"data": b""}),
        (ModelPart, SLOT | {"data": bytes(256 * 1024 + 1)}),
        (ModelPart, SLOT | {"count": 4097}),
        (ModelPart, SLOT | {"frame": -1}),
        (ModelPart, SLOT | {"frame": MAX_FRAMES + 1}),
        (ModelPart, SLOT | {"version": -1}),
        (KeyPart, PART | {"version": -1}),
        (KeyPart, PART | {"version": 1, "data": b""}),
        (Keyframe, KEYFRAME | {"start": "text"}),
        (Keyframe, KEYFRAME | {"start": None}),
        (Keyframe, KEYFRAME | {"plus": 5}),
        (Keyframe, KEYFRAME | {"size": -1}),
        (Keyframe, KEYFRAME | {"digest": "0" * 16}),
        (UpdatePart, PART | {"run": "r", "round": [1], "base": H, "index": -1}),
        (Update, {"weight": 2**40 + 1, "payload": b""}),
        (Update, {"weight": -1, "payload": b""}),
        (Update, {"weight": 1, "payload": "text"}),
        (Update, {"weight": 1, "payload": b"", "sent": -1}),
        (Update, {"weight": 1, "payload": b"", "tallies": dict.fromkeys(map(str, range(17)), ONE)}),
        (Update, {"weight": 1, "payload": b"", "tallies": {"x" * 65: ONE}}),
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
    assert ModelPart(frame=0, version=1, blob=H, index=0, count=1, size=1000, data=data).data is data
    assert KeyPart(version=1, blob=H, index=0, count=1, size=1000, data=data).data is data


@pytest.mark.parametrize("data", [bytes(1000), bytearray(1000), memoryview(bytes(1000))])
def test_bytes_stay_what_they_are_in_an_update_and_in_a_keyframe(data: Any) -> None:
    assert Update(weight=1, payload=data).payload is data
    keyframe = Keyframe(run="r", version=0, digest=D, size=4, start=data, plus=data)
    assert keyframe.start is data
    assert keyframe.plus is data


def test_the_bare_messages_that_are_broken_above_are_whole() -> None:
    bare: list[tuple[type[Any], dict[str, Any]]]
    bare = [(RoundCall, CALL), (Manifest, MANIFEST), (Receipt, HALF), (ModelPart, SLOT), (Keyframe, KEYFRAME)]
    bare += [(KeyPart, PART | {"version": 1}), (Announce, HALF | {"blob": H, "size": 1, "count": 1})]
    assert all(kind(**fields) for kind, fields in bare)


def test_a_round_prints_as_people_say_it() -> None:
    assert [round_text(count) for count in ((12,), (12, 3), (12, 2, 3))] == ["g12", "g12.e3", "g12.e2.e3"]


def test_a_field_means_the_same_wherever_its_message_is_built_first() -> None:
    # A validator that is built when it is first used takes the names of the module that uses it, such as this `Path`.
    code = (
        "from pathlib import Path\n"
        "from hfl_mqtt.protocol.messages import Quarantined\n"
        "assert [type(name) for name in Quarantined(children={'cloud/a': 'x'}).children] == [str]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
