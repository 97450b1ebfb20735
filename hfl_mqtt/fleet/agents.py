"""The YAML of every agent of a site: what its node, its broker and its keys are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hfl_mqtt.config.site import Broker, Site, node_folder

AGENT_FILE = "agent.yaml"
PASSWORD_FILE = "password"  # noqa: S105  (a file, not what is in it)
CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.crt", "node.crt", "node.key"
CARD_FILE, FLEET_KEY_FILE, REVOKED_FILE = "node.card", "fleet.pub", "revoked"

#: Keys that name a file of the node's folder.
_OWN_FILES = {"ca_file", "cert_file", "key_file", "card_file", "fleet_key_file", "revoked_file"}


def role_of(broker: Broker, path: str) -> str:
    """Return what a node of this broker is: its aggregator is the cloud or an edge, all others are clients."""
    if path != broker.path:
        return "client"
    return "cloud" if broker.above is None else "edge"


def document(site: Site, broker: Broker, path: str, **changes: Any) -> dict[str, Any]:
    """Return the YAML of a node as data; paths in it are relative to its own folder.

    What the site says under `agents` has been checked, see `ops.check.check_agents`.

    Args:
        site: all there is.
        broker: the one that the node connects to.
        path: the node.
        **changes: what is to stand there in place of, or beside, what the site says.
    """
    role = role_of(broker, path)
    agents = site.agents
    made: dict[str, Any] = {
        "role": role,
        "federation": site.federation,
        "name": path,
        "broker": {"host": broker.place.found_at, "port": broker.place.port},
    }
    if site.has_certificates:
        made["broker"]["tls"] = {"ca_file": CA_FILE, "cert_file": CERTIFICATE_FILE, "key_file": KEY_FILE}
        made["identity"] = {
            "card_file": CARD_FILE,
            "key_file": KEY_FILE,
            "fleet_key_file": FLEET_KEY_FILE,
            "revoked_file": REVOKED_FILE,
        }
    else:
        made["broker"]["password_file"] = PASSWORD_FILE
    if role != "edge":
        made["task"] = agents.task
    if role == "client":
        data = broker.place.data.get(path.rpartition("/")[2], agents.data)
        made |= {"data": data} if data else {}
    if role == "cloud":
        made["wait_for"] = max(1, len(broker.children))
    own: Mapping[str, Any] = getattr(agents, role)
    # Of its broker a node may have more to say than where it is: keepalive, session_expiry.
    made |= {key: made[key] | value if key == "broker" else value for key, value in own.items()}
    return made | changes


def together(site: Site, broker: Broker, paths: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Return the YAML of several devices of a broker in one process, each with its own folder beside the file's."""
    made = document(site, broker, paths[0], **changes)
    folder = f"../{node_folder(f'{broker.path}/{{name}}')}"
    for section in (made["broker"].get("tls", {}), made.get("identity", {})):
        section.update({key: f"{folder}/{section[key]}" for key in _OWN_FILES & section.keys()})
    clients = []
    for path in paths:
        own = document(site, broker, path)
        entry = {"name": path, "data": own.get("data", {})}
        if not site.has_certificates:
            entry["password_file"] = f"../{node_folder(path)}/{PASSWORD_FILE}"
        clients.append(entry)
    made["broker"].pop("password_file", None)
    return {**{key: value for key, value in made.items() if key not in ("name", "data")}, "clients": clients}


def text(made: Mapping[str, Any]) -> str:
    """Return the YAML of a node as it is written."""
    head = "# Written by `hfl fleet`: change the site file and render again, not this file.\n"
    return head + yaml.safe_dump(dict(made), sort_keys=False, width=110)
