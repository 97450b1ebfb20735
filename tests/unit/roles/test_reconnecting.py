"""A node that changes what it is connects anew, and says nothing that it has no right to say any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hfl_mqtt.errors import Unwritable
from hfl_mqtt.protocol.messages import Buffer, Lease, State, StateName
from hfl_mqtt.protocol.topics import bridge_state
from hfl_mqtt.protocol.wire import Frame, decode, encode
from hfl_mqtt.roles.shell import HALT_RETRY_S, Shell, filters
from hfl_mqtt.rounds.actions import Bridged, Note, Persist
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.lease import Leased
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Arrived, Up
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink
from tests.unit.rounds.trees import MATH, info

FED, EDGE = "fed1", "cloud/a"
FOR_S = 15.0


def edge(epoch: int, saved: Mapping[str, Buffer]) -> EdgeNode:
    return EdgeNode(path=EDGE, boot=epoch, info=info("edge", epoch), arithmetic=MATH, saved=saved)


class World:
    """Connects anew when it is asked to, and takes nothing to its disk while that is full."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("b")
        self.node = Leased(path=EDGE, holder="box-1", for_s=FOR_S, make=edge, saved=dict)
        self.notes: list[str] = []
        self.is_full = False
        self.now = 0.0
        self.links: list[MemoryLink] = []
        self.shell = Shell(self.node, FED, self._link(), self)  # type: ignore[arg-type]  # what it does not need is not here

    def _link(self) -> MemoryLink:
        node = self.node
        will = encode(node.will, FED, EDGE) if node.will is not None else None
        count = len(self.links) + 1

        def take(event: Any) -> None:
            if count == len(self.links):
                self.shell.feed(event, self.now)

        link = MemoryLink(self.broker, node.client_id, filters(node, FED), take, will=will)
        self.links.append(link)
        return link

    def reconnect(self, node: Node) -> None:
        assert node is self.node
        self.shell.link.close()
        self.shell.link = self._link()
        self.shell.link.open()

    def persist(self, node: Node, changes: Persist) -> None:  # noqa: ARG002
        if self.is_full:
            raise Unwritable("the card is full")

    def record(self, node: Node, entry: Note) -> None:  # noqa: ARG002
        self.notes.append(entry.event)

    def lead(self) -> None:
        self.shell.start(self.now)
        self.broker.deliver_due(self.now)
        self.now = 2.0
        self.shell.tick(self.now)
        for _ in range(5):
            self.broker.deliver_due(self.now)
        assert self.node.may_speak

    @property
    def state(self) -> State:
        (frame,) = self.broker.retained(f"hfl/{FED}/{EDGE}/@/stat/state")
        found = decode(frame)[0]
        assert isinstance(found, State)
        return found


def test_a_standby_reads_only_of_the_lease_and_a_leader_all_that_an_edge_reads() -> None:
    world = World()
    own = [each.topic for each in filters(world.node, FED)]
    assert own == [f"hfl/{FED}/{EDGE}/@/stat/lease", f"hfl/{FED}/{EDGE}/@/stat/state"]
    world.lead()
    assert [each.topic for each in filters(world.node, FED)] == own + [each.topic for each in filters(edge(1, {}), FED)]
    assert bridge_state(EDGE) in [each.topic for each in filters(edge(1, {}), FED)]


def test_it_leads_over_a_new_connection_with_a_will_of_its_epoch() -> None:
    world = World()
    world.lead()
    assert len(world.links) == 2
    assert (world.state.state, world.state.boot) == (StateName.READY, world.node.boot)
    world.shell.link.crash()  # type: ignore[attr-defined]
    world.broker.deliver_due(world.now)
    assert (world.state.state, world.state.boot) == (StateName.LOST, world.node.boot)


@pytest.mark.parametrize("payload", [b"0", b"1"])
def test_what_the_broker_says_of_its_bridge_becomes_an_event(payload: bytes) -> None:
    world = World()
    world.lead()
    seen: list[Any] = []
    handle = world.node.handle

    def listen(event: Any, now: float) -> Any:
        seen.append(event)
        return handle(event, now)

    world.node.handle = listen  # type: ignore[method-assign]
    world.shell.feed(Arrived(frame=Frame(topic=bridge_state(EDGE), payload=payload, retain=True)), world.now)
    assert seen == [Bridged(is_up=payload == b"1")]


def test_a_lease_that_ran_out_while_the_disk_was_full_lets_nothing_out_that_waited() -> None:
    world = World()
    world.lead()
    leader = world.node.boot
    world.is_full = True
    # Another's bridge goes down: the edge wants to put that down, and to say its state.
    world.shell.feed(Arrived(frame=Frame(topic=bridge_state(EDGE), payload=b"0", retain=True)), world.now)
    world.broker.deliver_due(world.now)
    assert world.state.state is StateName.HALTED
    said: list[Frame] = []
    world.shell.link.publish = said.append  # type: ignore[method-assign, assignment]
    world.is_full, world.now = False, world.now + max(FOR_S, HALT_RETRY_S) + 1.0
    world.shell.tick(world.now)
    world.shell.tick(world.now)
    assert said == [], "whatever it had to say, another may lead by now"
    assert "steps_down" in world.notes
    assert leader != world.node.boot == 0


def test_what_an_old_connection_was_to_say_is_not_said() -> None:
    world = World()
    world.lead()
    higher = Lease(epoch=world.node.boot + 1000, holder="box-2", for_s=FOR_S)
    said: list[Frame] = []
    world.shell.link.publish = said.append  # type: ignore[method-assign, assignment]
    world.shell.take(Up(session_present=True), world.now)  # it says its lease again, and then hears of another's
    world.shell.take(Arrived(frame=encode(higher, FED, EDGE)), world.now)
    world.shell.demand(world.now)
    world.shell.perform_due(world.now)
    assert said == []
    assert world.node.node is None
    assert len(world.links) == 3
