"""Where roles keep what coding cut off: a file per node, of an accepted update, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hfl_mqtt.learning import residuals
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.roles.process import Process
from hfl_mqtt.roles.shell import Shell
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Counted, Note
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.transport.memory import MemoryBroker, MemoryLink

EDGE, CLIENT = "cloud/a", "cloud/a/1"
UPDATE = "a" * 16
OWED = {"w": np.array([1, 2], dtype="f4")}


def ignore(path: str, entry: Note) -> None:
    pass


def shell(node: Node, process: Process) -> Shell:
    return Shell(node, "fed1", MemoryLink(MemoryBroker("cloud/a"), node.path, [], lambda _event: None), process)


def client(path: str) -> ClientNode:
    return ClientNode(path=path, boot=1, info=Info(role="client", boot=1))


def owed(path: Path, parent: str) -> list[float] | None:
    found = residuals.load(path, "r1", parent)
    return None if found is None else found["w"].tolist()


def test_an_accepted_update_keeps_the_residual_of_its_own_device_and_of_no_other(tmp_path: Path) -> None:
    files = {path: residuals.path_of(tmp_path, path) for path in (CLIENT, "cloud/a/2")}
    for path in files.values():
        residuals.save(residuals.pending(path, UPDATE), OWED, "r1", EDGE)
    workshop = Workshop("line", {}, residual=files.__getitem__)
    try:
        process = Process(ignore, workshop=workshop)
        shell(client(CLIENT), process).perform([Counted(work_id="w", payload=UPDATE)])
        assert owed(files[CLIENT], EDGE) == [1, 2]
        assert owed(files["cloud/a/2"], EDGE) is None
    finally:
        workshop.close()


def test_a_workshop_that_keeps_nothing_is_told_in_vain() -> None:
    workshop = Workshop("line", {})
    try:
        shell(client(CLIENT), Process(ignore, workshop=workshop)).perform([Counted(work_id="w", payload=UPDATE)])
    finally:
        workshop.close()
