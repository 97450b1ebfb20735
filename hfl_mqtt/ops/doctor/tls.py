"""TLS: the broker's certificate, and our own, seen as the other side will see them.

Dates are judged here and not by the handshake alone, so that an expired certificate is named with its date rather than
called a failure.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.doctor.clock import BELIEVABLE_S
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.network import CONNECT_S
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.transport import reasons
from hfl_mqtt.transport.link import Account, TlsFiles
from hfl_mqtt.transport.tls import context_of, fault_of, mistakes

SOON_S = 30 * 86_400
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME: everything is checked but the dates.
_NO_DATES = ssl.VerifyFlags(0x200000)
#: What brings papers that are missing or damaged back.
BUNDLE = "copy the bundle of this node here again; hfl fleet render makes it"
_ROTATE = "hfl fleet rotate at home, then copy the new files here"
Certificate = dict[str, Any]


def check_papers(patient: Patient, tls: TlsFiles) -> Iterator[Finding]:
    """See that the files of `tls:` can be used, and look at the own certificate with the eyes of the broker."""
    name = "certificate"
    found = mistakes(tls)
    if found:
        for key, text in found:
            what, _, remedy = text.partition("; ")
            yield fail(f"tls {key}", what, remedy or BUNDLE)
        yield skipped(name, f"not looked at, for {found[0][0]} failed")
        return
    if tls.certificate is None:
        yield skipped(name, "none is shown: a password opens this broker")
        return
    try:
        own = own_certificate(tls)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or error.reason or error
        yield fail(
            name, f"{tls.certificate.name} is not taken: {why}", f"{tls.ca.name} and it must be of one fleet: {_ROTATE}"
        )
        return
    subject = common_name(own)
    if subject != patient.name:
        remedy = f"copy the bundle of {patient.name}: the broker takes the certificate's name for the account"
        yield fail(name, f"it is {subject}'s, this node is {patient.name}", remedy)
        return
    yield _judge_date(name, f"{subject}'s", own)


def check_handshake(account: Account) -> Iterator[Finding]:
    """Shake hands with the broker as the agent does, and look at its certificate."""
    name = "TLS handshake"
    assert account.tls is not None
    if found := mistakes(account.tls):
        yield skipped(name, f"not tried, for {found[0][0]} failed")
        return
    try:
        _, version, seconds = _shake(account, context_of(account.tls))
    except (OSError, ConfigError) as error:
        what, _, remedy = reasons.connect_failure(account, error).partition("; ")
        yield fail(name, what, remedy or "see the broker's log: journalctl -u mosquitto")
    else:
        yield ok(name, f"{version} after {seconds:.3f} s")
    yield from _check_certificate(account)


def own_certificate(tls: TlsFiles) -> Certificate:
    """Return the own certificate as a broker reads it, in a handshake with ourselves; its dates are not checked.

    Raises:
        ssl.SSLError: the authority did not issue it, or not for a client.
    """
    assert tls.certificate is not None
    broker, node = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    node.check_hostname, node.verify_mode = False, ssl.CERT_NONE
    broker.verify_mode = ssl.CERT_REQUIRED
    broker.verify_flags |= _NO_DATES
    broker.load_verify_locations(tls.ca)
    for side in (broker, node):
        side.load_cert_chain(tls.certificate, tls.key, password="")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [node.wrap_bio(down, up), broker.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    found = ends[1].getpeercert()
    assert found
    return found


def common_name(certificate: Certificate) -> str:
    """Return whose it is."""
    named = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return str(named[0]) if named else "nobody"


def _check_certificate(account: Account) -> Iterator[Finding]:
    """Look at the broker's certificate whatever its dates and its name are: who issued it must hold."""
    assert account.tls is not None
    name = "broker's certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= _NO_DATES
    try:
        context.load_verify_locations(account.tls.ca)
        if account.tls.certificate is not None:
            context.load_cert_chain(account.tls.certificate, account.tls.key, password="")
        found, _, _ = _shake(account, context)
    except OSError:
        yield skipped(name, "not seen: the handshake failed before, or another authority issued it")
        return
    names = ", ".join(value for _, value in found.get("subjectAltName", ()))
    yield _judge_date(name, f"{common_name(found)}, for {names or 'no host at all'},", found)


def _shake(account: Account, context: ssl.SSLContext) -> tuple[Certificate, str, float]:
    """Return the broker's certificate, the version of TLS and the seconds it took.

    In TLS 1.3 a broker looks at our certificate when we think that all is done. So we say goodbye at once, and hear its
    alert or the end of the stream.

    Raises:
        OSError: there is no connection, or one side does not trust the other.
    """
    assert account.tls is not None
    began_s = time.monotonic()
    with socket.create_connection((account.host, account.port), timeout=CONNECT_S) as plain:
        named = account.tls.server_name or account.host
        with context.wrap_socket(plain, server_hostname=named) as shaken:
            seconds = time.monotonic() - began_s
            found, version = shaken.getpeercert() or {}, shaken.version() or ""
            with suppress(TimeoutError, ConnectionError, ssl.SSLEOFError):
                shaken.sendall(_GOODBYE)
                shaken.recv(1)
            if (fault := fault_of(shaken)) is not None and not isinstance(fault, ssl.SSLEOFError):
                raise fault
            return found, version, seconds


#: DISCONNECT before any CONNECT: a broker hangs up.
_GOODBYE = bytes((0xE0, 0x00))


def _judge_date(name: str, whose: str, certificate: Certificate) -> Finding:
    ends_s = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return judge_date(name, whose, ends_s, time.time())


def judge_date(name: str, whose: str, ends_s: float, now_s: float) -> Finding:
    """Judge an end: past, soon, or far; a clock that was never set cannot."""
    day = datetime.fromtimestamp(ends_s, timezone.utc).strftime("%Y-%m-%d")
    left_days = int((ends_s - now_s) // 86_400)
    if now_s < BELIEVABLE_S:
        return ok(name, f"{whose} until {day}; the clock here cannot tell how long that is")
    if ends_s < now_s:
        return fail(name, f"{whose} has expired on {day}", _ROTATE)
    if ends_s - now_s < SOON_S:
        return warn(name, f"{whose} until {day}, {left_days} days more", _ROTATE)
    return ok(name, f"{whose} until {day}, {left_days} days more")
