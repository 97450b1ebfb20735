"""`hfl check`: every mistake of every file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hfl_mqtt.config.models import ClientConfig, CloudConfig, EdgeConfig
from hfl_mqtt.config.options import unknown_options
from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.site import Site
from hfl_mqtt.config.source import Document, read
from hfl_mqtt.config.wording import KeyPath, Mistake, explain
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.journal import plain

_MODELS: Mapping[str, type[BaseModel]] = {"cloud": CloudConfig, "edge": EdgeConfig, "client": ClientConfig}


def check_files(files: list[Path], *, as_json: bool) -> int:
    """Print what is wrong with each file and return the exit code: 0, or 2 if any is wrong."""
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            role = load_any(file)
            if isinstance(role, Site) and "agents" in role.model_fields_set:  # one for brokers alone has none
                check_agents(role, read(file))
        except ConfigError as error:
            found[str(file)] = str(error).splitlines()
        else:
            found[str(file)] = []
            if not as_json:
                kind = type(role).__name__.removesuffix("Config").lower()
                article = "an" if kind[0] in "aeiou" else "a"
                sys.stdout.write(f"{plain(str(file))}: fine, {article} {kind}'s configuration\n")
    wrong = {file: mistakes for file, mistakes in found.items() if mistakes}
    if as_json:
        rows = [{"file": file, "ok": not mistakes, "mistakes": mistakes} for file, mistakes in found.items()]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for mistakes in wrong.values():
            sys.stderr.write(plain("\n".join(mistakes), keep="\n") + "\n")
    return ConfigError.exit_code if wrong else 0


def check_agents(site: Site, document: Document) -> None:
    """Check what a site file says for the YAML of its agents, by the models of theirs.

    Raises:
        ConfigError: with every mistake, one a line, where it stands in the site file.
    """
    agents, waits_for = site.agents, max(1, len(next(site.brokers()).children))
    own = [
        ((*broker.keys, "data", name), data) for broker in site.brokers() for name, data in broker.place.data.items()
    ]
    mistakes = [
        *_mistakes("cloud", {"task": agents.task, "wait_for": waits_for}, agents.cloud, (), document),
        *_mistakes("edge", {}, agents.edge, (), document),
    ]
    # One device stands for all that have the same data.
    is_shared = not own or any(set(broker.place.devices) - broker.place.data.keys() for broker in site.brokers())
    for keys, data in [*([(("agents", "data"), agents.data)] if is_shared else []), *own]:
        given = {"task": agents.task} | ({"data": data} if data else {})
        mistakes += _mistakes("client", given, agents.client, keys, document)
    if mistakes:
        raise document.error(mistakes)


def _mistakes(
    role: str, shared: Mapping[str, Any], own: Mapping[str, Any], data_keys: KeyPath, document: Document
) -> Iterator[Mistake]:
    """Yield what is wrong with the YAML that one agent would have; `data_keys` is where its data stand."""
    path = "cloud" if role == "cloud" else "cloud/a"
    broker: dict[str, Any] = {"host": "localhost"}
    given: dict[str, Any] = {"role": role, "federation": "any", "name": path, "broker": broker, **shared}
    for key, value in own.items():
        given[key] = broker | value if key == "broker" and isinstance(value, dict) else value

    def in_site(keys: KeyPath) -> KeyPath:
        match keys:
            case ("task", *rest) if "task" not in own:
                return ("agents", "task", *rest)
            case ("data", *rest) if "data" not in own:
                return (*data_keys, *rest)
        return ("agents", role, *keys)

    model = _MODELS[role]
    found = list(unknown_options(role, given))
    try:
        # Whether papers lie where it says is seen where they lie: on the board.
        model.model_validate(given, context={"with_papers": False})
    except ValidationError as error:
        found += explain(error, model, given, lambda keys: document.written(in_site(keys)))
    for each in found:
        yield replace(each, path=in_site(each.path))
