"""How a participant comes by its parent's model: deltas as they are published, all else fetched by name.

Whoever is one version behind hears the next delta and is done. Whoever missed one, or comes late, asks its broker for
what lies in the slots: the missing deltas, or the keyframe and the deltas since. Only where the broker has lost them
is the parent asked to put them there again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from hfl_mqtt.errors import Forged, Malformed
from hfl_mqtt.protocol import statements
from hfl_mqtt.protocol.blobs import Cut, Keep, Reassembler, in_memory
from hfl_mqtt.protocol.limits import MAX_FRAMES, MAX_HEAD
from hfl_mqtt.protocol.messages import Keyframe, KeyPart, Manifest, ModelPart, WantModel
from hfl_mqtt.protocol.topics import slot
from hfl_mqtt.protocol.wire import unpack_keyframe
from hfl_mqtt.rounds.actions import Action, Fetch, Send, note
from hfl_mqtt.rounds.arithmetic import DELTAS_PER_KEY
from hfl_mqtt.rounds.chain import Chain
from hfl_mqtt.rounds.signing import Signer, body_of, check_keyframe

#: How long the next delta may take to come by itself before it is fetched, in seconds.
PUSHED_S = 2.0
#: How long to wait for what was fetched before asking again; doubles each time.
FETCH_S = 3.0
MAX_FETCH_S = 60.0
#: How long to wait before a slot is looked at again that held what is no use; doubles each time.
STALE_S = 0.1
#: Parts asked for at a time.
WINDOW = 8
#: Of smaller models an idle node keeps deltas as if they had this many bytes.
LEAST_KEPT = 2**20
#: Blobs that may be under way at a time.
MAX_OPEN = 16

_Want = tuple[bool, int]  # whether it is the keyframe, and its version
_Slot = tuple[bool, int, int]  # that, and the part


class Following:
    """A parent's chain as far as it is known here.

    Args:
        max_model: most bytes of a model; a keyframe may have twice as many.
        keep: puts blobs away.
        source: whose chain it is.
        signer: checks its keyframes; the deltas are checked by the digest that the call gives.
    """

    def __init__(self, max_model: int, keep: Keep = in_memory, source: str = "", signer: Signer | None = None) -> None:
        self.max_model, self.max_blob = max_model, 2 * max_model + MAX_HEAD
        self._put_away, self._source, self._signer = keep, source, signer
        self.chain: Chain | None = None
        self._run = ""
        self._target: Manifest | None = None
        self._parts = Reassembler(
            max_blob=self.max_blob,
            max_total=self.max_blob + max_model,
            per_sender=MAX_OPEN,
            window=None,
            trailer=statements.SIGNATURE_SIZE,
        )
        #: What is whole and waits for what stands before it.
        self._keyframe: Keyframe | None = None
        self._loose: dict[int, Cut] = {}
        #: The blobs that are under way.
        self._blobs: dict[_Want, str] = {}
        self._asked: set[_Slot] = set()
        self._ask_at_s: float | None = None
        self._wait_s, self._stale_s = FETCH_S, STALE_S
        self._asks = 0
        #: Whether what was put together was another model than the one called for.
        self._has_broken = False
        self._has_heard = False
        self._since_s = self._last_part_s = 0.0

    @property
    def has_arrived(self) -> bool:
        """Whether the model that was called for is here."""
        target, chain = self._target, self.chain
        return target is not None and chain is not None and chain.leads_to(target)

    def want(self, run: str, manifest: Manifest, now: float) -> list[Action]:
        """Take it that this model is called for; see then whether it `has_arrived`."""
        if run != self._run:
            self.forget()
            self._run = run
        self._target = manifest
        self._wait_s, self._asks = FETCH_S, 0
        self._stale_s, self._has_broken = STALE_S, False
        self._since_s, self._last_part_s, self._has_heard = now, now, False
        broken = self._link()
        if self.has_arrived:
            return []
        chain = self.chain
        if chain is not None and chain.version + 1 == manifest.version and manifest.key <= chain.version:
            self._ask_at_s = now + PUSHED_S  # it is on its way
            return broken
        return broken + self._ask(now)

    def rest(self) -> None:
        """Take it that nothing is called for any more; what comes by itself is kept."""
        self._target = self._ask_at_s = None
        self._asked.clear()

    def forget(self) -> None:
        """Drop everything."""
        self.rest()
        self.chain = self._keyframe = None
        self._loose.clear()
        self._blobs.clear()
        self._parts.clear()

    def progress(self) -> tuple[int, int] | None:
        """Return how many bytes of what is under way are here, and all of them; None where nothing is."""
        return self._parts.progress()

    def arriving_since(self, now: float) -> float | None:
        """Return since when parts keep coming of what is not here yet, None where none do; one may take a minute."""
        is_awaited = self.progress() is not None if self._target is None else not self.has_arrived
        is_recent = self._has_heard and now - self._last_part_s <= MAX_FETCH_S
        return self._since_s if is_recent and is_awaited else None

    def hear(self, part: ModelPart | KeyPart, now: float) -> list[Action]:
        """Take a part in; see then whether the model `has_arrived`."""
        want = (isinstance(part, KeyPart), part.version)
        self._asked.discard((*want, part.index))
        if not self._is_of_use(part):
            return []
        if self._target is None and self.progress() is None:
            self._since_s = now
        gap_s, self._last_part_s, self._has_heard = now - self._last_part_s, now, True
        if (before := self._blobs.get(want, part.blob)) != part.blob:
            self._parts.drop("key" if want[0] else "down", before)
        self._blobs[want] = part.blob
        actions: list[Action] = []
        is_whole = is_broken = False
        try:
            progress = self._parts.add("key" if want[0] else "down", part, now)
            if progress.blob is not None:
                del self._blobs[want]
                cut = Cut(self._put_away([progress.blob]), progress.digest, part.count)
                self._keep(want, cut, progress.body_digest)
                is_whole, self._wait_s = True, FETCH_S  # what is asked for does come
                broken = self._link()
                actions += broken
                is_broken = bool(broken)
        except (Malformed, Forged) as error:
            self._blobs.pop(want, None)
            self._look_again(now)
            return [*actions, note("forged" if isinstance(error, Forged) else "malformed", reason=str(error))]
        if self._ask_at_s is None or self.has_arrived:
            return actions
        if is_broken:
            self._look_again(now)
            return actions
        # On a slow link the next part takes about as long as this one did.
        patience_s = min(max(FETCH_S, 3 * gap_s), MAX_FETCH_S)
        self._ask_at_s = now + patience_s if is_whole else max(self._ask_at_s, now + patience_s)
        return actions + self._top_up()

    def tick(self, now: float) -> list[Action]:
        """Ask again where nothing came for long enough."""
        if self._ask_at_s is None or now < self._ask_at_s:
            return []
        return self._ask(now)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        return self._ask_at_s

    # -------------------------------------------------------------- inside

    def _is_of_use(self, part: ModelPart | KeyPart) -> bool:
        if isinstance(part, KeyPart):
            return self._target is not None and part.version == self._target.key and self._needs_keyframe()
        known = self._loose.get(part.version)
        if known is not None and known.name == part.blob:
            return False
        is_ahead = self.chain is None or part.version > self.chain.version
        # An idle node keeps no more than what makes its parent show a new keyframe, which it can fetch as well.
        idle_at = self.chain if self._target is None else None
        model = self.max_model if idle_at is None else min(max(idle_at.keyframe.size, LEAST_KEPT), self.max_model)
        has_room = sum(cut.size for cut in self._loose.values()) + part.size <= DELTAS_PER_KEY * model
        return is_ahead and has_room and len(self._loose) < MAX_FRAMES

    def _keep(self, want: _Want, cut: Cut, body_digest: bytes) -> None:
        is_key, version = want
        if not is_key:
            self._loose[version] = cut
            return
        keyframe = unpack_keyframe(body_of(cut, is_sealed=self._signer is not None))
        if self._signer is not None:
            check_keyframe(self._signer, self._source, keyframe, cut, body_digest)
        if (keyframe.run, keyframe.version) != (self._run, version):
            raise Malformed(f"the keyframe of version {version} says it is of {keyframe.run} {keyframe.version}")
        self._keyframe = keyframe

    def _link(self) -> list[Action]:
        """Put what is whole behind what is known, as far as was called for."""
        target = self._target
        if target is None:
            return []
        self._drop_past_parts(target)
        if self._keyframe is not None and self._keyframe.version == target.key and self._needs_keyframe():
            self.chain, self._keyframe = Chain(self._keyframe), None
        chain = self.chain
        if chain is None:
            return []
        while chain.version < target.version and chain.version + 1 in self._loose:
            chain.push(self._loose.pop(chain.version + 1))
        for version in [version for version in self._loose if version <= chain.version]:
            del self._loose[version]
        if chain.version < target.version:
            return []
        if self.has_arrived:
            self._ask_at_s = None
            self._asked.clear()
            return []
        # Another chain than the one known here: its aggregator began anew, or a slot holds what is of another run.
        self.chain, self._has_broken = None, True
        self._loose.clear()
        broken = note("chain_broken", version=target.version, reason="the parent's model is another one: fetched anew")
        return [broken]

    def _drop_past_parts(self, target: Manifest) -> None:
        """Give back the room of what came in part and is of no use any more."""
        for is_key, version in list(self._blobs):
            if version != target.key if is_key else self.chain is not None and version <= self.chain.version:
                self._parts.drop("key" if is_key else "down", self._blobs.pop((is_key, version)))

    def _needs_keyframe(self) -> bool:
        target, chain = self._target, self.chain
        assert target is not None
        if chain is None:
            return True
        reachable = range(chain.version + 1, target.version + 1)
        return chain.version < target.key and not all(version in self._loose for version in reachable)

    def _missing(self) -> Iterator[_Want]:
        target = self._target
        assert target is not None
        first = target.key
        if self._needs_keyframe():
            if self._keyframe is None or self._keyframe.version != target.key:
                yield (True, target.key)
        elif self.chain is not None:
            first = max(first, self.chain.version)
        yield from ((False, version) for version in range(first + 1, target.version + 1) if version not in self._loose)

    def _slots(self) -> Iterator[_Slot]:
        for is_key, version in self._missing():
            blob = self._blobs.get((is_key, version))
            parts = self._parts.missing("key" if is_key else "down", blob) if blob is not None else ()
            yield from ((is_key, version, index) for index in parts or (0,))

    def _look_again(self, now: float) -> None:
        """Look again where a slot held what is no use: an earlier run's, for a call may overtake its model on a bridge.

        Soon, but ever more seldom, for fetched at once it would be the same; the parent is asked if that does not help.
        """
        if self._ask_at_s is None:
            return
        if self._stale_s < FETCH_S:
            self._asks = 0
        self._ask_at_s, self._wait_s = now + self._stale_s, FETCH_S
        self._stale_s = min(2 * self._stale_s, MAX_FETCH_S)

    def _ask(self, now: float) -> list[Action]:
        self._asks += 1
        self._ask_at_s = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, MAX_FETCH_S)
        self._asked.clear()
        again: list[Action] = []
        if self._asks > 1:  # the broker has lost them
            lost: dict[_Want, tuple[int, ...]] = {}
            for is_key, version, index in islice(self._slots(), None if self._has_broken else WINDOW):
                lost[is_key, version] = (*lost.get((is_key, version), ()), index)
            for (is_key, version), parts in lost.items():
                again.append(Send(message=WantModel(version=version, parts=parts, is_key=is_key)))
        return self._top_up() + again

    def _top_up(self) -> list[Action]:
        if not self._asks or len(self._asked) > WINDOW // 2:
            return []
        due = [found for found in islice(self._slots(), 2 * WINDOW) if found not in self._asked]
        due = due[: WINDOW - len(self._asked)]
        self._asked.update(due)
        target = self._target
        assert target is not None
        keys = tuple(str(index) for is_key, _, index in due if is_key)
        deltas = tuple(slot(version - target.key - 1, index) for is_key, version, index in due if not is_key)
        fetches: list[Action] = [Fetch(slots=keys, is_key=True)] if keys else []
        return [*fetches, Fetch(slots=deltas)] if deltas else fetches
