"""A hundred thousand hostile payloads for each codec: refused, or finite weights of the right kind, and little memory.

`HFL_FUZZ_CASES=100000 python -m pytest tests/unit/learning/test_codecs_fuzz.py` runs them all, in about a minute
and a half on one core; by default each codec gets 2,000. The cases follow from the codec's name alone.
"""

import os
import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from hfl_mqtt import registry
from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.codecs import parse
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.payload import codec_of, decode, decode_full, encode, encode_full, size_limit
from hfl_mqtt.learning.weights import layout_of

CASES = int(os.environ.get("HFL_FUZZ_CASES", "2000"))
#: One chain for each registered codec.
CHAINS = {name: name for name in registry.names("codecs")} | {
    "topk": "topk(0.3)",
    "stc": "stc(0.3)",
    "dz": "dz(0.3)",
    "int8": "int8(16)",
    "zstd": "raw | zstd",
}
#: Bytes that mean something: ends of numbers, NaN and infinity, RLE blocks.
TELLING = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0xF0, 0xC0, 0x7C, 0x03)
FULL_SHARE = 0.04


def weights(seed: int) -> Weights:
    """144 coded values in two tensors, three that pass exactly, and booleans."""
    noise = np.random.default_rng(seed)
    return {
        "w": noise.normal(size=(8, 16)).astype("f4"),
        "a": noise.normal(size=16).astype("f4"),
        "b": noise.normal(size=3).astype("f4"),
        "f": np.array([True, False]),
    }


LAYOUT = layout_of(weights(0))
VALUE_BYTES = sum(spec.size_bytes for spec in LAYOUT.values())


def hostile(valid: list[bytes], head: int, draw: random.Random) -> bytes:
    """Return a mutant of one of `valid`; mostly its first `head` bytes stay, or nothing would be tried behind them."""
    data = bytearray(draw.choice(valid))
    first = 0 if draw.random() < 0.1 else head
    match draw.randrange(7):
        case 0:
            del data[draw.randrange(len(data)) :]
        case 1:
            data += draw.randbytes(draw.randrange(1, 40))
        case 2:
            for _ in range(draw.randrange(1, 5)):
                data[draw.randrange(first, len(data))] ^= 1 << draw.randrange(8)
        case 3:
            for _ in range(draw.randrange(1, 5)):
                data[draw.randrange(first, len(data))] = draw.choice(TELLING)
        case 4:
            other = draw.choice(valid)
            data[draw.randrange(first, len(data)) :] = other[draw.randrange(first, len(other)) :]
        case 5:
            data[first:] = draw.randbytes(len(data) - first if draw.random() < 0.7 else draw.randrange(600))
        case _:
            at, size = draw.randrange(first, len(data)), draw.randrange(1, 30)
            size = min(size, len(data) - at)
            data[at : at + size] = bytes([draw.choice(TELLING)]) * size
    return bytes(data)


def cases(name: str, count: int) -> Iterator[tuple[bytes, bool]]:
    """Return payloads, and whether they are in full form."""
    chain, draw = parse(CHAINS[name]), random.Random(name)
    seeds = range(8)
    compact = [encode(weights(seed), chain, np.random.default_rng(seed)) for seed in seeds]
    full = [encode_full(weights(seed), chain, np.random.default_rng(seed)) for seed in seeds]
    head = 2 + len(str(chain)) + 8
    for _ in range(count):
        is_full = draw.random() < FULL_SHARE
        yield hostile(full if is_full else compact, head, draw), is_full


def survive(data: bytes, name: str, *, is_full: bool) -> bool:
    """Read, and return whether it was accepted."""
    chain = parse(CHAINS[name])
    try:
        found = decode_full(data, VALUE_BYTES, chain) if is_full else decode(data, chain, LAYOUT)
    except Refused as refused:
        assert 0 < len(str(refused)) <= 300  # noqa: PT017 - refusing is allowed, not required
        return False
    if is_full:
        assert sum(values.nbytes for values in found.values()) <= VALUE_BYTES
    else:
        assert layout_of(found) == LAYOUT
        assert len(data) <= size_limit(LAYOUT, chain)
    for values in found.values():
        assert np.isfinite(values).all()
    return True


@pytest.mark.parametrize("name", CHAINS)
def test_every_hostile_payload_is_refused_or_read(name: str) -> None:
    accepted = sum(survive(data, name, is_full=is_full) for data, is_full in cases(name, CASES))
    # Some must get through, or nothing behind the header would have been tried.
    assert 0 < accepted < CASES


@pytest.mark.parametrize("name", CHAINS)
def test_no_hostile_payload_takes_more_memory_than_a_good_one_might(name: str) -> None:
    batch = list(cases(name, 400))
    for data, is_full in batch:
        survive(data, name, is_full=is_full)  # tables and caches are filled once
    worst = 0
    for data, is_full in batch:
        tracemalloc.start()
        survive(data, name, is_full=is_full)
        worst = max(worst, tracemalloc.get_traced_memory()[1] - len(data))
        tracemalloc.stop()
    # The values, what a codec computes with (8 bytes for each of them, six arrays), and Python's own objects.
    assert worst <= VALUE_BYTES + 144 * 48 + 24_000


def test_the_name_of_a_codec_in_a_hostile_payload_is_known_or_refused() -> None:
    draw = random.Random("names")
    valid = encode(weights(0), parse("topk(0.01) | int8 | zstd"), np.random.default_rng(0))
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(30)] = draw.randrange(256)
        try:
            text = codec_of(bytes(data))
        except Refused:
            continue
        assert str(parse(text)) == text
