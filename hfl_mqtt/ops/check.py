"""`hfl check`: every mistake of every file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hfl_mqtt.config.roles import load_any
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.journal import plain


def check_files(files: list[Path], *, as_json: bool) -> int:
    """Print what is wrong with each file and return the exit code: 0, or 2 if any is wrong."""
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            role = load_any(file)
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
