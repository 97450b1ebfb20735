"""Mosquittos that are killed and come back, with what they kept on disk or without; and a farm whose power is cut."""

from __future__ import annotations

from tests.chaos.killed import LARGE, SLOW, full_speed, is_part
from tests.chaos.rows import Case, row
from tests.chaos.tree import A1, A2, EDGE_A, Tree, plan

_WITH, _WITHOUT = "its file as it was saved", "without its file"


def _while_training(case: Case, broker: str, *, is_saved: bool, said: str) -> None:
    with case.running(plan()) as tree:
        tree.hold("a2", "b1")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        tree.kill_broker(broker, is_saved=is_saved)
        with case.recovery(tree):
            tree.restart_broker(broker)
            tree.release("a2", "b1")
        case.finish(tree, said)


def _while_sending(case: Case, broker: str, sender: str, *, is_saved: bool, said: str) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        _slow_down(tree, sender)
        witness = tree.witness(EDGE_A)
        tree.release("a2")
        witness.until(lambda heard: is_part(heard, sender, 2), "a part")
        tree.kill_broker(broker, is_saved=is_saved)
        with case.recovery(tree):
            tree.restart_broker(broker)
            full_speed(tree)
        case.finish(tree, said)


def _slow_down(tree: Tree, sender: str) -> None:
    """Make a sender's update take its time: over the bridge, or on a device's own link."""
    relay = tree.relays["farm-a"] if sender == EDGE_A else tree.lan_relays[EDGE_A]
    relay.rate_bytes_per_s = SLOW


@row("farm-broker-saved", f"farm broker killed, back at once, {_WITH}", "round open, 1 of 2 accepted")
def _(case: Case) -> None:
    _while_training(case, EDGE_A, is_saved=True, said="all came back, the round went on with the update it had")


@row("farm-broker-bare", f"farm broker killed, back at once, {_WITHOUT}", "round open, 1 of 2 accepted")
def _(case: Case) -> None:
    said = "all subscribed and announced themselves anew, call and model were published again"
    _while_training(case, EDGE_A, is_saved=False, said=said)


@row("farm-broker-device", f"farm broker killed, back at once, {_WITHOUT}", "a device sending its update")
def _(case: Case) -> None:
    _while_sending(case, EDGE_A, A2, is_saved=False, said="it sent again what had no receipt")


@row("farm-broker-sending", f"farm broker killed, back at once, {_WITHOUT}", "its edge contributing")
def _(case: Case) -> None:
    _while_sending(case, EDGE_A, EDGE_A, is_saved=False, said="the edge sent again what had no receipt")


@row("cloud-broker-saved", f"cloud broker killed, back at once, {_WITH}", "round open")
def _(case: Case) -> None:
    _while_training(case, "cloud", is_saved=True, said="bridges and cloud came back, the round went on")


@row("cloud-broker-bare", f"cloud broker killed, back at once, {_WITHOUT}", "round open")
def _(case: Case) -> None:
    said = "bridges and cloud came back, call and model were published again"
    _while_training(case, "cloud", is_saved=False, said=said)


@row("cloud-broker-sending", f"cloud broker killed, back at once, {_WITHOUT}", "an edge contributing")
def _(case: Case) -> None:
    _while_sending(case, "cloud", EDGE_A, is_saved=False, said="the edge sent again what had no receipt")


@row("power-cut", "power cut of a whole farm: broker, edge and devices at once", "round open, 1 of 2 accepted")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        _cut_power(tree)
        with case.recovery(tree):
            _restore_power(tree)
            tree.release("a2")
        case.finish(tree, "the farm came up and its round went on with the update it had", again=1)


@row("power-cut-sending", "power cut of a whole farm: broker, edge and devices at once", "its edge contributing")
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        _slow_down(tree, EDGE_A)
        witness = tree.witness(EDGE_A)
        tree.release("a2")
        witness.until(lambda heard: is_part(heard, EDGE_A, 2), "a part")
        _cut_power(tree)
        with case.recovery(tree):
            full_speed(tree)
            _restore_power(tree)
        case.finish(tree, "the farm came up and sent its contribution; nobody trained again")


def _cut_power(tree: Tree) -> None:
    """End all processes of farm-a at once; its broker saved nothing since it was started."""
    for name in (EDGE_A, A1, A2):
        tree.processes[name].kill()
    tree.kill_broker(EDGE_A, is_saved=False)
    tree.kill(EDGE_A, A1, A2)


def _restore_power(tree: Tree) -> None:
    """Start everything of farm-a, the broker last, as it may happen."""
    tree.restart(A1, A2, EDGE_A)
    tree.restart_broker(EDGE_A)
