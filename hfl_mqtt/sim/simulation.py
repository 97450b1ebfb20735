"""The simulated federation: its places, what they have on disk, and all that can happen to them.

Training is a function, so a round costs microseconds; everything else is the code that runs on the farm. A node can be
killed at any moment, also just before or just after what it did becomes durable; disks, brokers, bridges, links and
work can fail, and be mended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from hfl_mqtt.protocol.messages import Buffer, Info
from hfl_mqtt.protocol.topics import bridge_control, bridge_data, bridge_state, parent
from hfl_mqtt.protocol.wire import Frame, encode
from hfl_mqtt.roles.shell import MetricValues, Shell, filters
from hfl_mqtt.rounds.actions import (
    Contribution,
    Counted,
    Event,
    Move,
    Note,
    Persist,
    RunOver,
    Save,
    Work,
    Worked,
    WorkFailed,
    note,
)
from hfl_mqtt.rounds.arithmetic import Arithmetic
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.lease import Leased
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.sim.papers import FEDERATION, Papers
from hfl_mqtt.transport.bridges import Bridge, bridge
from hfl_mqtt.transport.faults import Faults, Wire
from hfl_mqtt.transport.link import LinkEvent
from hfl_mqtt.transport.memory import Kept, MemoryBroker, MemoryLink
from hfl_mqtt.trust.identity import Identity

#: What a client's work is: its path and the call, to a contribution; raising ValueError is a failure with that reason.
Train = Callable[[str, Work], Contribution]


class Moment(Enum):
    """When a node that is to die does so."""

    NOW = "now"
    BEFORE_COMMIT = "before commit"  # of the next that it makes durable: it never happened
    AFTER_COMMIT = "after commit"  # it happened, and nobody was told
    AFTER_SEND = "after send"  # the next message is out, what stands behind it is not


class _Crashed(Exception):
    """The node that was at work was killed."""


@dataclass(slots=True)
class Place:
    """One node of the simulation: what runs there now, if anything, what is on its disk, and what was noted there."""

    #: Its path, and where several processes share one, `@` and its own name as well.
    name: str
    boot: int = 0
    shell: Shell | None = None
    link: MemoryLink | None = None
    notes: list[tuple[float, Note]] = field(default_factory=list)
    #: What the node made durable, and what waits to be so with the next that is urgent.
    vault: dict[str, bytes] = field(default_factory=dict)
    waiting: dict[str, bytes | None] = field(default_factory=dict)
    is_disk_full: bool = False
    is_cut_off: bool = False
    #: Faults of its own link, in place of its broker's.
    faults: Faults | None = None
    #: Why its work fails now, and by how much it takes longer.
    fails_with: str | None = None
    slowness: float = 1.0
    #: At which moment it will die, and what happens then.
    fuse: tuple[Moment, Callable[[], None]] | None = None
    tick_due_s: float | None = None


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
        holders: the names of the processes that share an edge's place by lease, by its path.
        lease_s: how long a lease lasts.
        notice_s: how long it takes until a broker notices that its bridge was cut.
        signed: whether all sign and check; their keys come from the seed.
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
        holders: Mapping[str, Sequence[str]] | None = None,
        lease_s: float = 15.0,
        notice_s: float = 0.0,
        signed: bool = False,
    ) -> None:
        self._lease_s = lease_s
        self._papers = Papers(seed) if signed else None
        self.ends: dict[str, RunOver] = {}
        self.saved: list[Save] = []
        self.counted_work: list[tuple[str, str]] = []
        #: All notes, in the order of time.
        self.trace: list[tuple[float, str, Note]] = []
        self._schedule, self._weights, self._start = schedule, weights, start
        self._first_run, self._lives = schedule.run, 1
        self._arithmetic, self._train, self._work_s = arithmetic, train, work_s
        self.wire = Wire(seed)
        self.faults = faults
        #: What each broker has on disk.
        self.kept: dict[str, Kept] = {}
        self._cancelled: set[tuple[str, int, str]] = set()
        self.brokers = {path: MemoryBroker(path, faults=faults, wire=self.wire) for path in children}
        self.bridges: dict[str, Bridge] = {}
        for path in children:
            above = parent(path)
            if above is not None:
                rules = [*bridge_control(FEDERATION, path), *bridge_data(FEDERATION, path)]
                self.bridges[path] = bridge(
                    self.brokers[path],
                    self.brokers[above],
                    rules,
                    name=path,
                    faults=faults,
                    state=bridge_state(path),
                    notice_s=notice_s,
                )
        paths = {*children, *(f"{path}/{name}" for path, names in children.items() for name in names)}
        shared = holders or {}
        names = [f"{path}@{holder}" for path in shared for holder in shared[path]]
        self.places = {name: Place(name) for name in sorted([*(paths - shared.keys()), *names])}
        self.root = next(path for path in children if parent(path) is None)

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self.wire.now_s

    # -------------------------------------------------------------- running

    def start(self, *but: str) -> None:
        """Start all nodes that are not running, save those named."""
        for path in self.places:
            if path not in but:
                self.start_node(path)

    def run(self, until_s: float = 1e6) -> RunOver | None:
        """Run until the cloud's run is over, or until a virtual time; returns how it ended."""
        wire = self.wire
        while self.root not in self.ends:
            due_s = wire.next_due
            if due_s is None or due_s > until_s:
                return None
            wire.deliver_next()
        return self.ends[self.root]

    def at(self, moment_s: float, do: Callable[[], None]) -> None:
        """Do something at a virtual time, e.g. `sim.at(5, lambda: sim.kill("cloud/a/1"))`."""
        self.wire.schedule(moment_s, do)

    def notes(self, event: str) -> list[tuple[str, Note]]:
        """Return all notes of one kind, with the node."""
        return [
            (path, entry) for path, place in self.places.items() for _, entry in place.notes if entry.event == event
        ]

    @property
    def vaults(self) -> dict[str, dict[str, bytes]]:
        """What each node made durable."""
        return {path: place.vault for path, place in self.places.items()}

    # -------------------------------------------------------------- what happens to nodes

    def start_node(self, path: str) -> None:
        """Start a node, or start it again with a higher boot counter; what it had in memory is gone. Idempotent."""
        place = self.places[path]
        if place.shell is not None:
            return
        place.boot += 1
        node = self._node(path, place.boot)
        place.link = self._link(place, node)
        place.shell = Shell(node, FEDERATION, place.link, self)
        self._mark(place, note("started", boot=place.boot))
        self._do(place, node, lambda shell: shell.start(self.now_s))

    def kill(self, path: str) -> None:
        """Kill a node as SIGKILL does: its link is cut, its memory is gone, its will is said. Idempotent."""
        place = self.places[path]
        if place.shell is not None and place.link is not None:
            self._mark(place, note("killed"))
            place.link.crash()
            place.shell = place.link = place.tick_due_s = None
            place.waiting.clear()

    def kill_at(self, path: str, moment: Moment, then: Callable[[], None] = lambda: None) -> None:
        """Kill a node at a moment of what it does next; `then` is called when it is dead."""
        if moment is Moment.NOW:
            self.kill(path)
            then()
        else:
            self.places[path].fuse = (moment, then)

    def wipe(self, path: str) -> None:
        """Kill a node and lose its disk; its boots go on from the clock, see `files.next_boot`. Idempotent.

        A cloud that knows of no run begins a new one.
        """
        self.kill(path)
        place = self.places[path]
        place.vault.clear()
        if path == self.root:
            self._lives += 1
            self._schedule = replace(self._schedule, run=f"{self._first_run}.{self._lives}")
        self._mark(place, note("wiped"))

    def cut_off(self, path: str, *, is_cut: bool) -> None:
        """Take a node's network away, also from its next lives, or give it back. Idempotent."""
        place = self.places[path]
        place.is_cut_off = is_cut
        if place.link is not None:
            (place.link.cut if is_cut else place.link.restore)()

    def trouble(self, path: str, faults: Faults | None) -> None:
        """Give a node's link faults of its own, in this life and the next; None gives it its broker's again."""
        place = self.places[path]
        place.faults = faults
        if place.link is not None:
            place.link.faults = faults

    def spare(self, path: str) -> None:
        """Let a node that was to die at a moment that has not come live on."""
        self.places[path].fuse = None

    def save_broker(self, path: str) -> None:
        """Write to disk what a broker knows, if it is up."""
        if self.brokers[path].is_up:
            self.kept[path] = self.brokers[path].kept()

    def remark(self, path: str, entry: Note) -> None:
        """Note what happens to a node, or to a place that several share, from outside."""
        if path in self.places:
            self._mark(self.places[path], entry)
        else:
            self.trace.append((self.now_s, path, entry))

    # -------------------------------------------------------------- the world of the nodes (see `shell.World`)

    def work(self, node: Node, work: Work) -> None:
        """Train, and bring the result after the time it takes."""
        place = self.places[node.client_id]
        key = (place.name, place.boot, work.work_id)
        self._cancelled.discard(key)
        event: Event
        try:
            if place.fails_with is not None:
                raise ValueError(place.fails_with)
            event = Worked(work_id=work.work_id, result=self._train(node.path, work))
        except ValueError as error:
            event = WorkFailed(work_id=work.work_id, reason=str(error))

        def bring() -> None:
            if key not in self._cancelled:
                self._feed(place, node, event)

        self.at(self.now_s + self._work_s(node.path) * place.slowness, bring)

    def cancel(self, node: Node, work_id: str) -> None:
        """Do not bring that result."""
        self._cancelled.add((node.client_id, self.places[node.client_id].boot, work_id))

    def counted(self, node: Node, counted: Counted) -> None:
        """Note whose update counted."""
        self.counted_work.append((node.path, counted.work_id))

    def persist(self, node: Node, changes: Persist) -> None:
        """Keep the changes for the node's next life, unless its disk is full or it dies here."""
        place = self.places[node.client_id]
        place.waiting.update((key, None if value is None else bytes(value)) for key, value in changes.changes.items())
        if not changes.is_urgent:
            return
        if place.is_disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.spark(place, Moment.BEFORE_COMMIT)
        for key, value in place.waiting.items():
            if value is None:
                place.vault.pop(key, None)
            else:
                place.vault[key] = value
        place.waiting.clear()
        self.spark(place, Moment.AFTER_COMMIT)

    def reconnect(self, node: Node) -> None:
        """Connect anew, with the will that the node has now."""
        place = self.places[node.client_id]
        if place.shell is None or place.link is None:
            return
        place.link.close()
        place.link = place.shell.link = self._link(place, node)
        place.link.open()

    def move(self, node: Node, move: Move) -> None:
        """Take it that a device goes on elsewhere; here it has nowhere to go."""

    def save(self, node: Node, save: Save) -> None:  # noqa: ARG002  (part of the contract)
        """Keep the model."""
        self.saved.append(save)

    def record(self, node: Node, entry: Note) -> None:
        """Keep the note."""
        self._mark(self.places[node.client_id], entry)

    def vitals(self, node: Node) -> MetricValues:  # noqa: ARG002  (part of the contract)
        """There is no hardware here."""
        return {}

    def over(self, node: Node, end: RunOver) -> None:
        """Note the end of the run."""
        self.ends[node.path] = end

    # -------------------------------------------------------------- inside

    def spark(self, place: Place, moment: Moment) -> None:
        """Kill the node whose moment this is; it does not return then."""
        if place.fuse is None or place.fuse[0] is not moment:
            return
        (_, then), place.fuse = place.fuse, None
        self.kill(place.name)
        then()
        raise _Crashed

    def _link(self, place: Place, node: Node) -> MemoryLink:
        path = node.path
        link = _Link(
            self,
            place,
            self.brokers[path if path in self.brokers else parent(path) or path],
            place.name,
            filters(node, FEDERATION),
            lambda event: self._feed(place, node, event),
            will=encode(node.will, FEDERATION, path) if node.will is not None else None,
            clean=node.session_at_most_s == 0,
            expiry_s=node.session_at_most_s,
            faults=place.faults,
        )
        if place.is_cut_off:
            link.cut()
        return link

    def _node(self, name: str, boot: int) -> Node:
        path, _, holder = name.partition("@")
        signer = self._papers.identity(name) if self._papers is not None else None
        if not holder:
            return self._single(path, boot, dict(self.places[name].vault), signer)
        return Leased(
            path=path,
            holder=holder,
            for_s=self._lease_s,
            make=lambda epoch, saved: self._single(path, epoch, saved, signer),
            saved=lambda: dict(self.places[name].vault),
            signer=signer,
        )

    def _single(self, path: str, boot: int, saved: Mapping[str, Buffer], signer: Identity | None) -> Node:
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
                saved=saved,
                signer=signer,
            )
        if path in self.brokers:
            return EdgeNode(path=path, boot=boot, info=info, arithmetic=self._arithmetic, saved=saved, signer=signer)
        return ClientNode(path=path, boot=boot, info=info, saved=saved, signer=signer)

    def _mark(self, place: Place, entry: Note) -> None:
        place.notes.append((self.now_s, entry))
        self.trace.append((self.now_s, place.name, entry))

    def _feed(self, place: Place, node: Node, event: LinkEvent | Event) -> None:
        self._do(place, node, lambda shell: shell.feed(event, self.now_s))

    def _do(self, place: Place, node: Node, do: Callable[[Shell], None]) -> None:
        """Let a node do something, if it is alive, and put its next deadline on the agenda."""
        shell = place.shell
        if shell is None or shell.node is not node:
            return  # of a node that is dead by now
        try:
            do(shell)
        except _Crashed:
            return
        deadline_s = shell.next_deadline
        if deadline_s is None or (place.tick_due_s is not None and place.tick_due_s <= deadline_s):
            return  # what is on the agenda comes first, and looks again
        place.tick_due_s = due_s = max(deadline_s, self.now_s)
        self.at(due_s, lambda: self._tick(place, node, due_s))

    def _tick(self, place: Place, node: Node, due_s: float) -> None:
        if place.shell is None or place.shell.node is not node or place.tick_due_s != due_s:
            return  # dead, or something earlier was on the agenda
        place.tick_due_s = None
        deadline_s = place.shell.next_deadline
        is_due = deadline_s is not None and deadline_s <= self.now_s
        self._do(place, node, lambda shell: shell.tick(self.now_s) if is_due else None)


class _Link(MemoryLink):
    """A link that its node may die over."""

    def __init__(self, simulation: Simulation, place: Place, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._simulation, self._place = simulation, place

    def publish(self, frame: Frame) -> None:
        super().publish(frame)
        self._simulation.spark(self._place, Moment.AFTER_SEND)
