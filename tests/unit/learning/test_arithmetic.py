"""Models and updates as the machines see them: bytes in, bytes out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.rounds.arithmetic import Arithmetic

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)
NUMBERS: Arithmetic = TensorArithmetic()
CODECS = ["raw", "raw | zstd", "fp16 | zstd", "int8 | zstd(3)"]


def f4(*values: float) -> NDArray[Any]:
    return np.array(values, dtype="f4")


def model(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        "conv": rng.standard_normal((8, 3, 3, 3), dtype="f4"),
        "bias": rng.standard_normal(8, dtype="f4"),
        "batches": np.array(seed, dtype="i8"),
    }


def test_a_model_comes_back_bit_for_bit_and_may_be_written_to() -> None:
    blob = NUMBERS.encode_model(model(1))
    found = NUMBERS.decode_model(blob)
    assert NUMBERS.digest(found) == NUMBERS.digest(model(1))
    found["conv"] += 1
    assert NUMBERS.digest(NUMBERS.decode_model(blob)) == NUMBERS.digest(model(1))


def test_the_codec_of_models_is_lossless_and_said_in_the_manifest() -> None:
    assert NUMBERS.model_codec == "raw | zstd"


def test_a_model_larger_than_this_node_holds_is_refused() -> None:
    blob = NUMBERS.encode_model(model(1))
    size = sum(values.nbytes for values in model(1).values())
    assert NUMBERS.digest(TensorArithmetic(max_model_bytes=size).decode_model(blob)) == NUMBERS.digest(model(1))
    with pytest.raises(Refused, match=f"a model of {size} bytes, at most {size - 1}"):
        TensorArithmetic(max_model_bytes=size - 1).decode_model(blob)


@pytest.mark.parametrize("codec", CODECS)
def test_updates_through_a_codec_give_the_mean_within_its_error(codec: str) -> None:
    base, one, two = model(0), model(1), model(2)
    total = NUMBERS.accumulator(base, codec)
    for weight, weights in ((1, one), (3, two)):
        total.add(NUMBERS.encode_delta(weights, base, codec, weight), weight)
    assert total.weight == 4
    found = NUMBERS.apply(base, total)
    step = 2 * np.abs(one["conv"]).max() * 2 / 127
    assert np.abs(found["conv"] - (one["conv"] + 3 * two["conv"]) / 4).max() < (step if "int8" in codec else 1e-2)
    assert np.abs(found["bias"] - (one["bias"] + 3 * two["bias"]) / 4).max() < 1e-6
    assert found["batches"] == 2  # 1.75


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_seed_gives_the_same_bytes(codec: str) -> None:
    first, again = (NUMBERS.encode_delta(model(1), model(0), codec, 5) for _ in range(2))
    assert first == again


def test_an_update_in_another_codec_than_asked_is_refused() -> None:
    total = NUMBERS.accumulator(model(0), "int8 | zstd")
    with pytest.raises(Refused, match=r"coded in 'raw', asked was 'int8 \| zstd'"):
        total.add(NUMBERS.encode_delta(model(1), model(0), "raw", 0), 1)


def test_an_update_of_another_model_is_refused() -> None:
    total = NUMBERS.accumulator({"w": f4(1, 2)}, "raw")
    with pytest.raises(Refused, match=r"'w' is float32\[3\], expected float32\[2\]"):
        total.add(NUMBERS.encode_delta({"w": f4(1, 2, 3)}, {"w": f4(1, 2, 3)}, "raw", 0), 1)


@given(st.binary(max_size=200))
@settings(CALM, max_examples=50)
def test_an_accumulator_refuses_noise_and_stays_as_it_was(noise: bytes) -> None:
    total = NUMBERS.accumulator(model(0), "raw")
    with pytest.raises(Refused):
        total.add(noise, 1)
    assert total.weight == 0
    with pytest.raises(Refused):
        NUMBERS.decode_model(noise)


def test_an_unknown_codec_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        NUMBERS.accumulator(model(0), "int7")


def test_an_empty_sum_gives_the_base_itself() -> None:
    base = model(0)
    assert NUMBERS.apply(base, NUMBERS.accumulator(base, "raw")) is base


@pytest.mark.parametrize("weights", [{}, {"w": f4()}, {"w": f4(1)}, model(0), {"h": np.ones(1000, dtype="f2")}])
def test_the_limit_holds_for_every_registered_codec_alone_and_packed(weights: Weights) -> None:
    noise = {n: np.random.default_rng(1).standard_normal(a.shape).astype(a.dtype) for n, a in weights.items()}
    limit = NUMBERS.update_limit(weights)
    for name in registry.names("codecs"):
        for codec in (name, f"{name} | zstd"):
            try:
                payload = NUMBERS.encode_delta(noise, weights, codec, 0)
            except ConfigError:
                continue  # zstd cannot stand first
            assert len(payload) <= limit


def test_the_limit_grows_with_the_model_and_not_much_faster() -> None:
    size = 4_000_000
    assert size < NUMBERS.update_limit({"w": np.zeros(size // 4, dtype="f4")}) < 2.1 * size


@given(
    clients=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 1000), st.integers(0, 3)), min_size=1, max_size=8)
)
@settings(CALM, max_examples=25)
def test_a_tree_with_one_edge_round_is_flat_fedavg_through_all_codings(clients: list[tuple[int, int, int]]) -> None:
    base, codec = model(0), "raw | zstd"
    flat = NUMBERS.accumulator(base, codec)
    edges = {edge: NUMBERS.accumulator(base, codec) for _, _, edge in clients}
    for seed, weight, edge in clients:
        update = NUMBERS.encode_delta(model(seed), base, codec, 0)
        flat.add(update, weight)
        edges[edge].add(update, weight)
    cloud = NUMBERS.accumulator(base, codec)
    for edge_sum in edges.values():
        cloud.add(NUMBERS.encode_delta(NUMBERS.apply(base, edge_sum), base, codec, 0), edge_sum.weight)
    assert cloud.weight == flat.weight
    one, other = NUMBERS.apply(base, flat), NUMBERS.apply(base, cloud)
    assert all(np.allclose(one[name], other[name], rtol=1e-6, atol=1e-6) for name in ("conv", "bias"))
