"""`python -m device_agents`: the client role on a board, with the board's vitals beside its metrics.

The same as `hfl client`, and lighter: it loads no command-line framework, and no numpy or torch while it waits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from device_agents.boards import detect
from device_agents.vitals import FRESH_S, Vitals
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import logs

PROGRAM = "device_agents"


def main() -> None:
    """Run the agent; errors end it with one line and the exit codes of `hfl`."""
    arguments = _parser().parse_args()
    logs.to_stderr(quiet=arguments.quiet)
    try:
        if arguments.vitals:
            sys.stdout.write(json.dumps(look(), indent=2) + "\n")
            return
        _run(arguments)
    except HflError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: interrupted\n")
        sys.exit(130)


def look() -> dict[str, Any]:
    """Return the board and its vitals; takes a second, for the processor's share is that of a time."""
    board, vitals = detect(), Vitals()
    time.sleep(FRESH_S)
    return {"board": board.kind.value, "hardware": board.hardware, **vitals()}


def _run(arguments: argparse.Namespace) -> None:
    from hfl_mqtt.config.models import ClientConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.serve import serve
    from hfl_mqtt.roles import client as role

    config = load_role(arguments.config, ClientConfig)
    hardware, vitals = detect().hardware, Vitals()
    journal = config.state_path(config.devices[0]) / "journal.jsonl"
    serve(
        lambda record: role.make(config, record, hardware=hardware, vitals=vitals, vitals_every_s=arguments.every),
        journal,
        quiet=arguments.quiet,
        as_json=arguments.as_json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run a device agent: the client role, with the board's vitals beside its metrics.",
        epilog="Examples:\n  python -m device_agents --vitals\n  python -m device_agents --config configs/client.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-c", "--config", type=Path, help="the client's YAML; see configs/client.yaml")
    what.add_argument("--vitals", action="store_true", help="print board and vitals as JSON and end")
    parser.add_argument(
        "--every", type=_seconds, default=60.0, metavar="TIME", help="vitals between rounds, e.g. '5 min' (60 s)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors; the journal has it all")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON lines, for scripts")
    return parser


def _seconds(text: str) -> float:
    from hfl_mqtt.config.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 s, got {text!r}")
    return seconds


if __name__ == "__main__":
    main()
