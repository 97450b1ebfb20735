"""What the machines ask of the numbers. The machines never look inside weights: `learning.arithmetic` does.

A delta is opaque here, and so is the `layout` that says what a model's deltas look like. An aggregator that is no cloud
never sees a model: it adds deltas to deltas, and passes on where they start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from hfl_mqtt.protocol.messages import Buffer, Keyframe

#: A new keyframe is due when the deltas since the last one have this many times the bytes of the model's values,
DELTAS_PER_KEY = 2.0
#: or are this many.
MAX_DELTAS = 512
#: How deltas are coded so that nothing is lost.
LOSSLESS = "raw | zstd"
#: How what only this machine's disk sees is coded: zstd takes 8 % off noise, in six times the time.
KEPT = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as it travels: a keyframe, and the deltas since, oldest first, each with the digest it leads to."""

    keyframe: Keyframe = field(repr=False)
    deltas: tuple[Buffer, ...] = field(default=(), repr=False)
    version: int
    digest: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the deltas."""
        return sum(len(delta) for delta in self.deltas)


class Accumulator(Protocol):
    """One round's running sum: (sum of weight x delta, sum of weights), exact, in any order of arrival."""

    def add(self, data: Buffer, weight: int, share: float = 1.0, max_norm: float = inf, sharers: int = 1) -> float:
        """Add an encoded mean delta with the samples behind it, and return its L2 norm.

        Of a `share` below 1 the step has only so much, while the mean still counts all its samples: what is discounted
        leaves the model where it is, and gives the others no more to say. Of the range of a sum it may take what is its
        own where `sharers` have a like part.

        Raises:
            Refused: the bytes do not fit the model (names, shapes, dtypes), hold NaN or infinity, are not coded as
                asked, would overflow or take more than a part of the range, have a larger norm than `max_norm`, or
                `weight` is not positive. Nothing has been added then.
        """

    @property
    def weight(self) -> int:
        """The sum of weights so far."""


class Arithmetic(Protocol):
    """Deltas in and out of bytes, and how updates become a step of the model."""

    def layout(self, start: Buffer) -> Any:
        """Return what deltas of a model look like that starts from `start` (see `Keyframe.start`).

        Raises:
            Refused: it is no start of a model that this node takes.
        """

    def start_digest(self, start: Buffer) -> str:
        """Return the digest of the weights that `start` stands for; see `layout` for what it raises."""

    def model_size(self, layout: Any) -> int:
        """Return the bytes of a model's values."""

    def accumulator(self, layout: Any, codecs: tuple[str, ...]) -> Accumulator:
        """Return an empty sum for deltas that come in one of `codecs`.

        Raises:
            ConfigError: one is no chain of codecs known here.
        """

    def update_limit(self, layout: Any, codecs: tuple[str, ...]) -> int:
        """Return the most bytes that a delta can have in any of `codecs`."""

    def step(self, accumulator: Accumulator) -> Any:
        """Return how far the model moves: a delta. The accumulator is used up."""

    def encode(self, delta: Any, codec: str, seed: int) -> bytes:
        """Return a delta's bytes. `seed` drives codecs that round at random.

        Raises:
            Refused: the delta holds NaN or infinity.
            ConfigError: `codec` is no chain of codecs known here.
        """

    def decode(self, payload: Buffer, layout: Any) -> Any:
        """Read a delta in whatever codec it says it is in, to the same bits on every machine.

        Raises:
            Refused: it is no delta of this model.
        """

    def carry(self, delta: Any, codec: str, seed: int) -> tuple[bytes, Any, Any]:
        """Return a delta's bytes as `encode` does, what `decode` makes of them, and what coding cuts off.

        The last is the first less the second, to be carried along (error feedback); None where nothing is cut off.
        """

    def is_lossless(self, codec: str) -> bool:
        """Whether decoding gives every bit again."""

    def add(self, a: Any, b: Any) -> Any:
        """Return the sum of two deltas; None stands for zero."""

    def subtract(self, a: Any, b: Any) -> Any:
        """Return the difference of two deltas; None stands for zero."""

    def moved(self, model: Model) -> Any:
        """Return how far a chain leads from its start: a delta, None where it stands there.

        Every node adds the same numbers in the same order, so all have the same bits.

        Raises:
            Refused: a delta of the chain is none of this model.
        """

    def shorten(self, model: Model) -> Keyframe:
        """Return one keyframe for the whole chain; whoever starts from it has the very same bits.

        Raises:
            Refused: a delta of the chain is none of this model.
        """

    def place(self, start: Any, delta: Any) -> Any:
        """Return the weights `start` + `delta`."""
