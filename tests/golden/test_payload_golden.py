"""Encoded weights of earlier versions stay readable, and today's encoders still write them.

`python tests/golden/test_payload_golden.py` writes the files of a new `payload.VERSION`; it never touches an old one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfl_mqtt.learning import payload
from hfl_mqtt.learning.codecs import parse
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.store import Tags, load, save
from hfl_mqtt.learning.weights import digest, layout_of

HERE = Path(__file__).parent
CHAINS = [
    "raw",
    "raw | zstd",
    "shuffle",
    "shuffle | zstd",
    "fp16",
    "fp16 | zstd",
    "bf16",
    "int8",
    "int8(32)",
    "int8 | zstd(1)",
    "int4",
    "int4(17)",
    "topk(0.1)",
    "topk(0.3) | int8 | zstd",
    "stc(0.3)",
    "dz(0.3)",
    "dz(0.2, 3.0) | zstd",
    "rot1",
    "rot2",
    "rot3",
    "rot4",
]
GOLDEN = {path.stem: json.loads(path.read_text()) for path in sorted(HERE.glob("payload_v*.json"))}
CHECKPOINTS = sorted(HERE.glob("checkpoint_v*.safetensors"))


def model() -> Weights:
    """Every dtype, each in a shape of its own; all values are exact in binary."""
    ramp = np.arange(-48, 48) / 64
    return {
        "f4": ramp.astype("f4").reshape(4, 24),
        "f8": ramp,
        "f2": ramp[:70].astype("f2"),
        "tiny": np.array([1.5, -0.0], dtype="f4"),
        "scalar": np.array(0.25, dtype="f4"),
        "none": np.zeros((0, 3), dtype="f4"),
        "b1": np.array([True, False]),
        **{code: np.array([1, 2, 100], dtype=code) for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4")},
    }


@pytest.mark.parametrize(("version", "chain"), [(version, chain) for version in GOLDEN for chain in CHAINS])
def test_old_payloads_are_read_to_the_last_bit(version: str, chain: str) -> None:
    golden = GOLDEN[version][chain]
    layout = layout_of(model())
    compact = payload.decode(bytes.fromhex(golden["compact"]), parse(chain), layout)
    full = payload.decode_full(bytes.fromhex(golden["full"]), 10_000)
    assert digest(compact) == digest(full) == golden["digest"]
    assert list(full) == list(layout)
    if parse(chain).is_lossless:
        assert golden["digest"] == digest(model())


@pytest.mark.parametrize("version", GOLDEN)
def test_old_layouts_are_read(version: str) -> None:
    layout = layout_of(model())
    assert list(payload.decode_layout(bytes.fromhex(GOLDEN[version]["layout"]), 10_000).items()) == list(layout.items())


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if "zstd" not in chain])
def test_today_the_same_bytes_are_written(chain: str) -> None:
    # Zstandard may find a better packing in a later release, so its bytes, and the table it packs, are only read.
    written = payload.encode(model(), parse(chain), np.random.default_rng(1))
    assert written.hex() == GOLDEN[f"payload_v{payload.VERSION}"][chain]["compact"]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=[path.stem for path in CHECKPOINTS])
def test_old_checkpoints_are_read(path: Path) -> None:
    weights, tags = load(path)
    assert digest(weights) == digest(model()) == tags.digest
    assert list(weights) == list(model())
    assert (tags.task, tags.run, tags.round, tags.software) == ("mnist", "r1", "g12", "0.1.0")


def write() -> None:
    path = HERE / f"payload_v{payload.VERSION}.json"
    golden: dict[str, Any] = {"layout": payload.encode_layout(layout_of(model())).hex()}
    for chain in CHAINS:
        compact = payload.encode(model(), parse(chain), np.random.default_rng(1))
        full = payload.encode_full(model(), parse(chain), np.random.default_rng(1))
        found = payload.decode(compact, parse(chain), layout_of(model()))
        golden[chain] = {"digest": digest(found), "compact": compact.hex(), "full": full.hex()}
    with path.open("x") as file:
        file.write(json.dumps(golden, indent=1) + "\n")
    tags = Tags(task="mnist", run="r1", round="g12", digest=digest(model()), software="0.1.0")
    save(HERE / f"checkpoint_v{payload.VERSION}.safetensors", model(), tags)


if __name__ == "__main__":
    write()
