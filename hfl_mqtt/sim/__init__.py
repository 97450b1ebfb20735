"""A whole federation in one thread under a virtual clock: the real nodes over memory links, equal for equal seeds."""

from hfl_mqtt.sim.faultplan import Fault, Keeps, What
from hfl_mqtt.sim.invariants import Ledger
from hfl_mqtt.sim.papers import FEDERATION
from hfl_mqtt.sim.simulation import Moment, Place, Simulation, Train
from hfl_mqtt.sim.trial import Result, Setting, Trial, tree_of

__all__ = [
    "FEDERATION",
    "Fault",
    "Keeps",
    "Ledger",
    "Moment",
    "Place",
    "Result",
    "Setting",
    "Simulation",
    "Train",
    "Trial",
    "What",
    "tree_of",
]
