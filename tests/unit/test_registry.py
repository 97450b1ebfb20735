import pytest

from hfl_mqtt import registry
from hfl_mqtt.errors import ConfigError


@pytest.mark.parametrize(
    ("group", "name", "says"),
    [
        (
            "codecs",
            "int9",
            "no codec is called 'int9', did you mean 'int8'? Known: bf16, dz, fp16, int4, int8, raw, rot1, rot2, "
            "rot3, rot4, shuffle, stc, topk, zstd",
        ),
        ("strategies", "fedagv", "no strategy is called 'fedagv', did you mean 'fedavg'? Known: fedavg"),
        ("tasks", "xyz", "no task is called 'xyz'. Known: mnist, soil-moisture"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_those_that_are(group: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load(group, name)
    assert str(caught.value) == says


def test_the_options_that_a_file_is_checked_for_are_of_registered_tasks() -> None:
    from hfl_mqtt.learning.keys import KEYS

    assert set(KEYS) == set(registry.names("tasks"))
    assert all(set(keys.paths) <= set(keys.task) for keys in KEYS.values())
