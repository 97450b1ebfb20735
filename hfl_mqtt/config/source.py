"""A YAML file becomes a checked, frozen model, or a `ConfigError` that lists every mistake with its line and column.

Scalars are read by the rules of YAML 1.2, because those of 1.1 bite: there `no` is false, `03047` is octal for 1575,
`12:30` is 750 and `1e-3` is text. Here they are text, text, text and a number. Keys are always text. The file is
composed, never constructed: no tag can make an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hfl_mqtt.config.wording import KeyPath, Mistake, explain, is_free, key_text, quoted
from hfl_mqtt.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
MAX_DEPTH = 32

M = TypeVar("M", bound=BaseModel)

_TAG = "tag:yaml.org,2002:"
_BOOLEANS = {"true": True, "false": False}
#: What YAML 1.1 and most people's editors take for a boolean, and YAML 1.2 does not.
_OLD_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2; a leading zero makes a text, not a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (the base class's own form)


_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,40})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]{1,40}|(?:0|[1-9][0-9]{0,40})(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


@dataclass(kw_only=True)
class Document:
    """A parsed file: plain data, and the node that each value and each key came from."""

    path: Path
    data: Any = None
    mistakes: list[Mistake] = field(default_factory=list)
    _values: dict[KeyPath, yaml.Node] = field(default_factory=dict, repr=False)
    _keys: dict[KeyPath, yaml.Node] = field(default_factory=dict, repr=False)

    def place(self, path: KeyPath, *, at_key: bool = False) -> tuple[int, int]:
        """Return line and column, from 1: of a scalar, or of a collection's key; where neither is, its parent's."""
        while path not in self._values and path:
            path, at_key = path[:-1], True
        node = self._values[path]
        has_text = isinstance(node, yaml.ScalarNode) and (node.value or node.style)
        if path in self._keys and (at_key or not has_text):
            node = self._keys[path]
        return node.start_mark.line + 1, node.start_mark.column + 1

    def written(self, path: KeyPath) -> str | None:
        """Return a plain scalar as it stands in the file, None for quoted text and collections."""
        node = self._values.get(path)
        return node.value if isinstance(node, yaml.ScalarNode) and not node.style else None

    def check(self, model: type[M], *, with_papers: bool = True) -> M:
        """Validate against `model`.

        Paths of type `units.LocalPath` become relative to the file's folder. Without papers, what these are on disk is
        not looked at, see `broker.looks_at_papers`.

        Raises:
            ConfigError: with every mistake of the file, in the order of its lines.
        """
        mistakes = [*self.mistakes, *self._doubtful_booleans(model)]
        try:
            context = {"folder": self.path.absolute().parent, "with_papers": with_papers}
            result = model.model_validate(self.data, context=context)
        except ValidationError as error:
            # What could not be built stands in the data as None, and of that nothing more is to be said.
            lost = {each.path for each in self.mistakes if each.path and not each.at_key}
            found = explain(error, model, self.data, self.written)
            mistakes += [each for each in found if not any(each.path[:n] in lost for n in range(len(each.path) + 1))]
        if mistakes:
            raise self.error(mistakes)
        return result

    def error(self, mistakes: list[Mistake]) -> ConfigError:
        """Return the error that lists these mistakes, one a line."""
        placed = sorted(((*self.place(each.path, at_key=each.at_key), each) for each in mistakes), key=lambda p: p[:2])
        lines = [
            f"{self.path}:{line}:{column} " + (f"{key_text(each.path)}: " if each.path else "") + each.text
            for line, column, each in placed
        ]
        return ConfigError("\n".join(dict.fromkeys(lines)))

    def _doubtful_booleans(self, model: type[BaseModel]) -> Iterator[Mistake]:
        # Where a field has a type, pydantic takes `no` for false or for text, as its type says; where it has none
        # nobody can tell.
        for path in self._values:
            text = self.written(path) or ""
            meant = _OLD_BOOLEANS.get(text.lower())
            if meant and is_free(model, path):
                yield Mistake(
                    path=path, text=f"could mean {meant} or the text {text!r}: write {meant}, or {quoted(text)}"
                )

    def _build(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the plain data of a node; what cannot be said plainly becomes a mistake and None."""
        if len(self._values) >= MAX_VALUES:
            raise _TooMuch(f"holds more than {MAX_VALUES} values once its aliases (*name) are written out")
        if len(path) > MAX_DEPTH:
            raise _TooMuch(f"is nested more than {MAX_DEPTH} deep, or an alias (*name) holds itself")
        self._values[path] = node
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._build_mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self._build(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            try:
                match tag:
                    case "str":
                        return node.value
                    case "null":
                        return None
                    case "bool":
                        return _BOOLEANS[node.value.lower()]
                    case "int":
                        return int(node.value)
                    case "float":
                        return float(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", node.value))
            except (ValueError, KeyError):
                self.mistakes.append(Mistake(path=path, text=f"is marked !!{tag} and is none"))
                return None
        shown = f"!!{tag}" if node.tag.startswith(_TAG) else node.tag
        self.mistakes.append(Mistake(path=path, text=f"has the tag {shown}, which has no place here: leave it out"))
        return None

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(Mistake(path=path, text=f"has a key on line {line} that is not plain text"))
                continue
            key, here = key_node.value, (*path, key_node.value)
            if key == "<<" and not key_node.style:
                self.mistakes.append(Mistake(path=path, text=f"merges keys (<<) on line {line}: write them out"))
                continue
            if key in result:
                first = self._keys[here].start_mark.line + 1
                self._keys[here] = key_node  # so that the mistake points at the second
                self.mistakes.append(Mistake(path=here, text=f"stands here again, first on line {first}", at_key=True))
                continue
            self._keys[here] = key_node
            result[key] = self._build(value_node, here)
        return result


class _TooMuch(Exception):
    """The document is larger than any configuration."""


def read(path: Path | str) -> Document:
    """Parse a YAML file.

    Raises:
        ConfigError: it is missing, unreadable, empty, too large, no YAML, or not a mapping of keys.
    """
    path = Path(path)
    text = _text(path)
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(path, error)) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ConfigError(
            f"{path}:{line}:{column} a character that no text file has: #x{error.character:04x}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply to be a configuration") from None
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        raise ConfigError(f"{path}: is empty; it needs keys such as `role: client`")
    document = Document(path=path)
    try:
        document.data = document._build(root, ())
    except _TooMuch as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        line, column = document.place(())
        raise ConfigError(f"{path}:{line}:{column} must be keys such as `role: client`, one a line")
    return document


def load(path: Path | str, model: type[M]) -> M:
    """Read a YAML file into `model`, any frozen pydantic model.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    return read(path).check(model)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_neighbour(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, a YAML file is wanted") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1000} kB, which no configuration is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}:{column} not UTF-8 text: save the file as UTF-8") from None


def _neighbour(path: Path) -> str:
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, 1)
    return f", did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def _syntax(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path}:"
    problem = error.problem or "not YAML"
    match problem:
        case str() if "'\\t'" in problem:
            text = "a tab stands where YAML takes only spaces"
        case "mapping values are not allowed here":
            text = "a colon where no key can stand: check the indentation, or put the text in quotes"
        case "could not find expected ':'":
            text = "a key without its colon"
        case str() if problem.startswith("expected <block end>"):
            text = "the indentation does not fit the lines above"
        case _:
            context = f"{error.context}, " if error.context else ""
            text = f"not YAML: {context}{problem}"
    return f"{where} {text}"
