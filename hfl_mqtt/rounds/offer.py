"""The model an aggregator offers its children: a chain in retained slots.

A delta is heard by whoever listens; keyframe and older deltas lie in the broker for whoever comes late, who fetches
them by name: the aggregator does nothing for it.
"""

from __future__ import annotations

from hfl_mqtt.protocol.blobs import Cut, Keep, in_memory
from hfl_mqtt.protocol.messages import Buffer, Keyframe, KeyPart, Manifest, ModelPart, WantModel
from hfl_mqtt.protocol.topics import slot
from hfl_mqtt.protocol.wire import keyframe_pieces, unpack_keyframe
from hfl_mqtt.rounds.actions import Action, ClearSlots, Send
from hfl_mqtt.rounds.arithmetic import DELTAS_PER_KEY, MAX_DELTAS
from hfl_mqtt.rounds.chain import Chain, Link
from hfl_mqtt.rounds.signing import Signer, body_of, keyframe_seal

#: A part is put into its slot again at most this often, however many children ask.
REPUBLISH_S = 2.0


class Offer:
    """A chain in its slots.

    Args:
        keyframe: where it starts.
        before: the offer in whose slots it is put.
        keep: puts blobs away.
        signer: seals keyframes.
    """

    def __init__(
        self,
        keyframe: Keyframe,
        before: Offer | None = None,
        keep: Keep = in_memory,
        signer: Signer | None = None,
    ) -> None:
        self._keep, self._signer = keep, signer
        self._key = self._cut(keyframe)
        self.chain = Chain(unpack_keyframe(self.key_body))  # views of the same bytes
        self._stale_keys = before._key.count if before is not None else 0
        self._stale_slots = before._slots() if before is not None else []
        self._republished_s: dict[tuple[bool, int, int], float] = {}

    @property
    def manifest(self) -> Manifest:
        """What a call says of the model."""
        return self.chain.manifest

    def show(self) -> list[Action]:
        """Fill all slots, and clear those that only an earlier chain had."""
        actions = self._show_key()
        for frame, link in enumerate(self.chain.links):
            actions += [Send(message=self._part(frame, link, index)) for index in range(link.cut.count)]
        return [*actions, *self._clear()]

    @property
    def key_body(self) -> Buffer:
        """The keyframe's blob, without its seal."""
        return body_of(self._key, is_sealed=self._signer is not None)

    def show_newest(self) -> list[Action]:
        """Fill the slots of the newest delta, or where there is none since, of the keyframe."""
        if not self.chain.links:
            return self._show_key()
        frame, link = len(self.chain.links) - 1, self.chain.links[-1]
        return [Send(message=self._part(frame, link, index)) for index in range(link.cut.count)]

    def push(self, delta: Buffer | Cut) -> list[Action]:
        """Put one more delta into its slot."""
        self.chain.push(delta)
        return self.show_newest()

    def is_long(self, key_bytes: int) -> bool:
        """Whether a keyframe of that many bytes would now serve late joiners better than the deltas since the last."""
        return len(self.chain.links) >= MAX_DELTAS or self.chain.deltas_bytes >= DELTAS_PER_KEY * key_bytes

    def rebase(self, keyframe: Keyframe) -> list[Action]:
        """Put a keyframe of the newest version into its slots, and clear those of the deltas that led to it."""
        self._stale_keys, self._stale_slots = self._key.count, self._slots()
        self._key = self._cut(keyframe)
        self.chain.rebase(unpack_keyframe(self.key_body))
        self._republished_s.clear()
        return [*self._show_key(), *self._clear()]

    def again(self, want: WantModel, now: float) -> list[Action]:
        """Put the parts that a child misses into their slots again, unless that was done a moment ago."""
        first = self.chain.keyframe.version
        frame = want.version - first - 1
        if want.is_key:
            count = self._key.count if want.version == first else 0
        else:
            count = self.chain.links[frame].cut.count if 0 <= frame < len(self.chain.links) else 0
        due = [
            index
            for index in sorted(set(want.parts))
            if index < count
            and now - self._republished_s.get((want.is_key, want.version, index), -REPUBLISH_S) >= REPUBLISH_S
        ]
        self._republished_s.update({(want.is_key, want.version, index): now for index in due})
        if want.is_key:
            return [Send(message=self._key_part(index)) for index in due]
        return [Send(message=self._part(frame, self.chain.links[frame], index)) for index in due]

    def _cut(self, keyframe: Keyframe) -> Cut:
        return Cut.kept(keyframe_pieces(keyframe), self._keep, seal=keyframe_seal(self._signer, keyframe))

    def _slots(self) -> list[str]:
        return [slot(frame, index) for frame, link in enumerate(self.chain.links) for index in range(link.cut.count)]

    def _show_key(self) -> list[Action]:
        actions: list[Action] = [Send(message=self._key_part(index)) for index in range(self._key.count)]
        if self._stale_keys > self._key.count:
            stale = tuple(str(index) for index in range(self._key.count, self._stale_keys))
            actions.append(ClearSlots(slots=stale, is_key=True))
        self._stale_keys = 0
        return actions

    def _clear(self) -> list[Action]:
        used = set(self._slots())
        stale = tuple(name for name in self._stale_slots if name not in used)
        self._stale_slots = []
        return [ClearSlots(slots=stale)] if stale else []

    def _key_part(self, index: int) -> KeyPart:
        key = self._key
        return KeyPart(
            version=self.chain.keyframe.version,
            blob=key.name,
            index=index,
            count=key.count,
            size=key.size,
            data=key.piece(index),
        )

    @staticmethod
    def _part(frame: int, link: Link, index: int) -> ModelPart:
        return ModelPart(
            frame=frame,
            version=link.version,
            blob=link.cut.name,
            index=index,
            count=link.cut.count,
            size=link.cut.size,
            data=link.cut.piece(index),
        )
