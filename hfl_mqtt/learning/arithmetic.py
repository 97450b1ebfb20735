"""What the machines ask of the numbers, answered with tensors: deltas in and out of bytes, added up by a strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.errors import HflError, Refused
from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.shelf import Shelf, let_go
from hfl_mqtt.learning.start import Start
from hfl_mqtt.learning.strategies import FedAvg, Strategy, Sum
from hfl_mqtt.learning.weights import Layout, check_layout, delta_layout, layout_of, placed, shown
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import Buffer, Keyframe
from hfl_mqtt.rounds.arithmetic import LOSSLESS, Accumulator, Model

#: Bytes of a start that is kept taken apart, for it is asked about several times a round: one that says only a seed.
SMALL_START = 4096
#: The range of a sum is shared by so many at least.
LEAST_SHARERS = 8


class TensorArithmetic:
    """`rounds.arithmetic.Arithmetic` over `dict[str, ndarray]`.

    Args:
        strategy: how updates become a step, FedAvg by default.
        max_model_bytes: how large a model this node is ready to hold.
        shelf: where deltas lie while nobody works on them; None keeps them in memory.
    """

    def __init__(
        self, strategy: Strategy | None = None, *, max_model_bytes: int = MAX_BLOB, shelf: Shelf | None = None
    ) -> None:
        self._shelf = shelf
        self._strategy = strategy or FedAvg()
        self._max_model_bytes = max_model_bytes
        self._start: tuple[bytes, Start] | None = None

    def layout(self, start: Buffer) -> Layout:
        """Return names, dtypes and shapes of the model that starts so; see `Arithmetic.layout`."""
        return self.start(start).layout

    def start_digest(self, start: Buffer) -> str:
        """Return the SHA-256 of the initial weights, in hex."""
        return self.start(start).digest

    def start(self, start: Buffer) -> Start:
        """Take a start apart.

        Raises:
            Refused: it is none, or of a larger model than this node takes.
        """
        if len(start) > SMALL_START:
            return Start.read(start, self._max_model_bytes)
        key = bytes(start)
        if self._start is None or self._start[0] != key:
            self._start = key, Start.read(key, self._max_model_bytes)
        return self._start[1]

    def model_size(self, layout: Layout) -> int:
        """Return the bytes of a model's values."""
        return sum(spec.size_bytes for spec in layout.values())

    def accumulator(self, layout: Layout, codecs: tuple[str, ...]) -> Accumulator:
        """Return an empty sum for deltas that come in one of these codecs; see `Arithmetic.accumulator`."""
        return EncodedSum(self._strategy.sum(layout), delta_layout(layout), codecs)

    def update_limit(self, layout: Layout, codecs: tuple[str, ...]) -> int:
        """Return the most bytes of a delta in any of these codecs."""
        deltas = delta_layout(layout)
        return max(payload.size_limit(deltas, _parse(codec)) for codec in codecs)

    def step(self, accumulator: Accumulator) -> Weights:
        """Return how far the strategy moves the model."""
        assert isinstance(accumulator, EncodedSum), "only accumulators made here can be used"
        return self._kept(self._strategy.step(accumulator.total).items())

    def encode(self, delta: Weights, codec: str, seed: int) -> bytes:
        """Return a delta's bytes; see `Arithmetic.encode`."""
        chain = _parse(codec)
        return payload.encode(delta, chain, _dice(chain, seed))

    def carry(self, delta: Weights, codec: str, seed: int) -> tuple[bytes, Weights, Weights | None]:
        """Return a delta's bytes, what they say, and what they leave out; see `Arithmetic.carry`."""
        chain = _parse(codec)
        if chain.is_lossless:
            return self.encode(delta, codec, seed), delta, None
        if self._shelf is not None and self._shelf.holds(delta):  # tensor by tensor, and never the whole of it
            data = self.encode(delta, codec, seed)
            said = self.decode(data, layout_of(delta))
        else:
            data, said = payload.carry(delta, chain, _dice(chain, seed))
        return data, said, self.subtract(delta, said)

    def decode(self, data: Buffer, layout: Layout) -> Weights:
        """Read a delta of a model with this layout. The arrays may be read-only views of the bytes."""
        data = memoryview(data)
        try:
            chain = _parse(payload.codec_of(data))
        except HflError as error:
            raise Refused(str(error)) from None
        if self._shelf is None:
            return payload.decode(data, chain, delta_layout(layout))
        found = self._shelf.weights(payload.tensors(data, chain, delta_layout(layout)))
        let_go(data)
        return found

    def is_lossless(self, codec: str) -> bool:
        """Whether decoding gives every bit again."""
        return _parse(codec).is_lossless

    def add(self, a: Weights | None, b: Weights) -> Weights:
        """Return a + b, tensor by tensor in their own dtype.

        Raises:
            Refused: they are not of one model, or a sum is no number.
        """
        if a is None:
            return b
        check_layout(layout_of(b), layout_of(a))
        with np.errstate(over="ignore"):
            return self._kept((name, np.asarray(values + b[name])) for name, values in a.items())

    def subtract(self, a: Weights | None, b: Weights) -> Weights:
        """Return a - b, tensor by tensor; see `add`."""
        if a is None:
            return self._kept((name, np.asarray(-values)) for name, values in b.items())
        check_layout(layout_of(b), layout_of(a))
        with np.errstate(over="ignore"):
            return self._kept((name, np.asarray(values - b[name])) for name, values in a.items())

    def shorten(self, model: Model) -> Keyframe:
        """Return one keyframe for a whole chain; see `Arithmetic.shorten`."""
        moved = self.moved(model)
        plus = self.encode(moved, LOSSLESS, 0) if moved is not None else None
        return replace(model.keyframe, version=model.version, digest=model.digest, plus=plus)

    def place(self, start: Weights, delta: Weights) -> Weights:
        """Return `start` + `delta` in the dtypes of `start`.

        Raises:
            Refused: they do not fit, or a value leaves the range of its dtype.
        """
        return placed(start, delta)

    def moved(self, model: Model) -> Weights | None:
        """Return how far a chain leads from its start; see `Arithmetic.moved`."""
        layout = self.layout(model.keyframe.start)
        total = None if model.keyframe.plus is None else self.decode(model.keyframe.plus, layout)
        for delta in model.deltas:
            total = self.add(total, self.decode(delta, layout))
        return total

    def weights(self, model: Model, build: Callable[[int], Weights] | None = None) -> Weights:
        """Return the weights that a chain leads to, in arrays of their own; see `Start.weights` for `build`."""
        start, moved = self.start(model.keyframe.start).weights(build), self.moved(model)
        return start if moved is None else self.place(start, moved)

    def _kept(self, tensors: Iterable[tuple[str, NDArray[Any]]]) -> Weights:
        return dict(tensors) if self._shelf is None else self._shelf.weights(tensors)


class EncodedSum:
    """A strategy's sum that takes encoded deltas: `rounds.arithmetic.Accumulator`."""

    def __init__(self, total: Sum, layout: Layout, codecs: tuple[str, ...]) -> None:
        self.total = total
        self._layout = layout
        self._chains = {str(chain): chain for chain in map(_parse, codecs)}

    def add(self, data: Buffer, weight: int, share: float = 1.0, max_norm: float = math.inf, sharers: int = 1) -> float:
        """Decode, check and add tensor by tensor, and return the norm; nothing has been added where it raises.

        Raises:
            Refused: see `rounds.arithmetic.Accumulator.add`.
        """
        data = memoryview(data)
        codec = payload.codec_of(data)
        chain = self._chains.get(codec)
        if chain is None:
            raise Refused(f"coded in {codec!r}, asked was {' or '.join(self._chains)}")
        norm = 0.0

        def measured() -> Iterator[tuple[str, NDArray[Any]]]:
            nonlocal norm
            squares = 0.0
            for name, values in payload.tensors(data, chain, self._layout):
                square = _square(values)
                _check_part_of_range(name, values, square, weight, sharers)
                squares += square
                yield name, values
            norm = math.sqrt(squares)
            if norm > max_norm:
                raise Refused(f"norm: {norm:.4g}, while {max_norm:.4g} is the most that is believed of a delta now")

        self.total.add(measured, weight, share)
        return norm

    @property
    def weight(self) -> int:
        """The sum of weights so far."""
        return self.total.weight


def _check_part_of_range(name: str, values: NDArray[Any], square: float, weight: int, sharers: int) -> None:
    """Check that an update leaves others their parts of the range of a sum, with room for as many again.

    Raises:
        Refused: it does not.
    """
    if sharers == 1 or not values.size:
        return
    is_float = values.dtype.kind == "f"
    most = (2.0**31 if is_float else 2.0**63) / max(2 * sharers, LEAST_SHARERS)
    if is_float and math.sqrt(square) * weight <= most:  # no element is larger than the norm
        return
    peak = max(-float(values.min()), float(values.max()))
    if peak * weight > most:
        raise Refused(f"{shown(name)}: weight {weight} x delta {peak:.4g} passes {most:.4g}, one child's part of a sum")


def _square(values: NDArray[Any]) -> float:
    """Return the sum of squares of a float tensor; counters, which differ by whole numbers, are not measured."""
    if values.dtype.kind != "f":
        return 0.0
    flat = values.reshape(-1)
    flat = flat.astype(np.float32) if flat.dtype.itemsize < 4 else flat
    return float(np.dot(flat, flat))


def _dice(chain: codecs.Chain, seed: int) -> np.random.Generator:
    """Return what draws lots. What is lossless draws none, and numpy's dice take 2.3 MB: an edge may do without."""
    return cast("np.random.Generator", None) if chain.is_lossless else np.random.default_rng(seed)


@lru_cache(maxsize=64)
def _parse(codec: str) -> codecs.Chain:
    return codecs.parse(codec)
