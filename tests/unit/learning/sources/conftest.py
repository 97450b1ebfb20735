from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfl_mqtt.learning.sources.source import Column, Source


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    """Make a source with the columns a and b, on a grid of 10 s unless told otherwise."""

    def make(**changes: Any) -> Source:
        columns = (Column(name="a", topic="s/a"), Column(name="b", topic="s/b"))
        fields: dict[str, Any] = {
            "kind": "mqtt",
            "columns": columns,
            "every_s": 10.0,
            "window": str(tmp_path / "window.db"),
        }
        return Source(**(fields | changes))

    return make
