from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.learning.sources.readings import (
    MAX_CONTAINERS,
    MAX_READING,
    Reading,
    read_cell,
    read_number,
    read_payload,
    read_time,
)
from hfl_mqtt.learning.sources.source import Column

SOIL = Column(name="soil", field="soil.vwc", least=0, most=1)
AIR = Column(name="air", field="air")
BARE = Column(name="air")


def test_a_bare_number_is_a_reading() -> None:
    assert read_payload(b" -4.5\n", [BARE], "") == Reading(None, {"air": -4.5})


def test_numbers_are_found_in_json_by_their_way_through_lists_too() -> None:
    said = b'{"soil": {"vwc": 0.25}, "air": "7.5", "probes": [1, 2]}'
    probe = Column(name="probe", field="probes.1")
    assert read_payload(said, [SOIL, AIR, probe], "").values == {"soil": 0.25, "air": 7.5, "probe": 2.0}


def test_a_missing_field_is_missing_and_a_bad_one_is_told_of_while_the_others_count() -> None:
    assert read_payload(b'{"air": 3, "soil": null}', [SOIL, AIR], "") == Reading(None, {"air": 3.0})
    found = read_payload(b'{"air": 3, "soil": {"vwc": 65535}}', [SOIL, AIR], "")
    assert found == Reading(None, {"air": 3.0}, ("soil: 65535 is not within 0 to 1",))


def test_a_message_with_none_of_the_fields_is_a_bad_one() -> None:
    with pytest.raises(Malformed, match=r"has none of soil\.vwc, air"):
        read_payload(b'{"battery": 80}', [SOIL, AIR], "")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"on",
        b"\xff\xfe",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b'{"air": NaN}',
        b"[" * 16_000,
        b'{"a":' * 60 + b"1" + b"}" * 60,
        b"[1]" * (MAX_CONTAINERS + 1),
        b"1" * (MAX_READING + 1),
        b"9" * 5000,
    ],
)
def test_what_is_no_reading_is_refused(said: bytes) -> None:
    try:
        found = read_payload(said, [BARE], "")
    except Malformed:
        return
    assert found.values == {}
    assert found.faults


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_comes_gives_finite_numbers_or_a_reason(said: bytes) -> None:
    try:
        found = read_payload(said, [SOIL, AIR, BARE], "time")
    except Malformed:
        pass  # the reason is for people
    else:
        assert all(map(math.isfinite, found.values.values()))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_json_says_gives_a_finite_number_or_a_reason(value: object) -> None:
    try:
        found = read_payload(json.dumps({"air": value}).encode(), [AIR], "")
    except Malformed:
        pass  # the reason is for people
    else:
        assert all(map(math.isfinite, found.values.values()))


def test_a_contact_that_says_true_is_one() -> None:
    assert [read_number(value) for value in (True, False, "12")] == [1.0, 0.0, 12.0]


def test_times_are_seconds_or_finer_or_written_out_and_utc_without_a_zone() -> None:
    noon_s = 1_780_315_200.0
    said = ["2026-06-01T12:00:00", "2026-06-01T12:00:00Z", "2026-06-01T14:00:00+02:00", noon_s, noon_s * 1e3]
    assert {read_time(one) for one in [*said, noon_s * 1e6, noon_s * 1e9, str(noon_s)]} == {noon_s}
    assert read_time("2026-06-01") == noon_s - 12 * 3600


@pytest.mark.parametrize("said", [None, "yesterday", -1, math.inf, "2400-01-01", [], {}, "x" * 5000])
def test_what_is_no_time_is_refused(said: object) -> None:
    with pytest.raises(Malformed):
        read_time(said)


def test_a_reading_without_the_time_it_should_have_is_refused() -> None:
    with pytest.raises(Malformed, match="has no time"):
        read_payload(b'{"air": 3}', [AIR], "time")


def test_an_empty_cell_is_missing_however_files_write_that() -> None:
    assert [read_cell(text, BARE) for text in ("", " ", "NA", "nan", "None", "-")] == [None] * 6
    assert read_cell(" 2.5 ", BARE) == 2.5
