"""Chains as text, and the codecs that lose nothing."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs import ArrayCodec, Flat, Raw, Reader, Shuffle, Zstd, parse
from hfl_mqtt.learning.codecs.exact import AT_ONCE, Frame
from hfl_mqtt.protocol.limits import MAX_CODEC

#: The same examples every time, and no clock on a busy machine.
CALM = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("raw", "raw"),
        ("raw | zstd", "raw | zstd"),
        ("fp16|zstd(3)", "fp16 | zstd"),
        (" int8  |zstd( 19 ) ", "int8 | zstd(19)"),
        ("raw | int8 | zstd()", "raw | int8 | zstd"),
        ("int4(0)", "int4"),
        ("int4(1024)", "int4(1024)"),
        ("topk(.010)|int8|zstd", "topk(0.01) | int8 | zstd"),
        ("topk(1)", "topk(1.0)"),
        ("stc(1e-5)", "stc(1e-05)"),
        ("dz(.15)", "dz(0.15)"),
        ("dz(.15, 1.5)", "dz(0.15)"),
        ("dz(1, 2) | zstd", "dz(1.0, 2.0) | zstd"),
        ("rot1", "rot1"),
        ("topk(0.1) | rot2", "topk(0.1) | rot2"),
        ("shuffle | zstd", "shuffle | zstd"),
    ],
)
def test_a_chain_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int9 | zstd", "codec 'int9 | zstd': no codec is called 'int9', did you mean 'int8'"),
        ("raw | zsdt", "did you mean 'zstd'"),
        ("zstd", "array codecs such as raw or int8 come first"),
        ("raw | zstd | int8", "array codecs such as raw or int8 come first"),
        ("int8 | fp16", "int8 leaves no floats for fp16; drop one of them"),
        ("rot1 | int8", "rot1 leaves no floats for int8; drop one of them"),
        ("raw(1)", "raw takes no options, got 1"),
        ("raw | zstd(1, 2)", "zstd takes level, got 2 options"),
        ("raw | zstd(0)", "zstd takes a level from 1 to 19, not 0"),
        ("raw | zstd(2.5)", "zstd takes a level from 1 to 19, not 2.5"),
        ("raw | zstd(fast)", "'fast' is not a number"),
        ("raw | zstd(nan)", "'nan' is not a finite number"),
        ("topk", "topk takes fraction: write topk(fraction)"),
        ("stc(0)", "stc takes a fraction over 0 and up to 1, not 0"),
        ("dz", "dz takes fraction, step: write dz(fraction)"),
        ("dz(0)", "dz takes a fraction over 0 and up to 1, not 0"),
        ("dz(0.1, 0)", "dz takes a step over 0 and up to 100, not 0"),
        ("dz(0.1, 101)", "dz takes a step over 0 and up to 100, not 101"),
        ("stc(1.5)", "stc takes a fraction over 0 and up to 1, not 1.5"),
        ("int4(8)", "int4 takes a block of 16 to 1048576 values, or 0 for one per tensor"),
        ("int8(16.5)", "int8 takes a block of 16"),
        ("raw || zstd", "'' is not of the form name"),
        ("", "'' is not of the form name"),
        ("raw" + " | zstd" * 8, "9 codecs in a row, at most 8"),
        ("topk(0.12345678901234567)" + " | topk(0.1234567890123456)" * 5, "longer than 120 characters"),
    ],
)
def test_a_wrong_chain_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert reason in str(caught.value)


def test_a_chain_sees_what_its_first_codec_asks_for() -> None:
    assert {text: parse(text).scope for text in ("raw", "int8", "topk(0.1) | int8", "stc(0.1)", "rot1")} == {
        "raw": "tensor",
        "int8": "tensor",
        "topk(0.1) | int8": "model",
        "stc(0.1)": "model",
        "rot1": "model",
    }


def test_only_a_chain_of_lossless_codecs_is_lossless() -> None:
    assert parse("raw | zstd").is_lossless
    assert parse("shuffle | zstd").is_lossless
    assert not parse("fp16 | zstd").is_lossless
    assert len(str(parse("raw"))) < MAX_CODEC


def test_every_registered_codec_says_what_it_is() -> None:
    for name in registry.names("codecs"):
        kind = registry.load("codecs", name)
        assert kind.name == name
        assert kind.__doc__
        assert not issubclass(kind, ArrayCodec) or "byte" in kind.__doc__.lower(), name


@pytest.mark.parametrize("codec", [Raw(), Shuffle()])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_every_bit_comes_back(codec: ArrayCodec, dtype: str) -> None:
    values = np.array([1.5, -0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max], dtype=dtype)
    flat = Flat(dtype=values.dtype, size=values.size)
    side, rest = codec.encode(values, np.random.default_rng(0))
    assert (len(side), Flat(dtype=rest.dtype, size=rest.size)) == codec.outline(flat)
    assert codec.decode(side, rest, flat).tobytes() == values.tobytes()


def test_shuffle_puts_equal_bytes_of_all_values_side_by_side() -> None:
    values = np.array([0x04030201, 0x14131211], dtype="<u4").view("<f4")
    _, rest = Shuffle().encode(values, np.random.default_rng(0))
    assert bytes(rest).hex() == "0111021203130414"


@CALM
@given(st.lists(st.binary(max_size=1000), min_size=1, max_size=4).filter(any))
def test_zstd_gives_the_bytes_back_within_its_limit(parts: list[bytes]) -> None:
    data = b"".join(parts)
    packed = b"".join(Zstd().encode(parts, len(data)))
    assert len(packed) <= Zstd().limit(len(data))
    assert Zstd().decode(packed, len(data)) == data
    for reader in (Zstd().reader(packed, len(data)), Frame(packed, len(data))):
        assert [bytes(reader.take(len(part))) for part in parts] == parts
        reader.finish()


def test_zstd_reads_what_is_small_at_once_and_what_is_large_as_a_stream() -> None:
    for size, is_stream in ((AT_ONCE, False), (AT_ONCE + 1, True)):
        assert isinstance(Zstd().reader(frame(b"a" * size), size), Frame) == is_stream


def frame(data: bytes) -> bytes:
    return b"".join(Zstd().encode([data], len(data)))


def test_zstd_refuses_a_bomb_before_it_goes_off() -> None:
    bomb = frame(b"\0" * 10_000_000)
    assert len(bomb) < 2000
    with pytest.raises(Refused, match="zstd frame of 10000000 bytes, at most 1000"):
        Zstd().decode(bomb, 1000)
    with pytest.raises(Refused, match="zstd frame of 10000000 bytes, at most 1000"):
        Zstd().reader(bomb, 1000)
    with pytest.raises(Refused, match="zstd frame of 10000000 bytes, not 1000"):
        Frame(bomb, 1000)


def test_zstd_refuses_a_frame_that_hides_its_size() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(Refused, match="unknown size"):
        Zstd().decode(hidden, 1000)
    with pytest.raises(Refused, match="unknown size"):
        Zstd().reader(hidden, 3)
    with pytest.raises(Refused, match="unknown size"):
        Frame(hidden, 3)


def test_zstd_refuses_a_frame_of_fewer_bytes() -> None:
    with pytest.raises(Refused, match="a body of 3 bytes, expected 4"):
        Zstd().reader(frame(b"abc"), 4)
    with pytest.raises(Refused, match="zstd frame of 3 bytes, not 4"):
        Frame(frame(b"abc"), 4)


def test_zstd_refuses_a_frame_that_asks_for_a_large_window() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=25, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj(size=40_000_000)
    data = packer.compress(b"\0" * 40_000_000) + packer.flush()
    with pytest.raises(Refused, match="memory"):
        Zstd().reader(data, 40_000_000).take(1)


@pytest.mark.parametrize("data", [b"abc", b""])  # of an empty frame the library forgives what follows
def test_zstd_refuses_bytes_behind_its_frame(data: bytes) -> None:
    with pytest.raises(Refused, match="zstd"):
        Zstd().decode(frame(data) + b"x", 1000)


@pytest.mark.parametrize(
    "tail", [b"x", frame(b"abc"), frame(b""), b"\x28\xb5", b"x" * 100, b"\x50\x2a\x4d\x18\0\0\0\0"]
)
def test_zstd_read_as_a_stream_refuses_bytes_behind_its_frame(tail: bytes) -> None:
    with pytest.raises(Refused, match="the bytes are not one whole frame"):
        Frame(frame(b"abc" * 100) + tail, 300)
    with pytest.raises(Refused, match="zstd"):
        Zstd().reader(frame(b"abc" * 100) + tail, 300)


def test_zstd_read_as_a_stream_refuses_endless_empty_blocks() -> None:
    data = frame(b"abc")
    empty = b"\0\0\0" * 1000
    head = zstandard.frame_header_size(data)
    with pytest.raises(Refused, match="over 64 blocks"):
        Frame(data[:head] + empty + data[head:], 3)


def test_zstd_read_as_a_stream_refuses_a_frame_that_holds_more_than_it_states() -> None:
    longer = bytearray(frame(b"\0" * 200))
    assert longer[5] == 200  # the stated size, in one byte behind magic and descriptor
    longer[5] = 100
    reader = Frame(bytes(longer), 100)
    with pytest.raises(Refused):  # by the library, or by us where it lets that pass
        _all_of(reader, 100)
    with pytest.raises(Refused):
        Zstd().reader(bytes(longer), 100)


def _all_of(reader: Reader, size: int) -> None:
    reader.take(size)
    reader.finish()


def test_zstd_read_as_a_stream_refuses_every_truncation() -> None:
    packed = frame(bytes(range(256)) * 4)
    for end in range(len(packed)):
        with pytest.raises(Refused):
            Frame(packed[:end], 1024).take(1024)
        with pytest.raises(Refused):
            Zstd().reader(packed[:end], 1024)
