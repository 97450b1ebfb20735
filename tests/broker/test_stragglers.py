"""Clients and edges that are slow, die, leave, raise or lie, on real processes: the round closes and the run goes on.

The clients' task is a user's own file whose training waits for an order of the test, so nothing here is a race: a
client is in the middle of its training for exactly as long as the test wants. Every order that is carried out adds one
to the model, so the model's only number counts the rounds, and one wrong update would show in it.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from hfl_mqtt.learning import codecs
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.protocol.blobs import Cut
from hfl_mqtt.protocol.limits import MAX_CORRUPTED
from hfl_mqtt.protocol.messages import (
    Decline,
    Message,
    Phase,
    Receipt,
    RoundCall,
    State,
    StateName,
    Update,
    UpdatePart,
    Want,
)
from hfl_mqtt.protocol.wire import Frame, decode, encode, pack_update
from tests.broker.processes import LIMIT_S, until
from tests.broker.sites import Person

pytestmark = pytest.mark.broker

TASK = """\
import os
import threading
from pathlib import Path

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult

HERE = Path(__file__).parent
metric = Metric("mse", higher_is_better=False)


class Readings(torch.utils.data.Dataset):
    def __init__(self, who):
        self.who = who

    def __len__(self):
        return 10


def model():
    counter = torch.nn.Linear(1, 1)
    with torch.no_grad():
        counter.weight.fill_(1.0)
        counter.bias.fill_(0.0)
    return counter


def data(options):
    return Readings(options["who"]), None


def loss(output, target):
    return ((output - target) ** 2).mean()


def score(output, target):
    return ((output - target) ** 2).squeeze(1)


def train(model, data, plan, stop):
    order, pause = HERE / f"{data.who}.order", threading.Event()
    begun = HERE / f"{data.who}.{int(model.bias) + 1}.training"
    begun.write_text(f"{os.getpid()}.")
    while not order.exists():
        if stop():
            return TrainResult(loss=0.0, samples=0, steps=0)
        pause.wait(0.01)
    what = order.read_text()
    order.unlink()
    if what == "raise":
        raise ValueError("the sensor is unplugged")
    with torch.no_grad():
        model.bias += float("nan") if what == "nan" else 1.0
    return TrainResult(loss=0.5, samples=10, steps=1)
"""
RAISES_AT = TASK.splitlines().index('        raise ValueError("the sensor is unplugged")') + 1
GRACE_S = 1.0


class Tree(LocalFederation):
    """A federation whose journals can be waited for, and whose clients train on orders."""

    def notes(self, node: str, event: str, *, life: int | None = None, **fields: object) -> list[dict[str, Any]]:
        """Return a node's notes so far; `life` is the sender's, counted from 1."""
        if life is not None:
            boots = sorted({note["boot"] for note in self.notes(node, "joined", sender=fields["sender"])})
            if len(boots) < life:
                return []
            fields["boot"] = boots[life - 1]
        wanted = {"node": node, "event": event, **fields}
        return [
            record
            for path in self.journals()
            for record in journal.read(path)
            if all(record.get(name) == value for name, value in wanted.items())
        ]

    def note(self, node: str, event: str, *, life: int | None = None, **fields: object) -> dict[str, Any]:
        """Wait for a node's note, and return the first such."""
        return until(lambda: self.notes(node, event, life=life, **fields), f"{node} {event} {fields}")[0]

    def order(self, **what: str) -> None:
        """Let clients, one each, end their training: `go`, `raise` or `nan`."""
        for who, order in what.items():
            (self.directory / "new").write_text(order)
            (self.directory / "new").replace(self.directory / f"{who}.order")

    def training(self, who: str, number: int, *, not_in: int = 0) -> int:
        """Wait until a client trains in a global round; return its training process."""
        marker = self.directory / f"{who}.{number}.training"

        def look() -> int | None:
            text = marker.read_text() if marker.exists() else ""
            pid = int(text[:-1]) if text.endswith(".") else 0
            return pid if pid != not_in else None

        return until(look, f"{who} to train in g{number}")

    def end(self, name: str, number: signal.Signals) -> int:
        """Send a process a signal and return its exit status."""
        self.processes[name].send_signal(number)
        return self.processes[name].wait(LIMIT_S)


def plan_of(directory: Path, *farms: FarmPlan, tiers: tuple[Mapping[str, Any], ...], rounds: int) -> RunPlan:
    task = directory / "task.py"
    task.write_text(TASK)
    return RunPlan(
        farms=farms, task={"file": str(task)}, rounds=rounds, seed=1, tiers=tiers, evaluate=False, federation="fed1"
    )


def farm_of(name: str, *devices: str) -> FarmPlan:
    return FarmPlan(
        name=name, devices=tuple(Device(name=device, data={"who": device}) for device in devices), is_split=True
    )


# -------------------------------------------------------------- one farm, and every trouble a client can make

EDGE = "cloud/farm-a"
A, B, C, D = (f"{EDGE}/{name}" for name in "abcd")


class Farm(Tree):
    """One farm with a, b and c, and with d, which never starts; two updates are a quorum."""

    def __init__(self, directory: Path) -> None:
        tiers = ({"open_for": "5 min"}, {"quorum": 2, "grace": f"{GRACE_S} s", "open_for": "60 s", "retries": 0})
        super().__init__(plan_of(directory, farm_of("farm-a", "a", "b", "c", "d"), tiers=tiers, rounds=1000), directory)
        self.number = 0

    def start(self) -> None:
        self.start_brokers()
        self.start_edge("farm-a")
        for path in (A, B, C):
            self.start_client(path)
        for path in (A, B, C):
            self.note(EDGE, "joined", sender=path)
        self.start_cloud()

    def start_edge(self, farm: str) -> None:
        """Start an edge that hears all lies: of one that has had enough, tests/attacks tells."""
        path = f"cloud/{farm}"
        self._start("edge", path, path, {"until_finished": False, "limits": {"strikes": 1000}})

    def begin(self) -> int:
        """Wait until all three train in the next round, and return its number."""
        self.number += 1
        for who in "abc":
            self.training(who, self.number)
        return self.number

    def closed(self, number: int) -> dict[str, Any]:
        return self.note(EDGE, "closed", round=f"g{number}.e1")

    def seconds_from_quorum_to_close(self, number: int) -> float:
        accepted = self.notes(EDGE, "accepted", round=f"g{number}.e1")
        return float(self.closed(number)["s"] - accepted[1]["s"])


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    one = Farm(tmp_path_factory.mktemp("farm"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


def test_a_slow_client_is_waited_for_through_the_grace_and_named(farm: Farm) -> None:
    number = farm.begin()
    farm.order(a="go", b="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["quorum"], closed["samples"]) == (2, 3, 2, 20)
    assert closed["waited_for"] == f"{C} (no answer)"
    assert GRACE_S - 0.1 <= farm.seconds_from_quorum_to_close(number) < 10
    cancelled = farm.note(C, "cancelled", round=f"g{number}.e1")
    assert "closed" in cancelled["reason"] or "began" in cancelled["reason"]


def test_a_client_that_never_starts_is_neither_asked_nor_waited_for(farm: Farm) -> None:
    number = farm.begin()
    farm.order(a="go", b="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (3, 3, "")
    assert not farm.notes(EDGE, "joined", sender=D)


def test_a_client_killed_in_its_training_stops_no_round_and_is_back_in_the_next(farm: Farm) -> None:
    number = farm.begin()
    old = farm.training("c", number)
    farm.end(C, signal.SIGKILL)
    farm.note(EDGE, "lost", sender=C, life=1)
    farm.order(a="go", b="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (2, 3, f"{C} (no answer)")
    assert farm.seconds_from_quorum_to_close(number) < GRACE_S, "nothing is left to wait for"

    # Its training process has gone with it.
    until(lambda: not _runs(old), "the training process to end")

    farm.start_client(C)
    farm.note(EDGE, "joined", sender=C, life=2)
    number = farm.begin()
    farm.order(a="go", b="go", c="go")
    assert farm.closed(number)["accepted"] == 3
    assert farm.notes(EDGE, "accepted", sender=C, round=f"g{number}.e1")


def test_a_client_back_before_the_round_closes_still_contributes_to_it_once(farm: Farm) -> None:
    number = farm.begin()
    old = farm.training("b", number)
    farm.end(B, signal.SIGKILL)
    farm.note(EDGE, "lost", sender=B, life=1)
    farm.start_client(B)
    assert farm.training("b", number, not_in=old) != old
    farm.order(a="go", b="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["samples"], closed["waited_for"]) == (3, 3, 30, "")


def test_a_client_that_leaves_in_order_is_no_longer_waited_for(farm: Farm) -> None:
    number = farm.begin()
    assert farm.end(B, signal.SIGTERM) == 0
    farm.note(EDGE, "left", sender=B, life=2)
    farm.order(a="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (2, 3, f"{B} (no answer)")
    assert farm.seconds_from_quorum_to_close(number) < GRACE_S
    farm.start_client(B)
    farm.note(EDGE, "joined", sender=B, life=3)


def test_a_dead_training_process_is_declined_with_the_reason_and_costs_one_round(farm: Farm) -> None:
    number = farm.begin()
    old = farm.training("a", number)
    os.kill(old, signal.SIGKILL)
    declined = farm.note(EDGE, "declined", sender=A, round=f"g{number}.e1")
    assert declined["reason"].startswith("training process died (signal 9, perhaps out of memory")
    farm.order(b="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (2, 3, f"{A} ({declined['reason']})")
    assert farm.seconds_from_quorum_to_close(number) < GRACE_S
    number = farm.begin()
    assert farm.training("a", number) != old
    farm.order(a="go", b="go", c="go")
    assert farm.closed(number)["accepted"] == 3


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("raise", rf".*/task\.py:{RAISES_AT}: train\(\) raised ValueError: the sensor is unplugged\. Correct it there"),
        ("nan", r"bias is not finite after training: lower the learning rate \(0\.01\)"),
    ],
)
def test_what_goes_wrong_in_a_users_training_is_told_and_costs_only_that_update(
    farm: Farm, order: str, reason: str
) -> None:
    number = farm.begin()
    farm.order(b=order)
    declined = farm.note(EDGE, "declined", sender=B, round=f"g{number}.e1")
    assert re.fullmatch(reason, declined["reason"])
    assert farm.note(B, "declined", round=f"g{number}.e1")["reason"] == declined["reason"]
    farm.order(a="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (2, 3, f"{B} ({declined['reason']})")


class Played(Person):
    """A client played by the test: with a client's own account, and with words of the test."""

    def __init__(self, tree: LocalFederation, broker: str, path: str) -> None:
        account = tree.account(path, broker)
        assert account.password is not None
        parent = path.rpartition("/")[0]
        super().__init__(
            account.port,
            path,
            account.password,
            f"hfl/fed1/{path}/@/cmnd/+",
            f"hfl/fed1/{parent}/@/stat/round",
        )
        self.path = path

    def tell(self, *messages: Message) -> None:
        for message in messages:
            frame = encode(message, "fed1", self.path)
            assert self.say(frame.topic, frame.payload, retain=frame.retain) == "Success"

    def wait_for(self, wanted: Callable[[Message], object]) -> Message:
        """Wait for a message."""
        end_s = time.monotonic() + LIMIT_S
        while True:
            try:
                one = self.heard.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError("not heard") from None
            message, _ = decode(Frame(topic=one.topic, payload=bytes(one.payload)))
            if wanted(message):
                return message

    def call(self, number: int) -> RoundCall:
        """Wait for the call to a round."""
        one = self.wait_for(
            lambda said: isinstance(said, RoundCall) and said.round[0] == number and said.phase is Phase.OPEN
        )
        assert isinstance(one, RoundCall)
        return one

    def receipt(self) -> Receipt:
        """Wait for the word on an update."""
        one = self.wait_for(lambda said: isinstance(said, Receipt))
        assert isinstance(one, Receipt)
        return one

    def send(self, call: RoundCall, whole: bytes, **changes: Any) -> None:
        """Send the blob of an update, which goes into one part."""
        cut = Cut.of(whole)
        assert cut.count == 1
        fields = {"run": call.run, "round": call.round, "base": call.model.digest, "blob": cut.name}
        self.tell(UpdatePart(**{**fields, "index": 0, "count": 1, "size": len(whole), "data": whole, **changes}))

    def contribute(self, call: RoundCall) -> None:
        """Send an honest update that changes nothing."""
        self.send(call, pack_update(Update(weight=10, payload=forged(call, 0.0, 0.0))))


def forged(call: RoundCall, weight: float, bias: float, *, names: tuple[str, str] = ("weight", "bias")) -> bytes:
    """Return the payload of a delta, also one that our own encoder would refuse to write."""
    nothing = {names[0]: np.zeros((1, 1), dtype="f4"), names[1]: np.zeros(1, dtype="f4")}
    honest = TensorArithmetic().encode(nothing, call.codec, 0)
    head = honest.removesuffix(packed(call, bytes(8)))
    assert len(head) < len(honest)
    return head + packed(call, np.array([bias, weight], dtype="<f4").tobytes())  # by name


def packed(call: RoundCall, body: bytes) -> bytes:
    for packer in codecs.parse(call.codec).packers:
        body = b"".join(packer.encode(iter([body]), len(body)))
    return body


def test_a_client_that_lies_is_refused_with_the_reason_and_nothing_of_it_counts(farm: Farm) -> None:
    number = farm.begin()
    liar = Played(farm, EDGE, D).ready()
    assert isinstance(liar, Played)
    liar.tell(State(state=StateName.READY, boot=1))
    farm.note(EDGE, "joined", sender=D)
    call = liar.call(number)
    nan, good = forged(call, 0.0, float("nan")), forged(call, 0.0, 1.0)
    lies: list[tuple[bytes, str]] = [
        (pack_update(Update(weight=10, payload=nan)), "'bias' holds NaN or infinity"),
        (pack_update(Update(weight=10, payload=forged(call, float("inf"), 0.0))), "'weight' holds NaN or infinity"),
        (
            pack_update(Update(weight=10, payload=forged(call, 0.0, 1.0, names=("weight", "bribe")))),
            "coded for another model",
        ),
        (pack_update(Update(weight=10, payload=good[:-1])), "zstd"),
        (pack_update(Update(weight=10, payload=good + b"more")), "zstd"),
        (pack_update(Update(weight=0, payload=good)), "weight"),
        (_repacked(good, weight=2**41), "weight"),
        (_repacked(good, weight=10, tallies={"mse": {"total": float("nan"), "count": 1.0}}), "tallies.mse"),
        (_repacked(good, weight=10, sent=-1), "sent"),
        (b"\xc1garbage", "msgpack"),
        (b"\x80garbage", "speaks protocol"),
        (bytes(250_000), "make sense here"),
    ]
    for blob, reason in lies:
        liar.send(call, blob)
        receipt = liar.receipt()
        assert (receipt.accepted, receipt.run, receipt.round) == (False, call.run, call.round)
        assert reason in receipt.reason
    liar.send(call, pack_update(Update(weight=10, payload=good)), base="0" * 16)
    assert "foreign base" in liar.receipt().reason
    honest = pack_update(Update(weight=10, payload=good))
    for _ in range(MAX_CORRUPTED):  # a bit may have fallen over on the way: it is asked for again
        liar.send(call, honest, blob="0" * 16)
        asked = liar.wait_for(lambda said: isinstance(said, Want | Receipt))
        assert asked == Want(blob="0" * 16, parts=(0,))
    liar.send(call, honest, blob="0" * 16)
    assert "does not hash to its name" in liar.receipt().reason
    assert len(farm.notes(EDGE, "corrupted", sender=D, round=f"g{number}.e1")) == MAX_CORRUPTED
    liar.send(call, pack_update(Update(weight=10, payload=nan)))
    assert "NaN" in liar.receipt().reason
    liar.send(call, pack_update(Update(weight=10, payload=nan)))
    assert "NaN" in liar.receipt().reason, "the same again is answered again, not read again"
    liar.say(f"hflb/fed1/{D}/@/up/0", b"\xc1 no part at all")
    refused = farm.notes(EDGE, "refused", sender=D, round=f"g{number}.e1")
    assert len(refused) == len(lies) + 3, "each is counted"
    assert [note["reason"] for note in refused[: len(lies)]] != [""] * len(lies)
    farm.note(EDGE, "duplicate", sender=D)
    farm.note(EDGE, "malformed", topic=f"hflb/fed1/{D}/@/up/0")

    farm.order(a="go", b="go", c="go")
    closed = farm.closed(number)
    assert (closed["accepted"], closed["asked"], closed["samples"]) == (3, 4, 30)
    assert closed["waited_for"] == f"{D} (refused: {refused[-1]['reason']})"
    assert farm.seconds_from_quorum_to_close(number) < GRACE_S, "a liar is not waited for"
    liar.tell(State(state=StateName.DISCONNECTED, boot=1))
    farm.note(EDGE, "left", sender=D)
    liar.leave()


def test_after_all_that_the_model_counts_the_rounds(farm: Farm) -> None:
    number = farm.begin()  # the clients' next round is the model's number and one: had it missed one, this would wait
    farm.order(a="go", b="go", c="go")
    assert farm.closed(number)["accepted"] == 3
    farm.note("cloud", "closed", round=f"g{number}", accepted=1, asked=1, waited_for="")
    assert not farm.notes(EDGE, "missed")
    assert farm.processes["cloud"].poll() is None
    for path in (*farm.processes, "cloud"):
        assert "Traceback" not in farm.log_path(path).read_text(), path


def _repacked(payload: bytes, **changes: Any) -> bytes:
    """The blob of an update that cannot be built."""
    fields = msgpack.unpackb(pack_update(Update(weight=1, payload=b"")))
    head: bytes = msgpack.packb({**fields, **changes})
    return head + payload


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# -------------------------------------------------------------- edges


@pytest.fixture
def grow(tmp_path: Path) -> Iterator[Callable[..., Tree]]:
    """Start brokers and edges of farms whose clients the test plays, and hand the tree over."""
    trees: list[Tree] = []

    def start(*farms: FarmPlan, tiers: tuple[Mapping[str, Any], ...], rounds: int) -> Tree:
        tree = Tree(plan_of(tmp_path, *farms, tiers=tiers, rounds=rounds), tmp_path)
        trees.append(tree)
        tree.start_brokers()
        for farm in farms:
            tree.start_edge(farm.name)
        return tree

    yield start
    for tree in trees:
        tree.stop()


def play(tree: Tree, path: str) -> Played:
    """Join a farm as one of its clients."""
    one = Played(tree, path.rpartition("/")[0], path)
    one.ready()
    one.tell(State(state=StateName.READY, boot=1))
    tree.note(path.rpartition("/")[0], "joined", sender=path)
    return one


def test_a_round_closes_at_its_deadline_and_a_run_without_quorum_says_whom_it_missed(
    grow: Callable[..., Tree],
) -> None:
    tiers = (
        {"quorum": 1, "open_for": "6 s", "retries": 0},
        {"quorum": 1, "open_for": "1500 ms", "grace": "1 min", "retries": 0},
    )
    tree = grow(farm_of("farm-a", "a", "b", "c"), tiers=tiers, rounds=5)
    a, b = play(tree, A), play(tree, B)
    tree.start_cloud()
    a.contribute(a.call(1))
    assert a.receipt().accepted
    closed = tree.note(EDGE, "closed", round="g1.e1")
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (1, 2, f"{B} (no answer)")
    assert 1.5 <= closed["seconds"] < 1.5 + 5

    # Nobody contributes; what one of them says of it comes to a terminal in the end.
    call = b.call(2)
    b.tell(Decline(run=call.run, round=call.round, reason="no light\x1b[2J\n[red]hfl: all is well"))
    assert tree.processes["cloud"].wait(LIMIT_S) == 5
    said = tree.log_path("cloud").read_text()
    assert said.startswith("hfl: g2 had 0 of the 1 updates it needs; waited for cloud/farm-a (0 of ")
    assert rf"{B} (no light\x1b[2J / [red]hfl: all is well), {A} (no answer)" in said
    assert said.count("\n") == 1
    assert tree.note(EDGE, "missed", round="g2.e1")["accepted"] == 0
    assert tree.processes[EDGE].poll() is None, "the edge waits for the next run"
    a.leave()
    b.leave()


def test_an_edge_that_leaves_in_order_is_no_longer_waited_for(grow: Callable[..., Tree]) -> None:
    tiers = ({"quorum": 1, "open_for": "5 min", "grace": "5 min"}, {"quorum": 1, "open_for": "1 min", "grace": "0 s"})
    tree = grow(farm_of("farm-a", "a"), farm_of("farm-b", "b"), tiers=tiers, rounds=1)
    a = play(tree, A)
    tree.start_cloud()
    a.contribute(a.call(1))
    tree.note("cloud", "accepted", sender="cloud/farm-a", round="g1")
    assert tree.end("cloud/farm-b", signal.SIGTERM) == 0
    tree.note("cloud", "left", sender="cloud/farm-b", life=1)
    closed = tree.note("cloud", "closed", round="g1")
    assert (closed["accepted"], closed["asked"], closed["waited_for"]) == (1, 2, "cloud/farm-b (no answer)")
    assert tree.processes["cloud"].wait(LIMIT_S) == 0
    summary = json.loads((tree.directory / "out" / "latest" / "summary.json").read_text())
    assert summary["rounds"] == 1
    a.leave()
