"""A federation of real processes: every part can be killed, brought back, slowed, cut, and watched for a moment."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hfl_mqtt.errors import HflError, Malformed
from hfl_mqtt.ops import children, journal
from hfl_mqtt.ops.brokers import password_hash
from hfl_mqtt.ops.federation import HOST, Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.ops.mosquitto import Mosquitto
from hfl_mqtt.protocol.messages import Message
from hfl_mqtt.protocol.wire import Frame, decode
from tests.broker.sites import WITNESS, Person

TASK = Path(__file__).with_name("counting.py")
FEDERATION = "chaos"
#: How long anything may take that is not slow by intention.
LIMIT_S = 90.0
EDGE_A, EDGE_B = "cloud/farm-a", "cloud/farm-b"
A1, A2, B1, B2 = f"{EDGE_A}/a1", f"{EDGE_A}/a2", f"{EDGE_B}/b1", f"{EDGE_B}/b2"
PLACES = {A1: 0, A2: 1, B1: 2, B2: 3}
#: Farms wait for all their devices, the cloud for all its farms; what comes too late counts in the next round.
PATIENT = (
    {"quorum": "100 %", "open_for": "3 min", "late": "next"},
    {"quorum": "100 %", "open_for": "3 min", "late": "next"},
)
Wrap = Callable[[list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as a witness heard it."""

    message: Message
    path: str


def plan(
    *,
    rounds: int = 4,
    tiers: Sequence[Mapping[str, Any]] = PATIENT,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    is_split: bool = True,
    **cloud: Any,
) -> RunPlan:
    """Return a run of two farms with two devices each; those of farm-a have a process each.

    Args:
        rounds: global ones.
        tiers: the cloud's and the edges'.
        data: further data options by device.
        is_split: whether the devices of farm-a have processes of their own.
        cloud: further keys of the cloud's YAML.
    """
    farms: dict[str, list[Device]] = {EDGE_A: [], EDGE_B: []}
    for path, place in PLACES.items():
        farm, _, name = path.rpartition("/")
        options = {"place": place, "name": name, **(data or {}).get(path, {})}
        farms[farm].append(Device(name=name, data=options))
    return RunPlan(
        farms=tuple(
            FarmPlan(name=farm.rpartition("/")[2], devices=tuple(devices), is_split=is_split and farm == EDGE_A)
            for farm, devices in farms.items()
        ),
        task={"file": str(TASK)},
        rounds=rounds,
        seed=1,
        tiers=tuple(tiers),
        evaluate=False,
        federation=FEDERATION,
        cloud=cloud,
    )


class Tree(LocalFederation):
    """Brokers, relays and processes, and what can happen to them.

    Args:
        what: what to run.
        directory: where everything is written.
        floats: values in the model beside its ledger; 4 bytes each, and hard to compress.
        extra: further keys of a process's YAML, by its name; "*" is for all.
        wrap: what a process is started through, by its name, e.g. `unshare`.
        environment: further environment of all processes.
        before: called when the brokers are rendered and before they are started.
    """

    def __init__(
        self,
        what: RunPlan,
        directory: Path,
        *,
        floats: int = 1000,
        extra: Mapping[str, Mapping[str, Any]] | None = None,
        wrap: Mapping[str, Wrap] | None = None,
        environment: Mapping[str, str] | None = None,
        before: Callable[[Tree], None] = lambda _tree: None,
    ) -> None:
        super().__init__(what, directory, is_metered=True)
        self.orders = directory / "orders"
        self.orders.mkdir()
        self.extra = dict(extra or {})
        self.wrap = dict(wrap or {})
        self._before = before
        self.environment = {
            "OMP_NUM_THREADS": "1",
            "HFL_CHAOS_FLOATS": str(floats),
            "HFL_CHAOS_HOME": str(self.orders),
            **(environment or {}),
        }
        self._witnesses: dict[str, Witness] = {}
        #: Processes that ended because we wanted it.
        self._ended: set[str] = set()
        #: Nodes that were killed, once for each time.
        self.killed: list[str] = []
        self._seen: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    # -------------------------------------------------------------- start and end

    def start(self, *, with_cloud: bool = True) -> None:
        """Start everything, the cloud once all edges and devices are there."""
        self.start_brokers()
        self.start_farms()
        self.await_all_joined()
        if with_cloud:
            self.start_cloud()

    def start_brokers(self) -> None:
        """Start all brokers, with a witness admitted at each."""
        self.render_brokers()
        for broker in self.brokers.values():
            _admit_witness(broker.conf_path.parent)
        self._before(self)
        super().start_brokers()
        for name, broker in self.brokers.items():
            self._witnesses[name] = Witness(broker.port)

    def await_all_joined(self) -> None:
        """Wait until each edge has heard all its devices."""
        for path in self.plan.clients:
            self.note(path.rpartition("/")[0], "joined", sender=path)

    def stop(self) -> None:
        """End everything. Idempotent."""
        for witness in self._witnesses.values():
            witness.leave()
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
        super().stop()

    def await_end(self, limit_s: float = LIMIT_S) -> None:
        """Wait until the cloud has ended well.

        Raises:
            HflError: it failed, or did not end.
        """
        self.until(lambda: self.check_cloud() is not None, "the cloud's end", limit_s)

    def until(self, is_so: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        """Look again and again until it is so.

        Raises:
            HflError: it was not within `limit_s`, or a process ended that nobody killed.
        """

        def look() -> object:
            for name, process in self.processes.items():
                status = process.poll()
                if status is not None and name != "cloud" and name not in self._ended:
                    tail = children.log_tail(self.log_path(name))
                    raise HflError(f"{name} {children.end_of(status)}, while waiting for {what}{tail}")
            return is_so()

        wait_until(look, what, limit_s)

    # -------------------------------------------------------------- processes

    def kill(self, *names: str) -> None:
        """Kill processes as a pulled plug does, all at once."""
        self._ended |= set(names)
        self.killed += [name.partition("#")[0] for name in names]
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes[name].wait()

    def restart(self, *names: str) -> None:
        """Start processes again that have ended."""
        self._ended -= set(names)
        for name in names:
            if name == "cloud":
                self.start_cloud()
            elif name.count("/") == 1:
                self.start_edge(name.rpartition("/")[2])
            else:
                self.start_client(name)

    def start_twin(self, name: str, twin: str, more: Mapping[str, Any] | None = None) -> None:
        """Start a second process under a node's name, with a state folder of its own, known as `twin` here."""
        original, kept = self.processes.pop(name), self.extra.get(name, {})
        self.extra[name] = {**kept, "state_dir": str(self.state_path(twin)), **(more or {})}
        self.restart(name)
        self.processes[twin] = self.processes.pop(name)
        self.processes[name], self.extra[name] = original, dict(kept)

    def _start(self, role: str, name: str, broker: str, settings: Mapping[str, Any]) -> None:
        """Write a process's YAML and start it, as the federation does, with what is particular here."""
        file_name = name.replace("/", "-").replace("*", "clients")
        document: dict[str, Any] = {
            "role": role,
            "federation": self.plan.federation,
            **({"name": name} if role != "client" else {}),
            "broker": {"host": HOST, "port": self._port(role, broker)},
            "state_dir": str(self.state_path(name)),
            **settings,
        }
        if role != "client":
            document["broker"]["password_file"] = str(self.secret_path(name))
        for more in (self.extra.get("*", {}), self.extra.get(name, {})):
            document["broker"] |= more.get("broker", {})
            document |= {key: value for key, value in more.items() if key != "broker"}
        config_path = self.directory / f"{file_name}.yaml"
        config_path.write_text(yaml.safe_dump(document, sort_keys=False))
        command = [sys.executable, "-m", "hfl_mqtt.cli", role, "--config", str(config_path), "--quiet"]
        if name in self.wrap:
            command = self.wrap[name](command)
        self.processes[name] = children.start(command, self.log_path(name), {**os.environ, **self.environment})

    def state_path(self, name: str) -> Path:
        """Return the state folder of a process."""
        return self.directory / "state" / name.replace("/", "-").replace("*", "clients")

    # -------------------------------------------------------------- brokers

    def kill_broker(self, name: str, *, is_saved: bool) -> None:
        """Kill a broker; what it keeps on disk is as of this moment, or gone."""
        broker = self.brokers[name]
        data = broker.conf_path.parent / "data" / "mosquitto.db"
        if is_saved:
            before = data.stat().st_mtime_ns if data.exists() else 0
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGUSR1)
            wait_until(lambda: data.exists() and data.stat().st_mtime_ns > before, f"{name} to save")
        broker.kill()
        if not is_saved:
            data.unlink(missing_ok=True)

    def restart_broker(self, name: str) -> None:
        """Start a broker again."""
        wait_until(lambda: _starts(self.brokers[name]), f"the port of {name}'s broker to be free")

    # -------------------------------------------------------------- what is seen

    def notes(self, node: str, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return a node's notes so far."""
        wanted = {"node": node, "event": event, **fields}
        return [
            note
            for path in self.journals()
            if not any(parent.is_symlink() for parent in path.parents)
            for note in self._read(path)
            if all(note.get(name) == value for name, value in wanted.items())
        ]

    def note(self, node: str, event: str, limit_s: float = LIMIT_S, **fields: object) -> dict[str, Any]:
        """Wait for a node's note, and return the first such."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(self.notes(node, event, **fields))
            return bool(found)

        self.until(look, f"{node}: {event} {fields}", limit_s)
        return found[0]

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """Read a journal, where it has grown since it was last looked at."""
        size = path.stat().st_size
        kept = self._seen.get(path)
        if kept is None or kept[0] != size:
            kept = self._seen[path] = size, list(journal.read(path))
        return kept[1]

    def closed(self) -> int:
        """Return how many global rounds have closed so far."""
        return len({(note["run"], note["round"]) for note in self.notes("cloud", "closed")})

    def await_closed(self, count: int, limit_s: float = LIMIT_S) -> None:
        """Wait until so many global rounds have closed."""
        self.until(lambda: self.closed() >= count or self.check_cloud() is not None, f"{count} closed rounds", limit_s)

    def witness(self, broker: str) -> Witness:
        """Return who hears everything at a broker."""
        return self._witnesses[broker]

    # -------------------------------------------------------------- training on order

    def hold(self, *names: str, number: int = 2) -> None:
        """Let devices train on in a global round until they are released."""
        for name in names:
            (self.orders / f"{name}.{number - 1}.hold").touch()

    def release(self, *names: str) -> None:
        """Let devices finish their training."""
        for name in names:
            for order in self.orders.glob(f"{name}.*.hold"):
                order.unlink()

    def trainings(self, name: str, number: int) -> int:
        """Return how often a device has begun to train in a global round."""
        mark = self.orders / f"{name}.{number - 1}.training"
        return mark.read_text().count("\n") if mark.exists() else 0

    def await_training(self, name: str, number: int) -> None:
        """Wait until a device trains in a global round."""
        self.until(lambda: self.trainings(name, number) > 0, f"{name} to train in g{number}")

    def trained_again(self) -> int:
        """Return how many trainings were done more than once."""
        return sum(path.read_text().count("\n") - 1 for path in self.orders.glob("*.training"))


class Witness(Person):
    """An account that hears everything at one broker."""

    def __init__(self, port: int) -> None:
        super().__init__(port, WITNESS, WITNESS, "hfl/#", "hflb/#")
        self.ready()

    def until(self, is_it: Callable[[Heard], bool], what: str, limit_s: float = LIMIT_S) -> Heard:
        """Return the first message that is it, of those heard since the last that was.

        Raises:
            HflError: none came within `limit_s`.
        """
        give_up_s = time.monotonic() + limit_s
        while True:
            try:
                one = self.heard.get(timeout=max(0.0, give_up_s - time.monotonic()))
            except queue.Empty:
                raise HflError(f"waited {limit_s:g} s for {what}") from None
            if one.retain or not one.payload:
                continue
            try:
                message, topic = decode(Frame(topic=one.topic, payload=bytes(one.payload)))
            except Malformed:
                continue
            if is_it(heard := Heard(message, topic.path)):
                return heard


@contextmanager
def running(what: RunPlan, directory: Path, *, with_cloud: bool = True, **options: Any) -> Iterator[Tree]:
    """Start a federation in a folder of its own; it is ended after."""
    directory.mkdir(parents=True)
    tree = Tree(what, directory, **options)
    try:
        tree.start(with_cloud=with_cloud)
        yield tree
    finally:
        tree.stop()


def with_rounds(what: RunPlan, rounds: int) -> RunPlan:
    """Return a plan with so many rounds."""
    return replace(what, rounds=rounds)


def wait_until(is_so: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again until it is so.

    Raises:
        HflError: it was not within `limit_s`.
    """
    give_up_s = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > give_up_s:
            raise HflError(f"waited {limit_s:g} s for {what}")
        time.sleep(0.01)


def is_root() -> bool:
    """Whether namespaces and mounts are ours to make."""
    return os.geteuid() == 0 and shutil.which("unshare") is not None


def _starts(broker: Mosquitto) -> bool:
    try:
        broker.start()
    except HflError:
        return False
    return True


def _admit_witness(broker_dir: Path) -> None:
    with (broker_dir / "passwd").open("a") as passwd:
        passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
    with (broker_dir / "acl").open("a") as acl:
        acl.write(f"user {WITNESS}\ntopic readwrite #\n")
