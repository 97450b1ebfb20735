"""`hfl fleet ...` and `hfl device ...`: from nothing to a locked fleet. Each command imports what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfl_mqtt.errors import ConfigError

if TYPE_CHECKING:
    from hfl_mqtt.fleet.sitefile import Home

fleet_app = typer.Typer(
    no_args_is_help=True,
    help="A fleet from one site file: certificates, brokers, a bundle for every board.",
    epilog="Example: hfl fleet init orchard, cd orchard, hfl fleet add farm farm-a --devices 4, hfl fleet render",
)
add_app = typer.Typer(
    no_args_is_help=True,
    help="Add a farm or a device to the site file.",
    epilog="Examples: hfl fleet add farm farm-a --devices 4; hfl fleet add device pi-5 --farm farm-a",
)
fleet_app.add_typer(add_app, name="add")
device_app = typer.Typer(no_args_is_help=True, help="On a board that keeps its own key.")

Dir = Annotated[Path, typer.Option("--dir", "-d", help="The fleet's folder; here by default.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Overwrite without asking.")]
YesRevoke = Annotated[bool, typer.Option("--yes", "-y", help="Take papers back and overwrite without asking.")]
YesRotate = Annotated[
    bool, typer.Option("--yes", "-y", help="Issue new papers, or a password, and overwrite without asking.")
]
YesSign = Annotated[
    bool, typer.Option("--yes", "-y", help="Sign for whatever fingerprint it is, and overwrite, without asking.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Days = Annotated[int, typer.Option("--days", help="How long papers last.", min=1, max=3650)]
HERE = Path()


@fleet_app.command(epilog="Example: hfl fleet init orchard --cloud-host cloud.example")
def init(
    name: Annotated[str, typer.Argument(help="The federation's name.")],
    folder: Annotated[Path | None, typer.Option("--dir", "-d", help="The fleet's folder; NAME by default.")] = None,
    cloud_host: Annotated[
        str, typer.Option("--cloud-host", help="Where farms find the cloud's broker.")
    ] = "cloud.local",
    task: Annotated[str, typer.Option("--task", help="What is learned; `agents:` in the site file says more.")] = (
        "soil-moisture"
    ),
    passwords: Annotated[
        bool, typer.Option("--passwords", help="For labs: MQTT in the clear, and no certificates.")
    ] = False,
    authority: Annotated[
        str | None, typer.Option("--authority", help="Folder for the keys that sign everything, if not in this one.")
    ] = None,
) -> None:
    """Make a fleet's folder: a site file, and the keys that everything will be signed with."""
    from hfl_mqtt.fleet import sitefile

    is_new = not (folder or Path(name)).exists()
    home = sitefile.create(
        folder or Path(name),
        name,
        cloud_host=cloud_host,
        security="passwords" if passwords else "mtls",
        task=task,
        authority=authority,
    )
    site = home.load()
    if site.has_certificates:
        from hfl_mqtt.fleet.authority import Authority

        try:
            Authority.create(home.authority(site), name)
        except BaseException:
            home.site_file.unlink()
            if is_new and not any(home.folder.iterdir()):
                home.folder.rmdir()
            raise
    _say(f"wrote      {home.site_file}")
    if site.has_certificates:
        _say(f"wrote      {home.authority(site)}/: keep it where nobody else reads it, and keep a copy")
    _say(f"Next: hfl fleet add farm NAME --devices 4 --dir {home.folder}")


@add_app.command(epilog="Example: hfl fleet add farm farm-a --host 192.168.1.10 --devices 4")
def farm(
    name: Annotated[str, typer.Argument(help="Its name; below another farm, with that one's before: north/farm-a.")],
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where its edge and its devices find its broker; NAME.local by default."),
    ] = None,
    devices: Annotated[
        str, typer.Option("--devices", help="How many, pi-1 and on; or their names: pi-1,jetson-1.")
    ] = "",
    folder: Dir = HERE,
) -> None:
    """Add a farm: a broker, its edge and its devices."""
    from hfl_mqtt.fleet import sitefile

    names = sitefile.names_of(devices)
    path = sitefile.add_farm(_home(folder), name, host=host, devices=names)
    _say(f"added      {path}{f' with {len(names)} devices' if names else ''}")


@add_app.command(epilog="Example: hfl fleet add device pi-5 --farm farm-a")
def device(
    name: Annotated[str, typer.Argument(help="Its name.")],
    farm: Annotated[str, typer.Option("--farm", help="Its farm: farm-a, or cloud for none.")],
    own_key: Annotated[
        bool, typer.Option("--own-key", help="It makes its own key and asks for papers: hfl device request.")
    ] = False,
    folder: Dir = HERE,
) -> None:
    """Add a device to a farm."""
    from hfl_mqtt.fleet import sitefile

    _say(f"added      {sitefile.add_device(_home(folder), name, farm=farm, keeps_key=own_key)}")


@fleet_app.command(epilog="Example: hfl fleet render --dir orchard")
def render(folder: Dir = HERE, yes: Yes = False, as_json: Json = False) -> None:
    """Write all that brokers and boards run on; twice changes nothing. Asks before it overwrites."""
    _render(_home(folder), yes=yes, as_json=as_json)


@fleet_app.command(epilog="Example: hfl fleet revoke cloud/farm-a/pi-1 --yes")
def revoke(
    path: Annotated[str, typer.Argument(help="The node whose papers no longer count; of a farm, its broker's too.")],
    old: Annotated[bool, typer.Option("--old", help="All but the newest: those from before a rotation.")] = False,
    folder: Dir = HERE,
    yes: YesRevoke = False,
) -> None:
    """Take a node's papers back, and tell brokers and nodes so."""
    from hfl_mqtt.fleet.papers import revoke as take_back

    home = _home(folder)
    confirm = _asked(yes, "Revoke?", f"revoking {path} overwrites the lists of revoked papers")
    gone = take_back(home, path, keep_newest=old, confirm=confirm)
    for one in gone:
        _say(f"revoked    {one.subject} (serial {one.serial})")
    _render(home, yes=yes, as_json=False, done=f"{gone[0].path} is revoked")
    _say(
        "Each broker's acl and crl.pem hold there once it is reloaded (systemctl reload mosquitto); nodes need the new "
        "`revoked` of their bundles."
    )


@fleet_app.command(
    epilog="Examples: hfl fleet rotate cloud/farm-a/pi-1; hfl fleet rotate viewer; hfl fleet rotate --all"
)
def rotate(
    path: Annotated[
        str | None,
        typer.Argument(help="The node; of a farm, its broker and bridge too. Or whose password: viewer."),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every account of the site that has papers.")] = False,
    days: Days = 730,
    folder: Dir = HERE,
    yes: YesRotate = False,
) -> None:
    """Issue new papers and keys. The old ones stay good until they end or are revoked: revoke PATH --old.

    People and sensors have a password: a new one is drawn, and a broker that has read its new passwd refuses the old.
    """
    from hfl_mqtt.fleet.papers import redraw
    from hfl_mqtt.fleet.papers import rotate as renew
    from hfl_mqtt.ops.brokers import secret_path

    if (path is None) != everybody:
        raise ConfigError("say which: a node's path, an account with a password, or --all")
    home = _home(folder)
    if path is not None and path in home.load().without_papers():
        redraw(home, path, confirm=_asked(yes, "Draw?", "a new password overwrites the one in this folder"))
        _render(home, yes=yes, as_json=False, done=f"{path} has a new password")
        _say(f"drawn      a new password of {path}, in {secret_path(home.folder, path)}")
        return
    confirm = _asked(yes, "Issue?", "new papers overwrite those that lie in this folder")
    issued = renew(home, path, days=days, confirm=confirm)
    for subject in issued:
        _say(f"issued     {subject}")
    _render(home, yes=yes, as_json=False, done="new papers are issued", issued=issued)


@fleet_app.command(epilog="Example: hfl fleet sign pi-1.request")
def sign(
    request: Annotated[Path, typer.Argument(help="The file that `hfl device request` wrote on the board.")],
    days: Days = 730,
    folder: Dir = HERE,
    yes: YesSign = False,
) -> None:
    """Give a device its papers; its bundle then has no key, for the device has its own."""
    from hfl_mqtt.fleet.papers import sign as grant

    home = _home(folder)
    confirm = _asked(yes, "Is that what the board printed?", "somebody has to compare the fingerprint with the board's")
    path = grant(home, request, days=days, confirm=confirm)
    _say(f"signed     {path}")
    _render(home, yes=yes, as_json=False, done=f"{path} is signed for")


@fleet_app.command(epilog="Example: hfl fleet status --json. Exit code 1: something is to be done.")
def status(folder: Dir = HERE, as_json: Json = False) -> None:
    """Say whose papers end when, who is revoked, and what is not as the site file says."""
    from hfl_mqtt.fleet.status import status as look
    from hfl_mqtt.fleet.status import text

    found = look(_home(folder))
    sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n" if as_json else text(found))
    if not found.is_in_order:
        raise typer.Exit(1)


@fleet_app.command(epilog="Example: hfl fleet up, and in another terminal what it prints to train")
def up(
    folder: Dir = HERE,
    first_port: Annotated[
        int | None, typer.Option("--first-port", help="Brokers listen here and above; on free ports by default.", min=1)
    ] = None,
) -> None:
    """Run the whole rendered fleet on this machine, until Ctrl-C: brokers, edges, devices."""
    from hfl_mqtt.fleet.up import up as run
    from hfl_mqtt.ops.serve import echo_line

    run(_home(folder), echo_line, first_port=first_port)


@device_app.command(epilog="Example: hfl device request --federation orchard --name cloud/farm-a/pi-1 --out .")
def request(
    federation: Annotated[str, typer.Option("--federation", "-f", help="The federation's name.")],
    name: Annotated[str, typer.Option("--name", help="This device: cloud/farm-a/pi-1.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for node.key, which stays, and for the request.")],
) -> None:
    """Make a key that never leaves this device, and the request to be signed at home."""
    from hfl_mqtt.fleet.requests import KEY_FILE, fingerprint, read_request_file, write_request

    has_key = (out / KEY_FILE).exists()
    file = write_request(federation, name, out)
    _say(f"{'kept ' if has_key else 'wrote'}      {out / KEY_FILE}: it never leaves this device")
    _say(f"wrote      {file}: carry it home, there: hfl fleet sign {file.name}")
    _say(f"It will be asked there whether the key has the fingerprint {fingerprint(read_request_file(file).key)}")


def _home(folder: Path) -> Home:
    from hfl_mqtt.fleet.sitefile import Home

    return Home(folder)


def _render(home: Home, *, yes: bool, as_json: bool, done: str = "", issued: Collection[str] = ()) -> None:
    """Render; `done` is what holds already, to be said to who will not have the files overwritten.

    `issued` are those who got new papers before.
    """
    from hfl_mqtt.fleet.render import render as write
    from hfl_mqtt.fleet.telling import next_steps, renewed, written

    ask = _asked(yes, "Overwrite?", "the above would be overwritten")

    def confirm(diff: str) -> bool:
        if not (agreed := ask(diff)) and done:
            raise ConfigError(f"{done}, and only the files are not rendered: hfl fleet render does so")
        return agreed

    made, changed = write(home, confirm=confirm)
    if as_json:
        sys.stdout.write(json.dumps({"changed": changed}, indent=2) + "\n")
        return
    for path in written(changed):
        _say(f"wrote      {path}")
    counts = f"{sum(1 for _ in made.site.brokers())} brokers, {len(made.bundled)} bundles"
    _say(f"{counts}: {f'{len(changed)} files written' if changed else 'nothing has changed'}.")
    where = "" if home.folder == HERE else f" --dir {home.folder}"
    for line in next_steps(made, [*renewed(made, issued), *changed], f"hfl fleet up{where}"):
        _say(line)


def _asked(yes: bool, question: str, why: str) -> Callable[[str], bool]:
    """Return what shows what would be and asks; where nobody can answer and `--yes` is not given it raises."""

    def ask(told: str) -> bool:
        sys.stdout.write(told)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError(f"{why}, and there is no terminal to ask at: give --yes")
        return typer.confirm(question)

    return ask


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
