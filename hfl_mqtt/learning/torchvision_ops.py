"""torchvision where its compiled operators are missing, as on many Jetsons.

A torchvision wheel that does not match its torch fails at import with "operator torchvision::nms does not exist", even
for someone who wants a data set and will never suppress a box. Declaring the two schemas is enough: data sets,
transforms and models work, and only calling `nms` itself fails.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
#: The declarations live as long as this object.
_declared: list[torch.library.Library] = []


def load_torchvision(module: str = "torchvision") -> Any:
    """Import torchvision or a module of it, declaring its operators only where they are missing.

    Raises:
        ImportError: torchvision is not installed, or fails for another reason.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _declared:
            raise ImportError(f"torchvision cannot be imported: {error}") from error
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    # What the failed import left behind would be taken for loaded.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module(module)
