"""From a site file to what its Mosquittos run on: a configuration, an ACL and a password file for each broker.

Every broker but the cloud's bridges up through two connections, one for JSON and one for weights, so that a heartbeat
never waits behind a model. The settings are the ones measured to lose nothing on Mosquitto 2.0.11.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hfl_mqtt.config.site import PASSWORDS_FILE, SECRETS_DIR, Broker, Farm, Place, Site, bridge_account, secret_name
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol import topics

#: The largest MQTT packet, here and over a bridge alike: a packet that one broker takes and the next refuses would
#: stop everything behind it. A part and its envelope are a quarter of this. Mosquitto 2.1 defaults to 2,000,000.
MAX_PACKET = 1_000_000
#: Per client. Mosquitto's own 1000 silently drops the newest, even for an aggregator that is connected and busy.
MAX_QUEUED = 100_000
#: What stands in place of every secret in the committed example.
PLACEHOLDER = "CHANGE-ME"

#: Mosquitto's own for $7$; the passwords are 256 random bits, which no number of iterations makes safer.
_ITERATIONS = 101
_PASSWORD = re.compile(r"[!-~]{8,200}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a broker finds its files and who runs it. `{broker}` stands for its directory in the output.

    `as_user` is None for a service, which Mosquitto runs as `mosquitto`. `retry_s` is the shortest and the longest a
    bridge waits before it tries a lost link again, at random in between.
    """

    config_dir: str = "/etc/mosquitto"
    data_dir: str = "/var/lib/mosquitto"
    as_user: str | None = None
    retry_s: tuple[int, int] = (2, 30)

    @classmethod
    def beside(cls, out_dir: Path) -> Layout:
        """Everything in the output itself, run by the current user: for brokers that we start ourselves."""
        here = str(out_dir.resolve() / "{broker}")
        user = pwd.getpwuid(os.geteuid()).pw_name
        return cls(config_dir=here, data_dir=f"{here}/data", as_user=user, retry_s=(1, 2))


#: As Debian, Ubuntu and Raspberry Pi OS install Mosquitto.
INSTALLED = Layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A file to write; `path` is relative to the output."""

    path: str
    content: str = field(repr=False)
    mode: int = 0o600


def render(site: Site, passwords: Mapping[str, str], layout: Layout = INSTALLED) -> list[Rendered]:
    """Return the files of every broker; the same arguments give the same bytes.

    `passwords` has one for every account of the site.

    Raises:
        ConfigError: a password is missing, or cannot stand in a Mosquitto configuration.
    """
    for account in site.accounts():
        if not _PASSWORD.match(passwords.get(account, "")):
            raise ConfigError(
                f"{PASSWORDS_FILE}: {account}: a password is 8 to 200 printable ASCII characters without spaces; "
                "delete the line to get a random one"
            )
    files = []
    for broker in site.brokers():
        files += [
            Rendered(path=f"{broker.directory}/mosquitto.conf", content=_conf(site, broker, passwords, layout)),
            Rendered(path=f"{broker.directory}/acl", content=_acl(site, broker)),
            Rendered(path=f"{broker.directory}/passwd", content=_passwd(site, broker, passwords)),
        ]
    return files


def render_example(site: Site) -> list[Rendered]:
    """Return the files that can be shown to everybody: `CHANGE-ME` for every secret, and no password files."""
    files = render(site, dict.fromkeys(site.accounts(), PLACEHOLDER))
    return [file for file in files if not file.path.endswith("/passwd")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one file: `changed` is false where it already stood there, byte for byte."""

    path: Path
    changed: bool


def render_to(site: Site, out_dir: Path, layout: Layout = INSTALLED) -> list[Outcome]:
    """Write a site's files, readable for their owner only: per broker a directory, the passwords, a file per secret.

    Passwords are drawn on the first call and kept on later ones, in `passwords.yaml`; new accounts get new ones. A
    second call changes nothing. Files of brokers and accounts that have left the site are left where they are.

    Raises:
        ConfigError: `passwords.yaml` is not a mapping of accounts to passwords, or a file cannot be written.
    """
    passwords = _passwords(site, out_dir / PASSWORDS_FILE)
    head = "# Every account's password. Keep it secret and keep it: rendering again takes the passwords from here.\n"
    files = [
        Rendered(path=PASSWORDS_FILE, content=head + yaml.safe_dump(passwords, sort_keys=True)),
        *(
            Rendered(path=f"{SECRETS_DIR}/{secret_name(account)}", content=passwords[account] + "\n")
            for account in site.accounts()
            if not account.startswith("_")  # a bridge's password is in its mosquitto.conf
        ),
        *render(site, passwords, layout),
    ]
    outcomes = write_to(out_dir, files)
    try:
        if "{broker}" in layout.data_dir:
            for broker in site.brokers():
                Path(_at(layout.data_dir, broker)).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None
    return outcomes


def write_to(out_dir: Path, files: list[Rendered]) -> list[Outcome]:
    """Write rendered files, each at once and whole.

    Raises:
        ConfigError: one cannot be written.
    """
    try:
        return [Outcome(path=out_dir / file.path, changed=_write(out_dir, file)) for file in files]
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None


def password_hash(password: str, salt: bytes) -> str:
    """Return a password as it stands in a Mosquitto password file: $7$, PBKDF2 with SHA-512; `salt` has 12 bytes."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def secret_path(out_dir: Path, account: str) -> Path:
    """Return the file that holds nothing but this account's password, for `password_file:` of an agent."""
    return out_dir / SECRETS_DIR / secret_name(account)


def _at(directory: str, broker: Broker) -> str:
    return directory.replace("{broker}", broker.directory)


def _conf(site: Site, broker: Broker, passwords: Mapping[str, str], layout: Layout) -> str:
    config_dir = _at(layout.config_dir, broker)
    data_dir = _at(layout.data_dir, broker)
    # Mosquitto knows no comment behind a setting: `#` counts only as a line's first character.
    lines = [
        f"# The broker of {broker.path} in the federation {site.federation}.",
        "# Written by `hfl`: change the site file and render again, not this file.",
        "",
        *([f"user {layout.as_user}"] if layout.as_user else []),
        f"listener {broker.place.port}{f' {broker.place.bind}' if broker.place.bind else ''}",
        *([] if broker.place.websockets_port is None else _websockets(broker.place)),
        "",
        "allow_anonymous false",
        f"password_file {config_dir}/passwd",
        f"acl_file {config_dir}/acl",
        "",
        "# Sessions and retained messages survive a restart; after a power cut nodes send again what was not saved.",
        "# A save writes all retained models at once, and nobody is answered meanwhile: with 100 MB for a second.",
        "# Never with autosave_on_changes: it saves on every message.",
        "persistence true",
        f"persistence_location {data_dir}/",
        "autosave_interval 300",
        "",
        "# The default of 1000 drops the newest, silently, even for a connected aggregator.",
        f"max_queued_messages {MAX_QUEUED}",
        f"max_packet_size {MAX_PACKET}",
        "# Small packets go out at once; otherwise a round waits 40 ms at every hop.",
        "set_tcp_nodelay true",
        "# A device that stays away longer loses its session, not its place.",
        "persistent_client_expiration 14d",
        "",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if broker.above is not None:
        lines += _bridges(site, broker, broker.above, passwords[bridge_account(broker.path)], layout)
    return "\n".join(lines) + "\n"


def _websockets(place: Place) -> list[str]:
    return [f"listener {place.websockets_port}{f' {place.bind}' if place.bind else ''}", "protocol websockets"]


def _bridges(site: Site, broker: Broker, above: Broker, password: str, layout: Layout) -> list[str]:
    assert isinstance(broker.place, Farm)
    account = bridge_account(broker.path)
    address = broker.place.uplink or f"{above.place.host}:{above.place.port}"
    carried = {
        "ctl": topics.bridge_control(site.federation, broker.path, device_metrics=site.device_metrics),
        "data": topics.bridge_data(site.federation, broker.path),
    }
    lines = ["", f"# Two bridges to {above.path}: JSON, and weights, so that a heartbeat never waits behind a model."]
    for kind, patterns in carried.items():
        lines += [
            f"connection {broker.directory}-{kind}",
            f"address {address}",
            # Never the default, which is the host name: cloned SD cards would throw each other out.
            f"remote_clientid {topics.bridge_client(broker.path, kind)}",
            f"remote_username {account}",
            f"remote_password {password}",
            # With mqttv50, Mosquitto 2.0 loses what came down while the link was cut.
            "bridge_protocol_version mqttv311",
            "cleansession false",
            "bridge_attempt_unsubscribe false",
            f"bridge_max_packet_size {MAX_PACKET}",
            f"restart_timeout {layout.retry_s[0]} {layout.retry_s[1]}",
            "keepalive_interval 60",
            f"notifications {'true' if kind == 'ctl' else 'false'}",
            *(f"topic {pattern} {direction} {qos}" for pattern, direction, qos in patterns),
            "",
        ]
    return lines[:-1]


def _acl(site: Site, broker: Broker) -> str:
    lines = [
        f"# Who may say and hear what at the broker of {broker.path}. Mosquitto denies what no line grants.",
        "# Written by `hfl`: change the site file and render again, not this file.",
    ]
    if site.viewers:
        lines += ["", "# People: all JSON, and no weights, so `#` in MQTT Explorer never pulls a model."]
    for viewer in site.viewers:
        lines += [f"user {viewer}", *_rights("topic", topics.acl_viewer())]
    heard = [(path, topics.acl_broadcast(site.federation, path)) for path in broker.nodes]
    if any(rights for _, rights in heard):
        lines += ["", "# What a pattern cannot say: a node hears what its parent says to all its children."]
    for path, rights in heard:
        if rights:
            lines += [f"user {path}", *_rights("topic", rights)]
    if broker.bridges:
        lines += ["", "# Bridges of the brokers below. No node's name begins with `_`: the patterns give them nothing."]
    for path in broker.bridges:
        lines += [f"user {bridge_account(path)}", *_rights("topic", topics.acl_bridge(site.federation, path))]
    lines += [
        "",
        "# The rights of every node; %u is the account, which is the node's path. What they give a leaf over children",
        "# that it does not have, and a viewer over topics that nobody reads, is harmless.",
    ]
    lines += _rights("pattern", topics.acl_patterns(site.federation))
    return "\n".join(lines) + "\n"


def _rights(keyword: str, rights: list[tuple[str, str]]) -> list[str]:
    return [f"{keyword} {access} {pattern}" for access, pattern in rights]


def _passwd(site: Site, broker: Broker, passwords: Mapping[str, str]) -> str:
    accounts = [*broker.nodes, *map(bridge_account, broker.bridges), *site.viewers]
    lines = []
    for account in accounts:
        # A salt has to differ, not to be secret: taken from the name it is the same whenever the file is rendered.
        salt = hashlib.sha256(f"{site.federation}:{broker.path}:{account}".encode()).digest()[:12]
        lines.append(f"{account}:{password_hash(passwords[account], salt)}\n")
    return "".join(lines)


def _passwords(site: Site, path: Path) -> dict[str, str]:
    """Return the passwords kept in `path`, and a new one for each account that has none."""
    kept: object = {}
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        # Not the error's own text, which may quote a password.
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where} is not YAML; restore it, or delete it to draw new passwords") from None
    if not isinstance(kept, dict) or not all(isinstance(text, str) for pair in kept.items() for text in pair):
        raise ConfigError(
            f"{path} is not a mapping of accounts to passwords; quote a password that looks like a number"
        )
    return {**{account: secrets.token_urlsafe(32) for account in site.accounts()}, **kept}


def _write(out_dir: Path, file: Rendered) -> bool:
    """Put a file in its place at once and whole, never readable for others in between; whether it changed."""
    path = out_dir / file.path
    content = file.content.encode()
    try:
        if path.read_bytes() == content:
            path.chmod(file.mode)
            return False
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(file.mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True
