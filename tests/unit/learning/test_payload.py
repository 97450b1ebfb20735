"""Weights to bytes and back, and what strangers may send instead."""

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import Zstd, parse
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.payload import MAX_HEADER, decode, decode_unknown, encode, size_limit
from hfl_mqtt.learning.weights import DTYPES, digest, layout_of

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)
CHAINS = ["raw", "raw | zstd", "fp16", "fp16 | zstd", "int8", "int8 | zstd(1)", "raw | int8 | zstd | zstd"]

tensors = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype=dtype,
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
    )
)
models = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), tensors, max_size=5)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def small() -> Weights:
    """One tensor of each kind: coded, tiny, integer, boolean, scalar, empty."""
    return {
        "w": np.linspace(-1, 1, 100, dtype="f4").reshape(4, 25),
        "b": f4(0.1, -0.0),
        "n": np.array(7, dtype="i8"),
        "flag": np.array([True, False]),
        "half": np.array(1.5, dtype="f2"),
        "none": np.zeros((0, 3), dtype="f8"),
    }


@pytest.mark.parametrize("text", ["raw", "raw | zstd"])
@CALM
@given(weights=models)
def test_raw_brings_every_model_back_bit_for_bit(text: str, weights: Weights) -> None:
    chain = parse(text)
    blob = encode(weights, chain, rng())
    for found in (decode(blob, chain, layout_of(weights)), decode_unknown(blob, chain, 100_000)):
        assert list(found) == list(weights)
        assert digest(found) == digest(weights)


def test_signs_of_zero_scalars_empties_booleans_and_large_integers_survive() -> None:
    weights = small() | {"big": np.array([-(2**63), 2**63 - 1], dtype="i8")}
    found = decode_unknown(encode(weights, parse("raw | zstd"), rng()), parse("raw | zstd"), 10_000)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in weights.items()
    }


def test_any_memory_layout_is_read_in_c_order() -> None:
    a = np.arange(200, dtype="f4").reshape(10, 20)
    for view in (np.asfortranarray(a), a.astype(">f4"), np.repeat(a, 2, axis=1)[:, ::2]):
        assert encode({"w": view}, parse("int8"), rng()) == encode({"w": a}, parse("int8"), rng())


@pytest.mark.parametrize("text", CHAINS)
def test_only_large_float_tensors_are_rounded(text: str) -> None:
    weights = small()
    found = decode(encode(weights, parse(text), rng()), parse(text), layout_of(weights))
    assert digest({n: a for n, a in found.items() if n != "w"}) == digest(
        {n: a for n, a in weights.items() if n != "w"}
    )
    assert np.abs(found["w"] - weights["w"]).max() <= 1.001 / 127


@pytest.mark.parametrize("text", CHAINS)
@given(weights=models, seed=st.integers(0, 99))
@settings(CALM, max_examples=30)
def test_a_payload_keeps_the_limit_its_receiver_computes(text: str, weights: Weights, seed: int) -> None:
    assert len(encode(weights, parse(text), rng(seed))) <= size_limit(layout_of(weights), parse(text))


def test_a_thousand_floats_take_a_quarter_of_the_bytes_in_int8() -> None:
    weights: Weights = {"w": np.ones(1000, dtype="f4")}
    header = len(msgpack.packb({"v": 1, "codec": "int8", "tensors": [["w", "f4", [1000], [8, 1000]]]}))
    assert len(encode(weights, parse("int8"), rng())) == header + 8 + 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_weights_are_refused_before_they_are_sent(bad: float) -> None:
    for size in (2, 100):
        with pytest.raises(Refused, match="'w' holds NaN or infinity"):
            encode({"w": np.full(size, bad, dtype="f4")}, parse("int8 | zstd"), rng())


def test_the_order_of_tensors_does_not_matter_to_a_receiver() -> None:
    weights = small()
    layout = dict(reversed(layout_of(weights).items()))
    assert digest(decode(encode(weights, parse("raw"), rng()), parse("raw"), layout)) == digest(weights)


# Hostile bytes. `forge` writes payloads that no encoder would.


def forge(tensors: object, body: bytes = b"", **changes: object) -> bytes:
    header: bytes = msgpack.packb({"v": 1, "codec": "raw", "tensors": tensors, **changes})
    return header + body


PAIR = [["w", "f4", [2], [8]]]
NUMBERS = f4(1, 2).tobytes()
PAIR_LAYOUT = layout_of({"w": f4(1, 2)})


def test_a_forged_payload_that_is_right_is_read() -> None:
    assert decode(forge(PAIR, NUMBERS), parse("raw"), PAIR_LAYOUT)["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a payload: OutOfData"),
        (b"\xc1", "not a payload"),
        (b"\x07", "not a payload of version 1"),
        (forge(PAIR, NUMBERS, v=2), "not a payload of version 1"),
        (forge(PAIR, NUMBERS, codec="int8"), "coded in 'int8', asked was 'raw'"),
        (forge(PAIR, NUMBERS, codec=7), "names no codec"),
        (b"\x82\xa1v\x01\xa5codec" + b"\x91" * 100 + b"\x90", "names no codec"),
        (forge(7), "no tensors"),
        (forge([7]), "a tensor is not"),
        (forge([["w", "f4", [2]]]), "a tensor is not"),
        (forge([["w", "c8", [2], [16]]]), "a tensor is not"),
        (forge([["w", "f4", [-2], [8]]]), "a tensor is not"),
        (forge([["w", "f4", [True, 2], [8]]]), "a tensor is not"),
        (forge([["w", "f4", [2.0], [8]]]), "a tensor is not"),
        (forge([["w", "f4", [2**63], [8]]]), "a tensor is not"),
        (forge([["w", "f4", [0, 2**40, 2**40], [0]]]), "'w' has an impossible shape"),
        (forge([["w", "f4", [1] * 9, [8]]]), "a tensor is not"),
        (forge([["", "f4", [2], [8]]]), "a tensor is not"),
        (forge([["w", "f4", [2], [9]]]), "'w' has parts of wrong sizes"),
        (forge([["w", "f4", [2], [4, 4]]]), "'w' has parts of wrong sizes"),
        (forge([["w", "f4", [2], []]]), "'w' has parts of wrong sizes"),
        (forge([["w", "f4", [2], [4]]], NUMBERS[:4]), r"1 values, expected float32\[2\]"),
        (forge([["w", "f4", [2], [7]]], NUMBERS[:7]), "7 bytes are no whole float32s"),
        (forge(PAIR + PAIR, NUMBERS * 2), "'w' stands twice"),
        (forge([["v", "f4", [2], [8]]], NUMBERS), "'w' is missing"),
        (forge([["w", "f4", [1, 2], [8]]], NUMBERS), r"'w' is float32\[1, 2\], expected"),
        (forge(PAIR, NUMBERS + b"\0"), "a body of 9 bytes, expected 8"),
        (forge(PAIR, NUMBERS[:7]), "a body of 7 bytes, expected 8"),
        (forge(PAIR, f4(1, np.nan).tobytes()), "'w' holds NaN"),
        (forge(PAIR, NUMBERS + b"\0" * 10_000), "bytes, at most"),
        (b"\x93" * 200, "not a payload"),
        (msgpack.packb(msgpack.ExtType(4, b"x")), "not a payload"),
        (msgpack.packb({7: 7}), "not a payload"),
    ],
)
def test_a_payload_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        decode(payload, parse("raw"), PAIR_LAYOUT)


def test_a_boolean_is_zero_or_one() -> None:
    with pytest.raises(Refused, match="neither 0 nor 1"):
        decode_unknown(forge([["f", "b1", [1], [1]]], b"\2"), parse("raw"), 100)


def test_infinity_made_by_a_scale_is_refused() -> None:
    weights: Weights = {"w": np.ones(100, dtype="f4")}
    blob = encode(weights, parse("int8"), rng())
    steep = blob[:-108] + np.float64(1e300).tobytes() + blob[-100:]
    with pytest.raises(Refused, match="'w' holds NaN or infinity"):
        decode(steep, parse("int8"), layout_of(weights))


def test_a_bomb_in_a_body_is_refused() -> None:
    chain = parse("raw | zstd")
    bomb = forge(PAIR, Zstd().encode(b"\0" * 50_000_000)[:100], codec="raw | zstd")
    with pytest.raises(Refused, match="zstd frame of 50000000 bytes, at most 8"):
        decode(bomb, chain, PAIR_LAYOUT)
    with pytest.raises(Refused, match="zstd frame of 50000000 bytes, at most 8"):
        decode_unknown(bomb, chain, 1000)


def test_a_model_larger_than_the_receiver_wants_is_refused_by_its_header() -> None:
    huge = forge([["w", "f4", [2**30], [0, 2**32]]])
    with pytest.raises(Refused, match="a model of 4294967296 bytes, at most 1000"):
        decode_unknown(huge, parse("raw"), 1000)


def test_more_tensors_than_a_model_may_have_are_refused() -> None:
    with pytest.raises(Refused, match="not a payload"):
        decode_unknown(forge([[str(i), "f4", [0], [0]] for i in range(10_001)]), parse("raw"), 1000)


def test_a_map_that_never_ends_is_refused_at_its_bound() -> None:
    ten_thousand = b"\xdd\x00\x00\x27\x10"
    nested = b"\x81\xa1v" + ten_thousand + (ten_thousand + b"\x90" * 10_000) * (MAX_HEADER // 10_000)
    with pytest.raises(Refused, match="not a payload: OutOfData"):
        decode_unknown(nested, parse("raw"), 10**9)


@pytest.mark.parametrize("key", [b"\xa1v", b"\xa5codec", b"\xa7tensors"])
@pytest.mark.parametrize("depth", [500, 1020, 1500, 100_000])
def test_lists_in_lists_in_lists_are_refused(key: bytes, depth: int) -> None:
    fields = {b"\xa1v": b"\x01", b"\xa5codec": b"\xa3raw", b"\xa7tensors": b"\x90"}
    fields[key] = b"\x91" * depth + b"\x90"
    with pytest.raises(Refused):
        decode_unknown(b"\x83" + b"".join(name + value for name, value in fields.items()), parse("raw"), 1000)


def test_a_header_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(Refused, match="names and shapes of 9000 tensors"):
        encode({f"{i:0200}": np.zeros(0) for i in range(9000)}, parse("raw"), rng())


VALID = {text: encode(small(), parse(text), rng()) for text in CHAINS}


def read_hostile(payload: bytes, text: str) -> None:
    """Only `Refused` may come out of either reader, and what is accepted is a model of the right kind."""
    try:
        found = decode(payload, parse(text), layout_of(small()))
        assert layout_of(found) == layout_of(small())
    except Refused as refused:
        # Refusing is allowed here, not required.
        assert 0 < len(str(refused)) <= 300  # noqa: PT017
    with suppress(Refused):
        assert sum(a.nbytes for a in decode_unknown(payload, parse(text), 5000).values()) <= 5000


@given(payload=st.binary(max_size=300), text=st.sampled_from(CHAINS))
@settings(CALM, max_examples=300)
def test_random_bytes_are_refused_or_read(payload: bytes, text: str) -> None:
    read_hostile(payload, text)


@given(text=st.sampled_from(CHAINS), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4))
@settings(CALM, max_examples=500)
def test_flipped_bits_are_refused_or_read(text: str, flips: list[tuple[int, int]]) -> None:
    payload = bytearray(VALID[text])
    for place, mask in flips:
        payload[place % len(payload)] ^= mask
    read_hostile(bytes(payload), text)


@pytest.mark.parametrize("text", CHAINS)
def test_every_truncation_is_refused(text: str) -> None:
    for end in range(len(VALID[text])):
        with pytest.raises(Refused):
            decode(VALID[text][:end], parse(text), layout_of(small()))
        with pytest.raises(Refused):
            decode_unknown(VALID[text][:end], parse(text), 5000)


@pytest.mark.parametrize("text", CHAINS)
@given(tail=st.binary(min_size=1, max_size=20))
@settings(CALM, max_examples=20)
def test_every_tail_is_refused(text: str, tail: bytes) -> None:
    with pytest.raises(Refused):
        decode(VALID[text] + tail, parse(text), layout_of(small()))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=7), inner, max_size=4),
    max_leaves=10,
)
rows = st.lists(
    st.tuples(st.text(max_size=3), st.sampled_from(["f4", "f8", "b1", "i8", "x"]), plain, plain)
    | st.tuples(st.just("w"), st.just("f4"), st.lists(st.integers(-1, 80)), st.lists(st.integers(-1, 400))),
    max_size=3,
)


@given(tensors=rows | plain, body=st.binary(max_size=500), text=st.sampled_from(CHAINS))
@settings(CALM, max_examples=400)
def test_well_formed_maps_with_any_content_are_refused_or_read(tensors: object, body: bytes, text: str) -> None:
    for packer in parse(text).packers:
        body = packer.encode(body)
    read_hostile(forge(tensors, body, codec=text), text)
