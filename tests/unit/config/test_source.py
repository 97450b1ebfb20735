from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from hfl_mqtt.config import source
from hfl_mqtt.config.wording import misplaced
from hfl_mqtt.errors import ConfigError


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    instead: ClassVar[dict[str, str]] = {"metres": "is now length"}
    length: float = 1.0
    count: int = 1
    name: str = ""


class Wheel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    spokes: int
    rim: str


class Door(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    hinges: int


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Whole(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = Field(default_factory=dict)
    thing: Wheel | Door | None = None
    several: tuple[Wheel | Door, ...] = ()
    amount: int | bool | None = None
    kind: Literal["small", "large"] = "small"
    colour: Colour = Colour.RED
    flag: bool = False
    text: str = ""
    number: Annotated[int, Field(ge=1, le=10)] = 1
    real: float = 0.0
    words: tuple[str, ...] = ()
    some: Annotated[tuple[int, ...], Field(max_length=2)] = ()
    free: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.part.count == 99:
            raise misplaced((("part", "count"), "is one too many"), (("parts",), "is too {few}"))
        if self.part.count == 98:
            raise ValueError("the whole is less than its parts")
        return self


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    broker: Part
    wheel: Wheel | None = None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(text: str | bytes, model: type[BaseModel] = Whole) -> list[str]:
    """What is wrong with this text, as lines, in a file called x.yaml."""
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        source.load("x.yaml", model)
    return str(caught.value).removeprefix("x.yaml:").split("\nx.yaml:")


def loaded(text: str) -> Whole:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return source.load("x.yaml", Whole)


WRONG: dict[str, tuple[str | bytes, list[str]]] = {
    "an unknown key": ("prat: {}", ["1:1 prat: is not a key here, did you mean 'part'?"]),
    "a hyphen for an underscore": ("By-Name: {}", ["1:1 By-Name: is not a key here, did you mean 'by_name'?"]),
    "an unknown key far from any": (
        "part:\n  zzz: 1",
        ["2:3 part.zzz: is not a key here; the keys are length, count, name"],
    ),
    "a key of a section above it": ("length: 3", ["1:1 length: is not a key here, it belongs under 'part'"]),
    "a key that was given up": ("part: {metres: 3}", ["1:8 part.metres: is now length"]),
    "an unknown key in a list": (
        "parts:\n  - length: 2\n  - lenght: 2",
        ["3:5 parts[1].lenght: is not a key here, did you mean 'length'?"],
    ),
    "an unknown key in a mapping": (
        "by_name:\n  left: {cuont: 2}",
        ["2:10 by_name.left.cuont: is not a key here, did you mean 'count'?"],
    ),
    "a mistake in a union of models is told once": (
        "thing:\n  spokes: many\n  rim: steel",
        ["2:11 thing.spokes: must be a whole number, got 'many'"],
    ),
    "an unknown key in a union is told for the nearest member": (
        "several:\n  - {hinges: 2}\n  - {spokes: 3, rmi: steel}",
        ["3:17 several[1].rmi: is not a key here, did you mean 'rim'?"],
    ),
    "no member of a union of scalars": (
        "amount: lots",
        ["1:9 amount: must be a whole number or true or false, got 'lots'"],
    ),
    "no whole number": ("number: ten", ["1:9 number: must be a whole number, got 'ten'"]),
    "a fraction for a whole number": ("number: 1.5", ["1:9 number: must be a whole number, got 1.5"]),
    "a number too large": ("number: 11", ["1:9 number: must be less than or equal to 10, got 11"]),
    "no number": ("real: [1]", ["1:1 real: must be a number, got a list"]),
    "nothing for a number": ("number:\nreal: 1", ["1:1 number: must be a whole number, got nothing"]),
    "no truth value": ("flag: 2", ["1:7 flag: must be true or false, got 2"]),
    "a number for text is shown as written": (
        "words: [a, 23907, 1.50]",
        [
            '1:12 words[1]: must be text, got 23907: put it in quotes, "23907"',
            '1:19 words[2]: must be text, got 1.50: put it in quotes, "1.50"',
        ],
    ),
    "a truth value for text": ("text: true", ['1:7 text: must be text, got true: put it in quotes, "true"']),
    "no such choice": ("kind: lrge", ["1:7 kind: must be 'small' or 'large', got 'lrge', did you mean 'large'?"]),
    "no such member": ("colour: blu", ["1:9 colour: must be 'red' or 'blue', got 'blu', did you mean 'blue'?"]),
    "text for a section": ("part: big", ["1:7 part: must be keys with values, got 'big'"]),
    "a section for a list": ("parts: {a: 1}", ["1:1 parts: must be a list, got keys with values"]),
    "a list too long": ("some: [1, 2, 3]", ["1:1 some: must be a list of at most 2, got 3"]),
    "keys that do not agree": (
        "part:\n  count: 99\nparts: []",
        ["2:10 part.count: is one too many", "3:1 parts: is too {few}"],
    ),
    "keys that do not agree, and are not there": (
        "part: {count: 99}",
        ["1:1 parts: is too {few}", "1:15 part.count: is one too many"],
    ),
    "a whole that does not agree": ("part: {count: 98}", ["1:1 the whole is less than its parts"]),
    "all at once, in the order of lines": (
        "real: x\nnumber: y\nprat: 1\npart:\n  count: z",
        [
            "1:7 real: must be a number, got 'x'",
            "2:9 number: must be a whole number, got 'y'",
            "3:1 prat: is not a key here, did you mean 'part'?",
            "5:10 part.count: must be a whole number, got 'z'",
        ],
    ),
    "the same key twice, beside another mistake": (
        "real: 1\nnumber: y\nreal: 2",
        ["2:9 number: must be a whole number, got 'y'", "3:1 real: stands here again, first on line 1"],
    ),
    "no or off where nothing says what is meant": (
        "free:\n  a: no\n  b: [On]\n  c: 'no'",
        [
            "2:6 free.a: could mean false or the text 'no': write false, or \"no\"",
            "3:7 free.b[0]: could mean true or the text 'On': write true, or \"On\"",
        ],
    ),
    "a tag": (
        "text: !!python/name:os.system x",
        ["1:7 text: has the tag !!python/name:os.system, which has no place here: leave it out"],
    ),
    "a private tag": ("text: !secret x", ["1:7 text: has the tag !secret, which has no place here: leave it out"]),
    "a tag that lies": ("number: !!int ten", ["1:9 number: is marked !!int and is none"]),
    "a merge": (
        "part: &a {count: 2}\nparts:\n  - <<: *a",
        ["3:5 parts[0]: merges keys (<<) on line 3: write them out"],
    ),
    "a key that is a list": ("free:\n  [a]: 1", ["1:1 free: has a key on line 2 that is not plain text"]),
    "no mapping": ("- a\n- b", ["1:1 must be keys such as `role: client`, one a line"]),
    "a tab": ("part:\n\tcount: 1", ["2:1 a tab stands where YAML takes only spaces"]),
    "a colon in text": (
        "text: a: b",
        ["1:8 a colon where no key can stand: check the indentation, or put the text in quotes"],
    ),
    "a wrong indentation": ("part:\n  count: 1\n name: a", ["3:2 the indentation does not fit the lines above"]),
    "an open bracket": (
        "words: [a\ntext: b",
        ["2:5 not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"],
    ),
    "two documents": (
        "text: a\n---\ntext: b",
        ["2:1 not YAML: expected a single document in the stream, but found another document"],
    ),
    "an alias to nothing": ("text: *a", ["1:7 not YAML: found undefined alias 'a'"]),
    "a control character": ("text: a\nname: \x01", ["2:7 a character that no text file has: #x0001"]),
    "another encoding": ("text: a\nname: é".encode("latin-1"), ["2:7 not UTF-8 text: save the file as UTF-8"]),
    "an empty file": ("", [" is empty; it needs keys such as `role: client`"]),
    "a file of comments": ("# nothing\n---\n", [" is empty; it needs keys such as `role: client`"]),
    "a file too large": ("#" * 1_000_001, [" is larger than 1000 kB, which no configuration is"]),
    "an alias that holds itself": (
        "words: &a [*a]",
        [" is nested more than 32 deep, or an alias (*name) holds itself"],
    ),
    "a deep nesting": (
        "words: " + "[" * 40 + "]" * 40,
        [" is nested more than 32 deep, or an alias (*name) holds itself"],
    ),
    "a very deep nesting": ("[" * 5000, [" is nested too deeply to be a configuration"]),
    "a bomb of aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
        [" holds more than 50000 values once its aliases (*name) are written out"],
    ),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_told_with_its_place(case: str) -> None:
    text, expected = WRONG[case]
    assert mistakes(text) == expected


@pytest.mark.usefixtures("folder")
def test_a_missing_key_points_at_its_section() -> None:
    assert mistakes("broker: {}\nwheel:\n  spokes: 3", Strict) == ["2:1 wheel.rim: is missing"]
    assert mistakes("# a comment\nwheel: {spokes: 3, rim: a}", Strict) == ["2:1 broker: is missing"]


@pytest.mark.usefixtures("folder")
def test_a_misspelt_key_is_not_also_a_missing_one() -> None:
    assert mistakes("borker: {}", Strict) == ["1:1 borker: is not a key here, did you mean 'broker'?"]


@pytest.mark.usefixtures("folder")
def test_scalars_are_what_people_mean() -> None:
    whole = loaded(
        "flag: yes\ntext: no\nwords: [off, 03047, 12:30, 2020-01-01, 1_000, '5', ~x, 1.2.3]\nreal: 1e-3\nnumber: 10\n"
        "free: {a: 1e-3, b: 03047, c: 1.5, d: null, e: true, f: .inf, g: -7, 12: x, no: 1}"
    )
    assert whole.flag is True
    assert whole.text == "no"
    assert whole.words == ("off", "03047", "12:30", "2020-01-01", "1_000", "5", "~x", "1.2.3")
    assert whole.real == 0.001
    assert whole.free == {
        **{"a": 0.001, "b": "03047", "c": 1.5, "d": None, "e": True},
        **{"f": float("inf"), "g": -7, "12": "x", "no": 1},
    }


@pytest.mark.usefixtures("folder")
def test_an_alias_stands_for_its_anchor() -> None:
    whole = loaded("part: &p {count: 3}\nparts: [*p, *p]")
    assert [part.count for part in whole.parts] == [3, 3]


@pytest.mark.usefixtures("folder")
def test_a_byte_order_mark_and_windows_line_ends_do_not_matter() -> None:
    assert loaded("\ufeffnumber: 3\r\ntext: a\r\n").number == 3


@pytest.mark.usefixtures("folder")
def test_a_missing_file_names_its_neighbour() -> None:
    Path("cloud.yaml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^clod\.yaml: no such file, did you mean 'cloud\.yaml'\?$"):
        source.read("clod.yaml")
    with pytest.raises(ConfigError, match=r"^away/x\.yaml: no such file$"):
        source.read("away/x.yaml")


def test_a_folder_is_no_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, a YAML file is wanted$"):
        source.read(folder)


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told() -> None:
    Path("x.yaml").touch(mode=0o000)
    with pytest.raises(ConfigError, match=r"^x\.yaml: cannot be read: Permission denied$"):
        source.read("x.yaml")


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`, \n\t?<~0.1\x00\x85é", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_text_raises_anything_but_config_error(folder: Path, text: str) -> None:
    (folder / "x.yaml").write_bytes(text.encode())
    try:
        source.load(folder / "x.yaml", Whole)
    except ConfigError as error:
        assert str(error).startswith(str(folder / "x.yaml"))  # noqa: PT017
