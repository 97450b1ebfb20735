"""A whole federation in one thread under a virtual clock: the real nodes over memory links, equal for equal seeds.

Training is a function, so a round costs microseconds; everything else is the code that runs on the farm. Nodes can be
killed and started again at any moment, brokers and bridges can be faulty.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hfl_mqtt.protocol.messages import Buffer, Info
from hfl_mqtt.protocol.topics import bridge_control, bridge_data, parent
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.roles.shell import MetricValues, Shell, filters
from hfl_mqtt.rounds.actions import (
    Contribution,
    Counted,
    Event,
    KeepResidual,
    Note,
    RunOver,
    Save,
    Work,
    Worked,
    WorkFailed,
)
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.faults import Faults, Wire
from hfl_mqtt.transport.link import LinkEvent
from hfl_mqtt.transport.memory import Bridge, MemoryBroker, MemoryLink, bridge

FEDERATION = "sim"
#: What a client's work is: its path and the call, to a contribution; raising ValueError is a failure with that reason.
Train = Callable[[str, Work], Contribution]


@dataclass(slots=True)
class Place:
    """One node of the simulation: what runs there now, if anything, and what was noted there so far."""

    path: str
    boot: int = 0
    shell: Shell | None = None
    link: MemoryLink | None = None
    notes: list[tuple[float, Note]] = field(default_factory=list)


class Simulation:
    """A tree of nodes, run until its cloud's run is over.

    Args:
        children: the children's names by aggregator path, e.g. `{"cloud": ["a"], "cloud/a": ["1", "2"]}`.
        schedule: the cloud's.
        weights: the initial model.
        start: how devices come by it.
        arithmetic: the numbers.
        train: the clients' work.
        work_s: how long a client's work takes, in virtual seconds, by path.
        seed: of the network's dice.
        faults: of every link and every bridge.
    """

    def __init__(
        self,
        children: Mapping[str, Sequence[str]],
        *,
        schedule: Schedule,
        weights: Any,
        start: Buffer,
        arithmetic: Arithmetic,
        train: Train,
        work_s: Callable[[str], float] = lambda _path: 1.0,
        seed: int = 0,
        faults: Faults | None = None,
    ) -> None:
        self.now_s = 0.0
        self.ends: dict[str, RunOver] = {}
        self.saved: list[Save] = []
        self.counted_work: list[tuple[str, str]] = []
        self.residuals: dict[str, tuple[str, Any]] = {}
        self._schedule, self._weights, self._start = schedule, weights, start
        self._arithmetic, self._train, self._work_s = arithmetic, train, work_s
        self._wire = Wire(seed)
        self._order = count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[tuple[str, int, str]] = set()
        self._aggregators = list(children)
        self.brokers = {path: MemoryBroker(path, faults=faults, wire=self._wire) for path in children}
        self.bridges: dict[str, Bridge] = {}
        for path in children:
            above = parent(path)
            if above is not None:
                rules = [*bridge_control(FEDERATION, path), *bridge_data(FEDERATION, path)]
                self.bridges[path] = bridge(self.brokers[path], self.brokers[above], rules, name=path, faults=faults)
        paths = {*children, *(f"{path}/{name}" for path, names in children.items() for name in names)}
        self.places = {path: Place(path) for path in sorted(paths)}

    # -------------------------------------------------------------- running

    def start(self, *but: str) -> None:
        """Start all nodes that are not running, save those named."""
        for path in self.places:
            if path not in but:
                self.start_node(path)

    def run(self, until_s: float = 1e6) -> RunOver | None:
        """Run until the cloud's run is over, or until a virtual time; returns how it ended."""
        cloud = next(path for path in self.places if parent(path) is None)
        while cloud not in self.ends:
            moments = [moment for moment in (self._wire.next_due, self._next_on_agenda()) if moment is not None]
            if not moments or min(moments) > until_s:
                return None
            self.now_s = max(self.now_s, min(moments))
            self._wire.deliver_due(self.now_s)
            while self._agenda and self._agenda[0][0] <= self.now_s:
                heapq.heappop(self._agenda)[2]()
        return self.ends[cloud]

    def at(self, moment_s: float, do: Callable[[], None]) -> None:
        """Do something at a virtual time, e.g. `sim.at(5, lambda: sim.kill("cloud/a/1"))`."""
        heapq.heappush(self._agenda, (moment_s, next(self._order), do))

    def start_node(self, path: str) -> None:
        """Start a node, or start it again with a higher boot counter; what it had in memory is gone."""
        place = self.places[path]
        if place.shell is not None:
            return
        place.boot += 1
        node = self._node(path, place.boot)
        place.link = MemoryLink(
            self.brokers[path if path in self.brokers else parent(path) or path],
            path,
            filters(node, FEDERATION),
            lambda event: self._feed(place, node, event),
            will=encode(node.will, FEDERATION, path),
        )
        place.shell = Shell(node, FEDERATION, place.link, self)
        place.shell.start(self.now_s)
        self._rest(place, node)

    def kill(self, path: str) -> None:
        """Kill a node as SIGKILL does: its link is cut, its memory is gone, its will is said."""
        place = self.places[path]
        if place.shell is not None and place.link is not None:
            place.link.crash()
            place.shell = place.link = None

    def notes(self, event: str) -> list[tuple[str, Note]]:
        """Return all notes of one kind, with the node."""
        return [
            (path, entry) for path, place in self.places.items() for _, entry in place.notes if entry.event == event
        ]

    # -------------------------------------------------------------- the world of the nodes (see `shell.World`)

    def work(self, node: Node, work: Work) -> None:
        """Train, and bring the result after the time it takes."""
        place = self.places[node.path]
        key = (node.path, place.boot, work.work_id)
        self._cancelled.discard(key)
        try:
            event: Event = Worked(work_id=work.work_id, result=self._train(node.path, work))
        except ValueError as error:
            event = WorkFailed(work_id=work.work_id, reason=str(error))

        def bring() -> None:
            if key not in self._cancelled:
                self._feed(place, node, event)

        self.at(self.now_s + self._work_s(node.path), bring)

    def cancel(self, node: Node, work_id: str) -> None:
        """Do not bring that result."""
        self._cancelled.add((node.path, self.places[node.path].boot, work_id))

    def counted(self, node: Node, counted: Counted) -> None:
        """Note whose update counted."""
        self.counted_work.append((node.path, counted.work_id))

    def keep(self, node: Node, keep: KeepResidual) -> None:
        """Keep the residual, for the node's next life."""
        self.residuals[node.path] = (keep.run, keep.residual)

    def save(self, node: Node, save: Save) -> None:  # noqa: ARG002  (part of the contract)
        """Keep the model."""
        self.saved.append(save)

    def record(self, node: Node, entry: Note) -> None:
        """Keep the note."""
        self.places[node.path].notes.append((self.now_s, entry))

    def vitals(self, node: Node) -> MetricValues:  # noqa: ARG002  (part of the contract)
        """There is no hardware here."""
        return {}

    def over(self, node: Node, end: RunOver) -> None:
        """Note the end of the run."""
        self.ends[node.path] = end

    # -------------------------------------------------------------- inside

    def _node(self, path: str, boot: int) -> Node:
        info = Info(role="sim", boot=boot, parent=parent(path))
        if parent(path) is None:
            return CloudNode(
                path=path,
                boot=boot,
                info=info,
                arithmetic=self._arithmetic,
                schedule=self._schedule,
                weights=self._weights,
                start=self._start,
            )
        if path in self.brokers:
            residual = self.residuals.get(path)
            return EdgeNode(path=path, boot=boot, info=info, arithmetic=self._arithmetic, residual=residual)
        return ClientNode(path=path, boot=boot, info=info)

    def _feed(self, place: Place, node: Node, event: LinkEvent | Event) -> None:
        if place.shell is None or place.shell.node is not node:
            return  # of a node that is dead by now
        self.now_s = max(self.now_s, self._wire.now_s)
        place.shell.feed(event, self.now_s)
        self._rest(place, node)

    def _rest(self, place: Place, node: Node) -> None:
        """Put the node's next deadline on the agenda."""
        deadline_s = node.next_deadline
        if deadline_s is not None:
            self.at(max(deadline_s, self.now_s), lambda: self._tick(place, node, deadline_s))

    def _tick(self, place: Place, node: Node, deadline_s: float) -> None:
        if place.shell is None or place.shell.node is not node or node.next_deadline != deadline_s:
            return  # dead, or something newer is on the agenda
        place.shell.tick(self.now_s)
        self._rest(place, node)

    def _next_on_agenda(self) -> float | None:
        return self._agenda[0][0] if self._agenda else None
