"""A TCP proxy that reads MQTT on its way up, and hands packets on twice, in another order, damaged, or late.

TCP itself does none of this; a broker, a bridge, a router with bad memory or a card does. It can also fall silent, as a
link does whose mast is down: nobody is told, and what was sent arrives once it is back.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
_PUBLISH = 3
#: A packet that is held back for another goes on after this long without one.
_PATIENCE_S = 0.3


@dataclass(frozen=True, slots=True)
class Packet:
    """One MQTT packet, with its fixed header."""

    raw: bytes
    #: Where the variable header begins.
    body_at: int

    @property
    def is_publish(self) -> bool:
        """Whether something is published by it."""
        return self.raw[0] >> 4 == _PUBLISH

    @property
    def topic(self) -> str:
        """What it is published on."""
        size = int.from_bytes(self.raw[self.body_at : self.body_at + 2], "big")
        return self.raw[self.body_at + 2 : self.body_at + 2 + size].decode()

    def with_body(self, body: bytes) -> bytes:
        """Return the packet with another variable header and payload."""
        return self.raw[:1] + _length(len(body)) + body


#: Takes a packet that is to be mangled and those held back, and returns what goes on now.
Mangle = Callable[[Packet, list[bytes]], list[bytes]]


def twice(packet: Packet, held: list[bytes]) -> list[bytes]:
    """Send each packet three times."""
    return [packet.raw] * 3


def in_another_order(packet: Packet, held: list[bytes]) -> list[bytes]:
    """Hold packets back and send them newest first, three at a time."""
    held.insert(0, packet.raw)
    if len(held) < 3:
        return []
    out, held[:] = list(held), []
    return out


def corrupted(chance: random.Random, most: int = 4) -> Mangle:
    """Turn one bit in every other packet's last half, `most` times at most."""
    spoilt: list[Packet] = []

    def mangle(packet: Packet, held: list[bytes]) -> list[bytes]:
        if len(spoilt) >= most or chance.random() < 0.5:
            return [packet.raw]
        spoilt.append(packet)
        body = bytearray(packet.raw[packet.body_at :])
        body[chance.randrange(len(body) // 2, len(body))] ^= 1 << chance.randrange(8)
        return [packet.with_body(bytes(body))]

    return mangle


def cut_short(chance: random.Random, most: int = 4) -> Mangle:
    """Leave away the last third of every other packet, whose own length says so, `most` times at most."""
    spoilt: list[Packet] = []

    def mangle(packet: Packet, held: list[bytes]) -> list[bytes]:
        if len(spoilt) >= most or chance.random() < 0.5:
            return [packet.raw]
        spoilt.append(packet)
        body = packet.raw[packet.body_at :]
        return [packet.with_body(body[: len(body) - len(body) // 3])]

    return mangle


class Mangler:
    """Forward connections to `target_port` until `close`.

    What is published upwards on a topic with `part` in it goes through `mangle`, which may be set and unset at any
    time; `count` says how many packets it got.
    """

    def __init__(self, target_port: int, part: str = "/up/") -> None:
        self.mangle: Mangle | None = None
        self.count = 0
        self._target_port, self._part = target_port, part
        self._carries = threading.Event()
        self._carries.set()
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Carry nothing, and tell nobody."""
        self._carries.clear()

    def come_back(self) -> None:
        """Carry again, first what was sent meanwhile."""
        self._carries.set()

    def close(self) -> None:
        """End everything. Idempotent."""
        self._is_closed = True
        self._carries.set()
        for one in (self._server, *list(self._sockets)):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((HOST, self._target_port))
            except OSError:
                near.close()
                continue
            self._sockets |= {near, far}
            for source, sink, carry in ((near, far, self._up), (far, near, self._down)):
                threading.Thread(target=self._carry, args=(source, sink, carry), daemon=True).start()

    def _carry(
        self, source: socket.socket, sink: socket.socket, carry: Callable[[socket.socket, socket.socket], None]
    ) -> None:
        with suppress(OSError):
            carry(source, sink)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _down(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            self._carries.wait()
            sink.sendall(data)

    def _up(self, source: socket.socket, sink: socket.socket) -> None:
        buffer, held = bytearray(), list[bytes]()
        source.settimeout(_PATIENCE_S)
        while True:
            try:
                data = source.recv(65536)
            except TimeoutError:
                out, held[:] = list(held), []
            else:
                if not data:
                    return
                buffer += data
                out = [one for packet in _packets(buffer) for one in self._through(packet, held)]
            self._carries.wait()
            for one in out:
                sink.sendall(one)

    def _through(self, packet: Packet, held: list[bytes]) -> list[bytes]:
        mangle = self.mangle
        if mangle is None or not packet.is_publish or self._part not in packet.topic:
            return [packet.raw]
        self.count += 1
        return mangle(packet, held)


def _packets(buffer: bytearray) -> list[Packet]:
    """Take all whole packets out of a buffer."""
    found: list[Packet] = []
    while True:
        size, at = 0, 1
        while at < len(buffer):
            size |= (buffer[at] & 0x7F) << (7 * (at - 1))
            at += 1
            if not buffer[at - 1] & 0x80:
                break
        else:
            return found
        if len(buffer) < at + size:
            return found
        found.append(Packet(bytes(buffer[: at + size]), at))
        del buffer[: at + size]


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = size >> 7, size & 0x7F
        out.append(low | (0x80 if size else 0))
        if not size:
            return bytes(out)
