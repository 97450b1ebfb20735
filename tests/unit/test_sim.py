"""Whole federations under a virtual clock: whatever the network and the reaper do, every run ends and counts right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.learning.weights import difference, digest
from hfl_mqtt.protocol.messages import Kind, Plan, Tally, Tier
from hfl_mqtt.rounds.actions import Contribution, Work
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.sim import Simulation
from hfl_mqtt.transport.faults import Faults

ARITHMETIC = TensorArithmetic()
CODEC = "raw"
START: Weights = {"w": np.zeros(3, np.float32), "steps": np.zeros((), np.int64)}
#: Noise does not compress: three parts and a bit.
LARGE: Weights = {
    "w": np.random.default_rng(0).uniform(-1, 0, 200_000).astype(np.float32),
    "steps": np.zeros((), np.int64),
}
TREE: Mapping[str, Sequence[str]] = {"cloud": ["a", "b"], "cloud/a": ["1", "2"], "cloud/b": ["3", "4", "5"]}
LOSSY = Faults(loss=0.3, duplication=0.2, reordering=0.3, latency_s=(0.0, 0.5), held_s=(0.0, 5.0))


def samples_of(path: str) -> int:
    return sum(path.encode()) % 90 + 10


def train(path: str, work: Work) -> Contribution:
    """Half a step towards the client's own goal: closed form, and different for each client."""
    base = ARITHMETIC.weights(work.model)
    tallies = {"error": Tally(total=1.0, count=2), "loss": Tally(total=3.0, count=4)}
    if work.plan.kind is Kind.EVALUATE:
        return Contribution(payload=b"", weight=0, tallies=tallies)
    goal = np.float32(samples_of(path) / 10)
    weights = {"w": base["w"] + np.float32(0.5) * (goal - base["w"]), "steps": base["steps"] + 1}
    payload = ARITHMETIC.encode(difference(weights, base), work.codec, work.seed)
    return Contribution(payload=payload, weight=samples_of(path), tallies=tallies)


def simulation(
    tree: Mapping[str, Sequence[str]] = TREE,
    *,
    rounds: int = 3,
    edge_rounds: int = 1,
    seed: int = 0,
    faults: Faults | None = None,
    is_scored: bool = True,
    fraction: float = 1.0,
    grace_s: float = 5.0,
    model: Weights = START,
    codec: str = CODEC,
    downlink: str = CODEC,
) -> Simulation:
    depth = max(path.count("/") for path in tree)
    below = tuple(
        Tier(
            rounds=edge_rounds,
            open_for_s=60.0 * edge_rounds ** (depth - tier),
            fraction=fraction,
            grace_s=grace_s,
            codec=codec,
            downlink=downlink,
        )
        for tier in range(1, depth + 1)
    )
    schedule = Schedule(
        run="run-1",
        rounds=rounds,
        plan=Plan(task="t", tiers=below, seed=7),
        tier=Tier(open_for_s=600.0, grace_s=grace_s, codec=codec, downlink=downlink),
        seed=7,
        wait_for=len(tree["cloud"]),
        wait_at_most_s=900.0,
        is_scored=is_scored,
    )
    return Simulation(
        tree,
        schedule=schedule,
        weights=model,
        start=of_weights(model),
        arithmetic=ARITHMETIC,
        train=train,
        seed=seed,
        faults=faults,
    )


def cloud_of(sim: Simulation) -> CloudNode:
    shell = sim.places["cloud"].shell
    assert shell is not None
    assert isinstance(shell.node, CloudNode)
    return shell.node


def flat_fedavg(clients: Sequence[str], rounds: int) -> Weights:
    """Plain FedAvg in float64 over all clients at once."""
    w: NDArray[np.float64] = np.zeros(3)
    total = sum(samples_of(path) for path in clients)
    for _ in range(rounds):
        w = w + sum(samples_of(path) * 0.5 * (samples_of(path) / 10 - w) for path in clients) / total
    return {"w": w}


def counted(sim: Simulation) -> Counter[tuple[str, str, str]]:
    """How often each child's update entered each round of each start of its aggregator."""
    return Counter(
        (path, str(entry.fields["round"]), str(entry.fields["sender"]))
        for path, entry in sim.notes("accepted")
        if "sender" in entry.fields
    )


def test_without_faults_every_update_counts_once_and_the_run_ends() -> None:
    sim = simulation()
    sim.start()
    end = sim.run()
    assert end is not None
    assert end.failure is None
    assert set(counted(sim).values()) == {1}
    assert len(counted(sim)) == 4 * (2 + 5)  # three rounds and an evaluation: two edges, five clients
    clients = ["cloud/a/1", "cloud/a/2", "cloud/b/3", "cloud/b/4", "cloud/b/5"]
    np.testing.assert_allclose(cloud_of(sim).weights["w"], flat_fedavg(clients, 3)["w"], atol=1e-6)
    assert cloud_of(sim).weights["steps"] == 3


def test_every_model_is_scored_and_saved_before_it_is_shown() -> None:
    sim = simulation()
    sim.start()
    sim.run()
    # The cloud's own test sets give nothing here beyond what `train` tells for any evaluation.
    assert [scores["error"] for scores in cloud_of(sim).history] == [0.5] * 4
    assert [save.version for save in sim.saved] == [0, 1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_thirty_percent_loss_duplicates_and_disorder_end_every_run_and_count_once(seed: int, edge_rounds: int) -> None:
    sim = simulation(edge_rounds=edge_rounds, seed=seed, faults=LOSSY)
    sim.start()
    end = sim.run(until_s=100_000)
    assert end is not None, "the run hangs"
    assert set(counted(sim).values()) <= {1}


def test_of_twenty_lossy_runs_every_one_ends_with_a_result() -> None:
    for seed in range(20):
        sim = simulation(seed=seed, faults=LOSSY)
        sim.start()
        end = sim.run(until_s=100_000)
        assert end is not None
        assert end.failure is None, seed
        assert cloud_of(sim).version == 3


def test_a_model_of_many_parts_survives_the_same_losses() -> None:
    for seed in range(5):
        sim = simulation(rounds=2, seed=seed, faults=LOSSY, model=LARGE)
        sim.start()
        end = sim.run(until_s=100_000)
        assert end is not None
        assert end.failure is None, seed
        assert set(counted(sim).values()) <= {1}
        np.testing.assert_array_less(LARGE["w"][:3], cloud_of(sim).weights["w"][:3])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    deaths=st.lists(
        st.tuples(
            st.sampled_from(["cloud/a/1", "cloud/a/2", "cloud/b/3", "cloud/b/4", "cloud/b/5", "cloud/a", "cloud/b"]),
            st.floats(0, 30),
            st.none() | st.floats(0.1, 200),
        ),
        max_size=6,
    ),
    faults=st.sampled_from([None, LOSSY]),
)
@example(seed=0, deaths=[("cloud/a", 0.0, None), ("cloud/b", 0.0, None)], faults=None)
def test_any_client_or_edge_dying_at_any_moment_ends_every_run(
    seed: int, deaths: list[tuple[str, float, float | None]], faults: Faults | None
) -> None:
    sim = simulation(edge_rounds=2, seed=seed, faults=faults)
    sim.start()
    for path, at_s, back_after_s in deaths:
        sim.at(at_s, lambda path=path: sim.kill(path))  # type: ignore[misc]
        if back_after_s is not None:
            sim.at(at_s + back_after_s, lambda path=path: sim.start_node(path))  # type: ignore[misc]
    end = sim.run(until_s=200_000)
    assert end is not None, "the run hangs"
    per_start = Counter(
        (path, entry.fields["run"], entry.fields["round"], entry.fields["sender"])
        for path, entry in sim.notes("accepted")
        if "sender" in entry.fields and path == "cloud"
    )
    assert set(per_start.values()) <= {1}
    # An edge that was killed, or found no quorum, begins its round anew; its cloud still counts it once.
    opened = Counter((path, str(entry.fields["round"])) for path, entry in sim.notes("opened"))
    assert all(times <= opened[path, round_name] for (path, round_name, _), times in counted(sim).items())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), st.integers(1, 3), st.integers(0, 1000))
def test_with_one_edge_round_any_partition_of_clients_equals_flat_fedavg(
    farms: list[str], rounds: int, seed: int
) -> None:
    tree: dict[str, list[str]] = {"cloud": sorted(set(farms))}
    for index, farm in enumerate(farms):
        tree.setdefault(f"cloud/{farm}", []).append(str(index))
    slow = Faults(latency_s=(0.0, 2.0))
    sim = simulation(tree, rounds=rounds, seed=seed, faults=slow, is_scored=False, grace_s=600.0)
    sim.start()
    end = sim.run()
    assert end is not None
    assert end.failure is None
    clients = [f"{path}/{name}" for path, names in tree.items() if path != "cloud" for name in names]
    np.testing.assert_allclose(cloud_of(sim).weights["w"], flat_fedavg(clients, rounds)["w"], rtol=1e-6, atol=1e-6)


def test_the_order_of_arrival_does_not_change_a_bit_of_the_model() -> None:
    models = []
    for seed in range(5):
        late = Faults(latency_s=(0.0, 3.0), reordering=0.5)
        sim = simulation(edge_rounds=2, seed=seed, faults=late, grace_s=600.0)  # so that all are waited for
        sim.start()
        end = sim.run()
        assert end is not None
        assert end.failure is None
        models.append(digest(cloud_of(sim).weights))
    assert len(set(models)) == 1


def test_the_same_seed_gives_the_same_run_to_the_last_note() -> None:
    def journal(seed: int) -> list[str]:
        sim = simulation(seed=seed, faults=LOSSY, edge_rounds=2)
        sim.start()
        sim.run(until_s=100_000)
        return [f"{at:.6f} {path} {entry}" for path, place in sim.places.items() for at, entry in place.notes]

    assert journal(3) == journal(3)
    assert journal(3) != journal(4)


def test_a_tree_of_four_tiers_learns_as_well() -> None:
    tree = {
        "cloud": ["north", "south"],
        "cloud/north": ["a", "b"],
        "cloud/south": ["c"],
        "cloud/north/a": ["1", "2"],
        "cloud/north/b": ["3"],
        "cloud/south/c": ["4", "5"],
    }
    sim = simulation(tree, is_scored=False)
    sim.start()
    end = sim.run()
    assert end is not None
    assert end.failure is None
    clients = [f"cloud/{path}" for path in ("north/a/1", "north/a/2", "north/b/3", "south/c/4", "south/c/5")]
    np.testing.assert_allclose(cloud_of(sim).weights["w"], flat_fedavg(clients, 3)["w"], atol=1e-6)


def test_a_client_that_died_is_back_in_the_next_round_after_its_restart() -> None:
    sim = simulation(rounds=4)
    sim.start()
    sim.at(0.5, lambda: sim.kill("cloud/a/1"))
    sim.at(2.5, lambda: sim.start_node("cloud/a/1"))
    end = sim.run()
    assert end is not None
    assert end.failure is None
    took_part = {round_name for _, round_name, sender in counted(sim) if sender == "cloud/a/1"}
    assert "g1.e1" not in took_part
    assert {"g4.e1", "g5.e1"} <= took_part


def test_a_sampled_cohort_is_the_same_after_a_restart_of_everything() -> None:
    def cohorts() -> set[tuple[str, str, str]]:
        sim = simulation(fraction=0.5)
        sim.start()
        sim.run()
        return {key for key in counted(sim) if key[0] != "cloud"}

    first = cohorts()
    assert first == cohorts()
    assert len(first) == 4 * (1 + 2)  # half of two, and half of three rounded up
