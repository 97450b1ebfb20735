"""What rot1 to rot4 do to numbers, and that undoing it is exact on every machine."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import Flat, Rot1, Rot2, Rot3, Rot4, Rotated
from hfl_mqtt.learning.codecs.packing import pack
from hfl_mqtt.learning.codecs.rotated import _HALVES, _levels, _signs, _sizes, transform

CODECS = [Rot1(), Rot2(), Rot3(), Rot4()]


def through(codec: Rotated, values: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    flat = Flat(dtype=values.dtype, size=values.size)
    side, rest = codec.encode(values, np.random.default_rng(seed))
    assert (len(side), Flat(dtype=rest.dtype, size=rest.size)) == codec.outline(flat)
    result = codec.decode(side, rest, flat)
    assert (result.dtype, result.size) == (values.dtype, values.size)
    return result


def energy(values: NDArray[Any]) -> float:
    return float((values.astype("f8") ** 2).sum())


def hadamard_int64(row: NDArray[Any]) -> NDArray[Any]:
    """The textbook's butterflies, in integers."""
    row, half = row.astype("i8"), 1
    while half < row.size:
        pairs = row.reshape(-1, 2, half)
        row = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    return row


def test_a_transform_of_four_by_hand() -> None:
    assert transform(np.array([[1, 2, 3, 4]], dtype="f4")).tolist() == [[10, -2, -4, 0]]


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_transform_of_levels_is_exact_to_the_last_integer(bits: int, size: int) -> None:
    levels = np.array(_levels(bits), dtype="f4")
    rng = np.random.default_rng(size)
    rows = levels[rng.integers(0, levels.size, (5, size))]
    rows[0] = levels[-1]  # the largest sum there is
    rows[1] = np.where(rng.random(size) < 0.5, levels[0], levels[-1])
    assert transform(rows).astype("i8").tolist() == [hadamard_int64(row).tolist() for row in rows]


def test_no_sum_of_levels_leaves_the_integers_float32_holds() -> None:
    assert max(max(half) for half in _HALVES.values()) * 2048 < 2**24


def test_decoding_is_the_transform_the_scale_and_the_signs_and_nothing_else() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(size=2048).astype("f4")
    side, rest = Rot2().encode(values, rng)
    seed, exponent = int.from_bytes(side[:4], "little"), int.from_bytes(side[4:6], "little", signed=True)
    scale = (np.frombuffer(side[6:], "<u2").astype("u4") << 16).view("f4")[0].astype("f8") * 2.0**exponent
    numbers = np.unpackbits(rest, bitorder="little").reshape(-1, 2) @ (1, 2)
    sums = hadamard_int64(np.array([-1510, -453, 453, 1510])[numbers])
    expected = sums.astype("f4") * np.float32(scale) * _signs(seed)
    assert Rot2().decode(side, rest, Flat(dtype=np.dtype("f4"), size=2048)).tobytes() == expected.tobytes()


def test_the_signs_of_a_seed_never_change() -> None:
    # SplitMix64 of 0 gives e220a8397b1dcdaf first, as published; lowest bit first.
    word = sum(1 << place for place, sign in enumerate(_signs(0)[:64]) if sign > 0)
    assert word == 0xE220A8397B1DCDAF
    assert set(_signs(7).tolist()) == {-1.0, 1.0}
    assert _signs(7).tolist() != _signs(8).tolist()


@pytest.mark.parametrize(
    ("size", "blocks"),
    [
        (1, [16]),
        (16, [16]),
        (17, [32]),
        (300, [256, 32, 16]),
        (2047, [2048]),
        (4096, [2048] * 2),
        (2100, [2048, 64]),
    ],
)
def test_what_is_left_goes_into_smaller_blocks(size: int, blocks: list[int]) -> None:
    assert _sizes(size) == blocks


def test_three_hundred_values_take_little_more_than_three_hundred_bits() -> None:
    side, rest = Rot1().encode(np.ones(300, dtype="f4"), np.random.default_rng(0))
    assert (len(side), rest.size) == (6 + 2 * 3, 304 // 8)


@pytest.mark.parametrize(("codec", "share"), [(Rot1(), 0.363), (Rot2(), 0.1175), (Rot3(), 0.0345), (Rot4(), 0.0095)])
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse"])
def test_the_error_is_what_theory_says_whatever_the_values(codec: Rotated, share: float, kind: str) -> None:
    # 1 - 2/pi for one bit, the distortions of Lloyd-Max quantisers for more.
    rng = np.random.default_rng(9)
    values = rng.normal(size=40_960)
    if kind == "heavy":
        values = values**3
    if kind == "sparse":
        values *= rng.random(values.size) < 0.05
    values = values.astype("f4")
    assert energy(through(codec, values) - values) / energy(values) == pytest.approx(share, rel=0.06)


@pytest.mark.parametrize("codec", CODECS)
def test_the_scale_is_the_one_of_least_squares(codec: Rotated) -> None:
    values = np.random.default_rng(2).normal(size=2048).astype("f4")
    found = through(codec, values)
    for factor in (0.99, 1.01):
        assert energy(found - values) < energy(found * np.float32(factor) - values)


@pytest.mark.parametrize("codec", CODECS)
def test_the_error_over_many_seeds_shrinks_towards_one_shorter_vector(codec: Rotated) -> None:
    # Least squares: each decoding is the values, shortened by the share of the error, and noise that averages out.
    values = np.random.default_rng(2).normal(size=2048).astype("f4")
    share = energy(through(codec, values) - values) / energy(values)
    mean = np.mean([through(codec, values, seed) for seed in range(200)], axis=0)
    assert energy(mean - values * (1 - share)) / energy(values) < 0.01


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("size", [1, 16, 300, 2048, 2049, 5000])
def test_any_size_and_float_goes_through(codec: Rotated, dtype: str, size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(dtype)
    found = through(codec, values)
    assert energy(found - values) < 0.75 * energy(values)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("scale", [1e-300, 1e-38, 1e-20, 1e38, 1e300])
def test_scales_at_the_ends_of_floats_are_kept(codec: Rotated, scale: float) -> None:
    dtype = "f4" if 1e-40 < scale < 1e39 else "f8"
    values = (np.sign(np.random.default_rng(3).normal(size=4096)) * scale).astype(dtype)
    found = through(codec, values).astype("f8") / scale
    assert energy(found - values.astype("f8") / scale) / 4096 < 0.5


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_stay_zeros(codec: Rotated) -> None:
    assert not through(codec, np.zeros(2500, dtype="f4")).any()


def test_a_block_far_smaller_than_the_others_keeps_its_own_scale() -> None:
    values = np.random.default_rng(4).normal(size=4096).astype("f4")
    values[2048:] *= 1e-12
    for codec in CODECS:
        error = through(codec, values) - values
        assert energy(error[2048:] * np.float32(1e12)) < 0.45 * energy(values[2048:] * np.float32(1e12))


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x8000, 0xBF80])
def test_scales_that_no_encoder_writes_are_refused(scale: int) -> None:
    side = bytes(6) + scale.to_bytes(2, "little")
    with pytest.raises(Refused, match="rot1 scales are not all numbers from 0 on"):
        Rot1().decode(side, pack(np.zeros(16, "u1"), 1), Flat(dtype=np.dtype("f4"), size=16))


def test_an_exponent_that_no_encoder_writes_is_refused() -> None:
    side = bytes(4) + (1001).to_bytes(2, "little") + bytes(2)
    with pytest.raises(Refused, match="rot1 scales"):
        Rot1().decode(side, pack(np.zeros(16, "u1"), 1), Flat(dtype=np.dtype("f4"), size=16))
