"""`hfl sensors replay` looks at all that it was given before it says a word to a broker."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.ops.sensors import replay, wanted_of
from hfl_mqtt.transport.link import Account

SOIL = "station,moisture,air\n03047,0.21,11.5\n03048,0.33,\n"


@pytest.fixture
def soil(tmp_path: Path) -> Path:
    path = tmp_path / "soil.csv"
    path.write_text(SOIL)
    return path


def say(path: Path, *where: str, topic: str = "sensors/field-1/soil") -> None:
    """Replay where no broker is: a good file comes as far as that."""
    account = Account(host="127.0.0.1", port=free_port(), user="sensor")
    replay(account, path, topic, where=wanted_of(where), pause_s=0.0)


def bundle() -> bytes:
    packed, key = io.BytesIO(), b"-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n"
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("node.key")
        member.size = len(key)
        tar.addfile(member, io.BytesIO(key))
    return packed.getvalue()


@pytest.mark.parametrize(
    "data", [SOIL.encode(), b"\xef\xbb\xbf" + SOIL.encode(), b"moisture\n0.2\n", "Temp. (°C),zeit\n1,2\n".encode()]
)
def test_a_file_of_readings_is_good_to_be_said(tmp_path: Path, data: bytes) -> None:
    plain, packed = tmp_path / "soil.csv", tmp_path / "soil.csv.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    for path in (plain, packed):
        with pytest.raises(BrokerError, match="nothing listens there"):
            say(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bundle(), "it is no text"),
        (SOIL.encode() + b"\0\n", "line 4: holds a NUL: it is no text"),
        (b"-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n", "line 1: is no header"),
        (b"role: client\nname: cloud/pi-1\n", "line 1: is no header"),
        (b"cloud/pi-1:$7$101$abc\n", "line 1: is no header"),
        (b"03047,0.21,11.5\n03047,0.22,11.4\n", "line 1: is no header"),
        (b"moisture;air\n0.2;11\n", "line 1: is no header"),
        (b"moisture,moisture\n0.2,0.3\n", "line 1: names 'moisture' twice"),
        (b"moisture,air\n0.2,11,12\n", "line 2: has more values than the header has names"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "is empty"),
        (b"moisture,air\n", "has no lines below its header"),
    ],
)
def test_what_is_no_file_of_readings_is_not_said(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        say(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "MC4CAQAw" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (["station"], "--where station: must be column=value"),
        (["=03047"], "--where =03047: must be column=value"),
        (["statoin=03047"], "has no column 'statoin'; did you mean 'station'?"),
        (["x=1"], "has no column 'x'; they are station, moisture, air"),
        (["station=3047"], "has no line with station=3047"),
    ],
)
def test_a_wish_that_no_line_can_meet_is_refused(soil: Path, where: Sequence[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        say(soil, *where)
    assert words in str(refused.value)


def test_a_missing_file_and_a_wrong_topic_are_said_before_a_broker_is_asked(soil: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read: No such file"):
        say(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="the file has no column 'field'"):
        say(soil, topic="sensors/{field}/soil")
    with pytest.raises(ConfigError, match="none of a federation's"):
        say(soil, topic="hfl/fed1/cloud/x/+/{station}")
