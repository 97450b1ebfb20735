"""`hfl watch` on a real broker: what it shows of retained messages, of junk, and of a broker that goes and comes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfl_mqtt.config.site import Cloud, Farm, Site
from hfl_mqtt.ops.brokers import Layout, password_hash, render_to, secret_path
from hfl_mqtt.ops.mosquitto import Mosquitto, free_port
from hfl_mqtt.protocol.messages import Info, Message, Metrics, State, StateName
from hfl_mqtt.protocol.wire import encode
from tests.broker.processes import LIMIT_S, command, hfl, until
from tests.broker.sites import WITNESS, Person

pytestmark = pytest.mark.broker
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n[red]x[/][link=http://evil.example]"


class Place:
    """A broker, and an account there that may say anything."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        site = Site(
            federation="fed1",
            cloud=Cloud(port=self.port, bind="127.0.0.1", host="127.0.0.1"),
            farms=(Farm(name="farm-a", devices=("pi-1",)),),
        )
        render_to(site, directory, Layout.beside(directory))
        home = directory / next(site.brokers()).directory
        with (home / "passwd").open("a") as passwd:
            passwd.write(f"{WITNESS}:{password_hash(WITNESS, b'twelve bytes')}\n")
        with (home / "acl").open("a") as acl:
            acl.write(f"user {WITNESS}\ntopic readwrite #\n")
        self.broker = Mosquitto(home / "mosquitto.conf", self.port)
        self.secret = secret_path(directory, "viewer")

    def person(self) -> Person:
        return Person(self.port, WITNESS, WITNESS).ready()

    def options(self, *more: str) -> list[str]:
        where = ["--federation", "fed1", "--port", str(self.port), "--password-file", str(self.secret)]
        return ["watch", *where, *more]


def say(person: Person, path: str, *messages: Message) -> None:
    for message in messages:
        frame = encode(message, "fed1", path)
        person.say(frame.topic, frame.payload, retain=frame.retain)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    one = Place(tmp_path_factory.mktemp("watch"))
    with one.broker:
        person = one.person()
        say(person, "cloud", Info(role="cloud", boot=1), State(state=StateName.READY, boot=1))
        say(person, "cloud", Metrics(values={"round": "g7", "in": 2, "of": 3, "rmse": 0.25, "up_bytes": 1500}))
        say(person, "cloud/farm-a", State(state=StateName.LOST, boot=4))
        person.leave()
        yield one


def test_a_snapshot_for_a_script(place: Place) -> None:
    ended = hfl(*place.options("--json"))
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = json.loads(ended.stdout)
    assert shown["federation"] == "fed1"
    cloud, farm = shown["nodes"]
    assert cloud.pop("age_s") >= 0
    assert cloud == {
        "path": "cloud",
        "role": "cloud",
        "state": "ready",
        "round": "g7",
        "phase": None,
        "metrics": {"round": "g7", "in": 2, "of": 3, "rmse": 0.25, "up_bytes": 1500},
        "reason": None,
        "quarantined": {},
        "is_live": False,
    }
    assert (farm["path"], farm["state"]) == ("cloud/farm-a", "lost")


def test_a_table_for_people(place: Place) -> None:
    ended = hfl(*place.options("--once"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"cloud .*ready.*g7.*2/3.*rmse 0\.2500.*1\.5 kB", ended.stdout)
    assert re.search(r"  farm-a .*lost", ended.stdout)
    assert ended.stdout.replace("\n", "").isprintable()


def test_another_federation_is_not_shown(place: Place) -> None:
    options = [option if option != "fed1" else "fed2" for option in place.options("--json")]
    assert json.loads(hfl(*options).stdout) == {"federation": "fed2", "nodes": []}


def test_a_wrong_password_is_said_at_once(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("guessed\n")
    ended = hfl(*place.options("--password-file", str(tmp_path / "secret"), "--once"))
    assert (ended.returncode, ended.stdout) == (4, "")
    (line,) = ended.stderr.splitlines()
    assert re.match(r"hfl: the broker at 127\.0\.0\.1:\d+ refuses 'viewer': .*check user name and password", line)


def test_who_gives_no_password_is_told_how(place: Place) -> None:
    where = ["--port", str(place.port)]
    ended = hfl("watch", "--federation", "fed1", *where, "--once")
    assert (ended.returncode, ended.stdout) == (4, "")
    assert "no password was given: give --password-file" in ended.stderr


def test_no_broker_is_said_at_once() -> None:
    began_s = time.monotonic()
    ended = hfl("watch", "--federation", "fed1", "--port", str(free_port()), "--json")
    assert (ended.returncode, ended.stdout) == (4, "")
    assert re.fullmatch(r"hfl: no broker at 127\.0\.0\.1:\d+: nothing listens there; .*\n", ended.stderr)
    assert time.monotonic() - began_s < 32


def test_a_snapshot_ends_while_a_node_never_stops_talking(place: Place) -> None:
    person, over = place.person(), threading.Event()

    def talk() -> None:
        while not over.wait(0.05):
            say(person, "cloud/farm-a/pi-1", State(state=StateName.TRAINING, boot=1))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        ended = hfl(*place.options("--json"))
    finally:
        over.set()
        thread.join(LIMIT_S)
        person.leave()
    assert ended.returncode == 0
    assert "cloud/farm-a/pi-1" in ended.stdout


@pytest.fixture
def junk(place: Place) -> Iterator[None]:
    """All that a node may retain under its own name, and worse, for as long as a test."""
    person = place.person()
    said: dict[str, str | bytes] = {
        "hfl/fed1/cloud/farm-a/pi-1/@/stat/metrics": json.dumps({"round": HOSTILE, HOSTILE[:64]: 1.0, "in": HOSTILE}),
        "hfl/fed1/cloud/farm-a/pi-2/@/stat/metrics": json.dumps({"rmse": 10**400, "up_bytes": 10**400, "in": 1}),
        "hfl/fed1/cloud/farm-a/pi-3/@/stat/state": b"\xff\x00\x1b[2J",
        "hfl/fed1/cloud/farm-a/pi-4/@/stat/state": b"[" * 15_000,
        "hfl/fed1/cloud/farm-a/pi-5/@/stat/info": json.dumps({"v": 1, "role": HOSTILE[:60], "boot": 1}),
        "hfl/fed1/cloud/farm-a/@/stat/round": b"x" * 100_000,
        "hfl/fed1/[red]x[/]/@/stat/state": b"{}",
        "hfl/fed1/a\u202eb/@/stat/state": b"{}",
        "hfl/fed1/@/@/@": b"{}",
    }
    for topic, payload in said.items():
        person.say(topic, payload, retain=True)
    yield
    for topic in said:
        person.say(topic, b"", retain=True)
    person.leave()


@pytest.mark.usefixtures("junk")
def test_hostile_words_are_shown_as_text_and_junk_not_at_all(place: Place) -> None:
    table = hfl(*place.options("--once"))
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.replace("\n", "").isprintable()
    assert r"\x1b[2J\x1b]0;owned\x07 / [red]x[/]" in table.stdout
    assert re.search(r"cloud .*ready.*rmse 0\.2500", table.stdout)
    assert "pi-2" in table.stdout
    assert not re.search(r"pi-[34]", table.stdout)
    script = hfl(*place.options("--json"))
    assert (script.returncode, script.stderr) == (0, "")
    assert script.stdout.replace("\n", "").isprintable()
    rows = {row["path"]: row for row in json.loads(script.stdout)["nodes"]}
    assert rows["cloud/farm-a/pi-1"]["metrics"]["round"] == HOSTILE


class Terminal:
    """A terminal with a program in it; `text` is all that came out."""

    def __init__(self, *arguments: str) -> None:
        self.text = ""
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command(*arguments), env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._ours = ours
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the end of a pseudo terminal
            while data := os.read(self._ours, 65_536):
                self.text += data.decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT_S)
        self._thread.join(LIMIT_S)
        os.close(self._ours)


def test_the_live_table_follows_survives_the_broker_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.broker:
        terminal = Terminal(*place.options())
        try:
            until(lambda: "federation fed1" in terminal.text, "the table")
            person = place.person()
            say(person, "cloud/farm-a", State(state=StateName.TRAINING, boot=1))
            until(lambda: re.search(r"farm-a.*training", terminal.text), "the node's state")
            person.leave()
            place.broker.stop()
            until(lambda: re.search(r"(ended|lost) the connection", terminal.text), "word of the lost connection")
            place.broker.start()
            person = Person(place.port, WITNESS, WITNESS, "hfl/#").ready()
            say(person, "cloud/farm-a", State(state=StateName.SLEEPING, boot=2))
            until(lambda: re.search(r"farm-a.*sleeping", terminal.text), "the state after that")
            person.leave()
            terminal.process.send_signal(signal.SIGINT)
            began_s = time.monotonic()
            assert terminal.process.wait(LIMIT_S) == 130
            assert time.monotonic() - began_s < 20
            assert "Traceback" not in terminal.text
        finally:
            terminal.close()
