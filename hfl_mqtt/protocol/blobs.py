"""Blobs larger than a packet: cut into even parts, put together again within bounds, asked for where missing.

Flow control and repair are one thing: the sender sends the first `WINDOW` parts, the receiver asks for what it wants
next. A part that the receiver already has is a probe and is answered with what is still missing, but only where nothing
came for a while: on a slow link it comes from an ask that was too early, and answering it would bring another. What a
peer declares is checked against the bounds before anything is kept, and a part must have exactly the length that
(size, count) give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.messages import MAX_BLOB, PART_SIZE, ModelPart, UpdatePart

#: Parts under way at a time; the receiver tops up when half of them have arrived.
WINDOW = 4
#: Most parts asked for in one message.
MAX_ASK = 64
#: The longest silence before the missing parts are asked for again, in seconds.
MAX_WAIT_S = 60.0
#: The longest silence before they are asked for once; shorter than between two probes, or these would put it off.
MAX_PATIENCE_S = 45.0


class Full(Malformed):
    """A part of a new blob that there is no room for now; later there may be."""


def digest(blob: bytes) -> str:
    """Return the SHA-256 of a blob, in hex."""
    return hashlib.sha256(blob).hexdigest()


def part_length(size: int, count: int) -> int:
    """Return the length of every part but the last, in bytes."""
    return -(-size // count)


@dataclass(frozen=True, slots=True)
class Cut:
    """A blob and how it is cut: `count` parts of even length, the last one shorter."""

    blob: bytes = field(repr=False)
    digest: str
    count: int

    @classmethod
    def of(cls, blob: bytes, part_size: int = PART_SIZE) -> Cut:
        """Cut a blob into parts of at most `part_size` bytes."""
        if not 0 < len(blob) <= MAX_BLOB:
            raise ValueError(f"a blob has 1 to {MAX_BLOB} bytes, this one {len(blob)}")
        return cls(blob, digest(blob), -(-len(blob) // part_size))

    def part(self, index: int) -> bytes:
        """Return the bytes of one part."""
        length = part_length(len(self.blob), self.count)
        return self.blob[index * length : (index + 1) * length]


@dataclass(slots=True)
class _Incoming:
    size: int
    count: int
    asked: set[int]
    last_progress_s: float
    last_heard_s: float
    last_ask_s: float
    #: How long a silence is none yet on this link: twice the time between two parts.
    patience_s: float
    #: How long to wait for progress this time; doubles with every ask.
    wait_s: float
    parts: dict[int, bytes] = field(default_factory=dict)

    def missing(self) -> Iterator[int]:
        return (index for index in range(self.count) if index not in self.parts)

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
    """What a part led to: the whole `blob` at last, or the parts to ask for next, perhaps none."""

    blob: bytes | None = None
    ask: tuple[int, ...] = ()
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """A blob that has stalled, and the parts to ask its sender for."""

    sender: str
    blob: str
    parts: tuple[int, ...]


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
    """

    def __init__(
        self,
        *,
        max_blob: int,
        max_total: int,
        per_sender: int = 1,
        window: int | None = WINDOW,
        stall_s: float = 5.0,
        expire_s: float = 600.0,
    ) -> None:
        self.max_blob = max_blob
        self._max_total = max_total
        self._per_sender = per_sender
        self._window = window
        self._stall_s = stall_s
        self._expire_s = expire_s
        self._open: dict[tuple[str, str], _Incoming] = {}
        self._promised = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sender: str, part: UpdatePart | ModelPart, now: float) -> Progress:
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
            incoming = self._begin(key, part, now)
        elif (incoming.size, incoming.count) != (part.size, part.count):
            raise Malformed("two parts of one blob disagree about its size")
        if part.index in incoming.parts:
            was_quiet = incoming.is_quiet(now)
            incoming.heard(now, self._stall_s)
            return Progress(ask=self._ask(incoming, now) if was_quiet else (), is_new=False)
        incoming.heard(now, self._stall_s)
        incoming.parts[part.index] = part.data
        incoming.asked.discard(part.index)
        incoming.last_progress_s = now
        incoming.wait_s = incoming.patience_s
        if len(incoming.parts) == incoming.count:
            self.drop(sender, part.blob)
            blob = b"".join(incoming.parts[index] for index in range(incoming.count))
            if digest(blob) != part.blob:
                raise Malformed("a blob does not hash to its name")
            return Progress(blob=blob)
        if self._window is not None and len(incoming.asked) <= self._window // 2:
            return Progress(ask=self._top_up(incoming, self._window))
        return Progress()

    def drop(self, sender: str, blob: str | None = None) -> None:
        """Forget a blob, or all blobs of a sender."""
        for key in [key for key in self._open if key[0] == sender and blob in (None, key[1])]:
            self._promised -= self._open.pop(key).size

    def is_open(self, sender: str, blob: str) -> bool:
        """Whether a part of this blob has come and others have not."""
        return (sender, blob) in self._open

    def missing(self, sender: str, blob: str) -> tuple[int, ...]:
        """Return the first parts that an open blob lacks, as many as can be asked for; none of a blob unheard of."""
        incoming = self._open.get((sender, blob))
        return () if incoming is None else tuple(islice(incoming.missing(), MAX_ASK))

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

    def _begin(self, key: tuple[str, str], part: UpdatePart | ModelPart, now: float) -> _Incoming:
        if part.size > self.max_blob:
            raise Malformed(f"a blob of {part.size} bytes, at most {self.max_blob} make sense here")
        own = sorted((item.last_progress_s, other) for other, item in self._open.items() if other[0] == key[0])
        for _, other in own[: max(0, len(own) - self._per_sender + 1)]:
            self.drop(*other)
        if self._promised + part.size > self._max_total:
            raise Full(f"too much under way: {self._promised} bytes of {self._max_total} are promised already")
        in_flight = part.count if self._window is None else min(self._window, part.count)
        incoming = _Incoming(
            size=part.size,
            count=part.count,
            asked=set(range(in_flight)),
            last_progress_s=now,
            last_heard_s=now,
            last_ask_s=now,
            patience_s=self._stall_s,
            wait_s=self._stall_s,
        )
        self._open[key] = incoming
        self._promised += part.size
        return incoming

    def _ask(self, incoming: _Incoming, now: float) -> tuple[int, ...]:
        incoming.asked.clear()
        incoming.last_ask_s = now
        if self._window is None and len(incoming.parts) == 1:
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
