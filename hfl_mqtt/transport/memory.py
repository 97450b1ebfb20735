"""A broker in memory under a virtual clock, and links to it: whole federations in one thread, equal for equal seeds.

It keeps what the machines rely on: retained messages, wills, sessions that keep QoS 1 for who is away, a window of
unacknowledged messages; bridges join brokers (see `bridges`). It also breaks what they may not rely on: `Faults` lose,
repeat, delay and reorder, and a broker may be killed and started again with all, some or nothing of what it knew. A
loss here is a loss to the application, even at QoS 1, as when a broker's queue overflows or its disk forgets.

Nothing moves by itself. Every hop is scheduled, and `deliver_due` makes it happen:

>>> from hfl_mqtt.transport.link import Arrived, Up
>>> broker, heard = MemoryBroker(), []
>>> cloud = MemoryLink(broker, "cloud", [Filter(topic="up/+", qos=1)], heard.append)
>>> device = MemoryLink(broker, "cloud/pi", [], lambda event: None)
>>> cloud.open(); device.open(); device.publish(Frame(topic="up/0", payload=b"weights"))
>>> broker.next_due
0.0
>>> broker.deliver_due(0.0)
>>> [type(event).__name__ for event in heard]
['Up', 'Arrived']
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport.faults import Faults, Lane, Wire
from hfl_mqtt.transport.link import Arrived, Down, Sink, Traffic, Up
from hfl_mqtt.transport.matching import FilterTree, TopicTree

__all__ = ["Faults", "Kept", "MemoryBroker", "MemoryLink", "Subscriber", "Wire"]

#: As Mosquitto's `max_inflight_messages`: so many messages of QoS 1 may await `done`, then the broker holds the rest.
RECEIVE_MAXIMUM = 20


class Subscriber(Protocol):
    """Who takes messages at a broker: a session, or one direction of a bridge."""

    def take(self, frame: Frame, qos: int) -> None:
        """Take a published message; `frame` is as published, `qos` what was subscribed to."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a broker has on disk: retained messages, and of each session its filters and what waits in it."""

    retained: tuple[Frame, ...] = ()
    sessions: Mapping[str, tuple[Mapping[str, int], tuple[Frame, ...]]] = field(default_factory=dict)


class Ending(Protocol):
    """A bridge, as the brokers know it that it joins."""

    def look(self) -> None:
        """See whether both brokers are up."""

    def return_to(self, broker: MemoryBroker, *, knows_all: bool) -> None:
        """Take it that a broker is back: it knows what waited there for the other, or has forgotten it."""


class MemoryBroker:
    """A broker; those of one tree share a `wire`, so that one clock drives them all.

    `faults` holds for every link that has none of its own, and may change at any time.
    """

    def __init__(self, name: str = "broker", *, seed: int = 0, faults: Faults | None = None, wire: Wire | None = None):
        self.name = name
        self.faults = faults
        self.wire = wire or Wire(seed)
        self._filters: FilterTree[tuple[Subscriber, int]] = FilterTree()
        self._retained: TopicTree[Frame] = TopicTree()
        self._sessions: dict[str, _Session] = {}
        #: Those that want to be connected, and the bridges that end here.
        self._links: dict[MemoryLink, None] = {}
        self._bridges: list[Ending] = []
        self.is_up = True

    @property
    def next_due(self) -> float | None:
        """When the next thing arrives anywhere on this broker's wire, or None."""
        return self.wire.next_due

    def deliver_due(self, now_s: float) -> None:
        """Let everything on this broker's wire arrive that is due by `now_s`; the sinks are called from here."""
        self.wire.deliver_due(now_s)

    def retained(self, pattern: str = "#") -> list[Frame]:
        """Return the retained messages that a filter matches."""
        return list(self._retained.matching(pattern))

    def forget(self) -> None:
        """Lose all retained messages and the sessions of whoever is away, as after a power cut without a disk."""
        self._retained = TopicTree()
        for client_id, session in list(self._sessions.items()):
            if session.link is None:
                self.end_session(client_id)

    # ---- what happens to brokers

    def kept(self) -> Kept:
        """Return what a broker with persistence would find again, were it killed now."""
        sessions = {name: (dict(each.patterns), each.kept()) for name, each in self._sessions.items()}
        return Kept(tuple(self._retained.matching("#")), sessions)

    def kill(self) -> None:
        """Die: every link and bridge is lost, no will is said, nothing is remembered. Idempotent."""
        if not self.is_up:
            return
        self.is_up = False
        for link in list(self._links):
            link.lose_broker()
        for each in self._bridges:
            each.look()
        self._retained, self._filters, self._sessions = TopicTree(), FilterTree(), {}

    def begin(self, kept: Kept | None = None) -> None:
        """Start again with what was kept, and let links and bridges come back. Idempotent."""
        if self.is_up:
            return
        self.is_up = True
        kept = kept or Kept()
        for frame in kept.retained:
            self._retained.set(frame.topic, frame)
        for client_id, (patterns, waiting) in kept.sessions.items():
            self._sessions[client_id] = _Session(self, client_id)
            self._sessions[client_id].remember(patterns, waiting)
        for link in list(self._links):
            link.call_again()
        for each in self._bridges:
            each.return_to(self, knows_all=bool(kept.sessions))

    # ---- for links and bridges

    def accept(self, frame: Frame, came_by: Subscriber | None = None) -> None:
        """Take a message in: keep it if it is retained, and hand it to every subscriber but the bridge it came by."""
        if frame.retain and frame.payload:
            self._retained.set(frame.topic, frame)
        elif frame.retain:
            self._retained.drop(frame.topic)
        for subscriber, qos in list(self._filters.matching(frame.topic)):
            if subscriber is not came_by:
                subscriber.take(frame, qos)

    def attach(self, link: MemoryLink) -> None:
        """Take it that a link wants to be connected from now on."""
        self._links[link] = None

    def detach(self, link: MemoryLink) -> None:
        """Take it that a link will not come again."""
        self._links.pop(link, None)

    def join(self, bridge: Ending) -> None:
        """Take it that a bridge ends here."""
        self._bridges.append(bridge)

    def subscribe(self, pattern: str, name: str, subscriber: Subscriber, qos: int) -> None:
        """Add or change a subscription."""
        self._filters.at(pattern)[name] = (subscriber, qos)

    def unsubscribe(self, pattern: str, name: str) -> None:
        """End a subscription, if there is one."""
        self._filters.at(pattern).pop(name, None)

    def session(self, client_id: str) -> tuple[_Session, bool]:
        """Return the session of a client, and whether it was there before."""
        was_there = client_id in self._sessions
        if not was_there:
            self._sessions[client_id] = _Session(self, client_id)
        return self._sessions[client_id], was_there

    def expire(self, session: _Session) -> None:
        """Forget a session that nobody has come back to."""
        if session.link is None and self._sessions.get(session.client_id) is session:
            self.end_session(session.client_id)

    def end_session(self, client_id: str) -> None:
        """Forget a session with its subscriptions and what it kept."""
        session = self._sessions.pop(client_id, None)
        if session is not None:
            session.forget_fetches()
            for pattern in session.patterns:
                self.unsubscribe(pattern, client_id)


class _Session:
    """What a broker knows of a client, connected (`link`) or not."""

    def __init__(self, broker: MemoryBroker, client_id: str) -> None:
        self.broker = broker
        self.link: MemoryLink | None = None
        self.patterns: dict[str, int] = {}
        self.client_id = client_id
        self._fetches: dict[str, _Fetch] = {}
        self._waiting: deque[Frame] = deque()
        self._unacked: dict[int, Frame] = {}
        self._tokens = count(1)

    def take(self, frame: Frame, qos: int) -> None:
        # To subscribers it is news, not a memory; only a subscription brings the retained flag.
        self._give(frame, min(frame.qos, qos), retain=False)

    def kept(self) -> tuple[Frame, ...]:
        """Return what waits here, and what was sent and is not acknowledged."""
        return (*self._unacked.values(), *self._waiting)

    def remember(self, patterns: Mapping[str, int], waiting: Sequence[Frame]) -> None:
        """Be the session that was kept."""
        for pattern, qos in patterns.items():
            self.patterns[pattern] = qos
            self.broker.subscribe(pattern, self.client_id, self, qos)
        self._waiting.extend(waiting)

    def begin(self, link: MemoryLink) -> None:
        """Attach a connection. What was not acknowledged is delivered again, under new tokens, before the rest.

        What an earlier connection asked for with `fetch` is forgotten.
        """
        self.forget_fetches()
        self.link = link
        self._waiting.extendleft(reversed(self._unacked.values()))
        self._unacked.clear()

    def subscribe(self, filters: Sequence[Filter]) -> None:
        """Take the filters of a connection and give what is retained under those that want it, known or not."""
        for each in filters:
            self.patterns[each.topic] = each.qos
            self.broker.subscribe(each.topic, self.client_id, self, each.qos)
            if each.wants_retained:
                for frame in self.broker.retained(each.topic):
                    self._give(frame, min(frame.qos, each.qos), retain=True)

    def fetch(self, topic: str) -> None:
        """Give what is retained on a topic; where nothing is, the next that is said there."""
        kept = self.broker.retained(topic)
        if kept:
            self.end_fetch(topic)
            self._give(kept[0], 0, retain=True)
        else:
            self._fetches[topic] = waiting = _Fetch(self, topic)
            self.broker.subscribe(topic, waiting.name, waiting, 0)

    def end_fetch(self, topic: str) -> None:
        """Wait no longer for what was asked for."""
        waiting = self._fetches.pop(topic, None)
        if waiting is not None:
            self.broker.unsubscribe(topic, waiting.name)

    def forget_fetches(self) -> None:
        """Wait no longer for anything that was asked for."""
        for topic in list(self._fetches):
            self.end_fetch(topic)

    def deliver(self) -> None:
        """Send on what waits, as far as the client's window is open."""
        while self.link is not None and self._waiting and len(self._unacked) < self.link.receive_maximum:
            frame, token = self._waiting.popleft(), next(self._tokens)
            self._unacked[token] = frame
            if not self.link.bring(Arrived(frame=frame, token=token)):
                del self._unacked[token]

    def done(self, token: int) -> None:
        """The client has dealt with a message; nothing happens if it had before, or in an earlier connection."""
        if self._unacked.pop(token, None) is not None:
            self.deliver()

    def _give(self, frame: Frame, qos: int, *, retain: bool) -> None:
        if frame.retain != retain or frame.qos != qos:
            frame = Frame(topic=frame.topic, payload=frame.payload, retain=retain, qos=qos)
        if qos:
            self._waiting.append(frame)
            self.deliver()
        elif self.link is not None:
            self.link.bring(Arrived(frame=frame))


class _Fetch:
    """A subscription to one topic that the first message ends."""

    def __init__(self, session: _Session, topic: str) -> None:
        self.name = f"{session.client_id} fetches"
        self._session, self._topic = session, topic

    def take(self, frame: Frame, qos: int) -> None:
        self._session.end_fetch(self._topic)
        self._session.take(frame, qos)


class MemoryLink:
    """A link to a `MemoryBroker`, see `Link`; for one thread only.

    Besides `close` it can `crash` (the process is gone) and be `cut` (the network is gone) until `restore`. A new link
    with the client id of one that crashed finds its session, as a restarted process does.

    Args:
        broker: where to connect.
        client_id: the session's name at the broker: the node's path.
        filters: what to subscribe to; they must not overlap.
        sink: takes the events, from within `deliver_due` and `cut`; it must only enqueue.
        will: what the broker says when the link is cut or crashes.
        clean: forget the session when the link goes.
        expiry_s: forget it when the link has been gone for so long; None never does.
        receive_maximum: how many messages of QoS 1 may await `done`.
        faults: in place of the broker's, for this link only.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        filters: Sequence[Filter],
        sink: Sink,
        *,
        will: Frame | None = None,
        clean: bool = False,
        expiry_s: float | None = None,
        receive_maximum: int = RECEIVE_MAXIMUM,
        faults: Faults | None = None,
    ) -> None:
        self.client_id = client_id
        self.receive_maximum = receive_maximum
        self.faults = faults
        self._broker = broker
        self._filters = list(filters)
        self._sink = sink
        self._will = will
        self._is_clean, self._expiry_s = clean, expiry_s
        self._session: _Session | None = None
        self._connection = 0
        self._is_open = self._is_gone = self._is_cut = False
        self._outbox: deque[Frame] = deque()
        self._up = Lane(broker.wire, client_id)
        self._down = Lane(broker.wire, client_id)
        self._payload_out = self._payload_in = 0

    # ---- the methods of Link

    def open(self) -> None:
        """Start connecting; `Up` comes with the next `deliver_due`, unless the link is cut.

        Raises:
            Misuse: the link was opened before.
        """
        if self._is_open or self._is_gone:
            raise Misuse("a link is opened once; make a new one to connect again")
        self._is_open = True
        self._broker.attach(self)
        if not self._is_cut:
            self._call()

    def publish(self, frame: Frame) -> None:
        """Hand a frame over: QoS 1 waits while the link is down, QoS 0 is dropped then.

        Raises:
            Misuse: after `close` or `crash`, or the QoS is neither 0 nor 1.
        """
        if self._is_gone:
            raise Misuse(f"publish on {frame.topic} after close")
        if frame.qos not in (0, 1):
            raise Misuse(f"QoS {frame.qos} on {frame.topic}: this protocol uses 0 and 1")
        if self._session is not None:
            self._send(frame)
        elif frame.qos:
            self._outbox.append(frame)

    def done(self, arrived: Arrived) -> None:
        """Acknowledge a message; one from an earlier connection is not, the broker delivers it again by itself."""
        if self._session is not None:
            self._session.done(arrived.token)

    def fetch(self, topics: Sequence[str]) -> None:
        """Ask the broker for what it retains on these topics; nothing is asked while the link is down."""
        connection = self._connection
        if self._session is None:
            return
        for topic in topics:
            self._up.signal(self._faults, partial(self._fetch, topic, connection), topic)

    def hang_up(self) -> None:
        """Close; there is nothing to wait for here. Idempotent."""
        self.close()

    def close(self) -> None:
        """Disconnect; what was published while up still goes out, and no will is said. Idempotent."""
        if not self._is_gone:
            self._is_gone = True
            self._broker.detach(self)
            self._hang_up(with_will=False)

    @property
    def pending(self) -> int:
        """How many frames of QoS 1 wait for the link to come up; once sent, nothing more is known of them."""
        return len(self._outbox)

    @property
    def traffic(self) -> Traffic:
        """A snapshot of the counters; there is no socket here."""
        return Traffic(self._payload_out, self._payload_in)

    # ---- what happens to links

    @property
    def is_up(self) -> bool:
        """Whether the broker and this link know each other connected."""
        return self._session is not None

    def crash(self) -> None:
        """End as a killed process does: what waited here is gone, the broker says the will, the sink hears nothing."""
        if not self._is_gone:
            self._is_gone = True
            self._broker.detach(self)
            self._outbox.clear()
            self._hang_up(with_will=True)

    def cut(self) -> None:
        """Lose the network: `Down`, and the broker says the will at once. Idempotent."""
        if not (self._is_cut or self._is_gone):
            self._is_cut = True
            self._lose("the link was cut")

    def restore(self) -> None:
        """Have the network again; `Up` comes with the next `deliver_due`. Idempotent."""
        if self._is_cut:
            self._is_cut = False
            if self._is_open and not self._is_gone:
                self._call()

    # ---- between link and broker

    def bring(self, arrived: Arrived) -> bool:
        """For the broker: send a message to this link; returns False where it is lost on the way."""
        connection, token = self._connection, arrived.token

        def arrive(frame: Frame) -> None:
            # What was on its way when a connection ended does not arrive by the next.
            if connection == self._connection and self._session is not None:
                self._payload_in += len(frame.payload)
                self._sink(arrived if frame is arrived.frame else Arrived(frame=frame, token=token))

        return self._down.carry(arrived.frame, self._faults, arrive)

    def lose_broker(self) -> None:
        """For the broker: it is dead, and says nothing for anybody."""
        if self._hang_up(with_will=False):
            self._sink(Down(reason=f"{self._broker.name} is gone"))

    def call_again(self) -> None:
        """For the broker: it is back."""
        if not self._is_cut and self._session is None:
            self._call()

    def take_over(self) -> None:
        """For the broker: another link came with our client id, so this one must go."""
        self._lose(f"another program connected to {self._broker.name} as {self.client_id!r}; stop one of the two", True)

    @property
    def _faults(self) -> Faults | None:
        return self.faults if self.faults is not None else self._broker.faults

    def _call(self) -> None:
        self._up.signal(self._faults, partial(self._connected, self._connection))

    def _fetch(self, topic: str, connection: int) -> None:
        if connection == self._connection and self._session is not None:
            self._session.fetch(topic)

    def _connected(self, connection: int) -> None:
        is_late = connection != self._connection or self._session is not None
        if is_late or self._is_cut or self._is_gone or not self._broker.is_up:
            return
        session, session_present = self._broker.session(self.client_id)
        if session.link is not None:
            session.link.take_over()
            session, session_present = self._broker.session(self.client_id)
        if self._is_clean and session_present:
            self._broker.end_session(self.client_id)
            session, session_present = self._broker.session(self.client_id)
        session.begin(self)
        self._session = session
        self._sink(Up(session_present=session_present))
        session.deliver()
        session.subscribe(self._filters)
        while self._outbox:
            self._send(self._outbox.popleft())

    def _send(self, frame: Frame) -> None:
        frame = frame.whole()
        self._payload_out += len(frame.payload)
        self._up.carry(frame, self._faults, self._reach)

    def _reach(self, frame: Frame) -> None:
        """Let a message arrive at the broker; where that has died meanwhile, QoS 1 is sent again to its next life."""
        if self._broker.is_up:
            self._broker.accept(frame)
        elif frame.qos and not self._is_gone:
            self._outbox.append(frame)

    def _lose(self, reason: str, is_fatal: bool = False) -> None:
        if self._hang_up(with_will=True):
            self._sink(Down(reason=reason, is_fatal=is_fatal))

    def _hang_up(self, *, with_will: bool) -> bool:
        """End the connection at both sides; returns whether there was one."""
        self._connection += 1
        session, self._session = self._session, None
        if session is None:
            return False
        session.link = None
        if self._is_clean:
            self._broker.end_session(self.client_id)
        elif self._expiry_s is not None:
            wire = self._broker.wire
            wire.schedule(wire.now_s + self._expiry_s, partial(self._broker.expire, session))
        if with_will and self._will is not None:
            # Behind what was sent before it.
            self._up.carry(self._will, None, self._reach_for_the_dead)
        return True

    def _reach_for_the_dead(self, will: Frame) -> None:
        if self._broker.is_up:
            self._broker.accept(will)
