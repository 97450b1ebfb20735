"""Why a link is down or a message was refused, in words for people: what, where, and what to do."""

from __future__ import annotations

import logging
import socket
import ssl
import sys

from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.transport.link import Account

_BAD_PASSWORD, _NOT_AUTHORIZED, _KEEP_ALIVE, _TAKEN_OVER, _TOO_LARGE = 134, 135, 141, 142, 149
_SUSPICIOUS = 3
#: What one link of a process has logged, the others need not.
_QUIET_S = 10.0
_REMEDIES = {
    132: "it does not speak MQTT 5; use Mosquitto 1.6 or later",
    133: "it does not accept the client id; use the node's path",
    _BAD_PASSWORD: "check user name and password here and in the broker's password file, then reload the broker",
    _NOT_AUTHORIZED: "check user name and password here and in the broker's password file, then reload the broker",
    138: "this account is banned there; ask who runs the broker",
    140: "it wants another way to authenticate; this program speaks user name and password, or a certificate",
}


def is_fatal(code: ReasonCode) -> bool:
    """Whether trying again cannot help before a person has done something."""
    return code.value in _REMEDIES


def refusal(account: Account, code: ReasonCode) -> str:
    """Why the broker refused the connection."""
    remedy = _REMEDIES.get(code.value, "trying again")
    return f"the broker at {_place(account)} refuses {account.user!r}: {code}; {remedy}"


def is_taken_over(code: ReasonCode) -> bool:
    """Whether the broker says that another connection has our name."""
    return code.value == _TAKEN_OVER


def is_silence(code: ReasonCode) -> bool:
    """Whether we gave a broker up that no longer answered."""
    return code.value == _KEEP_ALIVE


def cloned(account: Account, pause_s: float, *, is_said: bool) -> str:
    """Why a link stays away that was taken over again and again, as the broker said or as it looks."""
    doubt = "" if is_said else ", or something on the way cuts each connection"
    return (
        f"another program keeps connecting to {_place(account)} as {account.user!r}{doubt}: "
        f"give each board its own name; the next try is in about {pause_s:.0f} s"
    )


def lost(account: Account, code: ReasonCode, *, by_broker: bool, short_lives: int) -> str:
    """Why a connection that stood is gone, the `short_lives`-th in a row that did not last."""
    if code.value == _TAKEN_OVER:
        return f"another program connected to {_place(account)} as {account.user!r}; stop one of the two"
    if by_broker:
        remedy = "; send smaller parts, or raise max_packet_size there" if code.value == _TOO_LARGE else ""
        return f"the broker at {_place(account)} ended the connection: {code}{remedy}"
    # paho calls everything but a silent broker an unspecified error.
    why = "it no longer answers" if code.value == _KEEP_ALIVE else "it or the network went away"
    if short_lives >= _SUSPICIOUS:
        # Mosquitto 2.0.11 does not say "taken over", it only hangs up.
        why = f"{short_lives} times in a row soon after connecting; does another program connect as {account.user!r}?"
    return f"lost the connection to the broker at {_place(account)}: {why}"


def no_answer(account: Account) -> str:
    """Why a connection ended before the broker said anything."""
    return (
        f"{_place(account)} accepts connections but ends them without an answer; "
        "is it a broker, and do both sides agree on TLS or plain TCP?"
    )


def connect_failure(account: Account) -> str:
    """Why no connection came about; to be called while that error is being handled."""
    place = f"no broker at {_place(account)}"
    match sys.exc_info()[1]:
        case ConnectionRefusedError():
            return f"{place}: nothing listens there; is Mosquitto running, and is the port right?"
        case socket.gaierror():
            return f"{place}: the name {account.host!r} is unknown; check the spelling and the DNS"
        case ssl.SSLCertVerificationError() as error:
            return f"{place} that we trust: {error.verify_message}; check the CA file, the host name and this clock"
        case ssl.SSLError() as error:
            return f"{place} that speaks TLS: {error.reason or error}; check the port"
        case TimeoutError():
            return f"{place}: no answer; check the address, the network and the firewall"
        case error:
            return f"{place}: {error}"


def unreadable(account: Account) -> str:
    """Why we ended a connection ourselves."""
    return f"the broker at {_place(account)} said what cannot be read, see the trace above; is it a broker of MQTT 5?"


def rejection(account: Account, code: ReasonCode) -> str:
    """Why the broker refused a publish or a subscription."""
    if code.value == _NOT_AUTHORIZED:
        return f"{code}: {account.user!r} has no right to it at {_place(account)}; check the broker's ACL file"
    return f"{code}, says the broker at {_place(account)}"


def too_large(size_bytes: int, limit_bytes: int) -> str:
    """Why a frame was not even sent: the broker would drop the connection, again and again."""
    return (
        f"a packet of {size_bytes} bytes, the broker takes {limit_bytes}; send smaller parts, or raise max_packet_size"
    )


def _place(account: Account) -> str:
    return f"{account.host}:{account.port}"


class OnceForAll(logging.Filter):
    """Lets a sentence pass once in a while: a thousand links that lose their broker have one thing to say of it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged; a fault of ours always is."""
        if record.exc_info:
            return True
        text = record.getMessage()
        self._said = {each: said_s for each, said_s in self._said.items() if record.created - said_s < _QUIET_S}
        is_news = text not in self._said
        self._said.setdefault(text, record.created)
        return is_news
