"""When Ctrl-C and SIGTERM unwind a program, and when they wait."""

from __future__ import annotations

import os
import signal

import pytest

from hfl_mqtt.ops import signals

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_both_unwind_as_an_interrupt(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), signals.as_interrupt():
        os.kill(os.getpid(), number)


@BOTH
def test_a_block_that_holds_them_back_is_finished_first(number: int) -> None:
    done = []

    def block() -> None:
        with signals.as_interrupt(), signals.held_back():
            os.kill(os.getpid(), number)
            done.append("the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["the block"]


def test_a_block_without_a_signal_ends_as_blocks_do() -> None:
    with signals.as_interrupt(), signals.held_back():
        pass


@BOTH
def test_they_are_ignored_until_the_outermost_block_ends(number: int) -> None:
    before = signal.getsignal(number)
    with signals.as_interrupt():
        signals.ignore()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
