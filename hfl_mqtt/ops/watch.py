"""`hfl watch`: the live table, or one snapshot for a script."""

from __future__ import annotations

import json
import sys
import threading
import time

from rich.console import Console
from rich.live import Live

from hfl_mqtt.errors import BrokerError
from hfl_mqtt.ops.fleet import Viewer, table
from hfl_mqtt.transport.link import Account

#: Retained messages arrive right after the subscription; a snapshot waits until none has come for this long.
QUIET_S = 0.7


def watch(account: Account, federation: str, *, once: bool, as_json: bool, wait_s: float = 10.0) -> None:
    """Show a federation until interrupted, or once.

    Raises:
        BrokerError: no broker within `wait_s`, or it refuses the account.
    """
    arrived = threading.Event()
    viewer = Viewer(account, federation, arrived.set)
    viewer.open()
    try:
        if not viewer.connected.wait(wait_s):
            raise BrokerError(viewer.reason or f"no broker answers at {account.host}:{account.port}: does it run?")
        if viewer.failure is not None:
            raise viewer.failure
        if once or as_json:
            while arrived.wait(QUIET_S):
                arrived.clear()
            _print_once(viewer, federation, as_json=as_json)
            return
        with Live(console=Console(), refresh_per_second=4, screen=False) as live:
            while viewer.failure is None:
                most = max(8, live.console.height - 6)
                live.update(table(viewer.fleet, time.monotonic(), title=f"federation {federation}", most=most))
                arrived.wait(1.0)
                arrived.clear()
    finally:
        viewer.close()


def _print_once(viewer: Viewer, federation: str, *, as_json: bool) -> None:
    now = time.monotonic()
    if as_json:
        rows = [view.as_json(now) for view in viewer.fleet.nodes()]
        sys.stdout.write(json.dumps({"federation": federation, "nodes": rows}, indent=2) + "\n")
    else:
        Console().print(table(viewer.fleet, now, title=f"federation {federation}"))
