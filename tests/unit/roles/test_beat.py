"""The loop says that it turns: at once, and again in time, with no event to wake it."""

from __future__ import annotations

import time

from hfl_mqtt.roles.runner import Loop


def test_a_loop_that_turns_says_so_at_once_and_again_in_time() -> None:
    beats: list[float] = []
    loop = Loop(lambda _runner: None, lambda _asked: None)
    loop.beat(lambda: beats.append(time.monotonic()), 0.05)
    began = time.monotonic()
    loop.run(lambda: len(beats) >= 3)
    assert beats[0] - began < 0.05
    assert beats[2] - beats[0] >= 0.1


def test_a_loop_that_stands_is_silent() -> None:
    beats: list[str] = []
    loop = Loop(lambda _runner: None, lambda _asked: None)
    loop.beat(lambda: beats.append("turns"), 3600.0)
    loop.wake()
    loop.run(lambda: bool(beats))
    assert beats == ["turns"]
