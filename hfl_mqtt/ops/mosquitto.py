"""A Mosquitto of our own as a child process, for the demo, the benchmarks and the tests.

In production Mosquitto is a service of the operating system (see `brokers/README.md`) and nothing here is used.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from hfl_mqtt.errors import BrokerError, Misuse
from hfl_mqtt.ops import children

#: Debian puts daemons here, which is not on every user's PATH.
_SYSTEM_DIRS = "/usr/sbin:/usr/local/sbin:/sbin"


def find_program() -> str:
    """Return the path of the `mosquitto` program, from PATH or the system's own directories.

    Raises:
        BrokerError: it is not installed; the message says how to.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SYSTEM_DIRS)
    if found is None:
        raise BrokerError("no `mosquitto` on this machine; install it: sudo apt-get install mosquitto")
    return found


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return different TCP ports that were free a moment ago.

    Nothing holds them after this returns: another process may take one first, rarely, and `Mosquitto.start` then says
    so. All are held while the list is made, so the list itself never repeats a port.
    """
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_port(host: str = "127.0.0.1") -> int:
    """Return one TCP port that was free a moment ago; see `free_ports` for the race."""
    return free_ports(1, host)[0]


class Mosquitto:
    """One Mosquitto on a configuration file, as our child; also a context manager that starts and stops it.

    The child dies with us, see `children.start`. Mosquitto must not change its user, which would clear the signal that
    sees to this: the configuration names the user that starts it (`brokers.Layout.beside` does so).
    """

    def __init__(self, conf_path: Path, port: int, *, host: str = "127.0.0.1", log_path: Path | None = None) -> None:
        self.conf_path = conf_path
        self.host = host
        self.port = port
        self.log_path = log_path or conf_path.parent / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, deadline_s: float = 10.0) -> None:
        """Start the broker and return once it accepts connections.

        Raises:
            BrokerError: it is not installed, its port is taken, it ended (the message shows its log), or it does not
                accept connections within `deadline_s`.
            Misuse: it already runs.
        """
        if self.pid is not None:
            raise Misuse(f"the broker of {self.conf_path} already runs as process {self.pid}")
        program = find_program()
        if self._accepts():
            raise BrokerError(f"{self.host}:{self.port} is taken by another program; stop it or choose another port")
        self._process = children.start([program, "-c", str(self.conf_path)], self.log_path)
        give_up_at = time.monotonic() + deadline_s
        listens = False
        while not listens:
            # Looked at before it is judged: if ours ended, whoever accepts there is another program.
            listens = self._accepts()
            if self._exited_within(0.02):
                ended = f"mosquitto on {self.conf_path} ended with {self._process.returncode}"
                raise BrokerError(f"{ended}{children.log_tail(self.log_path)}")
            if not listens and time.monotonic() > give_up_at:
                self.stop()
                raise BrokerError(
                    f"mosquitto on {self.conf_path} does not listen on {self.host}:{self.port} after {deadline_s:g} s; "
                    f"does the file say `listener {self.port}`?{children.log_tail(self.log_path)}"
                )

    def stop(self, deadline_s: float = 5.0) -> None:
        """End the broker in order, so that it saves its sessions; kill it after `deadline_s`. Idempotent."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        if not self._exited_within(deadline_s):
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the broker as a power cut does: what came in since its last save is lost. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reload(self) -> None:
        """Have the broker read its password and ACL files again, which keeps all connections.

        Raises:
            Misuse: it does not run.
        """
        if self.pid is None:
            raise Misuse(f"the broker of {self.conf_path} does not run")
        os.kill(self.pid, signal.SIGHUP)

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _exited_within(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
