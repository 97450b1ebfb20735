"""How fast an aggregator adds raw fp32 updates, on one core, against numpy's in-place add of the same arrays.

And what an update of a small model costs it from bytes to sum, where calls count more than values.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import median

import numpy as np

from benchmarks.figures import Figure, number, spread_of
from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.arithmetic import EncodedSum
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.strategies import FedAvg, FixedPointSum
from hfl_mqtt.learning.weights import layout_of

TITLE = "Aggregation: one core, raw fp32 updates of normal noise; speeds in MB of fp32 per second"
SIZES_MB = (10.0, 100.0)
REPEATS = 13
TENSORS = 8
#: Samples behind the updates of a small farm.
WEIGHTS = (160, 20, 45, 77, 33, 129)
#: The same, one so light that its update counts in another unit than theirs: five of six are shifted.
UNEVEN = (160, 6, 20, 45, 77, 33)
#: Elements of the tensors of a small model, the 44,426-parameter CNN, and how its updates come.
SMALL = (150, 6, 2400, 16, 30_720, 120, 10_080, 84, 840, 10)
SMALL_CODECS = ("raw", "raw | zstd", "int8 | zstd", "rot1", "dz(0.15)")
SMALL_REPEATS = 100


def measure(sizes_mb: tuple[float, ...] = SIZES_MB, repeats: int = REPEATS) -> list[Figure]:
    """Time the sum in its three ways (cells of 4 bytes; with bits shifted; of 8 bytes), and the mean."""
    figures = []
    for size_mb in sizes_mb:
        rng = np.random.default_rng(7)
        each = max(int(size_mb * 1e6 / 4 / TENSORS), 1)
        # One array, so that numpy's add is timed on the very same memory.
        flat = rng.normal(0, 1e-3, TENSORS * each).astype("f4")
        delta = {f"layer{index}": flat[index * each : (index + 1) * each] for index in range(TENSORS)}
        megabytes = flat.nbytes / 1e6
        total = np.zeros_like(flat)
        clock = _Clock(f"{size_mb:.0f} MB", megabytes, partial(np.add, total, flat, out=total))
        figures.append(clock.yardstick(repeats))
        for what, weights, first in (
            ("clients of one weight", (32,), 32),
            ("clients of weights 20 to 160", WEIGHTS, 160),
            ("clients of weights 6 to 160, in two units", UNEVEN, 160),
            ("after an update a million times heavier", (32,), 32_000_000),
        ):
            figures.append(clock.time(f"sum, {what}", _adding(delta, weights, first), repeats))
        mean = FedAvg().sum(layout_of(delta))
        mean.add(delta.items, 32)
        figures.append(clock.time("mean", partial(_mean, mean), repeats))
    return [*figures, *_measure_small()]


def _measure_small() -> list[Figure]:
    """Time one encoded update of a small model, CPU time of this thread."""
    rng = np.random.default_rng(7)
    delta = {f"layer{index}": rng.normal(0, 1e-3, size).astype("f4") for index, size in enumerate(SMALL)}
    layout, figures = layout_of(delta), []
    for text in SMALL_CODECS:
        coded = payload.encode(delta, codecs.parse(text), rng)
        total = EncodedSum(FedAvg().sum(layout), layout, (text,))
        total.add(coded, 32)
        times = []
        for _ in range(SMALL_REPEATS):
            began = time.thread_time()
            total.add(coded, 32)
            times.append((time.thread_time() - began) * 1e6)
        what = f"{sum(SMALL):,} values in {len(SMALL)} tensors: an update in {text}, from bytes to sum"
        figures.append(spread_of(what, "us", times, f"{number(len(coded))} bytes"))
    return figures


def _adding(delta: Weights, weights: tuple[int, ...], first: int) -> Callable[[], None]:
    total: FixedPointSum = FedAvg().sum(layout_of(delta))
    total.add(delta.items, first)
    turns = cycle(weights)
    return lambda: total.add(delta.items, next(turns))


def _mean(total: FixedPointSum) -> None:
    for _ in total.mean_tensors():
        pass


class _Clock:
    """Times acts and, right beside each, numpy's addition: the ratio is of the same moment of a noisy machine."""

    def __init__(self, size: str, megabytes: float, add: Callable[[], object]) -> None:
        self._size, self._megabytes, self._add = size, megabytes, add
        add()  # the first call pays for the pages

    def yardstick(self, repeats: int) -> Figure:
        """Time numpy's addition itself."""
        speeds = [self._megabytes / _seconds(self._add) for _ in range(repeats)]
        return spread_of(f"{self._size}: numpy's in-place add, the yardstick", "MB/s", speeds)

    def time(self, what: str, act: Callable[[], object], repeats: int) -> Figure:
        """Time an act."""
        act()
        speeds, ratios = [], []
        for _ in range(repeats):
            yardstick, seconds = _seconds(self._add), _seconds(act)
            speeds.append(self._megabytes / seconds)
            ratios.append(yardstick / seconds)
        return spread_of(f"{self._size}: {what}", "MB/s", speeds, f"{number(median(ratios))} of the yardstick")


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
