from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import Misuse
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.protocol.messages import (
    Decline,
    Draw,
    KeyPart,
    Kind,
    Metrics,
    ModelPart,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Tier,
    UpdatePart,
    Want,
)
from hfl_mqtt.protocol.wire import unpack_update
from hfl_mqtt.rounds.actions import (
    Action,
    CancelWork,
    Connected,
    Contribution,
    Fetch,
    Lost,
    Note,
    Persist,
    Received,
    RunOver,
    Save,
    Send,
    Work,
    Worked,
    WorkFailed,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.node import Node, metrics_of
from hfl_mqtt.rounds.stopping import Stop
from tests.unit.rounds.trees import (
    CODEC,
    MATH,
    READY,
    Train,
    Tree,
    delta_parts,
    info,
    key_parts,
    noted,
    notes,
    of,
    offered,
    quick,
    said,
    towards,
    update_parts,
    values,
    weights,
)

EDGE, PI, PJ, PK = "cloud/a", "cloud/a/i", "cloud/a/j", "cloud/b/k"


def device(path: str, boot: int = 1) -> ClientNode:
    return ClientNode(path=path, boot=boot, info=info("client", boot))


def edge(path: str = EDGE, boot: int = 1, **options: Any) -> EdgeNode:
    return EdgeNode(path=path, boot=boot, info=info("edge", boot), arithmetic=MATH, **options)


def cloud(*tiers: Tier, boot: int = 1, model: Weights | None = None, **fields: Any) -> CloudNode:
    first, *below = tiers or (quick(),)
    plan = Plan(task="t", tiers=tuple(below))
    schedule = Schedule(**{"run": "r", "rounds": 1, "plan": plan, "tier": first, "is_scored": True, **fields})
    initial = model if model is not None else weights(0.0)
    return CloudNode(
        path="cloud",
        boot=boot,
        info=info("cloud", boot),
        arithmetic=MATH,
        schedule=schedule,
        weights=initial,
        start=of_weights(initial),
    )


def tree_of(top: CloudNode, *others: Node, train: Train) -> Tree:
    def devices_only(path: str, work: Work) -> Contribution | str | None:
        return Contribution(payload=b"", weight=0) if work.is_central else train(path, work)

    return Tree([top, *others], devices_only)


def ends(tree: Tree) -> list[RunOver]:
    return of(tree.actions("cloud"), RunOver)


#: One sample that wants 1 and three that want 4: the mean of all samples is 3.25.
GOALS = {PI: (1.0, 1), PJ: (4.0, 3), PK: (8.0, 4)}


# ------------------------------------------------------------------ whole trees


def test_devices_right_below_the_cloud_are_flat_federated_averaging() -> None:
    top = cloud(quick())
    tree = tree_of(top, device("cloud/i"), device("cloud/j"), train=towards({"cloud/i": (1.0, 1), "cloud/j": (4.0, 3)}))
    tree.start("cloud/i", "cloud/j", "cloud")
    tree.run(100.0)
    assert values(top.weights) == [3.25]
    assert ends(tree) == [RunOver(run="r")]
    assert all(node.next_deadline is None for node in tree.nodes.values())


@pytest.mark.parametrize("order", [("cloud", EDGE, PI, PJ), (PJ, PI, EDGE, "cloud")])
def test_with_one_edge_round_the_tree_equals_flat_averaging_whoever_starts_first(order: tuple[str, ...]) -> None:
    top = cloud(quick(open_for_s=100.0), quick())
    tree = tree_of(top, edge(), device(PI), device(PJ), train=towards(GOALS))
    tree.start(*order)
    tree.run(1000.0)
    assert values(top.weights) == [3.25]
    assert ends(tree) == [RunOver(run="r")]


def test_with_two_edge_rounds_the_edge_goes_twice_and_weighs_each_child_once() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=2))
    tree = tree_of(top, edge(), device(PI), device(PJ), train=towards(GOALS, share=0.5))
    tree.start(PI, PJ, EDGE, "cloud")
    tree.run(1000.0)
    # Half the way to 3.25 is 1.625, and half of the rest of the way 2.4375.
    assert values(top.weights) == [2.4375]
    assert [note["weight"] for note in accepted(tree, "cloud")] == [4, 0]
    assert [note["weight"] for note in accepted(tree, EDGE)] == [1, 3, 1, 3, 0, 0]


def accepted(tree: Tree, path: str) -> list[dict[str, Any]]:
    return [
        noted([action], "accepted")
        for action in tree.actions(path)
        if notes([action]) == ["accepted"] and "sender" in noted([action], "accepted")
    ]


def test_two_edges_are_weighted_by_the_samples_below_them() -> None:
    top = cloud(quick(open_for_s=100.0), quick(), wait_for=2)
    tree = tree_of(top, edge(), edge("cloud/b"), device(PI), device(PJ), device(PK), train=towards(GOALS))
    tree.start(PI, PJ, PK, EDGE, "cloud/b", "cloud")
    tree.run(1000.0)
    assert values(top.weights) == [(1 * 1 + 3 * 4 + 4 * 8) / 8]


def test_a_tree_of_four_tiers_gives_the_same_mean() -> None:
    top = cloud(quick(open_for_s=1000.0), quick(open_for_s=100.0), quick())
    goals = {"cloud/n/a/i": (1.0, 1), "cloud/n/a/j": (4.0, 3), "cloud/n/b/k": (8.0, 4)}
    region, farms = edge("cloud/n"), [edge("cloud/n/a"), edge("cloud/n/b")]
    tree = tree_of(top, region, *farms, *(device(path) for path in goals), train=towards(goals))
    tree.start(*goals, "cloud/n/a", "cloud/n/b", "cloud/n", "cloud")
    tree.run(5000.0)
    assert values(top.weights) == [5.625]
    rounds = {call.round for call in said(tree.actions("cloud/n/a"), RoundCall)}
    assert rounds == {(1, 1, 1), (2, 1, 1)}
    assert ends(tree) == [RunOver(run="r")]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["cloud/a", "cloud/b", "cloud/c"]), st.floats(-8, 8, width=16), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    )
)
def test_any_partition_of_the_clients_gives_the_model_of_flat_averaging(
    clients: list[tuple[str, float, int]],
) -> None:
    goals = {f"{farm}/p{number}": (goal, samples) for number, (farm, goal, samples) in enumerate(clients)}
    farms = sorted({farm for farm, _, _ in clients})
    top = cloud(quick(open_for_s=100.0), quick(), wait_for=len(farms))
    tree = tree_of(top, *map(edge, farms), *map(device, goals), train=towards(goals))
    tree.start(*goals, *farms, "cloud")
    tree.run(1000.0)
    mean = sum(goal * samples for goal, samples in goals.values()) / sum(samples for _, samples in goals.values())
    assert values(top.weights)[0] == pytest.approx(mean, abs=2e-6)


def test_a_model_of_several_parts_goes_down_and_its_update_up() -> None:
    start = {"w": np.random.default_rng(0).standard_normal(200_000).astype(np.float32)}
    top = cloud(quick(open_for_s=100.0), quick(), model=start)
    tree = tree_of(top, edge(), device(PI), train=towards(GOALS))
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    assert {part.count for part in said(tree.actions("cloud"), KeyPart)} == {3}
    assert {part.count for part in said(tree.actions(EDGE), ModelPart)} >= {3}
    assert np.allclose(top.weights["w"], 1.0)
    assert not [name for path in tree.nodes for name in notes(tree.actions(path)) if name in ("refused", "malformed")]


# ------------------------------------------------------------------ the cloud's schedule


def test_every_version_is_durable_before_anybody_hears_of_it_and_written_down_for_people() -> None:
    top = cloud(quick(), rounds=2)
    tree = tree_of(top, device(EDGE), train=towards({EDGE: (4.0, 1)}, share=0.5))
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    known: set[str] = set()
    for action in tree.actions("cloud"):
        if isinstance(action, Persist):
            known |= action.changes.keys()
        elif isinstance(action, Send) and isinstance(action.message, RoundCall | ModelPart):
            version = action.message.model.version if isinstance(action.message, RoundCall) else action.message.version
            assert (f"chain/link/{version:06d}" if version else "chain/key") in known
    saved = of(tree.actions("cloud"), Save)
    assert [(save.version, save.round, values(save.weights)) for save in saved] == [
        (0, (), [0.0]),
        (1, (1,), [2.0]),
        (2, (2,), [3.0]),
    ]


def test_the_score_of_each_version_stands_in_its_history() -> None:
    top = cloud(quick(), rounds=2)
    tree = tree_of(top, device(EDGE), train=towards({EDGE: (4.0, 1)}, share=0.5))
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert top.history == [{"error": 4.0}, {"error": 2.0}, {"error": 1.0}]
    kinds = [call.plan.kind for call in said(tree.actions("cloud"), RoundCall) if call.phase is Phase.OPEN]
    assert kinds == [Kind.TRAIN, Kind.TRAIN, Kind.EVALUATE]


def test_without_scoring_there_is_no_last_round() -> None:
    top = cloud(quick(), rounds=1, is_scored=False)
    tree = tree_of(top, device(EDGE), train=towards({EDGE: (4.0, 1)}))
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert {call.round for call in said(tree.actions("cloud"), RoundCall)} == {(1,)}
    assert (ends(tree), of(tree.actions("cloud"), Work)) == ([RunOver(run="r")], [])


def test_the_cloud_scores_each_version_on_its_own_data_and_waits_for_the_last() -> None:
    top = cloud(quick(), rounds=1)
    train = towards({EDGE: (4.0, 1)})
    tree = Tree([top, device(EDGE)], lambda path, work: train(path, work) if path == EDGE else "later")
    tree.start(EDGE, "cloud")
    scoring = of(tree.actions("cloud"), Work)
    assert [(work.work_id, work.is_central, work.plan.kind) for work in scoring] == [("r/v0", True, Kind.EVALUATE)]
    tree.run(100.0)
    assert notes(tree.actions("cloud")).count("scoring_failed") == 2
    assert ends(tree) == [RunOver(run="r")]


def test_a_central_score_that_comes_last_ends_the_run() -> None:
    top = cloud(quick(), rounds=1)
    tree = tree_of(top, device(EDGE), train=towards({EDGE: (4.0, 1)}))
    tree.carry_out(EDGE, tree.nodes[EDGE].start(0.0))
    top.start(0.0)  # its scoring of version 0 is not answered by the tree
    tree.connect("cloud")
    tree.connect(EDGE)
    tree.run(100.0)
    assert ends(tree) == []
    score = Contribution(payload=b"", weight=0, tallies={"station_error": Tally(total=9.0, count=3)})
    actions = top.handle(Worked(work_id="r/v0", result=score), 101.0)
    assert of(actions, RunOver) == [RunOver(run="r")]
    assert top.history[0] == {"error": 4.0, "station_error": 3.0}
    (metrics,) = said(actions, Metrics)
    assert (metrics.values["round"], metrics.values["station_error"]) == ("g2", 3.0)
    assert top.handle(Worked(work_id="r/v0", result=score), 102.0) == []


def test_a_device_that_claims_all_samples_that_are_believed_does_not_get_its_edge_refused() -> None:
    top = cloud(quick(open_for_s=100.0), quick())
    tree = tree_of(top, edge(), device(PI), device(PJ), train=towards({PI: (0.1, 2**30), PJ: (0.1, 1000)}))
    tree.start("cloud", EDGE, PI, PJ)
    tree.run(1000.0)
    assert "refused" not in notes(tree.actions("cloud"))
    accepted = [note.fields["weight"] for note in of(tree.actions("cloud"), Note) if note.event == "accepted"]
    assert accepted == [2**30, 0]
    assert ends(tree) == [RunOver(run="r")]


def test_a_device_gives_no_score_in_the_name_of_the_clouds_own() -> None:
    top = cloud(quick(), rounds=2)
    claim = {"station_error": Tally(total=0.0, count=1000)}
    own = Contribution(payload=b"", weight=0, tallies={"station_error": Tally(total=9.0, count=3)})
    train = towards({EDGE: (4.0, 1)})

    def lie(path: str, work: Work) -> Contribution | str | None:
        if work.is_central:
            return own
        done = train(path, work)
        assert isinstance(done, Contribution)
        return replace(done, tallies={**done.tallies, **claim})

    tree = Tree([top, device(EDGE)], lie)
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert [scores["station_error"] for scores in top.history] == [3.0, 3.0, 3.0]


def test_no_target_is_reached_before_the_cloud_knows_the_names_of_its_own_scores() -> None:
    stop = Stop(metric="station_error", higher_is_better=False, target=1.0)
    train = towards({EDGE: (4.0, 1)})

    def lie(path: str, work: Work) -> Contribution | str | None:
        if work.is_central:
            return None
        done = train(path, work)
        assert isinstance(done, Contribution)
        return replace(done, tallies={**done.tallies, "station_error": Tally(total=0.0, count=1)})

    top = cloud(quick(), rounds=5, stop=stop)
    tree = Tree([top, device(EDGE)], lie)
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert (top.version, top.stopped) == (5, None)


def test_the_run_waits_for_the_children_it_was_told_to() -> None:
    top = cloud(quick(), wait_for=2, wait_at_most_s=50.0)
    tree = tree_of(top, device("cloud/i"), device("cloud/j"), train=towards({"cloud/i": (1.0, 1), "cloud/j": (4.0, 3)}))
    tree.start("cloud", "cloud/i")
    tree.run(40.0)
    assert not top.aggregator.is_open
    waits = [noted.fields["have"] for noted in of(tree.actions("cloud"), Note) if noted.event == "waiting"]
    assert waits == [[], ["cloud/i"]]  # said when it changes, not at every look at the clock
    tree.start("cloud/j")
    tree.run(100.0)
    assert values(top.weights) == [3.25]


def test_it_begins_with_those_who_came_when_it_has_waited_long_enough() -> None:
    top = cloud(quick(), wait_for=2, wait_at_most_s=50.0)
    tree = tree_of(top, device("cloud/i"), train=towards({"cloud/i": (1.0, 1)}))
    tree.start("cloud", "cloud/i")
    tree.run(49.0)
    assert not said(tree.actions("cloud"), RoundCall)
    tree.run(51.0)
    assert values(top.weights) == [1.0]
    (incomplete,) = [noted for noted in of(tree.actions("cloud"), Note) if noted.event == "incomplete"]
    assert incomplete.fields == {"have": 1, "wanted": 2}


def test_when_nobody_comes_the_run_fails_and_says_what_to_do() -> None:
    top = cloud(quick(), wait_at_most_s=50.0)
    tree = tree_of(top, train=towards({}))
    tree.start("cloud")
    tree.run(1000.0)
    (end,) = ends(tree)
    assert end.failure == "no child of cloud came within 50 s: start the edges, check their brokers"
    assert top.next_deadline is None
    assert of(top.handle(Received(message=READY, sender=EDGE), 1001.0), RunOver) == []


def test_a_cloud_that_never_connects_ends_after_the_same_wait_and_says_why() -> None:
    top = cloud(quick(), wait_at_most_s=50.0)
    top.start(3.0)
    assert top.next_deadline == 53.0
    assert top.tick(52.0) == []
    (end,) = of(top.tick(53.0), RunOver)
    assert end.failure == "no broker answered cloud within 50 s: start it, and check host and port"


def test_a_run_without_quorum_fails_and_says_who_was_missing_and_why() -> None:
    top = cloud(quick(quorum=2), wait_for=3)

    def train(path: str, work: Work) -> Contribution | str | None:
        return "no data" if path == "cloud/j" else towards({"cloud/i": (1.0, 1)})(path, work)

    tree = tree_of(top, device("cloud/i"), device("cloud/j"), device("cloud/k"), train=train)
    tree.start("cloud/i", "cloud/j", "cloud/k")
    tree.leave("cloud/k")
    tree.start("cloud")
    tree.nodes["cloud"].handle(Received(message=READY, sender="cloud/k"), 0.0)
    tree.run(1000.0)
    (end,) = ends(tree)
    assert end.failure == ("g1 had 1 of the 2 updates it needs; waited for cloud/j (no data), cloud/k (no answer)")


def test_metrics_say_how_many_were_in_and_of_how_many() -> None:
    top = cloud(quick(quorum=1), wait_for=2)

    def train(path: str, work: Work) -> Contribution | str | None:
        return "no data" if path == "cloud/j" else towards({"cloud/i": (1.0, 2)})(path, work)

    tree = tree_of(top, device("cloud/i"), device("cloud/j"), train=train)
    tree.start("cloud/i", "cloud/j", "cloud")
    tree.run(100.0)
    first = said(tree.actions("cloud"), Metrics)[0].values
    assert (first["round"], first["in"], first["of"], first["samples"]) == ("g1", 1, 2, 2)
    assert (first["error"], first["loss"]) == (1.0, 1.0)


# ------------------------------------------------------------------ the edge


def test_an_edge_without_quorum_declines_upwards_and_says_who_was_missing() -> None:
    top = cloud(quick(open_for_s=100.0), quick())

    def train(path: str, work: Work) -> Contribution | str | None:
        return "the sensor is broken"

    tree = tree_of(top, edge(), device(PI), train=train)
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    (decline, *_) = said(tree.actions(EDGE), Decline)
    assert decline.reason == "0 of 1 updates; waited for cloud/a/i (the sensor is broken)"
    (end,) = ends(tree)
    assert end.failure is not None
    assert "cloud/a (0 of 1 updates; waited for cloud/a/i (the sensor is broken))" in end.failure


def test_an_edge_without_children_declines() -> None:
    top = cloud(quick(open_for_s=100.0), quick())
    tree = tree_of(top, edge(), train=towards({}))
    tree.start(EDGE, "cloud")
    tree.run(1000.0)
    assert said(tree.actions(EDGE), Decline)[0].reason == "0 of 1 updates; waited for children"


def test_an_edge_that_loses_its_quorum_in_a_later_round_contributes_what_it_has() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=3), is_scored=False)

    def train(path: str, work: Work) -> Contribution | str | None:
        return "battery low" if work.round == (1, 2) else towards(GOALS)(path, work)

    tree = tree_of(top, edge(), device(PI), train=train)
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    assert values(top.weights) == [1.0]
    assert ends(tree) == [RunOver(run="r")]


def test_a_child_of_the_first_round_only_is_weighed_too() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=2), is_scored=False)

    def train(path: str, work: Work) -> Contribution | str | None:
        return "battery low" if path == PI and work.round == (1, 2) else towards(GOALS)(path, work)

    tree = tree_of(top, edge(), device(PI), device(PJ), train=train)
    tree.start(PI, PJ, EDGE, "cloud")
    tree.run(1000.0)
    assert [note["weight"] for note in accepted(tree, "cloud")] == [4]


def test_the_score_that_an_edge_sends_up_is_of_the_model_that_came_down() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=2))
    tree = tree_of(top, edge(), device(PI), train=towards({PI: (4.0, 1)}, share=0.5))
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    assert top.history == [{"error": 4.0}, {"error": 1.0}]


def test_a_round_that_evaluates_has_one_edge_round() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=3))
    tree = tree_of(top, edge(), device(PI), train=towards({PI: (4.0, 1)}))
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    calls = {call.round: call.plan.kind for call in said(tree.actions(EDGE), RoundCall)}
    assert calls == {(1, 1): Kind.TRAIN, (1, 2): Kind.TRAIN, (1, 3): Kind.TRAIN, (2, 1): Kind.EVALUATE}


def test_an_edge_asks_its_children_by_the_next_tier_of_the_plan() -> None:
    middle, lowest = quick(codec="fp16", open_for_s=20.0), quick(codec="raw", open_for_s=7.0)
    top = cloud(quick(open_for_s=100.0), middle, lowest, is_scored=False)
    tree = tree_of(
        top, edge("cloud/n"), edge("cloud/n/a"), device("cloud/n/a/i"), train=towards({"cloud/n/a/i": (1.0, 1)})
    )
    tree.start("cloud/n/a/i", "cloud/n/a", "cloud/n", "cloud")
    tree.run(1000.0)
    calls = {path: said(tree.actions(path), RoundCall)[0] for path in ("cloud", "cloud/n", "cloud/n/a")}
    assert [call.codec for call in calls.values()] == [CODEC, "fp16", "raw"]
    assert [call.open_for_s for call in calls.values()] == [100.0, 20.0, 7.0]
    assert [len(call.plan.tiers) for call in calls.values()] == [2, 1, 0]
    assert values(top.weights) == [1.0]


def called_edge(start: Weights | None = None, **fields: Any) -> tuple[EdgeNode, list[Action]]:
    """Return an edge with one child that has been called and has the model, and what it then did."""
    node = edge()
    node.handle(Connected(), 0.0)
    node.handle(Received(message=READY, sender=PI), 0.0)
    offer = offered(start or weights(0.0))
    call = RoundCall(
        **{
            "run": "r",
            "round": (1,),
            "phase": Phase.OPEN,
            "asked": 1,
            "quorum": 1,
            "open_for_s": 60.0,
            "codec": CODEC,
            "draw": Draw(),
            "plan": Plan(task="t", tiers=(quick(),)),
            "model": offer.manifest,
            **fields,
        }
    )
    node.handle(Received(message=call, sender="cloud"), 0.0)
    return node, node.handle(Received(message=key_parts(offer)[0], sender="cloud"), 0.0)


def opened_edge(start: Weights | None = None, **fields: Any) -> tuple[EdgeNode, RoundCall]:
    node, actions = called_edge(start, **fields)
    (opened,) = said(actions, RoundCall)
    return node, opened


def reason_of(actions: list[Action]) -> str:
    (decline,) = said(actions, Decline)
    return decline.reason


def same_call(node: EdgeNode, phase: Phase) -> Received:
    call = node.participant.call
    assert call is not None
    return Received(message=replace(call, phase=phase), sender="cloud")


def test_when_the_call_from_above_ends_the_children_are_told() -> None:
    node, opened = opened_edge()
    actions = node.handle(same_call(node, Phase.CLOSED), 1.0)
    assert [call.phase for call in said(actions, RoundCall)] == [Phase.CLOSED]
    assert of(actions, CancelWork) == []
    (part,) = update_parts(opened, weights(1.0), 1)
    actions = node.handle(Received(message=part, sender=PI), 2.0)
    assert said(actions, UpdatePart) == []
    assert said(actions, Receipt)[0].reason == "too late: g1.e1 is closed"


def test_when_the_run_is_over_the_children_are_told() -> None:
    node, _ = opened_edge()
    actions = node.handle(same_call(node, Phase.FINISHED), 1.0)
    assert [call.phase for call in said(actions, RoundCall)] == [Phase.CLOSED, Phase.FINISHED]
    assert of(actions, RunOver) == [RunOver(run="r")]


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "telepathy"},
        {"plan": Plan(task="t", tiers=(quick(codec="telepathy"),))},
        {"plan": Plan(task="t", tiers=(quick(downlink="telepathy"),))},
    ],
)
def test_a_codec_that_an_edge_does_not_know_is_declined_before_anybody_works(fields: dict[str, Any]) -> None:
    node, actions = called_edge(**fields)
    assert "'telepathy'" in reason_of(actions)
    assert not node.aggregator.is_open
    assert node.aggregator.downlink.chain is None, "the children's model is where it was"


def test_a_round_deeper_than_any_tree_is_declined() -> None:
    _, actions = called_edge(round=(1,) * 8)
    assert reason_of(actions) == "a tree has at most 8 tiers"


def test_an_edge_has_no_trainer() -> None:
    with pytest.raises(Misuse, match="no trainer"):
        edge().handle(WorkFailed(work_id="r/g1", reason=""), 0.0)


# ------------------------------------------------------------------ killed and started again


def test_an_edge_that_is_killed_in_its_second_round_begins_again_and_counts_each_child_once() -> None:
    top = cloud(quick(open_for_s=500.0), quick(rounds=2, open_for_s=30.0), is_scored=False)
    is_slow = True

    def train(path: str, work: Work) -> Contribution | str | None:
        assert work.round != (1, 2) or not is_slow or path == PI, "PJ is cut off"
        return towards(GOALS, share=0.5)(path, work)

    tree = tree_of(top, edge(), device(PI), device(PJ), train=train)
    tree.start(PI, PJ, EDGE, "cloud")
    while not [call for call in said(tree.actions(EDGE), RoundCall) if call.round == (1, 2)]:
        path, event = tree._events.popleft()
        tree.carry_out(path, tree.nodes[path].handle(event, tree.now))
    is_slow = False
    tree.replace(edge(boot=2))
    tree.run(1000.0)
    assert values(top.weights) == [2.4375]
    assert [note["weight"] for note in accepted(tree, "cloud")] == [4]
    assert ends(tree) == [RunOver(run="r")]


def test_an_edge_that_is_killed_after_its_update_counts_once() -> None:
    top = cloud(quick(open_for_s=100.0, quorum=2), quick(), wait_for=2, is_scored=False)
    tree = tree_of(top, edge(), edge("cloud/b"), device(PI), train=towards(GOALS))
    tree.start(PI, EDGE, "cloud/b", "cloud")
    tree.run(5.0)
    assert len(accepted(tree, "cloud")) == 1
    tree.replace(edge(boot=2))
    tree.run(8.0)
    tree.nodes[PK] = device(PK)
    tree.start(PK)
    tree.run(1000.0)
    assert [note["sender"] for note in accepted(tree, "cloud")] == [EDGE, "cloud/b"]
    assert values(top.weights) == [pytest.approx((1 * 1 + 4 * 8) / 5)]


def test_a_device_that_is_killed_while_it_trains_answers_after_its_start() -> None:
    top = cloud(quick(open_for_s=100.0))
    attempts: list[str] = []

    def train(path: str, work: Work) -> Contribution | str | None:
        attempts.append(path)
        return towards({"cloud/i": (1.0, 1)})(path, work)

    tree = tree_of(top, device("cloud/i"), train=train)
    tree.start("cloud/i", "cloud")
    while not attempts:
        path, event = tree._events.popleft()
        tree.carry_out(path, tree.nodes[path].handle(event, tree.now))
    tree.replace(device("cloud/i", boot=2))
    tree.run(100.0)
    assert attempts.count("cloud/i") >= 2
    assert values(top.weights) == [1.0]


def test_a_device_that_is_away_for_a_round_is_there_for_the_next() -> None:
    top = cloud(quick(quorum=1), rounds=2, wait_for=2, is_scored=False)
    goals = {"cloud/i": (1.0, 1), "cloud/j": (4.0, 3)}
    tree = tree_of(top, device("cloud/i"), device("cloud/j"), train=towards(goals))
    tree.start("cloud/i", "cloud/j")
    tree.run(0.1)
    tree.is_cut.add("cloud/j")
    tree.start("cloud")
    tree.run(1.0)
    tree.connect("cloud/j")
    tree.run(1000.0)
    ins = [metrics.values["in"] for metrics in said(tree.actions("cloud"), Metrics)]
    assert ins[-1] == 2
    assert values(top.weights) == [3.25]


# ------------------------------------------------------------------ hostile scores


@pytest.mark.parametrize("name", ["event", "version", "round", "self", "samples", "seconds", "", "a b"])
def test_a_metric_may_have_any_name(name: str) -> None:
    top = cloud(quick())

    def train(path: str, work: Work) -> Contribution | str | None:
        result = towards({EDGE: (1.0, 1)})(path, work)
        assert isinstance(result, Contribution)
        return Contribution(payload=result.payload, weight=result.weight, tallies={name: Tally(total=2.0, count=1)})

    tree = tree_of(top, device(EDGE), train=train)
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert ends(tree) == [RunOver(run="r")]
    assert top.history[0] == {name: 2.0}


def test_a_score_beyond_every_float_is_left_out() -> None:
    top = cloud(quick())

    def train(path: str, work: Work) -> Contribution | str | None:
        result = towards({EDGE: (1.0, 1)})(path, work)
        assert isinstance(result, Contribution)
        return Contribution(
            payload=result.payload, weight=result.weight, tallies={"x": Tally(total=1e300, count=1e-300)}
        )

    tree = tree_of(top, device(EDGE), train=train)
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert top.history == [{}, {}]


def test_ever_other_metrics_do_not_fill_the_cloud() -> None:
    top = cloud(quick(), rounds=6)

    def train(path: str, work: Work) -> Contribution | str | None:
        result = towards({EDGE: (1.0, 1)})(path, work)
        assert isinstance(result, Contribution)
        tallies = {f"{work.round[0]}-{number}": Tally(total=1.0, count=1) for number in range(16)}
        return Contribution(payload=result.payload, weight=result.weight, tallies=tallies)

    tree = tree_of(top, device(EDGE), train=train)
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    assert ends(tree) == [RunOver(run="r")]
    assert max(len(metrics.values) for metrics in said(tree.actions("cloud"), Metrics)) < 30


def test_scores_that_never_come_end_the_run_without_them() -> None:
    top = cloud(quick(), wait_at_most_s=50.0)
    hang: Train = towards({"cloud/i": (1.0, 1)})
    tree = Tree([top, device("cloud/i")], lambda path, work: None if work.is_central else hang(path, work))
    tree.start("cloud/i", "cloud")
    tree.run(40.0)
    assert ends(tree) == []
    tree.run(60.0)
    assert ends(tree) == [RunOver(run="r")]
    (late,) = [noted for noted in of(tree.actions("cloud"), Note) if noted.event == "scores_missing"]
    assert late.fields == {"versions": [0, 1]}


def test_a_metric_cannot_take_the_name_of_a_field() -> None:
    sent = metrics_of((2,), {"round": Tally(total=1.0, count=1), "rmse": Tally(total=2.0, count=1)}, 3, 1.0)
    assert isinstance(sent.message, Metrics)
    assert sent.message.values == {"round": "g2", "samples": 3, "seconds": 1.0, "rmse": 2.0}


# ------------------------------------------------------------------ what every node has


def test_a_node_says_who_it_is_when_it_leaves() -> None:
    node = device(PI, boot=7)
    assert node.will == State(state=StateName.LOST, boot=7)
    assert said(node.leave(), State) == [State(state=StateName.DISCONNECTED, boot=7)]
    assert node.start(0.0) == []


def test_a_cloud_or_an_edge_that_leaves_goes_on_with_its_next_life() -> None:
    top, farm = cloud(quick(open_for_s=100.0), quick()), edge()
    tree = tree_of(top, farm, train=towards(GOALS))
    tree.start(EDGE, "cloud")
    tree.run(5.0)
    assert top.aggregator.is_open
    assert farm.aggregator.is_open
    assert said(farm.leave(), RoundCall) == []
    assert said(top.leave(), RoundCall) == []


@pytest.mark.parametrize("node", [device(PI), edge(), cloud()])
def test_a_lost_link_is_only_waited_for(node: Node) -> None:
    assert not any(isinstance(action, Send | Work | Note) for action in node.handle(Lost(reason="power cut"), 0.0))


@pytest.mark.parametrize("node", [device(PI), edge(), cloud()])
def test_a_message_that_is_not_for_this_node_is_noted(node: Node) -> None:
    assert notes(node.handle(Received(message=Metrics(values={}), sender="x/y"), 0.0)) == ["stranger"]
    assert notes(node.handle(Received(message=Want(blob="0" * 16, parts=()), sender="x/y"), 0.0)) == ["stranger"]


def test_a_device_publishes_its_metrics_with_the_receipt() -> None:
    top = cloud(quick(), is_scored=False)
    tree = tree_of(top, device("cloud/i"), train=towards({"cloud/i": (4.0, 3)}))
    tree.start("cloud/i", "cloud")
    tree.run(100.0)
    metrics, last_word = said(tree.actions("cloud/i"), Metrics)
    assert last_word == metrics  # said again at the end of the run, for the shell adds its newest figures
    assert metrics.values == {"round": "g1", "error": 4.0, "loss": 4.0, "samples": 3, "seconds": 0.0}


def test_the_metrics_of_a_round_are_published_once() -> None:
    top = cloud(quick(), is_scored=False)
    tree = tree_of(top, device("cloud/i"), train=towards({"cloud/i": (4.0, 3)}))
    tree.start("cloud/i", "cloud")
    tree.run(100.0)
    (receipt,) = said(tree.actions("cloud"), Receipt)
    again = tree.nodes["cloud/i"].handle(Received(message=receipt, sender="cloud"), 101.0)
    assert (len(again), notes(again)) == (1, ["receipt_out_of_place"])


def test_the_clouds_own_scores_stand_beside_those_of_the_devices_in_every_round() -> None:
    top = cloud(quick(), rounds=2)
    train = towards({EDGE: (4.0, 1)})
    own = Contribution(payload=b"", weight=0, tallies={"station_error": Tally(total=9.0, count=3)})
    tree = Tree([top, device(EDGE)], lambda path, work: own if work.is_central else train(path, work))
    tree.start(EDGE, "cloud")
    tree.run(100.0)
    published = said(tree.actions("cloud"), Metrics)
    assert {metrics.values["round"] for metrics in published} == {"g1", "g2", "g3"}
    assert all(metrics.values["station_error"] == 3.0 for metrics in published)


def test_the_models_of_an_edge_have_rising_versions() -> None:
    top = cloud(quick(open_for_s=100.0), quick(rounds=3))
    tree = tree_of(top, edge(), device(PI), train=towards({PI: (4.0, 1)}, share=0.5))
    tree.start(PI, EDGE, "cloud")
    tree.run(1000.0)
    # Two steps of its own, and then the cloud's, which the cloud then has scored.
    calls = {call.round: call.model.version for call in said(tree.actions(EDGE), RoundCall)}
    assert calls == {(1, 1): 0, (1, 2): 1, (1, 3): 2, (2, 1): 3}


def test_what_an_edge_sends_up_is_the_difference_between_its_model_and_the_one_it_was_sent() -> None:
    node, opened = opened_edge()
    (part,) = update_parts(opened, weights(5.0), 3)
    actions = node.handle(Received(message=part, sender=PI), 1.0)
    (sent,) = said(actions, UpdatePart)
    assert (sent.run, sent.round) == ("r", (1,))
    update = unpack_update(sent.data)
    assert update.weight == 3
    assert values(MATH.decode(update.payload, MATH.layout(of_weights(weights(0.0))))) == [5.0]


def test_where_the_way_to_the_parents_model_is_beyond_all_numbers_the_children_begin_anew() -> None:
    def half(value: float) -> Weights:
        return {"w": np.array([value], np.float16)}  # up to 65,504

    tier = quick(rounds=2, codec="raw", downlink="raw")
    node, call = opened_edge(half(0.0), plan=Plan(task="t", tiers=(tier,)), codec="raw")

    def hear(message: Any, sender: str = "cloud") -> list[Action]:
        return node.handle(Received(message=message, sender=sender), 0.0)

    for step in (50_000.0, 0.0):  # after the first round the children are told where that led
        (part,) = update_parts(call, half(step), 1)
        actions = hear(part, PI)
        call = [*said(actions, RoundCall), call][0]
    (sent,) = said(actions, UpdatePart)
    above = node.participant.call
    assert above is not None
    hear(Receipt(run="r", round=(1,), base=sent.base[:16]))

    offer = offered(half(0.0), half(-50_000.0), codec="raw")
    (delta,), (key,) = delta_parts(offer, 1), key_parts(offer)
    hear(replace(above, round=(2,), model=offer.manifest))
    actions = hear(delta)
    assert noted(actions, "chain_broken")["reason"].endswith("they begin anew")
    assert [fetch.is_key for fetch in of(actions, Fetch)] == [True, False]
    assert said(actions, Decline) == []
    hear(delta)
    actions = hear(key)
    (call,) = said(actions, RoundCall)
    assert (call.round, call.model.digest) == ((2, 1), offer.manifest.digest)
    assert said(actions, KeyPart)[0] == key
    assert said(actions, ModelPart) == [delta]
