import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning import sgd
from hfl_mqtt.learning.tasks import load_task, partition
from hfl_mqtt.learning.tasks.mnist import LeNet, Mnist, part_of, read_idx
from hfl_mqtt.protocol.messages import Plan

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared MNIST files are not beside the repository")
LABELS = np.tile(np.arange(10, dtype=np.uint8), 12)


def write_idx(path: Path, values: NDArray[Any]) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Twenty digits to train on, of which image i is all i; ten to test on. One half is gzipped."""
    for which, count in (("train", 20), ("t10k", 10)):
        images = np.broadcast_to(np.arange(count)[:, None, None], (count, 28, 28))
        write_idx(tmp_path / f"{which}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{which}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path


@given(
    kind=st.sampled_from(["iid", "shards", "dirichlet"]),
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    of=st.integers(1, 9),
    seed=st.integers(0, 2**53),
)
def test_a_partition_gives_every_example_to_exactly_one_client(
    kind: str, labels: list[int], of: int, seed: int
) -> None:
    divide = {"iid": partition.iid, "shards": partition.shards, "dirichlet": partition.dirichlet}[kind]
    parts = divide(np.array(labels), of, seed)
    assert len(parts) == of
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


def test_iid_parts_differ_in_size_by_one_at_most() -> None:
    assert sorted(len(part) for part in partition.iid(LABELS, 7, seed=0)) == [17, 17, 17, 17, 17, 17, 18]


def test_two_shards_are_at_most_two_classes_where_the_cuts_meet_the_labels() -> None:
    # 120 labels, 12 of each class, in 20 shards of 6: no shard holds two classes.
    for part in partition.shards(LABELS, 10, seed=0, shards_per_client=2):
        assert len(part) == 12
        assert len(set(LABELS[part])) <= 2


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    def spread(alpha: float) -> float:
        return float(np.std([len(part) for part in partition.dirichlet(np.repeat(LABELS, 50), 10, 0, alpha)]))

    assert spread(0.05) > 4 * spread(100.0)


def test_the_seed_decides_the_partition() -> None:
    one, same, other = (partition.dirichlet(LABELS, 4, seed)[0].tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_samples_limits_a_client_to_a_part_of_its_part() -> None:
    whole = part_of(LABELS, {"partition": "shards", "of": 3, "index": 1})
    some = part_of(LABELS, {"partition": "shards", "of": 3, "index": 1, "samples": 5})
    assert some.tolist() == whole[:5].tolist()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"partition": "idd"}, "data.partition is 'idd': one of iid, shards, dirichlet"),
        ({"indx": 1}, "data.indx is no option, did you mean 'index'"),
        ({"of": 3, "index": 3}, "data.index is 3: a whole number from 0 to 2"),
        ({"of": 0}, "data.of is 0"),
        ({"of": True}, "data.of is True"),
        ({"samples": "all"}, "data.samples is 'all'"),
        ({"partition": "dirichlet", "alpha": 0}, "data.alpha is 0"),
        ({"partition": "shards", "of": 100, "shards_per_client": 2}, "data.shards_per_client is 2"),
    ],
)
def test_a_wrong_data_option_is_refused_by_name(options: dict[str, object], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        part_of(LABELS, options)


def test_an_unknown_task_option_is_refused() -> None:
    with pytest.raises(TaskError, match=r"task\.data_dri is no option, did you mean 'data_dir'"):
        load_task({"name": "mnist", "data_dri": "x"})


def test_the_network_has_44426_parameters_and_takes_bytes_or_floats() -> None:
    torch.manual_seed(0)
    model = LeNet()
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert sgd.parameter_count(model) == sum(array.size for array in sgd.weights_of(model).values()) == 44_426
    assert model(images).shape == (3, 10)
    assert torch.equal(model(images), model(images.float() / 255))


def test_equal_seeds_give_equal_first_models(tiny: Path) -> None:
    first = []
    for seed in (1, 1, 2):
        sgd.seed_all(seed)
        first.append(sgd.weights_of(Mnist(tiny).model())["fc3.weight"].tobytes())
    assert first[0] == first[1] != first[2]


def test_clients_read_their_own_images_and_labels(tiny: Path) -> None:
    task = load_task({"name": "mnist", "data_dir": str(tiny), "download": False})
    seen = []
    for index in range(3):
        images, labels = task.train_data({"of": 3, "index": index})
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (1, 28, 28)
        assert torch.equal(images[:, 0, 0, 0] % 10, labels.to(torch.uint8))
        seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(20))
    assert task.test_data({}) is None
    assert len(task.central_data()["test"][0]) == 10


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no train-images-idx3-ubyte .* set task.data_dir"):
        Mnist(tmp_path, download=False).train_data({})


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_a_file_cut_short_says_what_to_do(tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    write_idx(whole, np.zeros((4, 2, 2)))
    assert read_idx(whole, 3).shape == (4, 2, 2)
    whole.write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(TaskError, match="fetch it again"):
        read_idx(whole, 3)


@needs_mnist
def test_the_real_digits_are_learned_a_little_in_thirty_steps() -> None:
    task = Mnist(SHARED, download=False)
    data = task.train_data({"samples": 960, "seed": 3})
    test = task.central_data()["test"]
    assert len(test[0]) == 10_000
    few = (test[0][:500], test[1][:500])
    sgd.seed_all(0)
    model = task.model()
    before = sgd.evaluate(task, model, few)
    sgd.train(task, model, data, Plan(task="mnist", learning_rate=0.05, momentum=0.9), seed=0)
    after = sgd.evaluate(task, model, few)
    assert before.total / before.count < 0.3
    assert after.total / after.count > 0.5
