"""Adding to a collection in a YAML file that people write: every line of theirs stays as and where it is.

The parser says where a collection ends; what is new is written there, in the style of what stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from hfl_mqtt.config.wording import KeyPath, quoted

#: What every reader of YAML takes for text.
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null)\Z)[A-Za-z/~][\w./\-]*|\d+(\.\d+){3}", re.IGNORECASE)

#: What is added: texts, or lists or mappings of such.
Items = dict[str, Any] | list[Any]


def scalar(text: str) -> str:
    """Write a text so that it is one in YAML, plainly where that is clear."""
    return text if _PLAIN.fullmatch(text) else quoted(text)


def added(text: str, keys: KeyPath, items: Items) -> str:
    """Return a YAML text with more in one of its collections, which is made where there is none.

    Args:
        text: the file.
        keys: where the collection stands; the mapping that holds it is there.
        items: what to add.
    """
    place: Any = yaml.compose(text, yaml.SafeLoader)
    for key in keys[:-1]:
        place = _value(place, key)
    node = _value(place, keys[-1])
    if node is None:
        return _extended(text, place, {str(keys[-1]): items})
    if node.value or place.flow_style or not _fills_lines(items):
        return _extended(text, node, items)
    # `farms: []`: what is added stands on lines of its own.
    start, end = node.start_mark.index, node.end_mark.index
    text = text[:start].rstrip() + text[end:]
    return _with_lines(text, start - 1, place.start_mark.column + 2, items)


def _extended(text: str, node: yaml.CollectionNode, items: Items) -> str:
    if not node.flow_style:
        return _with_lines(text, _end(node), node.start_mark.column, items)
    at = _end(node.value[-1]) if node.value else node.start_mark.index + 1
    return text[:at] + (", " if node.value else "") + _in_line(items)[1:-1] + text[at:]


def _with_lines(text: str, after: int, column: int, items: Items) -> str:
    """Write items on lines of their own, below those comments that are further in and so belong to what is there."""
    at = here = _end_of_line(text, len(text[:after].rstrip()))  # a text of several lines (|) ends below them
    while here < len(text):
        following = _end_of_line(text, here + 1)
        line = text[here + 1 : following]
        if line.strip():
            if not line.lstrip().startswith("#") or len(line) - len(line.lstrip()) <= column:
                break
            at = following
        here = following
    return text[:at] + "".join(f"\n{' ' * column}{line}" for line in _lines(items)) + text[at:]


def _value(place: Any, key: str | int) -> Any:
    """Return the node at a key or an index, or None."""
    if isinstance(key, int):
        return place.value[key]
    return next((value for name, value in place.value if name.value == key), None)


def _end(node: Any) -> int:
    """Return where a node, or an entry of a mapping, has its last character, whatever comments follow."""
    if isinstance(node, tuple):
        node = node[1]
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


def _fills_lines(items: Items) -> bool:
    """Whether a collection is written with an item a line: one of mappings is."""
    return any(isinstance(each, dict) for each in (items.values() if isinstance(items, dict) else items))


def _lines(items: Items) -> Iterator[str]:
    if isinstance(items, list):
        for each in items:
            first, *rest = _lines(each) if isinstance(each, dict) else [_in_line(each)]
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        return
    for key, value in items.items():
        if isinstance(value, dict | list) and _fills_lines(value):
            yield f"{scalar(key)}:"
            yield from (f"  {line}" for line in _lines(value))
        else:
            yield f"{scalar(key)}: {_in_line(value)}"


def _in_line(value: Items | str) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {_in_line(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_line, value)) + "]"
    return scalar(value)
