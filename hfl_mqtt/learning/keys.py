"""Which options the package's own tasks take: names only, so that a file is checked without loading a task or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The options under `task:` and under a client's `data:`; `paths` are those of `task` that name a path.

    `columns` are those that the task reads where its data comes from a source; none where it reads no `Table`.
    """

    task: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


#: By the name under which a task is registered. What does not stand here is checked by its task, when that is made.
KEYS: Mapping[str, Keys] = {
    "soil-moisture": Keys(
        task=("unseen",),
        data=("station",),
        columns=(
            "soil_moisture_5cm",
            "precip_mm",
            "air_temp_avg_c",
            "air_temp_max_c",
            "air_temp_min_c",
            "solar_mj_m2",
            "rel_humidity_pct",
            "soil_temp_5cm_c",
        ),
    ),
    "mnist": Keys(
        task=("data_dir", "download"),
        data=("partition", "index", "of", "seed", "samples", "alpha", "shards_per_client"),
        paths=("data_dir",),
    ),
}
