"""Sums of updates: exact, in any order, and nothing added where something is wrong."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import Malformed, Misuse, Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.exact import BLOCK
from hfl_mqtt.learning.strategies import MAX_WEIGHT, FedAvg, FixedPointSum
from hfl_mqtt.learning.weights import digest, layout_of

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def i8(*values: int) -> NDArray[Any]:
    return np.array(values, dtype="i8")


def averaged(base: Weights, *updates: tuple[Weights, int]) -> Weights:
    """The step that FedAvg takes from `base`, in the middle of which there is no need to look at `base`."""
    return FedAvg().step(summed(base, *updates))


def summed(base: Weights, *updates: tuple[Weights, int]) -> FixedPointSum:
    total = FedAvg().sum(layout_of(base))
    for delta, weight in updates:
        total.add(delta.items, weight)
    return total


def test_fedavg_is_registered() -> None:
    assert registry.load("strategies", "fedavg") is FedAvg


def test_the_mean_is_weighted_by_samples() -> None:
    # (1 * 4 + 3 * 8) / 4
    assert averaged({"w": f4(10)}, ({"w": f4(4)}, 1), ({"w": f4(8)}, 3))["w"].tolist() == [7]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_keep_their_dtype_and_shape_and_the_names_the_order_of_the_layout(dtype: str) -> None:
    base: Weights = {
        "w": np.ones((2, 3), dtype=dtype),
        "s": np.array(1, dtype=dtype),
        "none": np.zeros((0, 2), dtype=dtype),
    }
    delta = {name: base[name] * np.array(0.5, dtype) for name in ("none", "s", "w")}
    found = averaged(base, (delta, 2))
    assert [(name, v.dtype.str[1:], v.shape, float(v.sum())) for name, v in found.items()] == [
        ("w", dtype, (2, 3), 3),
        ("s", dtype, (), 0.5),
        ("none", dtype, (0, 2), 0),
    ]


def test_integers_get_the_mean_rounded_to_the_nearest_and_halves_up() -> None:
    base = {"n": np.array([100, 100, 100, 100], dtype="u1"), "flag": np.array([True, False, False])}
    one = {"n": i8(0, 1, -1, -3), "flag": i8(-1, 1, 0)}
    two = {"n": i8(1, 1, 0, 0), "flag": i8(0, 1, 0)}
    # means 0.5, 1, -0.5, -1.5, and for the flags -0.5, 1, 0
    found = averaged(base, (one, 1), (two, 1))
    assert found["n"].tolist() == [1, 1, 0, -1]
    assert found["flag"].tolist() == [0, 1, 0]
    assert {values.dtype.str[1:] for values in found.values()} == {"i8"}


def test_large_integers_are_exact() -> None:
    base = {"n": i8(2**62)}
    assert averaged(base, ({"n": i8(2**53 + 1)}, 3), ({"n": i8(2**53 + 1)}, 4))["n"].tolist() == [2**53 + 1]


def test_an_empty_sum_has_no_mean() -> None:
    with pytest.raises(Misuse, match="no mean of no updates"):
        averaged({"w": f4(1)})


def test_the_mean_can_be_had_tensor_by_tensor() -> None:
    halves = np.array([4, 5, 6], dtype="f2")
    total = summed(BASE, ({"w": f4(1, 2, 3), "h": halves[:1], "n": i8(7, 8), "k": halves[1:]}, 2))
    assert [(name, values.tolist()) for name, values in total.mean_tensors()] == [
        ("w", [1, 2, 3]),
        ("h", [4]),
        ("n", [7, 8]),
        ("k", [5, 6]),
    ]


def test_three_updates_of_weight_one_are_off_by_less_than_the_last_bit_of_a_weight() -> None:
    found = averaged({"w": f4(0.1)}, *[({"w": f4(delta)}, 1) for delta in (1e-3, 2e-3, -1e-3)])
    assert abs(float(found["w"][0]) - 2e-3 / 3) < 1e-9


#: Between 2^-40 and 2^20 in size, so that they are rounded and summed in every way there is.
numbers = st.builds(
    lambda mantissa, exponent: float(np.float32(mantissa * 2.0**exponent)),
    st.floats(-1, 1, width=32, allow_subnormal=False),
    st.integers(-40, 20),
)
updates = st.lists(
    st.tuples(
        st.lists(numbers, min_size=3, max_size=3),
        st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3),
        st.lists(st.integers(-1000, 1000), min_size=2, max_size=2),
        st.integers(1, 500),
    ),
    min_size=1,
    max_size=8,
)
#: One tensor alone, two that share a block, and integers.
BASE: Weights = {
    "w": f4(0, 0, 0),
    "h": np.zeros(1, dtype="f2"),
    "n": np.zeros(2, dtype="i4"),
    "k": np.zeros(2, dtype="f2"),
}
Drawn = list[tuple[list[float], list[float], list[int], int]]


def as_deltas(drawn: Drawn) -> list[tuple[Weights, int]]:
    return [
        ({"w": f4(*singles), "h": halves[:1], "n": i8(*counts), "k": halves[1:]}, weight)
        for singles, halves, counts, weight in (
            (singles, np.array(halves, dtype="f2"), counts, weight) for singles, halves, counts, weight in drawn
        )
    ]


def unit_of(values: NDArray[Any], weight: int) -> float:
    """The documented rounding of a block of weighted values: at most 2^-20 of the largest, at least 2^-32."""
    return max(float(np.abs(values.astype("f8")).max()) * weight * 2.0**-20, 2.0**-32)


@CALM
@given(drawn=updates, data=st.data())
def test_the_order_of_arrival_changes_no_bit(drawn: Drawn, data: st.DataObject) -> None:
    deltas = as_deltas(drawn)
    assert digest(averaged(BASE, *deltas)) == digest(averaged(BASE, *data.draw(st.permutations(deltas))))


@CALM
@given(drawn=updates)
def test_the_mean_is_that_of_float64_but_for_the_documented_rounding(drawn: Drawn) -> None:
    deltas = as_deltas(drawn)
    total = sum(weight for _, weight in deltas)
    found = averaged(BASE, *deltas)
    for name in ("w", "h", "k"):
        mean = sum(delta[name].astype("f8") * weight for delta, weight in deltas) / total
        rounding = sum(unit_of(delta[name], weight) for delta, weight in deltas) / total
        last_bit = np.spacing(np.abs(found[name])).astype("f8")
        assert np.all(np.abs(found[name].astype("f8") - mean) <= rounding + last_bit)


@CALM
@given(drawn=updates, other=updates, data=st.data())
def test_an_update_that_breaks_off_anywhere_leaves_no_trace(drawn: Drawn, other: Drawn, data: st.DataObject) -> None:
    deltas, (broken, weight) = as_deltas(drawn), as_deltas(other)[0]
    after = data.draw(st.integers(0, 4))
    at = data.draw(st.integers(0, len(deltas)))

    def breaking_off() -> Iterator[tuple[str, NDArray[Any]]]:
        yield from list(broken.items())[:after]
        raise Malformed("the bytes end here")

    total = summed(BASE, *deltas[:at])
    with pytest.raises(Malformed, match="the bytes end here"):
        total.add(breaking_off, weight)
    for delta, samples in deltas[at:]:
        total.add(delta.items, samples)
    assert total.weight == sum(samples for _, samples in deltas)
    assert digest(total.mean()) == digest(averaged(BASE, *deltas))


@CALM
@given(drawn=updates, data=st.data())
def test_tensors_that_share_a_block_are_rounded_finer_than_any_alone_and_in_any_order(
    drawn: Drawn, data: st.DataObject
) -> None:
    deltas: list[tuple[Weights, int]] = [
        ({"a": f4(*singles[:1]), "b": f4(*singles[1:])}, weight) for singles, _, _, weight in drawn
    ]
    base: Weights = {"a": f4(0), "b": f4(0, 0)}
    found, total = averaged(base, *deltas), sum(weight for _, weight in deltas)
    for name in base:
        mean = sum(delta[name].astype("f8") * weight for delta, weight in deltas) / total
        rounding = len(deltas) * 2.0**-33 / total
        assert np.all(np.abs(found[name] - mean) <= rounding + np.spacing(np.abs(found[name])).astype("f8"))
    turned = [(dict(reversed(delta.items())), weight) for delta, weight in data.draw(st.permutations(deltas))]
    assert digest(averaged(base, *turned)) == digest(found)


def test_a_quiet_tensor_beside_a_loud_one_keeps_its_last_bits() -> None:
    quiet = float(np.float32(1e-6))
    found = averaged({"a": f4(0), "b": f4(0)}, ({"a": f4(2**20), "b": f4(quiet)}, 3))
    assert found["a"].tolist() == [2**20]
    assert found["b"][0] == pytest.approx(quiet, abs=2.0**-33)


def test_an_update_with_half_of_a_shared_block_leaves_no_trace() -> None:
    base: Weights = {"a": f4(0), "b": f4(0), "c": f4(0)}
    total = summed(base, ({"a": f4(1), "b": f4(2), "c": f4(3)}, 1))
    for wrong, reason in (
        ({"a": f4(9), "c": f4(9)}, "'b' is missing"),
        ({"a": f4(9), "b": f4(9, 9), "c": f4(9)}, r"'b' is float32\[2\], expected float32\[1\]"),
        ({"a": f4(9), "b": f4(np.nan), "c": f4(9)}, "'b' holds NaN"),
        ({"a": f4(9), "b": f4(9), "c": f4(3e9)}, r"'c': weight 1 x delta 3e\+09 on top of 3 passes"),
    ):
        with pytest.raises(Refused, match=reason):
            total.add(wrong.items, 1)
    assert {name: values.tolist() for name, values in total.mean().items()} == {"a": [1], "b": [2], "c": [3]}


@given(drawn=updates, data=st.data())
@settings(CALM, max_examples=50)
def test_a_tree_with_one_edge_round_is_flat_fedavg_for_any_partition(drawn: Drawn, data: st.DataObject) -> None:
    base: Weights = {"w": BASE["w"]}
    deltas: list[tuple[Weights, int]] = [({"w": delta["w"]}, weight) for delta, weight in as_deltas(drawn)]
    flat = averaged(base, *deltas)
    edges: dict[int, list[tuple[Weights, int]]] = {}
    for delta, weight in deltas:
        edges.setdefault(data.draw(st.integers(0, 3)), []).append((delta, weight))
    ups = [(averaged(base, *farm), sum(weight for _, weight in farm)) for farm in edges.values()]
    tree = averaged(base, *ups)
    total = sum(weight for _, weight in deltas)
    # Each update is rounded in its edge's sum and the flat one, each edge's mean to float32 and in the cloud's sum.
    roundings = sum(unit_of(delta["w"], weight) for delta, weight in [*deltas, *deltas, *ups, *ups]) / total
    assert np.all(np.abs(tree["w"] - flat["w"]) <= roundings + np.spacing(np.abs(flat["w"])))


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
        ({"n": i8(256), "w": f4(1, 1)}, 1, "'n' would leave the range of uint8: a delta of 256"),
        ({"n": i8(-(2**63)), "w": f4(1, 1)}, 1, "'n': weight 1 x delta 9.223e"),
        ({"n": i8(2**40), "w": f4(1, 1)}, 2**30, r"'n': weight 1073741824 x delta 1.1e\+12 on top of 5 passes 9.223e"),
    ],
)
def test_nothing_is_added_of_an_update_that_is_refused(delta: Weights, weight: int, reason: str) -> None:
    base = {"n": np.array([100], dtype="u1"), "w": f4(1, 2)}
    total = summed(base, ({"n": i8(1), "w": f4(2, 2)}, 5))
    before = digest(total.mean())
    with pytest.raises(Refused, match=reason):
        total.add(delta.items, weight)
    with pytest.raises(Refused, match=reason):
        total.add(lambda: reversed(delta.items()), weight)
    assert total.weight == 5
    assert digest(total.mean()) == before


def test_a_tensor_that_comes_twice_is_refused() -> None:
    total = summed({"w": f4(0)}, ({"w": f4(1)}, 1))
    with pytest.raises(Refused, match="'w' comes twice"):
        total.add(lambda: [("w", f4(8)), ("w", f4(8))], 1)
    assert total.mean()["w"].tolist() == [1]


def test_an_update_refused_in_a_late_block_of_a_tensor_leaves_no_trace() -> None:
    size = 2 * BLOCK + 3
    base: Weights = {"first": f4(0), "w": np.zeros(size, dtype="f4")}
    good: Weights = {"first": f4(3), "w": np.linspace(-1, 1, size, dtype="f4")}
    bad: Weights = {"first": f4(7e5), "w": np.linspace(-300, 1e-3, size, dtype="f4")}
    bad["w"][-1] = np.nan
    total = summed(base, (good, 160))
    with pytest.raises(Refused, match="'w' holds NaN"):
        total.add(bad.items, 129)
    total.add(good.items, 20)
    assert digest(total.mean()) == digest(averaged(base, (good, 20), (good, 160)))


def test_an_update_that_cannot_be_taken_back_is_a_bug_of_ours() -> None:
    once = iter([("w", f4(1)), ("w", f4(1))])
    with pytest.raises(Misuse, match="could not be taken back"):
        summed({"w": f4(0)}).add(lambda: once, 1)


def test_nothing_is_read_of_an_update_whose_weight_is_refused() -> None:
    def untouched() -> Iterator[tuple[str, NDArray[Any]]]:
        raise AssertionError("read")

    with pytest.raises(Refused, match="must be positive"):
        summed({"w": f4(0)}).add(untouched, 0)


def test_the_range_is_that_of_the_whole_sum() -> None:
    total = summed({"w": f4(0)}, ({"w": f4(2**30)}, 1))
    with pytest.raises(Refused, match=r"on top of 1.074e\+09 passes 2.147e\+09"):
        total.add({"w": f4(2**30)}.items, 1)
    total.add({"w": f4(2**29)}.items, 1)
    assert total.weight == 2


def test_a_sum_up_to_its_last_unit_is_right() -> None:
    largest = float(np.nextafter(2.0**31, 0))
    assert averaged({"w": np.array([0.0])}, ({"w": np.array([largest])}, 1))["w"][0] == largest


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_weighted_delta_is_rounded_to_the_nearest_unit(dtype: str) -> None:
    unit = 2.0**-32
    for units, rounded in ((1.75, 2), (-1.75, -2), (0.25, 0)):
        delta = np.array([units * unit], dtype)
        assert averaged({"w": np.zeros(1, dtype)}, ({"w": delta}, 1))["w"][0] == rounded * unit


def test_a_block_of_floats_is_rounded_below_its_own_largest() -> None:
    # 3 is below 4 = 2^2, so the unit is 2^(2 - 22): of 1.6 units two are left, and of 0.4 none.
    unit = 2.0**-20
    delta = np.full(BLOCK + 1, 0.4 * unit, "f4")
    delta[:2] = 3, 1.6 * unit
    found = averaged({"w": np.zeros(BLOCK + 1, "f4")}, ({"w": delta}, 1))["w"]
    assert found[:3].tolist() == [3, 2 * unit, 0]
    assert found[-1] == pytest.approx(0.4 * unit, abs=2**-32)  # the next block has a largest of its own


def test_a_loud_update_does_not_make_the_others_any_rougher() -> None:
    quiet: tuple[Weights, int] = ({"w": f4(1e-3, 1e-3)}, 1)
    loud: tuple[Weights, int] = ({"w": f4(2**20, 0)}, 1)
    found = averaged({"w": f4(0, 0)}, quiet, loud, quiet)["w"]
    assert found[1] == pytest.approx(2e-3 / 3, rel=2**-21)


def test_more_updates_than_four_bytes_can_count_are_summed_all_the_same() -> None:
    delta: Weights = {"w": f4(1, -1)}  # 1 is 2^20 units: four bytes are full after 2,047
    total = FedAvg().sum(layout_of(delta))
    for count in range(1, 10_001):
        total.add(delta.items, 1)
        assert count % 1000 or total.mean()["w"].tolist() == [1, -1]


def test_weights_up_to_the_largest_are_taken() -> None:
    tiny = 2.0**-30
    found = averaged({"w": f4(0)}, ({"w": f4(tiny)}, 2**53 - 1), ({"w": f4(0)}, 1))["w"]
    assert found[0] == tiny


def test_the_halves_of_a_range_are_not_told_without_the_model() -> None:
    """60000 + 10000 would be infinite: whoever holds the 60000 must look."""
    assert averaged({"w": np.array([60000], dtype="f2")}, ({"w": np.array([10000], "f2")}, 1))["w"].tolist() == [10000]


def test_a_tensor_of_several_blocks_is_summed_whole() -> None:
    # 2^17 x 7 and more are rounded to multiples of 2^(24 - 22) = 4.
    delta: Weights = {"w": np.arange(0, 800_000, 4, dtype="f4")}
    assert np.array_equal(averaged(delta, (delta, 7), (delta, 9))["w"], delta["w"])


def test_values_may_come_in_any_memory_order() -> None:
    square = np.arange(6, dtype="f4").reshape(2, 3)
    fortran = np.asfortranarray(square)
    assert averaged({"w": square}, ({"w": fortran}, 3))["w"].tolist() == square.tolist()


# ------------------------------------------------------------------ discounted updates


def test_of_a_discounted_update_a_share_is_added_while_all_its_samples_count() -> None:
    total = summed({"w": f4(0)}, ({"w": f4(4)}, 10))
    total.add({"w": f4(8)}.items, 10, 0.25)
    assert total.weight == 20
    assert total.mean()["w"].tolist() == pytest.approx([2.8])  # (10 x 4 + 2 x 8) / 20: 2.5 samples are 2


def test_a_discounted_update_counts_as_one_sample_at_least() -> None:
    total = summed({"w": f4(0)}, ({"w": f4(0)}, 3))
    total.add({"w": f4(8)}.items, 1, 0.01)
    assert total.mean()["w"].tolist() == [2]


def test_a_discounted_update_that_breaks_off_leaves_no_trace() -> None:
    total = summed({"a": f4(0), "b": f4(0)}, ({"a": f4(1), "b": f4(1)}, 1))
    before = digest(total.mean())
    with pytest.raises(Refused, match="NaN"):
        total.add({"a": f4(8), "b": f4(np.nan)}.items, 10, 0.5)
    assert (total.weight, digest(total.mean())) == (1, before)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_above_nothing_and_at_most_all(share: float) -> None:
    total = summed({"w": f4(0)})
    with pytest.raises(Refused, match="share"):
        total.add({"w": f4(1)}.items, 1, share)
