"""How far an edge's model has gone from its parent's, and what coding cut off from what was said of it upwards.

All of it is put down, without loss and only where it has changed, so that a next life goes on to the same bits:

    edge/above      how far the parent's model had come, from the run's start, when the children were brought to it
    edge/told       how far the children were led from there
    edge/total      how much of that is not in a contribution yet, where that is less
    edge/unshown    the last step, which the children were not told of
    edge/left/NAME  what coding cut off from an update, by the name of its payload
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hfl_mqtt.errors import Refused
from hfl_mqtt.protocol.messages import Buffer, ShortDigest
from hfl_mqtt.rounds.arithmetic import KEPT, Arithmetic
from hfl_mqtt.rounds.chain import Chain

_ABOVE, _TOLD, _TOTAL, _UNSHOWN, _LEFT = "edge/above", "edge/told", "edge/total", "edge/unshown", "edge/left/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An update without a receipt: the name of its payload, and whether what was cut off before is in it.

    One that is overtaken by a later round may have its receipt yet, until the next update is made.
    """

    payload: ShortDigest
    has_residual: bool
    is_overtaken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What belongs to the numbers: the parent's model up to which it was followed, and which numbers there are."""

    followed: str = ""
    has_above: bool = False
    #: Whether a contribution was made since the children were brought to the parent's model.
    is_apart: bool = False
    #: The name of the payload after which the residual was left, or "".
    residual: str = ""
    residual_run: str = ""
    pending: tuple[Pending, ...] = ()


class Drift:
    """The numbers.

    Args:
        arithmetic: adds and codes them.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self.marks = Marks()
        self._kept: dict[str, Any] = {}
        self._above: Any = None
        #: How far the children were led from the parent's model.
        self.told: Any = None
        self._total: Any = None
        #: The last step, which they were not told of.
        self.unshown: Any = None
        self._left: dict[str, Any] = {}

    # -------------------------------------------------------------- the parent's model

    def follow(self, chain: Chain, layout: Any, *, is_left: bool) -> None:
        """Take it that the children are where the parent's chain leads, or will be with the next delta.

        Args:
            is_left: whether the children will leave the parent's model, so that the way back must be known.

        Raises:
            Refused: the numbers have left their range.
        """
        self._above = self._reached(chain, layout) if is_left else None
        self._mark(followed=chain.digest, has_above=is_left, is_apart=False)
        self.told = self._total = self.unshown = None

    def way_to(self, chain: Chain, layout: Any) -> Any:
        """Return how the children come from where they are to where the parent's chain leads; None where they stay.

        It is taken from how far the parent's model has come in all, which is the same to the last bit however its
        chain was cut into deltas: whoever was away for some of them gets what the others got.

        Raises:
            Refused: the numbers have left their range.
        """
        above = self._reached(chain, layout)
        way = above if self._above is None or above is None else self._arithmetic.subtract(above, self._above)
        return way if self.told is None else self._arithmetic.subtract(way, self.told)

    def forget(self) -> None:
        """Take it that nobody knows where the children are."""
        self._above = self.told = self._total = self.unshown = None
        self._mark(followed="", has_above=False, is_apart=False)

    def _reached(self, chain: Chain, layout: Any) -> Any:
        news = chain.since(self.marks.followed) if self.marks.has_above else None
        if news is None:
            return self._arithmetic.moved(chain.model)
        above = self._above
        for link in news:
            above = self._arithmetic.add(above, self._arithmetic.decode(link.cut.blob, layout))
        return above

    # -------------------------------------------------------------- the children's model

    def step(self, step: Any) -> None:
        """Move the model; the children do not know of it yet."""
        self.unshown = step

    def tell(self) -> Any:
        """Take it that the children are told of the last step, and return it; None where they know it."""
        step, self.unshown = self.unshown, None
        if step is not None:
            is_shared = not self.marks.is_apart
            self.told = self._arithmetic.add(self.told, step)
            self._total = self.told if is_shared else self._arithmetic.add(self._total, step)
        return step

    def begin_apart(self) -> None:
        """Count from here what the next contribution is."""
        self._total = None
        self._mark(is_apart=True)

    @property
    def total(self) -> Any:
        """How far the model has moved since the last contribution; None where it has not."""
        if self.unshown is None:
            return self._total
        return self.unshown if self._total is None else self._arithmetic.add(self._total, self.unshown)

    # -------------------------------------------------------------- what coding cuts off

    @property
    def residual(self) -> Any:
        """What coding cut off from what has counted so far; None where it cut nothing off."""
        return self._left.get(self.marks.residual)

    def begin_run(self, run: str) -> None:
        """Drop what another run left."""
        if self.marks.residual_run != run:
            self._left = {}
            self._mark(residual_run=run, residual="", pending=())

    def to_say(self) -> Any:
        """Return what the next update says: how far the model has moved, with what was cut off before.

        What is still without a receipt carries that already, but for what was overtaken: that is given up here.
        """
        self._keep_pending(pending for pending in self.marks.pending if not pending.is_overtaken)
        residual = self.residual
        if residual is None or any(pending.has_residual for pending in self.marks.pending):
            return self.total
        try:
            return self._arithmetic.add(self.total, residual)
        except Refused:
            self._mark(residual="")  # of another model: a former life kept it
            return self.total

    def said(self, payload: str, left: Any) -> None:
        """Take it that `to_say` was coded, as the payload of this name, and that this was cut off."""
        others = tuple(pending for pending in self.marks.pending if pending.payload != payload)
        is_first = not any(pending.has_residual for pending in others)
        self._mark(pending=(*others, Pending(payload=payload, has_residual=is_first)))
        self._left[payload] = left
        self._drop_left()

    def counted(self, payload: str) -> None:
        """Take it that the update with this payload was accepted; of one that counted before, nothing more becomes."""
        found = next((pending for pending in self.marks.pending if pending.payload == payload), None)
        if found is None:
            return
        before, left = self.residual, self._left.get(payload)
        if not found.has_residual and before is not None:
            self._left[payload] = before if left is None else self._arithmetic.add(before, left)
        self._mark(residual=payload, pending=tuple(each for each in self.marks.pending if each is not found))
        self._drop_left()

    def give_up(self, payload: str) -> None:
        """Take it that this update, which has no receipt, will have none: what was cut off before stays."""
        self._keep_pending(each for each in self.marks.pending if each.payload != payload)

    def overtake(self) -> None:
        """Take it that a later round has begun for the parent; what it accepted before may not be known here yet."""
        self._mark(pending=tuple(replace(pending, is_overtaken=True) for pending in self.marks.pending))

    def _keep_pending(self, kept: Iterable[Pending]) -> None:
        self._mark(pending=tuple(kept))
        self._drop_left()

    def _drop_left(self) -> None:
        names = {self.marks.residual, *(pending.payload for pending in self.marks.pending)}
        self._left = {name: left for name, left in self._left.items() if name in names}

    # -------------------------------------------------------------- on disk

    def changes(self, *, is_continued: bool) -> dict[str, Buffer | None]:
        """Return what has changed on disk since the last time.

        Args:
            is_continued: whether the last step may be told yet.
        """
        wanted = {
            _ABOVE: self._above,
            _TOLD: self.told,
            _TOTAL: self._total if self.marks.is_apart else None,
            _UNSHOWN: self.unshown if is_continued else None,
            **{_LEFT + name: left for name, left in self._left.items()},
        }
        wanted = {key: value for key, value in wanted.items() if value is not None}
        kept, self._kept = self._kept, wanted
        found: dict[str, Buffer | None] = {key: None for key in kept if key not in wanted}
        for key, value in wanted.items():
            if kept.get(key) is not value:
                found[key] = self._arithmetic.encode(value, KEPT, 0)
        return found

    def restore(self, marks: Marks, saved: Mapping[str, Buffer], layout: Any) -> None:
        """Take up what a former life put down.

        Raises:
            Refused: it cannot be read.
        """
        names = {marks.residual, *(pending.payload for pending in marks.pending)} - {""}
        keys = [_ABOVE, _TOLD, _TOTAL, _UNSHOWN, *(_LEFT + name for name in sorted(names))]
        self._kept = self._read(keys, saved, layout)
        self.marks = marks
        self._above, self.told = self._kept.get(_ABOVE), self._kept.get(_TOLD)
        self._total = self._kept.get(_TOTAL) if marks.is_apart else self.told
        self.unshown = self._kept.get(_UNSHOWN)
        self._left = {name: left for name in names if (left := self._kept.get(_LEFT + name)) is not None}

    def _read(self, keys: Iterable[str], saved: Mapping[str, Buffer], layout: Any) -> dict[str, Any]:
        return {key: self._arithmetic.decode(bytes(saved[key]), layout) for key in keys if key in saved}

    def _mark(self, **fields: Any) -> None:
        self.marks = replace(self.marks, **fields)
