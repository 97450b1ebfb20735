import math

import numpy as np
import pytest

from hfl_mqtt.learning import codecs, payload
from hfl_mqtt.learning.weights import TensorSpec
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.ladder import CODECS, FIRST, OVERHEAD_BYTES, RUNGS, choose

MB = 1_000_000


def test_where_nothing_is_known_it_begins_in_the_middle() -> None:
    choice = choose(MB, None, None)
    assert (choice.codec, choice.reason) == (FIRST, "goodput not known yet, no budget")


@pytest.mark.parametrize(("rung", "share"), list(enumerate(share for _, share in RUNGS)))
def test_the_most_faithful_rung_within_the_budget_is_taken(rung: int, share: float) -> None:
    just_enough = math.ceil(MB * share) + OVERHEAD_BYTES
    assert choose(MB, None, just_enough).codec == CODECS[rung]
    assert choose(MB, None, just_enough - 1).codec == CODECS[min(rung + 1, len(CODECS) - 1)]


@pytest.mark.parametrize(("rung", "share"), list(enumerate(share for _, share in RUNGS)))
def test_the_most_faithful_rung_that_takes_two_seconds_at_most_is_taken(rung: int, share: float) -> None:
    just_enough = (math.ceil(MB * share) + OVERHEAD_BYTES) / 2
    assert choose(MB, just_enough, None).codec == CODECS[rung]
    assert choose(MB, just_enough - 0.5, None).codec == CODECS[min(rung + 1, len(CODECS) - 1)]


def test_budget_and_goodput_hold_both() -> None:
    assert choose(MB, 1e9, 40_000).codec == choose(MB, None, 40_000).codec != CODECS[0]
    assert choose(MB, 20_000.0, 10**9).codec == choose(MB, 20_000.0, None).codec != CODECS[0]
    assert choose(MB, 20_000.0, 40_000).codec == choose(MB, None, 40_000).codec


def test_where_nothing_is_small_enough_the_smallest_is_taken_and_said_so() -> None:
    choice = choose(MB, 1.0, 10)
    assert choice.codec == CODECS[-1]
    assert choice.reason.startswith("the smallest rung; at most ")
    assert ", budget 0.01 kB, " in choice.reason
    assert choice.reason.endswith(" at 0.001 kB/s")


def test_the_reason_says_what_it_costs_and_what_it_may_cost() -> None:
    needed = (MB * RUNGS[0][1] + OVERHEAD_BYTES) / 1e3
    said = choose(MB, 1e6, 2 * MB).reason
    assert said == f"at most {needed:.3g} kB, budget 2e+03 kB, {needed / 1e3:.2g} s at 1e+03 kB/s"


def test_rungs_go_from_the_most_faithful_to_the_smallest() -> None:
    shares = [share for _, share in RUNGS]
    assert shares == sorted(shares, reverse=True)
    assert FIRST in CODECS


@pytest.mark.parametrize(("codec", "share"), RUNGS)
def test_a_rung_needs_what_the_ladder_says(codec: str, share: float) -> None:
    """Of noise, which compresses least; zstd may add a little to what it cannot pack."""
    size = 100_000
    chain = codecs.parse(codec)
    assert str(chain) == codec, "calls and payloads must say it in the same words"
    noise = {"w": np.random.default_rng(0).standard_normal(size).astype(np.float32)}
    coded = payload.encode(noise, chain, np.random.default_rng(0))
    assert len(coded) <= 4 * size * share + OVERHEAD_BYTES
    assert len(coded) >= 4 * size * share / 2, "a rung that is much smaller is chosen too late"
    assert payload.size_limit({"w": TensorSpec(dtype=np.dtype("f4"), shape=(size,))}, chain) >= len(coded)


def test_every_rung_is_a_codec_of_its_own() -> None:
    assert len(set(ladder.CODECS)) == len(RUNGS)
