"""How an aggregator's model goes down: its steps become deltas of a chain; what coding cuts off is carried along."""

from __future__ import annotations

from typing import Any

from hfl_mqtt.protocol.blobs import Cut, Keep, in_memory
from hfl_mqtt.protocol.messages import AUTO, MAX_BLOB, Keyframe, Tier, WantModel
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.actions import Action, Note, note
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.offer import Offer


class Downlink:
    """The chain that an aggregator offers, and how far behind the model it is.

    Args:
        arithmetic: the numbers.
        keep: puts blobs away.
    """

    def __init__(self, arithmetic: Arithmetic, keep: Keep = in_memory) -> None:
        self._arithmetic = arithmetic
        self._keep = keep
        self._offer: Offer | None = None
        #: What deltas of this model look like; None before `begin`.
        self.layout: Any = None
        #: The model, less what the chain leads to: what the way down has not carried yet. None is nothing.
        self.lag: Any = None
        #: How the last delta was coded, and why, where that was our choice.
        self.choice: ladder.Choice | None = None

    @property
    def chain(self) -> Chain | None:
        """The model as the children know it."""
        return self._offer.chain if self._offer is not None else None

    def begin(self, keyframe: Keyframe) -> list[Action]:
        """Offer a chain that starts here.

        Raises:
            Refused: no model starts so.
        """
        self.layout = self._arithmetic.layout(keyframe.start)
        self._offer, self.lag = Offer(keyframe, self._offer, self._keep), None
        return self._offer.show()

    def follow(self, delta: Cut) -> list[Action]:
        """Offer a parent's delta as it is, to children that are where it starts."""
        assert self._offer is not None
        return [*self._offer.push(delta), self._said(delta), *self._shorten()]

    def move(self, step: Any) -> None:
        """Move the model; the children know of it with the next `show`."""
        self.lag = self._arithmetic.add(self.lag, step)

    def show(self, tier: Tier, seed: int) -> tuple[list[Action], Any]:
        """Offer where the model is now, as well as `tier.downlink` can say it; what is left stays in `lag`.

        Returns:
            The actions, and how far the children's model moves by them: a delta, None where it stays.

        Raises:
            Refused: the model has left the range of its numbers.
        """
        offer = self._offer
        assert offer is not None
        if self.lag is None:
            return [], None
        codec = tier.downlink
        if codec == AUTO:
            self.choice = ladder.choose(offer.chain.keyframe.size, None, tier.budget)
            codec = self.choice.codec
        delta = self._arithmetic.encode(self.lag, codec, seed)
        moved = self.lag if self._arithmetic.is_lossless(codec) else self._arithmetic.decode(delta, self.layout)
        self.lag = None if moved is self.lag else self._arithmetic.subtract(self.lag, moved)
        cut = Cut.kept([delta], self._keep)
        del delta  # it may be as large as the model, and a keyframe of the same size may be made now
        return [*offer.push(cut), self._said(cut), *self._shorten()], moved

    def show_again(self) -> list[Action]:
        """Fill all slots: the broker may have lost them."""
        return self._offer.show() if self._offer is not None else []

    def again(self, want: WantModel, now: float) -> list[Action]:
        """Put what a child misses into its slots again."""
        return self._offer.again(want, now) if self._offer is not None else []

    def _said(self, delta: Cut) -> Note:
        assert self.chain is not None
        why = {"codec": self.choice.codec, "reason": self.choice.reason} if self.choice is not None else {}
        return note("delta", run=self.chain.keyframe.run, version=self.chain.version, bytes=delta.size, **why)

    def _shorten(self) -> list[Action]:
        """Put a new keyframe into the slots where the deltas since the last one have become too many."""
        offer, arithmetic = self._offer, self._arithmetic
        assert offer is not None
        chain = offer.chain
        # The start and what came since stand in one blob; a model of half its size keeps its long chain.
        if not offer.is_long(chain.keyframe.size) or 2 * chain.keyframe.size > MAX_BLOB:
            return []
        keyframe = arithmetic.shorten(chain.model)
        return [
            *offer.rebase(keyframe),
            note("keyframe", run=keyframe.run, version=keyframe.version, bytes=len(keyframe.plus or b"")),
        ]
