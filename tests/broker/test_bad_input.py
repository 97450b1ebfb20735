"""What a person gets wrong, on real programs: one clear message with the remedy and an exit code, and never a trace.

What only time or another person can mend, such as a broker that is not there yet, is said once, and the agent goes on
trying until it is told to stop.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfl_mqtt.ops.federation import Device, FarmPlan, LocalFederation, RunPlan
from hfl_mqtt.ops.mosquitto import free_port
from tests.broker.processes import hfl, running

pytestmark = pytest.mark.broker

#: Far less than any wait of ours for a broker or a peer, and far more than a loaded machine needs.
AT_ONCE_S = 20.0
EDGE, CLIENT = "cloud/farm-a", "cloud/farm-a/pi-1"
GOOD_TASK = """\
import torch
from hfl_mqtt.learning.contracts import Metric
metric = Metric("mse", higher_is_better=False)
def model():
    return torch.nn.Linear(1, 1)
def data(options):
    return (torch.ones(2, 1), torch.ones(2, 1)), None
def loss(output, target):
    return ((output - target) ** 2).mean()
def score(output, target):
    return ((output - target) ** 2).squeeze(1)
"""
BAD_FILE = GOOD_TASK.replace("import torch\n", "import torhc\n"), r"task\.py:1: the file raised ModuleNotFoundError: "
BAD_MODEL = GOOD_TASK.replace("Linear(1, 1)", "Linear(1)"), r"task\.py:5: model\(\) raised TypeError: "
BAD_DATA = GOOD_TASK.replace("torch.ones(2, 1),", "options['csv'],"), r"task\.py:7: data\(\) raised KeyError: 'csv'"


class Place:
    """A directory with a site of brokers that run, and configurations for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        farm = FarmPlan(name="farm-a", devices=(Device(name="pi-1", data={}), Device(name="pi-2", data={})))
        self.task = self.write("task.py", GOOD_TASK)
        plan = RunPlan(farms=(farm,), task={"file": str(self.task)}, rounds=1, seed=0, federation="fed1")
        self.tree = LocalFederation(plan, directory)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def config(self, role: str, *, broker: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        """Write a configuration that works, but for the changes."""
        name = {"cloud": "cloud", "edge": EDGE, "client": CLIENT}[role]
        at = "cloud" if role == "cloud" else EDGE
        document: dict[str, Any] = {
            "role": role,
            "federation": "fed1",
            "name": name,
            "broker": {
                "host": "127.0.0.1",
                "port": self.tree.brokers[at].port,
                "password_file": str(self.tree.secret_path(name)),
                **(broker or {}),
            },
            "state_dir": str(self.directory / "state" / role),
        }
        if role != "edge":
            document["task"] = {"file": str(self.task)}
        if role == "cloud":
            document |= {"rounds": 1, "wait_at_most": "1 s", "out": str(self.directory / "out")}
        return self.write(f"{role}.yaml", yaml.safe_dump({**document, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    one = Place(tmp_path_factory.mktemp("place"))
    try:
        one.tree.start_brokers()
        yield one
    finally:
        one.tree.stop()


def ends(role: str, config: Path, code: int, *messages: str) -> None:
    """Check that a program ends by itself with this code, and with nothing on stderr but these lines."""
    ended = hfl(role, "--config", config)
    lines = ended.stderr.splitlines()
    assert ended.returncode == code, ended.stderr
    assert len(lines) == len(messages), ended.stderr
    assert lines[0].startswith("hfl: ")
    for line, message in zip(lines, messages, strict=True):
        assert re.search(message, line), line
    assert "Traceback" not in ended.stdout


# -------------------------------------------------------------- configurations


def test_all_wrong_keys_and_types_of_a_file_are_told_at_once(place: Place) -> None:
    config = place.config("client", broker={"keepalife": 5, "port": "many"}, federaton="fed1")
    ends(
        "client",
        config,
        2,
        r"\.yaml:6:9 broker\.port: must be a whole number, got 'many'",
        r"\.yaml:8:3 broker\.keepalife: is not a key here, did you mean 'keepalive'\?",
        r"\.yaml:\d+:1 federaton: is not a key here, did you mean 'federation'\?",
    )


def test_a_task_file_that_is_not_there_is_told_with_its_place(place: Place) -> None:
    config = place.config("client", task={"file": "gone.py"})
    ends("client", config, 2, r"\.yaml:\d+:\d+ task\.file: no such file: .*gone\.py")


@pytest.mark.parametrize("role", ["cloud", "edge", "client"])
def test_a_missing_password_file_is_named(place: Place, role: str) -> None:
    config = place.config(role, broker={"password_file": "nowhere/secret"})
    ends(role, config, 2, r"the password file .*nowhere/secret cannot be read: No such file")


@pytest.mark.parametrize(("role", "key"), [("cloud", "out"), ("cloud", "state_dir"), ("edge", "state_dir")])
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(place: Place, role: str, key: str) -> None:
    taken = place.write("taken", "a file")
    changes: dict[str, Any] = {key: str(taken / "below")}
    ends(role, place.config(role, **changes), 1, rf"{taken}/below.*(cannot|Not a directory).*;")


# -------------------------------------------------------------- brokers that say no


@pytest.mark.parametrize("role", ["edge", "client"])
def test_a_wrong_password_ends_the_program(place: Place, role: str) -> None:
    wrong = place.write("wrong", "guessed\n")
    config = place.config(role, broker={"password_file": str(wrong)})
    ends(role, config, 4, r"the broker at 127\.0\.0\.1:\d+ refuses 'cloud.*': .*check user name and password")


def test_the_account_of_another_device_ends_the_program(place: Place) -> None:
    other = "cloud/farm-a/pi-2"
    config = place.config("client", broker={"user": other, "password_file": str(place.tree.secret_path(other))})
    ends("client", config, 4, rf"'{other}'.*(has no right|refuses)")


def two_devices(place: Place, *passwords: Path) -> Path:
    names = ("cloud/farm-a/pi-1", "cloud/farm-a/pi-2")
    clients = [{"name": name, "password_file": str(secret)} for name, secret in zip(names, passwords, strict=True)]
    config = place.config("client", clients=clients)
    document = yaml.safe_load(config.read_text())
    del document["name"], document["broker"]["password_file"]
    return place.write("clients.yaml", yaml.safe_dump(document))


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_wrong_password_of_one_device_is_told_and_costs_its_process_no_other(
    place: Place, quiet: tuple[str, ...]
) -> None:
    config = two_devices(place, place.tree.secret_path("cloud/farm-a/pi-1"), place.write("wrong", "guessed\n"))
    with running("client", "--config", config, *quiet) as program:
        said = program.hear("cloud/farm-a/pi-2 failed" if quiet else "cloud/farm-a/pi-2  failed")
        assert "check user name and password" in said
        if not quiet and not any("pi-1  connected" in line for line in program.lines):
            program.hear("cloud/farm-a/pi-1  connected")
        status, _ = program.end()
    assert status == 0
    assert len([line for line in program.lines if "failed" in line]) == 1
    assert not [line for line in program.lines if "pi-1  disconnected" in line]


def test_wrong_passwords_of_all_devices_end_their_process(place: Place) -> None:
    wrong = place.write("wrong", "guessed\n")
    ended = hfl("client", "--quiet", "--config", two_devices(place, wrong, wrong))
    assert ended.returncode == 4
    assert re.match(r"hfl: the broker at .* refuses 'cloud/farm-a/pi-\d'", ended.stderr.splitlines()[-1])


# -------------------------------------------------------------- brokers that do not answer


def test_an_agent_waits_for_its_broker_says_so_once_and_connects_when_it_comes(place: Place) -> None:
    broker = place.tree.brokers[EDGE]
    broker.stop()
    with running("edge", "--config", place.config("edge")) as program:
        said = program.hear("disconnected")
        assert re.search(rf"reason=no broker at 127\.0\.0\.1:{broker.port}: nothing listens there; is Mosq.*\?", said)
        broker.start()
        program.hear("connected")
        status, seconds = program.end(signal.SIGTERM)
    assert (status, seconds < AT_ONCE_S) == (0, True)
    assert len([line for line in program.lines if "nothing listens" in line]) == 1, program.lines


@pytest.mark.parametrize("role", ["cloud", "client"])
def test_ctrl_c_ends_an_agent_without_a_broker_at_once(place: Place, role: str) -> None:
    patient = {"wait_at_most": "5 min"} if role == "cloud" else {}
    with running(role, "--config", place.config(role, broker={"port": free_port()}, **patient)) as program:
        program.hear("nothing listens there; is Mosquitto running, and is the port right?")
        status, seconds = program.end(signal.SIGINT)
    assert (status, seconds < AT_ONCE_S) == (0, True), program.lines
    assert not [line for line in program.lines if "Traceback" in line]


def test_a_cloud_that_finds_no_broker_ends_when_it_has_waited_long_enough(place: Place) -> None:
    config = place.config("cloud", broker={"port": free_port()})
    ends("cloud", config, 5, "no broker answered cloud within 1 s: start it, and check host and port")


def test_a_quiet_agent_still_says_that_it_has_no_broker(place: Place) -> None:
    with running("edge", "--quiet", "--config", place.config("edge", broker={"port": free_port()})) as program:
        program.hear("nothing listens there")
        program.end()
    assert len([line for line in program.lines if "nothing listens" in line]) == 1, program.lines


@contextmanager
def speaking(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a port and give every connection this answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _web(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def _noise(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 100)


@pytest.mark.parametrize("answer", [_web, _noise])
def test_a_port_that_speaks_something_else_is_said_to_be_no_broker(
    place: Place, answer: Callable[[socket.socket], None]
) -> None:
    with (
        speaking(answer) as port,
        running("client", "--config", place.config("client", broker={"port": port})) as program,
    ):
        program.hear(f"127.0.0.1:{port} accepts connections but ends them without an answer; is it a broker")
        status, seconds = program.end()
    assert (status, seconds < AT_ONCE_S) == (0, True), program.lines
    assert not [line for line in program.lines if "Traceback" in line]


# -------------------------------------------------------------- tasks


def test_a_cloud_whose_task_raises_ends_with_the_place_in_the_users_file(place: Place) -> None:
    text, message = BAD_MODEL
    task = place.write("model/task.py", text)
    ends("cloud", place.config("cloud", task={"file": str(task)}), 3, message)


def test_a_client_whose_task_raises_declines_each_round_and_stays(place: Place) -> None:
    with running("edge", "--config", place.config("edge")) as edge:
        edge.hear("connected")
        with running("cloud", "--config", place.config("cloud", wait_at_most="1 min")) as cloud:
            edge.hear("opened")
            for text, message in (BAD_FILE, BAD_DATA):
                task = place.write("bad/task.py", text)
                with running("client", "--config", place.config("client", task={"file": str(task)})) as client:
                    assert re.search(message, client.hear("declined"))
                    said = edge.hear(f"{EDGE}  declined")
                    assert f"sender={CLIENT}" in said
                    assert re.search(message, said)
                    assert client.end()[0] == 0
                    assert not [line for line in client.lines if "Traceback" in line]
                edge.hear("left")
            assert cloud.end()[0] == 0


def test_a_cloud_that_no_edge_joins_ends_without_a_result(place: Place) -> None:
    place.tree.brokers["cloud"].stop()
    for kept in (place.directory / "brokers").rglob("mosquitto.db"):
        kept.unlink()  # the edges of the tests before
    place.tree.brokers["cloud"].start()
    config = place.config("cloud", state_dir=str(place.directory / "state" / "another"))  # the run before is unfinished
    ends("cloud", config, 5, r"no child of cloud came within 1 s: start the edges, check their brokers")
