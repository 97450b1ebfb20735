"""What topk and stc keep, and the coding of places."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import ArrayCodec, Flat, Stc, TopK
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


@pytest.mark.parametrize("codec", [TopK(fraction=0.3), Stc(fraction=0.3), Stc(fraction=1)])
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


def test_gaps_so_long_that_their_sum_would_wrap_are_refused() -> None:
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
