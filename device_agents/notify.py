"""What systemd wants to hear of a service: that it is ready, and again and again that it still turns (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)


class Service:
    """The service that this process is; without systemd it says nothing.

    Args:
        environment: `NOTIFY_SOCKET` names systemd's socket, `WATCHDOG_USEC` its patience.
        pid: this process, for `WATCHDOG_PID`: the watchdog may be another's.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, pid: int | None = None) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        patience = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid() if pid is None else pid))
        #: How long the service may be silent before it is killed; None where nobody watches.
        self.patience_s = int(patience) / 1e6 if self._address and is_ours and patience.isdecimal() else None
        self._is_ready = False

    def watch(self, beat: Callable[[Callable[[], None], float], None]) -> None:
        """Have `beat` call us from the loop that does the work: twice in the time that systemd waits."""
        if self._address:
            beat(self._turns, self.patience_s / 2 if self.patience_s else 3600.0)

    def ready(self) -> None:
        """Say that the service is ready: one that ends before it was has failed for systemd, whatever its exit code."""
        if self._address:
            self._turns()

    def _turns(self) -> None:
        self._say("WATCHDOG=1" if self._is_ready else "READY=1\nWATCHDOG=1")
        self._is_ready = True

    def _say(self, text: str) -> None:
        # An address that begins with @ lies in no file system: there it begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.connect(address)
                out.sendall(text.encode())
        except OSError as error:
            _log.warning("systemd does not hear us at %s: %s", self._address, error.strerror)
