"""A task in closed form: each device pulls the model towards a goal of its own; the best model is the mean of all.

The numbers take microseconds and everything else is real: deltas, codecs, what coding cuts off, digests.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.learning.weights import difference
from hfl_mqtt.protocol.messages import Kind, Tally
from hfl_mqtt.rounds.actions import Contribution, Work

#: Deltas from which on a device makes one keyframe of them, as its worker does.
SHORTEN = 8
#: Models that are kept decoded: devices of one farm are given the same.
MODELS = 16


class Quadratic:
    """What all devices of a federation learn.

    Args:
        size: numbers in the model.
        seed: of the goals.
        share: how far a device goes towards its goal in a round.
    """

    def __init__(self, size: int = 8, seed: int = 0, share: float = 0.5) -> None:
        self.arithmetic = TensorArithmetic()
        self.initial: Weights = {"w": np.zeros(size, np.float32), "steps": np.zeros((), np.int64)}
        self.start = of_weights(self.initial)
        self._seed, self._share = seed, np.float32(share)
        self._models: dict[str, Weights] = {}
        self._goals: dict[str, NDArray[np.float32]] = {}
        #: What coding cut off so far, and from the update that has not counted yet; by device, with its payload's name.
        self._left: dict[str, tuple[str, Weights]] = {}
        self._pending: dict[str, tuple[str, Weights]] = {}

    def samples(self, path: str) -> int:
        """Return how many samples a device has."""
        return 10 + (zlib.crc32(path.encode()) + self._seed) % 90

    def goal(self, path: str) -> NDArray[np.float32]:
        """Return where a device wants the model to be."""
        if path not in self._goals:
            rng = np.random.default_rng([self._seed, zlib.crc32(path.encode())])
            self._goals[path] = rng.standard_normal(self.initial["w"].size).astype(np.float32)
        return self._goals[path]

    def error(self, weights: Weights, devices: Collection[str]) -> float:
        """Return the largest distance of a number of the model from its best value."""
        goals = np.stack([self.goal(path) for path in devices])
        best = np.average(goals, axis=0, weights=[self.samples(path) for path in devices])
        return float(np.abs(weights["w"] - best).max())

    def train(self, path: str, work: Work) -> Contribution:
        """Do a device's work: half the way, or whatever `share` says, to its goal; or say how far that is."""
        if work.is_central:
            return Contribution(payload=b"", weight=0)
        model = self._weights(work)
        distance = self.goal(path) - model["w"]
        samples = self.samples(path)
        tallies = {"distance": Tally(total=float(np.square(distance, dtype=np.float64).sum()) * samples, count=samples)}
        if work.plan.kind is Kind.EVALUATE:
            return Contribution(payload=b"", weight=0, tallies=tallies)
        moved = {"w": model["w"] + self._share * distance, "steps": model["steps"] + 1}
        delta, arithmetic = difference(moved, model), self.arithmetic
        if not arithmetic.is_lossless(work.codec) and path in self._left:
            delta = arithmetic.add(delta, self._left[path][1])
        payload, _, left = arithmetic.carry(delta, work.codec, work.seed)
        if left is not None:
            self._pending[path] = (sha256(payload).hexdigest()[:16], left)
        keyframe = arithmetic.shorten(work.model) if len(work.model.deltas) >= SHORTEN else None
        return Contribution(payload=payload, weight=samples, tallies=tallies, seconds=1.0, keyframe=keyframe)

    def counted(self, path: str, payload: str) -> None:
        """Keep what coding cut off from the update with this payload, which counts; it may be said twice.

        Where that is not known any more, what was cut off before has gone up with it, and is dropped.
        """
        if path in self._pending and self._pending[path][0] == payload:
            self._left[path] = self._pending[path]
        elif path in self._left and self._left[path][0] != payload:
            del self._left[path]

    def forget(self, path: str) -> None:
        """Lose what a device kept."""
        self._left.pop(path, None)
        self._pending.pop(path, None)

    def _weights(self, work: Work) -> Weights:
        digest = work.model.digest
        if digest not in self._models:
            while len(self._models) >= MODELS:
                del self._models[next(iter(self._models))]
            self._models[digest] = self.arithmetic.weights(work.model)
        return self._models[digest]
