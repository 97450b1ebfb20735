"""`python -m device_agents`: a role on a board, as a service; a client with the board's vitals and its own rules.

The same as `hfl client`, `hfl edge` and `hfl cloud`, by the `role:` in the YAML, and lighter: it loads no command-line
framework, and a client no numpy or torch while it waits. Only a cloud whose run is finished does not begin another: a
service starts with its board, not when somebody wants a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_agents.boards import detect
from device_agents.notify import Service
from device_agents.vitals import FRESH_S, Vitals
from hfl_mqtt.errors import ConfigError, HflError
from hfl_mqtt.ops import logs

if TYPE_CHECKING:
    from hfl_mqtt.config.models import ClientConfig
    from hfl_mqtt.roles.process import Process, Record

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
    board = detect()
    vitals = Vitals(own=board.vitals)
    time.sleep(FRESH_S)
    return {"board": board.kind.value, "hardware": board.hardware, **vitals()}


def _run(arguments: argparse.Namespace) -> None:
    from hfl_mqtt.config.models import ClientConfig, CloudConfig, EdgeConfig
    from hfl_mqtt.config.roles import load_any

    config, service = load_any(arguments.config), Service()
    said = {"quiet": arguments.quiet, "as_json": arguments.as_json}
    if isinstance(config, CloudConfig):
        from hfl_mqtt.ops.cloud import finished_run, run_cloud

        if (told := finished_run(config)) is not None:
            service.ready()
            sys.stderr.write(f"{PROGRAM}: {told}\n")
            return
        run_cloud(config, **said, begun=lambda process: service.watch(process.beat))
        return
    from hfl_mqtt.ops.serve import serve

    def watched(process: Process) -> Process:
        service.watch(process.beat)
        return process

    if isinstance(config, EdgeConfig):
        from hfl_mqtt.roles import edge

        serve(lambda record: watched(edge.make(config, record)), config.journal_path(), **said)
    elif isinstance(config, ClientConfig):
        journal = config.state_path(config.devices[0]) / "journal.jsonl"
        serve(lambda record: watched(_client(config, record, arguments.every)), journal, **said)
    else:
        raise ConfigError(
            f"{arguments.config}: an agent is a client, an edge or a cloud; this file is for another role"
        )


def _client(config: ClientConfig, record: Record, every_s: float) -> Process:
    from hfl_mqtt.roles import client

    board = detect()
    vitals = Vitals(own=board.vitals)
    refusal = None
    if config.may_train is not None:
        from device_agents.may_train import MayTrain
        from device_agents.network import is_metered
        from device_agents.others import Others

        refusal = MayTrain(config.may_train, vitals, Others(), is_metered)
    return client.make(config, record, hardware=board.hardware, vitals=vitals, vitals_every_s=every_s, refusal=refusal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run an agent: a client with the board's vitals and rules, an edge or a cloud, as its YAML says.",
        epilog="Examples:\n  python -m device_agents --vitals\n  python -m device_agents --config configs/client.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-c", "--config", type=Path, help="the YAML of a client, an edge or a cloud; see configs/")
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
