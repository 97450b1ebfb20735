"""What the machines ask of the numbers. The machines never look inside weights: `learning.arithmetic` does."""

from __future__ import annotations

from typing import Any, Protocol


class Accumulator(Protocol):
    """One round's running sum: (sum of weight x delta, sum of weights), exact, in any order of arrival."""

    def add(self, payload: bytes, weight: int) -> None:
        """Add an encoded mean delta with the samples behind it.

        Raises:
            Refused: the payload does not fit the base (names, shapes, dtypes), holds NaN or infinity, is not coded as
                asked, would overflow, or `weight` is not positive. Nothing has been added then.
        """

    @property
    def weight(self) -> int:
        """The sum of weights so far."""


class Arithmetic(Protocol):
    """Weights in and out of bytes, and how updates become a model."""

    def encode_model(self, weights: Any) -> bytes:
        """Return the bytes that go down; decoding them gives `weights` again, bit for bit."""

    def decode_model(self, blob: bytes) -> Any:
        """Read a model.

        Raises:
            Refused: the bytes are no model.
        """

    def digest(self, weights: Any) -> str:
        """Return the SHA-256 of names, dtypes, shapes and values, in hex: the model's identity."""

    def accumulator(self, base: Any, codec: str) -> Accumulator:
        """Return an empty sum for deltas against `base` that come in `codec`."""

    def apply(self, base: Any, accumulator: Accumulator) -> Any:
        """Return the new model. An empty sum gives `base` itself."""

    def encode_delta(self, weights: Any, base: Any, codec: str, seed: int) -> bytes:
        """Return `weights - base`, encoded. `seed` drives codecs that round at random."""

    @property
    def model_codec(self) -> str:
        """The codec of `encode_model`, for the manifest."""

    def update_limit(self, base: Any) -> int:
        """Return the most bytes an encoded delta against `base` may have, whatever the codec."""
