"""TLS for links: at least 1.2, no authority but the one that is named, the host's name checked, and no way around it.

The papers are read from disk when a link connects, and anew when they have changed: who lays new ones down restarts
nothing. Links that show the same papers share a context, so a thousand of them cost no more memory than one.
"""

from __future__ import annotations

import errno
import ssl
import stat
import threading
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import Any
from weakref import WeakValueDictionary

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport.link import TlsFiles

#: No certificate or key is larger.
MAX_BYTES = 1_000_000
#: Of which file a sentence is: the keys of the section `tls:`.
CA, CERTIFICATE, KEY = "ca_file", "cert_file", "key_file"

_Stamp = tuple[int, int, int] | None
_contexts: WeakValueDictionary[tuple[TlsFiles, tuple[_Stamp, ...]], ssl.SSLContext] = WeakValueDictionary()
_lock = threading.Lock()


def context_of(files: TlsFiles) -> ssl.SSLContext:
    """Return the context for these papers as they lie on disk now.

    Raises:
        ConfigError: they cannot be used; the message names each file, what is wrong with it, and the remedy.
    """
    known = files, tuple(_stamp(path) for path in (files.ca, files.certificate, files.key))
    with _lock:
        context = _contexts.get(known)
        if context is None:
            context, found = _made(files)
            if found:
                raise ConfigError("; ".join(text for _, text in found))
            _contexts[known] = context
        return context


def mistakes(files: TlsFiles) -> list[tuple[str, str]]:
    """Return what is wrong with the papers on disk: of which file, and a sentence with the remedy."""
    return _made(files)[1]


def key_mistake(path: Path) -> str | None:
    """Return what is wrong with the file of a private key, before anything is done with it; None where nothing is."""
    text, mistake = _read(path)
    if mistake is not None:
        return mistake
    if path.stat().st_mode & stat.S_IRWXO:
        return f"{path} can be read by everybody on this machine, and is a private key: chmod o= {path}"
    if "PRIVATE KEY-----" not in text:
        return f"{path} is not a private key in PEM: it has no line BEGIN PRIVATE KEY"
    if "ENCRYPTED" in text:
        return f"{path} is locked with a passphrase, which nobody is there to type: openssl pkey -in {path} unlocks it"
    return None


def _made(files: TlsFiles) -> tuple[ssl.SSLContext, list[tuple[str, str]]]:
    """Return a context, and what is wrong with its papers; with mistakes it is good for nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a certificate is required, and the host's name checked
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _Socket
    found = [(CA, _authority_mistake(context, files.ca))]
    if files.certificate is not None and files.key is not None:
        found += [(CERTIFICATE, _certificate_mistake(files.certificate)), (KEY, key_mistake(files.key))]
        if not any(text for _, text in found):
            found.append(_pair_mistake(context, files.certificate, files.key))
    return context, [(key, text) for key, text in found if text is not None]


def _authority_mistake(context: ssl.SSLContext, path: Path) -> str | None:
    """Have the context trust an authority; return what is wrong with its file."""
    if (mistake := _read(path)[1]) is not None:
        return mistake
    try:
        context.load_verify_locations(path)
    except OSError:  # that of TLS is one
        return f"{path} is not a certificate in PEM: name the fleet's ca.crt"
    if not context.cert_store_stats()["x509_ca"]:
        return f"{path} is nobody's authority, but a certificate of one node: name the fleet's ca.crt"
    return None


def _certificate_mistake(path: Path) -> str | None:
    text, mistake = _read(path)
    if mistake is None and "BEGIN CERTIFICATE-----" not in text:
        return f"{path} is not a certificate in PEM: it has no line BEGIN CERTIFICATE"
    return mistake


def _pair_mistake(context: ssl.SSLContext, certificate: Path, key: Path) -> tuple[str, str | None]:
    """Have the context show a certificate; return what is wrong with it or with its key."""
    try:
        # Without a password of ours, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return KEY, f"{key} is not the key of {certificate}: lay both down again, as one pair"
        return CERTIFICATE, f"{certificate} and {key} cannot be used: {error.reason or error}"
    except OSError as error:  # taken away this very moment
        return CERTIFICATE, f"{certificate} or {key} cannot be read: {error.strerror}"
    return KEY, None


def _read(path: Path) -> tuple[str, str | None]:
    """Return a file's text and what is wrong with it; a file of bytes that are no text reads as nothing."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return "", f"no such file: {path}"
    except OSError as error:
        return "", f"{path} cannot be read: {error.strerror}; give it to the user that this program runs as"
    if len(raw) > MAX_BYTES:
        return "", f"{path} is larger than any certificate or key"
    return raw.decode("ascii", "ignore"), None


def _stamp(path: Path | None) -> _Stamp:
    """Return what changes when a file is replaced or written to; None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class _Socket(ssl.SSLSocket):
    """A socket that keeps why it failed, of which paho says nothing, and that closes itself where no handshake is had.

    In TLS 1.3 a client has shaken hands before the broker looks at its certificate: a refusal comes when it reads.
    """

    #: What the broker said, or what OpenSSL found wrong.
    fault: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException as error:
            self.close()
            if isinstance(error, ConnectionError) or getattr(error, "errno", None) == errno.ENOTCONN:
                raise _hung_up() from error
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.fault = error
            raise
        except ConnectionError as error:
            if self.version() is None:  # ssl looks for data before it wraps us, and would leave us open
                self.close()
                raise _hung_up() from error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            # Why the broker hung up lies there unread.
            with suppress(OSError):
                self.recv(1)
            raise


def _hung_up() -> ssl.SSLEOFError:
    """Return what a reset before or in the handshake is: an end of the stream, which OpenSSL tells as its own."""
    return ssl.SSLEOFError(ssl.SSLErrorNumber.SSL_ERROR_EOF, "hung up in the handshake")


class Shaker:
    """What paho takes for a context: each connection is wrapped with the papers that lie on disk then."""

    #: paho asks; the contexts check it.
    check_hostname = True

    def __init__(self, files: TlsFiles) -> None:
        self._files = files

    def wrap_socket(
        self, sock: socket, *, server_hostname: str | None = None, do_handshake_on_connect: bool = False
    ) -> ssl.SSLSocket:
        """Wrap a connection that stands.

        Raises:
            ConfigError: the papers on disk cannot be used.
        """
        try:
            return context_of(self._files).wrap_socket(
                sock,
                server_hostname=self._files.server_name or server_hostname,
                do_handshake_on_connect=do_handshake_on_connect,
            )
        except BaseException:
            sock.close()
            raise


def fault_of(sock: object) -> ssl.SSLError | None:
    """Return why a connection failed, where TLS knows it."""
    return sock.fault if isinstance(sock, _Socket) else None
