"""The command line, `hfl ...`. Each command imports what it needs, so that an edge starts at once and stays small."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hfl_mqtt import __version__
from hfl_mqtt.errors import HflError, RunFailed
from hfl_mqtt.fleet.commands import device_app, fleet_app
from hfl_mqtt.ops import logs

app = typer.Typer(
    name="hfl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Hierarchical federated learning over MQTT: a cloud, edges and devices, each on its own broker.",
    epilog="Try it: hfl demo. Exit codes: 2 configuration, 3 task, 4 broker, 5 a run without result, 1 anything else.",
)
brokers_app = typer.Typer(
    no_args_is_help=True,
    help="What Mosquitto runs on.",
    epilog="Example: hfl brokers render brokers/site.yaml --out my-brokers",
)
app.add_typer(brokers_app, name="brokers")
run_app = typer.Typer(
    no_args_is_help=True,
    help="Steer a run that goes on: hold it back, let it go on, end it, see how it stands.",
    epilog="Example: hfl run pause --config configs/cloud.yaml",
)
app.add_typer(run_app, name="run")
sensors_app = typer.Typer(
    no_args_is_help=True,
    help="Sensors of a farm, to try out who hears them.",
    epilog="Example: hfl sensors replay soil.csv --topic sensors/field-1/soil --password-file secret",
)
app.add_typer(sensors_app, name="sensors")
app.add_typer(fleet_app, name="fleet")
app.add_typer(
    device_app,
    name="device",
    epilog="Example: hfl device request --federation orchard --name cloud/farm-a/pi-1 --out .",
)

Config = Annotated[Path, typer.Option("--config", "-c", help="The role's YAML; see configs/ for examples.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the journal has it all.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def _say_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"hfl-mqtt {__version__}")
        raise typer.Exit


@app.callback()
def every(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is, and end."),
    ] = False,
) -> None:
    """Take what stands before any command."""


@app.command(epilog="Example: hfl cloud --config configs/cloud.yaml. Steer it with hfl run.")
def cloud(
    config: Config,
    new: Annotated[
        bool, typer.Option("--new", help="Begin another run, rather than go on with an unfinished one.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the cloud: wait for the edges, run all rounds, save the model, and end; an unfinished run goes on."""
    from hfl_mqtt.config.models import CloudConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.cloud import run_cloud

    logs.to_stderr(quiet=quiet)
    run_cloud(load_role(config, CloudConfig), quiet=quiet, as_json=as_json, is_new=new)


@app.command(epilog="Example: hfl edge --config configs/edge.yaml")
def edge(config: Config, quiet: Quiet = False, as_json: Json = False) -> None:
    """Run a farm's edge: aggregate its devices whenever the cloud calls, until stopped."""
    from hfl_mqtt.config.models import EdgeConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.serve import serve
    from hfl_mqtt.roles import edge as role

    logs.to_stderr(quiet=quiet)
    settings = load_role(config, EdgeConfig)
    serve(lambda record: role.make(settings, record), settings.journal_path(), quiet=quiet, as_json=as_json)


@app.command(epilog="Example: hfl client --config configs/client.yaml. With a board's vitals: python -m device_agents")
def client(config: Config, quiet: Quiet = False, as_json: Json = False) -> None:
    """Run one device, or several in one process, until stopped."""
    from hfl_mqtt.config.models import ClientConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.serve import serve
    from hfl_mqtt.roles import client as role

    logs.to_stderr(quiet=quiet)
    settings = load_role(config, ClientConfig)
    journal = settings.state_path(settings.devices[0]) / "journal.jsonl"
    serve(lambda record: role.make(settings, record), journal, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: hfl check configs/client.yaml")
def check(
    files: Annotated[list[Path], typer.Argument(help="YAML files of any role, or site files.")], as_json: Json = False
) -> None:
    """Check configuration files: every mistake of every file, each with its line and column."""
    from hfl_mqtt.ops.check import check_files

    raise typer.Exit(check_files(files, as_json=as_json))


@app.command(
    epilog="Examples: hfl doctor --config agent.yaml; hfl doctor --config configs/edge.yaml --quick --json. "
    "Exit code: 0 fit, warnings or not; 1 something failed."
)
def doctor(
    config: Config,
    name: Annotated[str | None, typer.Option(help="Which client, where the file has several; the first.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes long or costs bytes: a large packet, torch, a step.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine a board and its broker: reach, TLS, rights, bridge, clock, disk, memory, torch; with what to do.

    It may run beside the agent: it connects under a client id of its own, retains nothing, and speaks where no node
    listens.
    """
    from hfl_mqtt.ops.doctor.command import doctor as examine

    raise typer.Exit(examine(config, name=name, is_quick=quick, as_json=as_json))


@app.command(epilog="Example: hfl watch --federation fed1 --host 127.0.0.1 --password-file secrets/viewer")
def watch(
    federation: Annotated[str, typer.Option("--federation", "-f", help="The federation's name.")],
    host: Annotated[str, typer.Option(help="A broker of the federation; the cloud's sees everything.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Its port; by default 1883, with --ca 8883, with --cert 8884.", min=1, max=65535)
    ] = None,
    user: Annotated[str, typer.Option(help="An account that may read hfl/#.")] = "viewer",
    password_file: Annotated[Path | None, typer.Option(help="File that holds the password and nothing else.")] = None,
    password_env: Annotated[str | None, typer.Option(help="Environment variable that holds it.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Speak TLS; the fleet's ca.crt.")] = None,
    cert: Annotated[Path | None, typer.Option(help="A certificate, where the port wants one.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON and end.")] = False,
) -> None:
    """Show every node live: state, round, metric, bytes, age; from the retained JSON topics."""
    from hfl_mqtt.ops.watch import account_of
    from hfl_mqtt.ops.watch import watch as look

    account = account_of(
        federation=federation,
        host=host,
        port=port,
        user=user,
        password_file=password_file,
        password_env=password_env,
        ca=ca,
        cert=cert,
        key=key,
    )
    look(account, federation, once=once, as_json=as_json)


@app.command(epilog="Example: hfl assign cloud/farm-a/pi-07 cloud/farm-b/pi-07 --config configs/edge.yaml")
def assign(
    child: Annotated[str, typer.Argument(help="The device, by the name it has now.")],
    to: Annotated[str, typer.Argument(help="Its name at the other home, one of the homes in its own YAML.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML of its parent: an edge, or the cloud.")],
    wait: Annotated[float, typer.Option(help="How long to wait until it has gone, in seconds.", min=0)] = 60.0,
    as_json: Json = False,
) -> None:
    """Have a device go on under another parent; what it does for this one is finished first."""
    from hfl_mqtt.config.models import CloudConfig, EdgeConfig
    from hfl_mqtt.config.roles import load_any
    from hfl_mqtt.errors import ConfigError
    from hfl_mqtt.ops.assign import assign as move

    settings = load_any(config)
    if not isinstance(settings, CloudConfig | EdgeConfig):
        raise ConfigError(f"{config}: give the YAML of the device's parent, an edge or the cloud")
    move(settings, child, to, wait_s=wait, as_json=as_json)


def _steer(order: str, config: Path, *, run: str, wait: float, as_json: bool) -> None:
    from hfl_mqtt.config.models import CloudConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.steering import steer
    from hfl_mqtt.protocol.messages import Order

    steer(load_role(config, CloudConfig), Order(order), wait_s=wait, as_json=as_json, run=run)


CloudFile = Annotated[Path, typer.Option("--config", "-c", help="The cloud's YAML: where to ask, and as whom.")]
RunName = Annotated[str, typer.Option("--run", help="Only this run; by default whichever is there.")]
Wait = Annotated[
    float, typer.Option("--wait", help="Seconds to wait until it is so; the open round comes first.", min=0)
]


@run_app.command(epilog="Example: hfl run pause --config configs/cloud.yaml")
def pause(config: CloudFile, run: RunName = "", wait: Wait = 60.0, as_json: Json = False) -> None:
    """Open no round after this one, until it is resumed; also over restarts of the cloud."""
    _steer("pause", config, run=run, wait=wait, as_json=as_json)


@run_app.command(epilog="Example: hfl run resume --config configs/cloud.yaml")
def resume(config: CloudFile, run: RunName = "", wait: Wait = 60.0, as_json: Json = False) -> None:
    """Let a paused run go on."""
    _steer("resume", config, run=run, wait=wait, as_json=as_json)


@run_app.command(epilog="Example: hfl run stop --config configs/cloud.yaml")
def stop(config: CloudFile, run: RunName = "", wait: Wait = 60.0, as_json: Json = False) -> None:
    """End the run with this round, with the model that it has then."""
    _steer("stop", config, run=run, wait=wait, as_json=as_json)


@run_app.command(epilog="Example: hfl run drain --config configs/cloud.yaml, then shut the machine down")
def drain(config: CloudFile, run: RunName = "", wait: Wait = 60.0, as_json: Json = False) -> None:
    """End the cloud's program with this round; the run goes on when it is started again."""
    _steer("drain", config, run=run, wait=wait, as_json=as_json)


@run_app.command(epilog="Example: hfl run status --config configs/cloud.yaml --json")
def status(config: CloudFile, as_json: Json = False) -> None:
    """Say how the run stands; where the cloud or its broker does not run, from its state folder.

    Exit code 0 where that is known; 4 without a broker and 1 without a word of the cloud, if no run is kept either.
    """
    from hfl_mqtt.config.models import CloudConfig
    from hfl_mqtt.config.roles import load_role
    from hfl_mqtt.ops.steering import status as look

    raise typer.Exit(look(load_role(config, CloudConfig), as_json=as_json))


@brokers_app.command(epilog="Example: hfl brokers render brokers/site.yaml --out my-brokers")
def render(
    site: Annotated[Path, typer.Argument(help="The site file; see brokers/site.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; passwords there are kept.")],
    example: Annotated[
        bool, typer.Option("--example", help="Write CHANGE-ME for every secret and no password files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write configuration, ACL and password file of the cloud's broker and of every farm's."""
    from hfl_mqtt.ops.render import render_site

    render_site(site, out, example=example, as_json=as_json)


@sensors_app.command(
    name="replay",
    epilog="Example: hfl sensors replay soil.csv --topic sensors/field-1/soil --user sensor --password-file secret",
)
def replay_sensors(
    file: Annotated[Path, typer.Argument(help="CSV, or CSV packed with gzip; each line becomes one JSON message.")],
    topic: Annotated[str, typer.Option(help="Where to say it; {column} stands for the line's value.")],
    where: Annotated[list[str] | None, typer.Option(help="Only lines with this value, as column=value.")] = None,
    pause: Annotated[float, typer.Option(help="Seconds to rest after each message.", min=0)] = 0.0,
    host: Annotated[str, typer.Option(help="The farm's broker.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Its port.", min=1, max=65535)] = None,
    user: Annotated[str, typer.Option(help="An account that may write the topic.")] = "sensor",
    password_file: Annotated[Path | None, typer.Option(help="File that holds the password and nothing else.")] = None,
    password_env: Annotated[str | None, typer.Option(help="Environment variable that holds it.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Speak TLS; the fleet's ca.crt.")] = None,
    cert: Annotated[Path | None, typer.Option(help="A certificate, where the port wants one.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
) -> None:
    """Be the sensors of a farm: say the lines of a file at its broker, to try out who hears them."""
    from hfl_mqtt.ops.sensors import replay, wanted_of
    from hfl_mqtt.ops.watch import account_of

    account = account_of(
        federation="sensors",  # of no matter here
        host=host,
        port=port,
        user=user,
        password_file=password_file,
        password_env=password_env,
        ca=ca,
        cert=cert,
        key=key,
    )
    replay(account, file, topic, where=wanted_of(where or ()), pause_s=pause)


@app.command(epilog="Examples: hfl demo --seed 3 --out result; hfl demo --task mnist --data-dir data; hfl demo --hold")
def demo(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with `role: demo`; options below override it.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="soil-moisture (default) or mnist.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal models.", min=0)] = None,
    rounds: Annotated[int | None, typer.Option(help="Global rounds.", min=1)] = None,
    farms: Annotated[int | None, typer.Option(help="Farms, each with its broker and its edge.", min=1)] = None,
    clients: Annotated[int | None, typer.Option(help="Devices in all.", min=1)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, for mnist.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for summary.json, journal, model and plot.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep brokers and nodes up at the end, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> None:
    """Run a whole federation on this machine: real bridged brokers, real data, live progress, a result."""
    from hfl_mqtt.ops.demo import Wishes, run_demo

    wishes = Wishes(
        config=config,
        task=task,
        seed=seed,
        rounds=rounds,
        farms=farms,
        clients=clients,
        data_dir=data_dir,
        out=out,
        hold=hold,
        as_json=as_json,
    )
    run_demo(wishes)


@app.command(epilog="Example: hfl simulate --config configs/sim.yaml. Exit code 1: an invariant broke.")
def simulate(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML with `role: simulation`; see configs/sim.yaml.")],
    seed: Annotated[
        int | None, typer.Option(help="In place of the file's; equal seeds give equal runs.", min=0)
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Simulate a federation under a virtual clock, with a plan of faults, and check that every update counts once."""
    from hfl_mqtt.ops.simulate import simulate as run

    run(config, as_json=as_json, quiet=quiet, seed=seed)


def main() -> None:
    """Run the command line; the entry point `hfl`."""
    # Before numpy is loaded: codecs multiply small matrices, for which its threads cost ten times what they bring.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A crash in native code would else end this process without a word.
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    logs.to_stderr(quiet=False)
    try:
        app()
    except HflError as error:
        from hfl_mqtt.ops.journal import plain

        # Why a run failed may be told by a device, whose words command no terminal and begin no line.
        text = plain(str(error), keep="" if isinstance(error, RunFailed) else "\n")
        sys.stderr.write(f"hfl: {text}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("hfl: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
