"""The relay that plays the WAN, in front of a plain echo and in front of nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hfl_mqtt.errors import BrokerError
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.ops.relay import Relay

LIMIT_S = 60.0


class Echo:
    """Answers every byte with the same byte, one thread per connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, what: object, *args: object) -> None:
        thread = threading.Thread(target=what, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(LIMIT_S)


@pytest.fixture
def echo() -> Iterator[Echo]:
    one = Echo()
    yield one
    one.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay("127.0.0.1", "127.0.0.1", echo.port) as one:
        yield one


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=LIMIT_S)


def exactly(connection: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes and (more := connection.recv(65536)):
        data += more
    return data


def round_trip_s(connection: socket.socket, payload: bytes) -> float:
    start = time.monotonic()
    sender = threading.Thread(target=connection.sendall, args=(payload,))
    sender.start()
    assert exactly(connection, len(payload)) == payload
    sender.join(LIMIT_S)
    return time.monotonic() - start


def test_counts_what_it_carries_each_way(relay: Relay) -> None:
    with connect(relay) as one:
        round_trip_s(one, b"x" * 100_000)
    assert (relay.up_bytes, relay.down_bytes) == (100_000, 100_000)


def test_carries_several_connections_side_by_side(relay: Relay) -> None:
    with connect(relay) as one, connect(relay) as two:
        one.sendall(b"first")
        two.sendall(b"second")
        assert (exactly(two, 6), exactly(one, 5)) == (b"second", b"first")


def test_delays_each_way(relay: Relay) -> None:
    relay.delay_s = 0.1
    with connect(relay) as one:
        assert 0.2 <= round_trip_s(one, b"x") < 8.0


def test_a_delay_does_not_divide_the_throughput(relay: Relay) -> None:
    # 1 MB is 61 chunks: one at a time over a round trip of 1 s would take a minute.
    relay.delay_s = 0.5
    with connect(relay) as one:
        assert round_trip_s(one, b"x" * 1_000_000) < 20.0


def test_throttles_to_its_rate(relay: Relay) -> None:
    relay.rate_bytes_per_s = 400_000.0
    with connect(relay) as one:
        # Up and down overlap: 200 kB at 400 kB/s take half a second.
        assert 0.5 <= round_trip_s(one, b"x" * 200_000) < 8.0


def test_connections_share_the_rate_in_turn(relay: Relay) -> None:
    relay.rate_bytes_per_s = 400_000.0
    with connect(relay) as bulk, connect(relay) as small:
        sender = threading.Thread(target=bulk.sendall, args=(b"x" * 2_000_000,))
        sender.start()
        received = len(exactly(bulk, 1))  # the bulk is under way, for another five seconds
        round_trip_s(small, b"heartbeat")
        assert relay.up_bytes < 2_000_000, "the heartbeat was back before the bulk had gone"
        relay.rate_bytes_per_s = None
        assert received + len(exactly(bulk, 2_000_000 - received)) == 2_000_000
        sender.join(LIMIT_S)


def test_cut_drops_and_refuses_and_restore_lets_in_again(relay: Relay) -> None:
    with connect(relay) as one:
        round_trip_s(one, b"x")
        relay.cut()
        with pytest.raises(ConnectionError):
            # A reset, or the end: both mean dropped.
            raise ConnectionResetError if one.recv(1) == b"" else AssertionError
    with pytest.raises(ConnectionRefusedError):
        connect(relay)
    relay.restore()
    with connect(relay) as again:
        round_trip_s(again, b"x")


def test_cutting_and_restoring_twice_is_once(relay: Relay) -> None:
    relay.cut()
    relay.cut()
    relay.restore()
    relay.restore()
    with connect(relay) as one:
        round_trip_s(one, b"x")


def test_a_target_that_is_away_ends_the_connection() -> None:
    with Relay("127.0.0.1", "127.0.0.1", free_port()) as relay, connect(relay) as one:
        assert one.recv(1) == b""


def test_the_end_of_one_side_is_passed_on_after_its_last_bytes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Relay("127.0.0.1", "127.0.0.1", listener.getsockname()[1]) as relay,
        connect(relay) as near,
    ):
        relay.delay_s = 0.05
        far, _ = listener.accept()
        with far:
            far.sendall(b"last words")
        assert exactly(near, 100) == b"last words"


def test_a_port_that_is_taken_is_named(echo: Echo) -> None:
    with pytest.raises(BrokerError, match=rf"cannot listen on 127.0.0.1:{echo.port}"):
        Relay("127.0.0.1", "127.0.0.1", 1, listen_port=echo.port)


def test_closing_twice_is_once(echo: Echo) -> None:
    relay = Relay("127.0.0.1", "127.0.0.1", echo.port)
    relay.close()
    relay.close()
