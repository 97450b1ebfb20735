"""`codec: auto`: which rung of a ladder of codecs a link takes, from the model's size, its goodput and a budget.

The most faithful rung is taken that keeps within the budget and takes no longer than `PATIENCE_S` on the link. With
error feedback on each hop, a coarser rung costs some rounds, not accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

#: An update may take this long on its way.
PATIENCE_S = 2.0
#: Chains from the most faithful to the smallest, with bytes per byte of float32 that they need at most.
RUNGS: tuple[tuple[str, float], ...] = (
    ("shuffle | zstd", 0.90),
    ("fp16 | zstd", 0.50),
    ("int8 | zstd", 0.25),
    ("int4 | zstd", 0.125),
    ("rot2", 0.066),
    ("dz(0.2)", 0.036),
    ("dz(0.1)", 0.021),
    ("dz(0.05)", 0.0125),
    ("dz(0.02)", 0.006),
)
CODECS = tuple(codec for codec, _ in RUNGS)
#: What every update has beside its coded values: tiny tensors, scales, metrics.
OVERHEAD_BYTES = 300
#: What is taken where neither budget nor goodput is known yet.
FIRST = "int8 | zstd"


@dataclass(frozen=True, slots=True)
class Choice:
    """A rung, and why it was taken, in words for the metrics."""

    codec: str
    reason: str


def choose(size_bytes: int, goodput: float | None, budget_bytes: int | None) -> Choice:
    """Choose a rung.

    Args:
        size_bytes: of the model's values.
        goodput: bytes per second that the link got through last time; None where that is not known.
        budget_bytes: the most that one update may have; None without a budget.

    >>> choose(200_000, 1e6, None).codec, choose(200_000, 1e6, 10_000).codec, choose(100_000_000, 1e5, None).codec
    ('shuffle | zstd', 'dz(0.2)', 'dz(0.02)')
    """
    if goodput is None and budget_bytes is None:
        return Choice(FIRST, "goodput not known yet, no budget")
    for codec, share in RUNGS:
        needed = size_bytes * share + OVERHEAD_BYTES
        if budget_bytes is not None and needed > budget_bytes:
            continue
        if goodput is not None and needed > goodput * PATIENCE_S:
            continue
        return Choice(codec, _reason(needed, goodput, budget_bytes))
    codec, share = RUNGS[-1]
    return Choice(codec, f"the smallest rung; {_reason(size_bytes * share + OVERHEAD_BYTES, goodput, budget_bytes)}")


def _reason(needed: float, goodput: float | None, budget_bytes: int | None) -> str:
    said = [f"at most {needed / 1e3:.3g} kB"]
    if budget_bytes is not None:
        said.append(f"budget {budget_bytes / 1e3:.3g} kB")
    if goodput is not None:
        said.append(f"{needed / goodput:.2g} s at {goodput / 1e3:.3g} kB/s")
    return ", ".join(said)
