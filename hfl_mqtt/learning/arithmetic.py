"""What the machines ask of the numbers, answered with tensors: a strategy over encoded deltas."""

from __future__ import annotations

import numpy as np

from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.codecs import Chain
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.strategies import FedAvg, Strategy, Sum
from hfl_mqtt.learning.weights import Layout, delta_layout, difference, digest, layout_of
from hfl_mqtt.protocol.messages import MAX_BLOB
from hfl_mqtt.rounds.arithmetic import Accumulator

#: Models go down without loss, so that everybody trains from the very same bits.
MODEL_CODEC = "raw | zstd"


class TensorArithmetic:
    """`rounds.arithmetic.Arithmetic` over `dict[str, ndarray]`."""

    def __init__(self, strategy: Strategy | None = None, *, max_model_bytes: int = MAX_BLOB) -> None:
        """Choose the rule, FedAvg by default, and how large a model this node is ready to hold."""
        self._strategy = strategy or FedAvg()
        self._max_model_bytes = max_model_bytes
        self._model_chain = codecs.parse(MODEL_CODEC)

    @property
    def model_codec(self) -> str:
        """The codec of `encode_model`, for the manifest."""
        return str(self._model_chain)

    def encode_model(self, weights: Weights) -> bytes:
        """Return the bytes that go down; decoding them gives `weights` again, bit for bit.

        Raises:
            Refused: the model holds NaN or infinity, or a dtype that cannot travel.
        """
        return payload.encode(weights, self._model_chain, np.random.default_rng(0))

    def decode_model(self, blob: bytes) -> Weights:
        """Read a model into arrays of its own, which may be written to.

        Raises:
            Refused: the bytes are no model, or one larger than `max_model_bytes`.
        """
        views = payload.decode_unknown(blob, self._model_chain, self._max_model_bytes)
        return {name: values.copy() for name, values in views.items()}

    def digest(self, weights: Weights) -> str:
        """Return the SHA-256 of names, dtypes, shapes and values, in hex: the model's identity."""
        return digest(weights)

    def accumulator(self, base: Weights, codec: str) -> Accumulator:
        """Return an empty sum for deltas against `base` that come in `codec`.

        Raises:
            ConfigError: `codec` is no chain of codecs known here.
        """
        return EncodedSum(self._strategy.sum(base), delta_layout(layout_of(base)), codecs.parse(codec))

    def apply(self, base: Weights, accumulator: Accumulator) -> Weights:
        """Return the new model. An empty sum gives `base` itself."""
        assert isinstance(accumulator, EncodedSum), "only accumulators made here can be applied"
        return self._strategy.apply(base, accumulator.total)

    def encode_delta(self, weights: Weights, base: Weights, codec: str, seed: int) -> bytes:
        """Return `weights - base`, encoded. `seed` drives codecs that round at random.

        Raises:
            Refused: the weights do not fit the base, or hold NaN or infinity: training diverged.
            ConfigError: `codec` is no chain of codecs known here.
        """
        chain = codecs.parse(codec)
        return payload.encode(difference(weights, base), chain, np.random.default_rng(seed))

    def update_limit(self, base: Weights) -> int:
        """Return the most bytes an encoded delta against `base` may have, whatever the codec.

        A codec may spend up to 4 bytes beside each value, an index for example, and 1 % on framing.
        """
        deltas = delta_layout(layout_of(base))
        values = sum(spec.size * (spec.dtype.itemsize + 4) for spec in deltas.values())
        names = sum(len(name.encode()) + 256 for name in deltas)
        return 4096 + names + values + values // 100


class EncodedSum:
    """A strategy's sum that takes encoded deltas: `rounds.arithmetic.Accumulator`."""

    def __init__(self, total: Sum, layout: Layout, chain: Chain) -> None:
        self.total = total
        self._layout = layout
        self._chain = chain

    def add(self, payload_bytes: bytes, weight: int) -> None:
        """Decode, check and add; nothing has been added where it raises.

        Raises:
            Refused: see `rounds.arithmetic.Accumulator.add`.
        """
        self.total.add(payload.decode(payload_bytes, self._chain, self._layout), weight)

    @property
    def weight(self) -> int:
        """The sum of weights so far."""
        return self.total.weight
