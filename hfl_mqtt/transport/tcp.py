"""The true bytes of TCP connections, asked of the kernel: headers, resent packets, TLS and keep-alives included."""

from __future__ import annotations

import socket
import struct

# struct tcp_info of Linux 4.1 and later: tcpi_bytes_acked, then tcpi_bytes_received, both u64.
_BYTES = struct.Struct("=QQ")
_OFFSET = 120
# Its first byte is the state; this one says that the peer has hung up, and we have not yet.
_CLOSE_WAIT = 8


class ByteMeter:
    """Adds up the bytes of one connection after the other. Not thread-safe.

    Bytes out are those the peer's kernel has acknowledged, each once, so what is on its way is not counted yet.
    """

    def __init__(self) -> None:
        self._out = self._in = 0
        self._socket: socket.socket | None = None
        self._is_able = hasattr(socket, "TCP_INFO")

    def attach(self, sock: socket.socket) -> None:
        """Start counting a new connection, one that we opened."""
        self._socket = sock

    def detach(self) -> None:
        """Keep the counts of a connection that is about to be closed."""
        total = self.read()
        self._socket = None
        if total is not None:
            self._out, self._in = total

    def read(self) -> tuple[int, int] | None:
        """Return all bytes (out, in) so far, or None where the platform cannot tell."""
        if self._socket is not None and self._is_able:
            try:
                info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _OFFSET + _BYTES.size)
                acked, received = _BYTES.unpack_from(info, _OFFSET)
            except (OSError, struct.error):
                self._is_able = False
            else:
                # Our SYN counts as one byte out; the FIN of a peer that hung up first as one byte in.
                return self._out + max(acked - 1, 0), self._in + received - (info[0] == _CLOSE_WAIT)
        return (self._out, self._in) if self._is_able else None
