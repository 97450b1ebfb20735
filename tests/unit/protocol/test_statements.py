"""What is signed: no two field lists give the same bytes, and what was once signed is signed the same way for ever."""

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.blobs import Cut, in_memory
from hfl_mqtt.protocol.messages import Draw, Kind, Late, Manifest, Phase, Plan, RoundCall, Tier
from hfl_mqtt.protocol.statements import from_text, of_call, of_keyframe, of_update, to_text, unsealed

BODY = sha256(b"body").digest()
UPDATE: dict[str, Any] = {
    "federation": "f",
    "run": "r",
    "round_id": (1, 2),
    "sender": "cloud/a",
    "base": "0" * 16,
    "body_digest": BODY,
}
CALL = RoundCall(
    run="r",
    round=(1,),
    asked=2,
    quorum=1,
    open_for_s=60,
    plan=Plan(task="t"),
    model=Manifest(version=0, digest="a" * 64),
)


def test_each_field_of_an_update_makes_another_statement() -> None:
    others = {
        "federation": "g",
        "run": "s",
        "round_id": (1,),
        "sender": "cloud/b",
        "base": "1" * 16,
        "body_digest": bytes(32),
    }
    said = {of_update(**{**UPDATE, name: other}) for name, other in others.items()}
    assert len(said | {of_update(**UPDATE)}) == 1 + len(others)


def test_fields_do_not_flow_into_one_another() -> None:
    assert of_update(**{**UPDATE, "federation": "fr", "run": ""}) != of_update(**UPDATE)
    assert of_update(**{**UPDATE, "round_id": (12,)}) != of_update(**{**UPDATE, "round_id": (1, 2)})


def test_a_kind_of_statement_is_never_another_kind() -> None:
    heads = {of_update(**UPDATE)[:17], of_keyframe("f", "r", "c", 0, "a" * 64, BODY)[:17], of_call("f", "c", CALL)[:17]}
    assert heads == {b"hfl-mqtt update 1", b"hfl-mqtt keyframe", b"hfl-mqtt call 1\0\x93"[:17]}


def test_what_was_once_signed_is_signed_the_same_way_for_ever() -> None:
    """Other bytes here are another protocol: every signature out there would be refused."""
    assert of_update(**UPDATE).hex() == (
        "68666c2d6d7174742075706461746520310096a166a172920102a7636c6f75642f61b030303030303030303030303030303030c420"
        + BODY.hex()
    )
    text = (
        '{"asked":2,"model":{"digest":"' + "a" * 64 + '","version":0},"open_for_s":60.0,"plan":{"task":"t"},'
        '"quorum":1,"round":[1],"run":"r"}'
    )
    assert (
        of_call("f", "cloud", CALL) == b"hfl-mqtt call 1\0\x93\xa1f\xa5cloud\xd9" + bytes([len(text)]) + text.encode()
    )


def test_a_call_is_the_same_statement_with_and_without_its_signature() -> None:
    assert of_call("f", "cloud", replace(CALL, signature="A" * 86)) == of_call("f", "cloud", CALL)


tiers = st.builds(
    Tier,
    rounds=st.integers(1, 3),
    quorum=st.one_of(st.sampled_from([0.5, 1, 1.0, 0.1]), st.integers(1, 9)),
    open_for_s=st.one_of(st.floats(0, 1e6), st.integers(0, 100)),
    late=st.sampled_from(Late),
    budget=st.one_of(st.none(), st.integers(0, 9)),
)
calls = st.builds(
    RoundCall,
    run=st.just("r"),
    round=st.lists(st.integers(1, 2**31), min_size=1, max_size=4).map(tuple),
    phase=st.sampled_from(Phase),
    asked=st.integers(0, 2**53),
    quorum=st.integers(0, 9),
    open_for_s=st.one_of(st.floats(0, 1e6), st.integers(0, 100)),
    plan=st.builds(
        Plan,
        kind=st.sampled_from(Kind),
        task=st.text(max_size=5),
        learning_rate=st.floats(1e-9, 1e6),
        tiers=st.lists(tiers, max_size=2).map(tuple),
    ),
    model=st.builds(Manifest, version=st.integers(0, 9), digest=st.sampled_from(["a" * 16, "b" * 64])),
    draw=st.builds(Draw, seed=st.integers(0, 2**53)),
    late=st.sampled_from(Late),
)


@given(calls)
def test_a_call_that_went_over_the_wire_is_the_same_statement(call: RoundCall) -> None:
    heard, _ = wire.decode(wire.encode(call, "f", "cloud"))
    assert isinstance(heard, RoundCall)
    assert of_call("f", "cloud", heard) == of_call("f", "cloud", call)


def test_a_signed_call_has_150_bytes_more() -> None:
    signed = replace(CALL, signature=to_text(bytes(range(64))))
    plain = replace(CALL, model=replace(CALL.model, digest="a" * 16))
    assert len(wire.encode(signed, "f", "cloud").payload) - len(wire.encode(plain, "f", "cloud").payload) == 149


def test_a_signature_is_read_as_it_was_written() -> None:
    assert from_text(to_text(bytes(range(64)))) == bytes(range(64))
    assert from_text("") == b""


def test_a_sealed_blob_ends_with_what_its_body_was_sealed_with() -> None:
    asked: list[bytes] = []

    def seal(body: bytes) -> bytes:
        asked.append(body)
        return b"s" * 64

    cut = Cut.kept([b"bo", b"dy"], in_memory, seal=seal)
    body, signature = unsealed(cut.blob)
    assert (bytes(body), signature, asked) == (b"body", b"s" * 64, [BODY])
    assert cut.digest == sha256(b"body" + b"s" * 64).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 64])
def test_what_is_too_short_for_a_signature_has_none(size: int) -> None:
    with pytest.raises(Malformed, match="no signature"):
        unsealed(bytes(size))
