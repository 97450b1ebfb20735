"""Chains, and what each codec does to numbers."""

from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs import Flat, Fp16, Int8, Raw, Zstd, parse

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def through(codec: Raw | Fp16 | Int8, values: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    flat = Flat(dtype=values.dtype, size=values.size)
    side, rest = codec.encode(values, np.random.default_rng(seed))
    side_limit, outline = codec.outline(flat)
    assert len(side) <= side_limit
    assert Flat(dtype=rest.dtype, size=rest.size) == outline
    result = codec.decode(side, rest, flat)
    assert (result.dtype, result.size) == (values.dtype, values.size)
    return result


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("raw", "raw"),
        ("raw | zstd", "raw | zstd"),
        ("fp16|zstd(3)", "fp16 | zstd"),
        (" int8  |zstd( 19 ) ", "int8 | zstd(19)"),
        ("raw | int8 | zstd()", "raw | int8 | zstd"),
    ],
)
def test_a_chain_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int9 | zstd", "codec 'int9 | zstd': no codec is called 'int9', did you mean 'int8'"),
        ("raw | zsdt", "did you mean 'zstd'"),
        ("zstd", "array codecs such as raw or int8 come first"),
        ("raw | zstd | int8", "array codecs such as raw or int8 come first"),
        ("int8 | fp16", "int8 leaves no floats for fp16; drop one of them"),
        ("raw(1)", "raw takes no options, got 1"),
        ("raw | zstd(1, 2)", "zstd takes level, got 2 options"),
        ("raw | zstd(0)", "zstd takes a level from 1 to 19, not 0"),
        ("raw | zstd(2.5)", "zstd takes a level from 1 to 19, not 2.5"),
        ("raw | zstd(fast)", "'fast' is not a number"),
        ("raw | zstd(nan)", "'nan' is not a finite number"),
        ("raw || zstd", "'' is not of the form name"),
        ("", "'' is not of the form name"),
    ],
)
def test_a_wrong_chain_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert reason in str(caught.value)


def test_only_a_chain_of_lossless_codecs_is_lossless() -> None:
    assert parse("raw | zstd").is_lossless
    assert not parse("fp16 | zstd").is_lossless


def test_raw_is_the_values_themselves() -> None:
    values = f4(1.5, -0.0, 1e-45)
    assert through(Raw(), values).tobytes() == values.tobytes()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_fp16_keeps_eleven_bits_at_any_scale(scale: float) -> None:
    values = (np.linspace(-1, 1, 1001) * scale).astype("f4")
    error = np.abs(through(Fp16(), values) - values)
    assert np.all(error <= np.abs(values) * 2.0**-11)


def test_fp16_passes_halves_exactly() -> None:
    values = np.arange(2**16, dtype="u2").view("f2")
    values = values[np.isfinite(values)]
    assert through(Fp16(), values).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_fp16_reaches_the_ends_of_wider_floats(dtype: str) -> None:
    ends = np.finfo(dtype)
    assert np.isfinite(through(Fp16(), np.array([ends.max / 2, ends.min / 2, ends.tiny], dtype=dtype))).all()
    assert np.isfinite(through(Fp16(), np.array([ends.smallest_subnormal], dtype=dtype))).all()


def test_int8_puts_a_value_on_one_of_the_two_steps_beside_it() -> None:
    # The largest magnitude 127 makes a step of 1.
    values = f4(127, -127, 0, 3, 2.25, -2.25)
    for seed in range(20):
        found = through(Int8(), values, seed)
        assert found[:4].tolist() == [127, -127, 0, 3]
        assert found[4] in (2, 3)
        assert found[5] in (-3, -2)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@CALM
@given(
    values=st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=200),
    seed=st.integers(0, 2**32),
)
def test_int8_is_off_by_at_most_one_step(dtype: str, values: list[float], seed: int) -> None:
    array = np.array(values, dtype=dtype)
    step = np.abs(array).max().astype("f8") / 127
    error = np.abs(through(Int8(), array, seed).astype("f8") - array.astype("f8"))
    # Beside the step, what rounding to the tensor's own dtype costs.
    assert np.all(error <= step * 1.0001 + np.spacing(np.abs(array).max()).astype("f8"))


def test_int8_is_not_off_on_average() -> None:
    # 200,000 roundings of 0.3 between steps 0 and 1: the mean's standard deviation is sqrt(0.21 / 200000) = 0.001.
    values = np.full(200_001, 0.3, dtype="f4")
    values[0] = 127
    mean = float(through(Int8(), values, seed=1)[1:].astype("f8").mean())
    assert abs(mean - 0.3) < 0.005


def test_int8_keeps_the_largest_value_whatever_the_lot() -> None:
    # One lot in 260,000 is so near 1 that 127 + lot is 128 in float32, which is -128 in a byte.
    values = np.full(2_000_000, 127, dtype="f4")
    assert through(Int8(), values).min() == 127


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
@settings(CALM, max_examples=25)
def test_int8_over_many_seeds_gives_the_value_back(values: list[float]) -> None:
    array = np.array(values, dtype="f4")
    step = float(np.abs(array).max()) / 127
    mean = np.mean([through(Int8(), array, seed) for seed in range(100)], axis=0)
    # Half a step is the largest deviation of one rounding; six deviations of a mean of 100.
    assert np.all(np.abs(mean - array) <= 6 * step / 2 / 10 + 1e-30)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_int8_copes_with_the_ends_of_floats(dtype: str) -> None:
    ends = np.finfo(dtype)
    for values in ([0.0, 0.0], [ends.max / 2, ends.min / 2], [ends.smallest_subnormal, 0.0]):
        assert np.isfinite(through(Int8(), np.array(values, dtype=dtype))).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    values = np.linspace(-1, 1, 100_000, dtype="f4")
    one, again, other = (Int8().encode(values, np.random.default_rng(seed))[1].tobytes() for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("codec", "side", "reason"),
    [
        (Fp16(), b"\0", "2 bytes of its own, not 1"),
        (Fp16(), b"\xff\x7f", "exponent 32767 is out of range"),
        (Int8(), b"\0" * 7, "8 bytes of its own, not 7"),
        (Int8(), np.float64(np.nan).tobytes(), "step nan is not a positive number"),
        (Int8(), np.float64(-1).tobytes(), "step -1.0 is not a positive number"),
        (Int8(), np.float64(np.inf).tobytes(), "step inf is not a positive number"),
    ],
)
def test_side_bytes_that_no_encoder_writes_are_refused(codec: Fp16 | Int8, side: bytes, reason: str) -> None:
    values = Flat(dtype=np.dtype("f4"), size=4)
    rest = np.zeros(4, dtype=codec.outline(values)[1].dtype)
    with pytest.raises(Refused) as caught:
        codec.decode(side, rest, values)
    assert reason in str(caught.value)


@CALM
@given(st.binary(min_size=1, max_size=3000))
def test_zstd_gives_the_bytes_back_within_its_limit(data: bytes) -> None:
    packed = Zstd().encode(data)
    assert len(packed) <= Zstd().limit(len(data))
    assert Zstd().decode(packed, len(data)) == data


def test_zstd_refuses_a_bomb_before_it_goes_off() -> None:
    bomb = Zstd().encode(b"\0" * 10_000_000)
    assert len(bomb) < 2000
    with pytest.raises(Refused, match="zstd frame of 10000000 bytes, at most 1000"):
        Zstd().decode(bomb, 1000)


def test_zstd_refuses_a_frame_that_hides_its_size() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(Refused, match="unknown size"):
        Zstd().decode(hidden, 1000)


@pytest.mark.parametrize("data", [b"abc", b""])  # of an empty frame the library forgives what follows
def test_zstd_refuses_bytes_behind_its_frame(data: bytes) -> None:
    with pytest.raises(Refused, match="zstd"):
        Zstd().decode(Zstd().encode(data) + b"x", 1000)
