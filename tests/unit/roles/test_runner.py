"""One loop runs many nodes: events, deadlines, failures, farewells; without a broker."""

from __future__ import annotations

import queue
import threading

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.roles.process import Process
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.rounds.actions import Action, Event, Note, RunOver, WorkFailed, note
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.link import Account

WAIT_S = 60.0


class Clock(Node):
    """A node that rings at the times it was given, counted from its start, and then says that its run is over."""

    def __init__(self, path: str, *rings_s: float) -> None:
        super().__init__(path, 1)
        self.rings = list(rings_s)
        self.rang: list[float] = []
        self.started_s = 0.0

    def start(self, now: float) -> list[Action]:
        self.started_s = now
        return [note("started")]

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: ARG002 - as every node's
        if isinstance(event, WorkFailed):
            if event.reason == "bug":
                raise ZeroDivisionError(event.reason)
            raise HflError(event.reason)
        return []

    def tick(self, now: float) -> list[Action]:
        self.rings.pop(0)
        self.rang.append(now - self.started_s)
        return [] if self.rings else [RunOver(run="r1")]

    @property
    def next_deadline(self) -> float | None:
        return self.started_s + self.rings[0] if self.rings else None


class Journal:
    """Takes notes, and tells when a node has started."""

    def __init__(self, nodes: int) -> None:
        self.failed: queue.Queue[tuple[str, object]] = queue.Queue()
        self.all_started = threading.Barrier(2)
        self._left = nodes

    def __call__(self, path: str, entry: Note) -> None:
        if entry.event == "failed":
            self.failed.put((path, entry.fields["reason"]))
        if entry.event == "started":
            self._left -= 1
            if not self._left:
                self.all_started.wait(WAIT_S)


def put(process: Process, node: Node) -> Runner:
    account = Account(host="127.0.0.1", port=free_port(), user=node.path)
    runner = Runner(node, "fed1", account, process)
    process.add(runner)
    return runner


def test_every_node_is_rung_at_its_own_time_by_one_thread() -> None:
    nodes = [Clock(f"cloud/a/{number}", 0.02 * (5 - number), 0.15) for number in range(5)]
    threads: set[int] = set()
    process = Process(lambda _path, _entry: threads.add(threading.get_ident()), until_finished=True)
    for node in nodes:
        put(process, node)
    ends = process.hold()
    assert sorted(ends) == sorted(node.path for node in nodes)
    for number, node in enumerate(nodes):
        assert node.rang[0] >= 0.02 * (5 - number)
        assert node.rang[1] >= 0.15
    assert threads == {threading.get_ident()}


def hold_aside(process: Process) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def hold() -> None:
        try:
            process.hold()
        except HflError as error:
            raised.append(error)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    return thread, raised


def test_a_node_that_fails_is_told_of_and_the_others_go_on_until_somebody_asks_them_to_end() -> None:
    journal = Journal(3)
    process = Process(journal)
    runners = [put(process, Clock(f"cloud/a/{number}")) for number in range(3)]
    thread, raised = hold_aside(process)
    journal.all_started.wait(WAIT_S)
    runners[0].put(WorkFailed(work_id="w", reason="the sensor is gone"))
    runners[1].put(WorkFailed(work_id="w", reason="bug"))
    assert [journal.failed.get(timeout=WAIT_S) for _ in range(2)] == [
        ("cloud/a/0", "the sensor is gone"),
        ("cloud/a/1", "cloud/a/1 stopped because of a fault of ours: see the trace above"),
    ]
    process.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert raised == [], "one went on until it was asked to end"


def test_when_all_nodes_have_failed_the_first_failure_is_the_processs() -> None:
    journal = Journal(2)
    process = Process(journal)
    runners = [put(process, Clock(f"cloud/a/{number}")) for number in range(2)]
    thread, raised = hold_aside(process)
    journal.all_started.wait(WAIT_S)
    for runner, reason in zip(runners, ("first", "second"), strict=True):
        runner.put(WorkFailed(work_id="w", reason=reason))
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [str(error) for error in raised] == ["first"]
    assert journal.failed.get() == ("cloud/a/0", "first")
    assert journal.failed.empty(), "the last is told by who holds the process"


def test_a_process_ends_when_every_node_that_has_not_failed_has_finished() -> None:
    journal = Journal(2)
    process = Process(journal, until_finished=True)
    put(process, Clock("cloud/a/0", 0.05))
    failing = put(process, Clock("cloud/a/1"))
    thread, raised = hold_aside(process)
    journal.all_started.wait(WAIT_S)
    failing.put(WorkFailed(work_id="w", reason="gone"))
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [str(error) for error in raised] == ["gone"]
