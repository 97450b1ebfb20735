"""Codecs: how tensors become few bytes. A chain of them is written as in YAML, `topk(0.01) | int8 | zstd(3)`.

`chain` holds the contract and reads chains; `exact`, `rounding`, `sparse` and `rotated` hold the codecs. To add one:
write one class here or elsewhere, and register it under `hfl_mqtt.codecs`.

Sender and receivers rebuild the same model by decoding, on any processor, for ever. So **decoders compute the same bits
everywhere**: element-wise IEEE operations in a fixed order, and sums only of integers small enough to be exact. What
encoders compute may differ in a last bit from one processor to another; nobody needs it twice.
"""

from hfl_mqtt.learning.codecs.chain import TINY, ArrayCodec, BytesCodec, Chain, Codec, Flat, Reader, parse
from hfl_mqtt.learning.codecs.exact import Raw, Shuffle, Zstd
from hfl_mqtt.learning.codecs.rotated import Rot1, Rot2, Rot3, Rot4, Rotated
from hfl_mqtt.learning.codecs.rounding import Bf16, Fp16, Int4, Int8
from hfl_mqtt.learning.codecs.sparse import Dz, Stc, TopK

__all__ = [
    "TINY",
    "ArrayCodec",
    "Bf16",
    "BytesCodec",
    "Chain",
    "Codec",
    "Dz",
    "Flat",
    "Fp16",
    "Int4",
    "Int8",
    "Raw",
    "Reader",
    "Rot1",
    "Rot2",
    "Rot3",
    "Rot4",
    "Rotated",
    "Shuffle",
    "Stc",
    "TopK",
    "Zstd",
    "parse",
]
