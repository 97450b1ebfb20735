"""Codecs that lose nothing: the values themselves, their bytes by significance, and Zstandard."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from hfl_mqtt.errors import ConfigError, Refused
from hfl_mqtt.learning.codecs.chain import ArrayCodec, Bytes, BytesCodec, Flat, Reader, Whole
from hfl_mqtt.protocol.limits import MAX_WINDOW

#: Up to so many bytes it is quicker to unpack a frame at once than as a stream.
AT_ONCE = 1 << 18


class _Own(threading.local):
    """Each thread's own unpacker: making one takes longer than unpacking a small update."""

    def __init__(self) -> None:
        self.unpacker = zstandard.ZstdDecompressor()


_own = _Own()


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(ArrayCodec):
    """The values as they are, bit for bit: 4 bytes per float32, no error."""

    name = "raw"
    is_lossless = True
    gives_floats = True

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """No bytes of its own."""
        return 0, values

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Return the values."""
        return b"", values

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:  # noqa: ARG002
        """Return the rest."""
        return rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle(ArrayCodec):
    """All first bytes, then all second bytes, and so on, for `zstd` behind it: 3.3 bytes per float32, no error.

    Sign and exponent of neighbours are alike, mantissas are noise: side by side they hide each other from zstd, which
    takes 14 % off LeNet's float32 deltas as they are and 19 % off shuffled ones (Blosc's filter). Without zstd it wins
    nothing.
    """

    name = "shuffle"
    is_lossless = True

    def outline(self, values: Flat) -> tuple[int, Flat]:
        """No bytes of its own, and the same number of bytes."""
        return 0, Flat(dtype=np.dtype("u1"), size=values.size_bytes)

    def encode(self, values: NDArray[Any], rng: np.random.Generator) -> tuple[bytes, NDArray[Any]]:  # noqa: ARG002
        """Transpose bytes, least significant plane first."""
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        rest = np.empty((values.itemsize, values.size), dtype="u1")
        for plane, one in zip(rest, little.view("u1").reshape(values.size, values.itemsize).T, strict=True):
            plane[:] = one
        return b"", rest.reshape(-1)

    def decode(self, side: Bytes, rest: NDArray[Any], values: Flat) -> NDArray[Any]:  # noqa: ARG002
        """Transpose back."""
        result = np.empty(values.size, dtype=values.dtype.newbyteorder("<"))
        places = result.view("u1").reshape(values.size, values.dtype.itemsize)
        for place, plane in zip(places.T, rest.reshape(values.dtype.itemsize, values.size), strict=True):
            place[:] = plane
        return result.astype(values.dtype, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zstd(BytesCodec):
    """Zstandard (RFC 8878) at `level` 1 to 19, one frame that states its size. Over 3, time is spent for 1 or 2 %."""

    name = "zstd"
    is_lossless = True
    level: int = 3

    def __post_init__(self) -> None:
        if not (isinstance(self.level, int) and 1 <= self.level <= 19):
            raise ConfigError(f"zstd takes a level from 1 to 19, not {self.level}")

    def limit(self, size_bytes: int) -> int:
        """ZSTD_COMPRESSBOUND, rounded up."""
        return size_bytes + (size_bytes >> 8) + 128

    def encode(self, parts: Iterable[Bytes], size_bytes: int) -> Iterator[bytes]:
        """Compress part by part: they need not lie in memory all at once."""
        packer = zstandard.ZstdCompressor(level=self.level).compressobj(size=size_bytes)
        for part in parts:
            yield packer.compress(part)
        yield packer.flush()

    def decode(self, data: Bytes, limit: int) -> bytes:
        """Decompress one frame and nothing else. It must state its size, so a bomb is refused before it goes off."""
        try:
            stated = zstandard.frame_content_size(data)
            if not 0 < stated <= limit:  # an empty frame would let anything stand behind it
                raise Refused(f"zstd frame of {'unknown size' if stated < 0 else f'{stated} bytes'}, at most {limit}")
            return _own.unpacker.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Refused(f"zstd: {str(error)[:100]}") from None

    def reader(self, data: Bytes, size_bytes: int) -> Reader:
        """Decompress what is small at once, else as it is read, with a window of at most 8 MiB."""
        if size_bytes <= AT_ONCE:
            return Whole(self.decode(data, size_bytes), size_bytes)
        return Frame(data, size_bytes)


class Frame(Reader):
    """One frame that states exactly the right size, read as a stream."""

    def __init__(self, data: Bytes, size_bytes: int) -> None:
        """Look at its headers; `Refused` where they are not those of such a frame."""
        try:
            stated = zstandard.frame_content_size(data)
            if stated != size_bytes:
                raise Refused(f"zstd frame of {'unknown size' if stated < 0 else f'{stated} bytes'}, not {size_bytes}")
            if _frame_end(data, most_blocks=size_bytes // 256 + 64) != len(data):
                raise Refused("zstd: the bytes are not one whole frame")
            self._stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(data)
        except zstandard.ZstdError as error:
            raise Refused(f"zstd: {str(error)[:100]}") from None

    def take(self, size: int) -> memoryview:
        """Decompress into memory of its own."""
        buffer = np.empty(size, dtype="u1").data
        filled = 0
        try:
            while filled < size:
                count = self._stream.readinto(buffer[filled:])
                if count == 0:
                    raise Refused(f"zstd: the frame ends {size - filled} bytes early")
                filled += count
        except zstandard.ZstdError as error:
            raise Refused(f"zstd: {str(error)[:100]}") from None
        return buffer

    def finish(self) -> None:
        """The frame holds no more than it states, and its checksum, if it has one, is right."""
        try:
            if self._stream.read(1):
                raise Refused("zstd: the frame holds more than it states")
        except zstandard.ZstdError as error:
            raise Refused(f"zstd: {str(error)[:100]}") from None


def _frame_end(data: Bytes, most_blocks: int) -> int:
    """Return where a frame ends, by the headers of its blocks (RFC 8878, 3.1.1): streams do not say what they left."""
    view = memoryview(data)
    at = zstandard.frame_header_size(data)
    for _ in range(most_blocks):
        head = int.from_bytes(view[at : at + 3], "little")
        at += 3 + (1 if head >> 1 & 3 == 1 else head >> 3)  # a block of one byte repeated is one byte
        if head & 1:
            return at + 4 * zstandard.get_frame_parameters(data).has_checksum
    raise Refused(f"zstd: over {most_blocks} blocks")
