"""Strategies: how many updates become one step of the model.

A strategy gives an empty `Sum` for a round and says how far the full one moves the model. Nobody here needs the model
itself, only its layout. Sums are exact: each weighted delta is rounded once, by a rule that looks at its own update
alone, and from then on all is integers. So the same set of updates gives the same step to the last bit, whatever the
order of arrival, and what was added can be taken back without a trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Misuse, Refused
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.exact import BLOCK, Block, places_of
from hfl_mqtt.learning.weights import Layout, TensorSpec, delta_layout, shown

#: Gives the tensors of one update as (name, values), from the start and the same each time it is called.
Tensors = Callable[[], Iterable[tuple[str, NDArray[Any]]]]

#: Sums of weights stay exact in float64.
MAX_WEIGHT = 2**53


class Sum(Protocol):
    """One round's running sum of weighted deltas."""

    def add(self, tensors: Tensors, weight: int, share: float = 1.0) -> None:
        """Add a mean delta, tensor by tensor as it comes, with the samples behind it.

        Of a `share` below 1 only so much is added, while `weight` counts as a whole: a late update is discounted so,
        as in FedBuff (Nguyen et al. 2022, 2106.06639). It is rounded to whole samples, at least one.

        Where something is wrong in the middle, `tensors` is called a second time to take back what was added.

        Raises:
            Refused: it does not fit the layout, is not finite, would overflow, `weight` is not positive, or `share` not
                above 0 and at most 1. Nothing has been added then, nor where `tensors` itself raises.
            Misuse: `tensors` raised earlier the second time than the first; the sum is worthless.
        """

    @property
    def weight(self) -> int:
        """The sum of weights so far."""


class Strategy(ABC):
    """A rule from updates to a step of the model, registered under `hfl_mqtt.strategies`."""

    @abstractmethod
    def sum(self, layout: Layout) -> Sum:
        """Return an empty sum for deltas of a model of `layout`."""

    @abstractmethod
    def step(self, total: Sum) -> Weights:
        """Return how far the model moves, as a delta.

        Raises:
            Misuse: `total` is empty.
        """


class FixedPointSum:
    """(sum of weight x delta, sum of weights) in integers: 4 bytes an element of float32, and nothing per client.

    Only where those 4 do not do, after hundreds of updates or one a thousand times heavier, it is 12.

    Each block of up to `BLOCK` elements of a float16 or float32 tensor is rounded to a power of two: the largest
    weight x |delta| in the block of this very update, 2^-22 of it to 2^-20, but no finer than 2^-32. An element is off
    by less than that once weighted, so less than 2^-20 of its block's largest delta; weights above 2^24 are themselves
    rounded to float32. float64, and tensors so small that they share a block, are rounded to multiples of 2^-32;
    integers are exact.

    Deltas are checked as far as it can be done without the model: finite, and integers no further apart than two values
    of the model's dtype can be. Whether model + step stays in range is for whoever holds the model.

    Not for several threads at once: the scratch space is shared.

    >>> total = FixedPointSum({"w": TensorSpec(dtype=np.dtype("f4"), shape=(2,))})
    >>> total.add({"w": np.array([4, 0], "f4")}.items, weight=1)
    >>> total.add({"w": np.array([8, 1], "f4")}.items, weight=3)
    >>> total.mean()["w"].tolist(), total.weight
    ([7.0, 0.75], 4)
    >>> total.add({"w": np.array([14, 8], "f4")}.items, weight=4, share=0.5)
    >>> total.mean()["w"].tolist(), total.weight
    ([7.0, 2.375], 8)
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = delta_layout(layout)
        self._weight = 0
        self._places = places_of(layout)

    @property
    def weight(self) -> int:
        """The sum of weights so far."""
        return self._weight

    def add(self, tensors: Tensors, weight: int, share: float = 1.0) -> None:
        """Add a mean delta with the samples behind it; see `Sum.add`."""
        if not 0 < weight <= MAX_WEIGHT - self._weight:
            raise Refused(f"weight {weight}: must be positive, and with {self._weight} so far at most {MAX_WEIGHT}")
        if not 0 < share <= 1:
            raise Refused(f"share {share}: must be above 0 and at most 1")
        counted = max(1, round(weight * share))
        done = 0
        try:
            for block, values in self._parts(tensors):
                block.add(values, counted)
                done += 1
        except Exception:
            self._take_back(tensors, counted, done)
            raise
        self._weight += weight

    def mean(self) -> Weights:
        """Return the weighted mean delta, in the layout's order; see `mean_tensors`."""
        return dict(self.mean_tensors())

    def mean_tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Give the weighted mean delta tensor by tensor: floats in their dtype, integers as int64.

        Floats are divided in float64 and rounded once, integers rounded to the nearest, halves up.

        Raises:
            Misuse: nothing has been added.
        """
        if not self._weight:
            raise Misuse("there is no mean of no updates: look at `weight` first")
        for name, place in self._places.items():
            result = np.empty(place.size, dtype=place.dtype)
            for at, block in zip(range(0, place.size, BLOCK), place.blocks, strict=True):
                block.mean(self._weight, result[at : at + BLOCK], place.start)
            yield name, result.reshape(self._layout[name].shape)

    def _parts(self, tensors: Tensors) -> Iterator[tuple[Block, NDArray[Any]]]:
        """Give the blocks of an update beside those of the sum, and check that every tensor comes once and fits.

        A block that tensors share is given when the last of them is there.
        """
        left = self._places.copy()
        gathered: dict[Block, NDArray[Any]] = {}
        missing: dict[Block, int] = {}
        for name, values in tensors():
            place = left.pop(name, None)
            if place is None:
                raise Refused(f"{shown(name)} {'comes twice' if name in self._places else 'is not in the model'}")
            if values.dtype != place.dtype or values.size != place.size:
                found = TensorSpec(dtype=values.dtype, shape=values.shape)
                raise Refused(f"{shown(name)} is {found}, expected {self._layout[name]}")
            flat = values.reshape(-1)
            if not place.is_shared:
                for at, block in zip(range(0, place.size, BLOCK), place.blocks, strict=True):
                    yield block, flat[at : at + BLOCK]
                continue
            block = place.blocks[0]
            if block not in gathered:
                gathered[block] = np.empty(block.size, dtype=place.dtype)
                missing[block] = len(block.names)
            gathered[block][place.start : place.start + place.size] = flat
            missing[block] -= 1
            if not missing[block]:
                yield block, gathered.pop(block)
        if left:
            raise Refused(f"{shown(next(iter(left)))} is missing")

    def _take_back(self, tensors: Tensors, weight: int, done: int) -> None:
        try:
            for block, values in islice(self._parts(tensors), done):
                block.add(values, weight, sign=-1)
        except Exception as error:
            raise Misuse(
                f"a refused update could not be taken back, read again it gave another error: {error}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Strategy):
    """The mean of the deltas, weighted by samples (McMahan 2017, 1602.05629), the same at every tier.

    With one edge round a tree equals flat FedAvg for any partition of the clients.

    Args:
        server_learning_rate: the step is the mean times this (server SGD of FedOpt, 2003.00295). A little over 1 makes
            up for what error feedback holds back where updates are coded coarsely.

    Raises:
        ConfigError: the rate is not above 0 and at most 10.
    """

    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.server_learning_rate <= 10:
            raise ConfigError(f"fedavg takes a rate above 0 and at most 10, not {self.server_learning_rate}")

    def sum(self, layout: Layout) -> FixedPointSum:
        """Return an empty sum for deltas of a model of `layout`."""
        return FixedPointSum(layout)

    def step(self, total: Sum) -> Weights:
        """Return the weighted mean delta times the rate; integers move by the mean as it is."""
        assert isinstance(total, FixedPointSum), "a strategy steps by its own sums"
        mean = total.mean()
        if self.server_learning_rate != 1:
            for values in mean.values():
                if values.dtype.kind == "f":
                    values *= values.dtype.type(self.server_learning_rate)
        return mean
