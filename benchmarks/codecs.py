"""How fast updates become bytes and back, on one core, against the same core's plain addition of the same values."""

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
from hfl_mqtt.learning.weights import layout_of

TITLE = "Codecs: one core, updates of normal noise; speeds in MB of fp32 per second"
SIZE_MB = 10.0
#: How many times larger the large update is.
LARGER = 10
REPEATS = 5
TENSORS = 8
#: Options of codecs that have no default, and two that are worth a row of their own.
OPTIONS = {
    "topk": ("topk(0.01) | int8", "topk(0.1)"),
    "stc": ("stc(0.01)", "stc(0.1)"),
    "dz": ("dz(0.03)", "dz(0.15)"),
    "int8": ("int8", "int8(1024)"),
}
#: Measured on the large update too.
LARGE = ("rot1",)
#: What takes the time in encode and in decode, by profile.
BOUNDS = {
    "raw": ("copying into the payload", "looking for NaN; the arrays are views"),
    "shuffle": ("strided copies of bytes", "strided copies of bytes"),
    "fp16": ("conversion to halves", "conversion from halves"),
    "bf16": ("integer rounding, four passes", "shifts and a multiplication"),
    "int8": ("random numbers", "conversion from bytes"),
    "int4": ("random numbers", "a table look-up per byte"),
    "topk": ("the exact choice; packing the gaps at 10 %", "clearing the result; unpacking the gaps at 10 %"),
    "stc": ("the exact choice; packing the gaps at 10 %", "clearing the result; unpacking the gaps at 10 %"),
    "dz": ("packing the places; the exact choice", "unpacking the places"),
    "rot1": ("two matrix products, 192 operations a value", "two matrix products, 192 operations a value"),
    "rot2": ("choosing levels, then the matrix products", "two matrix products, 192 operations a value"),
    "rot3": ("choosing levels, then the matrix products", "two matrix products, 192 operations a value"),
    "rot4": ("choosing levels, then the matrix products", "two matrix products, 192 operations a value"),
}


def measure(size_mb: float = SIZE_MB, repeats: int = REPEATS) -> list[Figure]:
    """Time every registered codec, alone and with zstd, and one on a large update."""
    large = [codecs.parse(text) for text in LARGE]
    return [
        *_measure(chains(), size_mb, repeats, ""),
        *_measure(large, size_mb * LARGER, repeats, f", {size_mb * LARGER:g} MB"),
    ]


def chains() -> list[codecs.Chain]:
    """Return every registered array codec alone, and with zstd behind it where that can win something."""
    found = []
    for name in registry.names("codecs"):
        for text in OPTIONS.get(name, (name,)):
            try:
                alone = codecs.parse(text)
            except ConfigError:
                continue  # one that packs bytes cannot stand alone
            # What a rotation leaves is noise, and places and signs are dense.
            is_dense = isinstance(alone.arrays[0], codecs.Rotated | codecs.Stc | codecs.Dz)
            found += [alone] if is_dense else [alone, codecs.parse(f"{text} | zstd")]
    return found


def _measure(chosen: list[codecs.Chain], size_mb: float, repeats: int, suffix: str) -> list[Figure]:
    rng = np.random.default_rng(7)
    delta = _delta(size_mb, rng)
    layout = layout_of(delta)
    weights = sum(values.size for values in delta.values())
    clock = _Clock(delta, repeats)
    figures = [clock.yardstick(f"numpy's in-place add, the yardstick{suffix}")]
    for chain in chosen:
        coded = payload.encode(delta, chain, rng)
        bounds = BOUNDS.get(chain.arrays[0].name, ("itself", "itself"))
        encode, decode = (f"{bound}; then zstd" if chain.packers else bound for bound in bounds)
        spent = f"{number(len(coded) / weights)} bytes per weight"
        figures += [
            clock.time(f"{chain}: encode{suffix}", partial(payload.encode, delta, chain, rng), spent, encode),
            clock.time(f"{chain}: decode{suffix}", partial(payload.decode, coded, chain, layout), "", decode),
        ]
    return figures


class _Clock:
    """Times acts and, right beside each, numpy's addition: the ratio is of the same moment of a noisy machine."""

    def __init__(self, delta: Weights, repeats: int) -> None:
        self._one = np.concatenate([values.ravel() for values in delta.values()])
        self._other = self._one.copy()
        self._megabytes, self._repeats = self._one.nbytes / 1e6, repeats

    def yardstick(self, what: str) -> Figure:
        """Time the addition itself."""
        speeds = [self._megabytes / self._add_seconds() for _ in range(self._repeats)]
        return spread_of(what, "MB/s", speeds)

    def time(self, what: str, act: Callable[[], object], spent: str, bound: str) -> Figure:
        """Time an act."""
        act()  # the first call pays for pages and tables
        speeds, ratios = [], []
        for _ in range(self._repeats):
            seconds, yardstick = _seconds(act), self._add_seconds()
            speeds.append(self._megabytes / seconds)
            ratios.append(yardstick / seconds)
        text = f"{number(median(ratios))} of the yardstick"
        return spread_of(what, "MB/s", speeds, "; ".join(filter(None, (text, spent, f"bound by {bound}"))))

    def _add_seconds(self) -> float:
        return min(_seconds(lambda: np.add(self._one, self._other, out=self._one)) for _ in range(3))


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _delta(size_mb: float, rng: np.random.Generator) -> Weights:
    each = max(int(size_mb * 1e6 / 4 / TENSORS), 1)
    return {f"layer{index}": rng.normal(0, 1e-3, each).astype("f4") for index in range(TENSORS)}
