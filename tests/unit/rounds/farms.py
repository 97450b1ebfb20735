"""Whole federations whose devices code their updates as real ones do: what coding cuts off waits for the next."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.learning.weights import difference
from hfl_mqtt.protocol.messages import Kind, Plan, Tally, Tier
from hfl_mqtt.protocol.topics import Filter
from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.rounds.actions import Contribution, Counted, Work
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.sim import Simulation
from hfl_mqtt.transport.faults import Faults
from hfl_mqtt.transport.link import Arrived, LinkEvent
from hfl_mqtt.transport.memory import MemoryLink
from tests.unit.rounds.trees import MATH

TREE: Mapping[str, Sequence[str]] = {"cloud": ["a", "b"], "cloud/a": ["1", "2"], "cloud/b": ["3", "4", "5"]}
#: Regions above the farms.
DEEP: Mapping[str, Sequence[str]] = {
    "cloud": ["north", "south"],
    "cloud/north": ["a", "b"],
    "cloud/south": ["c"],
    "cloud/north/a": ["1", "2"],
    "cloud/north/b": ["3"],
    "cloud/south/c": ["4", "5"],
}
LOSSY = Faults(loss=0.3, duplication=0.2, reordering=0.3, latency_s=(0.0, 0.5), held_s=(0.0, 5.0))
SIZE = 200
#: Deltas from which on a client makes one keyframe of them, as its worker does.
SHORTEN = 8


def tiers(tree: Mapping[str, Sequence[str]], rounds: int, **fields: Any) -> tuple[Tier, ...]:
    """Return the tiers below the cloud, each of which runs so many rounds."""
    depth = max(path.count("/") for path in tree)
    return tuple(
        Tier(rounds=rounds, **{"open_for_s": 60.0 * rounds ** (depth - tier), **fields}) for tier in range(1, depth + 1)
    )


class Farms(Simulation):
    """A federation that minimises the squared distance to the goals of its clients, each with one sample.

    Args:
        tree: see `Simulation`.
        rounds, edge_rounds: of the cloud, and of each aggregator below it.
        codec, downlink: of every hop.
        share: how far a client goes towards its goal in a round.
        has_feedback: whether what coding cuts off from a client's update is kept for the next.
        tier: more fields of every tier.
        options: of `Simulation`.
    """

    def __init__(
        self,
        tree: Mapping[str, Sequence[str]] = TREE,
        *,
        rounds: int = 4,
        edge_rounds: int = 1,
        codec: str = "raw",
        downlink: str = "raw",
        share: float = 0.5,
        size: int = SIZE,
        has_feedback: bool = True,
        tier: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._share, self._has_feedback = share, has_feedback
        #: What coding cut off so far, and from the update that has not counted yet; by client.
        self.left: dict[str, Weights] = {}
        self._pending: dict[str, tuple[str, Weights]] = {}
        #: All that clients were given: who, in which round, and the very bits.
        self.seen: list[tuple[str, tuple[int, ...], str, bytes]] = []
        self.codecs: set[str] = set()
        self.initial: Weights = {"w": np.zeros(size, np.float32), "steps": np.zeros((), np.int64)}
        fields = {"codec": codec, "downlink": downlink, "grace_s": 5.0, **(tier or {})}
        plan = Plan(task="t", tiers=tiers(tree, edge_rounds, **fields), seed=7)
        start = of_weights(self.initial)
        self._layout = MATH.layout(start)
        super().__init__(
            tree,
            schedule=Schedule(
                **{
                    "run": "r",
                    "rounds": rounds,
                    "plan": plan,
                    "tier": Tier(**{"open_for_s": 600.0, **fields}),
                    "seed": 7,
                    "wait_for": len(tree["cloud"]),
                    "wait_at_most_s": 900.0,
                    **(schedule or {}),
                }
            ),
            weights=self.initial,
            start=start,
            arithmetic=MATH,
            train=self._learn,
            **options,
        )

    def goal(self, path: str) -> Weights:
        """Return where a client wants the model to be."""
        rng = np.random.default_rng(sum(path.encode()))
        return {"w": rng.standard_normal(self.initial["w"].size).astype(np.float32)}

    @property
    def clients(self) -> list[str]:
        """All clients, by name."""
        return [path for path in self.places if path not in self.brokers]

    @property
    def cloud(self) -> CloudNode:
        """The root of the tree."""
        shell = self.places["cloud"].shell
        assert shell is not None
        assert isinstance(shell.node, CloudNode)
        return shell.node

    @property
    def error(self) -> float:
        """The largest distance of a weight from the mean of all goals."""
        best = np.mean([self.goal(path)["w"] for path in self.clients], axis=0)
        return float(np.abs(self.cloud.weights["w"] - best).max())

    def counted(self, node: Node, counted: Counted) -> None:
        """Keep what coding cut off from the update that has just counted."""
        super().counted(node, counted)
        pending = self._pending.get(node.path)
        if pending is not None and pending[0] == counted.work_id:
            self.left[node.path] = pending[1]

    def settle(self) -> None:
        """Let arrive what is still under way when the run is over."""
        broker = self.brokers["cloud"]
        while (due_s := broker.next_due) is not None:
            broker.deliver_due(due_s)

    def watch(self, path: str, *topics: str) -> list[Frame]:
        """Return a list that fills with what is said on these topics of an aggregator, at its broker."""
        heard: list[Frame] = []

        def hear(event: LinkEvent) -> None:
            if isinstance(event, Arrived):
                heard.append(event.frame)

        filters = [Filter(topic=f"{topic}", qos=0, wants_retained=False) for topic in topics]
        MemoryLink(self.brokers[path], "watcher", filters, hear).open()
        return heard

    def _learn(self, path: str, work: Work) -> Contribution:
        model = MATH.weights(work.model)
        distance = float(np.square(model["w"] - self.goal(path)["w"]).sum()) if path in self.clients else 0.0
        tallies = {"distance": Tally(total=distance, count=1)}
        if work.is_central:
            return Contribution(payload=b"", weight=0)
        self.seen.append((path, work.round, work.model.digest, model["w"].tobytes()))
        self.codecs.add(work.codec)
        if work.plan.kind is Kind.EVALUATE:
            return Contribution(payload=b"", weight=0, tallies=tallies)
        moved = {
            "w": model["w"] + np.float32(self._share) * (self.goal(path)["w"] - model["w"]),
            "steps": model["steps"] + 1,
        }
        delta = difference(moved, model)
        if self._has_feedback and path in self.left:
            delta = MATH.add(delta, self.left[path])
        payload = MATH.encode(delta, work.codec, work.seed)
        self._pending[path] = (work.work_id, MATH.subtract(delta, MATH.decode(payload, self._layout)))
        keyframe = MATH.shorten(work.model) if len(work.model.deltas) >= SHORTEN else None
        return Contribution(payload=payload, weight=1, tallies=tallies, keyframe=keyframe)


Deaths = list[tuple[str, float, float | None]]


def reap(farms: Farms, deaths: Deaths) -> None:
    """Kill nodes at some moments, and start some of them again a while later."""
    for path, at_s, back_after_s in deaths:
        farms.at(at_s, _later(farms.kill, path))
        if back_after_s is not None:
            farms.at(at_s + back_after_s, _later(farms.start_node, path))


def _later(do: Callable[[str], None], path: str) -> Callable[[], None]:
    return lambda: do(path)
