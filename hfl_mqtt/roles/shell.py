"""Between a node and the world: events in from a link, actions out to whoever carries them out.

A `Shell` has no thread and no clock of its own: the runner gives it both in production, the simulator in a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol.messages import KeyPart, Kind, Metrics, ModelPart
from hfl_mqtt.protocol.topics import Channel, Filter, Topic, aggregator_filters, parent, participant_filters
from hfl_mqtt.protocol.wire import Frame, decode, encode
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    ClearSlots,
    Connected,
    Counted,
    Event,
    Fetch,
    KeepResidual,
    Lost,
    Note,
    Received,
    RunOver,
    Save,
    Send,
    Work,
    note,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Arrived, Down, Link, LinkEvent, Rejected, Up

MetricValues = Mapping[str, int | float | str | None]


class World(Protocol):
    """What carries out the actions that are not messages."""

    def work(self, node: Node, work: Work) -> None:
        """Start the work; its end comes back as `Worked` or `WorkFailed`."""

    def cancel(self, node: Node, work_id: str) -> None:
        """Stop the work."""

    def counted(self, node: Node, counted: Counted) -> None:
        """Take it that the result of that work was accepted."""

    def keep(self, node: Node, keep: KeepResidual) -> None:
        """Put a residual on disk."""

    def save(self, node: Node, save: Save) -> None:
        """Make a model durable before returning."""

    def record(self, node: Node, entry: Note) -> None:
        """Write to the journal."""

    def vitals(self, node: Node) -> MetricValues:
        """Return what goes beside a node's own metrics: bytes, memory, temperature."""

    def over(self, node: Node, end: RunOver) -> None:
        """Take it that a run has ended."""


def filters(node: Node, federation: str) -> list[Filter]:
    """Return what a node reads."""
    up = participant_filters(federation, node.path) if parent(node.path) is not None else []
    down = [] if isinstance(node, ClientNode) else aggregator_filters(federation, node.path)
    return up + down


class Shell:
    """One node on one link.

    Args:
        node: the node.
        federation: its federation.
        link: its connection; opened by `start`, closed by `leave`. Whoever made it feeds its events to `feed`.
        world: carries out everything else.
    """

    def __init__(self, node: Node, federation: str, link: Link, world: World) -> None:
        self.node = node
        self.link = link
        #: Accepted updates of training: an aggregator's from its children, a device's own.
        self.updates = 0
        #: The node's own part of the metrics it last published.
        self.last_metrics: MetricValues = {}
        #: Payload bytes to and from the parent; for the root of the tree, from and to its children.
        self.payload_up = self.payload_down = 0
        self._federation = federation
        self._world = world
        if isinstance(node, ClientNode | EdgeNode):
            node.participant.meter = self._moved

    def _moved(self) -> tuple[int, int]:
        """Return the bytes sent and received on the link to the parent: a device's socket, what an edge says and hears.

        An edge's own socket also carries its farm, whose devices count it; towards the cloud its payloads are counted,
        without the few bytes of topic and header of each.
        """
        traffic = self.link.traffic
        if isinstance(self.node, ClientNode) and traffic.socket_out is not None and traffic.socket_in is not None:
            return traffic.socket_out, traffic.socket_in
        return self.payload_up, self.payload_down

    def start(self, now: float) -> None:
        """Begin and start connecting."""
        self.perform(self.node.start(now))
        self.link.open()

    def feed(self, event: LinkEvent | Event, now: float) -> None:
        """Take what the link or the work has to say."""
        match event:
            case Arrived():
                try:
                    self._arrived(event.frame, now)
                finally:
                    self.link.done(event)
            case Up():
                self.perform(
                    [note("connected"), *self.node.handle(Connected(session_present=event.session_present), now)]
                )
            case Down():
                self.perform(
                    [note("disconnected", reason=event.reason), *self.node.handle(Lost(reason=event.reason), now)]
                )
            case Rejected():
                self.perform([note("rejected", topic=event.topic, reason=event.reason)])
            case _:
                self.perform(self.node.handle(event, now))

    def tick(self, now: float) -> None:
        """Let the node look at the clock."""
        self.perform(self.node.tick(now))

    def leave(self) -> None:
        """Say the last figures and goodbye, and hang up: whoever watches sees this node leave, not vanish."""
        last = [Send(message=Metrics(values=dict(self.last_metrics)))] if self.last_metrics else []
        self.perform([*last, *self.node.leave()])
        self.link.hang_up()

    def _arrived(self, frame: Frame, now: float) -> None:
        if not frame.payload:
            return  # a retained message was deleted
        try:
            message, topic = decode(frame)
            if topic.federation != self._federation:
                raise Malformed(f"federation {topic.federation!r} is not ours")
            sender = topic.path
            if topic.channel is Channel.CMND:
                if topic.path != self.node.path:
                    raise Malformed(f"a command for {topic.path!r} came to {self.node.path!r}")
                sender = parent(topic.path) or ""
        except Malformed as error:
            self.perform([note("malformed", topic=frame.topic[:200], reason=str(error))])
            return
        self._count(len(frame.payload), is_from_above=sender == parent(self.node.path), channel=topic.channel)
        self.perform(self.node.handle(Received(message=message, sender=sender), now))

    def _count(self, size: int, *, is_from_above: bool, channel: Channel) -> None:
        if is_from_above:
            self.payload_down += size
        elif parent(self.node.path) is None and channel in (Channel.UP, Channel.TELE):
            self.payload_up += size

    def perform(self, actions: list[Action]) -> None:
        """Carry out actions, in their order."""
        node = self.node
        for action in actions:
            match action:
                case Send():
                    message = action.message
                    if isinstance(message, Metrics):
                        self.last_metrics = message.values
                        message = Metrics(values={**message.values, **self._world.vitals(node)})
                    frame = encode(message, self._federation, action.to or node.path)
                    self._count_sent(frame.size, message.channel, is_below=action.to is not None)
                    self.link.publish(frame)
                case ClearSlots():
                    for topic in self._slots(node.path, action):
                        self.link.publish(Frame(topic=topic, payload=b"", retain=True))
                case Fetch():
                    self.link.fetch(self._slots(parent(node.path) or "", action))
                case Counted():
                    self._world.counted(node, action)
                case KeepResidual():
                    self._world.keep(node, action)
                case Note():
                    self.updates += self._is_update(action)
                    self._world.record(node, action)
                case Work():
                    self._world.work(node, action)
                case CancelWork():
                    self._world.cancel(node, action.work_id)
                case Save():
                    self._world.save(node, action)
                case RunOver():
                    self._world.over(node, action)

    def _slots(self, path: str, action: ClearSlots | Fetch) -> list[str]:
        channel = KeyPart.channel if action.is_key else ModelPart.channel
        return [str(Topic(self._federation, path, channel, slot)) for slot in action.slots]

    def _is_update(self, entry: Note) -> bool:
        """Whether a note is of an update that counts here; an edge also notes that its own were accepted above."""
        is_from_child = "sender" in entry.fields
        is_ours = is_from_child != isinstance(self.node, ClientNode)
        return entry.event == "accepted" and entry.fields.get("kind") == Kind.TRAIN.value and is_ours

    def _count_sent(self, size: int, channel: Channel, *, is_below: bool) -> None:
        if parent(self.node.path) is None:
            self.payload_down += size
        elif not is_below and channel not in (Channel.DOWN, Channel.KEY):
            self.payload_up += size
