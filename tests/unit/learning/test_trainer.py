import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from hfl_mqtt.errors import Misuse
from hfl_mqtt.learning.jobs import MAX_REASON, pack
from hfl_mqtt.learning.start import Start
from hfl_mqtt.learning.trainer import (
    Evaluated,
    EvaluateJob,
    Failed,
    Initial,
    Result,
    Trained,
    Trainer,
)
from hfl_mqtt.protocol.limits import MAX_BLOB
from hfl_mqtt.protocol.messages import Kind, Plan, Tally
from tests.unit.learning.desks import ONE, PATIENCE_S, TASK, Desk, sent

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"
STUBBORN = (
    TASK
    + """
def train(model, data, plan, stop):
    print("training", flush=True)
    while True:
        time.sleep(0.01)
"""
)
KILLED = (
    TASK
    + """
def train(model, data, plan, stop):
    os.kill(os.getpid(), signal.SIGSEGV)
"""
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One desk for the tests that leave its process as it was, since starting torch takes seconds."""
    desk = Desk(tmp_path_factory.mktemp("tasks"))
    yield desk
    desk.trainer.close()


@pytest.fixture
def own_desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, cancel_grace_s=0.2)
    yield desk
    desk.trainer.close()


def test_the_agents_side_holds_neither_torch_nor_numpy() -> None:
    code = "import sys, hfl_mqtt.learning.trainer; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sent_model_is_scored_and_then_trained(desk: Desk) -> None:
    result = desk.train(desk.job("one"))
    assert result.job_id == "one"
    assert result.samples == 4
    # w = 1 says 1 and 1 where 3 and 4 are right: squared errors 4 and 9.
    assert result.tallies["rmse"] == Tally(total=13.0, count=2, is_root=True)
    assert result.tallies["loss"].count == 4
    assert result.seconds > 0


def test_the_payload_is_the_delta_of_a_plain_loop_over_the_same_batches(desk: Desk) -> None:
    # Without dropout, and worked in float32 as torch does, one example a step: w -= 0.01 * 2 * (w x - 3 x) * x.
    text = TASK.replace("Dropout(0.5)", "Dropout(0.0)")
    plan = Plan(task="line", epochs=2, batch_size=1, learning_rate=0.01)
    result = desk.train(desk.job("plain", task=text, plan=plan))
    w = 1.0
    for epoch in range(2):
        for i in np.random.default_rng([7, epoch]).permutation(4):
            x = float(i + 1)
            w -= 0.01 * 2 * (w * x - 3 * x) * x
    assert desk.delta(result)["0.weight"].item() == pytest.approx(w - 1.0, rel=1e-5)


def test_the_same_seed_gives_the_same_payload_to_the_last_bit(desk: Desk) -> None:
    first, second = desk.train(desk.job("first")), desk.train(desk.job("second"))
    other = desk.train(replace(desk.job("other"), seed=8))
    assert first.payload == second.payload != other.payload


def test_prints_of_user_code_go_to_the_log_and_never_into_frames(desk: Desk) -> None:
    desk.train(desk.job("loud"))
    desk.wait_for_line("a line on stdout")
    desk.wait_for_line("raw bytes on file descriptor 1")
    assert isinstance(desk.train(desk.job("again")), Trained)


def test_a_plan_that_evaluates_gives_tallies_only(desk: Desk) -> None:
    desk.trainer.train(desk.job("score", plan=Plan(kind=Kind.EVALUATE, task="line")))
    result = desk.result()
    assert isinstance(result, Evaluated)
    assert result.tallies == {"rmse": Tally(total=13.0, count=2, is_root=True)}


def test_evaluation_is_of_a_client_or_of_the_central_sets(desk: Desk) -> None:
    job = desk.job("x")
    for job_id, data_options in (("own", job.data_options), ("central", None)):
        desk.trainer.evaluate(
            EvaluateJob(
                id=job_id,
                client="cloud",
                task_options=job.task_options,
                data_options=data_options,
                model=job.model,
            )
        )
    own, central = desk.result(), desk.result()
    assert isinstance(own, Evaluated)
    assert isinstance(central, Evaluated)
    assert own.tallies["rmse"].total == 13.0
    assert central.tallies == {"unseen_rmse": Tally(total=16.0, count=1, is_root=True)}


def test_a_job_that_is_cancelled_while_its_model_is_asked_for_again_is_not_begun(desk: Desk) -> None:
    desk.train(desk.job("before"))
    pid = desk.trainer.pid
    # Of the version that the process has, and another model: it is sent a second time, unless nobody wants it any more.
    other = replace(desk.endless("given-up"), model=sent({"0.weight": np.array([[2.0]], np.float32)}))
    desk.trainer.train(other)
    desk.trainer.cancel("given-up")
    assert desk.result() == Failed(job_id="given-up", reason="cancelled", is_cancelled=True)
    assert desk.train(desk.job("after")).job_id == "after"
    assert desk.trainer.pid == pid


def test_equal_seeds_give_equal_first_models(desk: Desk) -> None:
    options = desk.job("x").task_options
    for seed in (1, 1, 2):
        desk.trainer.initial(options, seed)
    first, same, other = (desk.result() for _ in range(3))
    assert isinstance(first, Initial)
    assert isinstance(same, Initial)
    assert isinstance(other, Initial)
    assert first.start == same.start != other.start
    assert first.is_reproducible
    assert Start.read(first.start, MAX_BLOB).weights()["0.weight"].shape == (1, 1)
    assert (first.parameters, first.metric, first.higher_is_better) == (1, "rmse", False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": sent(ONE, digest="0" * 64)}, "the model cannot be rebuilt: its deltas do not lead to its digest"),
        ({"model": sent(ONE, start=b"no model", run="r2")}, "the model cannot be rebuilt: not the start of a model"),
        ({"model": sent({"0.weight": np.ones((1, 2), "f4")})}, "give every node the same task"),
        ({"task_options": {"name": "nonsense"}}, "no task is called 'nonsense'"),
        ({"codec": "nonsense"}, "nonsense"),
        ({"data_options": {"refuse": True}}, r"task_\d+\.py:13: data\(\) raised ValueError: no hive here"),
        ({"data_options": {"n": 0}}, "no training examples"),
        ({"plan": Plan(task="line", epochs=50, learning_rate=1000.0)}, "training loss is .*: lower the learning rate"),
    ],
)
def test_what_cannot_be_trained_fails_with_its_reason_and_the_process_lives_on(
    desk: Desk, change: dict[str, Any], reason: str
) -> None:
    desk.train(desk.job("before"))
    pid = desk.trainer.pid
    desk.trainer.train(replace(desk.job("bad"), **change))
    result = desk.result()
    assert isinstance(result, Failed)
    assert result.job_id == "bad"
    assert not result.is_cancelled
    assert re.search(reason, result.reason)
    assert len(result.reason) <= MAX_REASON
    desk.train(desk.job("after"))
    assert desk.trainer.pid == pid


def giving(loss: float, samples: float) -> str:
    result = f"TrainResult(loss={loss}, samples={samples}, steps=1)"
    return f"{TASK}\ndef train(model, data, plan, stop):\n    return {result}\n"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (giving(1.0, -1), r"train\(\) gave samples=-1: return how many examples were trained on"),
        (giving(1.0, 2**40 + 1), r"train\(\) gave samples=1099511627777: .* 0 to 1099511627776"),
        (giving(1.0, 2.5), r"train\(\) gave samples=2.5"),
        (giving(1e300, 2), r"loss adds up to 2e\+300 over 2 examples: at most 1e\+300"),
        (TASK.replace('"rmse"', '"r" * 65'), "the metric's name 'r{65}' is no text of at most 64 characters"),
        (
            TASK + "\nfrom hfl_mqtt.learning.contracts import Score\n"
            "def evaluate(model, data):\n    return Score(total=1.0, count=-1)\n",
            "rmse adds up to 1 over -1 examples",
        ),
    ],
)
def test_what_no_update_can_carry_fails_in_the_training_process(desk: Desk, task: str, reason: str) -> None:
    desk.trainer.train(desk.job("bad", task=task))
    result = desk.result()
    assert isinstance(result, Failed)
    assert re.search(reason, result.reason), result.reason


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ("{str(i): None for i in range(17)}", r"central_data\(\) gave 17 sets: at most 16 can be reported"),
        ("{'u' * 60: None}", "the metric's name 'u{60}_rmse' is no text of at most 64 characters"),
    ],
)
def test_central_sets_that_cannot_be_reported_fail_in_the_training_process(desk: Desk, sets: str, reason: str) -> None:
    job = desk.job("bad", task=f"{TASK}\ndef central_data():\n    return {sets}\n")
    desk.trainer.evaluate(EvaluateJob(id=job.id, client="cloud", task_options=job.task_options, model=job.model))
    result = desk.result()
    assert isinstance(result, Failed)
    assert re.search(reason, result.reason), result.reason


def test_an_exit_in_user_code_is_a_failure_like_any_other(desk: Desk) -> None:
    desk.trainer.train(desk.job("exit", task=TASK + "\ndef train(model, data, plan, stop):\n    sys.exit(1)\n"))
    result = desk.result()
    assert isinstance(result, Failed)
    assert "raised SystemExit" in result.reason


def test_jobs_run_in_order_and_a_waiting_one_is_cancelled_at_once(desk: Desk) -> None:
    for job_id in ("a", "b", "c"):
        desk.trainer.train(desk.endless(job_id) if job_id == "a" else desk.job(job_id))
    desk.trainer.cancel("b")
    assert desk.result() == Failed(job_id="b", reason="cancelled", is_cancelled=True)
    desk.trainer.cancel("a")
    assert desk.result() == Failed(job_id="a", reason="cancelled", is_cancelled=True)
    last = desk.result()
    assert isinstance(last, Trained)
    assert last.job_id == "c"


def test_a_job_is_cancelled_while_it_trains_and_the_process_lives_on(desk: Desk) -> None:
    desk.train(desk.job("before"))
    pid = desk.trainer.pid
    desk.trainer.train(desk.endless("long"))
    desk.wait_for_line("^training$")
    desk.trainer.cancel("long")
    assert desk.result() == Failed(job_id="long", reason="cancelled", is_cancelled=True)
    desk.train(desk.job("after"))
    assert desk.trainer.pid == pid


def test_a_cancelled_job_may_be_given_again_under_its_id(desk: Desk) -> None:
    desk.trainer.train(desk.endless("same"))
    desk.trainer.cancel("same")
    assert desk.result() == Failed(job_id="same", reason="cancelled", is_cancelled=True)
    desk.train(desk.job("same"))


def test_options_that_cannot_travel_raise_at_the_caller(desk: Desk) -> None:
    with pytest.raises(TypeError, match="options hold a object"):
        desk.trainer.train(desk.job("odd", thing=object()))


def test_the_example_of_the_documentation_trains(desk: Desk, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "task.py").write_text(code)
    days = "\n".join(f"{30 + i},{10 + i},{30.5 + i}" for i in range(20))
    (tmp_path / "hive.csv").write_text("weight,temperature,tomorrow\n" + days)
    options = {"file": str(tmp_path / "task.py")}
    desk.trainer.initial(options, seed=0)
    initial = desk.result()
    assert isinstance(initial, Initial)
    job = desk.job("hive", csv=str(tmp_path / "hive.csv"))
    model = sent(Start.read(initial.start, MAX_BLOB).weights(), start=initial.start)
    result = desk.train(replace(job, task_options=options, model=model))
    assert result.samples == 16
    assert result.tallies["rmse"].count == 4


def test_a_process_that_is_killed_fails_its_job_and_the_next_job_works(own_desk: Desk) -> None:
    own_desk.trainer.train(own_desk.endless("lost"))
    own_desk.trainer.train(own_desk.job("next"))
    own_desk.wait_for_line("^training$")
    pid = own_desk.trainer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    lost = own_desk.result()
    assert isinstance(lost, Failed)
    assert lost.job_id == "lost"
    assert "training process died (signal 9, perhaps out of memory" in lost.reason
    following = own_desk.result()
    assert isinstance(following, Trained)
    assert following.job_id == "next"
    assert own_desk.trainer.pid != pid


def test_a_crash_in_native_code_fails_its_job(own_desk: Desk) -> None:
    own_desk.trainer.train(own_desk.job("crash", task=KILLED))
    result = own_desk.result()
    assert isinstance(result, Failed)
    assert "signal 11" in result.reason


def test_a_loop_that_ignores_stop_is_ended_with_its_process(own_desk: Desk) -> None:
    own_desk.trainer.train(own_desk.job("deaf", task=STUBBORN))
    own_desk.wait_for_line("^training$")
    own_desk.trainer.cancel("deaf")
    result = own_desk.result()
    assert isinstance(result, Failed)
    assert result.is_cancelled
    assert "did not stop" in result.reason
    assert own_desk.trainer.pid is None


def test_an_idle_process_is_ended_and_started_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, idle_s=0.1)
    desk.train(desk.job("one"))
    desk.wait_for_line("training process ended: idle")
    assert desk.trainer.pid is None
    desk.train(desk.job("two"))
    desk.trainer.close()


def test_a_process_that_cannot_start_fails_each_job_with_the_reason(tmp_path: Path) -> None:
    results: SimpleQueue[Result] = SimpleQueue()
    lines: SimpleQueue[str] = SimpleQueue()
    trainer = Trainer(results.put, device="nonsense", on_log=lines.put)
    desk = Desk(tmp_path)
    trainer.train(desk.job("one"))
    result = results.get(timeout=PATIENCE_S)
    assert isinstance(result, Failed)
    assert "set device to cpu" in result.reason
    trainer.close()
    desk.trainer.close()


def test_closing_ends_the_process_and_answers_every_job(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.trainer.train(desk.endless("one"))
    desk.trainer.train(desk.job("two"))
    desk.wait_for_line("^training$")
    pid = desk.trainer.pid
    assert pid is not None
    desk.trainer.close()
    desk.trainer.close()
    answers = [desk.result(), desk.result()]
    assert [answer.job_id for answer in answers] == ["one", "two"]
    assert all(isinstance(answer, Failed) and answer.is_cancelled for answer in answers)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Misuse):
        desk.trainer.train(desk.job("three"))


def test_the_process_vanishes_with_its_agent_while_it_trains(tmp_path: Path) -> None:
    job = Desk(tmp_path)
    endless = pack(job.endless("orphan"))
    job.trainer.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "hfl_mqtt.learning.worker", "--device", "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=False,
    )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(endless)
        process.stdin.flush()
        for line in process.stderr:
            if line == b"training\n":
                break
        process.stdin.close()  # what the kernel does when the agent dies
        assert process.wait(timeout=PATIENCE_S) == 0
