"""A cloud that is killed after any list of actions, whether or not it was committed, ends where it would have ended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.protocol.messages import (
    Kind,
    Late,
    Message,
    Phase,
    Receipt,
    RoundCall,
    Tier,
    UpdatePart,
    round_text,
)
from hfl_mqtt.rounds.actions import Action, Connected, Event, Lost, Note, Persist, Received, RunOver, Save, Send
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from tests.unit.rounds.trees import MATH, PLAN, READY, info, quick, update_parts, weights

CHILDREN = tuple(f"cloud/{name}" for name in "abc")
MODEL = weights(*(place / 64 for place in range(64)))


def delta_of(child: str, call: RoundCall) -> Weights:
    """A delta that follows from who works, and for what; such as float32 does not hold exactly."""
    dice = Random(f"{child} {call.round} {call.model.digest}")
    return weights(*(dice.uniform(-3, 3) / 7 for _ in MODEL["w"]))


@dataclass
class Child:
    """It works at once for every call that it hears, and keeps each update until it has a receipt."""

    path: str
    heard: set[tuple[tuple[int, ...], str]] = field(default_factory=set)
    kept: list[list[UpdatePart]] = field(default_factory=list)
    past: list[list[UpdatePart]] = field(default_factory=list)

    def hear(self, message: Message) -> None:
        if isinstance(message, RoundCall):
            key = (message.round, message.model.digest)
            if message.phase is Phase.OPEN and key not in self.heard:
                self.heard.add(key)
                delta = b"" if message.plan.kind is Kind.EVALUATE else delta_of(self.path, message)
                weight = 0 if message.plan.kind is Kind.EVALUATE else len(self.path) + message.round[0]
                self.kept.append(update_parts(message, delta, weight, part_size=200))
        elif isinstance(message, Receipt):
            done = [parts for parts in self.kept if (parts[0].round, parts[0].base) == (message.round, message.base)]
            self.kept = [parts for parts in self.kept if parts not in done]
            self.past += done


@dataclass
class World:
    """A cloud whose process may die at every list of actions, and its children; what is said may come late or twice."""

    tier: Tier
    dice: Random
    #: How often a list is the last of its life.
    deaths: float
    rounds: int = 4
    now: float = 0.0
    vault: dict[str, bytes] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    receipts: set[tuple[str, str, str]] = field(default_factory=set)
    end: RunOver | None = None
    saved: Save | None = None
    lives: int = 0

    def __post_init__(self) -> None:
        self.children = {path: Child(path) for path in CHILDREN}
        self.said: list[tuple[str, Message]] = []
        self.retained: RoundCall | None = None
        self.live()

    def live(self) -> None:
        """Start the cloud, again and again where it dies at once."""
        while True:
            self.lives += 1
            schedule = Schedule(
                run="r", rounds=self.rounds, plan=PLAN, tier=self.tier, wait_for=len(CHILDREN), wait_at_most_s=1e6
            )
            self.cloud = CloudNode(
                path="cloud",
                boot=self.lives,
                info=info("cloud", self.lives),
                arithmetic=MATH,
                schedule=schedule,
                weights=MODEL,
                start=of_weights(MODEL),
                saved=dict(self.vault),
            )
            events: list[Event] = [Connected(session_present=self.dice.random() < 0.5)]
            hellos = [Received(message=READY, sender=path) for path in self.dice.sample(CHILDREN, len(CHILDREN))]
            if self.perform(self.cloud.start(self.now)) and all(
                self.perform(self.cloud.handle(event, self.now)) for event in [*events, *hellos]
            ):
                return

    def feed(self, event: Received | Lost | Connected) -> None:
        if not self.perform(self.cloud.handle(event, self.now)):
            self.live()

    def perform(self, actions: Sequence[Action]) -> bool:
        """Carry out a list as a process does that may be killed meanwhile; returns whether it lives."""
        fate = self.dice.choice(("uncommitted", "unsaid", "said")) if self.dice.random() < self.deaths else "lives"
        if fate == "uncommitted":
            return False
        for action in actions:
            if isinstance(action, Persist):
                self._commit(action)
        if fate == "unsaid":
            return False
        for action in actions:
            if isinstance(action, Note):
                self.notes.append(action)
            elif isinstance(action, Save):
                self.saved = action
            elif isinstance(action, RunOver):
                self.end = action
            elif isinstance(action, Send):
                self._say(action)
        return fate == "lives"

    def _commit(self, persist: Persist) -> None:
        for key, value in persist.changes.items():
            if value is None:
                self.vault.pop(key, None)
            else:
                self.vault[key] = bytes(value)
        self.sizes.append(sum(len(key) + len(value) for key, value in self.vault.items()))

    def _say(self, send: Send) -> None:
        message = send.message
        if isinstance(message, RoundCall):
            self.retained = message
        elif isinstance(message, Receipt) and send.to is not None:
            if message.accepted:
                self.receipts.add((send.to, round_text(message.round), message.base))
            if self.dice.random() < 0.8:  # and else it is lost
                self.said.append((send.to, message))

    def run(self) -> None:
        for _ in range(3000):
            if self.end is not None:
                return
            self.step()
        raise AssertionError(f"the run hangs: {self.notes[-5:]}")

    def step(self) -> None:
        self.now += 0.01
        child = self.children[self.dice.choice(CHILDREN)]
        if self.retained is not None and self.dice.random() < 0.6:
            child.hear(self.retained)
        if self.said and self.dice.random() < 0.9:
            to, message = self.said.pop(self.dice.randrange(len(self.said)))
            self.children[to].hear(message)
        line = child.past if child.past and self.dice.random() < 0.3 else child.kept
        if line:
            parts = self.dice.choice(line)
            for part in self.dice.choices(parts, k=len(parts) + 1) if self.dice.random() < 0.3 else parts:
                self.feed(Received(message=part, sender=child.path))
        if self.dice.random() < 0.05:
            self.now += self.dice.choice((1.0, 7.0))
        if self.dice.random() < 0.02:
            self.feed(Lost())
            self.now += self.dice.choice((1.0, 100.0))
            self.feed(Connected(session_present=self.dice.random() < 0.5))
        due_s = self.cloud.next_deadline
        if due_s is not None and due_s <= self.now and not self.perform(self.cloud.tick(self.now)):
            self.live()

    # ---------------------------------------------------------------- what the journal says

    def closed(self) -> dict[str, dict[str, str]]:
        """Return what entered each round, by the notes of its close, or where a crash hid that, of the next life."""
        found: dict[str, dict[str, str]] = {}
        for entry in self.notes:
            fields = entry.fields
            if entry.event == "closed":
                assert found.setdefault(fields["round"], fields["updates"]) == fields["updates"]
            elif entry.event == "restored" and "closed" in fields:
                assert found.setdefault(fields["closed_round"], fields["closed"]) == fields["closed"]
        return found


def same_every_time(tier: Tier, deaths: float, seed: int) -> World:
    world = World(tier=tier, dice=Random(seed), deaths=deaths)
    world.run()
    assert world.end == RunOver(run="r")
    return world


STRICT = quick(quorum=1.0, open_for_s=20.0, retries=1000)
LATE = quick(quorum=2, open_for_s=20.0, grace_s=0.0, retries=1000, late=Late.NEXT)
ASYNC = quick(quorum=2, open_for_s=20.0, grace_s=0.0, retries=1000, late=Late.DISCOUNT, staleness_exponent=0.5)
COARSE = quick(quorum=1.0, open_for_s=20.0, retries=1000, downlink="int8 | zstd")


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[bytes, str]]:
    """The model, bit by bit, of runs in which nobody dies."""
    found = {}
    for name, tier in (("strict", STRICT), ("coarse", COARSE)):
        world = same_every_time(tier, 0.0, 1)
        assert world.saved is not None
        found[name] = (world.saved.weights["w"].tobytes(), world.saved.digest)
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), deaths=st.sampled_from((0.02, 0.1, 0.3)), tier=st.sampled_from(("strict", "coarse")))
def test_a_run_whose_cloud_dies_at_any_moment_gives_the_model_of_one_that_never_did_to_the_last_bit(
    seed: int, deaths: float, tier: str, undisturbed: dict[str, tuple[bytes, str]]
) -> None:
    world = same_every_time(STRICT if tier == "strict" else COARSE, deaths, seed)
    assert world.saved is not None
    assert (world.saved.weights["w"].tobytes(), world.saved.digest) == undisturbed[tier]
    assert world.cloud.version == 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    deaths=st.sampled_from((0.0, 0.05, 0.2)),
    tier=st.sampled_from((STRICT, LATE, ASYNC)),
)
def test_what_has_a_receipt_is_in_exactly_one_round_however_often_the_cloud_dies(
    seed: int, deaths: float, tier: Tier
) -> None:
    world = same_every_time(tier, deaths, seed)
    counted = Counter((sender, blob) for updates in world.closed().values() for sender, blob in updates.items())
    assert set(counted.values()) == {1}
    assert len(world.closed()) == 4
    blobs = {
        (child.path, round_text(parts[0].round), parts[0].base): parts[0].blob[:16]
        for child in world.children.values()
        for parts in (*child.kept, *child.past)
    }
    for sender, round_id, base in world.receipts:
        assert (sender, blobs[sender, round_id, base]) in counted


def test_what_is_put_down_does_not_grow_with_the_rounds() -> None:
    short, long = (World(tier=STRICT, dice=Random(5), deaths=0.02, rounds=rounds) for rounds in (10, 100))
    for world in (short, long):
        world.run()
    assert max(long.sizes) < 1.1 * max(short.sizes)
    assert len(long.vault) <= len(short.vault) + 2  # a keyframe comes after a few deltas: there may be more of these


def test_the_steps_of_the_model_are_the_same_to_the_last_bit_in_the_next_life() -> None:
    world = World(tier=COARSE, dice=Random(7), deaths=0.0, rounds=3)
    world.run()
    again = World(tier=COARSE, dice=Random(8), deaths=0.0, rounds=3)
    while again.cloud.version < 2:
        again.step()
    before = again.cloud
    again.live()
    assert again.cloud is not before
    assert again.cloud.weights["w"].tobytes() == before.weights["w"].tobytes()
    lag, lag_before = again.cloud.aggregator.downlink.lag, before.aggregator.downlink.lag
    assert lag["w"].tobytes() == lag_before["w"].tobytes()
    assert np.any(lag["w"])
