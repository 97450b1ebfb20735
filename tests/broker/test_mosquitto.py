"""A Mosquitto as our child: it starts, says why when it does not, and never outlives us."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hfl_mqtt.errors import BrokerError, Misuse
from hfl_mqtt.ops import mosquitto
from hfl_mqtt.ops.mosquitto import Mosquitto, find_program, free_port, free_ports

pytestmark = pytest.mark.broker

LIMIT_S = 60.0


def conf(directory: Path, port: int, *more: str) -> Path:
    path = directory / "mosquitto.conf"
    path.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", *more]) + "\n")
    return path


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def test_accepts_connections_once_started_and_none_once_stopped(tmp_path: Path) -> None:
    port = free_port()
    broker = Mosquitto(conf(tmp_path, port), port)
    with broker:
        assert accepts(port)
        assert isinstance(broker.pid, int)
    assert not accepts(port)


def test_stopping_twice_is_once_and_it_starts_again(tmp_path: Path) -> None:
    port = free_port()
    broker = Mosquitto(conf(tmp_path, port), port)
    broker.stop()
    broker.start()
    broker.stop()
    broker.stop()
    broker.start()
    broker.kill()
    broker.kill()
    assert broker.pid is None


def test_starting_a_running_one_is_misuse(tmp_path: Path) -> None:
    port = free_port()
    with Mosquitto(conf(tmp_path, port), port) as broker, pytest.raises(Misuse, match="already runs"):
        broker.start()


def test_reloading_one_that_does_not_run_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="does not run"):
        Mosquitto(tmp_path / "mosquitto.conf", 1).reload()


def test_a_mistake_in_the_configuration_is_shown_from_the_log(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(BrokerError, match=r"(?s)ended with 3.*Unknown configuration variable .nonsense"):
        Mosquitto(conf(tmp_path, port, "nonsense 1"), port).start()


def test_a_taken_port_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        broker = Mosquitto(conf(tmp_path, port), port)
        with pytest.raises(BrokerError, match=rf"127.0.0.1:{port} is taken by another program"):
            broker.start()
    assert broker.pid is None


def test_a_configuration_for_another_port_is_said_and_the_child_ended(tmp_path: Path) -> None:
    port, other = free_ports(2)
    broker = Mosquitto(conf(tmp_path, other), port)
    with pytest.raises(BrokerError, match=rf"does not listen on 127.0.0.1:{port} .* `listener {port}`"):
        broker.start(deadline_s=0.3)
    assert broker.pid is None
    assert not accepts(other)


def test_a_missing_mosquitto_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(find_program()).is_absolute()  # Debian's /usr/sbin is looked at too
    monkeypatch.setattr(mosquitto, "_SYSTEM_DIRS", str(tmp_path))
    with pytest.raises(BrokerError, match="sudo apt-get install mosquitto"):
        find_program()


def test_dies_with_us_even_if_we_are_killed(tmp_path: Path) -> None:
    port = free_port()
    user = "user root\n" if os.geteuid() == 0 else ""  # a change of user would clear the parent-death signal
    path = conf(tmp_path, port, user)
    program = (
        "import sys, pathlib; from hfl_mqtt.ops.mosquitto import Mosquitto\n"
        f"broker = Mosquitto(pathlib.Path({str(path)!r}), {port}); broker.start()\n"
        "print(broker.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        watched = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.send_signal(signal.SIGKILL)
            assert select.select([watched], [], [], LIMIT_S)[0], "the broker outlived its parent"
        finally:
            os.close(watched)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20
