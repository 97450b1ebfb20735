"""What a shell counts: an aggregator its children's updates, a device its own, and evaluations nobody."""

from __future__ import annotations

import pytest

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.roles.process import Process
from hfl_mqtt.roles.shell import Shell
from hfl_mqtt.rounds.actions import Note, note
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink

EDGE = EdgeNode(path="cloud/a", boot=1, info=Info(role="edge", boot=1), arithmetic=TensorArithmetic())
CLIENT = ClientNode(path="cloud/a/1", boot=1, info=Info(role="client", boot=1))


def ignore(path: str, entry: Note) -> None:
    pass


@pytest.mark.parametrize(("node", "updates"), [(EDGE, 2), (CLIENT, 1)])
def test_updates_are_of_training_and_of_the_nodes_own_tier(node: Node, updates: int) -> None:
    link = MemoryLink(MemoryBroker("cloud/a"), node.path, [], lambda _event: None)
    shell = Shell(node, "fed1", link, Process(ignore))
    for kind in ("train", "evaluate"):
        shell.perform([note("accepted", sender=f"cloud/a/{child}", kind=kind) for child in (1, 2)])
        shell.perform([note("accepted", kind=kind), note("refused", kind=kind)])
    assert shell.updates == updates
