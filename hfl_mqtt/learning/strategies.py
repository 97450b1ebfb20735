"""Strategies: how many updates become one model.

A strategy gives an empty `Sum` for a round and applies the full one. Sums are exact: each weighted delta is rounded
once to a multiple of 2^-32 and added as int64, so the same set of updates gives the same model to the last bit,
whatever the order of arrival.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import (
    check_finite,
    check_layout,
    check_stays_in_range,
    delta_layout,
    layout_of,
    shown,
)

#: Weighted deltas are rounded to multiples of 2^-FRACTION_BITS: a mean over n samples from m updates is off by at most
#: 1.2e-10 m/n, at weight 1 already below the last bit of a float32 above 0.002. The rest of int64 bounds the sum over
#: all updates of weight x |delta| by 2^31, e.g. a million samples times a change of 2147.
FRACTION_BITS = 32
#: Sums of weights stay exact in float64.
MAX_WEIGHT = 2**53
_LIMIT = 2**63
#: Elements worked on at a time, so that intermediates stay in the processor's cache.
_BLOCK = 1 << 14


class Sum(Protocol):
    """One round's running sum of weighted deltas."""

    def add(self, delta: Weights, weight: int) -> None:
        """Add a mean delta with the samples behind it.

        Raises:
            Refused: it does not fit the base, is not finite, would overflow, or `weight` is not positive. Nothing has
                been added then.
        """

    @property
    def weight(self) -> int:
        """The sum of weights so far."""


class Strategy(ABC):
    """A rule from updates to a model, registered under `hfl_mqtt.strategies`."""

    @abstractmethod
    def sum(self, base: Weights) -> Sum:
        """Return an empty sum for deltas against `base`."""

    @abstractmethod
    def apply(self, base: Weights, total: Sum) -> Weights:
        """Return the new model; `base` itself where `total` is empty."""


class FixedPointSum:
    """(sum of weight x delta, sum of weights) in int64: one array per tensor, nothing per client.

    Not for several threads at once: the scratch space is shared.
    """

    def __init__(self, base: Weights) -> None:
        layout = layout_of(base)
        self._base = base
        self._layout = delta_layout(layout)
        self._sums = {name: np.zeros(spec.size, dtype=np.int64) for name, spec in layout.items()}
        #: A bound on the magnitudes in each sum; as Python integers it cannot overflow itself.
        self._bounds = dict.fromkeys(layout, 0)
        self._weight = 0
        self._floats = np.empty(_BLOCK, dtype=np.float64)
        self._ints = np.empty(_BLOCK, dtype=np.int64)

    @property
    def weight(self) -> int:
        """The sum of weights so far."""
        return self._weight

    def add(self, delta: Weights, weight: int) -> None:
        """Add a mean delta with the samples behind it; see `Sum.add`."""
        if not 0 < weight <= MAX_WEIGHT - self._weight:
            raise Refused(f"weight {weight}: must be positive, and with {self._weight} so far at most {MAX_WEIGHT}")
        check_layout(layout_of(delta), self._layout)
        bounds = {name: self._bound(name, values, weight) for name, values in delta.items()}
        # Only now is everything known to fit.
        for name, values in delta.items():
            self._add_tensor(self._sums[name], values.reshape(-1), weight)
        self._bounds = bounds
        self._weight += weight

    def mean_plus(self, name: str, start: NDArray[Any]) -> NDArray[Any]:
        """Return `start` + the weighted mean delta of tensor `name`, in the dtype of `start`.

        Floats are added in float64 and rounded once; integers get the mean rounded to the nearest, halves up.
        """
        total, flat = self._sums[name], start.reshape(-1)
        result = np.empty(flat.size, dtype=start.dtype)
        if start.dtype.kind != "f":
            whole, left = np.divmod(total, self._weight)
            whole += 2 * left >= self._weight
            result[:] = flat.astype(np.int64) + whole
        else:
            divisor = float(self._weight) * 2.0**FRACTION_BITS
            for at in range(0, flat.size, _BLOCK):
                part = total[at : at + _BLOCK]
                mean = self._floats[: part.size]
                np.divide(part, divisor, out=mean)
                mean += flat[at : at + _BLOCK]
                result[at : at + _BLOCK] = mean
        return result.reshape(start.shape)

    def _bound(self, name: str, values: NDArray[Any], weight: int) -> int:
        """Return the bound on the sum of tensor `name` after adding; refuse what would not fit."""
        if values.dtype.kind == "f":
            peak: float | int = check_finite(name, values)
            scaled = peak * (float(weight) * 2.0**FRACTION_BITS)  # as in _add_tensor; rounding keeps the order
            step = round(scaled) if scaled < _LIMIT else _LIMIT
            unit = 2.0**FRACTION_BITS
        else:
            peak = max(-int(values.min()), int(values.max())) if values.size else 0
            step, unit = peak * weight, 1.0
        bound = self._bounds[name] + step
        if bound >= _LIMIT:
            raise Refused(
                f"{shown(name)}: weight {weight} x delta {peak:.4g} on top of {self._bounds[name] / unit:.4g} "
                f"passes {_LIMIT / unit:.4g}, the range of a sum"
            )
        # Wider floats cannot be reached by a delta under 2^31.
        if values.size and (values.dtype.kind != "f" or values.dtype.itemsize == 2):
            check_stays_in_range(name, self._base[name], values)
        return bound

    def _add_tensor(self, total: NDArray[np.int64], values: NDArray[Any], weight: int) -> None:
        if values.dtype.kind != "f":
            total += values * weight
            return
        factor = float(weight) * 2.0**FRACTION_BITS
        for at in range(0, values.size, _BLOCK):
            part = values[at : at + _BLOCK]
            scaled, whole = self._floats[: part.size], self._ints[: part.size]
            np.multiply(part, factor, out=scaled, dtype=np.float64)
            np.rint(scaled, out=scaled)
            np.copyto(whole, scaled, casting="unsafe")
            total[at : at + _BLOCK] += whole


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Strategy):
    """The mean of the deltas, weighted by samples (McMahan 2017, 1602.05629), the same at every tier.

    With one edge round a tree equals flat FedAvg for any partition of the clients.
    """

    def sum(self, base: Weights) -> FixedPointSum:
        """Return an empty sum for deltas against `base`."""
        return FixedPointSum(base)

    def apply(self, base: Weights, total: Sum) -> Weights:
        """Return `base` + the weighted mean delta."""
        assert isinstance(total, FixedPointSum), "a strategy applies its own sums"
        if total.weight == 0:
            return base
        return {name: total.mean_plus(name, start) for name, start in base.items()}
