"""What of the log a person sees on the terminal, or in a service's journal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from hfl_mqtt.ops import logs


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    package = logging.getLogger("hfl_mqtt")
    before = package.handlers
    yield logging.getLogger("hfl_mqtt.somewhere")
    package.handlers = before


@pytest.mark.parametrize(
    ("is_quiet", "seen"), [(False, "the disk is full\n"), (True, "two boards have one name\nthe disk is full\n")]
)
def test_an_error_is_shown_always_and_a_warning_where_no_note_says_it(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], *, is_quiet: bool, seen: str
) -> None:
    logs.to_stderr(quiet=is_quiet)
    log.info("a password is wrong, and ends the program with these words")
    log.warning("two boards have one name")
    log.error("the disk is full")
    assert capsys.readouterr().err == seen
