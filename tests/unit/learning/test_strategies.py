"""Sums of updates: exact, in any order, and nothing added where something is wrong."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.strategies import MAX_WEIGHT, FedAvg, FixedPointSum
from hfl_mqtt.learning.weights import digest

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def i8(*values: int) -> NDArray[Any]:
    return np.array(values, dtype="i8")


def averaged(base: Weights, *updates: tuple[Weights, int]) -> Weights:
    total = FedAvg().sum(base)
    for delta, weight in updates:
        total.add(delta, weight)
    return FedAvg().apply(base, total)


def test_fedavg_is_registered() -> None:
    assert registry.load("strategies", "fedavg") is FedAvg


def test_the_mean_is_weighted_by_samples() -> None:
    # 10 + (1 * 4 + 3 * 8) / 4
    assert averaged({"w": f4(10)}, ({"w": f4(4)}, 1), ({"w": f4(8)}, 3))["w"].tolist() == [17]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_model_keeps_its_dtype_and_shape(dtype: str) -> None:
    base: Weights = {
        "w": np.ones((2, 3), dtype=dtype),
        "s": np.array(1, dtype=dtype),
        "none": np.zeros((0, 2), dtype=dtype),
    }
    delta = {name: values * np.array(0.5, dtype) for name, values in base.items()}
    found = averaged(base, (delta, 2))
    assert {name: (v.dtype.str[1:], v.shape, float(v.sum())) for name, v in found.items()} == {
        "w": (dtype, (2, 3), 9),
        "s": (dtype, (), 1.5),
        "none": (dtype, (0, 2), 0),
    }


def test_integers_get_the_mean_rounded_to_the_nearest_and_halves_up() -> None:
    base = {"n": i8(100, 100, 100, 100), "flag": np.array([True, False, False])}
    one = {"n": i8(0, 1, -1, -3), "flag": i8(-1, 1, 0)}
    two = {"n": i8(1, 1, 0, 0), "flag": i8(0, 1, 0)}
    # means 0.5, 1, -0.5, -1.5, and for the flags half of true, all true, none true
    found = averaged(base, (one, 1), (two, 1))
    assert found["n"].tolist() == [101, 101, 100, 99]
    assert found["flag"].tolist() == [True, True, False]


def test_large_integers_are_exact() -> None:
    base = {"n": i8(2**62)}
    assert averaged(base, ({"n": i8(2**53 + 1)}, 3), ({"n": i8(2**53 + 1)}, 4))["n"].tolist() == [2**62 + 2**53 + 1]


def test_an_empty_sum_gives_the_base_itself() -> None:
    base = {"w": f4(1)}
    assert averaged(base) is base


def test_three_updates_of_weight_one_are_off_by_less_than_the_last_bit_of_a_weight() -> None:
    found = averaged({"w": f4(0.1)}, *[({"w": f4(delta)}, 1) for delta in (1e-3, 2e-3, -1e-3)])
    assert abs(float(found["w"][0]) - (0.1 + 2e-3 / 3)) < 1e-8


updates = st.lists(
    st.tuples(
        st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3),
        st.lists(st.integers(-1000, 1000), min_size=2, max_size=2),
        st.integers(1, 5000),
    ),
    min_size=1,
    max_size=8,
)
BASE: Weights = {"w": f4(0.1, -20, 3e-5), "h": np.array([1, 2, 3], dtype="f2"), "n": np.array([7, -7], dtype="i4")}


def as_deltas(drawn: list[tuple[list[float], list[int], int]]) -> list[tuple[Weights, int]]:
    return [
        ({"w": f4(*floats) / np.float32(3), "h": np.array(floats, dtype="f2"), "n": i8(*counts)}, weight)
        for floats, counts, weight in drawn
    ]


@CALM
@given(drawn=updates, data=st.data())
def test_the_order_of_arrival_changes_no_bit(
    drawn: list[tuple[list[float], list[int], int]], data: st.DataObject
) -> None:
    deltas = as_deltas(drawn)
    assert digest(averaged(BASE, *deltas)) == digest(averaged(BASE, *data.draw(st.permutations(deltas))))


@CALM
@given(drawn=updates)
def test_the_sum_is_the_mean_computed_in_float64(drawn: list[tuple[list[float], list[int], int]]) -> None:
    deltas = as_deltas(drawn)
    total = sum(weight for _, weight in deltas)
    mean = sum(delta["w"].astype("f8") * weight for delta, weight in deltas) / total
    found = averaged(BASE, *deltas)["w"]
    assert np.all(np.abs(found - (BASE["w"] + mean)) <= np.spacing(np.abs(found)) + 2e-10)


@given(drawn=updates, data=st.data())
@settings(CALM, max_examples=50)
def test_a_tree_with_one_edge_round_is_flat_fedavg_for_any_partition(
    drawn: list[tuple[list[float], list[int], int]], data: st.DataObject
) -> None:
    base: Weights = {"w": BASE["w"]}
    deltas: list[tuple[Weights, int]] = [
        ({"w": delta["w"] / np.float32(100)}, weight) for delta, weight in as_deltas(drawn)
    ]
    flat = averaged(base, *deltas)
    edges: dict[int, FixedPointSum] = {}
    for delta, weight in deltas:
        edges.setdefault(data.draw(st.integers(0, 3)), FedAvg().sum(base)).add(delta, weight)
    ups: list[tuple[Weights, int]] = [
        ({"w": FedAvg().apply(base, edge)["w"] - base["w"]}, edge.weight) for edge in edges.values()
    ]
    tree = averaged(base, *ups)
    # One float32 rounding at the edge of weights up to 20.
    assert np.all(np.abs(tree["w"] - flat["w"]) <= 1e-6 * np.maximum(1, np.abs(flat["w"])))


@pytest.mark.parametrize(
    ("delta", "weight", "reason"),
    [
        ({"n": i8(1), "w": f4(1, 1)}, 0, "weight 0: must be positive"),
        ({"n": i8(1), "w": f4(1, 1)}, -3, "weight -3: must be positive"),
        ({"n": i8(1), "w": f4(1, 1)}, MAX_WEIGHT, "with 5 so far at most"),
        ({"n": i8(1)}, 1, "'w' is missing"),
        ({"n": i8(1), "w": f4(1)}, 1, r"'w' is float32\[1\], expected float32\[2\]"),
        ({"n": f4(1), "w": f4(1, 1)}, 1, r"'n' is float32\[1\], expected int64\[1\]"),
        ({"n": i8(1), "w": f4(1, np.nan)}, 1, "'w' holds NaN"),
        ({"n": i8(1), "w": f4(-np.inf, 1)}, 1, "'w' holds NaN or infinity"),
        ({"n": i8(1), "w": f4(1, 3e9)}, 1, r"'w': weight 1 x delta 3e\+09 on top of 10 passes 2\.147e\+09"),
        ({"n": i8(1), "w": f4(1, -3000)}, 10**6, r"'w': weight 1000000 x delta 3000 on top of 10 passes"),
        ({"n": i8(1), "w": f4(3e38, 1)}, 2**40, "'w': weight 1099511627776 x delta 3e"),
        ({"n": i8(200), "w": f4(1, 1)}, 1, "'n' would leave the range of uint8"),
        ({"n": i8(-(2**63)), "w": f4(1, 1)}, 1, "'n': weight 1 x delta 9.223e"),
        ({"n": i8(2**40), "w": f4(1, 1)}, 2**30, r"'n': weight 1073741824 x delta 1.1e\+12 on top of 5 passes 9.223e"),
    ],
)
def test_nothing_is_added_of_an_update_that_is_refused(delta: Weights, weight: int, reason: str) -> None:
    base = {"n": np.array([100], dtype="u1"), "w": f4(1, 2)}
    total = FedAvg().sum(base)
    total.add({"n": i8(1), "w": f4(2, 2)}, 5)
    before = digest(FedAvg().apply(base, total))
    with pytest.raises(Refused, match=reason):
        total.add(delta, weight)
    assert total.weight == 5
    assert digest(FedAvg().apply(base, total)) == before


def test_the_range_is_that_of_the_whole_sum() -> None:
    total = FedAvg().sum({"w": f4(0)})
    total.add({"w": f4(2**30)}, 1)
    with pytest.raises(Refused, match=r"on top of 1.074e\+09 passes 2.147e\+09"):
        total.add({"w": f4(2**30)}, 1)
    total.add({"w": f4(2**29)}, 1)
    assert total.weight == 2


def test_a_sum_up_to_its_last_unit_is_right() -> None:
    total = FedAvg().sum({"w": np.array([0.0])})
    largest = float(np.nextafter(2.0**31, 0))
    total.add({"w": np.array([largest])}, 1)
    assert FedAvg().apply({"w": np.array([0.0])}, total)["w"][0] == largest


def test_a_weighted_delta_is_rounded_to_the_nearest_unit() -> None:
    unit = 2.0**-32
    for units, rounded in ((1.75, 2), (-1.75, -2), (0.25, 0)):
        found = averaged({"w": np.array([0.0])}, ({"w": np.array([units * unit])}, 1))
        assert found["w"][0] == rounded * unit


def test_halves_that_would_become_infinite_are_refused() -> None:
    total = FedAvg().sum({"w": np.array([60000], dtype="f2")})
    with pytest.raises(Refused, match="'w' would leave the range of float16"):
        total.add({"w": np.array([10000], dtype="f2")}, 1)


def test_a_tensor_of_several_blocks_is_summed_whole() -> None:
    base: Weights = {"w": np.zeros(50_000, dtype="f4")}
    delta: Weights = {"w": np.arange(50_000, dtype="f4")}
    assert np.array_equal(averaged(base, (delta, 7), (delta, 9))["w"], delta["w"])
