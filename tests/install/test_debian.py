"""install.sh start to end in a clean Debian: twice, an upgrade that fails, the agent as its user, and away again."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.install import debian, papers
from tests.install.debian import Root


@pytest.fixture(scope="module")
def kept() -> Path:
    return debian.cache()


@pytest.fixture(scope="module")
def root(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A clean Debian, with source, wheels and a bundle in its sight."""
    work = tmp_path_factory.mktemp("debian")
    debian.copy_source(work / "source")
    wheels = kept / "wheels"
    debian.fetch_wheels(wheels, debian.build_wheel(work / "source", work))
    shutil.copytree(wheels, work / "wheels")
    papers.make(work / "pi-1.tar", node_key=b"secret")
    copying: list[str | Path] = ["cp", "-a", "--reflink=auto", debian.clean_root(kept), work / "root"]
    subprocess.run(copying, check=True, timeout=300)
    shutil.copy("/etc/resolv.conf", work / "root/etc/resolv.conf")  # apt asks for packages
    for name in ("ensurepip", "venv", "pip", "hfl_mqtt", "device_agents"):  # where all is started: none is imported
        (work / "root" / f"{name}.py").write_text("raise SystemExit('imported from the folder it was started in')\n")
    return Root(path=work / "root", seen=work)


def owner(root: Root, name: str) -> str:
    return root.run("stat", "-c", "%U:%G %a", name).stdout.strip()


def test_it_is_installed_runs_and_is_removed(root: Root) -> None:
    """One story, for each step stands on the one before."""
    assert not (root.path / "usr/bin/python3").exists()

    done = root.install("--bundle", "/mnt/seen/pi-1.tar")
    assert (done.returncode, done.stderr) == (0, "")
    assert "installed python3-venv ca-certificates" in done.stdout
    assert "systemd does not run here: the service starts with the next boot" in done.stdout
    assert owner(root, "/etc/hfl-mqtt") == "root:hfl 750"
    assert owner(root, "/etc/hfl-mqtt/node.key") == "root:hfl 640"
    assert owner(root, "/var/lib/hfl-mqtt") == "hfl:hfl 700"
    assert "/usr/sbin/nologin" in root.run("getent", "passwd", "hfl").stdout

    again = root.install("--bundle", "/mnt/seen/pi-1.tar")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "nothing changed")

    the_agent_is_ready_as_its_user(root)
    an_upgrade_that_breaks_off_leaves_what_was(root)

    gone = root.install("--uninstall")
    assert gone.returncode == 0
    assert not (root.path / "opt/hfl-mqtt").exists()
    assert owner(root, "/etc/hfl-mqtt/node.key") == "root:hfl 640"
    back = root.install("--bundle", "/mnt/seen/pi-1.tar")
    assert back.returncode == 0

    assert root.install("--purge").returncode == 0
    assert root.run("getent", "passwd", "hfl").returncode == 2
    assert list(root.path.glob("*/hfl*")) == []
    assert list(root.path.glob("etc/systemd/system/**/*hfl*")) == []
    assert root.install("--purge").stdout == "nothing changed\n"


def the_agent_is_ready_as_its_user(root: Root) -> None:
    """Start what the unit starts, as whom, with its environment, and hear what systemd would."""
    unit = root.text("etc/systemd/system/hfl.service")
    (command,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    variables = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("Environment=")]
    (root.path / "run/test").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(root.path / "run/test/notify"))
        (root.path / "run/test/notify").chmod(0o777)
        manager.settimeout(60)
        variables += ["NOTIFY_SOCKET=/run/test/notify", "WATCHDOG_USEC=1000000"]
        as_user = ["setpriv", "--reuid=hfl", "--regid=hfl", "--clear-groups", "env", *variables]
        log = root.seen / "agent.log"
        with log.open("wb") as out, subprocess.Popen(root.command(*as_user, *command.split()), stderr=out) as agent:
            try:
                assert [manager.recv(100), manager.recv(100)] == [b"READY=1\nWATCHDOG=1", b"WATCHDOG=1"]
            except TimeoutError:
                pytest.fail(f"the agent does not get ready: {log.read_text()}")
            finally:
                agent.terminate()
        assert (agent.returncode, "Traceback" in log.read_text()) == (0, False)
    assert owner(root, "/var/lib/hfl-mqtt/fed1").startswith("hfl:hfl ")


def an_upgrade_that_breaks_off_leaves_what_was(root: Root) -> None:
    before = (root.path / "opt/hfl-mqtt/venv").readlink()
    (root.seen / "nothing").mkdir(exist_ok=True)
    script = "/mnt/seen/source/device_agents/install.sh"
    done = root.run(script, "--wheels", "/mnt/seen/nothing", "--without-torch", "--constraints", "/dev/null")
    assert done.returncode == 2  # no such file: a device is none
    (root.seen / "source" / "hfl_mqtt" / "newer.py").write_text("")
    try:
        done = root.run(script, "--wheels", "/mnt/seen/nothing", "--without-torch")
        assert done.returncode == 6
        assert "pip cannot install hfl-mqtt" in done.stderr
        assert (root.path / "opt/hfl-mqtt/venv").readlink() == before
        assert root.run("/opt/hfl-mqtt/venv/bin/hfl", "--help").returncode == 0
    finally:
        (root.seen / "source" / "hfl_mqtt" / "newer.py").unlink()
    assert root.install().stdout.splitlines()[-1] == "nothing changed"
