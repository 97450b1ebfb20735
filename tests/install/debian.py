"""A clean Debian root to install into, made once with debootstrap, copied for each test, entered by chroot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

#: A folder of about 300 MB outside the repository, kept between runs. Without it these tests are skipped.
CACHE = "HFL_DEBIAN_CACHE"
SUITE, PYTHON = "bookworm", "3.11"
REPOSITORY = Path(__file__).resolve().parents[2]

#: Enter a root with mounts of our own, which end with the command; what it may see of this machine is read-only.
_ENTER = """
set -e
root=$1 seen=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/mnt/seen"
mount --bind "$seen" "$root/mnt/seen"
mount -o remount,bind,ro "$root/mnt/seen"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A Debian system in a folder; `seen` stands in it at /mnt/seen."""

    path: Path
    seen: Path

    def run(self, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in it and return how it ended."""
        return subprocess.run(self.command(*command), capture_output=True, text=True, timeout=timeout_s, check=False)

    def command(self, *command: str) -> list[str]:
        """Return what runs a command in it."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return [*enter, str(self.path), str(self.seen), *command]

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the script in it, without torch, with the wheels that were brought."""
        script = "/mnt/seen/source/device_agents/install.sh"
        return self.run(script, "--without-torch", "--wheels", "/mnt/seen/wheels", *options)

    def text(self, name: str) -> str:
        """Return a file of it."""
        return (self.path / name).read_text()


def cache() -> Path:
    """Return the folder of what is kept, or skip the test with the reason."""
    folder = os.environ.get(CACHE)
    if not folder:
        pytest.skip(f"takes minutes: set {CACHE} to a folder for a Debian root, outside the repository")
    if os.geteuid() != 0:
        pytest.skip("a Debian root needs root: chroot and mounts")
    missing = [tool for tool in ("debootstrap", "unshare", "chroot") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    return Path(folder).resolve()


def clean_root(folder: Path) -> Path:
    """Return a Debian without anything but its base, made where there is none yet; skips the test without a mirror."""
    made = folder / SUITE
    if made.is_dir():
        return made
    making = folder / f".{SUITE}.{os.getpid()}"
    making.mkdir(parents=True)
    # Its own mounts, so that none outlives it, whatever becomes of it.
    command = ["unshare", "--mount", "--propagation", "private", "debootstrap", "--variant=minbase", SUITE, str(making)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        shutil.rmtree(making, ignore_errors=True)
        pytest.skip(f"debootstrap cannot make a Debian root: {done.stdout.strip().splitlines()[-1:]}")
    making.rename(made)
    return made


def fetch_wheels(folder: Path, wheel: Path) -> None:
    """Fetch what a wheel needs for the root's Python; skips the test where no index answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / wheel.name).unlink(missing_ok=True)  # one of another day needs other packages, and has the same name
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-cache-dir"]
    command += ["--dest", str(folder), "--only-binary=:all:", "--python-version", PYTHON]
    command += ["--constraint", str(REPOSITORY / "constraints.txt"), str(wheel), "setuptools", "wheel"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch the wheels: {done.stderr.strip().splitlines()[-1:]}")


def copy_source(to: Path) -> None:
    """Copy what is installed from: others may be at work in the repository."""
    to.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy2(REPOSITORY / name, to / name)
    for name in ("hfl_mqtt", "device_agents"):
        shutil.copytree(REPOSITORY / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))


def build_wheel(source: Path, to: Path) -> Path:
    """Build the program's wheel from a copy of its source."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(to), str(source)]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    shutil.rmtree(source / "build", ignore_errors=True)
    (wheel,) = to.glob("hfl_mqtt-*.whl")
    return wheel
