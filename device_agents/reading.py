"""Short texts and numbers out of /proc and /sys, and what the board's own tools print.

Functions take the directory that stands for `/`; what is not there, or cannot be read just now, is left out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path("/")
Values = dict[str, int | float | str | None]
#: Runs a command and returns what it printed; nothing where it is not there, fails or takes too long.
Run = Callable[..., str]

#: A tool that hangs must not hold the agent up for longer.
PATIENCE_S = 3.0


def text(path: Path) -> str:
    """Return a file's text."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def line(path: Path) -> str:
    """Return a short text without what cannot be printed, such as the zero byte that ends a device tree's."""
    return "".join(letter for letter in text(path)[:200] if letter.isprintable()).strip()


def number(path: Path) -> int | None:
    """Return a whole number; None where the file does not hold one."""
    try:
        return int(text(path))
    except ValueError:
        return None


def run(*command: str) -> str:
    """Run a tool of the board; see `Run`."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
