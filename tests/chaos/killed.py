"""Processes that are killed in each of their phases, and are back at once or never."""

from __future__ import annotations

from hfl_mqtt.protocol.messages import Phase, Receipt, RoundCall, UpdatePart
from tests.chaos.rows import PEER_CLIENT, PEER_CLOUD, PEER_EDGE, PEER_EDGE_BACK, Case, row
from tests.chaos.tree import A1, A2, EDGE_A, EDGE_B, Heard, Tree, plan

#: Values of a model that takes seconds on a link of `SLOW` bytes per second.
LARGE = 100_000
SLOW = 150_000.0
#: In the tables below: a farm or the cloud goes on without those that are gone.
HALF = (
    {"quorum": "50 %", "open_for": "3 min", "grace": "5 s"},
    {"quorum": "50 %", "open_for": "3 min", "grace": "2 s"},
)


@row("nothing", "none", "-")
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        with case.recovery(tree):
            tree.release("a1")
        case.finish(tree, "a round from its devices' answers on, to compare with")


# -------------------------------------------------------------- a client


@row("client-idle", "client killed, back at once", "idle, its update counted", peer=PEER_CLIENT)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        tree.kill(A1)
        with case.recovery(tree):
            tree.restart(A1)
            tree.note(EDGE_A, "joined", sender=A1, boot=next_boot(tree, A1))
            tree.release("b1")
        case.finish(tree, "its update of g2 stayed counted, it trained on from g3")


@row("client-fetching", "client killed, back at once", "model coming", peer=PEER_CLIENT)
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        _throttle_farm(tree, after_round=1)
        tree.witness(EDGE_A).until(lambda heard: is_call(heard, EDGE_A, 2), "the call")
        tree.kill(A1)
        _not_yet(case, tree, "a1", 2)
        with case.recovery(tree):
            tree.restart(A1)
            full_speed(tree)
        case.finish(tree, "it fetched the model anew and answered the same round")


@row("client-training", "client killed, back at once", "training", peer=PEER_CLIENT)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        tree.kill(A1)
        with case.recovery(tree):
            tree.restart(A1)
            tree.release("a1")
        case.finish(tree, "it trained again and answered the same round", again=1)


@row("client-sending", "client killed, back at once", "sending its update", peer=PEER_CLIENT)
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        tree.lan_relays[EDGE_A].rate_bytes_per_s = SLOW
        witness = tree.witness(EDGE_A)
        tree.release("a1")
        witness.until(lambda heard: is_part(heard, A1, 2), "a part")
        _kill_cut_off(tree)
        with case.recovery(tree):
            tree.restart(A1)
            full_speed(tree)
        case.finish(tree, "it sent what lay in its outbox, without training again")


@row("client-gone", "client killed for good", "training", peer=PEER_CLIENT)
def _(case: Case) -> None:
    with case.running(plan(tiers=HALF)) as tree:
        tree.hold("a1")
        tree.await_training("a1", 2)
        with case.recovery(tree):
            tree.kill(A1)
        case.finish(tree, "its farm went on without it: 1 of 2")


# -------------------------------------------------------------- an edge


@row("edge-idle", "edge killed, back at once", "idle, its contribution counted", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.note("cloud", "accepted", sender=EDGE_A, round="g2")
        tree.kill(EDGE_A)
        with case.recovery(tree):
            tree.restart(EDGE_A)
            tree.note("cloud", "joined", sender=EDGE_A, boot=next_boot(tree, EDGE_A))
            tree.release("b1")
        case.finish(tree, "its contribution to g2 stayed counted, the farm went on")


@row("edge-fetching", "edge killed, back at once", "model coming", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.note(EDGE_A, "accepted", sender=A1, round="g1.e1")
        tree.relays["farm-a"].rate_bytes_per_s = SLOW
        tree.witness(EDGE_A).until(lambda heard: is_call(heard, "cloud", 2), "the call")
        tree.kill(EDGE_A)
        with case.recovery(tree):
            tree.restart(EDGE_A)
            full_speed(tree)
        case.finish(tree, "it fetched the model anew and opened its round")


@row("edge-open", "edge killed, back at once", "round open, 1 of 2 accepted", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        tree.kill(EDGE_A)
        with case.recovery(tree):
            tree.restart(EDGE_A)
            tree.release("a2")
        case.finish(tree, "g2.e1 went on with the update it had")


@row("edge-closing", "edge killed, back at once", "round closing", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        witness = tree.witness(EDGE_A)
        tree.release("a2")
        witness.until(lambda heard: is_receipt(heard, A2, 2), "the last receipt")
        tree.kill(EDGE_A)
        with case.recovery(tree):
            tree.restart(EDGE_A)
        case.finish(tree, "g2.e1 closed with both updates")


@row("edge-sending", "edge killed, back at once", "contributing", peer=PEER_EDGE_BACK)
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.hold("a2")
        tree.note(EDGE_A, "accepted", sender=A1, round="g2.e1")
        tree.relays["farm-a"].rate_bytes_per_s = SLOW
        witness = tree.witness(EDGE_A)
        tree.release("a2")
        witness.until(lambda heard: is_part(heard, EDGE_A, 2), "a part")
        tree.kill(EDGE_A)
        with case.recovery(tree):
            tree.restart(EDGE_A)
            full_speed(tree)
        case.finish(tree, "its contribution stayed on its way, and counted once; nobody trained again")


@row("edge-gone", "edge killed for good, no standby", "round open", peer=PEER_EDGE)
def _(case: Case) -> None:
    with case.running(plan(tiers=HALF)) as tree:
        tree.hold("a1", "a2", "b1")
        tree.await_training("a1", 2)
        with case.recovery(tree):
            tree.kill(EDGE_A)
            tree.release("a1", "a2", "b1")
        case.finish(tree, "the cloud went on with the other farm")


# -------------------------------------------------------------- the cloud


@row("cloud-waiting", "cloud killed, back at once", "waiting for its edges", peer=PEER_CLOUD)
def _(case: Case) -> None:
    with case.running(plan(), with_cloud=False) as tree:
        tree.kill(EDGE_B)
        tree.start_cloud()
        tree.note("cloud", "waiting")
        tree.kill("cloud")
        with case.recovery(tree):
            tree.restart("cloud", EDGE_B)
        case.finish(tree, "it waited on, and began once both were there")


@row("cloud-opening", "cloud killed, back at once", "round opening, model going out", peer=PEER_CLOUD)
def _(case: Case) -> None:
    with case.running(plan(), floats=LARGE) as tree:
        tree.witness("cloud").until(lambda heard: is_call(heard, "cloud", 2), "the call")
        tree.kill("cloud")
        with case.recovery(tree):
            tree.restart("cloud")
        case.finish(tree, "it published the call and the model of g2 again")


@row("cloud-open", "cloud killed, back at once", "round open, 1 of 2 accepted", peer=PEER_CLOUD)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.note("cloud", "accepted", sender=EDGE_A, round="g2")
        tree.kill("cloud")
        with case.recovery(tree):
            tree.restart("cloud")
            tree.release("b1")
        case.finish(tree, "g2 went on with the update it had")


@row("cloud-closing", "cloud killed, back at once", "round closing", peer=PEER_CLOUD)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1")
        tree.note("cloud", "accepted", sender=EDGE_A, round="g2")
        witness = tree.witness("cloud")
        tree.release("b1")
        witness.until(lambda heard: is_receipt(heard, EDGE_B, 2), "the last receipt")
        tree.kill("cloud")
        with case.recovery(tree):
            tree.restart("cloud")
        case.finish(tree, "g2 closed with both updates")


@row("cloud-last", "cloud killed, back at once", "the run ending", peer=PEER_CLOUD)
def _(case: Case) -> None:
    with case.running(plan()) as tree:
        tree.hold("b1", number=4)
        tree.note("cloud", "accepted", sender=EDGE_A, round="g4")
        witness = tree.witness("cloud")
        tree.release("b1")
        witness.until(lambda heard: is_receipt(heard, EDGE_B, 4), "the last receipt")
        tree.kill("cloud")
        tree.restart("cloud")
        case.finish(tree, "the last round closed, the model was saved, the run is over")


def is_call(heard: Heard, path: str, number: int) -> bool:
    """Whether it is the call of an aggregator to a global round, or to a round within one."""
    call = heard.message
    return heard.path == path and isinstance(call, RoundCall) and call.round[0] == number and call.phase is Phase.OPEN


def is_part(heard: Heard, path: str, number: int) -> bool:
    """Whether it is a part of a node's update in a global round."""
    return heard.path == path and isinstance(heard.message, UpdatePart) and heard.message.round[0] == number


def is_receipt(heard: Heard, path: str, number: int) -> bool:
    """Whether it is the receipt for a node's update in a global round."""
    return heard.path == path and isinstance(heard.message, Receipt) and heard.message.round[0] == number


def next_boot(tree: Tree, path: str) -> int:
    """Return the boot under which a node that was started once comes back."""
    return int(tree.notes(path.rpartition("/")[0], "joined", sender=path)[0]["boot"]) + 1


def full_speed(tree: Tree) -> None:
    """Let all links be as fast as they can."""
    for relay in (*tree.lan_relays.values(), *tree.relays.values()):
        relay.rate_bytes_per_s = None


def _kill_cut_off(tree: Tree) -> None:
    """Kill a device with its link: else what the kernel holds of its update would still arrive."""
    tree.lan_relays[EDGE_A].cut()
    tree.kill(A1)
    tree.lan_relays[EDGE_A].restore()


def _throttle_farm(tree: Tree, *, after_round: int) -> None:
    tree.note(EDGE_A, "accepted", sender=A1, round=f"g{after_round}.e1")
    tree.lan_relays[EDGE_A].rate_bytes_per_s = SLOW


def _not_yet(case: Case, tree: Tree, name: str, number: int) -> None:
    if tree.trainings(name, number):
        case.wrong.append(f"the fault came too late: {name} was training already")
