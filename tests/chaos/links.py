"""Links that are cut, flap, fall silent or are slow, and packets that come twice, in another order, or damaged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.chaos.killed import LARGE, SLOW, full_speed, is_part
from tests.chaos.mangler import Mangle, Mangler, corrupted, cut_short, in_another_order, twice
from tests.chaos.rows import Case, row
from tests.chaos.tree import A1, EDGE_A, Tree, plan

#: 64 kbit/s.
MODEM = 8_000.0
#: Values of a model of 280 kB on the way: 35 s for each way at 64 kbit/s.
BIG = 75_000
#: Values of a model whose update is cut into five parts.
MANY_PARTS = 300_000


@row("bridge-cut", "bridge cut", "edge contributing")
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        contribute_slowly(tree)
        tree.relays["farm-a"].cut()
        time.sleep(case.options.cut_s)
        with case.recovery(tree):
            tree.relays["farm-a"].restore()
            full_speed(tree)
        case.finish(tree, f"after {case.options.cut_s:g} s the edge sent on")


@row("bridge-cut-training", "bridge cut", "devices training")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        tree.relays["farm-a"].cut()
        tree.release("a1")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        time.sleep(case.options.cut_s / 3)
        with case.recovery(tree):
            tree.relays["farm-a"].restore()
        case.finish(tree, f"the farm finished its round alone, and contributed after {case.options.cut_s / 3:g} s")


@row("bridge-silent", "bridge silent: nothing arrives, nobody is told", "edge contributing")
def _(case: Case) -> None:
    with _mangled_bridge(case) as (tree, mangler):
        contribute_slowly(tree)
        mangler.fall_silent()
        time.sleep(case.options.cut_s / 3)
        with case.recovery(tree):
            mangler.come_back()
            full_speed(tree)
        case.finish(tree, f"after {case.options.cut_s / 3:g} s what was on its way arrived")


@row("bridge-flapping", "bridge flapping: ten times 1 s up, 1 s down", "edge contributing")
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        contribute_slowly(tree, SLOW / 5)
        for _ in range(10):
            tree.relays["farm-a"].cut()
            time.sleep(1)
            tree.relays["farm-a"].restore()
            time.sleep(1)
        with case.recovery(tree):
            full_speed(tree)
        case.finish(tree, "the edge sent what was missing")


@row("wifi-flapping", "Wi-Fi of a farm flapping: ten times 1 s up, 1 s down", "devices training and sending")
def _(case: Case) -> None:
    with case.running(plan(rounds=6), floats=LARGE) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        tree.lan_relays[EDGE_A].rate_bytes_per_s = SLOW
        tree.release("a1")
        for _ in range(10):
            tree.lan_relays[EDGE_A].cut()
            time.sleep(1)
            tree.lan_relays[EDGE_A].restore()
            time.sleep(1)
        with case.recovery(tree):
            full_speed(tree)
        case.finish(tree, "the devices sent what was missing")


@row("slow-link", "slow link: 64 kbit/s, a model of 280 kB", "all of the run")
def _(case: Case) -> None:
    with case.running(plan(rounds=2), floats=BIG, with_cloud=False) as tree:
        tree.relays["farm-a"].rate_bytes_per_s = MODEM
        tree.start_cloud()
        with case.recovery(tree, 300):
            pass
        case.finish(tree, "both rounds closed with the slow farm in them; recovered: one round", 300)


def _parts(case: Case, mangle: Mangle, said: str, *, on_bridge: bool) -> None:
    """Have the updates of one round go through `mangle`, and those of all others as they are."""
    context = _mangled_bridge(case) if on_bridge else _mangled_farm(case)
    with context as (tree, mangler):
        tree.hold("a1", "a2")
        tree.await_training("a1", 2)
        mangler.mangle = mangle
        with case.recovery(tree, 240):
            tree.release("a1", "a2")
        mangler.mangle = None
        if not mangler.count:
            case.wrong.append("nothing went through the mangler")
        case.finish(tree, f"{said} ({mangler.count} parts)")


@row("parts-twice", "each part of an update three times", "device to edge")
def _(case: Case) -> None:
    _parts(case, twice, "counted once", on_bridge=False)


@row("parts-twice-bridge", "each part of an update three times", "edge to cloud")
def _(case: Case) -> None:
    _parts(case, twice, "counted once", on_bridge=True)


@row("parts-shuffled", "parts of an update in another order", "device to edge")
def _(case: Case) -> None:
    _parts(case, in_another_order, "put together in their order", on_bridge=False)


@row("parts-corrupted", "one bit of every other part turned", "device to edge")
def _(case: Case) -> None:
    _parts(case, corrupted(random.Random(3)), "found out, and sent again", on_bridge=False)


@row("parts-corrupted-bridge", "one bit of every other part turned", "edge to cloud")
def _(case: Case) -> None:
    _parts(case, corrupted(random.Random(5)), "found out, and sent again", on_bridge=True)


@row("parts-truncated", "every other part cut short", "device to edge")
def _(case: Case) -> None:
    _parts(case, cut_short(random.Random(3)), "found out, and sent again", on_bridge=False)


def contribute_slowly(tree: Tree, rate: float = SLOW) -> None:
    """Return when the edge has sent the first of its contribution to g2."""
    tree.hold("a2")
    tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
    tree.relays["farm-a"].rate_bytes_per_s = rate
    witness = tree.witness(EDGE_A)
    tree.release("a2")
    witness.until(lambda heard: is_part(heard, EDGE_A, 2), "a part")


@contextmanager
def _mangled_bridge(case: Case) -> Iterator[tuple[Tree, Mangler]]:
    """Start a federation whose bridge of farm-a goes through a mangler, behind its relay."""
    manglers: list[Mangler] = []

    def insert(tree: Tree) -> None:
        manglers.append(Mangler(tree.brokers["cloud"].port))
        tree.relays["farm-a"].target_port = manglers[0].port

    with case.running(plan(), floats=MANY_PARTS, before=insert) as tree, closing(manglers[0]):
        yield tree, manglers[0]


@contextmanager
def _mangled_farm(case: Case) -> Iterator[tuple[Tree, Mangler]]:
    """Start a federation whose devices of farm-a go through a mangler, behind their relay."""
    manglers: list[Mangler] = []

    def insert(tree: Tree) -> None:
        manglers.append(Mangler(tree.brokers[EDGE_A].port))
        tree.lan_relays[EDGE_A].target_port = manglers[0].port

    with case.running(plan(), floats=MANY_PARTS, before=insert) as tree, closing(manglers[0]):
        yield tree, manglers[0]
