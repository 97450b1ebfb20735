"""Weights to bytes and back, and what strangers may send instead."""

import re
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning import payload
from hfl_mqtt.learning.codecs import parse
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.grouping import plan
from hfl_mqtt.learning.payload import (
    carry,
    codec_of,
    decode,
    decode_full,
    decode_layout,
    encode,
    encode_full,
    encode_layout,
    read_layout,
    size_limit,
    tensors,
)
from hfl_mqtt.learning.tables import fingerprint, varint
from hfl_mqtt.learning.weights import DTYPES, TensorSpec, delta_layout, digest, layout_of
from hfl_mqtt.protocol.limits import MAX_TABLE

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)
EXACT = ["raw", "raw | zstd", "shuffle | zstd", "raw | zstd | zstd"]
FINE = ["fp16", "fp16 | zstd", "bf16", "int8", "int8(16)", "int8 | zstd(1)", "raw | int8 | zstd | zstd"]
COARSE = [
    "int4",
    "topk(0.1) | int8 | zstd",
    "topk(0.5)",
    "stc(0.1)",
    "dz(0.3)",
    "dz(0.3) | zstd",
    "rot1",
    "rot2",
    "rot3",
    "rot4",
    "topk(0.5) | rot4",
]
CHAINS = EXACT + FINE + COARSE

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype=dtype,
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
    )
)
models = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), arrays, max_size=5)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def small() -> Weights:
    """One tensor of each kind: coded twice, tiny, integer, boolean, scalar, empty."""
    return {
        "w": np.linspace(-1, 1, 100, dtype="f4").reshape(4, 25),
        "b": f4(0.1, -0.0),
        "n": np.array(7, dtype="i8"),
        "flag": np.array([True, False]),
        "half": np.array(1.5, dtype="f2"),
        "none": np.zeros((0, 3), dtype="f8"),
        "a": np.linspace(1, -1, 16, dtype="f4"),
    }


def lenet() -> Weights:
    shapes = {
        "conv1.weight": (6, 1, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 256),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }
    noise = rng(1)
    return {name: noise.normal(0, 1e-3, shape).astype("f4") for name, shape in shapes.items()}


@pytest.mark.parametrize("text", EXACT)
@CALM
@given(weights=models)
def test_a_lossless_chain_brings_every_model_back_bit_for_bit(text: str, weights: Weights) -> None:
    chain, layout = parse(text), layout_of(weights)
    for found in (
        decode(encode(weights, chain, rng()), chain, layout),
        decode_full(encode_full(weights, chain, rng()), 100_000),
    ):
        assert list(found) == list(weights)
        assert digest(found) == digest(weights)


def test_signs_of_zero_scalars_empties_booleans_and_large_integers_survive() -> None:
    weights = small() | {"big": np.array([-(2**63), 2**63 - 1], dtype="i8")}
    found = decode_full(encode_full(weights, parse("raw | zstd"), rng()), 10_000)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in weights.items()
    }


def test_any_memory_layout_is_read_in_c_order() -> None:
    a = np.arange(200, dtype="f4").reshape(10, 20)
    for text in ("int8", "rot1", "stc(0.1)", "dz(0.1)"):
        for view in (np.asfortranarray(a), a.astype(">f4"), np.repeat(a, 2, axis=1)[:, ::2]):
            assert encode({"w": view}, parse(text), rng()) == encode({"w": a}, parse(text), rng())


@pytest.mark.parametrize("text", FINE + COARSE)
def test_only_large_float_tensors_are_rounded(text: str) -> None:
    weights = small()
    found = decode(encode(weights, parse(text), rng()), parse(text), layout_of(weights))
    coded = {"w", "a"}
    assert digest({n: a for n, a in found.items() if n not in coded}) == digest(
        {n: a for n, a in weights.items() if n not in coded}
    )
    assert np.abs(found["w"] - weights["w"]).max() <= (1.001 / 127 if text in FINE else 1.5)


@pytest.mark.parametrize("text", CHAINS)
@given(weights=models, seed=st.integers(0, 99))
@settings(CALM, max_examples=30)
def test_a_payload_keeps_the_limit_its_receiver_computes(text: str, weights: Weights, seed: int) -> None:
    limit = size_limit(layout_of(weights), parse(text))
    assert len(encode(weights, parse(text), rng(seed))) <= limit
    assert len(encode_full(weights, parse(text), rng(seed))) <= limit


@pytest.mark.parametrize("text", CHAINS)
@given(weights=models, seed=st.integers(0, 99))
@settings(CALM, max_examples=100)
def test_what_an_encoder_says_it_carries_is_what_decoding_gives_bit_for_bit(
    text: str, weights: Weights, seed: int
) -> None:
    chain, deltas = parse(text), delta_layout(layout_of(weights))
    weights = {name: array.astype(deltas[name].dtype) for name, array in weights.items()}
    coded = encode(weights, chain, rng(seed))
    try:
        found = decode(coded, chain, deltas)
    except Refused as error:  # a rounded value has left the range
        with pytest.raises(Refused, match=re.escape(str(error))):
            carry(weights, chain, rng(seed))
        return
    data, said = carry(weights, chain, rng(seed))
    assert data == coded
    assert digest(said) == digest(found)
    assert list(said) == list(weights)


def test_a_top_share_is_one_of_the_whole_model_and_not_of_each_tensor() -> None:
    weights: Weights = {"a": np.full(20, 0.1, "f4"), "b": np.arange(20, dtype="f4")}
    found = decode(encode(weights, parse("topk(0.1)"), rng()), parse("topk(0.1)"), layout_of(weights))
    assert not found["a"].any()
    assert np.flatnonzero(found["b"]).tolist() == [16, 17, 18, 19]


def test_floats_of_different_kinds_are_coded_apart() -> None:
    weights: Weights = {"a": np.arange(20, dtype="f4"), "b": np.arange(20, dtype="f8"), "c": np.arange(20, dtype="f2")}
    found = decode(encode(weights, parse("stc(0.05)"), rng()), parse("stc(0.05)"), layout_of(weights))
    assert {name: (values.dtype.str[1:], float(values.max())) for name, values in found.items()} == {
        "a": ("f4", 19),
        "b": ("f8", 19),
        "c": ("f2", 19),
    }


def test_a_thousand_floats_take_a_quarter_of_the_bytes_in_int8() -> None:
    # Form, length of the text, "int8", fingerprint; the step.
    weights: Weights = {"w": np.ones(1000, dtype="f4")}
    assert len(encode(weights, parse("int8"), rng())) == (1 + 1 + 4 + 8) + 4 + 1000


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("rot1", 5700),
        ("rot2", 11_300),
        ("stc(0.1)", 3400),
        ("stc(0.01)", 620),
        ("dz(0.15)", 4600),
        ("dz(0.03)", 1400),
        ("int4", 22_400),
    ],
)
def test_lenet_takes_few_bytes(text: str, most: int) -> None:
    assert len(encode(lenet(), parse(text), rng())) <= most


@pytest.mark.parametrize("text", ["rot1", "stc(0.01)", "dz(0.1)", "topk(0.01) | int8", "int4"])
def test_framing_of_lenet_is_under_forty_bytes(text: str) -> None:
    weights, chain = lenet(), parse(text)
    coded = [np.concatenate([weights[name].ravel() for name in sorted(weights) if weights[name].size >= 16])]
    if chain.scope == "tensor":
        coded = [values.ravel() for values in weights.values() if values.size >= 16]
    own, noise = 4 * (6 + 10), rng()
    for values in coded:
        sides, rest = chain.encode(values, noise)
        own += sum(map(len, sides)) + rest.nbytes
    assert 0 < len(encode(weights, chain, rng())) - own < 40


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("text", ["int8 | zstd", "rot1", "stc(0.1)", "dz(0.1)"])
def test_diverged_weights_are_refused_before_they_are_sent(bad: float, text: str) -> None:
    for size in (2, 100):
        with pytest.raises(Refused, match="'w' holds NaN or infinity"):
            encode({"w": np.full(size, bad, dtype="f4")}, parse(text), rng())


def test_the_order_of_tensors_does_not_matter_to_a_receiver() -> None:
    weights = small()
    layout = dict(reversed(layout_of(weights).items()))
    found = decode(encode(weights, parse("raw"), rng()), parse("raw"), layout)
    assert list(found) == list(layout)
    assert digest(found) == digest(weights)
    assert encode(dict(reversed(weights.items())), parse("rot1"), rng()) == encode(weights, parse("rot1"), rng())


@pytest.mark.parametrize("text", CHAINS)
def test_the_chain_is_told_by_the_payload(text: str) -> None:
    assert codec_of(encode(small(), parse(text), rng())) == text
    assert codec_of(encode_full(small(), parse(text), rng())) == text


def test_the_layout_is_told_by_a_full_payload_and_by_itself() -> None:
    layout = layout_of(small())
    assert list(read_layout(encode_full(small(), parse("raw"), rng()), 10_000).items()) == list(layout.items())
    assert list(decode_layout(encode_layout(layout), 10_000).items()) == list(layout.items())
    assert len(encode_layout(layout_of(lenet()))) < 160


def test_a_receiver_of_full_payloads_may_ask_for_a_chain() -> None:
    data = encode_full(small(), parse("raw"), rng())
    assert decode_full(data, 10_000, parse("raw")).keys() == small().keys()
    with pytest.raises(Refused, match="coded in 'raw', asked was 'fp16'"):
        decode_full(data, 10_000, parse("fp16"))


# Memory.


def test_raw_arrays_are_views_of_the_payload_and_aligned() -> None:
    data = encode(lenet(), parse("raw"), rng())
    buffer = np.frombuffer(data, "u1")
    for values in decode(data, parse("raw"), layout_of(lenet())).values():
        assert np.shares_memory(values, buffer)
        assert values.flags.aligned


@pytest.mark.parametrize(
    ("text", "most"),
    [("raw | zstd", 2.5), ("shuffle | zstd", 3.5), ("int8 | zstd", 3.5), ("int4 | zstd", 4), ("fp16", 3)],
)
def test_reading_tensor_after_tensor_holds_few_of_them_at_a_time(text: str, most: float) -> None:
    weights: Weights = {f"t{index:02}": rng(index).normal(size=50_000).astype("f4") for index in range(20)}
    data, layout = encode(weights, parse(text), rng()), layout_of(weights)
    tracemalloc.start()
    for _name, values in tensors(data, parse(text), layout):
        del values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= most * 200_000 + 400_000


def test_every_tensor_is_good_before_the_end_is_known() -> None:
    chain = parse("raw | zstd")
    weights: Weights = {"a": np.arange(100_000, dtype="f4"), "b": np.arange(100_000, dtype="f4")}
    data = bytearray(encode(weights, chain, rng()))
    data[-5] ^= 0x55
    seen: Weights = {}
    with pytest.raises(Refused):
        seen.update(tensors(bytes(data), chain, layout_of(weights)))
    assert list(seen) == ["a"]
    assert seen["a"].tobytes() == weights["a"].tobytes()


def many() -> Weights:
    """Six hundred small tensors of several kinds, over a batch in all, and one that is larger than a batch."""
    noise, kinds = rng(4), ("f4", "f8", "f2", "i8", "b1", "f4", "f4")
    weights: Weights = {
        f"t{index:03}": (noise.normal(size=index % 97) * 100).astype(kinds[index % len(kinds)]) for index in range(600)
    }
    return weights | {"t300x": noise.normal(size=70_000).astype("f4")}


@pytest.mark.parametrize("text", EXACT)
def test_a_model_of_many_tensors_comes_back_bit_for_bit(text: str) -> None:
    weights, chain = many(), parse(text)
    found = decode(encode(weights, chain, rng()), chain, layout_of(weights))
    assert digest(found) == digest(weights)
    assert digest(decode_full(encode_full(weights, chain, rng()), 2_000_000)) == digest(weights)


@pytest.mark.parametrize("text", FINE + COARSE)
def test_a_model_of_many_tensors_has_each_in_its_place(text: str) -> None:
    weights, chain = many(), parse(text)
    found = decode(encode(weights, chain, rng()), chain, layout_of(weights))
    for name, values in weights.items():
        assert found[name].dtype == values.dtype
        if values.dtype.kind != "f" or values.size < 16:
            assert found[name].tobytes() == values.tobytes()
        elif text in FINE:
            assert np.abs(found[name] - values).max() <= np.abs(values).max() / 100


def test_values_that_pass_exactly_stand_in_a_row_as_they_are() -> None:
    weights: Weights = {
        "a": f4(1),
        "b": f4(2, 3),
        "c": np.array([4], "i8"),
        "d": f4(5),
        "e": np.arange(100, dtype="f4"),
    }
    assert encode(weights, parse("raw"), rng()).endswith(
        f4(1, 2, 3).tobytes() + weights["c"].tobytes() + f4(5).tobytes() + weights["e"].tobytes()
    )


def test_small_neighbours_are_read_together_up_to_a_bound() -> None:
    """64 tensors of 16 KiB: four batches of 256 KiB; what is larger stands alone, and does not stop the next batch."""
    small: Weights = {f"t{index:02}": np.zeros(4096, dtype="f4") for index in range(64)}
    assert [len(batch.groups) for batch in plan(layout_of(small), parse("int8")).batches] == [16] * 4
    assert [len(group.names) for group in plan(layout_of(small), parse("raw")).groups] == [16] * 4
    mixed: Weights = {"a": f4(1), "b": np.zeros(70_000, "f4"), "c": f4(1), "d": f4(1)}
    assert [batch.body_bytes for batch in plan(layout_of(mixed), parse("raw")).batches] == [4, 280_000, 8]


@pytest.mark.parametrize("text", ["raw", "raw | zstd", "int8", "rot1", "dz(0.5)", "shuffle"])
@pytest.mark.parametrize("bad", ["a", "b", "c", "y", "z"])
def test_the_tensor_with_a_wrong_value_is_named(text: str, bad: str) -> None:
    weights: Weights = {
        "a": f4(1),
        "b": f4(1, 2),
        "c": np.ones(3, dtype="f8"),
        "m": np.ones(30, dtype="f4"),
        "n": np.array([7], dtype="i8"),
        "y": np.ones(2, dtype="f4"),
        "z": np.ones(3, dtype="f2"),
    }
    chain, layout = parse(text), layout_of(weights)
    good = encode(weights | {"n": np.array([8], dtype="i8")}, chain, rng())
    assert decode(good, chain, layout)["n"].tolist() == [8]
    weights[bad][-1] = np.inf
    with pytest.raises(Refused, match=f"'{bad}' holds NaN or infinity"):
        encode(weights, chain, rng())
    if not chain.packers:
        weights[bad][-1] = 1234.5
        data = encode(weights, chain, rng())
        inf = np.full(1, np.inf, weights[bad].dtype).tobytes()
        assert data.count(weights[bad][-1:].tobytes()) == 1
        with pytest.raises(Refused, match=f"'{bad}' holds NaN or infinity"):
            decode(data.replace(weights[bad][-1:].tobytes(), inf), chain, layout)


def test_the_tensor_with_a_boolean_that_is_none_is_named() -> None:
    weights: Weights = {"a": np.array([True]), "b": np.array([True, False])}
    data = bytearray(encode(weights, parse("raw"), rng()))
    data[-1] = 2
    with pytest.raises(Refused, match="'b' holds a boolean that is neither 0 nor 1"):
        decode(bytes(data), parse("raw"), layout_of(weights))


# Hostile bytes.

PAIR: Weights = {"w": f4(1, 2)}
PAIR_LAYOUT = layout_of(PAIR)
HEAD = b"\x01\x03raw" + fingerprint(PAIR_LAYOUT)
NUMBERS = f4(1, 2).tobytes()
PAD = b"\0" * (-len(HEAD) % 4)


def test_a_forged_payload_that_is_right_is_read() -> None:
    assert encode(PAIR, parse("raw"), rng()) == HEAD + PAD + NUMBERS
    assert decode(HEAD + PAD + NUMBERS, parse("raw"), PAIR_LAYOUT)["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends after 0 bytes, at least 1 were announced"),
        (b"\xc1", "not a compact payload of version 1"),
        (b"\x02" + HEAD[1:] + PAD + NUMBERS, "not a compact payload of version 1"),
        (encode_full(PAIR, parse("raw"), rng()), "not a compact payload of version 1"),
        (b"\x01\x04int8" + HEAD[5:] + NUMBERS, "coded in 'int8', asked was 'raw'"),
        (b"\x01\x04r\xffw\n" + HEAD[5:] + NUMBERS, "asked was 'raw'"),
        (b"\x01\xffraw", "ends after 5 bytes, at least 257 were announced"),
        (HEAD[:-1] + b"\0" + PAD + NUMBERS, "coded for another model"),
        (HEAD + b"\1" * len(PAD) + NUMBERS, "before the body where zeros belong"),
        (HEAD + PAD + NUMBERS + b"\0", "a body of 9 bytes, expected 8"),
        (HEAD + PAD + NUMBERS[:7], "a body of 7 bytes, expected 8"),
        (HEAD + PAD + f4(1, np.nan).tobytes(), "'w' holds NaN"),
    ],
)
def test_a_payload_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        decode(data, parse("raw"), PAIR_LAYOUT)


def test_a_payload_of_a_model_that_differs_in_a_name_a_shape_or_a_dtype_is_refused() -> None:
    data = encode(PAIR, parse("raw"), rng())
    others: list[Weights] = [
        {"v": f4(1, 2)},
        {"w": f4(1, 2).reshape(1, 2)},
        {"w": np.array([1, 2], dtype="i4")},
        PAIR | {"x": f4(1)},
    ]
    for other in others:
        with pytest.raises(Refused, match="coded for another model"):
            decode(data, parse("raw"), layout_of(other))


def table(*rows: bytes, count: int | None = None) -> bytes:
    return zstandard.ZstdCompressor().compress(varint(len(rows) if count is None else count) + b"".join(rows))


def row(name: bytes, code: int, *dims: int) -> bytes:
    return varint(len(name)) + name + bytes([code, len(dims)]) + b"".join(map(varint, dims))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a table|a table of"),
        (b"abcdefgh", "not a table"),
        (table(row(b"w", 1, 2)) + b"x", "not a table"),
        (table(row(b"w", 1, 2), b"x"), "ends after"),
        (table(row(b"w", 1, 2), count=2), "ends after"),
        (table(row(b"w", 1, 2), row(b"w", 1, 2)), "'w' stands twice"),
        (table(row(b"w", 1, 2), row(b"v", 1), count=1), "3 bytes stand behind the table|bytes stand behind"),
        (table(row(b"", 1, 2)), "no tensor of this package"),
        (table(row(b"w" * 201, 1, 2)), "no tensor of this package"),
        (table(row(b"w" * 801, 1, 2)), "a name of 801 bytes"),
        (table(row(b"\xff", 1, 2)), "not UTF-8"),
        (table(row(b"w", 11, 2)), "no tensor of this package"),
        (table(row(b"w", 1, *[1] * 9)), "no tensor of this package"),
        (table(row(b"w", 1, 2**48)), "impossible shape"),
        (table(row(b"w", 1, 0, 2**40, 2**40)), "impossible shape"),
        (table(row(b"w", 1, 2**47)), "a model of 562949953421312 bytes, at most 1000"),
        (table(count=10_001), "10001 tensors, at most 10000"),
        (table(b"\x80" * 9), "ends after|too large"),
        (zstandard.ZstdCompressor().compress(b"\0" * (MAX_TABLE + 1)), "a table of 1048577 bytes, at most 1048576"),
    ],
)
def test_a_table_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        decode_layout(data, 1000)
    with pytest.raises(Refused, match=reason):
        decode_full(b"\x81\x03raw" + varint(len(data)) + data, 1000)


def test_a_number_that_never_ends_is_refused() -> None:
    with pytest.raises(Refused, match="a number too large"):
        decode_layout(zstandard.ZstdCompressor().compress(b"\xff" * 50), 1000)


def test_a_boolean_is_zero_or_one() -> None:
    data = bytearray(encode({"f": np.array([True])}, parse("raw"), rng()))
    data[-1] = 2
    with pytest.raises(Refused, match="neither 0 nor 1"):
        decode(bytes(data), parse("raw"), {"f": TensorSpec(dtype=np.dtype("?"), shape=(1,))})


def test_infinity_made_by_a_scale_is_refused() -> None:
    weights: Weights = {"w": np.ones(100, dtype="f4")}
    data = encode(weights, parse("int8"), rng())
    steep = data[:-104] + f4(3e38).tobytes() + data[-100:]
    with pytest.raises(Refused, match="'w' holds NaN or infinity"):
        decode(steep, parse("int8"), layout_of(weights))


def test_a_bomb_in_a_body_is_refused() -> None:
    weights: Weights = {"w": np.zeros(100, "f4")}
    head = b"\x01\x0araw | zstd" + fingerprint(layout_of(weights))
    bomb = head + zstandard.ZstdCompressor().compress(b"\0" * 50_000_000)
    with pytest.raises(Refused, match="zstd frame of 50000000 bytes, at most 400"):
        decode(bomb, parse("raw | zstd"), layout_of(weights))


def test_side_bytes_longer_than_any_encoder_writes_are_refused_before_they_are_read() -> None:
    weights: Weights = {"w": np.ones(100, "f4")}
    head = b"\x01\x08stc(0.1)" + fingerprint(layout_of(weights))
    with pytest.raises(Refused, match="'w' in stc with 200 bytes beside, at most"):
        decode(head + varint(200) + b"\0" * 300, parse("stc(0.1)"), layout_of(weights))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x07\x03raw", "not a compact payload of version 1"),
        (b"\x01\x00", "nothing known here"),
        (b"\x01\x04int9", "nothing known here.*did you mean 'int8'"),
        (b"\x01\x08int8(99)"[:9], "ends after"),
        (b"\x01\x04raw ", "coded in 'raw ', which is 'raw'"),
        (b"\x01\x02\xff\xfe", "nothing known here"),
        (b"\x81\x7a" + b"a" * 122, "nothing known here"),
    ],
)
def test_a_payload_that_names_no_chain_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        codec_of(data)


def test_a_table_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(Refused, match="names and shapes of 9000 tensors"):
        encode_full({f"{i:0200}": np.zeros(0) for i in range(9000)}, parse("raw"), rng())


VALID = {text: encode(small(), parse(text), rng()) for text in CHAINS}
VALID_FULL = {text: encode_full(small(), parse(text), rng()) for text in CHAINS}


def read_hostile(data: bytes, text: str) -> None:
    """Only `Refused` may come out of any reader, and what is accepted is a model of the right kind."""
    try:
        found = decode(data, parse(text), layout_of(small()))
        assert layout_of(found) == layout_of(small())
    except Refused as refused:
        # Refusing is allowed here, not required.
        assert 0 < len(str(refused)) <= 300  # noqa: PT017
    with suppress(Refused):
        assert sum(a.nbytes for a in decode_full(data, 5000).values()) <= 5000
    with suppress(Refused):
        codec_of(data)
    with suppress(Refused):
        decode_layout(data, 5000)


@given(data=st.binary(max_size=300), text=st.sampled_from(CHAINS))
@settings(CALM, max_examples=200)
def test_random_bytes_are_refused_or_read(data: bytes, text: str) -> None:
    read_hostile(data, text)
    read_hostile(VALID[text][: len(text) + 10] + data, text)


@given(text=st.sampled_from(CHAINS), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4))
@settings(CALM, max_examples=500)
def test_flipped_bits_are_refused_or_read(text: str, flips: list[tuple[int, int]]) -> None:
    for valid in (VALID[text], VALID_FULL[text]):
        data = bytearray(valid)
        for place, mask in flips:
            data[place % len(data)] ^= mask
        read_hostile(bytes(data), text)


@pytest.mark.parametrize("text", CHAINS)
def test_every_truncation_is_refused(text: str) -> None:
    for end in range(len(VALID[text])):
        with pytest.raises(Refused):
            decode(VALID[text][:end], parse(text), layout_of(small()))
    for end in range(len(VALID_FULL[text])):
        with pytest.raises(Refused):
            decode_full(VALID_FULL[text][:end], 5000)


@pytest.mark.parametrize("text", CHAINS)
@given(tail=st.binary(min_size=1, max_size=20))
@settings(CALM, max_examples=20)
def test_every_tail_is_refused(text: str, tail: bytes) -> None:
    with pytest.raises(Refused):
        decode(VALID[text] + tail, parse(text), layout_of(small()))
    with pytest.raises(Refused):
        decode_full(VALID_FULL[text] + tail, 5000)


def test_the_version_is_in_the_first_byte_of_both_forms() -> None:
    assert VALID["raw"][0] == payload.VERSION
    assert VALID_FULL["raw"][0] == 0x80 | payload.VERSION
