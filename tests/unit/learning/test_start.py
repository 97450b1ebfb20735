"""Where a run's model starts: its weights, or the seed from which a task builds the very same."""

from __future__ import annotations

import numpy as np
import pytest

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning import start
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import Start
from hfl_mqtt.learning.weights import digest, layout_of
from hfl_mqtt.protocol.limits import MAX_BLOB

#: 10 float32, an int64 and a boolean: 49 bytes.
SIZE = 49


def built(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((2, 5), dtype="f4"),
        "steps": np.array(seed, dtype="i8"),
        "is_on": np.array([True]),
    }


def test_weights_come_back_bit_for_bit_and_may_be_written_to() -> None:
    data = start.of_weights(built(3))
    found = Start.read(data, MAX_BLOB)
    weights = found.weights()
    assert found.seed is None
    assert found.digest == digest(built(3)) == digest(weights)
    assert list(weights) == list(built(3))
    weights["w"] += 1
    assert digest(found.weights()) == found.digest


def test_a_seed_is_a_digest_a_number_and_a_table_and_no_weights() -> None:
    large: Weights = {"w": np.zeros(100_000, dtype="f4")}
    data = start.of_seed(large, 7)
    assert data[:1] == b"S"
    assert data[1:33].hex() == digest(large)
    assert int.from_bytes(data[33:41], "little") == 7
    assert len(data) < 41 + 20


def test_a_seed_is_built_by_the_task_and_must_give_the_same_weights() -> None:
    found = Start.read(start.of_seed(built(2**53), 2**53), MAX_BLOB)
    asked: list[int] = []

    def build(seed: int) -> Weights:
        asked.append(seed)
        return built(seed)

    assert digest(found.weights(build)) == found.digest == digest(built(2**53))
    assert asked == [2**53]


def test_other_weights_of_the_same_seed_are_refused_with_the_remedy() -> None:
    found = Start.read(start.of_seed(built(1), 1), MAX_BLOB)
    with pytest.raises(Refused, match=r"built here from seed 1: .* set `initial: weights` in the cloud's YAML"):
        found.weights(lambda seed: built(seed + 1))


def test_weights_that_are_not_what_their_digest_says_are_refused() -> None:
    data = bytearray(start.of_weights(built(1)))
    data[1] ^= 1
    with pytest.raises(Refused, match="the initial model is another one than its bytes say"):
        Start.read(data, MAX_BLOB).weights()


def test_where_there_is_no_task_a_seed_is_not_enough() -> None:
    with pytest.raises(Refused, match="starts from a seed, and there is no task here"):
        Start.read(start.of_seed(built(1), 1), MAX_BLOB).weights()


@pytest.mark.parametrize("data", [start.of_weights(built(1)), start.of_seed(built(1), 1)])
def test_names_dtypes_and_shapes_are_there_either_way(data: bytes) -> None:
    assert Start.read(data, MAX_BLOB).layout == layout_of(built(1))


@pytest.mark.parametrize("data", [start.of_weights(built(1)), start.of_seed(built(1), 1)])
def test_a_model_larger_than_this_node_takes_is_refused(data: bytes) -> None:
    assert Start.read(data, SIZE).layout == layout_of(built(1))
    with pytest.raises(Refused, match=f"{SIZE} bytes, at most {SIZE - 1}"):
        Start.read(data, SIZE - 1)


@pytest.mark.parametrize("whole", [start.of_weights(built(1)), start.of_seed(built(1), 1)])
def test_a_start_that_is_cut_off_is_refused(whole: bytes) -> None:
    for size in range(len(whole)):
        with pytest.raises(Refused):
            Start.read(whole[:size], MAX_BLOB).weights(built)


@pytest.mark.parametrize(
    "data", [b"", b"X" * 100, b"W" + bytes(32), b"S" + bytes(40), b"W" + bytes(32) + b"\x81\x04no"]
)
def test_what_is_no_start_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        Start.read(data, MAX_BLOB)


def test_a_model_that_is_no_number_does_not_start() -> None:
    with pytest.raises(Refused, match="'w' holds NaN or infinity"):
        start.of_weights({"w": np.array([np.nan], dtype="f4")})
