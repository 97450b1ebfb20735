"""A model that takes seconds to cross a bridge: everything arrives, small messages stay quick, nothing is given up."""

import pytest

from benchmarks import bulk
from benchmarks.memory import memory_of
from hfl_mqtt.ops import journal

#: 4 MB at 4 Mbit/s: 8 s for the update, a little less for the weights, which are packed.
MEGABYTES, RATE_MBIT_S = 4.0, 4.0


@pytest.fixture(scope="module")
def crossing() -> tuple[list[dict[str, object]], list[float], tuple[int, int]]:
    """What was noted, how late each heartbeat was, and the bytes up and down the bridge."""
    with bulk.slow_farm(MEGABYTES, RATE_MBIT_S) as (federation, heart):
        bulk.wait_for_the_end(federation)
        notes = [note for path in federation.journals() for note in journal.read(path)]
        return notes, list(heart.late_s), federation.wan_bytes()


def test_a_slow_bridge_makes_nobody_give_up(crossing: tuple[list[dict[str, object]], list[float], object]) -> None:
    stumbles = {"refused", "declined", "missed", "extended", "given_up", "abandoned", "malformed", "disconnected"}
    assert [note for note in crossing[0] if note["event"] in stumbles and note["node"] != "cloud/farm-0/pi-0"] == []


def test_nothing_crosses_twice(crossing: tuple[object, object, tuple[int, int]]) -> None:
    up, down = (size / 1e6 for size in crossing[2])
    assert MEGABYTES < up < 1.1 * MEGABYTES
    assert 0.75 * MEGABYTES < down < 1.1 * MEGABYTES


def test_heartbeats_stay_under_half_a_second(crossing: tuple[object, list[float], object]) -> None:
    late_s = sorted(crossing[1])
    assert len(late_s) > 20
    assert late_s[len(late_s) // 2] < 0.25
    assert late_s[-2] < 0.5  # one may be put off by this machine itself


def test_an_edge_that_makes_keyframes_holds_no_line_of_their_parts() -> None:
    raw = {"codec": "raw", "downlink": "raw"}
    with bulk.slow_farm(20.0, 1000.0, ({**raw, "open_for": "10 min"}, {**raw, "rounds": 4})) as (federation, _):
        bulk.wait_for_the_end(federation)
        memory = memory_of(federation.processes["cloud/farm-0"].pid)
        notes = [note for path in federation.journals() for note in journal.read(path)]
    assert [note["node"] for note in notes if note["event"] == "keyframe"].count("cloud/farm-0") >= 1
    assert memory is not None
    assert memory.peak_mb < 60 + 3.5 * 20
