"""How fast updates become bytes and back, on one core, against the same core's plain addition."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np

from benchmarks.figures import Figure, number, spread_of
from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.strategies import FedAvg
from hfl_mqtt.learning.weights import delta_layout, layout_of

TITLE = "Codecs: one core, a 10 MB update of normal noise; speeds in MB of fp32 per second"
SIZE_MB = 10.0
REPEATS = 5
TENSORS = 8


def measure(size_mb: float = SIZE_MB, repeats: int = REPEATS) -> list[Figure]:
    """Time every registered codec, alone and with zstd, and the aggregator's exact sum."""
    rng = np.random.default_rng(7)
    delta = _delta(size_mb, rng)
    layout = delta_layout(layout_of(delta))
    megabytes = sum(values.nbytes for values in delta.values()) / 1e6
    clock = _Clock(delta, megabytes, repeats)
    total = FedAvg().sum({name: np.zeros_like(values) for name, values in delta.items()})
    figures = [clock.yardstick(), clock.time("an aggregator's exact sum", lambda: total.add(delta, 32))]
    for chain in chains():
        coded = payload.encode(delta, chain, rng)
        percent = 100 * len(coded) / 1e6 / megabytes
        figures += [
            clock.time(f"{chain}: encode", partial(payload.encode, delta, chain, rng), f"{percent:.3g} % of fp32"),
            clock.time(f"{chain}: decode", partial(payload.decode, coded, chain, layout)),
        ]
    return figures


def chains() -> list[codecs.Chain]:
    """Return every registered array codec alone and with zstd behind it."""
    found = []
    for name in registry.names("codecs"):
        for text in (name, f"{name} | zstd"):
            try:
                found.append(codecs.parse(text))
            except ConfigError:
                continue  # one that packs bytes cannot stand alone
    return found


class _Clock:
    """Times acts and, right beside each, numpy's addition: the ratio is of the same moment of a noisy machine."""

    def __init__(self, delta: Weights, megabytes: float, repeats: int) -> None:
        self._one = np.concatenate([values.ravel() for values in delta.values()])
        self._other = self._one.copy()
        self._megabytes, self._repeats = megabytes, repeats

    def yardstick(self) -> Figure:
        """Time the addition itself."""
        speeds = [self._megabytes / self._add_seconds() for _ in range(self._repeats)]
        return spread_of("numpy's in-place add, the yardstick", "MB/s", speeds)

    def time(self, what: str, act: Callable[[], object], note: str = "") -> Figure:
        """Time an act."""
        act()  # the first call pays for pages and tables
        speeds, ratios = [], []
        for _ in range(self._repeats):
            seconds, yardstick = _seconds(act), self._add_seconds()
            speeds.append(self._megabytes / seconds)
            ratios.append(yardstick / seconds)
        text = f"{number(median(ratios))} of the yardstick"
        return spread_of(what, "MB/s", speeds, "; ".join(filter(None, (text, note))))

    def _add_seconds(self) -> float:
        return min(_seconds(lambda: np.add(self._one, self._other, out=self._one)) for _ in range(3))


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _delta(size_mb: float, rng: np.random.Generator) -> Weights:
    each = max(int(size_mb * 1e6 / 4 / TENSORS), 1)
    return {f"layer{index}": rng.normal(0, 1e-3, each).astype("f4") for index in range(TENSORS)}
