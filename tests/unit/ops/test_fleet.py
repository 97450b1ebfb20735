"""What a viewer makes of the retained topics, and that no word of a node reaches the terminal as a command."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from hfl_mqtt.ops.fleet import MAX_NODES, Fleet, size, table
from hfl_mqtt.protocol.messages import (
    Info,
    Manifest,
    Message,
    Metrics,
    Phase,
    Plan,
    Quarantined,
    RoundCall,
    State,
    StateName,
)
from hfl_mqtt.protocol.wire import Frame, encode
from hfl_mqtt.transport.link import Arrived

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\n"


def heard(fleet: Fleet, path: str, *messages: Message, at_s: float = 0.0) -> None:
    for message in messages:
        fleet.take(Arrived(frame=encode(message, "fed1", path)), at_s)


def raw(fleet: Fleet, topic: str, payload: bytes) -> None:
    fleet.take(Arrived(frame=Frame(topic=topic, payload=payload)), 0.0)


def shown(fleet: Fleet, *, now: float = 0.0, colours: bool = False, **options: Any) -> str:
    out = io.StringIO()
    terminal = Console(file=out, width=200, force_terminal=colours, color_system="standard" if colours else None)
    terminal.print(table(fleet, now, title="federation fed1", **options))
    return out.getvalue()


def test_parents_stand_before_their_children_with_state_round_scores_and_age() -> None:
    fleet = Fleet()
    heard(fleet, "cloud/farm-a/pi-1", State(state=StateName.TRAINING, boot=1), at_s=3.0)
    heard(fleet, "cloud/farm-a", State(state=StateName.LOST, boot=1))
    heard(fleet, "cloud", Info(role="cloud", boot=1))
    values: dict[str, Any] = {"round": "g2", "in": 1, "of": 2, "rmse": 0.5, "loss": 0.25, "up_bytes": 2_500_000}
    heard(fleet, "cloud", Metrics(values={**values, "cpu_percent": 3, "samples": 7, "mb_up": 0.5, "mb_down": 1.5}))
    assert [view.path for view in fleet.nodes()] == ["cloud", "cloud/farm-a", "cloud/farm-a/pi-1"]
    rows = [" ".join(line.replace("│", " ").split()) for line in shown(fleet, now=5.0).splitlines()]
    # `heard` speaks as a broker that had kept all of it.
    expected = ["cloud ? g2 1/2 rmse 0.5000 0.25 2.5 MB > 5 s", "farm-a lost > 5 s", "pi-1 training > 2 s"]
    assert [row for row in rows if row.endswith(" s")] == expected


def test_a_round_is_open_until_its_figures_are_there_or_it_is_told_to_be_over() -> None:
    fleet = Fleet()
    manifest = Manifest(version=0, digest="0" * 16, key=0)
    call = RoundCall(
        run="r1",
        round=(2, 1),
        phase=Phase.OPEN,
        asked=1,
        quorum=1,
        open_for_s=60.0,
        codec="raw",
        plan=Plan(task="line"),
        model=manifest,
    )
    heard(fleet, "cloud/farm-a", call, Metrics(values={"round": "g1.e1"}))
    assert "g2.e1 open" in shown(fleet)
    heard(fleet, "cloud/farm-a", Metrics(values={"round": "g2.e1"}))
    assert "open" not in shown(fleet)
    heard(fleet, "cloud/farm-a", replace(call, phase=Phase.FINISHED))
    assert "g2.e1 end" in shown(fleet)


def test_a_script_sees_the_same() -> None:
    fleet = Fleet()
    heard(fleet, "cloud", Info(role="cloud", boot=1), State(state=StateName.READY, boot=1))
    heard(fleet, "cloud", Metrics(values={"round": "g2", "rmse": None}))
    assert fleet["cloud"].as_json(1.5) == {
        "path": "cloud",
        "role": "cloud",
        "state": "ready",
        "reason": None,
        "quarantined": {},
        "round": "g2",
        "phase": None,
        "metrics": {"round": "g2", "rmse": None},
        "age_s": 1.5,
        "is_live": False,
    }


def test_what_is_wrong_stands_below_the_table_in_the_words_of_whom_it_befell() -> None:
    fleet = Fleet()
    heard(fleet, "cloud", Metrics(values={"rmse": 0.5, "refused": 3, "refused_why": "cloud/a: forged"}))
    heard(fleet, "cloud/a", State(state=StateName.READY, boot=1, reason=f"what cloud calls is not signed{HOSTILE}"))
    heard(fleet, "cloud/a", Quarantined(children={"cloud/a/pi-1": "a flood"}))
    text = shown(fleet)
    assert "refused 3.0" not in text, "it is no score"
    said = " ".join(text.split())
    assert "cloud: 3 refused, the last of cloud/a: forged cloud/a: what cloud calls is not signed\\x1b[2J" in said
    assert "cloud/a: does not hear pi-1: a flood" in said
    heard(fleet, "cloud/a", State(state=StateName.READY, boot=1), Quarantined())
    assert "cloud/a:" not in shown(fleet).replace("last of cloud/a:", "")


def test_ever_more_troubles_do_not_push_the_table_off_the_screen() -> None:
    fleet = Fleet()
    for number in range(20):
        heard(fleet, f"cloud/a/pi-{number}", State(state=StateName.READY, boot=1, reason="no battery " * 20))
    told = " ".join(shown(fleet).split())
    assert told.count(": no battery") == 4
    assert "... and 16 more" in told


def test_what_is_said_now_has_an_age_and_what_the_broker_kept_is_at_least_as_old() -> None:
    fleet = Fleet()
    raw(fleet, "hfl/fed1/cloud/@/stat/state", b'{"v":1,"state":"ready","boot":1}')
    assert fleet["cloud"].as_json(2.0)["is_live"] is True
    assert " > " not in shown(fleet, now=2.0)
    assert " 2 s" in shown(fleet, now=2.0)


def test_a_narrow_terminal_does_without_some_columns_and_keeps_the_names() -> None:
    fleet = Fleet()
    heard(fleet, "cloud/a-farm-with-a-long-name", State(state=StateName.READY, boot=1))
    assert "down" in shown(fleet, width=120)
    narrow = shown(fleet, width=80)
    assert "down" not in narrow
    assert "a-farm-with-a-long-name" in narrow


def test_an_empty_federation_says_what_to_look_at() -> None:
    assert "Is its name right" in shown(Fleet())


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("hfl/fed1/cloud/@/stat/state", b"\xff\x00 not JSON"),
        ("hfl/fed1/cloud/@/stat/state", b"[" * 10_000),
        ("hfl/fed1/cloud/@/stat/state", b'{"v":1,"state":"dancing","boot":1}'),
        ("hfl/fed1/cloud/@/stat/state", b'{"v":99,"state":"ready","boot":1}'),
        ("hfl/fed1/cloud/@/stat/metrics", b'{"rmse":NaN}'),
        ("hfl/fed1/cloud/@/stat/metrics", b'{"rmse":[1]}'),
        ("hfl/fed1/cloud/@/stat/metrics", b'{"\\ud800":1}'),
        ("hfl/fed1/cloud/@/stat/metrics", b"1" * 16_001),
        ("hfl/fed1/cloud/@/stat/unheard", b"{}"),
        ("hfl/fed1/cl\x1b[2Joud/@/stat/state", b"{}"),
        ("hfl/fed1/[red]x/@/stat/state", b"{}"),
        ("hfl/fed1", b"{}"),
    ],
)
def test_junk_shows_no_node(topic: str, payload: bytes) -> None:
    fleet = Fleet()
    raw(fleet, topic, payload)
    assert fleet.nodes() == []


@pytest.mark.parametrize("text", ["[red]x[/]", "[/]", "[link=http://evil.example]x[/link]", "[bold", "\\[", ":smiley:"])
def test_markup_in_a_nodes_words_is_shown_as_it_stands(text: str) -> None:
    fleet = Fleet()
    heard(fleet, "cloud", Metrics(values={text: 0.5, "round": text, "in": 1, "of": text}))
    coloured = shown(fleet, colours=True)
    assert f"{text} 0.5000" in coloured
    assert f"1/{text}" in coloured
    assert "http" not in coloured or "\x1b]8" not in coloured


def test_escape_codes_in_a_nodes_words_reach_the_terminal_as_text() -> None:
    fleet = Fleet()
    heard(fleet, "cloud", Metrics(values={HOSTILE: 1.0, "round": HOSTILE, "in": HOSTILE, "of": 2, "loss": HOSTILE}))
    other = Fleet()
    heard(other, "cloud", Metrics(values={"rmse": 1.0}))
    text = shown(fleet)
    assert text.replace("\n", "").isprintable()
    assert r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202e / 1.0000" in text
    assert len(text.splitlines()) == len(shown(other).splitlines())


@pytest.mark.parametrize(
    "values",
    [
        {"in": 1},
        {"of": 1},
        {"in": None, "of": None},
        {"rmse": 10**400, "loss": 10**400, "up_bytes": 10**400, "down_bytes": -(10**400)},
        {"round": 10**400, "in": 10**400, "of": 1},
        {"up_bytes": "many", "down_bytes": True, "loss": None, "rmse": -1e308},
        {"round": None},
        {},
    ],
)
def test_odd_figures_do_not_break_the_table(values: dict[str, Any]) -> None:
    fleet = Fleet()
    heard(fleet, "cloud/farm-a", State(state=StateName.READY, boot=1))
    raw(fleet, "hfl/fed1/cloud/@/stat/metrics", json.dumps(values).encode())
    assert "farm-a" in shown(fleet)
    json.dumps([view.as_json(0.0) for view in fleet.nodes()])


def test_a_long_word_does_not_push_the_others_off_the_screen() -> None:
    fleet = Fleet()
    heard(fleet, "cloud", Metrics(values={"rmse": 0.5, "round": "r" * 300}))
    assert "rmse 0.5000" in shown(fleet)


def test_more_nodes_than_a_screen_are_counted() -> None:
    fleet = Fleet()
    for number in range(5):
        heard(fleet, f"cloud/farm-{number}", State(state=StateName.READY, boot=1))
    text = shown(fleet, most=3)
    assert "farm-2" in text
    assert "farm-3" not in text
    assert "... and 2 more" in text


def test_a_broker_full_of_names_fills_no_memory() -> None:
    fleet = Fleet()
    frame = encode(State(state=StateName.READY, boot=1), "fed1", "cloud")
    for number in range(MAX_NODES + 10):
        fleet.take(Arrived(frame=Frame(topic=f"hfl/fed1/n{number}/@/stat/state", payload=frame.payload)), 0.0)
    assert len(fleet.nodes()) == MAX_NODES


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3_200_000_000, "3.2 GB"), (None, ""), ("many", ""), (10**400, "?")],
)
def test_sizes_are_for_people(count: object, text: str) -> None:
    assert size(count) == text
