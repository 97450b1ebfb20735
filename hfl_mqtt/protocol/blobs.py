"""Blobs larger than a packet: cut into even parts, put together again within bounds, asked for where missing.

Flow control and repair are one thing: the sender sends the first `WINDOW` parts, the receiver asks for what it wants
next. A part that the receiver already has is a probe and is answered with what is still missing, but only where nothing
came for a while: on a slow link it comes from an ask that was too early, and answering it would bring another. What a
peer declares is checked against the bounds before anything is kept, and a part must have exactly the length that
(size, count) give.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.limits import EXPIRE_S, MAX_ASK, MAX_BLOB, PART_SIZE, WINDOW
from hfl_mqtt.protocol.messages import Buffer, KeyPart, ModelPart, Piece, UpdatePart

#: The longest silence before the missing parts are asked for again, in seconds.
MAX_WAIT_S = 60.0
#: The longest silence before they are asked for once; shorter than between two probes, or these would put it off.
MAX_PATIENCE_S = 45.0


class Full(Malformed):
    """A part of a new blob that there is no room for now; later there may be."""


class Corrupted(Malformed):
    """A whole blob that does not hash to its name: some of it was changed on the way, or its sender says nonsense."""


def digest(blob: Buffer) -> str:
    """Return the SHA-256 of a blob, in hex."""
    return hashlib.sha256(blob).hexdigest()


def next_digest(digest_before: str, frame: str) -> str:
    """Return the digest of the model that a delta leads to: SHA-256 of the digest before and that of the delta's bytes.

    Args:
        digest_before: of the model the delta starts from, in hex.
        frame: the SHA-256 of the delta's bytes, in hex.
    """
    return hashlib.sha256(bytes.fromhex(digest_before) + bytes.fromhex(frame)).hexdigest()


def part_length(size: int, count: int) -> int:
    """Return the length of every part but the last, in bytes."""
    return -(-size // count)


class Held(Protocol):
    """Bytes that lie somewhere else than in memory."""

    def __len__(self) -> int: ...

    def read(self, start: int, size: int) -> bytes:
        """Return some of them."""

    def view(self) -> memoryview:
        """Return all of them; they may be in memory as long as somebody has the view."""


#: Puts a blob away that stands in several pieces, where it is worth it.
Keep = Callable[[Sequence[Buffer]], Buffer | Held]


def in_memory(pieces: Sequence[Buffer]) -> Buffer:
    """Put a blob nowhere: the `Keep` of a node with memory enough."""
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


#: Gives the trailer of a blob for the SHA-256 of what stands before it.
Seal = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Cut:
    """A blob and how it is cut: `count` parts of even length, the last one shorter."""

    held: Buffer | Held = field(repr=False)
    digest: str
    count: int

    @classmethod
    def of(cls, blob: Buffer, part_size: int = PART_SIZE) -> Cut:
        """Cut a blob into parts of at most `part_size` bytes."""
        return cls.kept([blob], in_memory, part_size)

    @classmethod
    def kept(cls, pieces: Sequence[Buffer], keep: Keep, part_size: int = PART_SIZE, *, seal: Seal | None = None) -> Cut:
        """Cut a blob that stands in several pieces, and have it put away; with a trailer, where it is sealed."""
        found = hashlib.sha256()
        for piece in pieces:
            found.update(piece)
        if seal is not None:
            trailer = seal(found.digest())
            found.update(trailer)
            pieces = [*pieces, trailer]
        size = sum(map(len, pieces))
        if not 0 < size <= MAX_BLOB:
            raise ValueError(f"a blob has 1 to {MAX_BLOB} bytes, this one {size}")
        return cls(keep(pieces), found.hexdigest(), -(-size // part_size))

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return len(self.held)

    @property
    def name(self) -> str:
        """What its parts call it."""
        return self.digest[:16]

    @property
    def blob(self) -> Buffer:
        """The blob; of one that was put away, a view to be dropped soon."""
        held = self.held
        return held if isinstance(held, bytes | bytearray | memoryview) else held.view()

    def part(self, index: int) -> bytes:
        """Return the bytes of one part."""
        length, held = part_length(self.size, self.count), self.held
        if isinstance(held, bytes | bytearray | memoryview):
            return bytes(memoryview(held)[index * length : (index + 1) * length])
        return held.read(index * length, min(length, self.size - index * length))

    def piece(self, index: int) -> bytes | Piece:
        """Return one part of many to be read when it is sent; the only one as it is."""
        if self.count == 1:
            return self.part(0)
        length = part_length(self.size, self.count)
        return Piece(min(length, self.size - index * length), partial(self.part, index))


@dataclass(slots=True)
class _Incoming:
    size: int
    count: int
    asked: set[int]
    begun_s: float
    last_progress_s: float
    last_heard_s: float
    last_ask_s: float
    #: How long a silence is none yet on this link: twice the time between two parts.
    patience_s: float
    #: How long to wait for progress this time; doubles with every ask.
    wait_s: float
    #: All parts, each in its place.
    whole: bytearray | memoryview = field(repr=False)
    have: set[int] = field(default_factory=set)

    def missing(self) -> Iterator[int]:
        return (index for index in range(self.count) if index not in self.have)

    def heard(self, now: float, stall_s: float) -> None:
        gap_s = now - self.last_heard_s
        self.patience_s = min(max(stall_s, 2 * gap_s, self.patience_s / 2), MAX_PATIENCE_S)
        self.last_heard_s = now

    def is_quiet(self, now: float) -> bool:
        return now - max(self.last_heard_s, self.last_ask_s) >= self.patience_s

    @property
    def next_ask_s(self) -> float:
        # While duplicates come in, what was asked for may stand in line behind them.
        waited_s = max(self.last_progress_s, self.last_ask_s) + self.wait_s
        return max(waited_s, self.last_heard_s + self.patience_s)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a part led to: the whole `blob` at last with its `digest`, or the parts to ask for next, perhaps none."""

    blob: Buffer | None = None
    digest: str = ""
    #: SHA-256 of the blob without its trailer.
    body_digest: bytes = b""
    ask: tuple[int, ...] = ()
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """A blob that has stalled, and the parts to ask its sender for."""

    sender: str
    blob: str
    parts: tuple[int, ...]


def _room(size: int, count: int) -> bytearray | memoryview:
    """Return zeros in which to put parts together.

    What a peer declares costs nothing until it is sent: the system gives the pages of a private map when something is
    written there, where a bytearray is written to, and so paid for, when it is made.
    """
    if count == 1:
        return bytearray(size)
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Reassembler:
    """Parts of many blobs from many senders, within bounds of size, number and age.

    Args:
        max_blob: most bytes of one blob.
        max_total: most bytes of all blobs that are not complete; beyond it, parts of *new* blobs are refused.
        per_sender: blobs a sender may have open; opening one more drops the one that is longest without progress.
        window: parts a sender sends unasked, None where it sends all.
        stall_s: without progress for this long, or for twice the time between two parts where the link is slow, the
            missing parts are asked for; doubles each time, up to a minute.
        expire_s: without progress for this long, the blob is dropped.
        trailer: bytes at the end of a blob that its `body_digest` leaves out.
    """

    def __init__(
        self,
        *,
        max_blob: int,
        max_total: int,
        per_sender: int = 1,
        window: int | None = WINDOW,
        stall_s: float = 5.0,
        expire_s: float = EXPIRE_S,
        trailer: int = 0,
    ) -> None:
        self.max_blob = max_blob
        self._trailer = trailer
        self._max_total = max_total
        self._per_sender = per_sender
        self._window = window
        self._stall_s = stall_s
        self._expire_s = expire_s
        self._open: dict[tuple[str, str], _Incoming] = {}
        self._promised = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sender: str, part: UpdatePart | ModelPart | KeyPart, now: float) -> Progress:
        """Take a part in.

        Raises:
            Full: a new blob that there is no room for now.
            Malformed: the part contradicts itself, its blob or the bounds. Nothing is kept of it; where the whole blob
                does not hash to its name, nothing is kept of the blob.
        """
        key = (sender, part.blob)
        length = part_length(part.size, part.count)
        last = part.size - length * (part.count - 1)
        expected = length if part.index < part.count - 1 else last
        if part.index >= part.count or last < 1 or len(part.data) != expected:
            raise Malformed(f"part {part.index} of {part.count} has {len(part.data)} bytes, not {expected}")
        incoming = self._open.get(key)
        if incoming is None:
            in_flight = part.count if self._window is None else min(self._window, part.count)
            incoming = self._begin(key, part.size, part.count, in_flight, now)
        elif (incoming.size, incoming.count) != (part.size, part.count):
            raise Malformed("two parts of one blob disagree about its size")
        if part.index in incoming.have:
            was_quiet = incoming.is_quiet(now)
            incoming.heard(now, self._stall_s)
            return Progress(ask=self._ask(incoming, now) if was_quiet else (), is_new=False)
        incoming.heard(now, self._stall_s)
        incoming.whole[part.index * length : part.index * length + expected] = bytes(part.data)
        incoming.have.add(part.index)
        incoming.asked.discard(part.index)
        incoming.last_progress_s = now
        incoming.wait_s = incoming.patience_s
        if len(incoming.have) == incoming.count:
            self.drop(sender, part.blob)
            whole = memoryview(incoming.whole)
            body = max(incoming.size - self._trailer, 0)
            found = hashlib.sha256(whole[:body])
            body_digest = found.digest()
            found.update(whole[body:])
            if not found.hexdigest().startswith(part.blob):
                raise Corrupted("a blob does not hash to its name")
            return Progress(blob=incoming.whole, digest=found.hexdigest(), body_digest=body_digest)
        if self._window is not None and len(incoming.asked) <= self._window // 2:
            return Progress(ask=self._top_up(incoming, self._window))
        return Progress()

    def slow(self, now: float, least_s: float, bytes_per_s: float) -> set[str]:
        """Return whose open blobs have come slower than that, once the first parts have had `least_s`."""
        return {
            sender
            for (sender, _), item in self._open.items()
            if now - item.begun_s > least_s + item.size * len(item.have) / item.count / bytes_per_s
        }

    def drop(self, sender: str, blob: str | None = None) -> None:
        """Forget a blob, or all blobs of a sender."""
        for key in [key for key in self._open if key[0] == sender and blob in (None, key[1])]:
            self._promised -= self._open.pop(key).size

    @property
    def senders(self) -> set[str]:
        """Who has a blob open."""
        return {sender for sender, _ in self._open}

    def is_open(self, sender: str, blob: str) -> bool:
        """Whether a part of this blob has come and others have not."""
        return (sender, blob) in self._open

    def missing(self, sender: str, blob: str) -> tuple[int, ...]:
        """Return the first parts that an open blob lacks, as many as can be asked for; none of a blob unheard of."""
        incoming = self._open.get((sender, blob))
        return () if incoming is None else tuple(islice(incoming.missing(), MAX_ASK))

    def progress(self) -> tuple[int, int] | None:
        """Return how many bytes of the open blobs are here, and all of them; None where none is open."""
        if not self._open:
            return None
        here = sum(item.size * len(item.have) // item.count for item in self._open.values())
        return here, sum(item.size for item in self._open.values())

    def clear(self) -> None:
        """Forget everything."""
        self._open.clear()
        self._promised = 0

    def tick(self, now: float) -> list[Ask]:
        """Return what to ask for because nothing came, and drop what is too old."""
        for key in [key for key, item in self._open.items() if now - item.last_progress_s >= self._expire_s]:
            self.drop(*key)
        asks = []
        for (sender, blob), incoming in self._open.items():
            if now >= incoming.next_ask_s:
                incoming.wait_s = min(incoming.wait_s * 2, MAX_WAIT_S)
                asks.append(Ask(sender, blob, self._ask(incoming, now)))
        return asks

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        return min((item.next_ask_s for item in self._open.values()), default=None)

    def is_arriving(self, now: float, within_s: float) -> bool:
        """Whether parts of an open blob keep coming: one in the last `within_s`, or on a slow link longer ago."""
        return any(now - item.last_heard_s <= max(within_s, item.patience_s) for item in self._open.values())

    def reserve(self, sender: str, blob: str, size: int, count: int, now: float) -> tuple[int, ...]:
        """Make room for a blob that was announced, and return the parts to ask for first.

        Raises:
            Full: there is no room for it now.
            Malformed: it is larger than what makes sense here.
        """
        if (sender, blob) in self._open:
            return ()
        return self._top_up(self._begin((sender, blob), size, count, 0, now), self._window or MAX_ASK)

    def _begin(self, key: tuple[str, str], size: int, count: int, in_flight: int, now: float) -> _Incoming:
        if size > self.max_blob:
            raise Malformed(f"a blob of {size} bytes, at most {self.max_blob} make sense here")
        length = part_length(size, count)
        if length > PART_SIZE or size <= length * (count - 1):
            raise Malformed(f"{size} bytes are not cut into {count} parts of at most {PART_SIZE}")
        own = sorted((item.last_progress_s, other) for other, item in self._open.items() if other[0] == key[0])
        for _, other in own[: max(0, len(own) - self._per_sender + 1)]:
            self.drop(*other)
        if self._promised + size > self._max_total:
            raise Full(f"too much under way: {self._promised} bytes of {self._max_total} are promised already")
        incoming = _Incoming(
            size=size,
            count=count,
            asked=set(range(in_flight)),
            begun_s=now,
            last_progress_s=now,
            last_heard_s=now,
            last_ask_s=now,
            patience_s=self._stall_s,
            wait_s=self._stall_s,
            whole=_room(size, count),
        )
        self._open[key] = incoming
        self._promised += size
        return incoming

    def _ask(self, incoming: _Incoming, now: float) -> tuple[int, ...]:
        incoming.asked.clear()
        incoming.last_ask_s = now
        if self._window is None and len(incoming.have) == 1:
            # How fast the link is, is not known yet: all the rest may be on its way.
            return self._top_up(incoming, WINDOW)
        return self._top_up(incoming, self._window or MAX_ASK)

    @staticmethod
    def _top_up(incoming: _Incoming, window: int) -> tuple[int, ...]:
        wanted = []
        for index in incoming.missing():
            if len(incoming.asked) >= min(window, MAX_ASK):
                break
            if index not in incoming.asked:
                incoming.asked.add(index)
                wanted.append(index)
        return tuple(wanted)
