"""Why a link is down or a message was refused, in words for people: what, where, and what to do."""

from __future__ import annotations

import logging
import socket
import ssl
import time

from paho.mqtt.reasoncodes import ReasonCode

from hfl_mqtt.errors import ConfigError
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


def no_answer(account: Account, fault: ssl.SSLError | None = None) -> str:
    """Why a connection ended before the broker said anything; `fault` is what TLS knows of it."""
    if fault is not None:
        return connect_failure(account, fault)
    remedy = (
        "is it a broker, and does this port want TLS? Then its configuration here needs broker.tls"
        if account.tls is None
        else "is it a broker, and is its listener's certificate in order? Its log says more"
    )
    return f"{_place(account)} accepts connections but ends them without an answer; {remedy}"


def connect_failure(account: Account, error: BaseException) -> str:
    """Why no connection came about."""
    place = f"no broker at {_place(account)}"
    match error:
        case ConfigError():
            return f"cannot connect to {_place(account)}: {error}"
        case ConnectionRefusedError():
            return f"{place}: nothing listens there; is Mosquitto running, and is the port right?"
        case socket.gaierror():
            return f"{place}: the name {account.host!r} is unknown; check the spelling and the DNS"
        case ssl.SSLCertVerificationError():
            return f"{place} that we trust: {_distrust(account, error)}"
        case ssl.SSLError() if _alert(error):
            return f"the broker at {_place(account)} {_refused_papers(account, _alert(error))}"
        case ssl.SSLError():
            return (
                f"{place} that speaks TLS: {error.strerror or error}; is {account.port} its port for TLS? By habit "
                "those are 8883 and 8884, and 1883 is plain"
            )
        case TimeoutError():
            return f"{place}: no answer; check the address, the network and the firewall"
        case _:
            return f"{place}: {error}"


def is_refusal(error: BaseException | None) -> bool:
    """Whether the broker has refused our certificate for good, as it refuses a wrong password.

    What makes *us* distrust a broker is none: whoever speaks there need not be ours, and shall end no agent. Nor is a
    date: a clock is set, and new papers are taken when they lie there.
    """
    return any(word in _alert(error) for word in _REFUSALS)


def _alert(error: BaseException | None) -> str:
    """Return what the other side said in TLS before it hung up, as OpenSSL calls it; nothing where it is our word."""
    reason = str(getattr(error, "reason", ""))  # which not every error of TLS has
    return reason if "ALERT" in reason else ""


def _distrust(account: Account, error: ssl.SSLCertVerificationError) -> str:
    """Why we do not trust a broker's certificate, and what to do."""
    assert account.tls is not None
    match error.verify_code:
        case 2 | 7 | 18 | 19 | 20 | 21:
            return (
                f"its certificate is not from the authority in {account.tls.ca}; name the ca.crt of the fleet that "
                "this broker belongs to, or look who answers there"
            )
        case 9:
            return f"its certificate is not valid yet, says the clock here, {_today()}; set the clock, NTP does"
        case 10:
            return (
                f"its certificate has expired, says the clock here, {_today()}; renew it with hfl fleet rotate and "
                "reload the broker, or set the clock"
            )
        case 26:
            return "its certificate is not a broker's; somebody else answers there, or the broker has the wrong file"
        case 62 | 64:
            named = account.tls.server_name or account.host
            return (
                f"its certificate is not for {named!r}; connect by a name that it has, say that name in "
                "broker.tls.server_name, or issue it anew with this one"
            )
    return f"{error.verify_message}; check ca_file and this clock, {_today()}"


#: Of a broker's alert about our certificate, as OpenSSL calls it: what it says, and what to do.
_REFUSALS = {
    "CERTIFICATE_REVOKED": ("has been told that this certificate is revoked", "issue the node a new one"),
    "CERTIFICATE_REQUIRED": ("asks for a certificate", "set broker.tls.cert_file and key_file"),
    "UNKNOWN_CA": ("does not know the authority of this certificate", "name the one issued by the broker's fleet"),
    "CERTIFICATE_UNKNOWN": ("does not take this certificate", "look into its log, and issue the node a new one"),
    "BAD_CERTIFICATE": ("does not take this certificate", "look into its log and at its clock, issue a new one"),
    "UNSUPPORTED_CERTIFICATE": ("takes no certificate of this kind", "name a node's own, for clients"),
    "ACCESS_DENIED": ("does not let this certificate in", "look into its log"),
}
_EXPIRED = "CERTIFICATE_EXPIRED"


def _refused_papers(account: Account, reason: str) -> str:
    """What a broker's alert says of us, and what to do."""
    papers = account.tls.certificate if account.tls is not None else None
    if _EXPIRED in reason:
        return (
            f"refuses {papers}: by the broker's clock it has expired; lay down a new one (hfl fleet rotate), which is "
            "taken at the next try, or set the broker's clock"
        )
    for word, (why, remedy) in _REFUSALS.items():
        if word in reason:
            return f"refuses {papers or repr(account.user)}: it {why}; {remedy}"
    plain = reason.lower().replace("_", " ")
    return (
        f"refuses to speak TLS with us: {plain}; it must take TLS 1.2 or 1.3, and look whether it wants a certificate"
    )


def _today() -> str:
    # No hours: a reason is told anew when it reads differently.
    return time.strftime("%Y-%m-%d", time.gmtime())


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
