"""Nothing is said before what stands behind it is on the disk; while the disk takes nothing, the node stands still."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.errors import Unwritable
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.protocol.messages import Decline, KeyPart, Message, State, StateName
from hfl_mqtt.protocol.wire import decode, encode
from hfl_mqtt.roles.process import Process
from hfl_mqtt.roles.runner import Loop, Runner
from hfl_mqtt.roles.shell import HALT_RETRY_S, Shell
from hfl_mqtt.rounds.actions import Action, Event, Note, Persist, Received, RunOver, Save, Send, Work, WorkFailed, note
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.state.vault import Vault
from hfl_mqtt.transport.link import Account, Arrived, Up
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink

FED, PATH = "fed1", "cloud/a"
FULL = "the card is full; free some space"


def said(reason: str) -> Decline:
    return Decline(run="r", round=(1,), reason=reason)


def kept(reason: str, *, is_urgent: bool = True) -> Persist:
    return Persist(changes={reason: reason.encode()}, is_urgent=is_urgent)


class Told(Node):
    """A node that answers the n-th thing it hears with the n-th list it was given."""

    def __init__(self, *lists: list[Action], path: str = PATH) -> None:
        super().__init__(path, 7)
        self.lists = list(lists)
        self.heard: list[Event] = []
        self.ticks = 0

    def start(self, now: float) -> list[Action]:  # noqa: ARG002 - as every node's
        return []

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: ARG002
        self.heard.append(event)
        return self.lists.pop(0) if self.lists else []

    def tick(self, now: float) -> list[Action]:  # noqa: ARG002
        self.ticks += 1
        return []

    @property
    def next_deadline(self) -> float | None:
        return 3.0


class Link(MemoryLink):
    """A link that remembers what was said and done, in order, in the diary of its world."""

    def __init__(self, diary: list[Any]) -> None:
        super().__init__(MemoryBroker("b"), PATH, [], lambda _event: None)
        self.diary = diary

    def publish(self, frame: Any) -> None:
        message, _ = decode(frame)
        self.diary.append(message)

    def done(self, arrived: Arrived) -> None:
        self.diary.append(("done", arrived.token))


class Disk:
    """A world with a disk that may be full, and a diary of what was asked of it."""

    def __init__(self) -> None:
        self.diary: list[Any] = []
        self.is_full = self.takes_no_model = False
        self.error: Exception = Unwritable(FULL)

    def persist(self, node: Node, changes: Persist) -> None:  # noqa: ARG002
        if self.is_full:
            raise self.error
        self.diary.append((set(changes.changes), changes.is_urgent))

    def save(self, node: Node, save: Save) -> None:  # noqa: ARG002
        if self.takes_no_model:
            raise Unwritable(FULL)
        self.diary.append("saved")

    def record(self, node: Node, entry: Note) -> None:  # noqa: ARG002
        self.diary.append(entry.event)

    def vitals(self, node: Node) -> dict[str, int]:  # noqa: ARG002
        return {}

    def work(self, node: Node, work: Work) -> None: ...
    def cancel(self, node: Node, work_id: str) -> None: ...
    def counted(self, node: Node, counted: Any) -> None: ...
    def over(self, node: Node, end: RunOver) -> None:  # noqa: ARG002
        self.diary.append(end)

    def move(self, node: Node, move: Any) -> None: ...
    def reconnect(self, node: Node) -> None: ...


def shell_of(*lists: list[Action]) -> tuple[Shell, Disk, Told]:
    disk, node = Disk(), Told(*lists)
    return Shell(node, FED, Link(disk.diary), disk), disk, node


def word(message: Message, token: int = 1) -> Arrived:
    return Arrived(frame=encode(message, FED, f"{PATH}/1"), token=token)


def event(number: int = 0) -> WorkFailed:
    return WorkFailed(work_id=str(number), reason="x")


def test_all_that_one_list_asks_for_is_durable_before_anything_of_it_is_done() -> None:
    lists: list[Action] = [Send(message=said("a")), kept("x"), note("n"), kept("y", is_urgent=False)]
    shell, disk, _ = shell_of(lists)
    shell.feed(word(said("?"), token=5), 0.0)
    assert disk.diary == [({"x", "y"}, True), said("a"), "n", ("done", 5)]


def test_what_is_sent_goes_before_the_notes_beside_it_and_before_nothing_else() -> None:
    end = RunOver(run="r")
    shell, disk, _ = shell_of([note("1"), Send(message=said("a")), kept("x"), note("2"), Send(message=said("b")), end])
    shell.feed(event(), 0.0)
    assert disk.diary == [({"x"}, True), said("a"), said("b"), "1", "2", end]
    save = Save(run="r", version=1, round=(1,), digest="", weights=None)
    shell, disk, _ = shell_of([note("1"), save, note("2"), Send(message=said("a"))])
    shell.feed(event(), 0.0)
    assert disk.diary == ["1", "saved", said("a"), "2"]


def test_what_is_not_urgent_is_said_to_be_so() -> None:
    shell, disk, _ = shell_of([kept("x", is_urgent=False), Send(message=said("a"))])
    shell.feed(event(), 0.0)
    assert disk.diary == [({"x"}, False), said("a")]


def test_several_lists_are_made_durable_at_once_and_done_in_their_order() -> None:
    shell, disk, _ = shell_of([kept("x", is_urgent=False), note("1")], [note("2")], [kept("y"), kept("x"), note("3")])
    for number in range(3):
        shell.take(event(number), 0.0)
    assert disk.diary == []
    demand = shell.demand(0.0)
    assert demand is not None
    assert (dict(demand.changes), demand.is_urgent) == ({"x": b"x", "y": b"y"}, True)
    shell.perform_due(0.0)
    assert disk.diary == ["1", "2", "3"]
    assert shell.demand(0.0) is None


@pytest.mark.parametrize("error", [Unwritable(FULL), OSError(28, FULL)])
def test_a_full_disk_halts_the_node_which_says_so_and_goes_on_by_itself(error: Exception) -> None:
    ready = State(state=StateName.READY, boot=7)
    shell, disk, node = shell_of([Send(message=ready)], [kept("x"), Send(message=said("a"))], [note("later")])
    shell.feed(event(), 0.0)
    disk.is_full, disk.error = True, error
    disk.diary.clear()
    shell.feed(word(said("?"), token=5), 10.0)
    (first, halted) = disk.diary
    assert first == "halted"
    assert halted.state is StateName.HALTED
    assert FULL in halted.reason
    assert shell.next_deadline == 10.0 + HALT_RETRY_S
    disk.diary.clear()
    # It hears nothing meanwhile, and looks at no clock; a reconnect makes it say again what is wrong.
    shell.feed(word(said("!"), token=6), 10.1)
    shell.tick(10.2)
    shell.feed(Up(session_present=True), 10.3)
    assert disk.diary == [halted]
    assert (len(node.heard), node.ticks) == (2, 0)
    disk.is_full = False
    disk.diary.clear()
    shell.tick(10.0 + HALT_RETRY_S)
    assert disk.diary[:4] == [({"x"}, True), said("a"), ("done", 5), "went_on"]
    assert disk.diary[4] == ready
    assert disk.diary[5:] == ["later", ("done", 6), "connected"]
    assert shell.next_deadline == 3.0


def test_it_is_tried_again_with_the_next_event_but_not_at_every_one() -> None:
    shell, disk, _ = shell_of([kept("x"), note("done")])
    disk.is_full = True
    shell.feed(event(), 10.0)
    disk.is_full = False
    shell.feed(event(), 10.5)
    assert "done" not in disk.diary
    assert shell.next_deadline == 11.0
    shell.feed(event(), 11.0)
    assert "done" in disk.diary


def test_what_was_not_demanded_is_not_done_though_the_time_to_try_again_has_come_since() -> None:
    shell, disk, _ = shell_of([kept("x"), Send(message=said("a"))])
    disk.is_full = True
    shell.feed(event(), 0.0)
    assert shell.demand(HALT_RETRY_S - 0.1) is None
    shell.perform_due(HALT_RETRY_S + 1.0)  # another node's commit took that long
    assert said("a") not in disk.diary
    assert "went_on" not in disk.diary
    disk.is_full = False
    shell.tick(HALT_RETRY_S + 1.0)
    assert [one for one in disk.diary if one in (({"x"}, True), said("a"), "went_on")] == [
        ({"x"}, True),
        said("a"),
        "went_on",
    ]


def test_a_demand_that_failed_is_made_again() -> None:
    shell, disk, _ = shell_of([kept("x"), Send(message=said("a"))])
    shell.take(event(), 0.0)
    assert shell.demand(0.0) is not None
    shell.halt(Unwritable(FULL), 0.0)
    shell.perform_due(HALT_RETRY_S)
    assert said("a") not in disk.diary
    again = shell.demand(HALT_RETRY_S)
    assert again is not None
    assert set(again.changes) == {"x"}
    shell.perform_due(HALT_RETRY_S)
    assert said("a") in disk.diary


def test_of_what_holds_only_as_it_was_said_last_no_more_than_that_is_kept_while_it_stands_still() -> None:
    shell, disk, node = shell_of([kept("x")])
    disk.is_full = True
    shell.feed(event(), 0.0)
    states = [State(state=StateName.READY, boot=boot) for boot in range(1, 4)]
    for boot, state in enumerate(states):
        for child in ("1", "2"):
            frame = replace(encode(state, FED, f"{PATH}/{child}"), qos=0)
            shell.feed(Arrived(frame=frame, token=boot), 0.1)
        shell.feed(word(said(str(boot)), token=10 + boot), 0.2)
    disk.is_full = False
    shell.tick(HALT_RETRY_S)
    heard = [one.message for one in node.heard if isinstance(one, Received)]
    assert heard == [said("0"), said("1"), states[2], states[2], said("2")]


def test_a_disk_that_takes_no_model_halts_too_and_what_was_done_before_is_not_done_twice() -> None:
    save = Save(run="r", version=1, round=(1,), digest="", weights={})
    shell, disk, _ = shell_of([kept("x"), note("before"), save, Send(message=said("a"))])
    disk.takes_no_model = True
    shell.feed(event(), 0.0)
    assert said("a") not in disk.diary
    disk.takes_no_model = False
    shell.tick(HALT_RETRY_S)
    assert [one for one in disk.diary if not isinstance(one, State)] == [
        ({"x"}, True),
        "before",
        "halted",
        "saved",
        said("a"),
        "went_on",
    ]


def test_parts_of_blobs_are_not_kept_while_it_stands_still_for_they_are_asked_for_again() -> None:
    shell, disk, node = shell_of([kept("x")])
    disk.is_full = True
    shell.feed(event(), 0.0)
    part = KeyPart(version=0, blob="0" * 16, size=3, data=b"abc")
    shell.feed(Arrived(frame=encode(part, FED, "cloud"), token=9), 0.1)
    assert disk.diary[-1] == ("done", 9)
    disk.is_full = False
    shell.tick(HALT_RETRY_S)
    assert len(node.heard) == 1


def test_who_leaves_while_the_disk_is_full_says_why_and_nothing_that_is_not_durable() -> None:
    shell, disk, _ = shell_of([kept("x"), Send(message=said("a"))])
    disk.is_full = True
    shell.feed(event(), 0.0)
    shell.leave(0.5)
    assert disk.diary[-1] == State(state=StateName.DISCONNECTED, boot=7, reason=FULL)
    assert said("a") not in disk.diary


def test_who_leaves_once_there_is_room_does_what_was_due_first() -> None:
    shell, disk, _ = shell_of([kept("x"), Send(message=said("a"))])
    disk.is_full = True
    shell.feed(event(), 0.0)
    disk.is_full = False
    shell.leave(0.5)
    assert disk.diary[-4:] == [({"x"}, True), said("a"), "went_on", State(state=StateName.DISCONNECTED, boot=7)]


# ------------------------------------------------------------------ the loop


class Standby(Told):
    """A node at a place where another one speaks."""

    @property
    def may_speak(self) -> bool:
        return False


def test_a_node_that_does_not_speak_for_its_place_halts_in_silence() -> None:
    disk = Disk()
    shell = Shell(Standby([kept("x")]), FED, Link(disk.diary), disk)
    disk.is_full = True
    shell.feed(event(), 0.0)
    shell.leave(0.5)
    assert disk.diary == ["halted"]


class Expiring(Told):
    """A node whose right to speak runs out."""

    def has_expired(self, now: float) -> bool:
        return now >= 5.0

    def leave(self) -> list[Action]:
        return [Send(message=said("goodbye")), note("left")]


@pytest.mark.parametrize("is_full", [False, True])
def test_who_has_no_right_to_speak_any_more_leaves_without_a_word(is_full: bool) -> None:
    disk = Disk()
    shell = Shell(Expiring([kept("x"), Send(message=said("a"))]), FED, Link(disk.diary), disk)
    shell.take(event(), 4.0)
    disk.is_full = is_full
    shell.leave(6.0)
    assert not [one for one in disk.diary if isinstance(one, Decline)]
    assert not [one for one in disk.diary if isinstance(one, State) and one.state is StateName.DISCONNECTED]


def runner_of(node: Node, world: Any) -> Runner:
    return Runner(node, FED, Account(host="127.0.0.1", port=free_port(), user=node.path), world)


def test_a_burst_of_events_of_several_nodes_costs_one_commit() -> None:
    disk, commits = Disk(), list[list[tuple[str, set[str]]]]()
    over = threading.Event()

    def persist(asked: Sequence[tuple[Node, Persist]]) -> None:
        commits.append([(node.path, set(one.changes)) for node, one in asked])

    loop = Loop(lambda _runner: None, persist)
    nodes = [Told([kept("x")], [kept("y")], path=f"{PATH}/{number}") for number in range(3)]
    runners = [runner_of(node, disk) for node in nodes]
    for runner in runners:
        loop.add(runner)
    for runner in runners:
        runner.put(event(1))
        runner.put(event(2))

    def is_done() -> bool:
        if all(len(node.heard) >= 2 for node in nodes):
            over.set()
        return over.is_set()

    loop.run(is_done)
    loop.close()
    assert commits == [[(f"{PATH}/{number}", {"x", "y"}) for number in range(3)]]


class Full(Vault):
    """A vault whose disk may be full."""

    is_full = False

    def commit(self, changes: Any) -> None:
        if self.is_full and changes:
            raise Unwritable(FULL)
        super().commit(changes)


def test_a_process_halts_with_its_disk_and_goes_on_with_it(tmp_path: Path) -> None:
    vault = Full(tmp_path)
    vault.is_full = True
    notes: queue.Queue[str] = queue.Queue()
    process = Process(lambda _path, entry: notes.put(entry.event), vault=vault)
    node = Told([kept("x"), note("done")])
    runner = runner_of(node, process)
    process.add(runner)
    thread = threading.Thread(target=process.hold, daemon=True)
    thread.start()
    runner.put(event())
    wait_for(notes, "halted")
    vault.is_full = False
    runner.put(event())  # after a second at the soonest
    wait_for(notes, "done")
    wait_for(notes, "went_on")
    process.stop()
    thread.join(20)
    assert not thread.is_alive()
    again = Vault(tmp_path)
    assert dict(again.of(PATH)) == {"x": b"x"}
    again.close()


def wait_for(notes: queue.Queue[str], event: str) -> None:
    while notes.get(timeout=20) != event:
        pass


def test_what_the_role_keeps_goes_with_each_commit(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    beside: Callable[[], dict[tuple[str, str], bytes]] = lambda: {("cloud", "role/seconds"): b"9"}  # noqa: E731
    process = Process(lambda _path, _entry: None, vault=vault, beside=beside)
    node = Told()
    process.persist(node, kept("x", is_urgent=False))
    assert dict(vault.of("cloud")) == {}
    process.persist(node, kept("y"))
    assert dict(vault.of("cloud")) == {"role/seconds": b"9"}
    assert dict(vault.of(PATH)) == {"x": b"x", "y": b"y"}
    process.close()


def test_a_received_word_reaches_the_node_as_before() -> None:
    shell, _, node = shell_of()
    shell.feed(word(said("?")), 0.0)
    assert node.heard == [Received(message=said("?"), sender=f"{PATH}/1")]
