"""How a training process stands to the board's other programs: its share of the processor, and of the disk.

Both are the process's own to lower, so the agent needs no rights for it. Threads and processes that training starts
inherit them.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Literal

Priority = Literal["normal", "low", "idle"]

#: What a low process adds to its niceness: against one busy program at 0 it gets about a tenth of a core.
NICENESS = 10
#: The system call has no function in the C library, and another number on each architecture (`asm/unistd.h`).
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "riscv64": 30}
_IOPRIO_OF_PROCESS, _IOPRIO_IDLE = 1, 3 << 13


def lower(priority: Priority) -> None:
    """Lower this process's priority, where the system lets it; what it does not know is left out.

    normal: nothing. low: nicer by `NICENESS`, and the disk only when nobody else wants it. idle: the processor too,
    which on a busy board may be never (SCHED_IDLE).
    """
    if priority == "normal":
        return
    if priority == "idle" and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(NICENESS)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        # Only the schedulers bfq and mq-deadline heed it; a container may forbid it: training goes on all the same.
        ctypes.CDLL(None).syscall(number, _IOPRIO_OF_PROCESS, 0, _IOPRIO_IDLE)
