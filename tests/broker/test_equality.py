"""A tree of real processes over bridged brokers learns what one process would, to the sixth digit and beyond.

Summed in another order, float32 differs in its last bit, and where a ReLU or a max-pool stands at a tie that bit
becomes a step that everybody can see, between any two programs that do the same. So the run begins at a seed where the
plain loop itself does not notice a change of a few last bits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hfl_mqtt.learning import store
from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.sgd import batches
from hfl_mqtt.learning.tasks.mnist import LeNet, Mnist
from hfl_mqtt.learning.weights import digest
from hfl_mqtt.ops.federation import Device, FarmPlan, RunPlan
from hfl_mqtt.rounds.cohort import lot
from tests.broker.federations import running_brokers, wait_for_the_result

pytestmark = pytest.mark.broker

DATA_DIR = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "mnist"
ROUNDS, EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 5, 1, 16, 0.05, 0.9
#: Samples of each device, farm by farm: no two alike, and hardly one a multiple of the batch.
FARMS = {"farm-a": (160, 20), "farm-b": (45, 77), "farm-c": (33, 129)}
Images = tuple[torch.Tensor, torch.Tensor]


def data_options() -> dict[str, dict[str, object]]:
    sizes = {f"cloud/{farm}/pi-{n}": size for farm, two in FARMS.items() for n, size in enumerate(two, 1)}
    return {
        path: {"partition": "iid", "index": index, "of": len(sizes), "seed": 1, "samples": size}
        for index, (path, size) in enumerate(sizes.items())
    }


def run_plan(options: Mapping[str, Mapping[str, object]], seed: int) -> RunPlan:
    """All six must answer: an average over five would be another one."""
    return RunPlan(
        farms=tuple(
            FarmPlan(
                name=farm,
                devices=tuple(Device(name=f"pi-{n}", data=options[f"cloud/{farm}/pi-{n}"]) for n in (1, 2)),
                is_split=True,
            )
            for farm in FARMS
        ),
        task={"name": "mnist", "data_dir": str(DATA_DIR.resolve()), "download": False},
        rounds=ROUNDS,
        seed=seed,
        plan={"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM},
        tiers=(
            {"quorum": 3, "open_for": "120 s", "codec": "raw"},
            {"quorum": 2, "open_for": "60 s", "codec": "raw", "rounds": 1},
        ),
        evaluate=False,
    )


def initial_model(seed: int, *, moved_by: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = LeNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=moved_by)
    return model


def plain_fedavg(model: torch.nn.Module, clients: Sequence[tuple[str, Images]], seed: int) -> Weights:
    """McMahan's loop over all clients in one process, without an edge, a delta or a codec."""
    everybody = sum(len(labels) for _, (_, labels) in clients)
    weights = weights_of(model)
    for number in range(1, ROUNDS + 1):
        mean = {name: np.zeros(values.shape) for name, values in weights.items()}
        for path, (images, labels) in clients:
            model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
            order = batches(len(labels), BATCH_SIZE, lot(seed, (number, 1), path), epochs=EPOCHS)
            train(model, images, labels, [torch.from_numpy(batch) for batch in order])
            for name, values in weights_of(model).items():
                mean[name] += values.astype(np.float64) * (len(labels) / everybody)
        weights = {name: values.astype(np.float32) for name, values in mean.items()}
    return weights


def steady_seed(clients: Sequence[tuple[str, Images]]) -> tuple[int, Weights]:
    """The first seed whose plain loop is hardly moved by three last bits of a weight of 0.1, and where it ends."""
    for seed in range(100):
        end = plain_fedavg(initial_model(seed), clients, seed)
        if largest_difference(end, plain_fedavg(initial_model(seed, moved_by=2e-8), clients, seed)) < 5e-7:
            return seed, end
    raise AssertionError("100 seeds, and each stands at a tie")


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, order: list[torch.Tensor]) -> None:
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for batch in order:
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, speed, gradient in zip(model.parameters(), velocity, gradients, strict=True):
                speed.mul_(MOMENTUM).add_(gradient)
                parameter.sub_(LEARNING_RATE * speed)


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def largest_difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.skipif(not DATA_DIR.is_dir(), reason="no MNIST in the shared data")
def test_with_one_edge_round_the_tree_learns_what_one_process_would(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    options = data_options()
    task = Mnist(DATA_DIR, download=False)
    seed, expected = steady_seed([(path, task.train_data(data)) for path, data in options.items()])

    with running_brokers(run_plan(options, seed), tmp_path) as federation:
        federation.start_nodes()
        assert len(federation.processes) == 10, "a cloud, three edges, six devices"
        wait_for_the_result(federation)

    learned, tags = store.load(tmp_path / "out" / "latest" / "model.safetensors")
    difference = largest_difference(learned, expected)
    record_property("largest_difference", difference)
    sys.stdout.write(f"seed {seed}: largest difference after {ROUNDS} rounds: {difference:.1e}\n")
    assert difference <= 1e-6
    assert largest_difference(learned, weights_of(initial_model(seed))) > 0.02, "there was something to learn"

    summary = json.loads((tmp_path / "out" / "latest" / "summary.json").read_text())
    assert (tags.task, tags.round, tags.run) == ("mnist", "g5", summary["run"])
    assert tags.digest == digest(learned)
    assert summary["parameters"] == sum(values.size for values in learned.values()) == 44_426
