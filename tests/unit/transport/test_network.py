"""The loop that all links of a process share."""

from __future__ import annotations

import queue
import socket
import threading
import time
from functools import partial

import pytest

from hfl_mqtt.transport.network import MAX_ASIDE, Network

WAIT_S = 60.0


def test_jobs_of_many_threads_run_in_one_and_keep_each_threads_order() -> None:
    network = Network()
    ran: queue.Queue[tuple[str, int, int]] = queue.Queue()

    def note(name: str, number: int) -> None:
        ran.put((name, number, threading.get_ident()))

    def call_many(name: str) -> None:
        for number in range(100):
            network.call(partial(note, name, number))

    threads = [threading.Thread(target=call_many, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    came = [ran.get(timeout=WAIT_S) for _ in range(200)]
    for thread in threads:
        thread.join()
    assert len({ident for _, _, ident in came}) == 1
    for name in "ab":
        assert [number for who, number, _ in came if who == name] == list(range(100))


def test_timers_ring_in_the_order_of_their_time_and_not_before() -> None:
    network = Network()
    rang: queue.Queue[tuple[str, float]] = queue.Queue()
    start_s = time.monotonic()

    def set_timers() -> None:
        for name, after_s in (("late", 0.1), ("early", 0.05)):
            network.call_at(start_s + after_s, lambda name=name: rang.put((name, time.monotonic())))  # type: ignore[misc]

    network.call(set_timers)
    first, second = rang.get(timeout=WAIT_S), rang.get(timeout=WAIT_S)
    assert (first[0], second[0]) == ("early", "late")
    assert first[1] >= start_s + 0.05
    assert second[1] >= start_s + 0.1


def test_a_job_that_fails_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    network = Network()
    done = threading.Event()

    def trip() -> None:
        raise RuntimeError("tripped")

    network.call(trip)
    network.aside(trip)
    network.call(done.set)
    assert done.wait(WAIT_S)
    network.aside(done.clear)
    assert "tripped" in caplog.text


def test_who_hangs_aside_delays_nobody_on_the_loop_and_at_most_its_own_kind() -> None:
    network = Network()
    release, started = threading.Event(), queue.Queue[int]()

    def hang() -> None:
        started.put(1)
        release.wait(WAIT_S)

    for _ in range(MAX_ASIDE):
        network.aside(hang)
    for _ in range(MAX_ASIDE):
        started.get(timeout=WAIT_S)
    later, called = threading.Event(), threading.Event()
    network.aside(later.set)
    network.call(called.set)
    assert called.wait(WAIT_S)
    assert not later.is_set()
    release.set()
    assert later.wait(WAIT_S)


def test_a_socket_is_told_of_when_it_can_be_read_and_written_until_it_is_forgotten() -> None:
    network = Network()
    ours, peers = socket.socketpair()
    ours.setblocking(False)
    heard: queue.Queue[bytes] = queue.Queue()

    def ready() -> None:
        try:
            heard.put(ours.recv(100))
        except BlockingIOError:
            heard.put(b"")  # to be written
            network.watch(ours, ready)

    with ours, peers:
        network.call(lambda: network.watch(ours, ready))
        peers.send(b"one")
        assert heard.get(timeout=WAIT_S) == b"one"
        network.call(lambda: network.watch(ours, ready, is_writing=True))
        assert heard.get(timeout=WAIT_S) == b""
        forgotten = threading.Event()
        network.call(lambda: network.forget(ours))
        network.call(lambda: network.forget(ours))  # twice changes nothing
        network.call(forgotten.set)
        assert forgotten.wait(WAIT_S)
        peers.send(b"two")
        turned = threading.Event()
        network.call(turned.set)
        assert turned.wait(WAIT_S)
        assert heard.empty()
