"""One simulated run from start to end: a federation that learns a quadratic, a plan of faults, and what came of it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hfl_mqtt.errors import Refused
from hfl_mqtt.learning.weights import digest
from hfl_mqtt.protocol.messages import Plan, Tier
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.rounds.actions import Counted, Note, RunOver
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.sim import faultplan
from hfl_mqtt.sim.faultplan import Fault
from hfl_mqtt.sim.invariants import Ledger, Tally
from hfl_mqtt.sim.quadratic import Quadratic
from hfl_mqtt.sim.simulation import Simulation
from hfl_mqtt.transport.faults import Faults

Tree = Mapping[str, Sequence[str]]


def tree_of(edges: int, clients: int) -> Tree:
    """Return a tree with so many farms, and so many devices in all, spread evenly.

    >>> tree_of(2, 3)
    {'cloud': ['farm-1', 'farm-2'], 'cloud/farm-1': ['pi-1', 'pi-2'], 'cloud/farm-2': ['pi-1']}
    """
    farms = [f"farm-{number}" for number in range(1, edges + 1)]
    sizes = [clients // edges + (number < clients % edges) for number in range(edges)]
    below = {f"cloud/{farm}": [f"pi-{n}" for n in range(1, size + 1)] for farm, size in zip(farms, sizes, strict=True)}
    return {"cloud": farms, **below}


def regular_tree(*fans: int) -> Tree:
    """Return a tree in which each node of a tier has as many children as the others: the cloud's number first.

    >>> regular_tree(1, 2, 1)["cloud/farm-1"], regular_tree(1, 2, 1)["cloud/farm-1/farm-2"]
    (['farm-1', 'farm-2'], ['pi-1'])
    """
    tree: dict[str, list[str]] = {}
    above = ["cloud"]
    for tier, fan in enumerate(fans, start=1):
        kind = "pi" if tier == len(fans) else "farm"
        names = [f"{kind}-{number}" for number in range(1, fan + 1)]
        tree |= dict.fromkeys(above, names)
        above = [f"{path}/{name}" for path in above for name in names]
    return tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A federation and what it is to do, without what goes wrong.

    Args:
        tiers: the cloud's, with the global rounds as its own, then each below it.
        seed: of the devices' goals and the cohorts.
        dice: of what the network does.
        size: numbers in the model.
        work_s: how long a device works at least and at most; each has its own pace.
        network: faults of every link and bridge, all the time.
        holders: how many processes share each farm's place by lease; 1 is one edge without a lease.
        lease_s: how long a lease lasts.
        notice_s: how long it takes until a broker notices that its bridge was cut.
        patience_s: when the run is over at the latest, after the last fault is mended.
        signed: whether all sign what counts, and check it.
    """

    tree: Tree
    tiers: tuple[Tier, ...]
    seed: int = 0
    dice: int = 0
    size: int = 8
    work_s: tuple[float, float] = (1.0, 1.0)
    network: Faults | None = None
    is_scored: bool = False
    wait_for: int | None = None
    wait_at_most_s: float = 900.0
    holders: int = 1
    lease_s: float = 15.0
    notice_s: float = 0.0
    patience_s: float = 86400.0
    signed: bool = False

    @property
    def schedule(self) -> Schedule:
        """What its cloud wants."""
        return Schedule(
            run="run-1",
            rounds=self.tiers[0].rounds,
            plan=Plan(task="quadratic", tiers=self.tiers[1:], seed=self.seed),
            tier=self.tiers[0],
            seed=self.seed,
            wait_for=len(self.tree["cloud"]) if self.wait_for is None else self.wait_for,
            wait_at_most_s=self.wait_at_most_s,
            is_scored=self.is_scored,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run; `problems` are broken invariants, one sentence each."""

    problems: list[str]
    failure: str | None
    rounds: int
    virtual_s: float
    real_s: float
    #: Updates of devices that were accepted in training: the work that was simulated.
    client_rounds: int
    train: Tally
    evaluate: Tally
    entered: dict[str, int] = field(default_factory=dict)
    #: The largest distance of a number of the model from its best value.
    error: float | None = None
    #: SHA-256 of the final model.
    model: str | None = None

    @property
    def client_rounds_per_s(self) -> float:
        """Of real time."""
        return self.client_rounds / max(self.real_s, 1e-9)


class Trial(Simulation):
    """A simulation of a setting under a plan of faults.

    Raises:
        ConfigError: a fault befalls nobody.
    """

    def __init__(self, setting: Setting, faults: Sequence[Fault] = ()) -> None:
        self.setting = setting
        self.task = Quadratic(setting.size, setting.seed)
        #: Takes each note as it comes.
        self.listener: Callable[[float, str, Note], None] | None = None
        low_s, high_s = setting.work_s
        names = [f"box-{number}" for number in range(1, setting.holders + 1)]
        super().__init__(
            setting.tree,
            schedule=setting.schedule,
            weights=self.task.initial,
            start=self.task.start,
            arithmetic=self.task.arithmetic,
            train=self.task.train,
            work_s=lambda path: low_s + (high_s - low_s) * (zlib.crc32(path.encode()) % 1000) / 1000,
            seed=setting.dice,
            faults=setting.network,
            holders={} if setting.holders == 1 else {path: names for path in setting.tree if path != "cloud"},
            lease_s=setting.lease_s,
            notice_s=setting.notice_s,
            signed=setting.signed,
        )
        self.last_fault_s = faultplan.schedule(self, faults)

    @property
    def devices(self) -> list[str]:
        """All devices, by name."""
        return [path for path in self.places if path.partition("@")[0] not in self.brokers]

    @property
    def cloud(self) -> CloudNode | None:
        """The root of the tree, where it runs."""
        shell = self.places[self.root].shell
        return shell.node if shell is not None and isinstance(shell.node, CloudNode) else None

    def finish(self) -> Result:
        """Start all nodes, run to the end, and say what came of it."""
        began_s = time.perf_counter()
        self.start()
        end = self.run(until_s=self.last_fault_s + self.setting.patience_s)
        return self.result(end, time.perf_counter() - began_s)

    def result(self, end: RunOver | None, real_s: float) -> Result:
        """Say what came of it so far."""
        ledger = Ledger.of({"node": path, "event": entry.event, **entry.fields} for _, path, entry in self.trace)
        problems = [*ledger.check(), *self._problems_of_model()]
        if end is None:
            waited_s = self.setting.patience_s
            problems.append(f"the run is not over {waited_s:g} s after the last fault: {self._standing()}")
        elif end.failure is not None:
            problems.append(f"the run failed: {end.failure}")
        cloud = self.cloud
        devices = set(self.devices)
        farms = {parent(path) for path in devices}
        return Result(
            problems=problems,
            failure=end.failure if end is not None else "not over",
            rounds=cloud.version if cloud is not None else 0,
            virtual_s=self.now_s,
            real_s=real_s,
            client_rounds=sum(count for node, count in ledger.entered.items() if node.partition("@")[0] in farms),
            train=ledger.train,
            evaluate=ledger.evaluate,
            entered=ledger.entered,
            error=self.task.error(cloud.weights, devices) if cloud is not None else None,
            model=digest(cloud.weights) if cloud is not None else None,
        )

    # -------------------------------------------------------------- the world of the nodes, and what happens to them

    def counted(self, node: Node, counted: Counted) -> None:
        """Let the device keep what coding cut off."""
        super().counted(node, counted)
        self.task.counted(node.path, counted.payload)

    def wipe(self, path: str) -> None:
        """Lose what coding cut off, too."""
        super().wipe(path)
        self.task.forget(path)

    def remark(self, path: str, entry: Note) -> None:
        """Let the listener hear it."""
        super().remark(path, entry)
        if self.listener is not None:
            self.listener(self.now_s, path, entry)

    def record(self, node: Node, entry: Note) -> None:
        """Let the listener hear it."""
        super().record(node, entry)
        if self.listener is not None:
            self.listener(self.now_s, node.client_id, entry)

    # -------------------------------------------------------------- inside

    def _problems_of_model(self) -> list[str]:
        """Versions only grow, one has one digest, and the model is what the chain leads to."""
        found: list[str] = []
        digests: dict[tuple[str, int], str] = {}
        newest: dict[str, int] = {}
        for save in self.saved:
            before = newest.get(save.run, 0)
            if not before <= save.version <= before + 1:
                found.append(f"version {save.version} was saved after version {before}")
            newest[save.run] = max(before, save.version)
            if digests.setdefault((save.run, save.version), save.digest) != save.digest:
                found.append(f"version {save.version} was saved with two digests")
        cloud = self.cloud
        chain = cloud.aggregator.downlink.chain if cloud is not None else None
        if cloud is not None and chain is not None:
            try:
                led_to = digest(self.task.arithmetic.weights(chain.model))
            except Refused as error:
                return [*found, f"the cloud's chain is broken: {error}"]
            if led_to != digest(cloud.weights):
                found.append("the cloud's model is not what its chain leads to")
        return found

    def _standing(self) -> str:
        cloud = self.cloud
        if cloud is None:
            return "the cloud is dead"
        last = next((f"{entry.event} {entry.fields}" for _, entry in reversed(self.places[self.root].notes)), "nothing")
        return f"the cloud has version {cloud.version}; its last note is {last[:300]}"
