"""What topk, stc and dz keep, and the coding of places."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import ArrayCodec, Dz, Flat, Stc, TopK
from hfl_mqtt.learning.codecs.packing import pack, pack_places, packed_size, places_limit, unpack_places
from hfl_mqtt.learning.codecs.sparse import largest

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def through(codec: ArrayCodec, values: NDArray[Any]) -> NDArray[Any]:
    flat = Flat(dtype=values.dtype, size=values.size)
    side, rest = codec.encode(values, np.random.default_rng(0))
    limit, outline = codec.outline(flat)
    assert len(side) <= limit
    assert Flat(dtype=rest.dtype, size=rest.size) == outline
    return codec.decode(side, rest, flat)


def test_topk_keeps_the_largest_magnitudes_as_they_are() -> None:
    assert through(TopK(fraction=0.5), f4(1, -4, 0.5, 3)).tolist() == [0, -4, 0, 3]


def test_topk_keeps_the_first_of_equal_magnitudes() -> None:
    assert through(TopK(fraction=0.5), f4(2, -2, 2, 2)).tolist() == [2, -2, 0, 0]


def test_at_least_one_value_is_kept() -> None:
    assert through(TopK(fraction=0.001), f4(1, 2, 3)).tolist() == [0, 0, 3]


def test_stc_keeps_signs_and_one_mean_magnitude() -> None:
    # The largest two are -4 and 3: their magnitudes have the mean 3.5.
    assert through(Stc(fraction=0.5), f4(1, -4, 0.5, 3)).tolist() == [0, -3.5, 0, 3.5]


def test_the_mean_magnitude_has_the_least_squared_error() -> None:
    values = np.random.default_rng(1).normal(size=500).astype("f4")
    found = through(Stc(fraction=0.1), values)
    for factor in (0.99, 1.01):
        assert ((found - values) ** 2).sum() < ((found * factor - values) ** 2).sum()


def test_dz_keeps_signs_and_the_mean_magnitude_of_each_level() -> None:
    # T = 2 and a level is 1.5 x 2 = 3 wide: [2, 5) holds 2, -3 and 4, [5, 8) nothing, [8, 11) 8 and -9.
    found = through(Dz(fraction=0.5), f4(2, -3, 1, 4, -1, 8, 0.5, 1.5, -9, 0))
    assert found.tolist() == [3, -3, 0, 3, 0, 8.5, 0, 0, -8.5, 0]


def test_the_step_of_dz_is_the_width_of_a_level() -> None:
    # T = 2, and a level is 4 wide: [2, 6) holds 2, 3 and 4, [6, 10) holds 8 and 9.
    assert through(Dz(fraction=1, step=2), f4(2, 3, 4, 8, 9)).tolist() == [3, 3, 3, 8.5, 8.5]


def test_the_edge_of_a_level_belongs_to_the_upper_one() -> None:
    assert through(Dz(fraction=1, step=1), f4(1, 2, 3)).tolist() == [1, 2, 3]


def test_dz_by_hand() -> None:
    # One level of mean 3 in places 1 and 3 of four; two places; gaps 1 and 1 of width 0, in unary 01 01; plus, minus.
    side, rest = Dz(fraction=0.5).encode(f4(0.5, 3, 1, -3), np.random.default_rng(0))
    assert (side.hex(), bytes(rest).hex()) == ("01" + "02000000" + "00004040" + "00" + "0a", "01")
    # Two levels, 1 and 3; the second one's place, 1, stands behind all four: 5. Places 0, 2 and 5: gaps 0, 1, 2.
    side, rest = Dz(fraction=0.5).encode(f4(1, 0, 3, 0), np.random.default_rng(0))
    assert (side.hex(), bytes(rest).hex()) == ("02" + "03000000" + "0000803f" + "00004040" + "00" + "25", "03")


def test_the_last_level_of_dz_is_open() -> None:
    # T = 1, step 1: fifteen levels; 15 and more are of the last. A thousand ones, so that none is left out.
    values = np.ones(1000, dtype="f4")
    values[:3] = 15, 16, 100
    found = through(Dz(fraction=1, step=1), values)
    assert found[:4].tolist() == [pytest.approx(131 / 3), pytest.approx(131 / 3), pytest.approx(131 / 3), 1]


def test_dz_has_fewer_levels_where_the_smallest_kept_is_far_below_most() -> None:
    # Of 8 values 7 are of level 15: 8 + 14 x 7 places, at most 4 x 8. With four levels there are 8 + 7 + 7 + 7.
    values = f4(1, 100, 200, 300, 400, 500, 600, 700)
    side, _ = Dz(fraction=1).encode(values, np.random.default_rng(0))
    assert (side[0], int.from_bytes(side[1:5], "little")) == (4, 8 + 3 * 7)
    assert through(Dz(fraction=1), values).tolist() == [1] + [400] * 7


def test_dz_never_keeps_zeros() -> None:
    assert through(Dz(fraction=0.75), f4(0, 0, -0.0, 5)).tolist() == [0, 0, 0, 5]
    side, rest = Dz(fraction=0.75).encode(f4(0, 0, 0, 0), np.random.default_rng(0))
    assert (side.hex(), bytes(rest).hex()) == ("00" + "00000000", "00")
    assert not through(Dz(fraction=0.75), f4(0, 0, 0, 0)).any()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_dz_brings_one_value_back(dtype: str) -> None:
    for value in (1.5, -3.0):
        assert through(Dz(fraction=0.01), np.array([value], dtype=dtype)).tolist() == [value]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_dz_delivers_what_stc_does_not(dtype: str) -> None:
    values = np.random.default_rng(2).standard_t(3, 5000).astype(dtype)
    exact = values.astype("f8")
    lost = [((through(codec, values) - exact) ** 2).sum() for codec in (Dz(fraction=0.15), Stc(fraction=0.15))]
    assert lost[0] < 0.6 * lost[1]


def test_the_mean_of_each_level_has_the_least_squared_error() -> None:
    values = np.random.default_rng(1).standard_t(3, 500).astype("f4")
    found = through(Dz(fraction=0.3), values)
    for level in np.unique(np.abs(found[found != 0])):
        of_it = np.abs(found) == level
        assert np.abs(values[of_it]).mean() == pytest.approx(level, rel=1e-6)


@CALM
@given(data=st.data())
def test_dz_comes_back_as_it_was_sorted(data: st.DataObject) -> None:
    magnitudes = data.draw(st.lists(st.sampled_from([0.0, 1e-40, 1e-6, 1.0, 2.0, 3.0, 7.0, 50.0, 1e30]), min_size=1))
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(magnitudes), max_size=len(magnitudes)))
    fraction, step = data.draw(st.sampled_from([0.1, 0.5, 1.0])), data.draw(st.sampled_from([0.1, 1.5, 100.0]))
    values = f4(*(magnitude * sign for magnitude, sign in zip(magnitudes, signs, strict=True)))
    found = through(Dz(fraction=fraction, step=step), values)
    kept = np.flatnonzero(found)
    assert (np.sign(found[kept]) == np.sign(values[kept])).all()
    assert kept.size == min(max(1, int(fraction * values.size)), np.count_nonzero(values))
    order = np.argsort(np.abs(values[kept]), kind="stable")
    assert (np.diff(np.abs(found[kept])[order]) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_levels_cost_little_more_than_their_entropy(seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(4, 50_000).astype("f4")
    side, rest = Dz(fraction=0.15).encode(values, np.random.default_rng(0))
    alone, _ = TopK(fraction=0.15).encode(values, np.random.default_rng(0))
    found = np.abs(through(Dz(fraction=0.15), values))
    shares = np.unique(found[found > 0], return_counts=True)[1] / 7500
    assert len(side) - len(alone) - 5 - 4 * side[0] < -7500 / 8 * (shares * np.log2(shares)).sum() * 1.15
    assert rest.size == 938


DZ_SIDE = "02" + "03000000" + "0000803f" + "00004040" + "00" + "25"  # see test_dz_by_hand


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        ("", "dz with 0 bytes beside"),
        ("02030000", "dz with 4 bytes beside"),
        ("10" + DZ_SIDE[2:], "dz with 16 levels and 3 places in 15 bytes"),
        (DZ_SIDE[:24], "dz with 2 levels and 3 places in 12 bytes"),
        ("0209000000" + DZ_SIDE[10:], "dz with 2 levels and 9 places"),
        ("02ffffffff" + DZ_SIDE[10:], "dz with 2 levels and 4294967295 places"),
        ("0003000000", "dz with 0 levels and 3 places"),
        ("0100000000" + "0000803f", "dz with 1 levels and 0 places"),
        ("0000000000" + "00", "dz of nothing with bytes behind it"),
        ("0203000000" + "0000c07f" + "00008040" + "0025", "a magnitude that is not a number"),
        ("0203000000" + "0000803f" + "0000807f" + "0025", "a magnitude that is not a number"),
        ("0203000000" + "0000803f" + "000080bf" + "0025", "a magnitude that is not a number"),
        (DZ_SIDE[:26], "take more than 0 bytes"),
        (DZ_SIDE[:-2], "0 places where 3 belong"),
        (DZ_SIDE + "01", "4 places where 3 belong"),
        (DZ_SIDE[:-2] + "8003", "a place beyond 7 values"),
        # All three among the four values, where two are kept at most; none among them.
        (DZ_SIDE[:-2] + "07", "dz keeps 3 values, expected 1 to 2"),
        (DZ_SIDE[:-2] + "70", "dz keeps 0 values, expected 1 to 2"),
        # One kept value, of which two would be of the second level.
        (DZ_SIDE[:-2] + "31", "dz has not the levels that it names"),
        # The second level stands where a third one would.
        (DZ_SIDE[:-2] + "43", "dz has not the levels that it names"),
        # Three levels named, two there; one named, two there.
        ("0303000000" + "0000803f" * 3 + "0025", "dz has not the levels that it names"),
        ("0103000000" + "0000803f" + "0025", "dz has not the levels that it names"),
    ],
)
def test_what_no_encoder_of_dz_writes_is_refused(side: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        Dz(fraction=0.5).decode(bytes.fromhex(side), np.array([3], "u1"), Flat(dtype=np.dtype("f4"), size=4))


@pytest.mark.parametrize(
    "codec", [TopK(fraction=0.3), Stc(fraction=0.3), Stc(fraction=1), Dz(fraction=0.3), Dz(fraction=1)]
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_ends_of_floats_stay_finite(codec: ArrayCodec, dtype: str) -> None:
    ends = np.finfo(dtype)
    for values in ([0.0, 0.0], [ends.max, ends.min, ends.tiny], [ends.smallest_subnormal, 0.0]):
        found = through(codec, np.array(values, dtype=dtype))
        assert found.dtype == dtype
        assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", ["normal", "sorted", "few", "equal", "periodic"])
@pytest.mark.parametrize("count", [1, 700, 7_000, 69_999, 70_000])
def test_the_largest_are_those_a_sort_would_choose(shape: str, count: int) -> None:
    values = np.random.default_rng(3).normal(size=70_000).astype("f4")
    match shape:
        case "sorted":
            values = np.sort(values)
        case "few":
            values[50:] = 0
        case "equal":
            values[:] = 1
        case "periodic":
            values[::4] = 0  # the very ones that the sample sees
    expected = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    assert largest(values, count).tolist() == expected.tolist()


@CALM
@given(data=st.data(), among=st.integers(1, 10**9), spread=st.integers(1, 500))
def test_places_come_back_within_their_limit(data: st.DataObject, among: int, spread: int) -> None:
    chosen = data.draw(st.sets(st.integers(0, min(among, spread) - 1), min_size=1, max_size=100))
    offset = data.draw(st.integers(0, among - min(among, spread)))
    places = np.array(sorted(chosen), dtype="i8") + offset
    code = pack_places(places)
    assert len(code) <= places_limit(places.size, among)
    assert unpack_places(code, places.size, among).tolist() == places.tolist()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_places_drawn_at_random_take_little_more_than_their_entropy(share: float) -> None:
    places = np.flatnonzero(np.random.default_rng(5).random(100_000) < share)
    code = pack_places(places)
    assert unpack_places(code, places.size, 100_000).tolist() == places.tolist()
    rest = 1 - share
    entropy = -100_000 * (share * np.log2(share) + (rest * np.log2(rest) if rest else 0)) / 8
    # A gap takes a bit at least: over one half, that is what places cost.
    assert len(code) <= max(entropy * 1.08, places.size / 8 * 1.5) + 16


def test_places_in_a_dense_layer_and_a_thin_one_take_less_than_their_common_entropy() -> None:
    rng = np.random.default_rng(6)
    places = np.concatenate(
        [np.flatnonzero(rng.random(5000) < 0.2), 5000 + np.flatnonzero(rng.random(95_000) < 0.0001)]
    )
    share = places.size / 100_000
    entropy = -100_000 * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    assert len(pack_places(places)) < 0.6 * entropy


@pytest.mark.parametrize("width", [1, 7, 8, 9, 13, 31])
def test_gaps_of_every_width_come_back(width: int) -> None:
    gaps = np.random.default_rng(width).integers(1 << width >> 1, 1 << width, 100)
    places = np.cumsum(gaps + 1)
    code = pack_places(places)
    assert unpack_places(code, 100, int(places[-1]) + 1).tolist() == places.tolist()
    assert len(code) * 8 < 100 * (width + 2) + 40


def test_places_by_hand() -> None:
    # Gaps 1, 2, 0: width 0 in five bits, and in unary 01 001 1, first bit lowest.
    assert pack_places(np.array([1, 4, 5])).hex() == "0032"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "more than 0 bytes"),
        ("00", "0 places where 3 belong"),
        ("0072", "4 places where 3 belong"),
        ("003200", "3 places where 3 belong"),
        ("000080", "1 places where 3 belong"),
        ("00008003", "a place beyond 6 values"),
        ("1f320000", "places where 3 belong"),
    ],
)
def test_places_that_no_encoder_writes_are_refused(code: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        unpack_places(bytes.fromhex(code), 3, 6)


def test_gaps_that_lead_far_beyond_the_end_are_refused() -> None:
    # Width 31 everywhere, and lower bits of ones: 64,000 gaps of 2**31 among a million values.
    count, groups = 64_000, 2000
    header = np.packbits(np.ones(groups * 5, dtype="u1")).tobytes()
    code = header + b"\xff" * (count * 31 // 8) + b"\xff" * (count // 8)
    with pytest.raises(Refused, match="beyond 1000000"):
        unpack_places(code, count, 1_000_000)


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (b"abc", "without its magnitude"),
        (f4(np.nan).tobytes(), "stc magnitude nan"),
        (f4(-1).tobytes(), "magnitude -1.0"),
    ],
)
def test_a_magnitude_that_no_encoder_writes_is_refused(side: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        Stc(fraction=0.5).decode(side, np.zeros(1, "u1"), Flat(dtype=np.dtype("f4"), size=4))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_packed_numbers_stand_lowest_bits_first(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, 1000).astype("u1")
    for size in (1, 7, 8, 9, 1000):
        whole = sum(int(number) << (bits * place) for place, number in enumerate(numbers[:size]))
        assert int.from_bytes(bytes(pack(numbers[:size], bits)), "little") == whole
        assert pack(numbers[:size], bits).size == packed_size(size, bits)
