"""A link over paho-mqtt 2: MQTT 5 to the local broker, a session that outlives the connection, acknowledged by hand.

Frames of QoS 1 wait in a queue of our own and paho holds only the few in flight, because paho resends everything it
holds at once on a reconnect, and goes on resending a packet that the broker will never take.

All links of a process live on the one thread of `Network`: a thousand need no more threads than one. The methods of
`Link` only leave word for it; paho's client is touched there alone, but for connecting, which may block and is done
aside, while nobody else touches that client.
"""

from __future__ import annotations

import logging
import math
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport import network, packets, reasons, tls
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Rejected, Sink, Traffic, Up
from hfl_mqtt.transport.takeovers import STEADY_S, Takeovers
from hfl_mqtt.transport.tcp import ByteMeter

#: Unacknowledged frames on the way out; the broker's own Receive Maximum may lower it.
MAX_IN_FLIGHT = 20
SESSION_EXPIRY_S = 7 * 86_400
#: How long `close` waits for acknowledgements, and after that for the goodbye to leave.
CLOSE_WAIT_S = 5.0
_GOODBYE_WAIT_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
#: Waits double no more often than this, so that they stay numbers.
_MAX_DOUBLINGS = 10
#: Decrypted packets that are read at once, before other links have their turn.
_MAX_BURST = 64

_logger = logging.getLogger(__name__)
_logger.addFilter(reasons.OnceForAll())


class MqttLink:
    """One connection to a broker, see `Link`; events reach `sink` from the network's thread, so it must only enqueue.

    Args:
        account: where to connect and as whom.
        filters: what to subscribe to on every connect. They must not overlap: an MQTT 5 broker delivers one copy per
            matching filter.
        sink: takes the events. After `Up` and until the next `Down` the link is up; between two `Up`s there may be
            several `Down`s, one per distinct reason. A message never comes before the `Up` of its connection.
        will: what the broker says for us when we vanish.
        client_id: the session's name at the broker, unique there; the user name by default. With "" the broker
            makes one up, which goes with `clean`.
        session_expiry_s: how long the broker keeps the session of a node that is away.
        keepalive_s: a packet must pass in half of it, see the broker notes on slow links.
        receive_maximum: the most messages of QoS 1 that the broker may leave with us before `done`. Mosquitto itself
            stops at 20 by default (`max_inflight_messages`), whatever is asked here.
        clean: forget the session at every connect, for viewers that have nothing to miss.
        retry_s: the shortest and the longest wait between attempts to connect. Each wait is twice the one before;
            after a refusal that only a person can mend, the longest holds at once.
        pauses_s: the same where another program keeps connecting under our name.
    """

    def __init__(
        self,
        account: Account,
        filters: Sequence[Filter],
        sink: Sink,
        *,
        will: Frame | None = None,
        client_id: str | None = None,
        session_expiry_s: int = SESSION_EXPIRY_S,
        keepalive_s: int = 60,
        receive_maximum: int | None = None,
        clean: bool = False,
        retry_s: tuple[float, float] = (1.0, 30.0),
        pauses_s: tuple[float, float] = (5.0, 600.0),
    ) -> None:
        self._account = account
        self._filters = list(filters)
        self._sink = sink
        self._retry_s = retry_s
        self._care_every_s = keepalive_s / 10
        #: The largest packet the broker takes, once it has said so.
        self.maximum_packet_size: int | None = None

        # Shared with other threads, under the lock.
        self._lock = threading.Lock()
        self._outbox: deque[Frame] = deque()
        self._in_flight: dict[int, str] = {}  # mid -> topic
        self._is_open = self._is_closing = self._is_gone = self._is_up = False
        self._close_by_s = math.inf
        self._gone: threading.Event | None = None  # for who waits in `close`
        self._meter = ByteMeter()
        self._payload_out = self._payload_in = 0

        # Word left for the network's thread.
        self._network = network.shared()
        self._is_called = False
        self._fleeting: list[Frame] = []  # of QoS 0; short lists, for an empty deque takes more memory than ten of them
        self._done: list[int] = []
        self._asked: list[str] = []

        # The network's alone.
        self._sock: Any = None  # of the connection, from when it stands
        self._fault: ssl.SSLError | None = None  # of the last one, where TLS knows why it ended
        self._is_writing = False
        self._is_connected = self._is_refused = self._is_failing = self._is_leaving = False
        self._session_present = self._knows_numbers = False
        self._window = MAX_IN_FLIGHT
        self._subscription: int | None = None
        self._unacked: dict[int, int] = {}  # token -> mid, of this connection
        self._tokens = count(1)
        self._before_up: list[Arrived] = []
        self._fetching: dict[int, list[str]] = {}  # mid of the subscription -> topics, until it was granted
        self._open_fetches: set[str] = set()
        self._fetched: set[str] = set()
        self._reported: set[str] = set()
        self._connected_at_s = 0.0
        self._failures = self._short_lives = 0
        #: Whether the broker was reached at the first try.
        self._is_easy = self._was_easy = True
        self._takeovers = Takeovers(pauses_s)
        self._client = self._paho(will, account.user if client_id is None else client_id)
        self._client.connect_async(
            account.host,
            account.port,
            keepalive_s,
            clean_start=clean,
            properties=packets.connect_properties(None if clean else session_expiry_s, receive_maximum),
        )

    def _paho(self, will: Frame | None, client_id: str) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        client.username_pw_set(self._account.user, self._account.password)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        if self._account.tls is not None:
            # paho takes one context for good, and asks it for no more than this; papers change while it lives.
            client.tls_set_context(cast(ssl.SSLContext, tls.Shaker(self._account.tls)))
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is ours
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_something_to_write
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    # ---- the methods of Link, from any thread

    def open(self) -> None:
        """Start connecting; returns at once.

        Raises:
            Misuse: the link was opened before.
        """
        with self._lock:
            if self._is_open or self._is_closing:
                raise Misuse("a link is opened once; make a new one to connect again")
            self._is_open = True
        self._network.aside(self._connect)

    def publish(self, frame: Frame) -> None:
        """Hand a frame over: QoS 1 is kept until the broker has it, QoS 0 is dropped while the link is down.

        Raises:
            Misuse: the link is closed, or the QoS is neither 0 nor 1.
        """
        if frame.qos not in (0, 1):
            raise Misuse(f"QoS {frame.qos} on {frame.topic}: this protocol uses 0 and 1")
        with self._lock:
            if self._is_closing:
                raise Misuse(f"publish on {frame.topic} after close")
            if frame.qos == 1:
                self._outbox.append(frame)
            elif self._is_up:
                self._fleeting.append(frame)
            if not self._is_up:
                return
        self._turn_to()

    def fetch(self, topics: Sequence[str]) -> None:
        """Ask the broker, once, for what it retains on exactly these topics; while the link is down nothing is asked.

        A subscription does it, which the first message on its topic ends.
        """
        if self._is_up:
            self._asked.extend(topics)
            self._turn_to()

    def done(self, arrived: Arrived) -> None:
        """Acknowledge a message. One from an earlier connection is not: the broker delivers it again by itself."""
        if arrived.frame.qos:
            self._done.append(arrived.token)
            self._turn_to()

    def hang_up(self) -> None:
        """Disconnect once what was published is acknowledged, or cannot be now; returns at once. Idempotent."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._close_by_s = time.monotonic() + CLOSE_WAIT_S
            if not self._is_open:
                self._is_gone = True
                return
        self._network.call(self._close_in_time)

    def close(self) -> None:
        """Hang up, and return when the link is gone, within a few seconds; no will is sent. Idempotent."""
        self.hang_up()
        with self._lock:
            if self._is_gone:
                return
            gone = self._gone = self._gone or threading.Event()
            patience_s = max(self._close_by_s - time.monotonic(), 0.0) + _GOODBYE_WAIT_S + 1.0
        gone.wait(patience_s)

    @property
    def pending(self) -> int:
        """How many frames of QoS 1 the broker has not acknowledged yet."""
        with self._lock:
            return len(self._outbox) + len(self._in_flight)

    @property
    def traffic(self) -> Traffic:
        """A snapshot of the counters. A payload is counted when it is handed to the network, resends are not."""
        with self._lock:
            sent, received = self._meter.read() or (None, None)
            return Traffic(self._payload_out, self._payload_in, sent, received)

    def _turn_to(self) -> None:
        """Have the network look at this link; once is enough for all that is left for it until then."""
        if not self._is_called:
            self._is_called = True
            self._network.call(self._tend)

    # ---- connecting

    def _connect(self) -> None:
        """Connect; may block, so it runs aside, and nobody else touches the client meanwhile."""
        if self._is_closing and not self._outbox:
            self._network.call(self._tend)
            return
        try:
            self._client.reconnect()
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no connection, and the person is told why
            reason, is_fatal = reasons.connect_failure(self._account, error), reasons.is_refusal(error)
            self._network.call(partial(self._cannot_connect, reason, is_fatal=is_fatal))
        else:
            self._network.call(self._opened)

    def _cannot_connect(self, reason: str, *, is_fatal: bool) -> None:
        self._is_easy = False
        self._report_down(reason, is_fatal=is_fatal)
        self._retry_later(is_fatal=is_fatal)
        self._tend()

    def _opened(self) -> None:
        self._sock, self._is_writing = self._client.socket(), False
        if self._is_gone:
            self._hang_up_hard()
            return
        self._network.watch(self._sock, self._ready)
        self._care_later(self._sock)
        self._tend()

    def _retry_later(self, *, is_fatal: bool = False, pause_s: float | None = None) -> None:
        if self._is_closing:
            return
        low_s, high_s = self._retry_s
        wait_s = high_s if is_fatal else min(low_s * 2 ** min(self._failures, _MAX_DOUBLINGS), high_s)
        if pause_s is not None:
            wait_s = pause_s
        self._failures += 1
        # Drawn anew, so that a fleet does not return in step after its broker was away.
        jitter = random.uniform(0.75, 1.25)  # noqa: S311
        self._network.call_at(time.monotonic() + jitter * wait_s, lambda: self._network.aside(self._connect))

    # ---- on the network's thread

    def _ready(self) -> None:
        """Read a packet, or as many as TLS has decrypted and no selector will tell of; and write on."""
        self._guarded_read()
        self._tend()

    def _guarded_read(self) -> None:
        try:
            for _ in range(_MAX_BURST):
                self._client.loop_read()
                if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
                    return
            self._network.call(self._ready)
        except Exception:
            # A packet that paho stumbles over would be read again and again: only a new connection helps.
            _logger.exception("a packet from %s:%s cannot be read", self._account.host, self._account.port)
            self._hang_up_hard()
            self._is_connected = False
            self._report_down(reasons.unreadable(self._account))
            self._retry_later()

    def _tend(self) -> None:
        """Do what was left to be done for this link."""
        self._is_called = False
        if self._sock is not None:
            while self._done:
                mid = self._unacked.pop(self._done.pop(0), None)
                if mid is not None:
                    self._client.ack(mid, 1)
            if self._is_up:
                self._end_fetches()
                self._send_fetches()
                self._send_waiting()
            self._write()
        if self._is_closing:
            self._leave()

    def _write(self) -> None:
        """Write what paho has to say; watch for room where the network has none."""
        if self._client.want_write():
            self._client.loop_write()
        if self._sock is not None and self._client.want_write() != self._is_writing:
            self._is_writing = not self._is_writing
            self._network.watch(self._sock, self._ready, is_writing=self._is_writing)

    def _care_later(self, sock: Any) -> None:
        # On a common beat, so that a thousand links wake the processor once.
        beat = math.floor(time.monotonic() / self._care_every_s) + 1
        self._network.call_at(beat * self._care_every_s, partial(self._care, sock))

    def _care(self, sock: Any) -> None:
        """Let paho see to its keep-alive."""
        if self._sock is sock:
            self._client.loop_misc()
            if self._sock is sock:
                self._care_later(sock)
            self._tend()

    def _close_in_time(self) -> None:
        self._network.call_at(self._close_by_s, self._tend)
        self._tend()

    def _leave(self) -> None:
        """Say goodbye once nothing is pending or time is up; be gone once it is said or its time is up."""
        if self._is_gone:
            return
        now_s = time.monotonic()
        if not self._is_leaving and (not self.pending or self._is_failing or now_s >= self._close_by_s):
            self._is_leaving = True
            if self.pending:
                place = f"{self._account.host}:{self._account.port}"
                _logger.warning("the link to %s ends before all is sent: messages left: %s", place, self.pending)
            if self._sock is not None:
                if self._open_fetches and self._is_up:
                    self._client.unsubscribe(list(self._open_fetches))
                self._client.disconnect()
                self._network.call_at(now_s + _GOODBYE_WAIT_S, self._tend)
                self._close_by_s = min(self._close_by_s, now_s)
                self._write()
        if not self._is_leaving:
            return
        if self._sock is not None and now_s >= self._close_by_s + _GOODBYE_WAIT_S:
            self._hang_up_hard()
        if self._sock is None:
            with self._lock:
                self._is_gone = True
                if self._gone is not None:
                    self._gone.set()

    # ---- sending

    def _send_waiting(self) -> None:
        """Hand frames over while the window has room."""
        while self._fleeting:
            self._hand_over(self._fleeting.pop(0))
        while self._outbox and len(self._in_flight) < self._window:
            frame = self._outbox[0]
            mid = self._hand_over(frame)
            with self._lock:
                self._outbox.popleft()
                if mid is not None:
                    self._in_flight[mid] = frame.topic

    def _hand_over(self, frame: Frame) -> int | None:
        """Give a frame to paho; None if it can never be sent."""
        frame = frame.whole()
        limit = self.maximum_packet_size
        if limit is not None and (size := packets.packet_size(frame)) > limit:
            self._emit(Rejected(topic=frame.topic, reason=reasons.too_large(size, limit)))
            return None
        try:
            info = self._client.publish(frame.topic, frame.payload, frame.qos, frame.retain)
            while info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                # The next packet id is still in flight after 65,535 others: paho refuses it, and tries the one after.
                info = self._client.publish(frame.topic, frame.payload, frame.qos, frame.retain)
        except ValueError as error:
            self._emit(Rejected(topic=frame.topic, reason=f"cannot be published: {error}"))
            return None
        with self._lock:
            self._payload_out += len(frame.payload)
        return info.mid

    def _judge(self, topic: str, code: ReasonCode) -> None:
        if code.is_failure:
            self._emit(Rejected(topic=topic, reason=reasons.rejection(self._account, code)))

    # ---- fetching

    def _send_fetches(self) -> None:
        topics: list[str] = []
        while self._asked:
            topics.append(self._asked.pop(0))
        if topics:
            topics = list(dict.fromkeys(topics))
            properties = packets.fetch_properties() if self._knows_numbers else None
            mid = self._client.subscribe(
                [(topic, packets.options(0, wants_retained=True)) for topic in topics], 0, None, properties
            )[1]
            if mid is not None:
                self._fetching[mid] = topics
            self._open_fetches.update(topics)

    def _end_fetches(self) -> None:
        # Before anything is asked for again: a broker answers each question before it takes it back.
        if self._fetched:
            self._client.unsubscribe(list(self._fetched))
            self._open_fetches -= self._fetched
            self._fetched.clear()

    # ---- events

    def _emit(self, event: LinkEvent) -> None:
        try:
            self._sink(event)
        except Exception:
            # A message stays unacknowledged then, and comes again with the next connection.
            _logger.exception("the sink of the link to %s:%s failed", self._account.host, self._account.port)

    def _report_down(self, reason: str, *, is_fatal: bool = False, is_cloned: bool = False) -> None:
        self._is_failing = True
        is_news = reason not in self._reported and not self._is_closing
        self._reported.add(reason)
        if is_news:
            # What is fatal is told by who holds the link, and ends of it.
            _logger.log(logging.INFO if is_fatal else logging.WARNING, "%s", reason)
            self._emit(Down(reason=reason, is_fatal=is_fatal, is_cloned=is_cloned))

    def _hang_up_hard(self) -> None:
        """Close the connection without a word."""
        sock = self._sock
        if sock is not None:
            self._forget_connection()
            sock.close()

    def _forget_connection(self) -> None:
        """Forget what belongs to a connection that is about to be closed."""
        if self._sock is not None:
            self._network.forget(self._sock)
            self._sock = None
        with self._lock:
            self._meter.detach()
            self._is_up = False
        self._unacked.clear()
        self._before_up.clear()
        self._fleeting.clear()
        self._asked.clear()
        self._fetching.clear()

    # ---- paho's callbacks

    def _on_socket_open(self, _client: Client, _userdata: Any, sock: Any) -> None:
        # Small packets go out at once: Nagle's wait and the peer's delayed acknowledgement would cost 40 ms a hop.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._meter.attach(sock)

    def _on_socket_close(self, _client: Client, _userdata: Any, sock: Any) -> None:
        # Not where paho clears away what we have closed ourselves.
        if sock is self._sock:
            self._fault = tls.fault_of(sock)
            self._forget_connection()

    def _on_something_to_write(self, _client: Client, _userdata: Any, _sock: Any) -> None:
        self._turn_to()

    def _on_connect(
        self, client: Client, _userdata: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._is_refused = True
            self._report_down(reasons.refusal(self._account, code), is_fatal=reasons.is_fatal(code))
            self._retry_later(is_fatal=reasons.is_fatal(code))
            return
        self._is_connected, self._connected_at_s = True, time.monotonic()
        self._session_present = flags.session_present
        self._knows_numbers = getattr(properties, "SubscriptionIdentifierAvailable", 1) == 1
        self.maximum_packet_size = getattr(properties, "MaximumPacketSize", None)
        self._window = min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT))
        if self._is_leaving:
            return
        if self._open_fetches and flags.session_present:
            client.unsubscribe(list(self._open_fetches))
        self._open_fetches.clear()
        self._fetched.clear()
        if self._filters:
            wanted = [
                (each.topic, packets.options(each.qos, wants_retained=each.wants_retained)) for each in self._filters
            ]
            self._subscription = client.subscribe(wanted)[1]
        else:
            self._come_up()

    def _on_subscribe(
        self, _client: Client, _userdata: Any, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        for topic, code in zip(self._fetching.pop(mid, ()), codes, strict=False):
            self._judge(topic, code)
        if mid == self._subscription:
            self._subscription = None
            for each, code in zip(self._filters, codes, strict=False):
                self._judge(each.topic, code)
            self._come_up()

    def _come_up(self) -> None:
        with self._lock:
            self._is_up = True
        self._is_failing, self._failures = False, self._short_lives
        self._was_easy, self._is_easy = self._is_easy, True
        self._reported.clear()
        waiting, self._before_up = self._before_up, []
        self._emit(Up(session_present=self._session_present))
        for arrived in waiting:
            self._emit(arrived)
        self._turn_to()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        token, topic = next(self._tokens), message.topic
        if message.qos:
            self._unacked[token] = message.mid
        # A number on a topic that nobody fetches is left over from a process that ended before its fetch did.
        if topic in self._open_fetches or getattr(message.properties, "SubscriptionIdentifier", None):
            self._fetched.add(topic)
        with self._lock:
            self._payload_in += len(message.payload)
        frame = Frame(topic=topic, payload=bytes(message.payload), retain=message.retain, qos=message.qos)
        arrived = Arrived(frame=frame, token=token)
        # What the broker kept for us comes right behind its CONNACK, before the subscriptions are granted again.
        if self._is_up:
            self._emit(arrived)
        else:
            self._before_up.append(arrived)

    def _on_publish(
        self, _client: Client, _userdata: Any, mid: int, code: ReasonCode, _properties: Properties | None
    ) -> None:
        with self._lock:
            topic = self._in_flight.pop(mid, None)
        if topic is not None:  # else of QoS 0
            self._judge(topic, code)

    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: DisconnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        was_connected, self._is_connected = self._is_connected, False
        was_refused, self._is_refused = self._is_refused, False
        fault, self._fault = self._fault, None
        if was_refused:
            return
        if not was_connected:
            self._is_easy, is_fatal = False, reasons.is_refusal(fault)
            self._report_down(reasons.no_answer(self._account, fault), is_fatal=is_fatal)
            self._retry_later(is_fatal=is_fatal)
            return
        now_s = time.monotonic()
        lived_s = now_s - self._connected_at_s
        is_short = lived_s < STEADY_S
        self._failures = self._short_lives = min(self._short_lives + 1, _MAX_DOUBLINGS) if is_short else 0
        by_broker, is_said = flags.is_disconnect_packet_from_server, reasons.is_taken_over(code)
        is_easy = self._was_easy and not by_broker and not reasons.is_silence(code)
        is_taken = self._takeovers.ended(now_s, lived_s=lived_s, is_said=is_said, is_easy=is_easy)
        pause_s = self._takeovers.pause_s if is_taken else None
        if pause_s is not None:
            self._report_down(reasons.cloned(self._account, pause_s, is_said=is_said), is_cloned=True)
            self._retry_later(pause_s=pause_s)
            return
        reason = reasons.lost(self._account, code, by_broker=by_broker, short_lives=self._short_lives)
        self._report_down(reason, is_fatal=reasons.is_fatal(code))
        self._retry_later(is_fatal=reasons.is_fatal(code))
