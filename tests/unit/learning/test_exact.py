"""Blocks of an exact sum: when four bytes an element do, and when they do not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.learning.exact import BLOCK, Scratch, Singles, blocks_of
from hfl_mqtt.learning.weights import TensorSpec


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def singles(size: int) -> Singles:
    block = Singles("w", np.empty(size, dtype=np.int64), Scratch(size))
    assert block.is_narrow
    return block


def mean_of(block: Singles, weight: int) -> list[float]:
    out = np.empty(block.cells.size, dtype=np.float32)
    block.mean(weight, out)
    return [float(value) for value in out]


def test_a_tensor_is_cut_into_blocks() -> None:
    for size, sizes in ((0, []), (1, [1]), (BLOCK, [BLOCK]), (BLOCK + 1, [BLOCK, 1])):
        spec = TensorSpec(dtype=np.dtype("f4"), shape=(size,))
        assert [block.cells.size for block in blocks_of("w", spec, Scratch(BLOCK))] == sizes


def test_an_empty_block_is_zero_whatever_stands_in_its_memory() -> None:
    block = Singles("w", np.full(2, 7), Scratch(2))
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
    # 1 < 2^1, so it counts in 2^(1 - 22); 8 < 2^4 in 2^(4 - 22); and a quarter < 2^-1 in 2^(-1 - 22).
    for value in (1.0, 8.0, 0.25):
        block.add(f4(value), 1)
        found.append(block.exponent)
    assert found == [-21, -21, -23]
    assert block.is_narrow
    assert mean_of(block, 1) == [9.25]


def test_cells_widen_where_loud_and_quiet_do_not_fit_four_bytes_in_any_order() -> None:
    for values in ((1.0, 2.0**10), (2.0**10, 1.0)):
        block = singles(1)
        for value in values:
            block.add(f4(value), 1)
        assert not block.is_narrow
        assert mean_of(block, 1) == [1025]


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
