"""The edge role: one node on the farm's broker, aggregator below and participant above. It never loads torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress

from hfl_mqtt import __version__
from hfl_mqtt.config.models import EdgeConfig, LeaseConfig
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.shelf import Shelf
from hfl_mqtt.protocol.limits import PART_SIZE, RECEIVE_MAXIMUM
from hfl_mqtt.protocol.messages import Buffer, Info
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles import identities
from hfl_mqtt.roles.opening import Opened, opened
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.rounds.actions import note
from hfl_mqtt.rounds.conduct import Bounds
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.lease import Leased
from hfl_mqtt.rounds.signing import Signer

#: From here on an allocation is its own map of the system's, as one that holds a part is.
_LARGE = PART_SIZE
#: What glibc calls these settings.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


def make(config: EdgeConfig, record: Record) -> Process:
    """Put the process of an edge together; `Process.hold` runs it.

    Raises:
        ConfigError: the password cannot be read, or the identity is of another node.
        HflError: the state directory cannot be written.
    """
    _give_memory_back()
    account, path, lease = config.account(), config.state_path(), config.lease
    signer = identities.load(config.identity, config.federation, config.name)
    # Of a leased edge neither boots nor states are this process's to say before it leads.
    nodes, accounts = ({config.name: path}, {config.name: account}) if lease is None else ({}, {})
    ready = opened(path, nodes, config.federation, accounts)
    try:
        process = Process(record, vault=ready.vault, until_finished=config.until_finished)
        if ready.vault.damage:
            record(config.name, note("damaged", reason=ready.vault.damage))
        process.add(
            Runner(
                _node(config, ready, signer) if lease is None else _leased(config, ready, signer, lease),
                config.federation,
                account,
                process,
                keepalive_s=int(config.broker.keepalive),
                session_expiry_s=int(config.broker.session_expiry),
                receive_maximum=RECEIVE_MAXIMUM,
            )
        )
    except BaseException:
        ready.vault.close()
        raise
    return process


def _node(config: EdgeConfig, ready: Opened, signer: Signer | None) -> EdgeNode:
    shelf = Shelf(config.state_path())
    return _single(config, shelf, signer, ready.boots[config.name], ready.vault.of(config.name))


def _leased(config: EdgeConfig, ready: Opened, signer: Signer | None, lease: LeaseConfig) -> Leased:
    shelf = Shelf(config.state_path())
    return Leased(
        path=config.name,
        holder=lease.holder,
        for_s=lease.lasts,
        make=lambda epoch, saved: _single(config, shelf, signer, epoch, saved),
        saved=lambda: ready.vault.latest(config.name),
        signer=signer,
    )


def _single(
    config: EdgeConfig, shelf: Shelf, signer: Signer | None, boot: int, saved: Mapping[str, Buffer]
) -> EdgeNode:
    info = Info(role="edge", boot=boot, parent=parent(config.name), software=f"hfl-mqtt {__version__}")
    return EdgeNode(
        path=config.name,
        boot=boot,
        info=info,
        arithmetic=TensorArithmetic(max_model_bytes=config.max_model, shelf=shelf),
        max_model=config.max_model,
        keep=shelf.keep,
        saved=saved,
        signer=signer,
        bounds=Bounds(**config.limits.given()),
    )


def _give_memory_back() -> None:
    """Have glibc return what is large to the system when it is freed, instead of keeping it for the next of its size.

    A hundred megabytes in parts of 256 KiB pass through an edge in every round; what is kept of them between those that
    live longer came to as much again. What is smaller is kept, for its pages cost a fault each: of a model of 180 KB a
    fifth of the edge's time. Nor has each thread a heap of its own, which takes 0.4 MB, for one runs at a time. Another
    C library knows no such things, and needs none.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_M_ARENA_MAX, 1)
