"""A small TCP relay that stands in for a WAN: it counts bytes, delays them, throttles them, and cuts.

It plays the link between a farm's bridge and the cloud where no traffic shaping is at hand, in the demo, the benchmarks
and the tests. All connections through one relay share its rate, as they would share a farm's uplink.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any

from hfl_mqtt.errors import BrokerError

_CHUNK = 16 * 1024
#: Chunks on their way in one direction of one connection, so at most 4 MiB: with more the sender waits.
_IN_FLIGHT = 256
_CALL_LIMIT_S = 10.0


class _Lane:
    """One direction of the link, shared by its connections: what it carried and when it is free again."""

    def __init__(self) -> None:
        self.carried_bytes = 0
        self.free_at_s = 0.0


class Relay:
    """Forward TCP connections to `target_host:target_port`, from construction until `close`; also a context manager.

    "Up" is towards the target. `target_port`, `delay_s` (one way) and `rate_bytes_per_s` (each direction, None for no
    limit) may be changed at any time, from any thread, and hold for what comes in from then on.

    Raises:
        BrokerError: nothing can listen on `listen_host:listen_port`.
    """

    def __init__(self, listen_host: str, target_host: str, target_port: int, *, listen_port: int = 0) -> None:
        self.delay_s = 0.0
        self.rate_bytes_per_s: float | None = None
        self._target_host, self.target_port = target_host, target_port
        self._up, self._down = _Lane(), _Lane()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        # Bound but never listening: it keeps the port ours while the link is cut, and connecting is refused then.
        self._holder = _bound(listen_host, listen_port)
        self._host = listen_host
        self.port: int = self._holder.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"relay-{self.port}", daemon=True)
        self._thread.start()
        self.restore()

    @property
    def up_bytes(self) -> int:
        """Bytes handed to the target since the start."""
        return self._up.carried_bytes

    @property
    def down_bytes(self) -> int:
        """Bytes handed back by the target since the start."""
        return self._down.carried_bytes

    def cut(self) -> None:
        """Drop every connection with what is on its way, and refuse new ones, until `restore`. Idempotent."""
        self._call(self._cut())

    def restore(self) -> None:
        """Accept connections again. Idempotent."""
        self._call(self._listen())

    def close(self) -> None:
        """Cut, and end the thread. Idempotent."""
        if not self._thread.is_alive():
            return
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_LIMIT_S)
        self._loop.close()
        self._holder.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(_CALL_LIMIT_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, sock=_bound(self._host, self.port))

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # Aborted transports close their sockets in the next turn of the loop.
        await asyncio.sleep(0)

    async def _connected(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        # Cancelled by `cut` only; it ends quietly then, because nobody awaits it.
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(near_out)
        try:
            far_in, far_out = await asyncio.open_connection(self._target_host, self.target_port)
            self._open.add(far_out)
            try:
                await _first_of(self._carry(near_in, far_out, self._up), self._carry(far_in, near_out, self._down))
            finally:
                self._open.discard(far_out)
                far_out.close()
        except (OSError, asyncio.CancelledError):
            # The target is away or a peer reset: the other side learns it by the close below.
            pass
        finally:
            self._open.discard(near_out)
            near_out.close()
            self._tasks.discard(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lane: _Lane) -> None:
        """Move bytes until the source ends; what came in before that is still delivered."""
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        await _first_of(self._read(source, on_its_way, lane), self._deliver(on_its_way, sink, lane))

    async def _read(
        self, source: asyncio.StreamReader, on_its_way: asyncio.Queue[tuple[float, bytes]], lane: _Lane
    ) -> None:
        while data := await source.read(_CHUNK):
            await self._take_turn(lane, len(data))
            await on_its_way.put((self._loop.time() + self.delay_s, data))
        await on_its_way.join()

    async def _take_turn(self, lane: _Lane, size_bytes: int) -> None:
        """Wait until the shared link has sent this chunk. One chunk per connection queues, so connections alternate."""
        if self.rate_bytes_per_s is not None:
            lane.free_at_s = max(lane.free_at_s, self._loop.time()) + size_bytes / self.rate_bytes_per_s
            await asyncio.sleep(lane.free_at_s - self._loop.time())

    async def _deliver(
        self, on_its_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, lane: _Lane
    ) -> None:
        while True:
            due_s, data = await on_its_way.get()
            if (wait_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            lane.carried_bytes += len(data)
            sink.write(data)
            await sink.drain()
            on_its_way.task_done()


async def _first_of(*whats: Coroutine[Any, Any, None]) -> None:
    """Run until the first ends, then end the rest; the first one's error is raised."""
    tasks = [asyncio.ensure_future(what) for what in whats]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _bound(host: str, port: int) -> socket.socket:
    # With the protocol named: asyncio turns Nagle's algorithm off only where it stands, and an accepted socket has it
    # from the listening one. Without, what goes down waits up to 40 ms here, as at no broker.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        one.bind((host, port))
    except OSError as error:
        one.close()
        raise BrokerError(f"the relay cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    return one
