"""Bundles as a fleet's operator makes them, small ones."""

from __future__ import annotations

from pathlib import Path

from hfl_mqtt.fleet import bundle

CLIENT = """\
role: client
federation: fed1
name: cloud/farm-a/pi-1
broker: {host: farm-a.local}
task: {name: soil-moisture}
data: {station: "03047"}
"""
EDGE = """\
role: edge
federation: fed1
name: cloud/farm-a
broker: {host: localhost}
"""


def make(path: Path, agent: str = CLIENT, **files: bytes) -> Path:
    """Write a bundle with this agent.yaml; `node_key=` stands for node.key."""
    named = {name.replace("_", "."): data for name, data in files.items()}
    bundle.write(path, {"agent.yaml": agent.encode(), **named})
    return path
