"""The edge role: one node on the farm's broker, aggregator below and participant above. It never loads torch."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

from hfl_mqtt import __version__
from hfl_mqtt.config.models import EdgeConfig
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning import residuals
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.shelf import Shelf
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.rounds.edge import EdgeNode

#: Updates an aggregator lets the broker have outstanding with it.
RECEIVE_MAXIMUM = 20
#: From here on an allocation is its own map of the system's; glibc's name for that setting is -3.
_LARGE = 128 * 1024
_M_MMAP_THRESHOLD = -3


def make(config: EdgeConfig, record: Record) -> Process:
    """Put the process of an edge together; `Process.hold` runs it.

    Raises:
        ConfigError: the password cannot be read.
        HflError: the state directory cannot be written.
    """
    _give_memory_back()
    boot = next_boot(config.state_path(), config.name)
    info = Info(role="edge", boot=boot, parent=parent(config.name), software=f"hfl-mqtt {__version__}")
    residual = residuals.path_of(config.state_path(), config.name)
    shelf = Shelf(config.state_path())
    node = EdgeNode(
        path=config.name,
        boot=boot,
        info=info,
        arithmetic=TensorArithmetic(max_model_bytes=config.max_model, shelf=shelf),
        max_model=config.max_model,
        residual=_kept(residual, parent(config.name) or "", shelf),
        keep=shelf.keep,
    )
    process = Process(record, until_finished=config.until_finished, residual=residual)
    process.add(
        Runner(
            node,
            config.federation,
            config.account(),
            process,
            keepalive_s=int(config.broker.keepalive),
            session_expiry_s=int(config.broker.session_expiry),
            receive_maximum=RECEIVE_MAXIMUM,
        )
    )
    return process


def _give_memory_back() -> None:
    """Have glibc return what is large to the system when it is freed, instead of keeping it for the next of its size.

    A hundred megabytes in parts of 256 KiB pass through an edge in every round; what is kept of them between those that
    live longer came to as much again. Another C library knows no such thing, and needs none.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _kept(residual: Path, above: str, shelf: Shelf) -> tuple[str, Weights] | None:
    """Return what a former life of this edge kept for this parent, with the run it belongs to."""
    run = residuals.run_of(residual, above)
    weights = residuals.load(residual, run, above) if run is not None else None
    return (run, shelf.weights(weights.items())) if run is not None and weights is not None else None
