"""Where a schedule stands, for the cloud's next life.

run/state             the standing
run/scores/VERSION    the scores of each version that has some
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hfl_mqtt.protocol.messages import Buffer
from hfl_mqtt.rounds.records import pack, read

#: Where the standing lies.
KEY = "run/state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a schedule stands."""

    run: str
    version: int
    is_started: bool = False
    is_paused: bool = False
    #: Whether nothing is left but the cloud's own scores of the last version.
    is_scoring_last: bool = False
    is_over: bool = False
    failure: str | None = None
    stopped: str | None = None
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, saved: Mapping[str, Buffer]) -> Standing | None:
        """Return what a former life put down; None where it put down nothing that can be read."""
        return read(cls, saved.get(KEY))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    scores: dict[str, float]


def read_history(saved: Mapping[str, Buffer], versions: int) -> list[dict[str, float]]:
    """Return the scores of the first so many versions; none of those that were never scored."""
    found = [read(_Scores, saved.get(_key(version))) for version in range(versions)]
    return [dict(scores.scores) if scores is not None else {} for scores in found]


class Diary:
    """What of a schedule is put down already, and what has changed since."""

    def __init__(self) -> None:
        self._last: Standing | None = None

    def write(
        self, standing: Standing, history: list[dict[str, float]], scored: Iterable[int]
    ) -> dict[str, Buffer | None]:
        """Return what is to be made durable; `scored` are the versions with new scores."""
        changes: dict[str, Buffer | None] = {
            _key(version): pack(_Scores(scores=history[version])) for version in scored
        }
        if standing != self._last:
            self._last = standing
            changes[KEY] = pack(standing)
        return changes


def _key(version: int) -> str:
    return f"run/scores/{version:06d}"
