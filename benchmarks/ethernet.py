"""Packets as on an Ethernet: what a benchmark starts inside speaks over a loopback of its own whose packets are small.

The system's loopback has packets of 64 KiB. There, and on no farm, a record of TLS is smaller than a packet, so that
the last one of a message waits for the acknowledgement of the one before it, which waits for 40 ms: Nagle's algorithm,
which Mosquitto's bridges cannot turn off, against delayed acknowledgements.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

#: The largest packet of an Ethernet, in bytes.
MTU = 1500
#: Linux's CLONE_NEWNET, SIOCSIFMTU, SIOCSIFFLAGS, IFF_UP.
_NETWORK, _SET_MTU, _SET_FLAGS, _UP = 0x40000000, 0x8922, 0x8914, 1


@contextmanager
def packets_of_ethernet() -> Iterator[bool]:
    """Give this thread, and all that it starts, a loopback with packets of 1,500 bytes.

    Yields:
        Whether it is so: only root may, and only Linux can; else all stays as it is.
    """
    try:
        libc, own = ctypes.CDLL(None, use_errno=True), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        if libc.unshare(_NETWORK):
            yield False
            return
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, _SET_MTU, struct.pack("16si20x", b"lo", MTU))
                fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", b"lo", _UP))
            yield True
        finally:
            if libc.setns(own, _NETWORK):
                raise OSError(ctypes.get_errno(), "cannot go back to the network")
    finally:
        os.close(own)
