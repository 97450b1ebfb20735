"""What the tests of the rounds share: tiny models, hand-made updates, and trees of nodes on an ideal network."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.learning.weights import difference
from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.blobs import Cut, in_memory
from hfl_mqtt.protocol.messages import (
    Info,
    Keyframe,
    KeyPart,
    Kind,
    Message,
    ModelPart,
    Plan,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    Update,
    UpdatePart,
)
from hfl_mqtt.protocol.topics import Channel, Topic, is_child, parent
from hfl_mqtt.rounds.actions import (
    Action,
    ClearSlots,
    Connected,
    Contribution,
    Fetch,
    Note,
    Received,
    Send,
    Work,
    Worked,
    WorkFailed,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.rounds.offer import Offer
from hfl_mqtt.rounds.signing import Signer, update_seal

MATH = TensorArithmetic()
CODEC = "raw | zstd"
PLAN = Plan(task="t")
READY = State(state=StateName.READY, boot=1)
LOST = State(state=StateName.LOST, boot=1)
T = TypeVar("T")


def weights(*values: float) -> Weights:
    return {"w": np.array(values, np.float32)}


def values(model: Weights) -> list[float]:
    return [float(value) for value in model["w"]]


def info(role: str = "client", boot: int = 1) -> Info:
    return Info(role=role, boot=boot)


def keyframe(model: Weights, *, run: str = "r") -> Keyframe:
    """Return the keyframe that a run begins with."""
    start = of_weights(model)
    size = MATH.model_size(MATH.layout(start))
    return Keyframe(run=run, version=0, digest=MATH.start_digest(start), size=size, start=start)


def offered(model: Weights, *steps: Weights, run: str = "r", codec: str = CODEC, signer: Signer | None = None) -> Offer:
    """Return a model as its aggregator offers it: where it began, and what came since."""
    offer = Offer(keyframe(model, run=run), signer=signer)
    for seed, step in enumerate(steps):
        offer.push(MATH.encode(step, codec, seed))
    return offer


def key_parts(offer: Offer, part_size: int | None = None) -> list[KeyPart]:
    """Return the parts of the keyframe as they lie in their slots; cut smaller where a test wants many."""
    parts = said(offer.show(), KeyPart)
    if part_size is None:
        return parts
    cut = Cut.of(b"".join(bytes(part.data) for part in parts), part_size)
    return [replace(parts[0], index=at, count=cut.count, data=cut.part(at)) for at in range(cut.count)]


def delta_parts(offer: Offer, version: int, part_size: int | None = None) -> list[ModelPart]:
    """Return the parts of the delta that leads to a version, as they lie in their slots."""
    parts = [part for part in said(offer.show(), ModelPart) if part.version == version]
    if part_size is None:
        return parts
    cut = Cut.of(b"".join(bytes(part.data) for part in parts), part_size)
    return [replace(parts[0], index=at, count=cut.count, data=cut.part(at)) for at in range(cut.count)]


def update_parts(
    call: RoundCall,
    delta: Weights | bytes,
    weight: int,
    *,
    tallies: dict[str, Tally] | None = None,
    part_size: int = 256 * 1024,
    signer: Signer | None = None,
    **other: Any,
) -> list[UpdatePart]:
    """Return an update as a child sends it, sealed where it has a signer; `other` are further fields of it."""
    if isinstance(delta, bytes):
        payload = delta
    elif call.plan.kind is Kind.EVALUATE:
        payload = b""
    else:
        payload = MATH.encode(delta, call.codec, 0)
    update = Update(weight=weight, payload=payload, tallies=tallies or {}, **other)
    seal = update_seal(signer, call.run, call.round, call.model.base)
    cut = Cut.kept([wire.pack_update(update)], in_memory, part_size, seal=seal)
    return [
        UpdatePart(
            run=call.run,
            round=call.round,
            base=call.model.base,
            blob=cut.name,
            index=index,
            count=cut.count,
            size=len(cut.blob),
            data=cut.part(index),
        )
        for index in range(cut.count)
    ]


def said(actions: Iterable[Action], kind: type[T]) -> list[T]:
    """Return what was sent of one kind."""
    return [action.message for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]


def of(actions: Iterable[Action], kind: type[T]) -> list[T]:
    """Return the actions of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def notes(actions: Iterable[Action]) -> list[str]:
    return [action.event for action in actions if isinstance(action, Note)]


def noted(actions: Iterable[Action], event: str) -> dict[str, Any]:
    """Return the fields of the only note of that name."""
    (found,) = [action for action in actions if isinstance(action, Note) and action.event == event]
    return found.fields


#: A contribution, the reason why there is none, or None for work that never ends.
Train = Callable[[str, Work], Contribution | str | None]


def towards(goals: dict[str, tuple[float, int]], share: float = 1.0) -> Train:
    """Return a training that moves every weight by `share` of the way to the client's goal, for (goal, samples)."""

    def train(path: str, work: Work) -> Contribution | str | None:
        goal, samples = goals[path]
        model = MATH.weights(work.model)
        error = float(np.abs(model["w"] - goal).max())
        tallies = {"error": Tally(total=error * samples, count=samples)}
        if work.plan.kind is Kind.EVALUATE:
            return Contribution(payload=b"", weight=0, tallies=tallies)
        moved = {"w": (model["w"] + share * (goal - model["w"])).astype(np.float32)}
        tallies["loss"] = Tally(total=error * samples, count=samples)
        payload = MATH.encode(difference(moved, model), work.codec, 0)
        return Contribution(payload=payload, weight=samples, tallies=tallies)

    return train


class Tree:
    """Nodes on a network that loses nothing, with retained messages and a clock of its own. All bytes go over the wire.

    `is_cut` names nodes that hear and say nothing for now. Deltas are heard as they are said; keyframes, and deltas
    that were missed, come when they are fetched, or as soon as somebody says them.
    """

    def __init__(self, nodes: Iterable[Node], train: Train) -> None:
        self.nodes = {node.path: node for node in nodes}
        self.train = train
        self.now = 0.0
        self.done: list[tuple[str, Action]] = []
        self.is_cut: set[str] = set()
        self._retained: dict[str, wire.Frame] = {}
        self._fetches: set[tuple[str, str]] = set()
        self._events: deque[tuple[str, Worked | WorkFailed | Received]] = deque()

    def start(self, *paths: str) -> None:
        for path in paths or tuple(self.nodes):
            self.carry_out(path, self.nodes[path].start(self.now))
            self.connect(path)

    def connect(self, path: str) -> None:
        self.is_cut.discard(path)
        self._fetches = {(who, topic) for who, topic in self._fetches if who != path}
        self.carry_out(path, self.nodes[path].handle(Connected(session_present=False), self.now))
        for frame in list(self._retained.values()):
            if not Topic.parse(frame.topic).channel.is_binary:
                self._deliver(frame, only=path)

    def forget(self, channel: Channel) -> None:
        """Let the broker lose what it retained in one channel."""
        self._retained = {
            topic: frame for topic, frame in self._retained.items() if Topic.parse(topic).channel is not channel
        }

    def replace(self, node: Node) -> None:
        """Kill a node without a word and start it again."""
        self._events = deque(event for event in self._events if event[0] != node.path)
        self.nodes[node.path] = node
        self.start(node.path)

    def leave(self, path: str) -> None:
        """Cut a node off; its broker says its will."""
        said = self.nodes[path].will
        assert said is not None
        will = wire.encode(said, "f", path)
        self.is_cut.add(path)
        self._retained[will.topic] = will
        self._deliver(will)

    def run(self, until_s: float) -> None:
        """Let everything happen up to a moment."""
        for _ in range(100_000):
            while self._events:
                path, event = self._events.popleft()
                if path not in self.is_cut:
                    self.carry_out(path, self.nodes[path].handle(event, self.now))
            due = [(at, path) for path, node in self.nodes.items() if (at := node.next_deadline) is not None]
            at, path = min(due, default=(until_s, ""))
            if at >= until_s:
                self.now = until_s
                return
            self.now = max(self.now, at)
            self.carry_out(path, self.nodes[path].tick(self.now))
        raise AssertionError(f"endless ticks at {self.now} s")

    def carry_out(self, path: str, actions: list[Action]) -> None:
        for action in actions:
            self.done.append((path, action))
            if isinstance(action, Work):
                result = self.train(path, action)
                if isinstance(result, str):
                    self._events.append((path, WorkFailed(work_id=action.work_id, reason=result)))
                elif result is not None:
                    self._events.append((path, Worked(work_id=action.work_id, result=result)))
            elif isinstance(action, ClearSlots):
                for topic in _slots(path, action):
                    self._retained.pop(topic, None)
            elif isinstance(action, Fetch) and path not in self.is_cut:
                self._fetch(path, action)
            elif isinstance(action, Send) and path not in self.is_cut:
                frame = wire.encode(action.message, "f", action.to or path).whole()
                if frame.retain:
                    self._retained[frame.topic] = frame
                self._deliver(frame)

    def _fetch(self, path: str, action: Fetch) -> None:
        for topic in _slots(parent(path) or "", action):
            frame = self._retained.get(topic)
            if frame is None:
                self._fetches.add((path, topic))
            else:
                message, found = wire.decode(frame)
                self._events.append((path, Received(message=message, sender=found.path)))

    def _deliver(self, frame: wire.Frame, only: str | None = None) -> None:
        message, topic = wire.decode(frame)
        for path, node in self.nodes.items():
            is_fetched = (path, frame.topic) in self._fetches
            self._fetches.discard((path, frame.topic))
            if only in (None, path) and (is_fetched or _hears(node, message, topic.path, topic.channel)):
                sender = topic.path if topic.channel is not Channel.CMND else parent(topic.path)
                assert sender is not None
                self._events.append((path, Received(message=message, sender=sender)))

    def actions(self, path: str) -> list[Action]:
        return [action for who, action in self.done if who == path]


def _slots(path: str, action: ClearSlots | Fetch) -> list[str]:
    channel = Channel.KEY if action.is_key else Channel.DOWN
    return [str(Topic("f", path, channel, slot)) for slot in action.slots]


def _hears(node: Node, message: Message, path: str, channel: Channel) -> bool:
    if channel is Channel.CMND:
        return path == node.path
    if channel is Channel.DOWN or isinstance(message, RoundCall):
        return is_child(node.path, path)
    if channel is Channel.KEY:
        return False
    is_heard = channel in (Channel.UP, Channel.TELE) or isinstance(message, State)
    return is_heard and is_child(path, node.path) and not isinstance(node, ClientNode)


def quick(**fields: Any) -> Tier:
    """Return a tier that waits 10 s, with 2 s of grace and no retry, for half of those asked."""
    return Tier(**{"open_for_s": 10.0, "grace_s": 2.0, "retries": 0, "quorum": 0.5, "codec": CODEC, **fields})
