"""A link over paho-mqtt 2: MQTT 5 to the local broker, a session that outlives the connection, acknowledged by hand.

Frames of QoS 1 wait in a queue of our own and paho holds only the few in flight, because paho resends everything it
holds at once on a reconnect, and goes on resending a packet that the broker will never take.

Two threads meet here: paho's network thread runs the `_on_...` callbacks, everybody else calls the methods of `Link`.
Nothing is emitted, and paho's `publish` is never called, while our lock is held: paho holds its own around callbacks.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from typing import Any, ParamSpec

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.errors import Misuse
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.transport import reasons
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Rejected, Sink, Traffic, Up
from hfl_mqtt.transport.tcp import ByteMeter

#: Unacknowledged frames on the way out; the broker's own Receive Maximum may lower it.
MAX_IN_FLIGHT = 20
SESSION_EXPIRY_S = 7 * 86_400
#: How long `close` waits for acknowledgements, and after that for the goodbye to leave.
CLOSE_WAIT_S = 5.0
_GOODBYE_WAIT_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
#: A connection lost earlier than this counts as short-lived; several in a row mean something other than bad luck.
_STEADY_S = 10.0
_MAX_SHORT_LIVES = 10

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")


def _cannot_die(callback: Callable[_P, None]) -> Callable[_P, None]:
    """Log what a callback raises: an exception that left it would end paho's network thread, unnoticed."""

    @wraps(callback)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:
            _logger.exception("%s failed; the link goes on", callback.__name__)

    return guarded


class MqttLink:
    """One connection to a broker, see `Link`; events reach `sink` from paho's thread, so `sink` must only enqueue.

    Args:
        account: where to connect and as whom.
        filters: what to subscribe to on every connect, as (filter, QoS 0 or 1). They must not overlap: an MQTT 5
            broker delivers one copy per matching filter.
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
        tls: the context to use; None speaks plain TCP.
        retry_s: the shortest and the longest wait between attempts to connect. After a refusal that only a person can
            mend, the longest holds at once.
    """

    def __init__(
        self,
        account: Account,
        filters: Sequence[tuple[str, int]],
        sink: Sink,
        *,
        will: Frame | None = None,
        client_id: str | None = None,
        session_expiry_s: int = SESSION_EXPIRY_S,
        keepalive_s: int = 60,
        receive_maximum: int | None = None,
        clean: bool = False,
        tls: ssl.SSLContext | None = None,
        retry_s: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self._account = account
        self._filters = list(filters)
        self._sink = sink
        self._retry_s = retry_s
        #: The largest packet the broker takes, once it has said so.
        self.maximum_packet_size: int | None = None

        self._lock = threading.Condition()
        self._outbox: deque[Frame] = deque()
        self._in_flight: dict[int, str] = {}  # mid -> topic
        self._window = MAX_IN_FLIGHT
        self._is_sending = False
        self._acked_early: dict[int, ReasonCode] = {}
        self._unacked: dict[int, int] = {}  # token -> mid, of this connection
        self._tokens = count(1)
        self._before_up: list[Arrived] = []
        self._reported: set[str] = set()
        self._subscription: int | None = None
        self._session_present = False
        self._is_open = self._is_closing = self._is_leaving = False
        self._is_up = self._is_failing = False
        self._is_connected = self._is_refused = False
        self._connected_at_s = 0.0
        self._short_lives = 0
        self._network_thread: threading.Thread | None = None
        self._meter = ByteMeter()
        self._payload_out = self._payload_in = 0
        self._client = self._paho(will, account.user if client_id is None else client_id, tls)
        self._connect_properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if not clean:
            # Without an expiry the broker forgets the session at once, even with clean_start False.
            self._connect_properties.SessionExpiryInterval = session_expiry_s
        if receive_maximum is not None:
            self._connect_properties.ReceiveMaximum = receive_maximum
        self._client.connect_async(
            account.host, account.port, keepalive_s, clean_start=clean, properties=self._connect_properties
        )

    def _paho(self, will: Frame | None, client_id: str, tls: ssl.SSLContext | None) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
        )
        client.username_pw_set(self._account.user, self._account.password)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        if tls is not None:
            client.tls_set_context(tls)
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is ours
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
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
        self._set_patience(is_fatal=False)
        self._client.loop_start()

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
            is_up = self._is_up
            if frame.qos == 1:
                self._outbox.append(frame)
        if frame.qos == 1:
            self._send_waiting()
        elif is_up:
            self._hand_over(frame)

    def done(self, arrived: Arrived) -> None:
        """Acknowledge a message. One from an earlier connection is not: the broker delivers it again by itself."""
        # Under the lock, because `_on_socket_close` forgets the tokens before paho empties its queue of packets: an
        # acknowledgement cannot slip into the next connection, where its mid means another message.
        with self._lock:
            mid = self._unacked.pop(arrived.token, None)
            if mid is not None:
                self._client.ack(mid, 1)

    def close(self) -> None:
        """Disconnect once what was published is acknowledged, or cannot be now; no will is sent. Idempotent."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            if not self._is_open:
                return
            self._lock.wait_for(lambda: not self.pending or self._is_failing, CLOSE_WAIT_S)
            if self.pending:
                _logger.warning("%s frames for %s were not sent before close", self.pending, self._account.host)
            self._is_leaving = True
        self._client.disconnect()
        # Not paho's loop_stop: it joins without a limit, and trips when the thread ends meanwhile.
        if self._network_thread is not None:
            self._network_thread.join(_GOODBYE_WAIT_S)

    @property
    def pending(self) -> int:
        """How many frames of QoS 1 the broker has not acknowledged yet."""
        with self._lock:
            return len(self._outbox) + len(self._in_flight) + self._is_sending

    @property
    def traffic(self) -> Traffic:
        """A snapshot of the counters. A payload is counted when it is handed to the network, resends are not."""
        with self._lock:
            sent, received = self._meter.read() or (None, None)
            return Traffic(self._payload_out, self._payload_in, sent, received)

    # ---- sending

    def _send_waiting(self) -> None:
        """Hand frames over while the window has room; one thread at a time, so that they keep their order."""
        while True:
            with self._lock:
                has_room = len(self._in_flight) < self._window
                if self._is_sending or not (self._is_up and has_room and self._outbox):
                    return
                self._is_sending = True
                frame = self._outbox.popleft()
            mid: int | None = None
            try:
                mid = self._hand_over(frame)
            finally:
                with self._lock:
                    self._is_sending = False
                    # The broker may have answered before we got here.
                    code = None if mid is None else self._acked_early.pop(mid, None)
                    self._acked_early.clear()
                    if mid is not None and code is None:
                        self._in_flight[mid] = frame.topic
                    self._lock.notify_all()
            if code is not None:
                self._judge(frame.topic, code)

    def _hand_over(self, frame: Frame) -> int | None:
        """Give a frame to paho; None if it can never be sent."""
        limit = self.maximum_packet_size
        if limit is not None and (size := _packet_size(frame)) > limit:
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

    # ---- events

    def _emit(self, event: LinkEvent) -> None:
        try:
            self._sink(event)
        except Exception:
            # A message stays unacknowledged then, and comes again with the next connection.
            _logger.exception("the sink of the link to %s:%s failed", self._account.host, self._account.port)

    def _report_down(self, reason: str, *, is_fatal: bool = False) -> None:
        with self._lock:
            self._is_failing = True
            self._lock.notify_all()
            is_news = reason not in self._reported and not self._is_closing
            self._reported.add(reason)
        self._set_patience(is_fatal=is_fatal)
        if is_news:
            _logger.log(logging.ERROR if is_fatal else logging.WARNING, "%s", reason)
            self._emit(Down(reason=reason, is_fatal=is_fatal))

    def _set_patience(self, *, is_fatal: bool) -> None:
        low_s, high_s = self._retry_s
        # Drawn anew, so that a fleet does not return in step after its broker was away.
        jitter = random.uniform(0.75, 1.25)  # noqa: S311
        # paho starts over at the first wait after each CONNACK, so the growth over short-lived connections is ours.
        first_s = jitter * (high_s if is_fatal else min(low_s * 2**self._short_lives, high_s))
        # paho says int, and means a number of seconds.
        self._client.reconnect_delay_set(first_s, jitter * high_s)  # type: ignore[arg-type]

    # ---- paho's callbacks, on its thread

    @_cannot_die
    def _on_pre_connect(self, _client: Client, _userdata: Any) -> None:
        self._network_thread = threading.current_thread()

    @_cannot_die
    def _on_socket_open(self, _client: Client, _userdata: Any, sock: Any) -> None:
        # Small packets go out at once: Nagle's wait and the peer's delayed acknowledgement would cost 40 ms a hop.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._meter.attach(sock)

    @_cannot_die
    def _on_socket_close(self, _client: Client, _userdata: Any, _sock: Any) -> None:
        with self._lock:
            self._meter.detach()
            self._unacked.clear()
            self._before_up.clear()
            self._is_up = False

    @_cannot_die
    def _on_connect_fail(self, client: Client, _userdata: Any) -> None:
        if self._is_leaving:
            client.disconnect()  # `close` came while paho was connecting, which forgot it
        self._report_down(reasons.connect_failure(self._account))

    @_cannot_die
    def _on_connect(
        self, client: Client, _userdata: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._is_refused = True
            self._report_down(reasons.refusal(self._account, code), is_fatal=reasons.is_fatal(code))
            return
        self._session_present = flags.session_present
        self.maximum_packet_size = getattr(properties, "MaximumPacketSize", None)
        with self._lock:
            self._is_connected, self._connected_at_s = True, time.monotonic()
            self._window = min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT))
            is_leaving = self._is_leaving
        if is_leaving:
            client.disconnect()
        elif self._filters:
            self._subscription = client.subscribe(self._filters)[1]
        else:
            self._come_up()

    @_cannot_die
    def _on_subscribe(
        self, _client: Client, _userdata: Any, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if mid != self._subscription:
            return
        for (topic, _), code in zip(self._filters, codes, strict=False):
            self._judge(topic, code)
        self._come_up()

    def _come_up(self) -> None:
        with self._lock:
            self._is_up, self._is_failing = True, False
            self._reported.clear()
            waiting, self._before_up = self._before_up, []
        self._set_patience(is_fatal=False)
        self._emit(Up(session_present=self._session_present))
        for arrived in waiting:
            self._emit(arrived)
        self._send_waiting()

    @_cannot_die
    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        token = next(self._tokens)
        with self._lock:
            if message.qos:
                self._unacked[token] = message.mid
            self._payload_in += len(message.payload)
        frame = Frame(topic=message.topic, payload=bytes(message.payload), retain=message.retain, qos=message.qos)
        arrived = Arrived(frame=frame, token=token)
        # What the broker kept for us comes right behind its CONNACK, before the subscriptions are granted again.
        if self._is_up:
            self._emit(arrived)
        else:
            self._before_up.append(arrived)

    @_cannot_die
    def _on_publish(
        self, _client: Client, _userdata: Any, mid: int, code: ReasonCode, _properties: Properties | None
    ) -> None:
        with self._lock:
            topic = self._in_flight.pop(mid, None)
            if topic is None:
                # Of QoS 0, or answered before `_send_waiting` could write its mid down.
                if self._is_sending:
                    self._acked_early[mid] = code
                return
            self._lock.notify_all()
        self._judge(topic, code)
        self._send_waiting()

    @_cannot_die
    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: DisconnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        with self._lock:
            was_connected, self._is_connected, self._is_up = self._is_connected, False, False
            was_refused, self._is_refused = self._is_refused, False
        if was_connected:
            is_short = time.monotonic() - self._connected_at_s < _STEADY_S
            self._short_lives = min(self._short_lives + 1, _MAX_SHORT_LIVES) if is_short else 0
            by_broker = flags.is_disconnect_packet_from_server
            reason = reasons.lost(self._account, code, by_broker=by_broker, short_lives=self._short_lives)
            self._report_down(reason, is_fatal=reasons.is_fatal(code))
        elif not was_refused:
            self._report_down(reasons.no_answer(self._account))


def _packet_size(frame: Frame) -> int:
    """The most bytes that the PUBLISH packet of a frame takes: header 5, topic 2 + n, packet id 2, properties 1."""
    return len(frame.payload) + len(frame.topic.encode()) + 10
