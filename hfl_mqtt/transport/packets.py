"""What stands in packets beside topics and payloads, as paho takes it."""

from __future__ import annotations

from functools import cache

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from hfl_mqtt.protocol.wire import Frame

#: MQTT 5 lets a subscription carry a number that comes back with its messages: this one marks what was fetched.
FETCHED = 1


def packet_size(frame: Frame) -> int:
    """Return the most bytes that a frame takes as PUBLISH: header 5, topic 2 + n, packet id 2, properties 1."""
    return len(frame.payload) + len(frame.topic.encode()) + 10


# paho's properties and options are small tables each, of some kB: links share them.


@cache
def connect_properties(session_expiry_s: int | None, receive_maximum: int | None) -> Properties:
    """Return what a CONNECT asks of the session."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    if session_expiry_s is not None:
        # Without an expiry the broker forgets the session at once, even with clean_start False.
        properties.SessionExpiryInterval = session_expiry_s
    if receive_maximum is not None:
        properties.ReceiveMaximum = receive_maximum
    return properties


@cache
def fetch_properties() -> Properties:
    """Return the mark of a subscription that fetches."""
    properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
    properties.SubscriptionIdentifier = FETCHED
    return properties


@cache
def options(qos: int, *, wants_retained: bool) -> SubscribeOptions:
    """Return how a filter is subscribed to."""
    handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if wants_retained else SubscribeOptions.RETAIN_DO_NOT_SEND
    return SubscribeOptions(qos=qos, retainHandling=handling)
