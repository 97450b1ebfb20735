"""Between a node and the world: events in from a link, actions out to whoever carries them out.

A `Shell` has no thread and no clock of its own: the runner gives it both in production, the simulator in a simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Protocol

from hfl_mqtt.errors import Malformed, Unwritable
from hfl_mqtt.protocol.messages import KeyPart, Metrics, ModelPart, State, StateName
from hfl_mqtt.protocol.topics import (
    Channel,
    Filter,
    Topic,
    aggregator_filters,
    bridge_state,
    carries_parts,
    edge_filters,
    identity_filters,
    lease_filters,
    parent,
    participant_filters,
    path_of,
)
from hfl_mqtt.protocol.wire import Frame, decode, encode
from hfl_mqtt.rounds.actions import (
    Action,
    Bridged,
    CancelWork,
    ClearSlots,
    Connected,
    Counted,
    Event,
    Fetch,
    Lost,
    Move,
    Note,
    Persist,
    Received,
    Reconnect,
    RunOver,
    Save,
    Send,
    Work,
    note,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.lease import Leased
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Arrived, Down, Link, LinkEvent, Rejected, Up

MetricValues = Mapping[str, int | float | str | None]


#: How often at most it is looked whether other keys were revoked: when something happens, and never for its own sake.
LOOK_AGAIN_S = 10.0
#: How long after a disk could not take what must be durable it is tried again, and how soon where something happens.
HALT_RETRY_S = 10.0
_HALT_LEAST_S = 1.0


class World(Protocol):
    """What carries out the actions that are not messages."""

    def work(self, node: Node, work: Work) -> None:
        """Start the work; its end comes back as `Worked` or `WorkFailed`."""

    def cancel(self, node: Node, work_id: str) -> None:
        """Stop the work."""

    def counted(self, node: Node, counted: Counted) -> None:
        """Take it that the result of that work was accepted."""

    def persist(self, node: Node, changes: Persist) -> None:
        """Make changes durable before returning, or, where they are not urgent, with the next that are.

        Raises:
            Unwritable, OSError: the disk cannot take them now; nothing has changed, and they come again.
        """

    def save(self, node: Node, save: Save) -> None:
        """Make a model durable before returning; see `persist`."""

    def record(self, node: Node, entry: Note) -> None:
        """Write to the journal."""

    def vitals(self, node: Node) -> MetricValues:
        """Return what goes beside a node's own metrics: bytes, memory, temperature."""

    def over(self, node: Node, end: RunOver) -> None:
        """Take it that a run has ended."""

    def move(self, node: Node, move: Move) -> None:
        """Take it that the node has left this place, and let it go on at another."""

    def reconnect(self, node: Node) -> None:
        """Connect anew, as the node now is."""


def filters(node: Node, federation: str) -> list[Filter]:
    """Return what a node reads now."""
    if isinstance(node, Leased):
        own = lease_filters(federation, node.path)
        return own if node.node is None else own + filters(node.node, federation)
    bridge = edge_filters(node.path) if isinstance(node, EdgeNode) else []
    has_children = not isinstance(node, ClientNode)
    cards = identity_filters(federation, node.path, has_children=has_children) if node.signer is not None else []
    up = participant_filters(federation, node.path) if parent(node.path) is not None else []
    down = [] if isinstance(node, ClientNode) else aggregator_filters(federation, node.path)
    return cards + up + down + bridge


@dataclass(slots=True)
class _Due:
    """What a node wants done after one event, and the message that is acknowledged then."""

    actions: list[Action]
    arrived: Arrived | None = None
    #: Whether what it asks to be durable was demanded, and is so.
    is_demanded: bool = False
    is_durable: bool = False


class Shell:
    """One node on one link.

    What the node wants done is done in three steps, so that a loop may have many lists made durable at once: `take` and
    `look` collect, `demand` says what must be durable before anything else of it, `perform_due` does the rest. `start`,
    `feed` and `tick` do all three.

    While the disk cannot take what must be durable, the node stands still: nothing of what waits is done, nothing more
    is heard, and its state says so (`HALTED`).

    Args:
        node: the node.
        federation: its federation.
        link: its connection; opened by `start`, closed by `leave`. Whoever made it feeds its events to `feed`.
        world: carries out everything else.
    """

    def __init__(self, node: Node, federation: str, link: Link, world: World) -> None:
        self.node = node
        self.link = link
        #: The node's own part of the metrics it last published.
        self.last_metrics: MetricValues = {}
        #: Payload bytes to and from the parent; for the root of the tree, from and to its children.
        self.payload_up = self.payload_down = 0
        self._federation = federation
        self._world = world
        self._due: deque[_Due] = deque()
        self._last_state: State | None = None
        self._halted: str | None = None
        self._retry_s = self._halted_s = 0.0
        self._heard_while_halted: list[LinkEvent | Event] = []
        self._is_settling = False
        self._look_again_s = -inf
        if isinstance(node, Leased):
            node.on_lead = self._meter
        self._meter(node)

    def _meter(self, node: Node) -> None:
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

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        return self.node.next_deadline if self._halted is None else self._retry_s

    def start(self, now: float) -> None:
        """Begin and start connecting."""
        self.begin(now)
        self._settle(now)

    def feed(self, event: LinkEvent | Event, now: float) -> None:
        """Take what the link or the work has to say, and do what the node makes of it."""
        self.take(event, now)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Let the node look at the clock, and do what it makes of it."""
        self.look(now)
        self._settle(now)

    def leave(self, now: float) -> None:
        """Say the last figures and goodbye, and hang up: whoever watches sees this node leave, not vanish."""
        self._heard_while_halted.clear()
        self._retry_s = now
        try:
            self._settle(now)  # what is due already, and once more what could not be done
            if self._halted is None:
                last: list[Action] = []
                if self.last_metrics:
                    last.append(Send(message=Metrics(values=dict(self.last_metrics))))
                self._due.append(_Due([*last, *self.node.leave()]))
                self._settle(now)
            if self._halted is not None and self.node.may_speak and not self.node.has_expired(now):
                self._say(State(state=StateName.DISCONNECTED, boot=self.node.boot, reason=self._halted[:300]))
        finally:
            self.link.hang_up()

    # -------------------------------------------------------------- step by step, for a loop

    def begin(self, now: float) -> None:
        """Let the node begin, and start connecting."""
        self._due.append(_Due(self.node.start(now)))
        self.link.open()

    def take(self, event: LinkEvent | Event, now: float) -> None:
        """Collect what the node makes of an event."""
        if self._halted is not None:
            self._put_off(event, now)
            return
        arrived = event if isinstance(event, Arrived) else None
        self._look_again(now)
        try:
            self._due.append(_Due(self._heard(event, now), arrived))
        except BaseException:
            if arrived is not None:
                self.link.done(arrived)
            raise

    def look(self, now: float) -> None:
        """Collect what the node makes of the time."""
        if self._halted is None:
            self._due.append(_Due(self.node.tick(now)))

    def demand(self, now: float) -> Persist | None:
        """Return what must be durable before `perform_due`, in one transaction; None where there is nothing."""
        if self._halted is not None and now < self._retry_s:
            return None
        for due in self._due:
            due.is_demanded = True
        found = [
            action for due in self._due if not due.is_durable for action in due.actions if isinstance(action, Persist)
        ]
        if not found:
            return None
        changes = {key: value for one in found for key, value in one.changes.items()}
        return Persist(changes=changes, is_urgent=any(one.is_urgent for one in found))

    def perform_due(self, now: float) -> None:
        """Carry out what was demanded, which is durable now; a disk that takes no model halts this, too."""
        if self._halted is not None and now < self._retry_s:
            return
        for due in self._due:
            due.is_durable = due.is_demanded
        self._silence(now)
        while self._due and self._due[0].is_durable:
            due = self._due.popleft()
            due.actions = _sent_first(due.actions)
            try:
                for done, action in enumerate(due.actions):
                    try:
                        self._perform(action)
                    except Unwritable as error:
                        self._due.appendleft(_Due(due.actions[done:], due.arrived, is_demanded=True, is_durable=True))
                        self.halt(error, now)
                        return
            except BaseException:
                self._done(due)
                raise
            self._done(due)
        if self._halted is not None and not self._due:
            self._go_on(now)

    def halt(self, error: Exception, now: float) -> None:
        """Stand still: what is due must not be done, for the disk has not taken what stands before it."""
        self._retry_s, self._halted_s = now + HALT_RETRY_S, now
        for due in self._due:
            due.is_demanded = due.is_durable
        if str(error) != self._halted:
            self._halted = str(error)
            self._world.record(self.node, note("halted", reason=self._halted))
            self._say_halted()

    def perform(self, actions: list[Action]) -> None:
        """Carry out actions that ask for nothing to be durable, in their order."""
        for action in actions:
            self._perform(action)

    # -------------------------------------------------------------- inside

    def _look_again(self, now: float) -> None:
        """Look whether other keys were revoked meanwhile: before what was signed with them is heard."""
        signer = self.node.signer
        if signer is None or now < self._look_again_s:
            return
        self._look_again_s = now + LOOK_AGAIN_S
        found = signer.look_again()
        if found is not None:
            self._world.record(self.node, note("revoked", **found))

    def _settle(self, now: float) -> None:
        """Have what is due made durable, and do it; also what comes of it meanwhile, where a link answers at once."""
        if self._is_settling:
            return
        self._is_settling = True
        try:
            while self._due and (self._halted is None or now >= self._retry_s):
                demand = self.demand(now)
                if demand is not None:
                    try:
                        self._world.persist(self.node, demand)
                    except (Unwritable, OSError) as error:
                        self.halt(error, now)
                        return
                self.perform_due(now)
        finally:
            self._is_settling = False

    def _silence(self, now: float) -> None:
        """Let nothing be said that the node has no right to say any more, or that an old connection was to say."""
        end = len(self._due) if self.node.has_expired(now) else 0
        for index, due in enumerate(self._due):
            if any(isinstance(action, Reconnect) for action in due.actions):
                end = max(end, index)
        for index in range(end):
            self._due[index].actions = [action for action in self._due[index].actions if isinstance(action, Note)]

    def _done(self, due: _Due) -> None:
        if due.arrived is not None:
            self.link.done(due.arrived)

    def _put_off(self, event: LinkEvent | Event, now: float) -> None:
        """Keep an event for when the disk is there again; parts of blobs are asked for once more then, so not those."""
        if isinstance(event, Arrived) and carries_parts(event.frame.topic):
            self.link.done(event)
        else:
            if isinstance(event, Arrived) and not event.frame.qos:
                self._forget_older(event.frame.topic)
            self._heard_while_halted.append(event)
        if isinstance(event, Up):
            self._say_halted()
        self._retry_s = min(self._retry_s, max(now, self._halted_s + _HALT_LEAST_S))

    def _forget_older(self, topic: str) -> None:
        """Drop what came there before: of states and calls the newest holds, and a disk may be full for a month."""
        self._heard_while_halted = [
            event
            for event in self._heard_while_halted
            if not (isinstance(event, Arrived) and not event.frame.qos and event.frame.topic == topic)
        ]

    def _go_on(self, now: float) -> None:
        """Take up where the disk failed: say the state that holds, and hear what came meanwhile."""
        self._halted = None
        self._world.record(self.node, note("went_on", after_s=round(max(now - self._halted_s, 0.0), 3)))
        if self._last_state is not None and self.node.may_speak and not self.node.has_expired(now):
            self._say(self._last_state)
        waiting, self._heard_while_halted = self._heard_while_halted, []
        for event in waiting:
            self.feed(event, now)

    def _say_halted(self) -> None:
        if self._halted is not None and self.node.may_speak:
            self._say(State(state=StateName.HALTED, boot=self.node.boot, reason=self._halted[:300]))

    def _say(self, state: State) -> None:
        self.link.publish(encode(state, self._federation, self.node.path))

    def _heard(self, event: LinkEvent | Event, now: float) -> list[Action]:
        match event:
            case Arrived():
                return self._arrived(event.frame, now)
            case Up():
                return [note("connected"), *self.node.handle(Connected(session_present=event.session_present), now)]
            case Down():
                lost = Lost(reason=event.reason, is_cloned=event.is_cloned)
                return [note("disconnected", reason=event.reason), *self.node.handle(lost, now)]
            case Rejected():
                return [note("rejected", topic=event.topic, reason=event.reason)]
            case _:
                return self.node.handle(event, now)

    def _arrived(self, frame: Frame, now: float) -> list[Action]:
        if not frame.payload:
            return []  # a retained message was deleted
        if frame.topic == bridge_state(self.node.path):
            return self.node.handle(Bridged(is_up=frame.payload != b"0"), now)
        speaker = path_of(frame.topic)
        instead = self.node.judge(speaker, len(frame.payload), now)
        if instead is not None:
            return instead
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
            malformed = note("malformed", topic=frame.topic[:200], reason=str(error))
            return [malformed, *self.node.malformed(speaker, str(error), now)]
        self._count(len(frame.payload), is_from_above=sender == parent(self.node.path), channel=topic.channel)
        return self.node.handle(Received(message=message, sender=sender), now)

    def _count(self, size: int, *, is_from_above: bool, channel: Channel) -> None:
        if is_from_above:
            self.payload_down += size
        elif parent(self.node.path) is None and channel in (Channel.UP, Channel.TELE):
            self.payload_up += size

    def _perform(self, action: Action) -> None:
        node = self.node
        match action:
            case Send():
                message = action.message
                if isinstance(message, Metrics):
                    self.last_metrics = message.values
                    message = Metrics(values={**message.values, **self._world.vitals(node)})
                elif isinstance(message, State):
                    self._last_state = message
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
            case Persist():
                pass  # made durable before, with all others of its list
            case Note():
                self._world.record(node, action)
            case Work():
                self._world.work(node, action)
            case CancelWork():
                self._world.cancel(node, action.work_id)
            case Save():
                self._world.save(node, action)
            case RunOver():
                self._world.over(node, action)
            case Move():
                self._world.move(node, action)
            case Reconnect():
                self._world.reconnect(node)

    def _slots(self, path: str, action: ClearSlots | Fetch) -> list[str]:
        channel = KeyPart.channel if action.is_key else ModelPart.channel
        return [str(Topic(self._federation, path, channel, slot)) for slot in action.slots]

    def _count_sent(self, size: int, channel: Channel, *, is_below: bool) -> None:
        if parent(self.node.path) is None:
            self.payload_down += size
        elif not is_below and channel not in (Channel.DOWN, Channel.KEY):
            self.payload_up += size


def _sent_first(actions: list[Action]) -> list[Action]:
    """Return actions with what is sent before the notes beside it: somebody waits for the one, and nobody for a note.

    Both keep their own order, and nothing changes places with any other action.
    """
    found: list[Action] = []
    noted: list[Action] = []
    for action in actions:
        if isinstance(action, Note):
            noted.append(action)
            continue
        if not isinstance(action, Send | Persist):
            found += noted
            noted.clear()
        found.append(action)
    return found + noted
