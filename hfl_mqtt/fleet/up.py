"""`hfl fleet up` in a terminal: it says when everybody is there, and tells of whatever ends until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hfl_mqtt.errors import RunFailed
from hfl_mqtt.fleet.local import HOST, LocalFleet, running
from hfl_mqtt.fleet.sitefile import Home
from hfl_mqtt.ops import brokers
from hfl_mqtt.ops.brokers import CA_FILE
from hfl_mqtt.ops.fleet import Viewer
from hfl_mqtt.protocol.messages import StateName
from hfl_mqtt.transport.link import Account, TlsFiles

#: How long nodes may take to come up before it is said who has not.
READY_S = 60.0
_AWAY = (None, StateName.DISCONNECTED, StateName.LOST)


def up(home: Home, say: Callable[[str], None], *, first_port: int | None = None) -> None:
    """Run a fleet until Ctrl-C or SIGTERM, and tell of every process that ends.

    Raises:
        ConfigError: the folder is not as the site file says.
        BrokerError: a broker does not start.
        KeyboardInterrupt: a signal came, and everything was ended.
    """
    began_s = time.monotonic()
    with running(home, first_port=first_port) as fleet:
        ports = ", ".join(f"{broker.path} {broker.place.port}" for broker in fleet.site.brokers())
        say(f"Brokers on {HOST}: {ports}")
        told: set[str] = set()
        absent = _wait_for_nodes(fleet, lambda: _tell_ends(fleet, told, say), say)
        edges, devices = (len({*fleet.nodes(role)} - absent) for role in ("edge", "client"))
        counts = (
            f"{sum(each.pid is not None for each in fleet.brokers.values())} brokers, {edges} edges, {devices} devices"
        )
        say(f"Up: {counts}, in {time.monotonic() - began_s:.1f} s. Logs and settings: {fleet.folder}")
        say(f"Train: hfl cloud --config {fleet.config(fleet.site.cloud.name)}")
        if watching := fleet.watching():
            say(f"Watch: {watching}")
        say("Ctrl-C ends it all.")
        while True:
            time.sleep(0.5)  # nothing tells of a child's end, or of another rendering, but looking
            if reloaded := fleet.follow():
                say(f"Rights have changed: {', '.join(reloaded)} read them again.")
            _tell_ends(fleet, told, say)


def _tell_ends(fleet: LocalFleet, told: set[str], say: Callable[[str], None]) -> None:
    for name, how in fleet.ended().items():
        if name not in told:
            told.add(name)
            for line in f"{name} {how}".splitlines():
                say(line)


def _wait_for_nodes(fleet: LocalFleet, look: Callable[[], None], say: Callable[[str], None]) -> set[str]:
    """Return once every node has told its state to the cloud's broker, or in vain; return who has not.

    Raises:
        RunFailed: no node is left.
    """
    wanted = {*fleet.nodes("edge"), *fleet.nodes("client")}
    with _seen(fleet) as nodes:
        give_up_s = time.monotonic() + READY_S
        while missing := wanted - nodes():
            look()
            if not any(fleet.runs(path) for path in missing):
                break
            if time.monotonic() > give_up_s:
                named = ", ".join(sorted(missing)[:4])
                say(f"Not heard of after {READY_S:g} s: {named}{' and others' if len(missing) > 4 else ''}.")
                break
            time.sleep(0.1)  # as below
    if wanted and not any(fleet.runs(path) for path in wanted):
        raise RunFailed(f"no edge and no device runs; what they said last is above, and in {fleet.folder}")
    return missing


@contextmanager
def _seen(fleet: LocalFleet) -> Iterator[Callable[[], set[str]]]:
    """Give what names the nodes that are connected, as people see them at the cloud's broker.

    Where the site has no account for people there is nothing to see, and all are taken to be.
    """
    place, viewers = fleet.site.cloud, fleet.site.viewers
    if not viewers:
        yield lambda: {*fleet.nodes("edge"), *fleet.nodes("client")}
        return
    tls = TlsFiles(ca=fleet.folder / "brokers" / place.name / CA_FILE) if fleet.site.has_certificates else None
    port = place.viewer_port if fleet.site.has_certificates else place.port
    password = brokers.secret_path(fleet.home.folder, viewers[0]).read_text(encoding="utf-8").strip()
    viewer = Viewer(
        Account(host=HOST, port=port or place.port, user=viewers[0], password=password, tls=tls),
        fleet.site.federation,
    )
    viewer.open()
    try:
        yield lambda: {node.path for node in viewer.fleet.nodes() if node.state not in _AWAY}
    finally:
        viewer.close()
