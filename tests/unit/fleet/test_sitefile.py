"""The site file: what the commands write into it, and that a person's comments stay."""

import re
from pathlib import Path

import pytest

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet import sitefile
from hfl_mqtt.fleet.adding import added
from hfl_mqtt.fleet.sitefile import Home, add_device, add_farm, create, names_of


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create(tmp_path / "orchard", "orchard", cloud_host="cloud.example", security="mtls")


def paths(home: Home) -> list[str]:
    return [path for broker in home.load().brokers() for path in broker.nodes]


def test_a_new_fleet_is_a_cloud_with_certificates_and_no_farms(home: Home) -> None:
    site = home.load()
    assert (site.federation, site.security, site.cloud.host, site.farms) == ("orchard", "mtls", "cloud.example", ())
    assert (site.cloud.port, site.cloud.viewer_port) == (8884, 8883)
    assert home.authority(site) == home.folder / "authority"


def test_a_lab_without_certificates_listens_where_mqtt_does(tmp_path: Path) -> None:
    site = create(tmp_path / "lab", "lab", cloud_host="10.0.0.1", security="passwords").load()
    assert (site.cloud.port, site.cloud.viewer_port) == (1883, None)


@pytest.mark.parametrize("name", ["true", "2024", "no", "fleet-1"])
def test_names_that_yaml_would_take_for_something_else_stay_names(tmp_path: Path, name: str) -> None:
    home = create(tmp_path / "x", name, cloud_host="::1", security="mtls", authority="/media/my stick #1")
    site = home.load()
    assert (site.federation, site.cloud.host) == (name, "::1")
    assert home.authority(site) == Path("/media/my stick #1")


def test_nothing_is_begun_over_a_fleet_that_is_there(home: Home) -> None:
    before = home.site_file.read_text()
    with pytest.raises(ConfigError, match="is there already"):
        create(home.folder, "other", cloud_host="x", security="mtls")
    assert home.site_file.read_text() == before


def test_a_name_that_cannot_be_one_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"federation: a name is letters(.|\n)*nothing was written") as caught:
        create(tmp_path / "y" / "x", "a b", cloud_host="h", security="mtls")
    assert not re.search(r"\d:\d", str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_when_nothing_is_begun_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was written"):
        create(tmp_path, "a b", cloud_host="h", security="mtls")
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_fleet_it_is_said_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"begin with `hfl fleet init NAME`"):
        Home(tmp_path).load()


def test_farms_and_devices_are_added_and_comments_stay(home: Home) -> None:
    text = home.site_file.read_text()
    mine = text.replace("farms: []", "# my own words\nfarms: []  # and here")
    home.site_file.write_text(mine)
    assert add_farm(home, "farm-a", host="10.0.0.2", devices=["pi-1", "pi-2"]) == "cloud/farm-a"
    assert add_device(home, "jetson-1", farm="farm-a") == "cloud/farm-a/jetson-1"
    assert paths(home) == ["cloud", "cloud/farm-a", "cloud/farm-a/pi-1", "cloud/farm-a/pi-2", "cloud/farm-a/jetson-1"]
    after = home.site_file.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in after.splitlines() if line.startswith("#") and line != "# my own words"
    ]
    assert "# my own words\n" in after
    assert "# and here" in after
    assert "devices: [pi-1, pi-2, jetson-1]" in after


def test_every_device_of_the_example_has_a_station_of_its_own(home: Home) -> None:
    add_farm(home, "farm-a", devices=["pi-1", "pi-2"])
    add_farm(home, "farm-b", devices=["pi-1"])
    add_device(home, "pi-2", farm="cloud/farm-b")
    stations = [entry["station"] for farm in home.load().farms for entry in farm.data.values()]
    assert len(set(stations)) == len(stations) == 4


def test_the_data_of_a_task_of_ones_own_is_left_to_its_owner(tmp_path: Path) -> None:
    home = create(tmp_path / "f", "f", cloud_host="h", security="mtls", task="mnist")
    add_farm(home, "farm-a", devices=["pi-1"])
    assert home.load().farms[0].data == {}


def test_a_farm_may_lie_below_another_that_is_found_somewhere(home: Home) -> None:
    add_farm(home, "north", host="north.example", devices=[])
    assert add_farm(home, "north/farm-a", devices=["pi-1"]) == "cloud/north/farm-a"
    assert add_device(home, "pi-2", farm="cloud/north/farm-a") == "cloud/north/farm-a/pi-2"
    assert add_device(home, "gateway", farm="cloud") == "cloud/gateway"
    assert paths(home)[-1] == "cloud/north/farm-a/pi-2"


def test_a_device_with_its_own_key_is_noted_as_one(home: Home) -> None:
    add_farm(home, "farm-a", devices=["pi-1"])
    add_device(home, "pi-2", farm="farm-a", keeps_key=True)
    assert home.load().farms[0].own_keys == ("pi-2",)


@pytest.mark.parametrize(
    ("name", "devices", "words"),
    [
        ("farm-a", [], "has a farm 'farm-a' already"),
        ("farm b", [], "farms"),
        ("south/farm-c", [], "has no farm 'south'; there are: farm-a"),
        ("farm-b", ["x", "x"], "'cloud/farm-b/x' stands in this site twice"),
        ("f" * 55, [], "is longer than 56, its bridge's certificate has no room"),
        ("farm-b", ["d" * 60], "is longer than the 64 characters that a certificate can name"),
    ],
)
def test_what_cannot_be_is_refused_and_the_file_stays(home: Home, name: str, devices: list[str], words: str) -> None:
    add_farm(home, "farm-a", devices=["pi-1"])
    before = home.site_file.read_text()
    with pytest.raises(ConfigError) as caught:
        add_farm(home, name, devices=devices)
    assert words in str(caught.value)
    assert str(home.site_file) in str(caught.value)
    # A line of a file that was never written leads nobody anywhere.
    assert not re.search(r"\d:\d", str(caught.value))
    assert home.site_file.read_text() == before
    assert [file.name for file in home.folder.iterdir()] == [sitefile.SITE_FILE]


def test_a_device_is_added_once(home: Home) -> None:
    add_farm(home, "farm-a", devices=["pi-1"])
    with pytest.raises(ConfigError, match="farm-a has a device 'pi-1' already"):
        add_device(home, "pi-1", farm="farm-a")


def test_devices_are_a_count_or_names() -> None:
    assert names_of("3") == ["pi-1", "pi-2", "pi-3"]
    assert names_of("north,south") == ["north", "south"]
    assert names_of("") == []
    with pytest.raises(ConfigError, match="at most 1000"):
        names_of("5000")


def inserted(before: str, after: str) -> tuple[str, list[str]]:
    """Return the lines that are new, and after which line they stand; all that was there stays as it was."""
    old, new = before.splitlines(), after.splitlines()
    first = next(index for index in range(len(new)) if index == len(old) or old[index] != new[index])
    count = len(new) - len(old)
    assert new == [*old[:first], *new[first : first + count], *old[first:]]
    return old[first - 1], new[first : first + count]


FARM_B = ["  - name: farm-b", "    devices: [pi-1]"]
HEAD = "role: site\nfederation: f\ncloud: {host: h}\nagents: {task: {name: mnist}}\n"


@pytest.mark.parametrize(
    ("text", "above"),
    [
        (
            "farms:\n  - name: farm-a\n    devices: [pi-1]\n\n# Who may look.\nviewers: [viewer]\n",
            "    devices: [pi-1]",
        ),
        (
            "farms:\n  - name: farm-a\n    devices: [pi-1]  # here\n\n\n# One.\n\n# Two.\nviewers: [viewer]\n",
            "    devices: [pi-1]  # here",
        ),
        ("viewers: [viewer]\nfarms:\n  # The first.\n  - name: farm-a\n\n# The end.\n", "  - name: farm-a"),
        ("viewers: [viewer]\nfarms:\n  - name: farm-a\n    host: h\n    # its end\n\n# The end.", "    # its end"),
        ("viewers: [viewer]\nfarms:\n  - name: farm-a", "  - name: farm-a"),
        ("farms:\n- name: farm-a\n# Who\nviewers: [viewer]\n", "- name: farm-a"),
        (
            "farms:\n  - name: farm-a\n    devices:\n      - pi-1\n      # pi-2 is broken\n# Who\nviewers: [viewer]\n",
            "      # pi-2 is broken",
        ),
    ],
)
def test_a_farm_more_stands_right_after_the_last_and_all_comments_stay_where_they_are(
    home: Home, text: str, above: str
) -> None:
    home.site_file.write_text(HEAD + text)
    add_farm(home, "farm-b", devices=["pi-1"])
    farm_b = FARM_B if above.startswith(" ") else [line[2:] for line in FARM_B]
    assert inserted(HEAD + text, home.site_file.read_text()) == (above, farm_b)


def test_where_a_site_has_no_farms_yet_they_come_before_its_last_comment(home: Home) -> None:
    text = HEAD + "viewers: [viewer]\n\n# The end.\n"
    home.site_file.write_text(text)
    add_farm(home, "farm-b", devices=["pi-1"])
    assert inserted(text, home.site_file.read_text()) == ("viewers: [viewer]", ["farms:", *FARM_B])


def test_a_text_of_several_lines_is_not_taken_apart(home: Home) -> None:
    agents = "agents:\n  task:\n    name: mnist\n    note: |\n      one\n      two\n\n# The end.\n"
    text = "role: site\nfederation: f\ncloud: {host: h}\n" + agents
    after = added(text, ("farms",), [{"name": "farm-b", "devices": ["pi-1"]}])
    assert inserted(text, after) == ("      two", ["farms:", *FARM_B])


def test_the_first_farm_of_a_new_fleet_leaves_every_other_line_as_it_is(home: Home) -> None:
    before = home.site_file.read_text()
    add_farm(home, "farm-a", host="10.0.0.2", devices=["pi-1"])
    above, new = inserted(before.replace("farms: []", "farms:"), home.site_file.read_text())
    assert above == "farms:"
    assert new[:4] == ["  - name: farm-a", "    host: 10.0.0.2", "    devices: [pi-1]", "    data:"]
    before = home.site_file.read_text()
    add_farm(home, "farm-b", devices=[])
    assert inserted(before, home.site_file.read_text()) == (new[-1], ["  - name: farm-b"])


@pytest.mark.parametrize(
    ("farm", "after"),
    [
        ("devices: [pi-1]  # one\n\n  # The second.\n", "devices: [pi-1, pi-2]  # one\n\n  # The second.\n"),
        ("devices: [\n      pi-1,  # one\n    ]\n", "devices: [\n      pi-1, pi-2,  # one\n    ]\n"),
        ("devices:\n    - pi-1  # one\n    # the end\n", "devices:\n    - pi-1  # one\n    - pi-2\n    # the end\n"),
        ("devices: []  # none yet\n", "devices: [pi-2]  # none yet\n"),
        ("host: h\n\n  # The second.\n", "host: h\n    devices: [pi-2]\n\n  # The second.\n"),
        (
            "devices: [pi-1]\n    # on the roof\n    host: h\n",
            "devices: [pi-1, pi-2]\n    # on the roof\n    host: h\n",
        ),
    ],
)
def test_a_device_more_stands_in_its_farm_and_all_comments_stay_where_they_are(
    home: Home, farm: str, after: str
) -> None:
    text = HEAD + "farms:\n  - name: farm-a\n    {}  - name: farm-b\n\n# Who may look.\nviewers: [viewer]\n"
    home.site_file.write_text(text.replace("{}", farm))
    add_device(home, "pi-2", farm="farm-a")
    assert home.site_file.read_text() == text.replace("{}", after)


def test_a_devices_data_stand_with_those_of_the_others_and_not_below_the_next_comment(home: Home) -> None:
    add_farm(home, "farm-a", devices=["pi-1"])
    text = home.site_file.read_text()
    entry = next(line for line in text.splitlines() if line.startswith("      pi-1: {station"))
    mine = text.replace(f"{entry}\n", f"{entry}  # the north field\n    # For the app.\n    port: 8890\n")
    home.site_file.write_text(mine)
    add_device(home, "pi-2", farm="farm-a", keeps_key=True)
    station = home.load().farms[0].data["pi-2"]["station"]
    assert home.site_file.read_text() == mine.replace("[pi-1]", "[pi-1, pi-2]").replace(
        f"{entry}  # the north field\n    # For the app.\n    port: 8890\n",
        f'{entry}  # the north field\n      pi-2: {{station: "{station}"}}\n'
        "    # For the app.\n    port: 8890\n    own_keys: [pi-2]\n",
    )


def test_what_is_written_on_one_line_stays_on_it(home: Home) -> None:
    text = HEAD.replace("{host: h}", "{host: h, devices: [x]}") + "farms: [{name: farm-a, farms: []}]  # all\n"
    home.site_file.write_text(text)
    add_device(home, "pi-1", farm="farm-a")
    add_farm(home, "farm-b", host="10.0.0.1", devices=["pi-1"])
    add_device(home, "y", farm="cloud")
    assert home.site_file.read_text() == text.replace("[x]", "[x, y]").replace(
        "farms: []}]", "farms: [], devices: [pi-1]}, {name: farm-b, host: 10.0.0.1, devices: [pi-1]}]"
    )


def test_a_file_with_aliases_that_cannot_be_added_to_stays_and_it_is_said_what_to_write(home: Home) -> None:
    text = HEAD + "farms:\n  - name: farm-a\n    devices: &own [pi-1]\n  - name: farm-b\n    devices: *own\n"
    home.site_file.write_text(text)
    with pytest.raises(ConfigError, match=r"an alias .* stands where something is to be added: .*, or add by hand"):
        add_device(home, "pi-2", farm="farm-b")
    assert home.site_file.read_text() == text
