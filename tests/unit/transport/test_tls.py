"""Contexts: strict, shared by links with the same papers, and made anew when the papers on disk change."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport.tls import Shaker, context_of
from tests.broker.certificates import Authority


def test_a_context_checks_everything(tmp_path: Path) -> None:
    context = context_of(Authority(tmp_path).papers())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert [each["subject"] for each in context.get_ca_certs()] == [((("commonName", "hfl-mqtt fleet"),),)]


def test_links_with_the_same_papers_share_a_context(tmp_path: Path) -> None:
    fleet = Authority(tmp_path)
    papers, own = fleet.papers(), fleet.papers(fleet.issue("cloud/a"))
    context = context_of(papers)
    assert context_of(replace(papers)) is context
    assert context_of(own) is not context


def test_what_is_laid_down_anew_makes_a_new_context_even_within_the_same_tick_of_the_clock(tmp_path: Path) -> None:
    fleet = Authority(tmp_path)
    pair = fleet.issue("cloud/a")
    papers = fleet.papers(pair)
    context = context_of(papers)
    before = pair.certificate.stat()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(pair.certificate.read_bytes())
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(pair.certificate)  # as rotation does: another file, whole
    assert context_of(papers) is not context


def test_papers_that_are_gone_say_so(tmp_path: Path) -> None:
    fleet = Authority(tmp_path)
    pair = fleet.issue("cloud/a")
    papers = fleet.papers(pair)
    context_of(papers)
    pair.key.unlink()
    with pytest.raises(ConfigError, match=r"no such file: .*cloud\.a\.key"):
        context_of(papers)


def reset() -> socket.socket:
    """Return a connection that the other side has reset, as the kernel shows it before anything was read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), timeout=5.0)
        theirs, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    assert poll.poll(5_000)
    return ours


def test_a_connection_that_is_reset_before_it_is_wrapped_is_closed_and_says_so(tmp_path: Path) -> None:
    ours = reset()
    descriptor = ours.fileno()
    with pytest.raises(ssl.SSLEOFError, match="hung up in the handshake"):  # the traceback holds the socket
        Shaker(Authority(tmp_path).papers()).wrap_socket(ours, server_hostname="localhost")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_connection_whose_reset_was_read_already_is_closed_in_the_handshake(tmp_path: Path) -> None:
    ours = reset()
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    wrapped = Shaker(Authority(tmp_path).papers()).wrap_socket(ours, server_hostname="localhost")
    with pytest.raises(ssl.SSLEOFError, match="hung up in the handshake"):
        wrapped.do_handshake()
    assert wrapped.fileno() == -1
