"""The training process: models rebuilt from a seed, from weights and from chains, and what coding cuts off carried on.

All of it in one real process, started once; each test has a run of its own, so that nothing is known of it before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hfl_mqtt.learning import jobs, residuals, start
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.jobs import ModelBytes, TrainJob
from hfl_mqtt.learning.start import Start
from hfl_mqtt.learning.trainer import Evaluated, Failed, Initial, Trained
from hfl_mqtt.protocol.blobs import digest, next_digest
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import Kind, Plan
from hfl_mqtt.rounds import ladder
from hfl_mqtt.rounds.arithmetic import MAX_DELTAS
from tests.unit.learning.desks import ONE, TASK, Desk, sent

#: Says in a file beside it how many models it has built.
COUNTING = """
from pathlib import Path
import torch
from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("mse", higher_is_better=False)

def model():
    with Path(__file__).with_suffix(".built").open("a") as file:
        file.write("x")
    return torch.nn.Linear(4, 4)

def data(options):
    return (torch.eye(4), torch.ones(4, 4)), None

def loss(output, target):
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return ((output - target) ** 2).mean(1)
"""
#: Moves 64 numbers by 1, 2, ..., 64, whatever it is sent and however long it trains.
STEADY = """
import torch
from hfl_mqtt.learning.contracts import Metric, TrainResult

metric = Metric("mse", higher_is_better=False)

def model():
    return torch.nn.ParameterDict({"w": torch.zeros(64)})

def data(options):
    return (torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.ones(1, 1))

def loss(output, target):
    raise AssertionError("it trains by itself")

def score(output, target):
    raise AssertionError("it scores by itself")

def evaluate(model, data):
    from hfl_mqtt.learning.contracts import Score
    return Score(total=0.0, count=1)

def train(model, data, plan, stop):
    with torch.no_grad():
        model["w"] += torch.arange(1, 65)
    return TrainResult(loss=0.0, samples=1, steps=1)
"""
STEP = np.arange(1, 65, dtype="f4")
FLAT: Weights = {"w": np.zeros(64, dtype="f4")}
ABOVE = "cloud/farm-a"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("tasks"))
    yield desk
    desk.trainer.close()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run that no other test has."""
    name: str = request.node.name
    return name


def initial(desk: Desk, job: TrainJob, seed: int) -> Initial:
    desk.trainer.initial(job.task_options, seed)
    result = desk.result()
    assert isinstance(result, Initial), result
    return result


def failed(desk: Desk, job: TrainJob) -> str:
    desk.trainer.train(job)
    result = desk.result()
    assert isinstance(result, Failed), result
    return result.reason


def chained(model: ModelBytes, *deltas: bytes) -> ModelBytes:
    """A model with deltas behind it."""
    name = model.digest
    for delta in deltas:
        name = next_digest(name, digest(delta))
    all_deltas = (*model.deltas, *deltas)
    return replace(model, version=model.version + len(deltas), digest=name, deltas=all_deltas)


# ------------------------------------------------------------------ where a model starts


def test_a_seed_gives_the_model_that_its_weights_give(desk: Desk, run: str) -> None:
    job = desk.job("seed")
    weights = Start.read(initial(desk, job, 5).start, MAX_BLOB).weights()
    assert weights["0.weight"] != 1.0
    told = sent(weights, run=run)
    built = sent(weights, run=f"{run}b", start=start.of_seed(weights, 5))
    assert built.digest == told.digest
    first, second = desk.train(replace(job, model=told)), desk.train(replace(job, model=built))
    assert first.payload == second.payload
    assert first.tallies == second.tallies


def test_a_seed_that_gives_other_weights_here_fails_with_the_remedy(desk: Desk, run: str) -> None:
    job = desk.job("seed")
    weights = Start.read(initial(desk, job, 5).start, MAX_BLOB).weights()
    reason = failed(desk, replace(job, model=sent(weights, run=run, start=start.of_seed(weights, 6))))
    assert "built here from seed 6: this device's torch differs" in reason
    assert "set `initial: weights` in the cloud's YAML" in reason


def test_a_task_whose_first_model_is_another_each_time_is_not_reproducible(desk: Desk) -> None:
    clock = TASK.replace("def model():\n", "def model():\n    torch.seed()\n")
    assert not initial(desk, desk.job("x", task=clock), 1).is_reproducible
    assert initial(desk, desk.job("x"), 1).is_reproducible


# ------------------------------------------------------------------ chains


def test_deltas_lead_to_the_sum_and_are_added_in_their_order(desk: Desk, run: str) -> None:
    # In float32 1 + (2^-24 + 2^-24) is above 1, but (1 + 2^-24) + 2^-24 is 1: the sum of deltas is taken first.
    tiny = {"0.weight": np.array([[2.0**-24]], dtype="f4")}
    delta = desk.tensors.encode(tiny, "raw", 0)
    chain = chained(sent(ONE, run=run), delta, delta)
    there = {"0.weight": np.array([[1.0 + 2.0**-23]], dtype="f4")}
    one, other = desk.job("chain"), desk.job("weights")
    by_chain = desk.train(replace(one, model=chain))
    at_once = desk.train(replace(other, model=sent(there, run=run)))
    assert by_chain.payload == at_once.payload
    assert by_chain.tallies == at_once.tallies
    assert by_chain.tallies != desk.train(replace(one, model=sent(ONE, run=run))).tallies


def test_a_model_a_few_deltas_further_is_not_built_anew(desk: Desk, run: str) -> None:
    job = desk.job("count", task=COUNTING)
    weights = Start.read(initial(desk, job, 5).start, MAX_BLOB).weights()
    built = Path(str(job.task_options["file"])).with_suffix(".built")
    rng = np.random.default_rng(0)
    deltas = [
        desk.tensors.encode({n: rng.standard_normal(a.shape, "f4") for n, a in weights.items()}, "rot1", seed)
        for seed in range(3)
    ]

    def train(run: str, *known: bytes) -> tuple[bytes, int]:
        before = len(built.read_text())
        model = chained(sent(weights, run=run, start=start.of_seed(weights, 5)), *known)
        payload = desk.train(replace(job, model=model)).payload
        return payload, len(built.read_text()) - before

    # One model to train; a second one only where the first weights are needed.
    assert train(run)[1] == 2
    stepwise = [train(run, *deltas[:count]) for count in (1, 3)]
    assert [times for _, times in stepwise] == [1, 1]
    afresh = [train(f"{run}-{count}", *deltas[:count]) for count in (1, 3)]
    assert [times for _, times in afresh] == [2, 2]
    assert [payload for payload, _ in stepwise] == [payload for payload, _ in afresh]


def test_a_model_that_is_no_longer_kept_is_built_once_more(desk: Desk, run: str) -> None:
    job = desk.job("old")
    first = replace(job, model=sent(ONE, run=run))
    before = desk.train(first).payload
    for value in (2.0, 3.0, 4.0):
        desk.train(replace(job, model=sent({"0.weight": np.array([[value]], dtype="f4")}, run=run)))
    assert desk.train(first).payload == before


def test_a_chain_that_leads_elsewhere_is_refused(desk: Desk, run: str) -> None:
    job = desk.job("bad")
    delta, other = (desk.tensors.encode({"0.weight": np.array([[x]], "f4")}, "raw", 0) for x in (1.0, 2.0))
    chain = chained(sent(ONE, run=run), delta)
    assert "do not lead to its digest" in failed(desk, replace(job, model=replace(chain, deltas=(other,))))
    noise = chained(sent(ONE, run=run), b"no delta at all")
    assert "the model cannot be rebuilt" in failed(desk, replace(job, model=noise))


def test_what_the_process_has_of_a_model_is_not_sent_again(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[ModelBytes] = []
    pack = jobs.pack

    def watched(frame: jobs.Frame) -> bytes:
        if isinstance(frame, TrainJob):
            models.append(frame.model)
        return pack(frame)

    monkeypatch.setattr(jobs, "pack", watched)
    desk = Desk(tmp_path)
    try:
        delta = desk.tensors.encode({"0.weight": np.array([[0.5]], dtype="f4")}, "raw", 0)
        other = desk.tensors.encode({"0.weight": np.array([[0.7]], dtype="f4")}, "raw", 0)
        first, job = sent(ONE, run=run), desk.job("a")
        second, elsewhere = chained(first, delta), chained(first, other, delta)
        asked = [first, second, second, chained(first, other), elsewhere, first]
        found = [desk.train(replace(job, model=model)).payload for model in asked]
        assert [(model.since, len(model.deltas)) for model in models] == [
            (None, 0),
            (first.digest, 1),
            (second.digest, 0),
            (second.digest, 0),  # a guess by its version, and wrong:
            (None, 1),
            (chained(first, other).digest, 1),
            (None, 0),
        ]
        # A process that died has nothing any more.
        assert desk.trainer.pid is not None
        os.kill(desk.trainer.pid, signal.SIGKILL)
        desk.wait_for_line("signal 9")
        assert desk.train(replace(job, model=elsewhere)).payload == found[4]
        assert models[-1] == elsewhere
    finally:
        desk.trainer.close()
    assert found[0] == found[5]
    assert found[1] == found[2] != found[3]
    assert found[4] not in found[:4]


def test_many_deltas_come_back_as_one_without_loss(desk: Desk, run: str) -> None:
    job = desk.job("plus")
    tenth = {"0.weight": np.array([[0.1]], dtype="f4")}
    delta = desk.tensors.encode(tenth, "raw", 0)
    layout = desk.tensors.layout(job.model.start)

    long = chained(sent(ONE, run=run, size=len(delta)), delta, delta)
    trained = desk.train(replace(job, model=long))
    assert trained.plus is not None
    moved = np.float32(0.1) + np.float32(0.1)
    assert desk.tensors.decode(trained.plus, layout)["0.weight"].item() == moved
    # Not before their bytes are twice the model's, 2 of 2 x (size + 1) are not;
    short = replace(long, size=len(delta) + 1, run=f"{run}b")
    assert desk.train(replace(job, model=short)).plus is None
    # and without any delta there is nothing to say.
    assert desk.train(replace(job, model=sent(ONE, run=run, size=1))).plus is None

    # Whoever starts from it has the same bits, also one delta further on.
    fresh = ModelBytes(
        run=f"{run}c",
        version=2,
        digest=long.digest,
        key_version=2,
        key_digest=long.digest,
        size=long.size,
        start=long.start,
        plus=trained.plus,
    )
    assert desk.train(replace(job, model=fresh)).payload == trained.payload
    further, all_the_way = chained(fresh, delta), chained(long, delta)
    assert further.digest == all_the_way.digest
    again = replace(further, run=f"{run}d")
    assert desk.train(replace(job, model=again)).payload == desk.train(replace(job, model=all_the_way)).payload


def test_so_many_deltas_are_too_many_whatever_their_size(desk: Desk, run: str) -> None:
    job = desk.job("plus")
    delta = desk.tensors.encode({"0.weight": np.array([[0.5]], dtype="f4")}, "raw", 0)
    few = chained(sent(ONE, run=run, size=2**30), *[delta] * (MAX_DELTAS - 1))
    assert desk.train(replace(job, model=few)).plus is None
    plus = desk.train(replace(job, model=chained(few, delta))).plus
    assert plus is not None
    found = desk.tensors.decode(plus, desk.tensors.layout(job.model.start))
    assert found["0.weight"].item() == MAX_DELTAS / 2


# ------------------------------------------------------------------ what coding cuts off


def steady(desk: Desk, run: str, codec: str, residual: Path | None, **change: object) -> TrainJob:
    job = desk.job("steady", task=STEADY)
    kept = str(residual) if residual is not None else None
    job = replace(job, model=sent(FLAT, run=run), codec=codec, residual=kept)
    return replace(job, **change)  # type: ignore[arg-type]


def moved(desk: Desk, job: TrainJob) -> list[float]:
    """What an update says: 64 numbers."""
    values: list[float] = desk.tensors.decode(desk.train(job).payload, desk.tensors.layout(job.model.start))[
        "w"
    ].tolist()
    return values


def only(numbers: range, times: int = 1) -> list[float]:
    """The numbers from 1 to 64 where only these are said."""
    return [float(times * number) if number in numbers else 0.0 for number in range(1, 65)]


FIRST, SECOND = only(range(49, 65)), only(range(33, 49), times=2)


def waiting_one(path: Path) -> Path:
    """The residual of the one update that has no receipt yet."""
    (found,) = path.parent.glob(f"{path.name}.*")
    return found


def accept(path: Path) -> None:
    """Take it that the last update was accepted, where anything waits for that."""
    for waiting in path.parent.glob(f"{path.name}.*"):
        residuals.keep(path, waiting.suffix.removeprefix("."))


def test_what_was_cut_off_goes_with_the_next_update_once_this_one_was_accepted(
    desk: Desk, run: str, tmp_path: Path
) -> None:
    path = residuals.path_of(tmp_path, f"{ABOVE}/pi-07")
    job = steady(desk, run, "topk(0.25)", path)
    assert moved(desk, job) == FIRST  # the 16 largest of 1, 2, ..., 64
    assert not path.exists()
    waiting = residuals.load(waiting_one(path), run, ABOVE)
    assert waiting is not None
    assert waiting["w"].tolist() == only(range(1, 49))
    # Refused, or never received: as if it had not been.
    assert moved(desk, job) == FIRST
    accept(path)
    # 1 to 48 are owed: with the new step they are 2, 4, ..., 96, and 66 to 96 are now the 16 largest.
    assert moved(desk, job) == SECOND
    waiting = residuals.load(waiting_one(path), run, ABOVE)
    assert waiting is not None
    expected = np.array(only(range(1, 33), times=2)) + np.array(only(range(49, 65)))
    assert waiting["w"].tolist() == expected.tolist()


def test_another_run_and_another_parent_owe_nothing(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    owed = {"w": np.where(STEP <= 48, STEP, 0)}
    for own in (run, ABOVE), (f"{run}b", ABOVE), (run, "cloud/farm-b"):
        residuals.save(path, owed, *own)
        expected = SECOND if own == (run, ABOVE) else FIRST
        assert moved(desk, steady(desk, run, "topk(0.25)", path)) == expected


@pytest.mark.parametrize("name", ["v", "w"])
def test_a_file_that_cannot_be_used_is_passed_over(desk: Desk, run: str, tmp_path: Path, name: str) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    if name == "v":
        residuals.save(path, {"v": STEP}, run, ABOVE)
    else:
        path.write_bytes(b"\x00" * 100)
    assert moved(desk, steady(desk, run, "topk(0.25)", path)) == FIRST


def test_a_codec_without_loss_brings_what_was_owed_and_owes_nothing(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    residuals.save(path, {"w": STEP}, run, ABOVE)
    assert moved(desk, steady(desk, run, "shuffle | zstd", path)) == (2 * STEP).tolist()
    assert residuals.load(path, run, ABOVE) is not None
    accept(path)
    assert residuals.load(path, run, ABOVE) == {}


def test_a_round_that_only_evaluates_touches_no_residual(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    job = steady(desk, run, "topk(0.25)", path, plan=Plan(kind=Kind.EVALUATE, task="line"))
    desk.trainer.train(job)
    assert isinstance(desk.result(), Evaluated)
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_nothing_is_kept(desk: Desk, run: str) -> None:
    job = steady(desk, run, "topk(0.25)", None)
    assert moved(desk, job) == FIRST == moved(desk, job)


def test_a_full_or_missing_disk_fails_the_job_and_says_which_file(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path / "gone", "pi-07")
    assert f"{path.name}." in failed(desk, steady(desk, run, "topk(0.25)", path))


@pytest.mark.parametrize(
    "codec", ["bf16 | zstd", "rot1", "rot2", "rot4", "stc(0.03)", "topk(0.1) | int8 | zstd", *ladder.CODECS]
)
def test_what_is_sent_and_what_is_owed_are_what_was_trained(desk: Desk, run: str, tmp_path: Path, codec: str) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    rounds = 6
    total = np.zeros(64)
    for number in range(rounds):
        total += moved(desk, steady(desk, run, codec, path, seed=number))
        accept(path)
    owed = residuals.load(path, run, ABOVE)
    left = np.zeros(64) if owed is None else owed["w"]
    assert total + left == pytest.approx(rounds * STEP, rel=1e-5, abs=1e-3)
    assert (owed is None) == desk.tensors.is_lossless(codec)


def test_one_bit_a_weight_catches_up_with_what_was_trained(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    total = np.zeros(64)
    errors = []
    for number in range(1, 21):
        total += moved(desk, steady(desk, run, "rot1", path, seed=number))
        accept(path)
        errors.append(float(np.linalg.norm(total / number - STEP) / np.linalg.norm(STEP)))
    assert errors[0] > 0.3  # one update alone is rough,
    assert errors[-1] < errors[0] / 5  # their mean is not


def test_the_residual_of_a_device_is_written_for_its_own_run_and_parent(desk: Desk, run: str, tmp_path: Path) -> None:
    path = residuals.path_of(tmp_path, "pi-07")
    trained = desk.train(steady(desk, run, "rot1", path, client="cloud/farm-b/pi-07"))
    assert isinstance(trained, Trained)
    accept(path)
    assert residuals.load(path, run, "cloud/farm-b") is not None
    assert residuals.load(path, run, ABOVE) is None
