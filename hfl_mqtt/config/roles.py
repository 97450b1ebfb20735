"""Which model a file is for: its key `role` says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from hfl_mqtt.config.options import unknown_options
from hfl_mqtt.config.source import Document, read
from hfl_mqtt.config.wording import Mistake, near

M = TypeVar("M", bound=BaseModel)

_MODELS = "hfl_mqtt.config.models"
#: Where the model of each role is; a site's and a simulation's lie with what uses them.
_ROLES = {
    "cloud": (_MODELS, "CloudConfig"),
    "edge": (_MODELS, "EdgeConfig"),
    "client": (_MODELS, "ClientConfig"),
    "demo": (_MODELS, "DemoConfig"),
    "site": ("hfl_mqtt.config.site", "Site"),
    "simulation": ("hfl_mqtt.sim.config", "SimulationConfig"),
}


def load_any(path: Path | str, *, with_papers: bool = True) -> BaseModel:
    """Read the YAML of any role; its key `role` says which.

    Args:
        path: the file.
        with_papers: whether certificates, keys and cards that cannot be used are mistakes.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    document = read(path)
    return _check(document, _role_of(document), with_papers=with_papers)


def load_role(path: Path | str, model: type[M]) -> M:
    """Read the YAML of the role whose model this is.

    Raises:
        ConfigError: with every mistake, one a line; if the file is another role's, only that.
    """
    document = read(path)
    role = _role_of(document)
    if _ROLES[role][1] != model.__name__:
        wanted = next(name for name, (_, kind) in _ROLES.items() if kind == model.__name__)
        raise document.error(
            [Mistake(path=("role",), text=f"this file is for {role!r}, a file for {wanted!r} is wanted")]
        )
    checked = _check(document, role)
    assert isinstance(checked, model)
    return checked


def _role_of(document: Document) -> str:
    role, known = document.data.get("role"), ", ".join(_ROLES)
    if isinstance(role, str) and role in _ROLES:
        return role
    if role is None:
        raise document.error(
            [Mistake(path=(), text=f"role is missing: say what this file is for, role: one of {known}")]
        )
    meant = near(str(role), list(_ROLES))
    hint = f", did you mean {meant!r}?" if meant else ""
    raise document.error([Mistake(path=("role",), text=f"must be one of {known}, got {str(role)[:60]!r}{hint}")])


def _check(document: Document, role: str, *, with_papers: bool = True) -> BaseModel:
    module, name = _ROLES[role]
    model: type[BaseModel] = getattr(import_module(module), name)
    if "role" not in model.model_fields:
        document.data.pop("role", None)
    document.mistakes += unknown_options(role, document.data)
    return document.check(model, with_papers=with_papers)
