"""The folder of a fleet: its site file, which keeps the comments people wrote, and where everything else lies.

site.yaml      the brokers, nodes and people; `hfl fleet add` edits it, and so may you
authority/     the keys that everything is signed with: keep them apart
brokers/       by broker, what Mosquitto runs on
nodes/         by node, what stands in its bundle; its keys are kept here
bundles/       by node, one tar to carry to its board
local/         what `hfl fleet up` runs on, made anew each time
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfl_mqtt import files
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.config.site import Site, node_folder
from hfl_mqtt.config.source import read
from hfl_mqtt.config.wording import KeyPath
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet.adding import added, scalar

SITE_FILE = "site.yaml"
#: The task whose data comes with the package: each new device is given a station of its own, so that a fleet learns.
EXAMPLE_TASK = "soil-moisture"

_NEW = """\
# The brokers, nodes and people of one federation. Edit it as you like, then: hfl fleet render
role: site
federation: {name}
# mtls: TLS, and a certificate for every node, bridge and broker. passwords: for labs, MQTT in the clear.
security: {security}

cloud:
  # Where the farms and the cloud's own program find its broker.
  host: {cloud_host}

# Each with its own broker, its edge and its devices; see brokers/README.md for all that may stand here.
farms: []

# Accounts for people: they read all JSON on every broker, and no weights.
viewers: [viewer]

# What stands in the YAML of the agents and cannot be told from the above; see configs/.
agents:
  task: {{name: {task}}}
  cloud:
    rounds: 5
    plan: {{learning_rate: 0.05, momentum: 0.9}}
"""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of a fleet."""

    folder: Path

    @property
    def site_file(self) -> Path:
        """What the fleet is."""
        return self.folder / SITE_FILE

    def load(self) -> Site:
        """Read the site file.

        Raises:
            ConfigError: there is none, or it has mistakes.
        """
        if not self.site_file.exists():
            raise ConfigError(
                f"{self.site_file}: no such file; begin with `hfl fleet init NAME`, then go there or give --dir"
            )
        return load_role(self.site_file, Site)

    def authority(self, site: Site) -> Path:
        """Return the folder of the keys that everything is signed with."""
        return self.folder / Path(site.authority).expanduser()

    def node(self, path: str) -> Path:
        """Return the folder of what stands in a node's bundle."""
        return self.folder / "nodes" / node_folder(path)

    def bundle(self, path: str) -> Path:
        """Return a node's tar."""
        return self.folder / "bundles" / f"{node_folder(path)}.tar"

    def broker(self, directory: str) -> Path:
        """Return the folder of what a broker runs on."""
        return self.folder / "brokers" / directory

    @property
    def local(self) -> Path:
        """The folder of what runs on this machine; see `local`."""
        return self.folder / "local"


def create(
    folder: Path, name: str, *, cloud_host: str, security: str, task: str = EXAMPLE_TASK, authority: str | None = None
) -> Home:
    """Write a site file without farms.

    Raises:
        ConfigError: there is one already, or a name in it cannot be one; then no folder is left that was not there.
    """
    home = Home(folder)
    if home.site_file.exists():
        raise ConfigError(f"{home.site_file} is there already: add to it with `hfl fleet add`, or choose another --dir")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = _NEW.format(name=scalar(name), security=security, cloud_host=scalar(cloud_host), task=scalar(task))
    if authority is not None:
        text += f"# The folder of the keys that everything is signed with.\nauthority: {scalar(authority)}\n"
    try:
        _replace(home, text)
    except BaseException:
        for each in made:
            each.rmdir()
        raise
    return home


def add_farm(home: Home, name: str, *, host: str | None = None, devices: list[str]) -> str:
    """Add a broker below the cloud's, or below another farm's where `name` is a path; return its node's path.

    Raises:
        ConfigError: it is there already, what is above it is not, or a name cannot be one.
    """
    document = _read(home)
    above, _, own = name.removeprefix(f"{_cloud(document)}/").rpartition("/")
    keys, place = _place(home, document, above) if above else ((), document)
    if any(farm["name"] == own for farm in place.get("farms", ())):
        raise ConfigError(f"{home.site_file} has a farm {own!r} already; `hfl fleet add device` adds to it")
    farm: dict[str, Any] = {"name": own} | ({"host": host} if host is not None else {})
    farm |= {"devices": devices} if devices else {}
    data = _data_for(document, devices)
    farm |= {"data": data} if data else {}
    _add(home, document, [((*keys, "farms"), [farm])])
    return "/".join([_cloud(document), *([above] if above else []), own])


def add_device(home: Home, name: str, *, farm: str, keeps_key: bool = False) -> str:
    """Add a device to a farm; return its path. One that keeps its own key is given papers when it asks.

    Raises:
        ConfigError: the farm is not there, the device is, or the name cannot be one.
    """
    document = _read(home)
    below = farm.removeprefix(f"{_cloud(document)}/")
    is_cloud = farm == _cloud(document)
    keys, place = (("cloud",), document["cloud"]) if is_cloud else _place(home, document, below)
    if name in place.get("devices", ()):
        raise ConfigError(f"{home.site_file}: {farm} has a device {name!r} already; choose another name")
    more: list[tuple[KeyPath, Any]] = [((*keys, "devices"), [name])]
    if data := _data_for(document, [name]):
        more.append(((*keys, "data"), data))
    if keeps_key:
        more.append(((*keys, "own_keys"), [name]))
    _add(home, document, more)
    return "/".join([_cloud(document), *([] if is_cloud else [below]), name])


def names_of(devices: str) -> list[str]:
    """Return the names that `--devices` stands for: `3`, or names with commas between.

    >>> names_of("2"), names_of("north,south")
    (['pi-1', 'pi-2'], ['north', 'south'])
    """
    if devices.isdigit():
        count = int(devices)
        if count > 1000:
            raise ConfigError(f"--devices {devices}: at most 1000 at once")
        return [f"pi-{number}" for number in range(1, count + 1)]
    return [name for name in devices.split(",") if name]


def _data_for(document: Any, names: list[str]) -> dict[str, Any]:
    """Return the data of new devices: of the example task a station for each, as long as there are some; else none."""
    agents = document.get("agents", {})
    if agents.get("task", {"name": EXAMPLE_TASK}).get("name") != EXAMPLE_TASK or agents.get("data"):
        return {}
    return {name: {"station": station} for name, station in zip(names, _free_stations(document), strict=False)}


def _free_stations(document: Any) -> Iterator[str]:
    """Yield the stations of the example task that no device has yet."""
    from hfl_mqtt.learning.tasks.stations import stations

    taken = {
        str(entry.get("station"))
        for place in [document["cloud"], *_farms(document)]
        for entry in (place.get("data") or {}).values()
    }
    return (station for station in sorted(stations()) if station not in taken)


def _farms(place: Any) -> Iterator[Any]:
    for farm in place.get("farms", ()):
        yield farm
        yield from _farms(farm)


def _place(home: Home, document: Any, path: str) -> tuple[KeyPath, Any]:
    """Return the farm of a path below the cloud, and where it stands."""
    keys: KeyPath = ()
    here = document
    for name in path.split("/"):
        names = [str(farm["name"]) for farm in here.get("farms", ())]
        if name not in names:
            raise ConfigError(f"{home.site_file} has no farm {path!r}; there are: {', '.join(names) or 'none'}")
        keys, here = (*keys, "farms", names.index(name)), here["farms"][names.index(name)]
    return keys, here


def _cloud(document: Any) -> str:
    return str(document["cloud"].get("name", "cloud"))


def _read(home: Home) -> Any:
    """Return the site file as plain data, which are as those of a site are to be."""
    home.load()  # whatever is wrong with it is told by line and column
    return read(home.site_file).data


def _add(home: Home, document: Any, more: list[tuple[KeyPath, Any]]) -> None:
    """Add to the collections at these places, in the file as in the document."""
    text = home.site_file.read_text(encoding="utf-8-sig")
    for keys, items in more:
        text = added(text, keys, items)
        place = document
        for key in keys[:-1]:
            place = place[key]
        known = place.setdefault(keys[-1], type(items)())
        known.update(items) if isinstance(items, dict) else known.extend(items)
    _replace(home, text, document)


def _replace(home: Home, text: str, meant: Any = None) -> None:
    """Write the site file if it is one, and says what is meant: what was asked for may not go with what is there."""
    tried = home.folder / f".{SITE_FILE}.new"
    try:
        files.write_text(tried, text)
        load_role(tried, Site)
        if meant is not None and read(tried).data != meant:
            raise ConfigError(
                "an alias (*name) stands where something is to be added: write out what it stands for, or add by hand"
            )
        files.rename(tried, home.site_file)
    except ConfigError as error:
        # Without line and column, which are those of a file that nobody will see.
        told = re.sub(rf"^{re.escape(str(tried))}(:\d+)*:? *", "", str(error), flags=re.MULTILINE)
        raise ConfigError(f"{told}\n{home.site_file}: nothing was written, for it could not be used then") from None
    finally:
        tried.unlink(missing_ok=True)
