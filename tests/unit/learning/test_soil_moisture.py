"""The default task: what its examples know, what it refuses, and who is where in the demo."""

from __future__ import annotations

import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.contracts import Task
from hfl_mqtt.learning.tasks.soil_moisture import DEMO, SoilMoisture, layout, persistence
from hfl_mqtt.learning.tasks.stations import CHANGE_M3_M3, LATER_FROM, examples, make_examples, stations
from hfl_mqtt.protocol.topics import is_path
from hfl_mqtt.registry import load

MOISTURE, PRECIP = 0, 1


def test_it_is_registered_as_soil_moisture() -> None:
    assert issubclass(load("tasks", "soil-moisture"), Task)


def test_importing_the_task_and_reading_the_stations_needs_no_torch() -> None:
    code = (
        "import sys; from hfl_mqtt.learning.tasks import soil_moisture as s; s.layout(1); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_file_holds_76_stations_with_a_year_of_days() -> None:
    assert len(stations()) == 76
    assert stations()["03047"].readings.shape == (366, 8)
    # 3 January: 1.4 mm fell on 0.039 m3/m3, as the file says.
    np.testing.assert_allclose(stations()["03047"].readings[2, :2], [0.039, 1.4], rtol=1e-6)


def test_a_target_is_the_change_to_the_next_day_in_units_of_a_usual_change() -> None:
    readings = _quiet_year()
    readings[100, MOISTURE] = 0.26  # 0.06 above the day before
    made = make_examples(readings)
    by_day = dict(zip(made.days.tolist(), made.changes[:, 0].tolist(), strict=True))
    assert by_day[99] == 0.0
    assert by_day[100] == pytest.approx(3.0, abs=1e-5)
    assert by_day[101] == pytest.approx(-3.0, abs=1e-5)


def test_a_missing_moisture_costs_the_example_to_it_and_the_one_from_it_and_no_other() -> None:
    readings = _quiet_year()
    readings[100, MOISTURE] = np.nan
    days = set(make_examples(readings).days.tolist())
    assert set(range(31, 366)) - days == {100, 101}


def test_other_gaps_leave_finite_inputs_and_a_missing_rain_forecast_is_told() -> None:
    readings = _quiet_year()
    readings[100, 1:] = np.nan
    whole, gappy = make_examples(_quiet_year()), make_examples(readings)
    assert np.isfinite(gappy.inputs).all()
    at = int(np.flatnonzero(gappy.days == 100)[0])
    told = np.flatnonzero((gappy.inputs[at] == 1.0) & (whole.inputs[at] == 0.0))
    assert len(told) == 1
    assert gappy.inputs[:, told[0]].sum() == 1.0


@pytest.mark.parametrize("name", ["03047", "54932", "92826"])
def test_no_input_knows_anything_of_the_days_after_its_target(name: str) -> None:
    readings = stations()[name].readings
    cut = readings.copy()
    cut[201:] = np.nan
    whole, known = make_examples(readings), make_examples(cut)
    before = whole.days <= 200
    np.testing.assert_array_equal(known.days, whole.days[before])
    np.testing.assert_array_equal(known.inputs, whole.inputs[before])


@pytest.mark.parametrize("name", ["03047", "54932", "92826"])
def test_no_input_knows_the_moisture_it_has_to_forecast(name: str) -> None:
    readings = stations()[name].readings
    last = int(examples(name).days[examples(name).days <= 200].max())
    cut = readings[: last + 1].copy()
    cut[last, MOISTURE] += 0.1
    np.testing.assert_array_equal(make_examples(cut).inputs[-1], make_examples(readings[: last + 1]).inputs[-1])


def test_the_last_quarter_is_held_out_and_no_example_is_in_both_sets() -> None:
    earlier, later = examples("03047").later(False), examples("03047").later(True)
    assert earlier.days.max() < LATER_FROM <= later.days.min()
    task = SoilMoisture.make({})
    assert len(task.train_data({"station": "03047"})[0]) == len(earlier.days)
    assert len(task.test_data({"station": "03047"})[1]) == len(later.days) == 92


def test_the_score_is_the_squared_error_in_m3_m3() -> None:
    task = SoilMoisture.make({})
    output, target = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]])
    # one unit off is 0.02 m3/m3, two are 0.04
    torch.testing.assert_close(task.score(output, target), torch.tensor([0.0004, 0.0016]))
    assert task.metric.is_root
    assert not task.metric.higher_is_better


def test_a_model_that_says_no_change_scores_as_persistence() -> None:
    task = SoilMoisture.make({"unseen": ["03047", "53926"]})
    inputs, targets = task.central_data()["unseen"]
    model = task.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        total = task.score(model(inputs), targets).double().sum().item()
    expected, count = persistence(["03047", "53926"])
    assert len(targets) == count
    assert total == pytest.approx(expected, rel=1e-5)


def test_persistence_is_the_root_mean_square_of_the_later_changes() -> None:
    later = examples("53926").later(True).changes[:, 0].astype(np.float64) * CHANGE_M3_M3
    total, count = persistence(["53926"])
    assert sqrt(total / count) == pytest.approx(float(np.sqrt(np.mean(later**2))))


def test_equal_seeds_build_equal_models_and_a_few_steps_lower_the_loss() -> None:
    task = SoilMoisture.make({})
    inputs, targets = task.train_data({"station": "53926"})
    torch.manual_seed(7)
    model = task.model()
    torch.manual_seed(7)
    twin = task.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    sgd = torch.optim.SGD(model.parameters(), lr=DEMO.learning_rate, momentum=DEMO.momentum)
    losses = []
    for _ in range(20):
        loss = task.loss(model(inputs), targets)
        losses.append(loss.item())
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
    assert losses[-1] < losses[0]


def test_the_cloud_holds_nothing_where_no_station_is_unseen() -> None:
    assert SoilMoisture.make({}).central_data() == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unsen": []}, "did you mean 'unseen'"),
        ({"unseen": "03047"}, "is a list of stations"),
        ({"unseen": [3047]}, "write it in quotes"),
        ({"unseen": ["03074", "03047", "03074"]}, "03074 more than once"),
        ({"unseen": ["03049"]}, "no station is called '03049', did you mean"),
    ],
)
def test_wrong_task_options_are_refused_with_the_remedy(options: dict[str, object], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        SoilMoisture.make(options)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "names its station"),
        ({"sation": "03047"}, "did you mean 'station'"),
        ({"station": "99999"}, "no station is called '99999'"),
        ({"station": 1575}, "write it in quotes"),
        ({"station": "53926"}, "held back"),
    ],
)
def test_wrong_client_data_is_refused_with_the_remedy(data: dict[str, object], says: str) -> None:
    task = SoilMoisture.make({"unseen": ["53926"]})
    with pytest.raises(TaskError, match=says):
        task.train_data(data)


def test_a_layout_is_a_function_of_its_seed() -> None:
    assert layout(3, 3, 12) == layout(3, 3, 12)
    assert layout(3, 3, 12).stations != layout(4, 3, 12).stations


@pytest.mark.parametrize(("farms", "clients"), [(1, 1), (3, 12), (3, 24), (5, 24), (8, 60), (60, 60)])
def test_farms_are_even_named_legally_and_share_no_station_with_the_unseen(farms: int, clients: int) -> None:
    for seed in range(10):
        made = layout(seed, farms, clients)
        sizes = [len(members) for _, members in made.farms]
        assert sum(sizes) == clients
        assert max(sizes) - min(sizes) <= 1
        assert len({name for name, _ in made.farms}) == farms
        assert all(is_path(name) for name, _ in made.farms)
        assert len(made.unseen) == 12
        assert len({*made.stations, *made.unseen}) == clients + 12


def test_a_farm_is_a_region() -> None:
    for seed in range(10):
        (_, west), *_, (_, east) = layout(seed, 3, 24).farms
        assert max(stations()[name].longitude_deg for name in west) <= min(
            stations()[name].longitude_deg for name in east
        )


def test_the_twin_of_a_training_station_is_never_held_back_as_unseen() -> None:
    for seed in range(50):
        made = layout(seed, 3, 24)
        for twins in ({"53926", "53927"}, {"53877", "53878"}, {"54794", "54795"}, {"54796", "54797"}):
            assert not (twins & set(made.stations) and twins & set(made.unseen))


@pytest.mark.parametrize(
    ("farms", "clients", "says"),
    [
        (3, 61, "61 clients are too many: of 76 stations 12 .* at most 60"),
        (5, 4, "got 5 farms and 4 clients"),
        (0, 4, "got 0 farms"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_numbers(farms: int, clients: int, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        layout(1, farms, clients)


def _quiet_year() -> NDArray[np.float32]:
    """Moisture 0.2 m3/m3 and the middle of every other scale, each day."""
    return np.tile(np.array([0.2, 0, 10, 20, 4, 15, 50, 10], dtype=np.float32), (366, 1))
