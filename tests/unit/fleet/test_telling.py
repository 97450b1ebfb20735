"""After rendering: what was written in a few lines, and what goes where."""

from pathlib import Path

import pytest

from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.papers import rotate
from hfl_mqtt.fleet.render import Plan, plan, render
from hfl_mqtt.fleet.sitefile import Home, add_device, add_farm, create
from hfl_mqtt.fleet.telling import next_steps, written


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = create(tmp_path / "orchard", "orchard", cloud_host="cloud.example", security="mtls")
    Authority.create(made.authority(made.load()), "orchard")
    add_farm(made, "farm-a", devices=["pi-1"])
    render(made, confirm=lambda _: True)
    return made


def steps(outcome: tuple[Plan, list[str]]) -> list[str]:
    return list(next_steps(*outcome, "hfl fleet up"))


def test_a_few_files_are_named_and_many_are_counted_by_folder() -> None:
    few = ["brokers/a/acl", "bundles/x.tar"]
    many = [f"nodes/{number}/agent.yaml" for number in range(4)]
    assert list(written([*few, *many])) == [*few, "nodes/: 4 files"]


def test_where_nothing_has_changed_nothing_is_to_be_done(home: Home) -> None:
    assert steps((plan(home), [])) == []


def test_a_new_device_is_a_bundle_for_its_board_and_rights_for_its_farms_broker(home: Home) -> None:
    add_device(home, "pi-2", farm="farm-a")
    assert steps(render(home, confirm=lambda _: True)) == [
        "Next: brokers/farm-a/acl to the machine of the broker of farm-a, and reload it",
        "Next: bundles/cloud.farm-a.pi-2.tar to its board, there: sudo device_agents/install.sh --bundle "
        "cloud.farm-a.pi-2.tar",
    ]


def test_a_brokers_new_host_is_a_new_certificate_for_which_it_is_started_again(home: Home) -> None:
    home.site_file.write_text(
        home.site_file.read_text().replace("- name: farm-a", "- name: farm-a\n    host: 10.0.0.2")
    )
    first = steps(render(home, confirm=lambda _: True))[0]
    assert first == "Next: brokers/farm-a/broker.crt and its key to the machine of the broker of farm-a, and restart it"


def test_what_was_rotated_lies_there_and_is_to_be_carried_though_rendering_wrote_only_the_bundle(home: Home) -> None:
    rotate(home, "cloud/farm-a/pi-1", days=30, confirm=lambda _: True)
    assert steps(render(home, confirm=lambda _: True)) == [
        "Next: bundles/cloud.farm-a.pi-1.tar to its board, there: sudo device_agents/install.sh --bundle "
        "cloud.farm-a.pi-1.tar"
    ]
