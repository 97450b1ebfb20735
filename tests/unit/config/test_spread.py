"""Many clients on one line: a range in a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hfl_mqtt.config.models import ClientConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.config.spread import numbers, written
from hfl_mqtt.errors import ConfigError

CLIENT = """\
role: client
federation: fed1
broker: {host: 10.0.0.1}
task: {file: mine.py}
clients:
"""


def client(folder: Path, entries: str) -> ClientConfig:
    (folder / "mine.py").touch()
    path = folder / "clients.yaml"
    path.write_text(CLIENT + entries, encoding="utf-8")
    return load_role(path, ClientConfig)


def mistakes(folder: Path, entries: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        client(folder, entries)
    return [line.removeprefix(f"{folder / 'clients.yaml'}:") for line in str(caught.value).splitlines()]


def test_a_range_is_as_many_clients_and_each_has_its_own_number(tmp_path: Path) -> None:
    for number in ("09", "10"):
        (tmp_path / f"pi-{number}").write_text(f"secret {number}\n", encoding="utf-8")
    config = client(
        tmp_path,
        """\
  - name: cloud/farm-a/pi-{09..10}
    data: {shard: "{index}", hive: "{n}", files: ["hive-{n}.csv", "of {index}"], of: 2}
    password_file: pi-{n}
  - name: cloud/farm-a/jetson
    data: {shard: 2, note: "{n}"}
""",
    )
    assert [device.name for device in config.devices] == [
        "cloud/farm-a/pi-09",
        "cloud/farm-a/pi-10",
        "cloud/farm-a/jetson",
    ]
    assert [device.data for device in config.devices] == [
        {"shard": 0, "hive": 9, "files": ["hive-09.csv", "of 0"], "of": 2},
        {"shard": 1, "hive": 10, "files": ["hive-10.csv", "of 1"], "of": 2},
        {"shard": 2, "note": "{n}"},
    ]
    accounts = [config.account(device) for device in config.devices]
    assert [account.user for account in accounts] == [device.name for device in config.devices]
    assert [account.password for account in accounts] == ["secret 09", "secret 10", None]
    assert len({config.state_path(device) for device in config.devices}) == 3


def test_two_ranges_may_share_a_parent_but_no_name(tmp_path: Path) -> None:
    assert len(client(tmp_path, "  - name: cloud/a/pi-{1..3}\n  - name: cloud/a/jet-{1..2}\n").devices) == 5
    assert mistakes(tmp_path, "  - name: cloud/a/pi-{1..3}\n  - name: cloud/a/pi-{3..4}\n") == [
        "7:11 clients[1].name: holds cloud/a/pi-3, which is in clients[0] too: each has its own"
    ]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cloud/a/pi-{5..4}", "must have a range of 1 to 10000 upwards, such as {01..50}, got 'cloud/a/pi-{5..4}'"),
        ("cloud/a/pi-{0..10000}", "must have a range of 1 to 10000 upwards"),
        ("cloud/{1..2}/pi-{1..2}", "must have one range at most"),
        ("cloud/a-{1..2}/pi", "must have its range in the last part, so that all have one parent"),
        ("cloud/a/pi {1..2}", "must be a node's name"),
        ("pi-{1..2}", "must start with its parent's name, such as cloud/pi-"),
        ("cloud/a/pi-{1-2}", "must be a node's name"),
    ],
)
def test_a_range_that_cannot_be_is_told_at_its_line(tmp_path: Path, name: str, what: str) -> None:
    (mistake,) = mistakes(tmp_path, f"  - name: {name}\n")
    assert mistake.startswith(f"6:11 clients[0].name: {what}")


def test_more_clients_than_a_process_holds_are_refused_before_they_are_made(tmp_path: Path) -> None:
    entries = "".join(f"  - name: cloud/a/{letter}-{{1..9999}}\n" for letter in "abc")
    (mistake,) = mistakes(tmp_path, entries)
    assert mistake.endswith("clients: are 29997, at most 10000 in one process: start several")


def test_leading_zeros_are_kept_and_no_more_are_added() -> None:
    assert [written("pi-{008..010}", number) for number in numbers("pi-{008..010}")] == ["pi-008", "pi-009", "pi-010"]
    assert [written("pi-{9..10}", number) for number in numbers("pi-{9..10}")] == ["pi-9", "pi-10"]
    assert written(3.5, numbers("{1..1}")[0]) == 3.5


def test_the_range_in_the_example_file_is_one(tmp_path: Path) -> None:
    """The lines that configs/clients.yaml shows in a comment."""
    text = (Path(__file__).resolve().parents[3] / "configs" / "clients.yaml").read_text(encoding="utf-8")
    shown = re.search(r"^# clients:\n((?:#   .*\n)+)", text, re.MULTILINE)
    assert shown is not None
    config = client(tmp_path, re.sub(r"^# ", "", shown.group(1), flags=re.MULTILINE))
    assert len(config.devices) == 50
    assert config.devices[49].name == "cloud/farm-a/pi-50"
    assert config.devices[49].data == {"partition": "iid", "of": 50, "index": 49}
    assert str(config.devices[49].password_file).endswith("secrets/cloud-farm-a-pi-50")
