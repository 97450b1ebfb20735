"""The texts that a Mosquitto runs on: its configuration, its ACL, its password file.

Every broker but the cloud's bridges up through two connections, one for JSON and one for weights, so that a heartbeat
never waits behind a model. The settings are the ones measured to lose nothing on Mosquitto 2.0.11.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfl_mqtt.config.site import Broker, Farm, Place, Site, bridge_account
from hfl_mqtt.protocol import topics

#: The largest MQTT packet, here and over a bridge alike: a packet that one broker takes and the next refuses would
#: stop everything behind it. A part and its envelope are a quarter of this. Mosquitto 2.1 defaults to 2,000,000.
MAX_PACKET = 1_000_000
#: Per client. Mosquitto's own 1000 silently drops the newest, even for an aggregator that is connected and busy.
MAX_QUEUED = 100_000
#: What stands in place of every secret in the committed example.
PLACEHOLDER = "CHANGE-ME"
#: What lies beside the configuration where the site has certificates, and which setting names it.
CA_FILE, CRL_FILE = "ca.crt", "crl.pem"
BROKER_FILES = ("broker.crt", "broker.key")
BRIDGE_FILES = ("bridge.crt", "bridge.key")
_LISTENER_FILES = tuple(zip(("cafile", "certfile", "keyfile"), (CA_FILE, *BROKER_FILES), strict=True))
_BRIDGE_FILES = tuple(zip(("cafile", "certfile", "keyfile"), (CA_FILE, *BRIDGE_FILES), strict=True))
#: Mosquitto's own for $7$; passwords are 256 random bits, which no number of iterations makes safer.
_ITERATIONS = 101


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


def password_hash(password: str, salt: bytes) -> str:
    """Return a password as it stands in a Mosquitto password file: $7$, PBKDF2 with SHA-512; `salt` has 12 bytes."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def at(directory: str, broker: Broker) -> str:
    """Return a directory of a layout as it is for this broker."""
    return directory.replace("{broker}", broker.directory)


def configuration(site: Site, broker: Broker, passwords: Mapping[str, str], layout: Layout) -> str:
    """Return `mosquitto.conf`."""
    config_dir = at(layout.config_dir, broker)
    data_dir = at(layout.data_dir, broker)
    # Mosquitto knows no comment behind a setting: `#` counts only as a line's first character.
    lines = [
        f"# The broker of {broker.path} in the federation {site.federation}.",
        "# Written by `hfl`: change the site file and render again, not this file.",
        "",
        *([f"user {layout.as_user}"] if layout.as_user else []),
        *_listeners(site, broker.place, config_dir),
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
        *([] if broker.place.memory_mb is None else [f"memory_limit {broker.place.memory_mb}000000"]),
        "# Small packets go out at once; otherwise a round waits 40 ms at every hop.",
        "set_tcp_nodelay true",
        "# A device that stays away longer loses its session, not its place.",
        "persistent_client_expiration 14d",
        "",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if broker.above is not None:
        account = bridge_account(broker.path)
        if site.has_certificates:
            # Mosquitto takes the name in the certificate for the account, and checks the upper broker's by its host.
            identity = [f"bridge_{kind} {config_dir}/{name}" for kind, name in _BRIDGE_FILES]
        else:
            identity = [f"remote_username {account}", f"remote_password {passwords[account]}"]
        lines += _bridges(site, broker, broker.above, identity, passwords[account], layout)
    return "\n".join(lines) + "\n"


def _listeners(site: Site, place: Place, config_dir: str) -> list[str]:
    on = f" {place.bind}" if place.bind else ""
    browsers = [] if place.websockets_port is None else [f"listener {place.websockets_port}{on}", "protocol websockets"]
    if not site.has_certificates:
        return [f"listener {place.port}{on}", *browsers]
    own = [f"{kind} {config_dir}/{name}" for kind, name in _LISTENER_FILES]
    lines = [
        "# Nodes and bridges: the account is the name in the certificate, and who is revoked is not let in.",
        f"listener {place.port}{on}",
        *own,
        f"crlfile {config_dir}/{CRL_FILE}",
        "require_certificate true",
        "use_identity_as_username true",
    ]
    if site.viewers or place.sensor_accounts:
        lines += ["# People and sensors: TLS and a password.", f"listener {place.viewer_port}{on}", *own]
    return [*lines, *browsers, *(own if browsers else [])]


def _bridges(site: Site, broker: Broker, above: Broker, identity: list[str], secret: str, layout: Layout) -> list[str]:
    assert isinstance(broker.place, Farm)
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
            # Never the default, which is the host name: cloned SD cards would throw each other out. It holds a secret:
            # whoever connects under it, as whomever, ends this connection; at this end it is `local.` and the same.
            f"remote_clientid {_bridge_session(broker.path, kind, secret)}",
            *identity,
            # With mqttv50, Mosquitto 2.0 loses what came down while the link was cut.
            "bridge_protocol_version mqttv311",
            "cleansession false",
            "bridge_attempt_unsubscribe false",
            f"bridge_max_packet_size {MAX_PACKET}",
            f"restart_timeout {layout.retry_s[0]} {layout.retry_s[1]}",
            "keepalive_interval 60",
            *(_notes(broker.path) if kind == "ctl" else ["notifications false"]),
            *(f"topic {pattern} {direction} {qos}" for pattern, direction, qos in patterns),
            *([f"topic {topics.bridge_echo(site.federation, broker.path)}"] if kind == "data" else []),
            "",
        ]
    return lines[:-1]


def _notes(path: str) -> list[str]:
    # By a name without the secret, which viewers read, and not at the upper broker: there it is never granted.
    return ["notifications true", "notifications_local_only true", f"notification_topic {topics.bridge_state(path)}"]


def _bridge_session(path: str, kind: str, secret: str) -> str:
    """Return a client id that nobody can guess: the secret is not in it, because brokers log it."""
    name = topics.bridge_client(path, kind)
    if secret == PLACEHOLDER:
        return f"{name}~{PLACEHOLDER}"
    key = hashlib.sha256(b"hfl-mqtt bridge 1\0" + secret.encode()).digest()
    return f"{name}~{hashlib.blake2b(name.encode(), key=key, digest_size=8).hexdigest()}"


def rights(site: Site, broker: Broker, shut_out: Collection[str]) -> str:
    """Return `acl`; accounts in `shut_out` have no rights."""
    lines = [
        f"# Who may say and hear what at the broker of {broker.path}. Mosquitto denies what no line grants.",
        "# Written by `hfl`: change the site file and render again, not this file.",
    ]
    if site.viewers:
        lines += ["", "# People: all JSON, and no weights, so `#` in MQTT Explorer never pulls a model."]
    for viewer in site.viewers:
        lines += [f"user {viewer}", *_lines_of(topics.acl_viewer())]
    lines += [
        "",
        "# Nodes: each speaks for itself, and hears its parent; the aggregator hears and commands its children.",
    ]
    for path in broker.nodes:
        if path not in shut_out:
            granted = topics.acl_node(site.federation, path, has_children=path == broker.path)
            heard = [("read", topic) for topic in broker.place.sensors if path != broker.path]
            lines += [f"user {path}", *_lines_of([*granted, *heard])]
    if broker.place.sensor_accounts:
        lines += ["", "# Sensors: they write readings, which devices read and no bridge carries."]
    for account in broker.place.sensor_accounts:
        lines += [f"user {account}", *_lines_of([("write", topic) for topic in broker.place.sensors])]
    if broker.bridges:
        lines += ["", "# Bridges of the brokers below: what they carry, and no more."]
    for path in broker.bridges:
        if (account := bridge_account(path)) not in shut_out:
            granted = topics.acl_bridge(site.federation, path, device_metrics=site.device_metrics)
            lines += [f"user {account}", *_lines_of(granted)]
    return "\n".join(lines) + "\n"


def _lines_of(granted: list[tuple[str, str]]) -> list[str]:
    return [f"topic {access} {pattern}" for access, pattern in granted]


def password_file(site: Site, broker: Broker, passwords: Mapping[str, str]) -> str:
    """Return `passwd`, with the accounts of this broker that have a password, hashed."""
    known = set(site.with_password())
    here = [*broker.nodes, *map(bridge_account, broker.bridges), *site.viewers, *broker.place.sensor_accounts]
    accounts = [each for each in here if each in known]
    lines = []
    for account in accounts:
        # A salt has to differ, not to be secret: taken from the name it is the same whenever the file is rendered.
        salt = hashlib.sha256(f"{site.federation}:{broker.path}:{account}".encode()).digest()[:12]
        lines.append(f"{account}:{password_hash(passwords[account], salt)}\n")
    return "".join(lines)
