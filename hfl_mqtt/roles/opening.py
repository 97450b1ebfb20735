"""Before a node begins: folder, vault, boot. While the disk takes nothing, it waits, and its state says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hfl_mqtt import files
from hfl_mqtt.errors import Unwritable
from hfl_mqtt.protocol.messages import State, StateName
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.roles.shell import HALT_RETRY_S
from hfl_mqtt.state.vault import Vault
from hfl_mqtt.transport.link import Account, LinkEvent, Up
from hfl_mqtt.transport.mqtt import MqttLink

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A process's vault, and the boot of each of its nodes."""

    vault: Vault
    boots: Mapping[str, int]


def opened(directory: Path, nodes: Mapping[str, Path], federation: str, accounts: Mapping[str, Account]) -> Opened:
    """Open the vault of a process, and raise the boots of its nodes; waits while the disk is full or read-only.

    Args:
        directory: the vault's.
        nodes: the state folder of each node, by path.
        federation: theirs.
        accounts: how those connect who are to say what is wrong, by path.

    Raises:
        HflError: the folder is another process's, or not ours to write.
    """

    def attempt() -> Opened:
        vault = Vault(directory)
        try:
            return Opened(vault, {path: files.next_boot(folder, path) for path, folder in nodes.items()})
        except BaseException:
            vault.close()
            raise

    boots = {path: files.last_boot(nodes[path], path) for path in accounts}
    return until_writable(attempt, federation, accounts, boots)


def until_writable(
    attempt: Callable[[], T],
    federation: str,
    accounts: Mapping[str, Account],
    boots: Mapping[str, int],
    retry_s: float = HALT_RETRY_S,
) -> T:
    """Return what `attempt` gives, as soon as the disk lets it; until then the nodes' states say what is wrong.

    They say so under the boots of their former lives: nothing else can be said under those any more.

    Args:
        attempt: raises `Unwritable` where waiting may help.
        federation: the nodes'.
        accounts: how each connects, by path.
        boots: the last boot of each, by path.
        retry_s: how long to wait between attempts.
    """
    try:
        return attempt()
    except Unwritable as error:
        reason = str(error)
    _log.error("waiting: %s", reason)
    signs = [_Sign(path, federation, account, boots[path], reason) for path, account in accounts.items()]
    rest = threading.Event()
    try:
        while True:
            rest.wait(retry_s)
            try:
                found = attempt()
            except Unwritable as error:
                if str(error) != reason:
                    reason = str(error)
                    _log.error("waiting: %s", reason)
                    for sign in signs:
                        sign.show(reason)
            else:
                _log.warning("the disk is there again")
                return found
    finally:
        for sign in signs:
            sign.link.hang_up()
        for sign in signs:
            sign.link.close()


class _Sign:
    """A link that says nothing but what is wrong, whenever it is up."""

    def __init__(self, path: str, federation: str, account: Account, boot: int, reason: str) -> None:
        self._path, self._federation, self._boot, self._reason = path, federation, boot, reason
        # Under a name of its own, for what waits for the node in its session is not for us.
        self.link = MqttLink(account, [], self._take, client_id=f"{path}@halted-{time.monotonic_ns()}", clean=True)
        self.link.open()

    def _take(self, event: LinkEvent) -> None:
        if isinstance(event, Up):
            self.show(self._reason)

    def show(self, reason: str) -> None:
        """Say what is wrong now."""
        self._reason = reason
        state = State(state=StateName.HALTED, boot=self._boot, reason=reason[:300])
        self.link.publish(encode(state, self._federation, self._path))
