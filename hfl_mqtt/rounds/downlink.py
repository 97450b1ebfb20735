"""How an aggregator's model goes down: its steps become deltas of a chain; what coding cuts off is carried along.

All of it is put down before it is said, so a next life goes on with the very chain that the children have:

    chain/key            the keyframe
    chain/link/VERSION   the deltas since, by the version that each leads to
    chain/lag            what the way down has not carried yet, without loss
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from types import MappingProxyType
from typing import Any

from hfl_mqtt.errors import Malformed, Refused
from hfl_mqtt.protocol.blobs import Cut, Keep, in_memory
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import AUTO, Buffer, Keyframe, Tier, WantModel
from hfl_mqtt.protocol.wire import unpack_keyframe
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.actions import Action, Note, Persist, note
from hfl_mqtt.rounds.arithmetic import KEPT, Arithmetic
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.offer import Offer
from hfl_mqtt.rounds.signing import Signer


class Downlink:
    """The chain that an aggregator offers, and how far behind the model it is.

    Args:
        arithmetic: the numbers.
        keep: puts blobs away.
        saved: what a former life put down; other keys are passed over. It has no seals: who reads it makes its own.
        signer: seals keyframes.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        keep: Keep = in_memory,
        saved: Mapping[str, Buffer] = MappingProxyType({}),
        signer: Signer | None = None,
    ) -> None:
        self._arithmetic = arithmetic
        self._keep, self._signer = keep, signer
        self._offer: Offer | None = None
        #: What deltas of this model look like; None before `begin`.
        self.layout: Any = None
        #: The model, less what the chain leads to: what the way down has not carried yet. None is nothing.
        self.lag: Any = None
        #: How the last delta was coded, and why, where that was our choice.
        self.choice: ladder.Choice | None = None
        #: What was saved and cannot be read.
        self.unreadable: list[str] = []
        self._changes: dict[str, Buffer | None] = {}
        self._saved_lag: Any = None
        self._restore({key: data for key, data in saved.items() if key.startswith("chain/")})

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
        before = self._offer
        self._changes |= {_name(link.version): None for link in before.chain.links} if before is not None else {}
        self._offer, self.lag = Offer(keyframe, before, self._keep, self._signer), None
        self._changes["chain/key"] = self._offer.key_body
        return [*self.flush(), *self._offer.show()]

    def follow(self, delta: Cut) -> list[Action]:
        """Offer a parent's delta as it is, to children that are where it starts."""
        assert self._offer is not None
        said = [*self._offer.push(delta), self._said(), *self._shorten()]
        return [*self.flush(), *said]

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
            return [*self.flush()], None
        codec = tier.downlink
        if codec == AUTO:
            self.choice = ladder.choose(offer.chain.keyframe.size, None, tier.budget)
            codec = self.choice.codec
        delta, moved, self.lag = self._arithmetic.carry(self.lag, codec, seed)
        cut = Cut.kept([delta], self._keep)
        del delta  # it may be as large as the model, and a keyframe of the same size may be made now
        said = [*offer.push(cut), self._said(), *self._shorten()]
        return [*self.flush(), *said], moved

    def show_newest(self) -> list[Action]:
        """Fill the slots that were filled last."""
        return self._offer.show_newest() if self._offer is not None else []

    def show_again(self) -> list[Action]:
        """Fill all slots: the broker may have lost them."""
        return self._offer.show() if self._offer is not None else []

    def again(self, want: WantModel, now: float) -> list[Action]:
        """Put what a child misses into its slots again."""
        return self._offer.again(want, now) if self._offer is not None else []

    def flush(self) -> list[Persist]:
        """Return what is to be made durable since the last time."""
        if self.lag is not self._saved_lag:
            self._saved_lag = self.lag
            coded = self._arithmetic.encode(self.lag, KEPT, 0) if self.lag is not None else None
            self._changes["chain/lag"] = coded
        if not self._changes:
            return []
        changes, self._changes = self._changes, {}
        return [Persist(changes=changes)]

    def _restore(self, saved: dict[str, Buffer]) -> None:
        if not saved:
            return
        try:
            self._read(dict(saved))
        except (Malformed, Refused) as error:
            self.unreadable = [f"chain: {error}"]
            self._offer = self.layout = self.lag = self._saved_lag = None
            self._changes = dict.fromkeys(saved)

    def _read(self, saved: dict[str, Buffer]) -> None:
        """Take up a former life's chain: all of it or none, for its digests name what stands before them."""
        keyframe = unpack_keyframe(saved.pop("chain/key", b""))
        self.layout = self._arithmetic.layout(keyframe.start)
        self._offer = Offer(keyframe, None, self._keep, self._signer)
        lag = saved.pop("chain/lag", None)
        if lag is not None:
            self.lag = self._saved_lag = self._arithmetic.decode(bytes(lag), self.layout)
        for version in count(keyframe.version + 1):
            delta = saved.pop(_name(version), None)
            if delta is None:
                break
            self._offer.push(Cut.kept([delta], self._keep))
        if saved:
            raise Malformed(f"{min(saved)} does not follow on version {self._offer.chain.version}")

    def _said(self) -> Note:
        """Put the newest delta down, and say for the journal what it is."""
        chain = self.chain
        assert chain is not None
        link = chain.links[-1]
        self._changes[_name(link.version)] = link.cut.blob
        why = {"codec": self.choice.codec, "reason": self.choice.reason} if self.choice is not None else {}
        return note(
            "delta",
            run=chain.keyframe.run,
            version=link.version,
            bytes=link.cut.size,
            digest=link.digest[:16],
            base=_before(chain)[:16],
            **why,
        )

    def _shorten(self) -> list[Action]:
        """Put a new keyframe into the slots where the deltas since the last one have become too many."""
        offer, arithmetic = self._offer, self._arithmetic
        assert offer is not None
        chain = offer.chain
        # The start and what came since stand in one blob; a model of half its size keeps its long chain.
        if not offer.is_long(chain.keyframe.size) or 2 * chain.keyframe.size > MAX_BLOB:
            return []
        keyframe = arithmetic.shorten(chain.model)
        self._changes |= {_name(link.version): None for link in chain.links}
        shown = offer.rebase(keyframe)
        self._changes["chain/key"] = offer.key_body
        return [
            *shown,
            note("keyframe", run=keyframe.run, version=keyframe.version, bytes=len(keyframe.plus or b"")),
        ]


def _name(version: int) -> str:
    return f"chain/link/{version:06d}"


def _before(chain: Chain) -> str:
    """Return the digest of the model that a chain's newest delta starts from."""
    return chain.links[-2].digest if len(chain.links) > 1 else chain.keyframe.digest
