"""`source:` under `data:` as people write it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hfl_mqtt.config.models import ClientConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.config.sources import SourceConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.learning.sources.source import Column, Take

HEAD = """\
role: client
federation: fed1
name: cloud/farm-a/pi-1
broker: {host: farm-a.local}
"""
SOIL = HEAD + "task: {name: soil-moisture}\ndata:\n  source: mqtt\n"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def load(tmp_path: Path, text: str) -> ClientConfig:
    path = tmp_path / "client.yaml"
    path.write_text(text)
    return load_role(path, ClientConfig)


def source_of(config: ClientConfig, index: int = 0) -> SourceConfig:
    taken = config.taken_apart(config.devices[index])
    assert taken.source is not None
    return taken.source


def mistake(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/client.yaml:", "")


def own_task(tmp_path: Path) -> str:
    (tmp_path / "task.py").touch()
    return HEAD + "task: {file: task.py}\ndata:\n"


def test_the_example_says_where_seven_columns_come_from() -> None:
    source = source_of(load_role(CONFIGS / "sensors-client.yaml", ClientConfig)).to_source(Path("w.db"))
    assert (source.kind, source.every_s, source.least_rows, source.window) == ("mqtt", 86_400, 60, "w.db")
    assert (source.keep_s, source.keep_rows, source.keep_bytes) == (366 * 86_400, 10_000, 20_000_000)
    columns = {column.name: column for column in source.columns}
    assert columns["precip_mm"] == Column(name="precip_mm", topic="sensors/field-1/rain", take=Take.SUM)
    assert columns["air_temp_max_c"] == Column(
        name="air_temp_max_c", topic="sensors/field-1/air", field="temperature", take=Take.MOST, least=-60, most=60
    )


def test_columns_in_short_are_topics_or_fields_of_the_topic_above(tmp_path: Path) -> None:
    text = own_task(tmp_path) + "  source: mqtt\n  every: 10 min\n  columns: {a: s/a, b: {topic: s/b, field: x.y}}\n"
    assert [(c.topic, c.field) for c in source_of(load(tmp_path, text)).to_source().columns] == [
        ("s/a", ""),
        ("s/b", "x.y"),
    ]
    text = own_task(tmp_path) + "  source: mqtt\n  topic: s/all\n  columns: {a: x.y, b: , c: {take: sum}}\n"
    assert [(c.topic, c.field) for c in source_of(load(tmp_path, text)).to_source().columns] == [
        ("s/all", "x.y"),
        ("s/all", "b"),
        ("s/all", "c"),
    ]


def test_a_file_is_relative_to_the_yaml_and_its_columns_in_short_are_headers(tmp_path: Path) -> None:
    text = own_task(tmp_path) + "  source: csv\n  path: logs/*.csv\n  time: date\n  columns: {t: temp_c, soil: }\n"
    source = source_of(load(tmp_path, text)).to_source()
    assert (source.files, source.time, source.every_s) == (f"{tmp_path}/logs/*.csv", "date", None)
    assert [(c.name, c.topic, c.field) for c in source.columns] == [("t", "", "temp_c"), ("soil", "", "soil")]


def test_options_of_a_users_own_task_stand_beside_and_reach_it(tmp_path: Path) -> None:
    text = own_task(tmp_path) + "  source: csv\n  path: a.csv\n  columns: {t: }\n  horizon: 3\n"
    config = load(tmp_path, text)
    assert config.taken_apart(config.devices[0]).options == {"horizon": 3}


def test_each_of_a_range_has_its_own_topic(tmp_path: Path) -> None:
    (tmp_path / "task.py").touch()
    config = load(
        tmp_path,
        "role: client\nfederation: fed1\nbroker: {host: farm-a.local}\ntask: {file: task.py}\nclients:\n"
        "  - name: cloud/farm-a/pi-{01..12}\n    data: {source: mqtt, columns: {t: 'sensors/{n}/t'}}\n",
    )
    assert source_of(config, 11).to_source().columns[0].topic == "sensors/12/t"
    assert len({config.window_path(device) for device in config.devices}) == 12


def test_sensors_may_be_at_another_broker(tmp_path: Path) -> None:
    text = SOIL + "  topic: a/b\n  columns: {precip_mm: }\n  broker: {host: 10.0.0.9, port: 1884, user: reader}\n"
    config = load(tmp_path, text)
    account = config.sensors_account(config.devices[0], source_of(config))
    assert (account.host, account.port, account.user) == ("10.0.0.9", 1884, "reader")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  columns: {precip_mm: hfl/x/y}\n", "8:13 data.columns.precip_mm.topic: takes in topics of the federation"),
        ("  columns: {precip_mm: +/rain}\n", "takes in topics of the federation, which cross bridges"),
        ("  columns: {precip_mm: 'sensors/#'}\n", "must be a topic such as sensors/field-1/soil"),
        ("  columns: {precip_mm: $SYS/a}\n", "must be a topic such as"),
        ("  columns: {precip_mm: }\n", "8:13 data.columns.precip_mm: needs topic"),
        ("  columns: {rain_mm: a/b}\n", "data.columns.rain_mm: is no column of soil-moisture"),
        ("  columns: {}\n", "8:3 data.columns: must name a column at least"),
        ("  columns: {precip_mm: a/b}\n  evry: 1 d\n", "9:9 data.evry: is not a key here, did you mean 'every'?"),
        ("  columns: {precip_mm: a/b}\n  path: a.csv\n", "9:9 data.path: has no say where source is mqtt"),
        (
            "  columns: {precip_mm: a/b}\n  station: '03047'\n",
            "9:12 data.station: has no say where soil-moisture reads a source",
        ),
        ("  columns: {precip_mm: a/b, air_temp_avg_c: a/c}\n", "set every, such as 10 min"),
        ("  every: 1 d\n  columns: {precip_mm: a/b, air_temp_avg_c: a/+}\n", "a message would count twice"),
        ("  columns: {precip_mm: {topic: a/b, range: [3, 1]}}\n", "must be the least and the most"),
        ("  columns: {precip_mm: {topic: a/b, take: median}}\n", "data.columns.precip_mm.take: must be"),
    ],
)
def test_a_mistake_is_told_at_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert said in mistake(tmp_path, SOIL + text)


def test_a_task_that_reads_no_columns_says_so(tmp_path: Path) -> None:
    text = HEAD + "task: {name: mnist}\ndata: {source: mqtt, columns: {a: s/a}}\n"
    assert "the task mnist reads none" in mistake(tmp_path, text)


def test_a_file_needs_its_path_and_no_topic(tmp_path: Path) -> None:
    said = mistake(tmp_path, own_task(tmp_path) + "  source: csv\n  columns: {a: {topic: x/y}}\n")
    assert "csv needs path beside it" in said
    assert "data.columns.a.topic: has no say where source is csv" in said


def test_the_word_table_is_taken(tmp_path: Path) -> None:
    said = mistake(tmp_path, own_task(tmp_path) + "  source: csv\n  path: a\n  columns: {a: }\n  table: 1\n")
    assert "is where the task finds the rows" in said


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_every_yaml_of_the_page_is_a_clients(tmp_path: Path, block: str) -> None:
    (tmp_path / "task.py").touch()
    task = "" if block.startswith("task:") else "task: {file: task.py}\n"
    assert source_of(load(tmp_path, HEAD + task + block)).columns
