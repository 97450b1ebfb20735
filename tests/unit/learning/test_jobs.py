import datetime
import io
import struct
from pathlib import Path

import msgpack
import pytest

from hfl_mqtt.learning import jobs
from hfl_mqtt.learning.jobs import Failed, InitialJob, ModelBytes, Trained, TrainJob
from hfl_mqtt.protocol.messages import Kind, Plan, Tier


def test_a_frame_comes_back_as_it_went() -> None:
    job = TrainJob(
        id="1",
        client="cloud/pi",
        task_options={"name": "mnist", "data_dir": "x", "depths": {7: [1, 2.5, None]}},
        data_options={},
        plan=Plan(kind=Kind.EVALUATE, task="mnist", tiers=(Tier(quorum=3),)),
        seed=2**53,
        codec="raw",
        model=ModelBytes(
            run="r1",
            version=3,
            digest="d3",
            key_version=1,
            key_digest="d1",
            size=8,
            start=b"\x00\xff",
            plus=b"",
            deltas=(b"\x01", b"\x02\xff"),
        ),
        residual="pi.residual",
    )
    stream = io.BytesIO(jobs.pack(job) + jobs.pack(Failed(job_id="1", reason="no")))
    assert jobs.read(stream) == job
    assert jobs.read(stream) == Failed(job_id="1", reason="no")
    assert jobs.read(stream) is None


@pytest.mark.parametrize("plus", [None, b"", b"\xff"])
def test_that_there_is_no_new_start_differs_from_an_empty_one(plus: bytes | None) -> None:
    trained = Trained(job_id="1", payload=b"\x00", samples=1, tallies={}, seconds=0.5, plus=plus)
    assert jobs.read(io.BytesIO(jobs.pack(trained))) == trained


def test_what_only_yaml_has_travels_as_text() -> None:
    job = InitialJob(id="1", task_options={"since": datetime.date(2020, 1, 2), "file": Path("a/b")}, seed=3)
    back = jobs.read(io.BytesIO(jobs.pack(job)))
    assert isinstance(back, InitialJob)
    assert back.task_options == {"since": "2020-01-02", "file": "a/b"}


@pytest.mark.parametrize("size", range(0, 40, 7))
def test_a_stream_that_ends_within_a_frame_has_ended(size: int) -> None:
    whole = jobs.pack(Failed(job_id="1", reason="a reason of some length"))
    assert jobs.read(io.BytesIO(whole[:size])) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        *(
            struct.pack(">I", len(body)) + body
            for body in (
                b"\xc1",
                msgpack.packb([1]),
                msgpack.packb({"type": "os.system"}),
                msgpack.packb({"type": "Failed"}),
            )
        ),
    ],
)
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"frame|Failed|^$"):
        jobs.read(io.BytesIO(data))


def test_a_model_says_no_more_than_what_comes_after_one_that_is_there() -> None:
    model = ModelBytes(
        run="r1",
        version=5,
        digest="d5",
        key_version=2,
        key_digest="d2",
        size=8,
        start=b"s",
        plus=b"p",
        deltas=(b"3", b"44", b"555"),
    )
    rest = model.after("r1", 4, "d4")
    assert (rest.start, rest.plus, rest.deltas, rest.since) == (b"", None, (b"555",), "d4")
    assert (rest.left_out, rest.left_out_bytes, rest.digest) == (2, 3, "d5")
    assert model.after("r1", 2, "d2").deltas == model.deltas
    assert model.after("r1", 5, "d5").deltas == ()
    # Of another run, from before its keyframe, further than it.
    for run, version in (("r2", 4), ("r1", 1), ("r1", 6)):
        assert model.after(run, version, "d") is model
