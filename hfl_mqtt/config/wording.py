"""What pydantic says about wrong data, said for the person who wrote the file.

Pydantic finds every mistake; here each becomes one sentence at one key. Its locations name members of unions and
validator functions between the keys; those are taken out, and of a union's many complaints only the pertinent are kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

#: Keys and list indices from the root of the document.
KeyPath = tuple[str | int, ...]

_MISPLACED = "misplaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One sentence about one key. `at_key` points at the key itself rather than at its value."""

    path: KeyPath
    text: str
    at_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """A mistake before a union's complaints are weighed: `union` is where the union stands, and which member spoke."""

    mistake: Mistake
    union: tuple[KeyPath, str] | None
    suggested: KeyPath | None = None
    is_missing: bool = False


def misplaced(*mistakes: tuple[KeyPath, str]) -> PydanticCustomError:
    """Return the error for a model's own validator to raise when several keys do not go together.

    Each mistake is a key path from that model's mapping, and a sentence; each is shown at its own line.
    """
    plain = "; ".join(f"{key_text(path)}: {text}" for path, text in mistakes)
    return PydanticCustomError(_MISPLACED, plain.replace("{", "(").replace("}", ")"), {"mistakes": mistakes})


def key_text(path: KeyPath) -> str:
    """Write a key path for people.

    >>> key_text(("tiers", 1, "open_for"))
    'tiers[1].open_for'
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def quoted(text: str) -> str:
    """Write a text in YAML's double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def near(word: str, known: list[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that was likely meant; case and `-` for `_` do not count."""
    plain = {each.lower().replace("-", "_"): each for each in known}
    matches = get_close_matches(word.lower().replace("-", "_"), list(plain), 1, cutoff)
    return plain[matches[0]] if matches else None


def explain(
    error: ValidationError, model: type[BaseModel], data: Any, written: Callable[[KeyPath], str | None]
) -> list[Mistake]:
    """Return every mistake once. `written` gives a plain scalar as it stands in the file."""
    findings = [
        finding
        for detail in error.errors(include_url=False)
        for finding in _findings(detail, *_taken_apart(data, detail), model, written)
    ]
    findings = _pertinent(findings)
    suggested = {finding.suggested for finding in findings}
    # `borker:` is one mistake, not also a missing `broker`.
    return [each.mistake for each in findings if not (each.is_missing and each.mistake.path in suggested)]


def is_free(model: type[BaseModel], path: KeyPath) -> bool:
    """Whether nothing says of which type the value at `path` is."""
    return any(kind is Any for kind in _kinds(model, path))


def _taken_apart(data: Any, detail: ErrorDetails) -> tuple[KeyPath, tuple[KeyPath, str] | None]:
    """Return the keys of an error's location, and the outermost union in it with the member that complains."""
    path: list[str | int] = []
    union: tuple[KeyPath, str] | None = None
    here, steps = data, detail["loc"]
    for index, step in enumerate(steps):
        is_missing_key = detail["type"] == "missing" and index == len(steps) - 1
        if isinstance(here, dict) and (step in here or is_missing_key):
            path.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(step)
            here = here[step]
        elif step != "[key]" and union is None:
            union = tuple(path), str(step)
    return tuple(path), union


def _pertinent(findings: list[_Finding]) -> list[_Finding]:
    """Keep, of each union, the member that was likely meant: the one that got furthest, with the fewest mistakes."""
    result: list[_Finding] = []
    unions: dict[KeyPath, dict[str, list[_Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in findings:
        if finding.union is None:
            result.append(finding)
        else:
            where, member = finding.union
            unions[where][member].append(finding)
    for where, members in unions.items():
        inside = [each for each in members.values() if any(f.mistake.path != where for f in each)]
        if inside:
            result += min(inside, key=lambda each: len(list(each)))
        else:
            texts = [each[0].mistake.text for each in members.values()]
            result.append(_Finding(mistake=Mistake(path=where, text=_either(texts)), union=None))
    return result


def _either(texts: list[str]) -> str:
    """Join `must be A, got X` and `must be B, got X` into one sentence."""
    parts = [text.removeprefix("must be ").partition(", got ") for text in dict.fromkeys(texts)]
    head = " or ".join(dict.fromkeys(part[0] for part in parts))
    return f"must be {head}{parts[0][1]}{parts[0][2]}" if all(t.startswith("must be ") for t in texts) else texts[0]


def _findings(
    detail: ErrorDetails,
    path: KeyPath,
    union: tuple[KeyPath, str] | None,
    model: type[BaseModel],
    written: Callable[[KeyPath], str | None],
) -> Iterator[_Finding]:
    match detail["type"]:
        case "misplaced":
            for below, text in detail["ctx"]["mistakes"]:
                yield _Finding(mistake=Mistake(path=(*path, *below), text=text), union=union)
        case "extra_forbidden":
            owner = next((kind for kind in _kinds(model, detail["loc"][:-1]) if _is_model(kind)), model)
            text, meant = _unknown_key(str(path[-1]), owner)
            suggested = (*path[:-1], meant) if meant else None
            yield _Finding(mistake=Mistake(path=path, text=text, at_key=True), union=union, suggested=suggested)
        case "too_short" if len(detail["input"]) >= detail["ctx"]["min_length"]:
            return  # pydantic counts only the good entries; the bad ones have been told
        case "missing":
            yield _Finding(mistake=Mistake(path=path, text="is missing"), union=union, is_missing=True)
        case kind:
            text = _sentence(kind, detail, _got(detail["input"], written(path)))
            yield _Finding(mistake=Mistake(path=path, text=text), union=union)


def _unknown_key(key: str, owner: type[BaseModel]) -> tuple[str, str | None]:
    """Return a sentence about a key that `owner` does not have, and the key that was likely meant."""
    instead: Mapping[str, str] = getattr(owner, "instead", {})
    if key in instead:
        return instead[key], None
    for name, field in owner.model_fields.items():
        if any(key in kind.model_fields for kind in _leaves(field.annotation) if _is_model(kind)):
            return f"is not a key here, it belongs under {name!r}", None
    known = [field.alias or name for name, field in owner.model_fields.items()]
    meant = near(key, known)
    if meant:
        return f"is not a key here, did you mean {meant!r}?", meant
    return f"is not a key here; the keys are {', '.join(known)}", None


def _sentence(kind: str, detail: ErrorDetails, got: str) -> str:
    context = detail.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind.startswith("int_"):
        return f"must be a whole number, got {got}"
    if kind in ("float_type", "float_parsing", "finite_number"):
        return f"must be a number, got {got}"
    if kind.startswith("bool_"):
        return f"must be true or false, got {got}"
    if kind == "string_type":
        if isinstance(detail["input"], bool | int | float):
            return f"must be text, got {got}: put it in quotes, {quoted(got)}"
        return f"must be text, got {got}"
    if kind in ("literal_error", "enum"):
        # Stricter than for keys: who says gpu does not mean cpu.
        meant = near(str(detail["input"]), re.findall(r"'([^']*)'", context["expected"]), 0.7)
        return f"must be {context['expected']}, got {got}" + (f", did you mean {meant!r}?" if meant else "")
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return f"must be keys with values, got {got}"
    if kind in ("list_type", "tuple_type", "set_type", "frozen_set_type"):
        return f"must be a list, got {got}"
    if kind in ("too_short", "too_long"):
        bound, most = ("min_length", "at least") if kind == "too_short" else ("max_length", "at most")
        return f"must be a list of {most} {context[bound]}, got {context['actual_length']}"
    text = detail["msg"].replace("Input should be", "must be").replace("Value should", "must")
    text = (
        text.replace("String should have", "must have").replace("String should", "must").replace("Input", "the value")
    )
    return f"{text}, got {got}" if text.startswith("must") else text[:1].lower() + text[1:]


def _got(value: Any, written: str | None) -> str:
    match value:
        case None:
            return "nothing"
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
        case list() | tuple():
            return "a list"
        case dict():
            return "keys with values"
        case bool():
            return str(value).lower()
    return written if written is not None and len(written) <= 60 else repr(value)[:60]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the kinds that values of an annotation, or their entries, can have."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments[:1] if get_origin(annotation) is Annotated else arguments:
        yield from _leaves(argument)


def _kinds(kind: Any, steps: KeyPath) -> Iterator[Any]:
    """Yield what may stand at `steps` below `kind`; a step may also be the name of a union's member."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _kinds(arguments[0], steps)
    elif origin in (Union, UnionType):
        named = [each for each in arguments if steps and _is_model(each) and each.__name__ == steps[0]]
        if not named:
            for member in arguments:
                yield from _kinds(member, steps)
        if steps and isinstance(steps[0], str):  # the step may name the member
            for member in named or arguments:
                yield from _kinds(member, steps[1:])
    elif not steps or kind is Any:
        yield kind
    elif _is_model(kind):
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        if steps[0] in fields:
            yield from _kinds(fields[steps[0]].annotation, steps[1:])
        elif kind.model_config.get("extra") == "allow":
            yield Any
    elif isinstance(steps[0], int) and arguments:
        yield from _kinds(arguments[0], steps[1:])
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        yield from _kinds(arguments[1], steps[1:])
