"""The same fleet on one machine: other hosts and ports, and nothing else."""

import socket
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.site import Site
from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.local import LocalFleet, at_home, count_ports, running
from hfl_mqtt.fleet.render import render
from hfl_mqtt.fleet.sitefile import Home, add_device, add_farm, create


def site(**changes: Any) -> Site:
    below = [{"name": "farm-a", "devices": ["pi-1"]}]
    fields = {
        "federation": "fed1",
        "security": "mtls",
        "cloud": {"host": "cloud.example", "websockets_port": 9001},
        "farms": [{"name": "north", "host": "north.example", "uplink": "tunnel:7001", "farms": below}],
    }
    return Site.model_validate(fields | changes)


def test_every_listener_has_a_port_of_its_own_and_every_bridge_goes_to_the_broker_above() -> None:
    assert count_ports(site()) == 7
    cloud, north, farm = (broker.place for broker in at_home(site(), iter(range(101, 108))).brokers())
    assert [(one.host, one.bind) for one in (cloud, north, farm)] == [("127.0.0.1", "127.0.0.1")] * 3
    assert (cloud.port, cloud.viewer_port, cloud.websockets_port) == (101, 102, 103)
    assert (north.port, north.viewer_port, getattr(north, "uplink", "")) == (104, 105, "127.0.0.1:101")
    assert (farm.port, farm.viewer_port, getattr(farm, "uplink", "")) == (106, 107, "127.0.0.1:104")


def test_without_certificates_there_is_one_listener_each() -> None:
    plain = site(security="passwords", cloud={"host": "h"})
    assert count_ports(plain) == 3


def test_everybodys_yaml_loads_and_who_has_no_key_here_stays_away(tmp_path: Path) -> None:
    home = create(tmp_path / "orchard", "orchard", cloud_host="cloud.example", security="mtls")
    Authority.create(home.authority(home.load()), "orchard")
    add_farm(home, "farm-a", devices=["pi-1", "pi-2"])
    add_device(home, "own", farm="farm-a", keeps_key=True)
    render(home, confirm=lambda _: False)
    fleet = LocalFleet(home, first_port=20_001)
    fleet.write()
    assert fleet.nodes("edge") == ["cloud/farm-a"]
    assert fleet.nodes("client") == ["cloud/farm-a/pi-1", "cloud/farm-a/pi-2"]
    cloud, devices = load_any(fleet.config("cloud")), load_any(fleet.config("cloud/farm-a/_devices"))
    assert getattr(cloud, "broker").port == 20_001  # noqa: B009  (its type is the file's to say)
    assert [device.name for device in getattr(devices, "devices")] == fleet.nodes("client")  # noqa: B009
    before = {path: path.read_bytes() for path in home.local.rglob("*") if path.is_file()}
    LocalFleet(home, first_port=20_001).write()
    assert {path: path.read_bytes() for path in home.local.rglob("*") if path.is_file()} == before


@pytest.fixture
def small(tmp_path: Path) -> Home:
    """A rendered fleet of one farm, with four listeners."""
    home = create(tmp_path / "orchard", "orchard", cloud_host="cloud.example", security="mtls")
    Authority.create(home.authority(home.load()), "orchard")
    add_farm(home, "farm-a", devices=["pi-1"])
    render(home, confirm=lambda _: False)
    return home


def test_ports_end_at_65535_and_that_is_said_of_the_option(small: Home) -> None:
    LocalFleet(small, first_port=65_532)
    with pytest.raises(ConfigError, match=r"^--first-port 65533: .* 4 ports .* at most 65532"):
        LocalFleet(small, first_port=65_533)


def test_a_taken_port_is_noticed_before_anything_is_written(small: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1] - 1
        with pytest.raises(BrokerError, match=f"127.0.0.1:{first + 1} is taken"), running(small, first_port=first):
            pass
    assert {path.name for path in small.local.rglob("*")} <= {".lock"}
