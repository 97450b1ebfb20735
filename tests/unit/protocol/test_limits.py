"""The page about limits names every one of them with its value, and every setting that an operator may choose."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from hfl_mqtt.protocol import limits
from hfl_mqtt.rounds.conduct import Bounds

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "limits.md").read_text()
LIMITS = {name: value for name, value in vars(limits).items() if name.isupper()}
ROWS = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", PAGE, re.MULTILINE))


def test_the_page_names_every_limit_and_no_other() -> None:
    assert sorted(ROWS) == sorted(LIMITS)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_page_gives_each_limit_its_value(name: str) -> None:
    assert float(ROWS[name].replace(",", "")) == LIMITS[name]


def test_the_page_names_every_setting() -> None:
    names = {field.name.removesuffix("_s") for field in fields(Bounds)}
    assert {name for name in names if f"`{name}`" in PAGE and f"  {name}: " in PAGE} == names
