from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hfl_mqtt.config import units

YEAR_S = 366 * 86400


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90.0),
        (0, 0.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90 s", 90.0),
        ("5min", 300.0),
        ("2 h", 7200.0),
        ("1 d", 86400.0),
        ("250 ms", 0.25),
        (" .5 min ", 30.0),
        ("1e-3", 0.001),
        ("366 d", YEAR_S),
    ],
)
def test_a_duration_is_read_with_its_unit(written: Any, seconds: float) -> None:
    assert TypeAdapter(units.Duration).validate_python(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "5 m", "five min", "-1 s", -1, True, None, [], "1 h 30 min", "367 d", "1e999", float("nan"), "٣ s" * 50],
)
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be "):
        units.parse_duration(written)


def test_m_is_refused_because_it_could_be_minutes_or_milliseconds() -> None:
    with pytest.raises(ValueError, match="got '5 m': write min, or ms"):
        units.parse_duration("5 m")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (512, 512),
        ("512 B", 512),
        ("256 KiB", 262_144),
        ("2 MB", 2_000_000),
        ("1 GiB", 2**30),
        ("1.5 kB", 1500),
        ("1KB", 1000),
    ],
)
def test_a_size_is_read_with_its_unit(written: Any, size: int) -> None:
    assert TypeAdapter(units.Size).validate_python(written) == size


@pytest.mark.parametrize("written", ["1.5 B", "0.3 KiB", "3 mb", "-1 B", True, None, "99999999 GiB"])
def test_what_is_no_size_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be a size"):
        units.parse_size(written)


@pytest.mark.parametrize(
    ("written", "share"), [("50 %", 0.5), ("50%", 0.5), (0.5, 0.5), (1, 1.0), ("100 %", 1.0), (".1", 0.1)]
)
def test_a_share_is_a_fraction_or_a_percentage(written: Any, share: float) -> None:
    assert TypeAdapter(units.Share).validate_python(written) == share


def test_fifty_is_no_share_and_the_message_guesses_what_was_meant() -> None:
    with pytest.raises(ValueError, match="got 50, did you mean '50 %'"):
        units.parse_share(50)


@pytest.mark.parametrize("written", [0, 0.0, "0 %", "101 %", 1.01, -0.5, True, "1e-999"])
def test_a_share_is_over_0_and_at_most_1(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be a share"):
        units.parse_share(written)


@pytest.mark.parametrize(
    ("written", "quorum"), [("50 %", 0.5), (0.5, 0.5), (3, 3), ("3", 3), (1, 1), (1.0, 1.0), ("100 %", 1.0), ("1", 1)]
)
def test_a_whole_quorum_is_a_count_and_all_else_a_share(written: Any, quorum: float) -> None:
    got = TypeAdapter(units.Quorum).validate_python(written)
    assert (type(got), got) == (type(quorum), quorum)


@pytest.mark.parametrize("written", [0, -1, 1.5, 3.0, "0 %", "101 %", "3 d", True, None, 1_000_001])
def test_what_is_no_quorum_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be a share such as 50 % or 0.5, or a count"):
        units.parse_quorum(written)


@given(st.floats(min_value=0, max_value=YEAR_S))
def test_a_duration_written_and_read_again_is_the_same(seconds: float) -> None:
    assert units.parse_duration(units.duration_text(seconds)) == seconds


@given(st.integers(min_value=0, max_value=YEAR_S))
def test_whole_seconds_are_written_without_a_fraction(seconds: int) -> None:
    assert units.duration_text(seconds).split()[0].isdigit() or seconds == 0


@given(st.text() | st.floats() | st.integers() | st.none() | st.booleans() | st.lists(st.integers()))
def test_no_value_raises_anything_but_value_error(value: Any) -> None:
    for parse in (units.parse_duration, units.parse_size, units.parse_share, units.parse_quorum):
        try:
            parse(value)
        except ValueError as error:
            assert str(error).startswith("must be ")  # noqa: PT017


def test_a_relative_path_is_relative_to_the_file_it_stands_in(tmp_path: Path) -> None:
    path = TypeAdapter(units.LocalPath).validate_python("runs/a", context={"folder": tmp_path})
    assert path == tmp_path / "runs" / "a"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    path = TypeAdapter(units.LocalPath).validate_python("~/secret", context={"folder": tmp_path})
    assert path == Path("/home/somebody/secret")


@pytest.mark.parametrize("kind", [units.Whole, units.Real])
def test_true_is_no_number(kind: Any) -> None:
    with pytest.raises(ValueError, match="must be a number, got true"):
        TypeAdapter(kind).validate_python(True)
