"""What other programs use of the processor, from trees of files as /proc has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.others import Others
from device_agents.vitals import FRESH_S


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Machine:
    """A processor with a clock of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0
        self.spend(busy=0, idle=0)

    def spend(self, busy: int, idle: int) -> None:
        put(self.root, "proc/stat", f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\n")

    def process(self, pid: int, *ticks: int, children: str = "") -> None:
        # A command may hold spaces and brackets; its end is the last bracket.
        put(self.root, f"proc/{pid}/stat", f"{pid} (a b) c) S {'0 ' * 10}{' '.join(map(str, ticks))} 20 0\n")
        put(self.root, f"proc/{pid}/task/{pid}/children", children)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_our_own_training_is_not_other_programs_load(machine: Machine) -> None:
    machine.process(7, 0, 0, 0, 0)
    others = Others(machine.root, 7, lambda: machine.now)
    machine.process(7, 3, 2, 0, 0, children="8")
    machine.process(8, 40, 5, 0, 0, children="9 ")
    machine.process(9, 8, 2, 0, 0)
    machine.spend(busy=80, idle=20)
    machine.now = FRESH_S
    assert others() == 0.2  # 80 busy ticks, of which 5 + 45 + 10 are ours


def test_a_training_process_that_has_ended_is_still_ours(machine: Machine) -> None:
    machine.process(7, 0, 0, 0, 0, children="8")
    machine.process(8, 50, 0, 0, 0)
    machine.spend(busy=50, idle=50)
    others = Others(machine.root, 7, lambda: machine.now)
    machine.process(7, 1, 0, 55, 0)  # what it used is now that of an ended child
    machine.spend(busy=66, idle=134)
    machine.now = FRESH_S
    assert others() == 0.1


def test_between_two_looks_close_together_the_last_answer_holds(machine: Machine) -> None:
    machine.process(7, 0, 0, 0, 0)
    others = Others(machine.root, 7, lambda: machine.now)
    machine.spend(busy=50, idle=50)
    assert others() == 0.5
    machine.spend(busy=150, idle=50)
    assert others() == 0.5
    machine.now = FRESH_S
    assert others() == 1.0


def test_a_system_that_does_not_tell_is_not_guessed(tmp_path: Path) -> None:
    assert Others(tmp_path, 7, lambda: 0.0)() is None


def test_this_very_process_has_a_share() -> None:
    others = Others()
    while others() is None:
        pass  # ticks are ten milliseconds long
    assert 0 <= (others() or 0) <= 1
