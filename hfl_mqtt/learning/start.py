"""The weights that a run starts from, as bytes: themselves, or where a task builds the same ones, the seed.

    "W" digest  weights as a full payload         "S" digest  seed  table of names, dtypes and shapes

`digest` is the SHA-256 of the weights; who builds them from a seed compares. An aggregator that only adds deltas needs
the table and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import Layout, digest, layout_of
from hfl_mqtt.protocol.messages import Buffer

_WEIGHTS, _SEED = b"W", b"S"
_HEAD, _NUMBER = 33, 8
#: How weights that are sent are coded.
CODEC = "shuffle | zstd"


def of_weights(weights: Weights) -> bytes:
    """Return the start that says the weights themselves.

    Raises:
        Refused: they hold NaN or infinity, or a dtype that cannot travel.
    """
    coded = payload.encode_full(weights, codecs.parse(CODEC), np.random.default_rng(0))
    return b"".join([_WEIGHTS, bytes.fromhex(digest(weights)), coded])


def of_seed(weights: Weights, seed: int) -> bytes:
    """Return the start that says only the seed from which a task builds these weights."""
    table = payload.encode_layout(layout_of(weights))
    return b"".join([_SEED, bytes.fromhex(digest(weights)), seed.to_bytes(_NUMBER, "little"), table])


@dataclass(frozen=True, slots=True)
class Start:
    """A start, taken apart as far as it can be without decoding weights."""

    digest: str
    layout: Layout
    seed: int | None
    _coded: memoryview
    _max_bytes: int

    @classmethod
    def read(cls, data: Buffer, max_bytes: int) -> Start:
        """Take a start apart.

        Raises:
            Refused: it is none, or of a model with more than `max_bytes` of values.
        """
        view = memoryview(data)
        kind, name, rest = bytes(view[:1]), bytes(view[1:_HEAD]), view[_HEAD:]
        if len(name) != _HEAD - 1 or kind not in (_WEIGHTS, _SEED):
            raise Refused("not the start of a model")
        if kind == _WEIGHTS:
            return cls(name.hex(), payload.read_layout(rest, max_bytes), None, rest, max_bytes)
        layout = payload.decode_layout(rest[_NUMBER:], max_bytes)
        return cls(name.hex(), layout, int.from_bytes(rest[:_NUMBER], "little"), rest, max_bytes)

    def weights(self, build: Callable[[int], Weights] | None = None) -> Weights:
        """Return the weights, in arrays of their own.

        Args:
            build: a task's own way from a seed to weights; None where there is no task.

        Raises:
            Refused: they are no weights, have another digest, or only a seed is given and nothing to build from.
        """
        if self.seed is None:
            found = {name: values.copy() for name, values in payload.decode_full(self._coded, self._max_bytes).items()}
        elif build is None:
            raise Refused("the model starts from a seed, and there is no task here to build it")
        else:
            found = build(self.seed)
        if digest(found) != self.digest:
            how = (
                "its bytes say"
                if self.seed is None
                else f"built here from seed {self.seed}: this device's torch differs"
            )
            raise Refused(f"the initial model is another one than {how}; set `initial: weights` in the cloud's YAML")
        return found
