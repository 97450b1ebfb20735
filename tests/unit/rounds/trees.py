"""What the tests of the rounds share: tiny models, hand-made updates, and trees of nodes on an ideal network."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.protocol import wire
from hfl_mqtt.protocol.blobs import Cut
from hfl_mqtt.protocol.messages import (
    Info,
    Kind,
    Manifest,
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
from hfl_mqtt.protocol.topics import Channel, is_child, parent
from hfl_mqtt.rounds.actions import (
    Action,
    ClearSlots,
    Connected,
    Contribution,
    Note,
    Received,
    Send,
    Work,
    Worked,
    WorkFailed,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.node import Node

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


def manifest(model: Weights, *, run: str = "r", version: int = 0, part_size: int = 256 * 1024) -> tuple[Manifest, Cut]:
    """Return a model as its aggregator puts it into the slots."""
    cut = Cut.of(MATH.encode_model(model), part_size)
    made = Manifest(
        run=run,
        version=version,
        digest=MATH.digest(model),
        blob=cut.digest,
        size=len(cut.blob),
        parts=cut.count,
        codec=MATH.model_codec,
    )
    return made, cut


def model_part(cut: Cut, index: int = 0) -> ModelPart:
    return ModelPart(blob=cut.digest, index=index, count=cut.count, size=len(cut.blob), data=cut.part(index))


def update_parts(
    call: RoundCall,
    child: str,
    delta: Weights | bytes,
    weight: int,
    *,
    tallies: dict[str, Tally] | None = None,
    part_size: int = 256 * 1024,
    **other: Any,
) -> list[UpdatePart]:
    """Return an update as a child sends it; `other` are fields of the update inside that shall differ."""
    if isinstance(delta, bytes):
        payload = delta
    elif call.plan.kind is Kind.EVALUATE:
        payload = b""
    else:
        zero = {name: np.zeros_like(array) for name, array in delta.items()}
        payload = MATH.encode_delta(delta, zero, call.codec, 0)
    fields = {"run": call.run, "round": call.round, "sender": child, "base": call.model.digest, "weight": weight}
    update = Update(**{**fields, "payload": payload, "tallies": tallies or {}, **other})
    cut = Cut.of(wire.pack_update(update), part_size)
    return [
        UpdatePart(
            run=call.run,
            round=call.round,
            base=call.model.digest,
            blob=cut.digest,
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
        model = MATH.decode_model(work.model)
        assert MATH.digest(model) == work.digest
        error = float(np.abs(model["w"] - goal).max())
        tallies = {"error": Tally(total=error * samples, count=samples)}
        if work.plan.kind is Kind.EVALUATE:
            return Contribution(payload=b"", weight=0, tallies=tallies)
        moved = {"w": (model["w"] + share * (goal - model["w"])).astype(np.float32)}
        tallies["loss"] = Tally(total=error * samples, count=samples)
        return Contribution(payload=MATH.encode_delta(moved, model, work.codec, 0), weight=samples, tallies=tallies)

    return train


class Tree:
    """Nodes on a network that loses nothing, with retained messages and a clock of its own. All bytes go over the wire.

    `is_cut` names nodes that hear and say nothing for now.
    """

    def __init__(self, nodes: Iterable[Node], train: Train) -> None:
        self.nodes = {node.path: node for node in nodes}
        self.train = train
        self.now = 0.0
        self.done: list[tuple[str, Action]] = []
        self.is_cut: set[str] = set()
        self._retained: dict[str, wire.Frame] = {}
        self._events: deque[tuple[str, Worked | WorkFailed | Received]] = deque()

    def start(self, *paths: str) -> None:
        for path in paths or tuple(self.nodes):
            self.carry_out(path, self.nodes[path].start(self.now))
            self.connect(path)

    def connect(self, path: str) -> None:
        self.is_cut.discard(path)
        self.carry_out(path, self.nodes[path].handle(Connected(session_present=False), self.now))
        for frame in list(self._retained.values()):
            self._deliver(frame, only=path)

    def replace(self, node: Node) -> None:
        """Kill a node without a word and start it again."""
        self._events = deque(event for event in self._events if event[0] != node.path)
        self.nodes[node.path] = node
        self.start(node.path)

    def leave(self, path: str) -> None:
        """Cut a node off; its broker says its will."""
        will = wire.encode(self.nodes[path].will, "f", path)
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
                for slot in range(action.first, action.end):
                    del self._retained[f"hflb/f/{path}/@/down/{slot}"]
            elif isinstance(action, Send) and path not in self.is_cut:
                frame = wire.encode(action.message, "f", action.to or path)
                if frame.retain:
                    self._retained[frame.topic] = frame
                self._deliver(frame)

    def _deliver(self, frame: wire.Frame, only: str | None = None) -> None:
        message, topic = wire.decode(frame)
        for path, node in self.nodes.items():
            if only in (None, path) and _hears(node, message, topic.path, topic.channel):
                sender = topic.path if topic.channel is not Channel.CMND else parent(topic.path)
                assert sender is not None
                self._events.append((path, Received(message=message, sender=sender)))

    def actions(self, path: str) -> list[Action]:
        return [action for who, action in self.done if who == path]


def _hears(node: Node, message: Message, path: str, channel: Channel) -> bool:
    if channel is Channel.CMND:
        return path == node.path
    if channel is Channel.DOWN or isinstance(message, RoundCall):
        return is_child(node.path, path)
    is_heard = channel in (Channel.UP, Channel.TELE) or isinstance(message, State)
    return is_heard and is_child(path, node.path) and not isinstance(node, ClientNode)


def quick(**fields: Any) -> Tier:
    """Return a tier that waits 10 s, with 2 s of grace and no retry, for half of those asked."""
    return Tier(**{"open_for_s": 10.0, "grace_s": 2.0, "retries": 0, "quorum": 0.5, "codec": CODEC, **fields})
