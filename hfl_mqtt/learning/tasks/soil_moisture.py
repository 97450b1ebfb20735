"""The default task: tomorrow's soil moisture from a station's readings and tomorrow's weather. A station is a device.

The model forecasts the *change* of the volumetric moisture at 5 cm, so an empty model is persistence: tomorrow is like
today. A client's later days (the last quarter of the year) are held out, and so are whole stations, which the cloud
scores on the same later days: one season for every figure, and nothing that was known when the model was trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, radians
from typing import TYPE_CHECKING

import numpy as np

from hfl_mqtt.errors import TaskError
from hfl_mqtt.learning.contracts import Metric, Options, Task
from hfl_mqtt.learning.keys import KEYS
from hfl_mqtt.learning.sources.source import TABLE
from hfl_mqtt.learning.tasks import check_keys
from hfl_mqtt.learning.tasks.stations import (
    CHANGE_M3_M3,
    Examples,
    check_station,
    examples,
    own_examples,
    stations,
)

if TYPE_CHECKING:
    import torch

_KEYS = KEYS["soil-moisture"]


class SoilMoisture(Task):
    """Forecast tomorrow's soil moisture at 5 cm; options: `unseen`, the stations that only the cloud is scored on.

    A client's data is `{station: "03047"}`, the station's WBAN number as text; or its own, from a source with one row a
    day, whose columns are called as the stations' are: `soil_moisture_5cm`, and what there is of the others. Inputs
    have shape (n, features), targets and outputs (n, 1), in units of `CHANGE_M3_M3`. The metric is the RMSE in m3/m3.
    """

    metric = Metric("rmse", higher_is_better=False, is_root=True)

    def __init__(self, unseen: tuple[str, ...] = ()) -> None:
        self.unseen = unseen

    @classmethod
    def make(cls, options: Options) -> SoilMoisture:
        """Check `unseen`, a list of stations that no client may train on.

        Raises:
            TaskError: an unknown option, no list, an unknown station, or one named twice.
        """
        check_keys(options, _KEYS.task, "task")
        unseen = options.get("unseen", ())
        if not isinstance(unseen, list | tuple):
            raise TaskError(
                f'task soil-moisture: unseen is a list of stations, as in ["03047", "53927"], got {unseen!r}'
            )
        names = tuple(check_station(name) for name in unseen)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TaskError(
                f"task soil-moisture: unseen names {', '.join(twice)} more than once; name each station once"
            )
        return cls(names)

    def model(self) -> torch.nn.Module:
        """Build the network, 64-64; no normalisation layers, as their statistics would differ between stations."""
        from torch import nn

        features = examples(next(iter(stations()))).inputs.shape[1]
        return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def train_data(self, data: Options) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the station's examples whose target day is before 1 October; `TaskError` where `data` is wrong.

        Of a source's rows it is the first three quarters.
        """
        return _tensors([self._examples(data, later=False)])

    def test_data(self, data: Options) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the station's examples from 1 October on, of a source's rows the last quarter; see `train_data`."""
        return _tensors([self._examples(data, later=True)])

    def central_data(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return the later days of the `unseen` stations as "unseen"; nothing where there are none."""
        return {"unseen": _tensors([examples(name).later(True) for name in self.unseen])} if self.unseen else {}

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the Huber loss: a cloudburst is fifty times a usual day and would own the squared error of a batch."""
        from torch.nn import functional

        return functional.huber_loss(output, target, delta=0.5)

    def score(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the squared error in (m3/m3)^2 per example, shape (batch,)."""
        return (output - target).mul(CHANGE_M3_M3).square().squeeze(1)

    def _examples(self, data: Options, *, later: bool) -> Examples:
        if TABLE in data:
            check_keys(data, (TABLE,), "data")
            return own_examples(data[TABLE])[later]
        return examples(self._station(data)).later(later)

    def _station(self, data: Options) -> str:
        check_keys(data, _KEYS.data, "data")
        if "station" not in data:
            raise TaskError('task soil-moisture: a client\'s data names its station, as in station: "03047"')
        name = check_station(data["station"])
        if name in self.unseen:
            raise TaskError(
                f"station {name} is held back: the task's `unseen` names it; give this client another station, "
                "or take it out of `unseen`"
            )
        return name


def persistence(names: Sequence[str]) -> tuple[float, int]:
    """Return (sum of squared errors in (m3/m3)^2, examples) of "tomorrow is like today" on the stations' later days."""
    total, count = 0.0, 0
    for name in names:
        changes = examples(name).later(True).changes.astype(np.float64) * CHANGE_M3_M3
        total += float(np.sum(changes**2))
        count += len(changes)
    return total, count


def _tensors(parts: Sequence[Examples]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    inputs = np.concatenate([part.inputs for part in parts])
    return torch.from_numpy(inputs), torch.from_numpy(np.concatenate([part.changes for part in parts]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What the demo runs: the size of the tree and the rounds, measured together over many seeds.

    They belong together: with 24 clients the same rounds left the global model behind stations trained alone on two
    seeds of twelve, with 36 on none of 36.
    """

    farms: int = 3
    clients: int = 36
    global_rounds: int = 40
    edge_rounds: int = 2
    epochs: int = 1
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 32


#: The plan of `hfl demo` where nothing else is asked for.
DEMO = DemoPlan()


@dataclass(frozen=True, slots=True)
class Layout:
    """Who is where: (farm's name, its stations) for every farm, and the stations held back."""

    farms: tuple[tuple[str, tuple[str, ...]], ...]
    unseen: tuple[str, ...]

    @property
    def stations(self) -> tuple[str, ...]:
        """Every station that trains, farm by farm."""
        return tuple(station for _, members in self.farms for station in members)


UNSEEN_STATIONS = 12
#: Some stations have a twin down the road; a station this near to a training station has been seen.
_TWIN_KM = 25.0
#: Stations kept free because they may be twins of training stations.
_TWINS = 4

#: Places to name farms after, (longitude, latitude) in degrees.
_REGIONS = {
    "northwest": (-121.5, 46.0),
    "california": (-119.5, 36.5),
    "great-basin": (-116.0, 41.0),
    "southwest": (-111.0, 34.0),
    "rockies": (-107.0, 39.0),
    "high-plains": (-103.0, 35.5),
    "south-plains": (-98.0, 32.0),
    "north-plains": (-97.5, 43.0),
    "prairie": (-96.0, 38.5),
    "midwest": (-90.0, 41.5),
    "ozarks": (-92.0, 36.5),
    "gulf-coast": (-91.0, 31.0),
    "great-lakes": (-85.5, 44.5),
    "ohio-valley": (-85.5, 38.5),
    "southeast": (-85.0, 33.0),
    "florida": (-81.5, 28.0),
    "piedmont": (-80.0, 35.5),
    "atlantic": (-77.0, 38.5),
    "northeast": (-73.0, 42.5),
}


def layout(seed: int, farms: int = DEMO.farms, clients: int = DEMO.clients) -> Layout:
    """Draw stations by `seed`, group them into farms of neighbours of equal size (within one), and hold 12 others back.

    Raises:
        TaskError: fewer than one farm or client, fewer clients than farms, or more clients than there are stations for.
    """
    most = len(stations()) - UNSEEN_STATIONS - _TWINS
    if not 1 <= farms <= clients:
        raise TaskError(
            f"every farm needs a client: got {farms} farms and {clients} clients; ask for 1 to {clients} farms"
        )
    if clients > most:
        raise TaskError(
            f"{clients} clients are too many: of {len(stations())} stations {UNSEEN_STATIONS} are held back unseen and "
            f"{_TWINS} kept free beside them; ask for at most {most}"
        )
    drawn = random.Random(seed).sample(list(stations()), len(stations()))  # noqa: S311 - drawn to be repeated
    chosen, rest = drawn[:clients], drawn[clients:]
    unseen = [name for name in rest if all(_distance_km(name, other) > _TWIN_KM for other in chosen)]
    groups = _neighbours(chosen, farms)
    return Layout(
        tuple(zip(_farm_names(groups), (tuple(sorted(group)) for group in groups), strict=True)),
        tuple(sorted(unseen[:UNSEEN_STATIONS])),
    )


def _neighbours(names: list[str], groups: int) -> list[list[str]]:
    """Halve the map along its longer side, in proportion to the farms on either side, until every part is one farm."""
    if groups == 1:
        return [names]
    places = {name: _place_km(*_position(name)) for name in names}
    spans = [
        max(place[axis] for place in places.values()) - min(place[axis] for place in places.values()) for axis in (0, 1)
    ]
    axis = 0 if spans[0] >= spans[1] else 1
    ordered = sorted(names, key=lambda name: (places[name][axis], name))
    left = groups // 2
    cut = round(len(ordered) * left / groups)
    return _neighbours(ordered[:cut], left) + _neighbours(ordered[cut:], groups - left)


def _farm_names(groups: list[list[str]]) -> list[str]:
    """Name every farm after the nearest place whose name is still free, nearest pairs first; then number them."""
    names = [*_REGIONS, *(f"farm-{number}" for number in range(1, len(groups) - len(_REGIONS) + 1))]
    centres = [np.mean([_place_km(*_position(name)) for name in group], axis=0) for group in groups]
    far = (1e9, 1e9)
    pairs = sorted(
        (float(hypot(*(centre - np.array(_place_km(*_REGIONS[name]) if name in _REGIONS else far)))), farm, name)
        for farm, centre in enumerate(centres)
        for name in names
    )
    taken: dict[int, str] = {}
    for _, farm, name in pairs:
        if farm not in taken and name not in taken.values():
            taken[farm] = name
    return [taken[farm] for farm in range(len(groups))]


def _position(name: str) -> tuple[float, float]:
    station = stations()[name]
    return station.longitude_deg, station.latitude_deg


def _place_km(longitude_deg: float, latitude_deg: float) -> tuple[float, float]:
    """Lay the map flat around 38 degrees north; good to a tenth, which is enough to tell who is near."""
    return longitude_deg * 111.2 * cos(radians(38.0)), latitude_deg * 111.2


def _distance_km(one: str, other: str) -> float:
    (x, y), (other_x, other_y) = _place_km(*_position(one)), _place_km(*_position(other))
    return hypot(x - other_x, y - other_y)
