"""From the site file to everything that a fleet runs on, with what would be overwritten told first.

What stands is compared with what is rendered, so rendering twice changes nothing. Papers are issued only once all is
agreed to: to render and to say no leaves nothing behind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from hfl_mqtt.config.site import Site
from hfl_mqtt.config.source import read
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet import agents, bundle
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.holdings import Holding, Standing, holdings
from hfl_mqtt.fleet.sitefile import Home
from hfl_mqtt.fleet.unit import unit
from hfl_mqtt.ops import brokers
from hfl_mqtt.ops.brokers import CA_FILE, CRL_FILE, INSTALLED, Rendered
from hfl_mqtt.ops.check import check_agents

UNIT_FILE = "hfl.service"
#: What a diff shows; of every other file it is only said that it changes.
_SHOWN = ("mosquitto.conf", "acl", agents.AGENT_FILE, UNIT_FILE)
#: So many files of one name are listed one by one.
_FEW = 3
_SECRET = re.compile(r"^(remote_password |remote_clientid [^~\n]*~).*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A file that is not what it should be. `diff` shows it, where it is there and holds no secret."""

    path: str
    is_new: bool
    diff: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What rendering would do: files to write, papers to issue, bundles to pack."""

    home: Home
    site: Site
    files: tuple[Rendered, ...]
    changes: tuple[Change, ...]
    held: tuple[Holding, ...]
    #: The nodes that have, or will have, all that is in a bundle.
    bundled: tuple[str, ...]

    @property
    def to_issue(self) -> list[Holding]:
        """The papers that are to be issued."""
        return [one for one in self.held if one.standing.is_to_be_issued]

    @property
    def overwritten(self) -> str:
        """The diffs of all that stands there and will be another, one line for what cannot be shown; "" for nothing."""
        changed = [change for change in self.changes if not change.is_new]
        hidden = Counter(Path(change.path).name for change in changed if not change.diff)
        shown = [change.diff for change in changed if change.diff]
        shown += [
            f"{change.path} changes\n"
            for change in changed
            if not change.diff and hidden[Path(change.path).name] <= _FEW
        ]
        shown += [f"{name} changes in {count} folders\n" for name, count in hidden.items() if count > _FEW]
        papers = [
            f"{_in(self.home, one.folder)}: the {one.kind}'s certificate is {one.standing.value}: a new one"
            f"{'' if one.own_key else ', new key'}\n"
            for one in self.to_issue
            if one.is_there
        ]
        return "".join([*shown, *papers])

    def apply(self) -> list[str]:
        """Issue, write and pack; return what has changed, by its path in the home."""
        home = self.home
        changed = []
        if self.to_issue:
            authority = Authority.open(home.authority(self.site))
            for one in self.to_issue:
                one.issue(authority)
                changed.append(f"{_in(home, one.folder)}/: papers of the {one.kind}")
        outcomes = brokers.write_to(home.folder, list(self.files))
        changed += [_in(home, one.path) for one in outcomes if one.changed]
        for path in self.bundled:
            if pack(home, path):
                changed.append(_in(home, home.bundle(path)))
        return changed


def plan(home: Home) -> Plan:
    """Say what rendering would do; nothing is written.

    Raises:
        ConfigError: the site file, the passwords or the authority cannot be used.
    """
    site = home.load()
    check_agents(site, read(home.site_file))
    passwords = brokers.read_passwords(site, home.folder)
    authority = Authority.open(home.authority(site)) if site.has_certificates else None
    if authority is not None and authority.federation != site.federation:
        raise ConfigError(
            f"{home.site_file}: the federation is {site.federation}, and the authority in {home.authority(site)} is "
            f"that of {authority.federation}: no node would trust another"
        )
    held = holdings(home, site, authority.issued) if authority is not None else []
    revoked = {one.subject for one in held if one.standing is Standing.REVOKED}
    left_out = {one.path for one in held if one.kind == "node" and one.standing in (Standing.REVOKED, Standing.AWAITED)}
    files = [
        *brokers.secret_files(site, passwords),
        *(
            Rendered(path=f"brokers/{file.path}", content=file.content, mode=file.mode)
            for file in brokers.render(site, passwords, INSTALLED, shut_out=revoked)
        ),
        *(_papers_of_brokers(site, authority) if authority is not None else ()),
        *_nodes(home, site, authority, passwords, revoked),
    ]
    changes = [change for file in files if (change := _change(home.folder, file)) is not None]
    nodes = [path for broker in site.brokers() for path in broker.nodes]
    return Plan(
        home=home,
        site=site,
        files=tuple(files),
        changes=tuple(changes),
        held=tuple(held),
        bundled=tuple(path for path in nodes if path not in left_out),
    )


def render(home: Home, *, confirm: Callable[[str], bool]) -> tuple[Plan, list[str]]:
    """Render, once `confirm` has agreed to what would be overwritten; return what was planned and what has changed.

    Raises:
        ConfigError: as `plan`; or what stands there shall not be overwritten.
    """
    made = plan(home)
    if made.overwritten and not confirm(made.overwritten):
        raise ConfigError("nothing was written")
    return made, made.apply()


def pack(home: Home, path: str) -> bool:
    """Pack a node's folder into its bundle; whether that is another than before."""
    folder, target = home.node(path), home.bundle(path)
    found = {name: (folder / name).read_bytes() for name in bundle.NAMES if (folder / name).exists()}
    if target.exists() and target.read_bytes() == bundle.pack(found):
        return False
    target.parent.mkdir(mode=0o700, exist_ok=True)
    bundle.write(target, found)
    return True


def _papers_of_brokers(site: Site, authority: Authority) -> Iterator[Rendered]:
    for broker in site.brokers():
        yield Rendered(path=f"brokers/{broker.directory}/{CA_FILE}", content=authority.ca_pem)
        yield Rendered(path=f"brokers/{broker.directory}/{CRL_FILE}", content=authority.crl_pem)


def _nodes(
    home: Home, site: Site, authority: Authority | None, passwords: dict[str, str], revoked: set[str]
) -> Iterator[Rendered]:
    """Yield what stands in the bundles but for keys and certificates; a revoked node's stays what it was."""
    for broker in site.brokers():
        for path in broker.nodes:
            if path in revoked:
                continue
            content = {
                agents.AGENT_FILE: agents.text(agents.document(site, broker, path)),
                UNIT_FILE: unit(agents.role_of(broker, path)),
            }
            if authority is None:
                content[agents.PASSWORD_FILE] = f"{passwords[path]}\n"
            else:
                content[agents.CA_FILE] = authority.ca_pem
                content[agents.FLEET_KEY_FILE] = f"{authority.fleet_key}\n"
                content[agents.REVOKED_FILE] = f"{authority.revoked_text}\n"
            for name, text in content.items():
                yield Rendered(path=_in(home, home.node(path) / name), content=text)


def _in(home: Home, path: Path) -> str:
    return path.relative_to(home.folder).as_posix()


def _change(folder: Path, file: Rendered) -> Change | None:
    try:
        now = (folder / file.path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Change(path=file.path, is_new=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {folder / file.path}: {error}; move it away and render again") from None
    if now == file.content:
        return None
    if Path(file.path).name not in _SHOWN:
        return Change(path=file.path, is_new=False)
    before, after = (_SECRET.sub(r"\1(not shown)", text).splitlines(keepends=True) for text in (now, file.content))
    diff = "".join(unified_diff(before, after, f"{file.path} (now)", f"{file.path} (rendered)"))
    return Change(path=file.path, is_new=False, diff=diff)
