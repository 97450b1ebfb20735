"""Weights as numbers: what a model's tensors are, whether two models agree, and the difference between them.

A model is a `dict[str, ndarray]`. Its `Layout` (name -> dtype and shape) is what a receiver checks bytes against before
it allocates anything. Floats subtract and add in their own dtype; integers and booleans have exact int64 differences,
because a counter averaged into a fraction is no counter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.protocol.limits import MAX_DIMENSIONS, MAX_TENSOR_NAME, MAX_TENSORS

#: What a tensor may hold. No uint64: its differences do not fit int64. No bfloat16: numpy has none.
DTYPES = frozenset({"f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4"})
_INT64 = np.dtype("i8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor without its values.

    >>> str(TensorSpec(dtype=np.dtype("f4"), shape=(3, 4)))
    'float32[3, 4]'
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it may be rounded and averaged into fractions."""
        return self.dtype.kind == "f"

    @property
    def code(self) -> str:
        """The dtype in two characters, as on the wire: `f4`, `i8`, `b1`."""
        return self.dtype.str[1:]


Layout = Mapping[str, TensorSpec]


def layout_of(weights: Weights) -> dict[str, TensorSpec]:
    """Return what `weights` look like.

    Raises:
        Refused: a dtype, a name or a rank that this package does not carry.
    """
    if len(weights) > MAX_TENSORS:
        raise Refused(f"{len(weights)} tensors, at most {MAX_TENSORS}")
    layout: dict[str, TensorSpec] = {}
    for name, array in weights.items():
        if not 0 < len(name) <= MAX_TENSOR_NAME:
            raise Refused(f"a tensor's name has {len(name)} characters, allowed are 1 to {MAX_TENSOR_NAME}")
        if array.dtype.str[1:] not in DTYPES:
            raise Refused(f"{shown(name)} is {array.dtype.name}; allowed are {', '.join(sorted(DTYPES))}")
        if array.ndim > MAX_DIMENSIONS:
            raise Refused(f"{shown(name)} has {array.ndim} dimensions, at most {MAX_DIMENSIONS}")
        layout[name] = _spec(array.dtype, array.shape)
    return layout


@lru_cache(maxsize=1024)
def _spec(dtype: np.dtype[Any], shape: tuple[int, ...]) -> TensorSpec:
    """Return what stands for a tensor: one for all that are alike, since two that are one compare at once."""
    return TensorSpec(dtype=dtype.newbyteorder("="), shape=shape)


def delta_layout(layout: Layout) -> dict[str, TensorSpec]:
    """Return the layout of differences between two models of `layout`: floats as they are, all else int64."""
    return {
        name: spec if spec.is_float else TensorSpec(dtype=_INT64, shape=spec.shape) for name, spec in layout.items()
    }


def check_layout(found: Layout, expected: Layout) -> None:
    """Check that two layouts agree; the order of the names does not matter.

    Raises:
        Refused: they do not; the message names the first tensor that differs.
    """
    for name in expected:
        if name not in found:
            raise Refused(f"{shown(name)} is missing")
    for name, spec in found.items():
        if name not in expected:
            raise Refused(f"{shown(name)} is not in the model")
        if spec != expected[name]:
            raise Refused(f"{shown(name)} is {spec}, expected {expected[name]}")


def check_finite(name: str, values: NDArray[Any]) -> float:
    """Return the largest magnitude in a float array, 0.0 of an empty one.

    Raises:
        Refused: it holds NaN or infinity.
    """
    if values.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # NaN goes through min and max, which is the point
        peak = max(-float(values.min()), float(values.max()))
    if not math.isfinite(peak):
        raise Refused(f"{shown(name)} holds NaN or infinity")
    return peak


def size_bytes(weights: Weights) -> int:
    """Return the bytes of all values."""
    return sum(array.nbytes for array in weights.values())


def little_endian(array: NDArray[Any]) -> memoryview:
    """Return the bytes of the values in C order, little-endian, as they stand on the wire and in a digest."""
    flat = np.ascontiguousarray(array.reshape(-1))
    return flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


def digest(weights: Weights) -> str:
    """Return the SHA-256 of names, dtypes, shapes and little-endian values in hex: the model's identity.

    The order of the dict does not matter; every bit of every value does, so 0.0 and -0.0 are two models.

    Raises:
        Refused: as `layout_of`.
    """
    layout = layout_of(weights)
    total = hashlib.sha256()
    for name in sorted(weights):
        spec, text = layout[name], name.encode()
        dims = b"".join(dim.to_bytes(8, "little") for dim in spec.shape)
        # Lengths stand before what they measure, so no two models spell the same bytes.
        total.update(len(text).to_bytes(4, "little") + text + spec.code.encode() + bytes([len(spec.shape)]) + dims)
        total.update(little_endian(weights[name]))
    return total.hexdigest()


def difference(weights: Weights, base: Weights) -> Weights:
    """Return `weights - base` in the order of `base`: floats in their dtype, integers and booleans as exact int64.

    Raises:
        Refused: the two do not agree, the difference of an integer does not fit int64, or that of a float is no number.
    """
    check_layout(layout_of(weights), layout_of(base))
    delta: Weights = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, start in base.items():
            if start.dtype.kind == "f":
                delta[name] = np.asarray(weights[name] - start)
                if not np.isfinite(delta[name]).all():
                    raise Refused(f"{shown(name)} holds NaN or infinity")
                continue
            a, b = weights[name].astype(_INT64), start.astype(_INT64)
            result = np.asarray(a - b)
            if ((a ^ b) & (a ^ result) < 0).any():
                raise Refused(f"the difference of {shown(name)} does not fit int64")
            delta[name] = result
    return delta


def placed(start: Weights, delta: Weights) -> Weights:
    """Return `start` + `delta` in the dtypes of `start`.

    Raises:
        Refused: they do not fit, or a value leaves the range of its dtype.
    """
    check_layout(layout_of(delta), delta_layout(layout_of(start)))
    found: Weights = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, values in start.items():
            if values.dtype.kind == "f":
                found[name] = np.asarray(values + delta[name])
                fits = bool(np.isfinite(found[name]).all())
            else:
                a = values.astype(_INT64)
                total = np.asarray(a + delta[name])
                low, high = (0, 1) if values.dtype.kind == "b" else _range(values.dtype)
                wraps = (a ^ total) & (delta[name] ^ total) < 0
                fits = not bool((wraps | (total < low) | (total > high)).any())
                found[name] = total.astype(values.dtype)
            if not fits:
                raise Refused(f"{shown(name)} would leave the range of {values.dtype.name}")
    return found


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def shown(name: str) -> str:
    """Return a tensor's name as it stands in a reason: quoted, and short enough for a receipt."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
