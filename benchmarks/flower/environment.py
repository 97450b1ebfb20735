"""A virtual environment of Flower's own, under the user's cache: its packages never meet ours.

Torch is the exception: it is not downloaded again. A `.pth` file puts the folder where *our* torch lies at the end of
the search path there, so Flower's own packages are found first and torch is the same for both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from hfl_mqtt.errors import HflError

NAME = "flwr"
INSTALL_S = 240.0


class NotInstalled(HflError):
    """Flower cannot be had here: no network, or no version for this Python."""


def flower() -> tuple[Path, str]:
    """Return Flower's environment and version; the first time it is installed, a minute and 300 MB.

    It is the newest version whose requirements pip can meet. What is there is used again: to have a newer one, remove
    its folder.

    Raises:
        NotInstalled: it is not there and cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfl-mqtt" / "peers"
    there = sorted(cache.glob(f"{NAME}-*/complete"), key=lambda path: path.stat().st_mtime)
    version = there[-1].read_text() if there else _newest()
    home = cache / f"{NAME}-{version}"
    if not there:
        home.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(home / "bin" / "pip"), "install", "--quiet", "--no-input", f"{NAME}=={version}"])
        (home / "complete").write_text(version)
    _show_torch(home)
    return home, version


def _newest() -> str:
    """Return the version that pip would install: the newest may ask for something that its index does not have."""
    report = _run([
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--dry-run", "--ignore-installed"),
        *("--report", "-", NAME),
    ])  # fmt: skip
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report)["install"]}
    return str(found[NAME])


def _show_torch(home: Path) -> None:
    """Let that environment find our torch, after its own packages."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotInstalled("there is no torch here: pip install 'hfl-mqtt[train]'")
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "our-torch.pth").write_text(f"{Path(spec.origin).parents[1]}\n")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{command[0]} took longer than {INSTALL_S:g} s: is there a network?") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NotInstalled(said[-1] if said else f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout
