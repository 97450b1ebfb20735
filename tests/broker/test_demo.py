"""`hfl demo` as a person runs it: what it leaves behind, how it ends when told to, what it says of bad options."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hfl_mqtt.learning import store
from hfl_mqtt.learning.tasks import soil_moisture
from hfl_mqtt.learning.weights import digest
from tests.broker.federations import LIMIT_S, ended_within, family, speakers_of, still_there, until

pytestmark = pytest.mark.broker

SMALL = ("--farms", "3", "--clients", "12", "--rounds", "2")
TINY = ("--farms", "1", "--clients", "2", "--rounds", "2")
LEAVE_S = 30.0
HOLDING = "Everything stays up until Ctrl-C"


@dataclass(kw_only=True)
class Demo:
    """A running `hfl demo` whose temporary files lie in a folder of its own."""

    process: subprocess.Popen[bytes]
    temporary: Path
    said: Path
    said_wrong: Path
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def out(self) -> str:
        return self.said.read_text()

    @property
    def err(self) -> str:
        return self.said_wrong.read_text()

    def folders(self) -> list[Path]:
        return list(self.temporary.iterdir())

    def wait_for(self, what: str, is_so: Any) -> None:
        for _ in until(LIMIT_S, f"{what}; it said: {self.out[-2000:]}{self.err[-2000:]}"):
            if is_so():
                return
            assert not ended_within(self.process, 0.02), f"it ended before {what}: {self.out[-2000:]}{self.err[-2000:]}"

    def tell(self, number: int) -> int:
        """Send a signal, note who is there, and return the exit status."""
        self.children = family(self.process.pid)
        self.process.send_signal(number)
        return self.process.wait(LEAVE_S)

    def is_gone(self) -> bool:
        """Whether no process is left, neither one seen before nor one that works in its folder."""
        return not still_there(self.children + speakers_of(str(self.temporary)), LEAVE_S)


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[Demo]:
    """Start a demo in the background; it is killed after, if it still runs."""
    temporary = directory / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "hfl_mqtt.cli", "demo", *options]
    said, said_wrong = directory / "stdout", directory / "stderr"
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with said.open("wb") as out, said_wrong.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
    one = Demo(process=process, temporary=temporary, said=said, said_wrong=said_wrong)
    try:
        yield one
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@dataclass(kw_only=True)
class Result:
    """What a demo that ran to its end has left."""

    status: int
    out: str
    err: str
    folder: Path
    left_behind: list[Path]

    @property
    def summary(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return read


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A demo, run to its end."""
    directory = tmp_path_factory.mktemp("first")
    with demo(directory, *SMALL, "--seed", "5", "--out", str(directory / "result")) as one:
        status = one.process.wait(LIMIT_S)
        return Result(status=status, out=one.out, err=one.err, folder=directory / "result", left_behind=one.folders())


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, bool]:
    """The same demo again, for a script, held up at the end, and then interrupted; whether all was up and then gone."""
    directory = tmp_path_factory.mktemp("held")
    options = (*SMALL, "--seed", "5", "--json", "--hold", "--out", str(directory / "result"))
    with demo(directory, *options) as one:
        one.wait_for("it holds", lambda: HOLDING in one.err)
        stayed = not ended_within(one.process, 1.0)
        roles = sorted(" ".join(child.cmdline()) for child in family(one.process.pid))
        was_up = stayed and sum("mosquitto -c" in role for role in roles) == 4
        was_up = was_up and sum(" edge " in role or " client " in role for role in roles) == 6
        status = one.tell(signal.SIGINT)
        result = Result(status=status, out=one.out, err=one.err, folder=directory / "result", left_behind=one.folders())
        return result, was_up and one.is_gone()


def test_a_demo_ends_well_and_leaves_nothing_but_its_result(first: Result) -> None:
    assert (first.status, first.err, first.left_behind) == (0, "", [])
    assert "stations never trained on" in first.out
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "journal.jsonl", "model.safetensors", "progress.png", "summary.json",
    ]  # fmt: skip


def test_the_summary_says_what_was_run_and_what_came_of_it(first: Result) -> None:
    summary = first.summary
    assert (summary["task"], summary["seed"], summary["rounds"]) == ("soil-moisture", 5, 2)
    assert 0 < summary["seconds"] < LIMIT_S
    metric = summary["metric"]
    assert metric["name"] == "rmse"
    assert len(metric["history"]) == 2
    assert metric["history"][-1] == metric["global"]
    for name in ("global", "persistence", "alone", "unseen", "unseen_persistence", "unseen_alone"):
        assert 0 < metric[name] < 0.2, f"{name} is a moisture in m3/m3"


def test_the_summary_counts_bytes_each_way_on_each_tier(first: Result) -> None:
    moved = first.summary["bytes"]
    assert {tier: sorted(ways) for tier, ways in moved.items()} == {"wan": ["down", "up"], "lan": ["down", "up"]}
    assert min(moved["wan"]["up"], moved["wan"]["down"]) > 50_000
    assert moved["lan"]["up"] > moved["wan"]["up"], "four devices a farm, and more rounds"
    last = first.summary["bytes_per_round"][-1]
    assert len(first.summary["bytes_per_round"]) == 2
    assert 0 < last["wan"]["up"] <= moved["wan"]["up"]


def test_the_summary_has_a_row_for_every_node(first: Result) -> None:
    nodes = first.summary["nodes"]
    assert sorted(node["role"] for node in nodes) == ["client"] * 12 + ["cloud"] + ["edge"] * 3
    assert len({node["path"] for node in nodes}) == 16
    below = 2 * soil_moisture.DEMO.edge_rounds
    for node in nodes:
        # The cloud closes a round with three updates; an edge its own with four; a device gives one to each of them.
        rounds, updates = {"cloud": (2, 2 * 3), "edge": (below, below * 4), "client": (below, below)}[node["role"]]
        assert (node["rounds"], node["updates"]) == (rounds, updates), node["path"]
        assert 10 < node["rss_peak_mb"] < 1000


def test_the_model_can_be_loaded_and_the_journal_read(first: Result) -> None:
    weights, tags = store.load(Path(first.summary["model"]))
    assert Path(first.summary["model"]).parent == first.folder
    assert (tags.task, tags.round, tags.digest) == ("soil-moisture", "g2", digest(weights))
    records = [json.loads(line) for line in (first.folder / "journal.jsonl").read_text().splitlines()]
    assert all({"at", "node", "event"} <= record.keys() for record in records)
    assert {record["node"] for record in records} == {node["path"] for node in first.summary["nodes"]}


def test_the_cloud_starts_when_all_others_are_there(first: Result) -> None:
    began: dict[str, str] = {}
    for record in map(json.loads, (first.folder / "journal.jsonl").read_text().splitlines()):
        if record["event"] == "connected":
            began.setdefault(record["node"], record["at"])
    cloud = began.pop("cloud")
    assert len(began) == 3 + 12
    assert all(at < cloud for at in began.values())


def test_the_plot_is_a_picture(first: Result) -> None:
    picture = (first.folder / "progress.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_the_same_seed_gives_the_same_model_to_the_last_bit(first: Result, held: tuple[Result, bool]) -> None:
    again = held[0]
    (_, one), (_, other) = (store.load(result.folder / "model.safetensors") for result in (first, again))
    assert one.digest == other.digest
    assert one.run != other.run
    assert first.summary["metric"] == again.summary["metric"]


def test_json_is_all_that_a_script_gets_on_stdout(held: tuple[Result, bool]) -> None:
    result = held[0]
    printed = json.loads(result.out)
    kept = ("seed", "metric", "model")
    assert {key: printed[key] for key in kept} == {key: result.summary[key] for key in kept}
    assert printed["model"] == str(result.folder / "model.safetensors")
    assert all(math.isfinite(value) for value in printed["metric"]["history"])


def test_hold_keeps_everything_up_until_ctrl_c(held: tuple[Result, bool]) -> None:
    result, was_up_and_gone = held
    assert (result.status, result.left_behind, was_up_and_gone) == (130, [], True)


def is_at(one: Demo, moment: str) -> bool:
    match moment:
        case "the start":
            return bool(one.folders())
        case "the brokers' start":
            return any("mosquitto" in " ".join(child.cmdline()) for child in family(one.process.pid) if alive(child))
        case "the nodes' start":
            return any("hfl_mqtt.cli client" in " ".join(child.cmdline()) for child in family(one.process.pid))
        case "training":
            journals = [path for path in one.temporary.rglob("journal.jsonl") if "clients" in str(path)]
            return any('"accepted"' in path.read_text() for path in journals)
        case _:
            raise AssertionError(moment)


def alive(child: psutil.Process) -> bool:
    return child.is_running() and child.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        (signal.SIGINT, "the start", 130),
        (signal.SIGINT, "the brokers' start", 130),
        (signal.SIGINT, "training", 130),
        (signal.SIGTERM, "the nodes' start", 130),
    ],
)
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_file(
    tmp_path: Path, number: int, moment: str, status: int
) -> None:
    with demo(tmp_path, *TINY) as one:
        one.wait_for(moment, lambda: is_at(one, moment))
        assert one.tell(number) == status
        assert one.is_gone()
        assert one.folders() == []
        assert "Traceback" not in one.out + one.err


def test_a_demo_that_is_killed_takes_every_process_with_it(tmp_path: Path) -> None:
    with demo(tmp_path, *TINY) as one:
        one.wait_for("training", lambda: is_at(one, "training"))
        assert one.tell(signal.SIGKILL) == -signal.SIGKILL
        assert len(one.children) >= 7, "two brokers, a cloud, an edge, the devices, and two processes that train"
        assert one.is_gone()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--farms", "0"), 2, "Invalid value for '--farms'"),
        (("--farms", "3", "--clients", "2"), 2, "2 devices do not fill 3 farms"),
        (("--clients", "500"), 3, "500 clients are too many"),
        (("--task", "soil-moister"), 2, "no task is called 'soil-moister', did you mean 'soil-moisture'?"),
        (("--task", "mnist", "--data-dir", "FILE"), 3, "put its four idx files, plain or .gz, there"),
        (("--out", "FILE"), 2, "cannot make the folder"),
    ],
)
def test_a_bad_option_is_told_in_one_line(tmp_path: Path, options: tuple[str, ...], status: int, said: str) -> None:
    # In place of a folder a file: what is not there could still be downloaded, or made.
    (tmp_path / "file").touch()
    with demo(tmp_path, *(str(tmp_path / "file") if option == "FILE" else option for option in options)) as one:
        assert one.process.wait(LEAVE_S) == status
        assert said in one.err.splitlines()[-1]
        assert "Traceback" not in one.err
        assert one.out == ""
        assert list(one.temporary.glob("hfl*")) == [], "torch may leave a folder of its own"
