"""The model an aggregator offers its children: parts in retained slots, and a manifest beside them."""

from __future__ import annotations

from typing import Any

from hfl_mqtt.protocol.blobs import Cut
from hfl_mqtt.protocol.messages import Manifest, ModelPart, WantModel
from hfl_mqtt.rounds.actions import Action, ClearSlots, Send
from hfl_mqtt.rounds.arithmetic import Arithmetic

#: A part is put into its slot again at most this often, however many children ask.
REPUBLISH_S = 2.0


class Offer:
    """One model version, encoded once.

    Args:
        run: the run it belongs to.
        version: its number.
        weights: the model.
        digest: their name.
        arithmetic: encodes them.
        blob: its encoding, where it is at hand.
    """

    def __init__(
        self,
        *,
        run: str,
        version: int,
        weights: Any,
        digest: str,
        arithmetic: Arithmetic,
        blob: bytes | None = None,
    ) -> None:
        self.weights = weights
        self._cut = Cut.of(blob if blob is not None else arithmetic.encode_model(weights))
        self._republished_s: dict[int, float] = {}
        self.manifest = Manifest(
            run=run,
            version=version,
            digest=digest,
            blob=self._cut.digest,
            size=len(self._cut.blob),
            parts=self._cut.count,
            codec=arithmetic.model_codec,
        )

    def show(self, before: Offer | None = None) -> list[Action]:
        """Fill the slots, say the manifest, and clear the slots that only the model `before` had."""
        parts: list[Action] = [Send(message=self._part(index)) for index in range(self._cut.count)]
        emptied = before is not None and before._cut.count > self._cut.count
        clear = [ClearSlots(first=self._cut.count, end=before._cut.count)] if before is not None and emptied else []
        return [*parts, Send(message=self.manifest), *clear]

    def again(self, want: WantModel, now: float) -> list[Action]:
        """Put the parts that a child misses into their slots again, unless that was done a moment ago."""
        due = [
            index
            for index in sorted(set(want.parts))
            if index < self._cut.count and now - self._republished_s.get(index, -REPUBLISH_S) >= REPUBLISH_S
        ]
        self._republished_s.update(dict.fromkeys(due, now))
        return [Send(message=self._part(index)) for index in due]

    def _part(self, index: int) -> ModelPart:
        return ModelPart(
            blob=self._cut.digest,
            index=index,
            count=self._cut.count,
            size=len(self._cut.blob),
            data=self._cut.part(index),
        )
