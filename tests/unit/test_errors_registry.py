import pytest

from hfl_mqtt import errors, registry
from hfl_mqtt.errors import (
    BrokerError,
    ConfigError,
    HflError,
    Malformed,
    Misuse,
    Refused,
    RunFailed,
    TaskError,
)


def test_there_is_one_tree_of_errors() -> None:
    raised = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(raised) == 10
    assert all(issubclass(kind, HflError) for kind in raised)


def test_what_a_person_must_act_on_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in (HflError, ConfigError, TaskError, BrokerError, RunFailed)]
    assert codes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [Malformed, Refused, Misuse])
def test_the_text_of_an_error_is_its_reason(kind: type[HflError]) -> None:
    assert str(kind("foreign base")) == "foreign base"


def test_what_setup_cfg_registers_can_be_named() -> None:
    assert {"raw", "shuffle", "fp16", "bf16", "int8", "int4", "zstd"} <= set(registry.names("codecs"))
    assert {"topk", "stc", "rot1", "rot2", "rot3", "rot4"} <= set(registry.names("codecs"))
    assert "fedavg" in registry.names("strategies")
    assert {"mnist", "soil-moisture"} <= set(registry.names("tasks"))
    assert registry.names("spaceships") == []


@pytest.mark.parametrize("group", ["codecs", "strategies"])
def test_everything_registered_can_be_loaded(group: str) -> None:
    assert all(isinstance(registry.load(group, name), type) for name in registry.names(group))


def test_a_name_that_nobody_registered_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"is called 'fedavgg', did you mean 'fedavg'\? Known: .*fedavg"):
        registry.load("strategies", "fedavgg")


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(ConfigError, match=r"no codec is called 'xyz'\. Known: .*fp16.*zstd"):
        registry.load("codecs", "xyz")


def test_where_nothing_is_registered_it_says_so() -> None:
    with pytest.raises(ConfigError, match="Known: none installed"):
        registry.load("spaceships", "apollo")
