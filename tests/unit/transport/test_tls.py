"""Contexts: strict, shared by links with the same papers, and made anew when the papers on disk change."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport.tls import context_of
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
