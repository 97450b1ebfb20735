"""From a name to an open port."""

from __future__ import annotations

import ipaddress
import socket
import time

from hfl_mqtt.ops.doctor.findings import Finding, fail, ok
from hfl_mqtt.ops.doctor.patient import Patient

CONNECT_S = 5.0


def check_name(patient: Patient) -> Finding:
    """Resolve the broker's name."""
    name, host = "name", patient.broker.host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return ok(name, f"{host} is an address")
    began_s = time.monotonic()
    try:
        found = socket.getaddrinfo(host, patient.broker.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        hint = "check avahi-daemon there and libnss-mdns here, or " if host.endswith(".local") else ""
        why = error.strerror if isinstance(error, OSError) else "no host can have this name"
        return fail(
            name, f"{host} is unknown: {why}", f"{hint}check the spelling and the DNS, or set broker.host to an address"
        )
    addresses = ", ".join(dict.fromkeys(str(each[4][0]) for each in found))
    return ok(name, f"{host} is {addresses}, in {time.monotonic() - began_s:.3f} s")


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address can only mean the machine we are on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(patient: Patient) -> Finding:
    """Open a TCP connection to the broker."""
    name, began_s = "reach", time.monotonic()
    try:
        with socket.create_connection((patient.broker.host, patient.broker.port), timeout=CONNECT_S):
            return ok(name, f"{patient.place} accepts connections, after {time.monotonic() - began_s:.3f} s")
    except ConnectionRefusedError:
        return fail(
            name,
            f"nothing listens at {patient.place}",
            "start Mosquitto there (systemctl status mosquitto); compare broker.port with its `listener` lines",
        )
    except (OSError, UnicodeError) as error:
        return fail(
            name,
            f"{patient.place} cannot be reached: {error}",
            "is that machine on, and in this network? Check broker.host, the cable or WiFi, and its firewall",
        )
