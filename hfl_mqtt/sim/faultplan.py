"""What goes wrong in a simulated federation: who, what, when, for how long; and how it is done.

A plan is data, so that it can be written in YAML, drawn at random, and printed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol.topics import carries_parts, parent
from hfl_mqtt.rounds.actions import note
from hfl_mqtt.sim.simulation import Moment, Simulation
from hfl_mqtt.transport.faults import Faults
from hfl_mqtt.transport.memory import Kept


class What(Enum):
    """What goes wrong."""

    KILL = "kill"  # the node's process; started again at the end
    WIPE = "wipe"  # the same, and its disk is lost
    POWER = "power"  # a farm's: its edge, its devices and its broker at once
    BROKER = "broker"  # an aggregator's broker is killed; started again at the end
    BRIDGE = "bridge"  # from an edge's broker to its parent's: cut
    LINK = "link"  # a node's own connection to its broker: cut
    NOISE = "noise"  # a link or bridge loses, repeats, reorders, corrupts
    SLOW = "slow"  # a link or bridge carries few bytes a second
    DISK = "disk"  # full
    NO_WORK = "no work"  # a device's training fails
    SLOW_WORK = "slow work"  # it takes longer


#: Which faults befall a broker or a bridge: of an aggregator, and of one that has a parent.
OF_AGGREGATORS = frozenset({What.POWER, What.BROKER})
OF_BRIDGES = frozenset({What.BRIDGE})
OF_DEVICES = frozenset({What.NO_WORK, What.SLOW_WORK})


class Keeps(Enum):
    """What a broker that is killed finds again: Mosquitto's persistence file is written now and then."""

    ALL = "all"
    SAVED = "saved"  # what it knew `saved_s` before it was killed
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, from `at_s` on, until it is mended after `lasts_s`; None is never.

    Args:
        who: a node's path, or a pattern such as `cloud/*/pi-1`; of a broker or bridge, the aggregator it belongs to.
        every_s: come and go, in turns of this length; None stays.
        moment: when exactly a node dies.
        keeps, saved_s: what a broker remembers.
        on_bridge: whether noise or slowness befalls the bridge above the node rather than its own link.
        factor: how much longer work takes.
    """

    who: str
    what: What
    at_s: float
    lasts_s: float | None = None
    every_s: float | None = None
    moment: Moment = Moment.NOW
    keeps: Keeps = Keeps.ALL
    saved_s: float = 10.0
    on_bridge: bool = False
    bytes_per_s: float = 8000.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    factor: float = 10.0

    def __str__(self) -> str:
        """Say it as it is written in scenario files; see `parse`."""
        said = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default:
                text = value.value.replace(" ", "-") if isinstance(value, Enum) else value
                said.append(f"{_key(one.name)}={text:g}" if isinstance(text, float) else f"{_key(one.name)}={text}")
        return " ".join(said)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read what `str` writes.

        >>> str(Fault.parse("who=cloud/farm-1 what=kill at=5 lasts=10 moment=after-commit"))
        'who=cloud/farm-1 what=kill at=5 lasts=10 moment=after-commit'

        Raises:
            ConfigError: it is no fault.
        """
        names = {_key(one.name): one for one in fields(cls)}
        given: dict[str, Any] = {}
        for word in text.split():
            key, _, value = word.partition("=")
            if key not in names:
                raise ConfigError(f"a fault has no {key!r}; it has {', '.join(names)}")
            try:
                given[names[key].name] = _read(names[key].name, value)
            except ValueError:
                raise ConfigError(f"{word!r} is no {key} of a fault") from None
        try:
            return cls(**given)
        except TypeError:
            raise ConfigError(f"a fault needs who, what and at, got {text!r}") from None

    @property
    def ends_s(self) -> float:
        """When it is over; of what is never mended, when it begins."""
        return self.at_s + (self.lasts_s or 0.0)


def _key(name: str) -> str:
    return name if name == "bytes_per_s" else name.removesuffix("_s")


def _read(name: str, text: str) -> Any:
    enums: Mapping[str, type[Enum]] = {"what": What, "moment": Moment, "keeps": Keeps}
    if name in enums:
        return enums[name](text.replace("-", " "))
    if name == "on_bridge":
        return text == "True"
    return text if name == "who" else float(text)


def befallen(fault: Fault, nodes: Collection[str], aggregators: Collection[str]) -> list[str]:
    """Return whom a fault befalls: processes, or the aggregators whose brokers and bridges fail.

    Raises:
        ConfigError: nobody of that name, or nobody to whom that can happen.
    """
    if fault.what in OF_BRIDGES or (fault.on_bridge and fault.what in (What.NOISE, What.SLOW)):
        whom, candidates = "an edge", [path for path in aggregators if parent(path) is not None]
    elif fault.what in OF_AGGREGATORS:
        whom, candidates = "the cloud or an edge", list(aggregators)
    elif fault.what in OF_DEVICES:
        whom, candidates = "a device", [name for name in nodes if name.partition("@")[0] not in aggregators]
    else:
        whom, candidates = "a process", list(nodes)
    found = [name for name in candidates if fnmatchcase(name, fault.who)]
    if found:
        return sorted(found)
    if any(fnmatchcase(name, fault.who) for name in {*nodes, *aggregators}):
        raise ConfigError(f"{fault.what.value!r} befalls {whom}, not {fault.who!r}")
    raise ConfigError(f"{fault.who!r} is no node of this federation, which has {', '.join(sorted(nodes)[:6])}, ...")


def schedule(simulation: Simulation, faults: Iterable[Fault]) -> float:
    """Put all that will go wrong on the agenda; returns when the last of it is over.

    Raises:
        ConfigError: see `befallen`.
    """
    last_s = 0.0
    for fault in faults:
        last_s = max(last_s, fault.ends_s)
        for path in befallen(fault, simulation.places, simulation.brokers):
            _schedule_one(simulation, fault, path)
    return last_s


def _schedule_one(simulation: Simulation, fault: Fault, path: str) -> None:
    begin, end = _WAYS[fault.what]

    def strike() -> None:
        _say(simulation, fault, path, "fault")
        begin(simulation, fault, path)

    def mend() -> None:
        _say(simulation, fault, path, "mended")
        end(simulation, fault, path)

    if fault.what is What.BROKER and fault.keeps is Keeps.SAVED:
        simulation.at(max(fault.at_s - fault.saved_s, 0.0), lambda: simulation.save_broker(path))
    if fault.lasts_s is None:
        simulation.at(fault.at_s, strike)
        return
    turns = [fault.at_s]
    if fault.every_s:
        later = (fault.at_s + n * fault.every_s for n in range(1, int(fault.lasts_s / fault.every_s) + 1))
        turns += [at_s for at_s in later if at_s < fault.ends_s - 1e-6]  # at the end it is mended, and stays so
    for n, at_s in enumerate(turns):
        simulation.at(at_s, mend if n % 2 else strike)
    simulation.at(fault.ends_s, mend)


def _say(simulation: Simulation, fault: Fault, path: str, event: str) -> None:
    simulation.remark(path, note(event, what=fault.what.value))


def _kill(simulation: Simulation, fault: Fault, path: str) -> None:
    simulation.kill_at(path, fault.moment)


def _wipe(simulation: Simulation, fault: Fault, path: str) -> None:
    simulation.kill_at(path, fault.moment, lambda: simulation.wipe(path))


def _start(simulation: Simulation, fault: Fault, path: str) -> None:
    if fault.moment is not Moment.NOW:  # where its moment has not come, it does not come any more
        simulation.spare(path)
    simulation.start_node(path)


def _power_off(simulation: Simulation, fault: Fault, path: str) -> None:
    _stop_broker(simulation, fault, path)
    for one in _farm(simulation, path):
        simulation.kill(one)


def _power_on(simulation: Simulation, fault: Fault, path: str) -> None:
    _start_broker(simulation, fault, path)
    for one in _farm(simulation, path):
        simulation.start_node(one)


def _farm(simulation: Simulation, path: str) -> list[str]:
    """Return who is on the same supply: an aggregator and its devices, but no aggregator below it."""
    return [
        name
        for name in simulation.places
        if (one := name.partition("@")[0]) == path or (parent(one) == path and one not in simulation.brokers)
    ]


def _stop_broker(simulation: Simulation, fault: Fault, path: str) -> None:
    if fault.keeps is Keeps.ALL:
        simulation.save_broker(path)
    simulation.brokers[path].kill()


def _start_broker(simulation: Simulation, fault: Fault, path: str) -> None:
    simulation.brokers[path].begin(Kept() if fault.keeps is Keeps.NOTHING else simulation.kept.get(path))


def _cut_bridge(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.bridges[path].cut()


def _mend_bridge(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.bridges[path].restore()


def _cut_link(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.cut_off(path, is_cut=True)


def _mend_link(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.cut_off(path, is_cut=False)


def _trouble(simulation: Simulation, fault: Fault, path: str) -> None:
    usual = simulation.faults or Faults()
    if fault.what is What.SLOW:
        faults = replace(usual, bytes_per_s=fault.bytes_per_s)
    else:
        faults = replace(
            usual,
            loss=fault.loss,
            duplication=fault.duplication,
            reordering=fault.reordering,
            held_s=(0.0, 5.0),
            corruption=fault.corruption,
            # TCP and JSON tell corruption of what people read; what is corrupted on a disk or by a proxy are weights.
            where=(lambda _link, topic: carries_parts(topic)) if fault.corruption else usual.where,
        )
    if fault.on_bridge:
        simulation.bridges[path].faults = faults
    else:
        simulation.trouble(path, faults)


def _calm(simulation: Simulation, fault: Fault, path: str) -> None:
    if fault.on_bridge:
        simulation.bridges[path].faults = simulation.faults
    else:
        simulation.trouble(path, None)


def _fill_disk(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.places[path].is_disk_full = True


def _clear_disk(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.places[path].is_disk_full = False


def _fail_work(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.places[path].fails_with = "the trainer broke"


def _mend_work(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.places[path].fails_with = None


def _slow_work(simulation: Simulation, fault: Fault, path: str) -> None:
    simulation.places[path].slowness = fault.factor


def _usual_work(simulation: Simulation, _fault: Fault, path: str) -> None:
    simulation.places[path].slowness = 1.0


_Do = Callable[[Simulation, Fault, str], None]
#: How each begins, and how it is mended.
_WAYS: Mapping[What, tuple[_Do, _Do]] = {
    What.KILL: (_kill, _start),
    What.WIPE: (_wipe, _start),
    What.POWER: (_power_off, _power_on),
    What.BROKER: (_stop_broker, _start_broker),
    What.BRIDGE: (_cut_bridge, _mend_bridge),
    What.LINK: (_cut_link, _mend_link),
    What.NOISE: (_trouble, _calm),
    What.SLOW: (_trouble, _calm),
    What.DISK: (_fill_disk, _clear_disk),
    What.NO_WORK: (_fail_work, _mend_work),
    What.SLOW_WORK: (_slow_work, _usual_work),
}
