"""The contract of a link: our connection to one broker.

A link turns frames into packets and packets into events. It never calls into a machine: everything it has to say goes
to the `sink` it was given, which only enqueues. A link reconnects by itself, for ever, until it is closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.wire import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """Connected and subscribed. `session_present` says whether the broker still knew this session."""

    session_present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """Not connected; `reason` is for people. `is_fatal` when trying again cannot help, e.g. a wrong password.
    `is_cloned` when another program keeps connecting under our name, and the link stays away for ever longer.

    Several may come between two `Up`s, one per distinct reason. A link goes on trying after a fatal one, but slowly:
    whether to give up is the shell's choice.
    """

    reason: str
    is_fatal: bool = False
    is_cloned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A message. Give it back with `Link.done` when it has been dealt with; `token` is the link's own."""

    frame: Frame
    token: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The broker refused a publish or a subscription, e.g. because the account has no right to the topic."""

    topic: str
    reason: str


LinkEvent = Up | Down | Arrived | Rejected
Sink = Callable[[LinkEvent], None]


@dataclass(slots=True)
class Traffic:
    """Bytes through one link since it was made.

    Payload counts MQTT payloads; socket counts all bytes of the TCP stream, or is None where the platform cannot tell.
    """

    payload_out: int = 0
    payload_in: int = 0
    socket_out: int | None = None
    socket_in: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The papers of a link that speaks TLS: whom it trusts, and what it shows; see `transport.tls`.

    Attributes:
        ca: the certificate of the one authority that brokers are trusted by.
        certificate: the node's own, with `key`; without them the node shows none.
        key: its private key.
        server_name: for whom the broker's certificate is, where that is not the host's name.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where a link connects and as whom. `user` is the node's path; the password is never shown.

    Without `tls` a link speaks plain TCP, and with it nothing else. A broker that asks for certificates knows a node by
    its certificate's name, whatever `user` says.

    Raises:
        ConfigError: no host can have this name, or no service this port.
    """

    host: str
    port: int
    user: str
    password: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        # Beyond these, paho's network thread would end with an exception that nobody sees.
        try:
            is_name = bool(self.host.encode("idna"))
        except UnicodeError:
            is_name = False
        if not is_name:
            raise ConfigError(f"{self.host!r} cannot be the name of a host; write e.g. broker.local or 10.0.0.7")
        if not 0 < self.port < 65536:
            raise ConfigError(f"port {self.port} does not exist; MQTT listens on 1883, with TLS on 8883")

    def session(self, name: str) -> str:
        """Return a session's name at the broker that nobody can guess who has not this account's password or key.

        A broker goes by that name alone: whoever connects under it, as whomever, ends the connection that stands. It is
        the same at each start; without a secret it is the name as it is.
        """
        secret = self.password.encode() if self.password is not None else b""
        if self.tls is not None and self.tls.key is not None:
            with suppress(OSError):  # a key that cannot be read is told of when it is to be shown
                secret = self.tls.key.read_bytes()
        if not secret:
            return name
        key = hashlib.sha256(b"hfl-mqtt session 1\0" + secret).digest()
        return f"{name}~{hashlib.blake2b(name.encode(), key=key, digest_size=8).hexdigest()}"


class Link(Protocol):
    """One connection to one broker. All methods may be called from any thread."""

    def open(self) -> None:
        """Start connecting; returns at once. `Up` follows on every connect, after the subscriptions were granted."""

    def publish(self, frame: Frame) -> None:
        """Hand a frame over. QoS 1 frames survive a lost connection as long as this process lives.

        Of one with a tail only the head waits in line; the tail is read when its turn comes, on any thread.

        Raises:
            Misuse: after `close`.
        """

    def done(self, arrived: Arrived) -> None:
        """Acknowledge a message to the broker, which then may send the next."""

    def fetch(self, topics: Sequence[str]) -> None:
        """Ask the broker, once, for what it retains on exactly these topics.

        It comes as `Arrived` and there is no other answer: none where nothing is retained, until something is said
        there. Asking again asks the broker again. What was asked for is forgotten when the connection is lost, and
        nothing is asked while the link is down. A message that a filter matches too may come twice.
        """

    def hang_up(self) -> None:
        """Begin to close and return at once: nothing more can be published. Idempotent.

        Who closes many links hangs them all up first, so that they wait for their brokers at the same time.
        """

    def close(self) -> None:
        """Disconnect after what was published has gone out, within a few seconds; no will is sent. Idempotent."""

    @property
    def pending(self) -> int:
        """How many frames of QoS 1 the broker has not acknowledged yet."""

    @property
    def traffic(self) -> Traffic:
        """A snapshot of the counters."""
