"""Deltas, sums and chains as the machines see them: bytes in, bytes out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning import start
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.weights import difference, digest, layout_of
from hfl_mqtt.protocol.messages import Keyframe
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)
NUMBERS = TensorArithmetic()
_IS_ONE: Arithmetic = NUMBERS
CODECS = ["raw", "raw | zstd", "shuffle | zstd", "fp16 | zstd", "bf16 | zstd", "int8 | zstd(3)"]


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def model(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        "conv": rng.standard_normal((8, 3, 3, 3), dtype="f4"),
        "bias": rng.standard_normal(8, dtype="f4"),
        "batches": np.array(seed, dtype="i8"),
    }


BASE = model(0)
LAYOUT = layout_of(BASE)


def delta(seed: int) -> Weights:
    """How far the model of that seed is from the base."""
    return difference(model(seed), BASE)


def keyframe(weights: Weights, *, seed: int | None = None) -> Keyframe:
    data = start.of_weights(weights) if seed is None else start.of_seed(weights, seed)
    size = NUMBERS.model_size(layout_of(weights))
    return Keyframe(run="r1", version=0, digest=digest(weights), size=size, start=data)


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and digest(one) == digest(other)


# ------------------------------------------------------------------ where a model starts


@pytest.mark.parametrize("seed", [None, 7])
def test_an_aggregator_learns_from_a_start_all_but_the_weights(seed: int | None) -> None:
    data = keyframe(BASE, seed=seed).start
    assert NUMBERS.layout(data) == LAYOUT
    assert NUMBERS.start_digest(data) == digest(BASE)
    assert NUMBERS.model_size(LAYOUT) == 4 * (8 * 27 + 8) + 8


def test_a_model_larger_than_this_node_holds_is_refused() -> None:
    data, size = keyframe(BASE).start, NUMBERS.model_size(LAYOUT)
    assert TensorArithmetic(max_model_bytes=size).layout(data) == LAYOUT
    with pytest.raises(Refused, match=f"a model of {size} bytes, at most {size - 1}"):
        TensorArithmetic(max_model_bytes=size - 1).layout(data)


# ------------------------------------------------------------------ sums


@pytest.mark.parametrize("codec", CODECS)
def test_updates_through_a_codec_give_the_mean_within_its_error(codec: str) -> None:
    one, two = delta(1), delta(2)
    total = NUMBERS.accumulator(LAYOUT, (codec,))
    for weight, update in ((1, one), (3, two)):
        total.add(NUMBERS.encode(update, codec, weight), weight)
    assert total.weight == 4
    found = NUMBERS.step(total)
    coarse = {"int8 | zstd(3)": 2 * max(np.abs(update["conv"]).max() for update in (one, two)) / 127}.get(codec, 2e-2)
    exact = (one["conv"] + 3 * two["conv"]) / 4
    assert np.abs(found["conv"] - exact).max() < coarse
    assert np.abs(found["bias"] - (one["bias"] + 3 * two["bias"]) / 4).max() < 1e-6, "tiny tensors pass exactly"
    assert found["batches"] == 2  # 1.75


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_seed_gives_the_same_bytes(codec: str) -> None:
    first, again = (NUMBERS.encode(delta(1), codec, 5) for _ in range(2))
    assert first == again


def test_an_update_in_another_codec_than_asked_is_refused() -> None:
    total = NUMBERS.accumulator(LAYOUT, ("int8 | zstd",))
    with pytest.raises(Refused, match=r"coded in 'raw', asked was int8 \| zstd$"):
        total.add(NUMBERS.encode(delta(1), "raw", 0), 1)


def test_where_each_link_chooses_any_rung_of_the_ladder_adds_up() -> None:
    total = NUMBERS.accumulator(LAYOUT, ladder.CODECS)
    for codec in ladder.CODECS:
        total.add(NUMBERS.encode(delta(1), codec, 0), 1)
    assert total.weight == len(ladder.CODECS)
    with pytest.raises(Refused, match=f"coded in 'raw', asked was {re.escape(' or '.join(ladder.CODECS[:2]))} or"):
        total.add(NUMBERS.encode(delta(1), "raw", 0), 1)


def test_an_update_of_another_model_is_refused() -> None:
    total = NUMBERS.accumulator(layout_of({"w": f4(1, 2)}), ("raw",))
    with pytest.raises(Refused, match="coded for another model: names, shapes or dtypes differ"):
        total.add(NUMBERS.encode({"w": f4(1, 2, 3)}, "raw", 0), 1)


@given(st.binary(max_size=200))
@settings(CALM, max_examples=50)
def test_an_accumulator_refuses_noise_and_stays_as_it_was(noise: bytes) -> None:
    total = NUMBERS.accumulator(LAYOUT, ("raw",))
    with pytest.raises(Refused):
        total.add(noise, 1)
    assert total.weight == 0
    with pytest.raises(Refused):
        NUMBERS.layout(noise)
    with pytest.raises(Refused):
        NUMBERS.decode(noise, LAYOUT)


def test_an_unknown_codec_is_an_error_of_the_configuration() -> None:
    for ask in (
        lambda: NUMBERS.accumulator(LAYOUT, ("int7",)),
        lambda: NUMBERS.is_lossless("int7"),
        lambda: NUMBERS.encode(delta(1), "int7", 0),
        lambda: NUMBERS.update_limit(LAYOUT, ("raw", "int7")),
    ):
        with pytest.raises(ConfigError, match="did you mean 'int8'"):
            ask()


@pytest.mark.parametrize(
    ("codec", "is_lossless"), [("raw", True), ("shuffle | zstd", True), ("fp16", False), ("rot1", False)]
)
def test_it_is_known_which_codecs_lose_something(codec: str, is_lossless: bool) -> None:
    assert NUMBERS.is_lossless(codec) is is_lossless
    found = NUMBERS.decode(NUMBERS.encode(delta(1), codec, 3), LAYOUT)
    assert same(found, delta(1)) is is_lossless
    assert (NUMBERS.carry(delta(1), codec, 3)[2] is None) is is_lossless


@pytest.mark.parametrize("weights", [{}, {"w": f4()}, {"w": f4(1)}, BASE, {"h": np.ones(1000, dtype="f2")}])
def test_the_limit_holds_for_every_registered_codec_alone_and_packed(weights: Weights) -> None:
    noise = {n: np.random.default_rng(1).standard_normal(a.shape).astype(a.dtype) for n, a in weights.items()}
    for name in registry.names("codecs"):
        for codec in (name, f"{name}(0.1)", f"{name} | zstd", f"{name}(0.1) | zstd"):
            try:
                payload = NUMBERS.encode(noise, codec, 0)
            except ConfigError:
                continue  # zstd cannot stand first, some need a number and some take none
            assert len(payload) <= NUMBERS.update_limit(layout_of(weights), (codec,))


def test_the_limit_of_several_codecs_is_that_of_the_largest_and_grows_with_the_model() -> None:
    size = 4_000_000
    layout = layout_of({"w": np.zeros(size // 4, dtype="f4")})
    raw, bits = (NUMBERS.update_limit(layout, (codec,)) for codec in ("raw", "rot1"))
    assert size < raw < 1.01 * size
    assert size / 32 < bits < size / 30
    assert NUMBERS.update_limit(layout, ("rot1", "raw")) == raw


@given(
    clients=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 1000), st.integers(0, 3)), min_size=1, max_size=8)
)
@settings(CALM, max_examples=25)
def test_a_tree_with_one_edge_round_is_flat_fedavg_through_all_codings(clients: list[tuple[int, int, int]]) -> None:
    codec = ("raw | zstd",)
    flat = NUMBERS.accumulator(LAYOUT, codec)
    edges = {edge: NUMBERS.accumulator(LAYOUT, codec) for _, _, edge in clients}
    for seed, weight, edge in clients:
        update = NUMBERS.encode(delta(seed), *codec, 0)
        flat.add(update, weight)
        edges[edge].add(update, weight)
    cloud = NUMBERS.accumulator(LAYOUT, codec)
    for edge_sum in edges.values():
        cloud.add(NUMBERS.encode(NUMBERS.step(edge_sum), *codec, 0), edge_sum.weight)
    assert cloud.weight == flat.weight
    one, other = NUMBERS.step(flat), NUMBERS.step(cloud)
    assert all(np.allclose(one[name], other[name], rtol=1e-6, atol=1e-5) for name in ("conv", "bias"))


# ------------------------------------------------------------------ deltas and chains


def test_deltas_are_added_and_taken_away_number_by_number() -> None:
    one, other = {"w": f4(1, 2), "n": np.array(3)}, {"w": f4(10, 20), "n": np.array(-5)}
    total = NUMBERS.add(one, other)
    assert (total["w"].tolist(), total["n"].item()) == ([11, 22], -2)
    rest = NUMBERS.subtract(total, other)
    assert (rest["w"].tolist(), rest["n"].item()) == ([1, 2], 3)


def test_nothing_is_zero_on_the_left() -> None:
    one = {"w": f4(1, -2)}
    assert NUMBERS.add(None, one)["w"].tolist() == [1, -2]
    assert NUMBERS.subtract(None, one)["w"].tolist() == [-1, 2]


@pytest.mark.parametrize("other", [{"v": f4(1, 2)}, {"w": f4(1)}, {"w": np.array([1.0, 2.0])}])
def test_deltas_of_two_models_cannot_be_added(other: Weights) -> None:
    for act in (NUMBERS.add, NUMBERS.subtract):
        with pytest.raises(Refused, match=r"'w'|'v'"):
            act({"w": f4(1, 2)}, other)


def test_a_delta_moves_a_model_in_its_own_dtypes() -> None:
    weights = {"w": f4(1, 2), "n": np.array(250, dtype="u1"), "on": np.array([True])}
    placed = NUMBERS.place(weights, {"w": f4(0.5, -1), "n": np.array(5), "on": np.array([-1])})
    assert [placed[name].tolist() for name in weights] == [[1.5, 1.0], 255, [False]]
    assert layout_of(placed) == layout_of(weights)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"w": f4(3e38), "n": np.array(0)}, "'w' would leave the range of float32"),
        ({"w": f4(0), "n": np.array(6)}, "'n' would leave the range of uint8"),
        ({"w": f4(0)}, "'n' is missing"),
    ],
)
def test_a_model_does_not_leave_the_range_of_its_numbers(step: Weights, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        NUMBERS.place({"w": f4(3e38), "n": np.array(250, dtype="u1")}, step)


def chain_of(*codecs: str, first: Keyframe | None = None) -> Chain:
    chain = Chain(first or keyframe(BASE))
    for seed, codec in enumerate(codecs, start=1):
        chain.push(NUMBERS.encode(delta(seed), codec, seed))
    return chain


def test_a_chain_without_deltas_leads_to_its_start() -> None:
    chain = chain_of()
    assert NUMBERS.moved(chain.model) is None
    assert same(NUMBERS.weights(chain.model), BASE)


def test_a_chain_is_its_start_and_the_sum_of_what_its_deltas_say() -> None:
    chain = chain_of("rot1", "int8", "raw")
    said = [NUMBERS.decode(link.cut.blob, LAYOUT) for link in chain.links]
    expected = NUMBERS.place(BASE, NUMBERS.add(NUMBERS.add(said[0], said[1]), said[2]))
    assert same(NUMBERS.weights(chain.model), expected)
    by_seed = chain_of("rot1", "int8", "raw", first=keyframe(BASE, seed=0))
    assert same(NUMBERS.weights(by_seed.model, model), expected)


@pytest.mark.parametrize("codecs", [("rot1",) * 5, ("raw", "stc(0.1)", "int4"), ()])
def test_a_chain_made_short_leads_to_the_very_same_bits_and_on_from_there(codecs: tuple[str, ...]) -> None:
    long = chain_of(*codecs)
    short = Chain(NUMBERS.shorten(long.model))
    assert (short.version, short.digest, short.keyframe.start) == (len(codecs), long.digest, long.keyframe.start)
    assert same(NUMBERS.weights(short.model), NUMBERS.weights(long.model))
    for chain in (long, short):
        chain.push(NUMBERS.encode(delta(9), "rot2", 9))
    assert long.digest == short.digest
    assert same(NUMBERS.weights(short.model), NUMBERS.weights(long.model))
    again = Chain(NUMBERS.shorten(short.model))
    assert same(NUMBERS.weights(again.model), NUMBERS.weights(long.model))


def test_a_chain_with_a_link_of_another_model_is_refused() -> None:
    chain = chain_of("raw")
    chain.push(NUMBERS.encode({"w": f4(1)}, "raw", 0))
    with pytest.raises(Refused, match="another model"):
        NUMBERS.shorten(chain.model)
