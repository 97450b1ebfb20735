"""What waits for a node between its link and its loop: of each sender only so much.

At QoS 1 the broker itself waits for us (`RECEIVE_MAXIMUM`). What people read at QoS 0, such as states, it sends as fast
as it comes: one child that says its state a million times must not fill our memory, nor make the others wait.
"""

from __future__ import annotations

import threading

from hfl_mqtt.protocol.limits import MAX_WAITING
from hfl_mqtt.protocol.topics import carries_parts, path_of
from hfl_mqtt.rounds.actions import Event
from hfl_mqtt.transport.link import Arrived, LinkEvent


class Line:
    """Counts what waits, by sender; entered by the network's thread and left by the loop's."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._count: dict[str, int] = {}

    def enter(self, event: LinkEvent | Event) -> bool:
        """Return whether an event may wait; one that may not is dropped, as a broker may do at QoS 0 anyway."""
        sender = _counted(event)
        if sender is None:
            return True
        with self._lock:
            count = self._count.get(sender, 0)
            if count >= self._most:
                return False
            self._count[sender] = count + 1
            return True

    def leave(self, event: LinkEvent | Event) -> None:
        """Take it that an event waits no more."""
        sender = _counted(event)
        if sender is None:
            return
        with self._lock:
            count = self._count.get(sender, 0) - 1
            if count > 0:
                self._count[sender] = count
            else:
                self._count.pop(sender, None)


def _counted(event: LinkEvent | Event) -> str | None:
    """Return whose event this is, where it is of those that are counted. Parts of models come from the parent alone."""
    if not isinstance(event, Arrived) or event.frame.qos or carries_parts(event.frame.topic):
        return None
    return path_of(event.frame.topic)
