"""Blocks of an exact sum: which tensors share one, when four bytes an element do, and when they do not."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.exact import BLOCK, SMALL, Block, Doubles, Scratch, Singles, places_of
from hfl_mqtt.learning.weights import TensorSpec


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def singles(size: int) -> Singles:
    block = Singles((("w", size),), np.empty(size, dtype=np.int32), Scratch(size))
    assert block.is_narrow
    return block


def spec(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(dtype=np.dtype(dtype), shape=shape)


def mean_of(block: Block, weight: int) -> list[float]:
    out = np.empty(block.size, dtype=np.float32)
    block.mean(weight, out)
    return [float(value) for value in out]


def test_a_tensor_is_cut_into_blocks() -> None:
    for size, sizes in ((0, []), (1, [1]), (BLOCK, [BLOCK]), (BLOCK + 1, [BLOCK, 1])):
        place = places_of({"w": spec("f4", size)})["w"]
        assert [block.size for block in place.blocks] == sizes


def test_small_floats_of_one_dtype_share_a_block_in_the_order_of_their_names() -> None:
    layout = {
        "d": spec("f4", 2, 3),
        "b": spec("f4"),
        "c": spec("f8", 4),
        "a": spec("f4", SMALL),
        "e": spec("f4", SMALL - 1),
        "n": spec("i4", 2),
        "m": spec("i4", 2),
        "none": spec("f4", 0),
    }
    found = places_of(layout)
    assert list(found) == list(layout)
    shared = found["b"].blocks[0]
    assert shared.names == (("b", 1), ("d", 7), ("e", SMALL + 6))
    assert [name for name, place in found.items() if place.is_shared] == ["d", "b", "e"]
    assert {id(found[name].blocks[0]) for name in "bde"} == {id(shared)}
    assert [found[name].start for name in "bde"] == [0, 1, 7]
    # One of its kind, large, an integer, empty.
    assert [type(found[name].blocks[0]).__name__ for name in ("c", "a", "n")] == ["Doubles", "Singles", "Integers"]
    assert not found["none"].blocks


def test_shared_blocks_do_not_depend_on_the_order_of_the_layout() -> None:
    layout = {name: spec("f4", 3) for name in "cab"}
    turned = dict(reversed(layout.items()))
    assert [places_of(one)["a"].blocks[0].names for one in (layout, turned)] == [(("a", 3), ("b", 6), ("c", 9))] * 2


def test_no_shared_block_is_larger_than_others() -> None:
    fits = BLOCK // (SMALL - 1)
    found = places_of({f"t{index:02}": spec("f4", SMALL - 1) for index in range(fits + 2)})
    sizes = [place.blocks[0].size for place in found.values()]
    assert sizes == [fits * (SMALL - 1)] * fits + [2 * (SMALL - 1)] * 2


def doubles(size: int) -> Doubles:
    return Doubles((("w", size),), np.full(size, 7), Scratch(size))


def test_doubles_are_exact_on_either_side_of_what_one_addition_can_round() -> None:
    # Below 2^19 a weighted value is rounded by an addition, from there on in two steps; 2^-32 is one unit.
    block, unit = doubles(2), 2.0**-32
    block.add(np.array([2.0**19 - unit, -unit]), 1)
    block.add(np.array([2.0**19, -unit]), 1)
    block.add(np.array([-(2.0**19), 3 * unit]), 1)
    assert block.cells[1] - block.offset == 1
    out = np.empty(2)
    block.mean(1, out)
    assert out.tolist() == [2.0**19 - unit, unit]


def test_what_was_taken_back_of_doubles_is_gone_by_either_way() -> None:
    block = doubles(2)
    block.add(np.array([1, 1 / 3]), 3)
    before = mean_of(block, 3)
    for value in (0.125, 2.0**25):
        block.add(np.array([value, value / 3]), 7)
        block.add(np.array([value, value / 3]), 7, sign=-1)
        assert mean_of(block, 3) == before
    block.add(np.array([1, 1 / 3]), 3, sign=-1)
    block.add(np.array([5.0, 6.0]), 2)
    assert mean_of(block, 2) == [5, 6]


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_weights_are_not_rounded_on_their_way_into_doubles(dtype: str) -> None:
    block = doubles(1)
    block.add(np.array([2.0**-10], dtype=dtype), 2**24 + 1)
    assert block.cells[0] - block.offset == (2**24 + 1) << 22


def test_a_part_of_a_block_has_a_mean_of_its_own() -> None:
    block, out = doubles(3), np.empty(2, dtype="f4")
    block.add(f4(1, 2, 3), 2)
    block.mean(2, out, start=1)
    assert out.tolist() == [2, 3]


@pytest.mark.parametrize(("place", "name"), [(0, "a"), (1, "b"), (2, "b"), (3, "c")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -3e9])
def test_what_is_refused_in_a_shared_block_has_its_tensor_named(place: int, name: str, bad: float) -> None:
    block = Doubles((("a", 1), ("b", 3), ("c", 4)), np.zeros(4, dtype="i8"), Scratch(4))
    values = f4(1, 2, 3, 4)
    values[place] = bad
    with pytest.raises(Refused, match=f"'{name}'"):
        block.add(values, 1)
    assert not block.bound


def test_an_empty_block_is_zero_whatever_stands_in_its_memory() -> None:
    for block in (Singles((("w", 2),), np.full(2, 7, dtype=np.int32), Scratch(2)), doubles(2)):
        assert mean_of(block, 1) == [0, 0]
        block.add(f4(0, 0), 3)
        assert mean_of(block, 3) == [0, 0]


def test_updates_of_a_small_farm_need_four_bytes_an_element() -> None:
    block = singles(2)
    for _ in range(10):
        for weight in (160, 20, 45, 77, 33, 129):
            block.add(f4(1, -0.25), weight)
    assert block.is_narrow
    assert mean_of(block, 4640) == [1, -0.25]


def test_the_finest_rounding_so_far_is_that_of_narrow_cells() -> None:
    block, found = singles(1), []
    # Every 2nd power of two: 1 < 2^2 counts in 2^(2 - 22), 8 < 2^4 in 2^(4 - 22), a quarter < 2^0 in 2^(0 - 22).
    for value in (1.0, 8.0, 16.0, 0.25):
        block.add(f4(value), 1)
        found.append(block.exponent)
    assert found == [-20, -20, -20, -22]
    assert block.is_narrow
    assert mean_of(block, 1) == [25.25]


def test_what_is_just_below_a_power_of_two_that_blocks_round_to_fits_a_float() -> None:
    # 16 less its last bit, 2^-20, is 2^22 units of 2^-18 less a quarter: rounded 2^22, all that a float has room for.
    block, below = singles(2), float(np.nextafter(np.float32(16), np.float32(0)))
    for sign in (1, 1, -1):
        block.add(f4(below, -below), 1, sign=sign)
    assert block.exponent == -18
    assert mean_of(block, 1) == [16, -16]


def test_a_full_farm_of_updates_needs_four_bytes_an_element() -> None:
    # 1 < 2^2 is 2^20 units, and 2^31 are too many: one unit more is put down for each update, for all its roundings.
    block, count = singles(1), 0
    while block.is_narrow:
        block.add(f4(1), 1)
        count += 1
    assert count == 2**11
    assert mean_of(block, count) == [1]


def test_cells_widen_where_loud_and_quiet_do_not_fit_four_bytes_in_any_order() -> None:
    for values in ((1.0, 2.0**14), (2.0**14, 1.0)):
        block = singles(1)
        for value in values:
            block.add(f4(value), 1)
        assert not block.is_narrow
        assert mean_of(block, 1) == [2**14 + 1]


def test_what_was_taken_back_is_gone_in_either_width() -> None:
    block = singles(2)
    block.add(f4(1, 1 / 3), 3)
    before = mean_of(block, 3)
    for value in (0.125, 2.0**20):
        block.add(f4(value, value / 3), 7)
        block.add(f4(value, value / 3), 7, sign=-1)
        assert mean_of(block, 3) == before
    assert not block.is_narrow


def test_a_block_whose_every_update_was_taken_back_begins_anew() -> None:
    block, widths = singles(2), []
    for value, sign in ((1.0, 1), (2.0**20, 1), (2.0**20, -1), (1.0, -1), (5.0, 1)):
        block.add(f4(value, value), 1, sign=sign)
        widths.append(block.is_narrow)
    assert widths == [True, False, False, False, True]
    assert mean_of(block, 1) == [5, 5]


@pytest.mark.parametrize(
    ("values", "peak"),
    [
        ((0.0, -0.0), 0.0),
        ((-0.0, -0.0), 0.0),
        ((1.0, 3.5, 2.0), 3.5),
        ((-1.0, -3.5, -2.0), 3.5),
        ((-3.5, 2.0), 3.5),
        ((3.5, -2.0), 3.5),
        ((-1e-45, 0.0), 1e-45),
        ((3.4028235e38, -1.0), 3.4028235e38),
    ],
)
def test_the_peak_is_the_largest_magnitude(values: tuple[float, ...], peak: float) -> None:
    assert singles(len(values))._peak(np.array(values, dtype="f4")) == np.float32(peak)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001])
def test_infinity_and_nan_of_either_sign_have_no_peak(bits: int) -> None:
    values = np.array([bits, 0x3F800000, 0xBF800000], dtype="u4").view("f4")
    with pytest.raises(Refused, match="NaN or infinity"):
        singles(3).add(values, 1)
