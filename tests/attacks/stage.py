"""A federation of real processes and brokers, certificates and signatures everywhere, with enemies among its devices.

A cloud, one farm, two honest devices, and as many others as there are attacks: each attack has the papers of a device
of its own, as a thief of that board has them. Every honest training adds one to the model's only number, so the model
counts the rounds, and one wrong update would show in it.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from hfl_mqtt.fleet.rehearsal import Rehearsal
from hfl_mqtt.ops import journal
from hfl_mqtt.ops.brokers import password_hash
from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.protocol.messages import Identity as Shown
from hfl_mqtt.protocol.messages import Message, Receipt, RoundCall, State, StateName, UpdatePart
from hfl_mqtt.protocol.wire import Frame, decode, encode
from hfl_mqtt.transport.tls import context_of
from hfl_mqtt.trust.identity import Identity
from tests.broker.processes import until
from tests.broker.sites import WITNESS, Person

FEDERATION = "fed1"
FARM, CLOUD = "cloud/farm-a", "cloud"
HONEST = ("pi-1", "pi-2")
PI = f"{FARM}/{HONEST[0]}"
#: How long a first quarantine lasts here.
QUARANTINE_S = 4.0

TASK = """\
import threading

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("mse", higher_is_better=False)


def model():
    counter = torch.nn.Linear(100, 100)
    with torch.no_grad():
        counter.weight.zero_()
        counter.bias.zero_()
    return counter


def data(options):
    return (torch.ones(2, 100), torch.ones(2, 100)), None


def loss(output, target):
    return ((output - target) ** 2).mean()


def score(output, target):
    return ((output - target) ** 2).mean(1)


def train(model, data, plan, stop):
    threading.Event().wait(0.2)
    with torch.no_grad():
        model.bias += 1.0
    return TrainResult(loss=0.5, samples=10, steps=1)
"""


class Enemy(Person):
    """Somebody with the papers of a device, who says what they like to its farm's broker."""

    def __init__(self, stage: Stage, path: str, *filters: str) -> None:
        account = stage.account(path, FARM)
        assert account.tls is not None
        self.path = path
        papers = stage.papers_dir(path)
        self.signer = Identity.load(papers / "node.card", papers / "node.key", papers / "fleet.pub")
        commands = f"hfl/{FEDERATION}/{path}/@/cmnd/#"
        super().__init__(account.port, path, None, commands, *filters, tls=context_of(account.tls))
        self.ready()

    def join(self) -> Enemy:
        """Say who is there, as an honest device does."""
        self.send(Shown(card=self.signer.card))
        self.send(State(state=StateName.READY, boot=1))
        return self

    def send(self, message: Message) -> str:
        """Say a message of the protocol on the own path; the broker's answer."""
        frame = encode(message, FEDERATION, self.path).whole()
        return self.say(frame.topic, frame.payload, retain=frame.retain)

    def send_parts(self, parts: Sequence[UpdatePart]) -> None:
        """Say an update."""
        for part in parts:
            self.send(part)

    def receipt(self) -> Receipt:
        """Wait for what is said to an update of ours."""
        topic = f"hfl/{FEDERATION}/{self.path}/@/cmnd/receipt"
        message, _ = decode(Frame(topic=topic, payload=bytes(self.hear(topic)[-1].payload)))
        assert isinstance(message, Receipt)
        return message

    def part(self) -> None:
        """Leave in order."""
        self.send(State(state=StateName.DISCONNECTED, boot=1))
        self.leave()


class Stage(LocalFederation):
    """The federation, and what can be seen of it.

    Args:
        directory: where everything is written.
        enemies: names of devices whose papers attacks use.
    """

    def __init__(self, directory: Path, enemies: Sequence[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        task = directory / "task.py"
        task.write_text(TASK)
        devices = tuple(Device(name=name, data={}) for name in (*HONEST, *enemies))
        plan = RunPlan(
            farms=(FarmPlan(name="farm-a", devices=devices),),
            task={"file": str(task)},
            rounds=10_000,
            seed=0,
            tiers=({"open_for": "60 s"}, {"quorum": 2, "grace": "0.1 s", "open_for": "30 s"}),
            evaluate=False,
            federation=FEDERATION,
        )
        self.rehearsal = Rehearsal(directory / "authority", FEDERATION)
        super().__init__(plan, directory, papers=self.rehearsal)
        self._people: list[Person] = []

    def start(self) -> None:
        """Start everything and wait until the first rounds are done."""
        self.render_brokers()
        self._admit_witness("farm-a")
        self.start_brokers()
        self.start_farms()
        self.start_cloud()
        self.goes_on()

    def start_edge(self, farm: str) -> None:
        """Start the edge, with quarantines of seconds."""
        limits = {"quarantine": f"{QUARANTINE_S} s", "max_quarantine": "60 s"}
        path = f"{CLOUD}/{farm}"
        self._start("edge", path, path, {"until_finished": False, "limits": limits})

    def start_client(self, name: str) -> None:
        """Start the honest devices, all in one process."""
        clients = [{"name": f"{FARM}/{device}", "data": {}} for device in HONEST]
        self._start("client", name, FARM, {"clients": clients, "task": dict(self.plan.task)})

    def stop(self) -> None:
        """End everything. Idempotent."""
        for person in self._people:
            person.leave()
        self._people.clear()
        super().stop()

    # -------------------------------------------------------------- enemies

    def enemy(self, name: str, *filters: str) -> Enemy:
        """Connect with the papers of one of the enemies' devices."""
        one = Enemy(self, f"{FARM}/{name}", *filters)
        self._people.append(one)
        return one

    def rogue(self, *filters: str) -> Person:
        """Connect as whoever has taken the farm's broker over: may say and hear everything there."""
        ca = self.papers_dir(PI) / "ca.crt"
        port = self._viewer_ports[FARM]
        one = Person(port, WITNESS, WITNESS, *filters, tls=ssl.create_default_context(cafile=str(ca))).ready()
        self._people.append(one)
        return one

    def _admit_witness(self, broker: str) -> None:
        folder = self._broker_dir / broker
        with (folder / "passwd").open("a") as passwd:
            passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
        with (folder / "acl").open("a") as acl:
            acl.write(f"user {WITNESS}\ntopic readwrite #\n")

    # -------------------------------------------------------------- what can be seen

    def notes(self, node: str, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return a node's notes so far."""
        wanted = {"node": node, "event": event, **fields}
        return [
            record
            for path in self.journals()
            for record in journal.read(path)
            if all(record.get(name) == value for name, value in wanted.items())
        ]

    def note(self, node: str, event: str, *, after: int = 0, **fields: object) -> dict[str, Any]:
        """Wait for a node's note, beyond so many that there were before, and return it."""
        return until(lambda: self.notes(node, event, **fields)[after:], f"{node} {event} {fields}")[0]

    def said_by_broker(self, text: str) -> str:
        """Wait for a line of the farm's broker with this in it, and return it without its time."""
        log = self.brokers[FARM].log_path
        lines = until(lambda: [line for line in log.read_text().splitlines() if text in line], f"{text} in {log.name}")
        return lines[-1].partition(": ")[2]

    def retained(self, topic: str) -> dict[str, Any]:
        """Return what people see on a topic of the farm's broker now."""
        full = f"hfl/{FEDERATION}/{topic}"
        rogue = self.rogue(full)
        try:
            found: dict[str, Any] = json.loads(rogue.hear(full)[-1].payload)
            return found
        finally:
            rogue.leave()
            self._people.remove(rogue)

    def call(self) -> RoundCall:
        """Return the edge's call that is out now."""
        topic = f"hfl/{FEDERATION}/{FARM}/@/stat/round"
        rogue = self.rogue(topic)
        try:
            message, _ = decode(Frame(topic=topic, payload=bytes(rogue.hear(topic)[-1].payload)))
        finally:
            rogue.leave()
            self._people.remove(rogue)
        assert isinstance(message, RoundCall)
        return message

    def closed(self) -> list[dict[str, Any]]:
        """Return the rounds that the edge has closed so far."""
        return self.notes(FARM, "closed")

    def goes_on(self, rounds: int = 2) -> float:
        """Wait until so many more rounds are closed with both honest devices in them; returns seconds for one."""
        before, began_s = len(self.closed()), time.monotonic()
        closed = until(lambda: self.closed()[before + rounds :], f"{rounds} more rounds")
        assert closed[0]["accepted"] >= len(HONEST), closed[0]
        return (time.monotonic() - began_s) / (rounds + 1)

    def edge_memory_mb(self) -> float:
        """Return the resident memory of the edge's process."""
        return float(psutil.Process(self.processes[FARM].pid).memory_info().rss) / 1e6

    def edge_cpu_s(self) -> float:
        """Return the processor time that the edge's process has taken so far."""
        times = psutil.Process(self.processes[FARM].pid).cpu_times()
        return float(times.user + times.system)

    def count(self) -> tuple[float, int]:
        """Return the model's number as it was last saved, and the rounds that the cloud has closed: they are equal."""
        self.stop_nodes()
        (model,) = self.directory.glob("out/*/model.safetensors")
        weights = load_file(model)
        rounds = len([note for note in self.notes(CLOUD, "closed") if note.get("kind") == "train"])
        return float(weights["bias"][0]), rounds


@contextmanager
def staged(directory: Path, enemies: Sequence[str]) -> Iterator[Stage]:
    """Run the federation for as long as the block."""
    stage = Stage(directory, enemies)
    try:
        stage.start()
        yield stage
    finally:
        stage.stop()
