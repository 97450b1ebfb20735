from __future__ import annotations

from pathlib import Path

import pytest

from hfl_mqtt.config.models import ClientConfig, CloudConfig, EdgeConfig
from hfl_mqtt.config.roles import load_any, load_role
from hfl_mqtt.protocol.topics import parent

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    load_any(path)


@pytest.mark.parametrize(
    ("cloud", "edge", "client"),
    [("cloud", "edge", "client"), ("cloud", "edge", "clients"), ("mnist-cloud", "mnist-edge", "mnist-clients")],
)
def test_the_examples_of_one_federation_fit_together(cloud: str, edge: str, client: str) -> None:
    root = load_role(CONFIGS / f"{cloud}.yaml", CloudConfig)
    farm = load_role(CONFIGS / f"{edge}.yaml", EdgeConfig)
    leaf = load_role(CONFIGS / f"{client}.yaml", ClientConfig)
    assert root.federation == farm.federation == leaf.federation
    assert root.task.name == leaf.task.name
    assert parent(farm.name) == root.name
    assert {parent(device.name) for device in leaf.devices} == {farm.name}
