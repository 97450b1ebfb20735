"""What a check has found: a verdict, what it is based on, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How bad it is. Only `FAIL` keeps the node from its work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `remedy` says what to do, and is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding(name=name, verdict=Verdict.OK, text=text)


def warn(name: str, text: str, remedy: str) -> Finding:
    """Return what will do harm some day, or could not be made out."""
    return Finding(name=name, verdict=Verdict.WARN, text=text, remedy=remedy)


def fail(name: str, text: str, remedy: str) -> Finding:
    """Return what keeps the node from its work, or opens what must be shut."""
    return Finding(name=name, verdict=Verdict.FAIL, text=text, remedy=remedy)


def skipped(name: str, text: str) -> Finding:
    """Return that a check was not made, and why."""
    return Finding(name=name, verdict=Verdict.SKIPPED, text=text)
