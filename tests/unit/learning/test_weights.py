"""Layouts, digests and differences of models."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import (
    check_finite,
    check_layout,
    delta_layout,
    difference,
    digest,
    layout_of,
    placed,
    size_bytes,
)


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def model(**tensors: object) -> Weights:
    return {name: np.asarray(values) for name, values in tensors.items()}


def test_a_digest_is_the_same_in_any_order_of_names_and_any_memory_layout() -> None:
    a = np.arange(6, dtype="f4").reshape(2, 3)
    one = {"a": a, "b": f4(1)}
    other = {"b": f4(1), "a": np.asfortranarray(a).astype(">f4")}
    assert digest(one) == digest(other)


def test_a_digest_is_a_known_number_so_that_it_never_changes_by_accident() -> None:
    assert digest({"w": np.array([[1.5, -0.0]], dtype="f4"), "n": np.array(7, dtype="i8")}) == (
        "44d771c0b8859b6707918f1e4604ebfc97aa38bfade4f56dbd09bc02fe158209"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"w": f4(1, 2.0000002)},
        {"w": f4(1, 2).reshape(1, 2)},
        {"w": np.array([1, 2], dtype="float64")},
        {"v": f4(1, 2)},
        {"w": f4(1, 2), "b": f4()},
        {},
    ],
    ids=["one bit", "shape", "dtype", "name", "an empty tensor more", "nothing"],
)
def test_a_digest_changes_with(other: Weights) -> None:
    assert digest({"w": f4(1, 2)}) != digest(other)


def test_zero_and_minus_zero_are_two_models() -> None:
    assert digest({"w": f4(0.0)}) != digest({"w": f4(-0.0)})


def test_size_counts_the_bytes_of_values() -> None:
    assert size_bytes({"a": np.zeros((2, 3), "f4"), "b": np.zeros((), "i8")}) == 24 + 8


def test_floats_subtract_in_their_dtype_and_integers_exactly_in_int64() -> None:
    base = model(
        w=np.array([1], dtype="float16"),
        n=np.array([250], dtype="uint8"),
        big=np.array([2**62], dtype="int64"),
        flag=np.array([True, False]),
    )
    new = model(
        w=np.array([1.5], dtype="float16"),
        n=np.array([3], dtype="uint8"),
        big=np.array([2**62 + 1], dtype="int64"),
        flag=np.array([False, False]),
    )
    delta = difference(new, base)
    assert {name: (values.dtype.name, values.tolist()) for name, values in delta.items()} == {
        "w": ("float16", [0.5]),
        "n": ("int64", [-247]),
        "big": ("int64", [1]),
        "flag": ("int64", [-1, 0]),
    }


def test_scalars_stay_arrays() -> None:
    delta = difference(model(w=np.array(3, dtype="float32")), model(w=np.array(1, dtype="float32")))
    assert isinstance(delta["w"], np.ndarray)


def test_a_difference_that_does_not_fit_int64_is_refused() -> None:
    with pytest.raises(Refused, match="'n' does not fit int64"):
        difference(model(n=np.array([2**63 - 1], dtype="int64")), model(n=np.array([-1], dtype="int64")))


def test_a_difference_of_diverged_weights_is_refused() -> None:
    with pytest.raises(Refused, match="'w' holds NaN"):
        difference(model(w=f4(np.inf)), model(w=f4(1)))


@pytest.mark.parametrize(
    ("base", "delta"),
    [
        (np.array([255], dtype="uint8"), np.array([1], dtype="int64")),
        (np.array([2**63 - 1], dtype="int64"), np.array([1], dtype="int64")),
        (np.array([True]), np.array([1], dtype="int64")),
        (np.array([65504], dtype="float16"), np.array([65504], dtype="float16")),
    ],
)
def test_a_sum_outside_its_dtype_is_refused(base: NDArray[Any], delta: NDArray[Any]) -> None:
    with pytest.raises(Refused, match="'x' would leave the range of"):
        placed(model(x=base), model(x=delta))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({}, "'w' is missing"),
        ({"w": np.zeros((2, 2), "f4"), "v": np.zeros(1)}, "'v' is not in the model"),
        ({"w": np.zeros((2, 3), "f4")}, r"'w' is float32\[2, 3\], expected float32\[2, 2\]"),
        ({"w": np.zeros((2, 2), "f8")}, r"'w' is float64\[2, 2\], expected float32\[2, 2\]"),
    ],
)
def test_models_that_do_not_agree_are_told_apart_by_the_tensor(found: Weights, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_layout(layout_of(found), layout_of({"w": np.zeros((2, 2), "f4")}))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"w": np.zeros(2, "c8")}, "'w' is complex64; allowed are b1"),
        ({"w": np.zeros(2, "u8")}, "'w' is uint64"),
        ({"w": np.zeros(2, object)}, "'w' is object"),
        ({"w": np.zeros((1,) * 9, "f4")}, "'w' has 9 dimensions, at most 8"),
        ({"x" * 201: np.zeros(2)}, "name has 201 characters"),
        ({str(i): np.zeros(0) for i in range(10_001)}, "10001 tensors, at most 10000"),
    ],
)
def test_what_cannot_travel_has_no_layout(weights: Weights, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        layout_of(weights)


def test_a_reason_with_the_longest_name_fits_a_receipt() -> None:
    name = "ü" * 200
    with pytest.raises(Refused) as caught:
        check_layout(layout_of({name: np.zeros((0, 9, 9, 9, 9, 9, 9, 9))}), layout_of({name: np.zeros(1)}))
    assert len(str(caught.value)) <= 300


def test_only_integers_change_their_dtype_in_a_delta() -> None:
    layout = delta_layout(
        layout_of(model(w=np.array([1], dtype="float16"), n=np.array([1], dtype="uint8"), flag=np.array(True)))
    )
    assert [str(spec) for spec in layout.values()] == ["float16[1]", "int64[1]", "int64[]"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_number_that_is_none_is_found_wherever_it_stands(bad: float, place: int) -> None:
    values = np.arange(10, dtype="f4")
    values[place] = bad
    with pytest.raises(Refused, match="NaN or infinity"):
        check_finite("w", values)


def test_the_peak_is_the_largest_magnitude() -> None:
    assert check_finite("w", f4(1, -3, 2)) == 3.0
    assert check_finite("w", f4()) == 0.0
