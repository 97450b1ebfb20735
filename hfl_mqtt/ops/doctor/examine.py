"""All checks of a node, in the order in which one builds on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hfl_mqtt.errors import BrokerError, ConfigError
from hfl_mqtt.ops.doctor import around, clock, crl, identity, machine, network, packets, rights, tls, training
from hfl_mqtt.ops.doctor.findings import Finding, Verdict, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.guest import Guest
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.transport.link import Account


def examine(patient: Patient, config_path: Path, *, is_quick: bool) -> Iterator[Finding]:
    """Yield what each check found, as soon as it is known.

    Args:
        patient: the node.
        config_path: its YAML, whose age the clock is judged by.
        is_quick: leave out what takes long or costs on a metered line: the packet of a part's size, torch, a step.
    """
    yield clock.check_clock([config_path, *patient.secret_files, patient.state_dir])
    yield machine.check_space(patient.state_dir)
    yield machine.check_writes(patient.state_dir)
    yield machine.check_memory(trains=patient.role == "client")
    yield machine.check_secrets(patient.secret_files)
    if patient.is_aggregator:
        yield crl.check_list()
    yield from identity.check_other_papers(patient)
    yield from _at_broker(patient, is_quick=is_quick)
    yield from _of_training(patient, is_quick=is_quick)


def _at_broker(patient: Patient, *, is_quick: bool) -> Iterator[Finding]:
    try:
        account = patient.account()
    except ConfigError as error:
        yield fail("account", str(error), "copy this node's secret from home")
        yield from identity.check_identity(patient, None)
        yield skipped("broker", "account, rights, neighbours and packets: not seen, for there is nothing to show there")
        return
    yield from identity.check_identity(patient, account)
    failed = ""
    for finding in _way(patient, account):
        yield finding
        failed = failed or (finding.name if finding.verdict is Verdict.FAIL else "")
    if failed:
        yield skipped("broker", f"account, rights, neighbours and packets: not seen, for {failed} failed")
        return
    name = "account"
    try:
        with Guest(patient, [*rights.filters(patient), *around.filters(patient), *identity.filters(patient)]) as guest:
            guest.listen()  # to what is retained
            yield ok(name, f"{account.user} is let in, after {guest.seconds:.3f} s")
            name = "connection"
            yield from _as_guest(patient, guest, is_quick=is_quick)
    except BrokerError as error:
        what, _, remedy = str(error).partition("; ")
        yield fail(name, what, remedy or "see the broker's log: journalctl -u mosquitto")


def _way(patient: Patient, account: Account) -> Iterator[Finding]:
    """Yield what is found on the way to the broker, as far as it leads."""
    if account.tls is not None:
        yield from tls.check_papers(patient, account.tls)
    for check in (network.check_name, network.check_reach):
        finding = check(patient)
        yield finding
        if finding.verdict is Verdict.FAIL:
            return
    if account.tls is not None:
        yield from tls.check_handshake(account)
    else:
        yield _plain(patient)


def _plain(patient: Patient) -> Finding:
    name = "TLS"
    if network.is_this_machine(patient.broker.host):
        return skipped(name, "not used, on this machine alone")
    return warn(
        name,
        f"none: the password and the weights go to {patient.place} in the clear",
        "set `security: mtls` in the site file and render (docs/guide.md), or take a VPN",
    )


def _as_guest(patient: Patient, guest: Guest, *, is_quick: bool) -> Iterator[Finding]:
    yield from rights.check_writes(patient, guest)
    yield from rights.check_refusals(patient, guest)
    yield from rights.check_reads(patient, guest)
    if patient.parent is not None:
        yield around.check_parent(patient, guest)
    if patient.is_aggregator:
        yield around.check_children(patient, guest)
    yield from identity.check_others(patient, guest)
    yield from around.check_bridge(patient, guest)
    yield packets.check_limit(patient, guest)
    if not is_quick:
        yield from packets.check_part(patient, guest)


def _of_training(patient: Patient, *, is_quick: bool) -> Iterator[Finding]:
    """Yield what is found of torch; each only where the one before it can work."""
    if patient.task is None:
        return
    if is_quick:
        yield skipped("training", "left out, as it was asked to be quick")
        return
    found = machine.available()
    if found is not None and found[0] < machine.TRAINING_MEMORY:
        yield skipped("training", "left out: with so little memory it could end the running agent")
        return
    first = training.check_torch(patient)
    yield first
    if first.verdict is Verdict.FAIL:
        return
    yield training.check_torchvision()
    if patient.source is not None:
        yield training.check_rows(patient)
    yield training.check_step(patient)
