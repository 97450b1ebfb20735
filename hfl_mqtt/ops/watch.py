"""`hfl watch`: the live table, or one snapshot for a script."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from pydantic import Field, ValidationError
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hfl_mqtt.config.broker import BrokerConfig
from hfl_mqtt.config.sections import Federation
from hfl_mqtt.config.wording import KeyPath, explain, key_text
from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.ops import signals
from hfl_mqtt.ops.fleet import Viewer, table
from hfl_mqtt.ops.journal import plain
from hfl_mqtt.transport.link import Account

#: How often the live table is drawn where nothing comes; a Ctrl-C is noticed then at the latest.
LOOK_S = 0.5
#: Most rows of one printed table.
MAX_ROWS = 1000
#: Retained messages arrive right after the subscription; a snapshot waits until none has come for this long.
QUIET_S = 0.7
#: What a link says of a configuration, and how the command line says it; longer ones first.
_IN_OPTIONS = {
    "set broker.tls.cert_file and key_file": "give --cert and --key",
    "Then its configuration here needs broker.tls": "Then give --ca",
    "say that name in broker.tls.server_name": "give that name to --host",
    "cert_file": "--cert",
    "key_file": "--key",
    "ca_file": "--ca",
}
_CHECK = "check user name and password here and in the broker's password file, then reload the broker"
_GIVE = "no password was given: give --password-file or --password-env, and --user where the account has another name"


class _Options(BrokerConfig):
    federation: Federation = Field(description="What to look at.")


#: The options that stand under `tls:` in a `broker:` section, by their names there.
_TLS = {"ca_file": "ca", "cert_file": "cert", "key_file": "key"}


def account_of(**options: Any) -> Account:
    """Check the command line's options, those of a `broker:` section and the federation, and return the account.

    Raises:
        ConfigError: with every wrong option, one a line; or the password cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None and name not in _TLS.values()}
    papers = {key: options[name] for key, name in _TLS.items() if options.get(name) is not None}
    if papers:
        given["tls"] = papers
    try:
        broker = _Options.model_validate(given)
    except ValidationError as error:
        mistakes = explain(error, _Options, given, lambda _: None)
        told = [f"--{_option(each.path)}: {_with_options(each.text)}" for each in mistakes]
        raise ConfigError("\n".join(told)) from None
    return broker.account("viewer")


def _option(path: KeyPath) -> str:
    text = key_text(path)
    return _TLS.get(text.removeprefix("tls."), text).replace("_", "-")


def in_options(account: Account, reason: str) -> str:
    """Return why a link is down with options of the command line in place of the keys of a configuration."""
    has_none = account.password is None and (account.tls is None or account.tls.certificate is None)
    return _with_options(reason.replace(_CHECK, _GIVE) if has_none else reason)


def _with_options(text: str) -> str:
    for key, option in _IN_OPTIONS.items():
        text = text.replace(key, option)
    return text


def watch(account: Account, federation: str, *, once: bool, as_json: bool, wait_s: float = 10.0) -> None:
    """Show a federation until interrupted, or once. A connection that is lost later on is waited for.

    Raises:
        BrokerError: there is no broker, it does not answer within `wait_s`, or it refuses the account.
    """
    arrived = threading.Event()
    viewer = Viewer(account, federation, arrived.set)
    viewer.open()
    try:
        viewer.answered.wait(wait_s)
        if not viewer.is_up:
            raise BrokerError(
                in_options(account, viewer.reason) or f"no broker answers at {account.host}:{account.port}: is it one?"
            )
        if once or as_json:
            while (left_s := viewer.retained_s + QUIET_S - time.monotonic()) > 0:
                arrived.wait(left_s)
                arrived.clear()
            _print_once(viewer, federation, as_json=as_json)
            return
        with signals.noticed() as caught, Live(console=Console(), refresh_per_second=4, screen=False) as live:
            while not caught:
                if viewer.failure is not None:
                    raise BrokerError(in_options(account, str(viewer.failure)))
                most = max(8, live.console.height - 6)
                shown = _shown(viewer, federation, most=most, width=live.console.width)
                live.update(shown)
                arrived.wait(LOOK_S)
                arrived.clear()
        raise KeyboardInterrupt
    finally:
        viewer.close()


def _print_once(viewer: Viewer, federation: str, *, as_json: bool) -> None:
    now = time.monotonic()
    if as_json:
        rows = [view.as_json(now) for view in viewer.fleet.nodes()]
        sys.stdout.write(json.dumps({"federation": federation, "nodes": rows}, indent=2) + "\n")
    else:
        console = Console()
        console.print(_shown(viewer, federation, most=MAX_ROWS, width=console.width))


def _shown(viewer: Viewer, federation: str, *, most: int, width: int) -> Table:
    shown = table(viewer.fleet, time.monotonic(), title=f"federation {federation}", most=most, width=width)
    if not viewer.is_up:
        shown.caption = Text(plain(viewer.reason), style="red")
    return shown
