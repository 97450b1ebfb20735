"""What fp16, bf16, int8 and int4 do to numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import ArrayCodec, Bf16, Flat, Fp16, Int4, Int8

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def through(codec: ArrayCodec, values: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    flat = Flat(dtype=values.dtype, size=values.size)
    side, rest = codec.encode(values, np.random.default_rng(seed))
    assert (len(side), Flat(dtype=rest.dtype, size=rest.size)) == codec.outline(flat)
    result = codec.decode(side, rest, flat)
    assert (result.dtype, result.size) == (values.dtype, values.size)
    return result


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_fp16_keeps_eleven_bits_at_any_scale(scale: float) -> None:
    values = (np.linspace(-1, 1, 1001) * scale).astype("f4")
    error = np.abs(through(Fp16(), values) - values)
    assert np.all(error <= np.abs(values) * 2.0**-11)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_bf16_keeps_eight_bits_at_any_scale(scale: float, dtype: str) -> None:
    values = (np.linspace(-1, 1, 1001) * scale).astype(dtype)
    error = np.abs(through(Bf16(), values) - values)
    assert np.all(error <= np.abs(values) * 2.0**-8)


def test_bf16_rounds_to_the_nearest_and_between_two_to_the_even_one() -> None:
    # Between 1 and 2 the steps are 1/128.
    values = 1 + f4(0, 0.4, 0.5, 0.6, 1.5) / 128
    assert ((through(Bf16(), values) - 1) * 128).tolist() == [0, 0, 0, 1, 2]


def test_fp16_passes_halves_exactly() -> None:
    values = np.arange(2**16, dtype="u2").view("f2")
    values = values[np.isfinite(values)]
    assert through(Fp16(), values).tobytes() == values.tobytes()


@pytest.mark.parametrize("codec", [Fp16(), Bf16(), Int8(), Int4(), Int8(block=16), Int4(block=17)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_ends_of_floats_stay_finite(codec: ArrayCodec, dtype: str) -> None:
    ends = np.finfo(dtype)
    for values in ([0.0, 0.0], [ends.max / 2, ends.min / 2, ends.tiny], [ends.smallest_subnormal, 0.0]):
        assert np.isfinite(through(codec, np.array(values, dtype=dtype))).all()


def test_int8_puts_a_value_on_one_of_the_two_steps_beside_it() -> None:
    # The largest magnitude 127 makes a step of 1.
    values = f4(127, -127, 0, 3, 2.25, -2.25)
    for seed in range(20):
        found = through(Int8(), values, seed)
        assert found[:4].tolist() == [127, -127, 0, 3]
        assert found[4] in (2, 3)
        assert found[5] in (-3, -2)


def test_int4_puts_a_value_on_one_of_the_two_steps_beside_it() -> None:
    values = f4(7, -7, 0, 3, 2.25, -2.25, 6.5)
    for seed in range(20):
        found = through(Int4(), values, seed)
        assert found[:4].tolist() == [7, -7, 0, 3]
        assert found[4] in (2, 3)
        assert found[5] in (-3, -2)
        assert found[6] in (6, 7)


def test_int4_puts_two_values_in_a_byte() -> None:
    side, rest = Int4().encode(f4(7, -7, 0), np.random.default_rng(0))
    assert np.frombuffer(side, "<f4").tolist() == [1]
    assert bytes(rest).hex() == "1f08"


@pytest.mark.parametrize(("codec", "most"), [(Int8(block=16), 127), (Int4(block=16), 7), (Int4(block=17), 7)])
def test_each_block_has_a_step_of_its_own(codec: Int8 | Int4, most: int) -> None:
    # A second block a million times smaller keeps its figures; a third one is short.
    values = np.concatenate([np.full(codec.block, most), np.full(codec.block, most * 1e-6), [0, -most * 2]]).astype(
        "f4"
    )
    assert np.allclose(through(codec, values), values, rtol=1e-6)


@pytest.mark.parametrize("block", [0, 16, 1000, 1 << 20])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 40_000, 100_001])
def test_blocks_of_any_size_fit_arrays_of_any_size(block: int, size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype("f4")
    for codec, most in ((Int8(block=block), 127), (Int4(block=block), 7)):
        assert np.abs(through(codec, values) - values).max() <= np.abs(values).max() / most * 1.0001


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(("codec", "most"), [(Int8(), 127), (Int4(), 7), (Int8(block=16), 127)])
@CALM
@given(
    values=st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=200),
    seed=st.integers(0, 2**32),
)
def test_no_value_is_off_by_more_than_a_step(
    codec: Int8 | Int4, most: int, dtype: str, values: list[float], seed: int
) -> None:
    array = np.array(values, dtype=dtype)
    step = np.abs(array).max().astype("f8") / most
    error = np.abs(through(codec, array, seed).astype("f8") - array.astype("f8"))
    # Beside the step, what rounding to the tensor's own dtype costs.
    assert np.all(error <= step * 1.0001 + np.spacing(np.abs(array).max()).astype("f8"))


@pytest.mark.parametrize("codec", [Int8(), Int4()])
def test_no_value_is_off_on_average(codec: Int8 | Int4) -> None:
    # 200,000 roundings of 0.3 between steps 0 and 1: the mean's standard deviation is sqrt(0.21 / 200000) = 0.001.
    values = np.full(200_001, 0.3, dtype="f4")
    values[0] = 127 if codec == Int8() else 7
    mean = float(through(codec, values, seed=1)[1:].astype("f8").mean())
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


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    values = np.linspace(-1, 1, 100_000, dtype="f4")
    one, again, other = (Int8().encode(values, np.random.default_rng(seed))[1].tobytes() for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("codec", "side", "reason"),
    [
        (Fp16(), b"\xff\x7f", "fp16 exponent 32767 is out of range"),
        (Bf16(), b"\x00\x80", "bf16 exponent -32768 is out of range"),
        (Int8(), f4(np.nan).tobytes(), "int8 steps are not all positive numbers"),
        (Int8(), f4(-1).tobytes(), "int8 steps are not all positive numbers"),
        (Int4(), f4(np.inf).tobytes(), "int4 steps are not all positive numbers"),
        (Int4(), f4(0).tobytes(), "int4 steps are not all positive numbers"),
    ],
)
def test_side_bytes_that_no_encoder_writes_are_refused(codec: ArrayCodec, side: bytes, reason: str) -> None:
    values = Flat(dtype=np.dtype("f4"), size=4)
    outline = codec.outline(values)[1]
    with pytest.raises(Refused, match=reason):
        codec.decode(side, np.zeros(outline.size, dtype=outline.dtype), values)
