"""Who the node is to the others: its card, the key that goes with it, and the cards that it hears."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hfl_mqtt.config.broker import IdentityConfig
from hfl_mqtt.errors import ConfigError, HflError, Malformed, Refused
from hfl_mqtt.ops.doctor.findings import Finding, fail, ok, skipped, warn
from hfl_mqtt.ops.doctor.guest import Guest
from hfl_mqtt.ops.doctor.patient import Patient
from hfl_mqtt.ops.doctor.tls import BUNDLE, judge_date, own_certificate
from hfl_mqtt.protocol.messages import Identity as Shown
from hfl_mqtt.protocol.topics import Filter, identity_filters, parent
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.transport.link import Account
from hfl_mqtt.trust.cards import Card, read_card_file, read_revoked_file
from hfl_mqtt.trust.identity import Identity
from hfl_mqtt.trust.keys import PrivateKey, read_public

_NEW = "hfl fleet rotate {path} at home, then copy its bundle here"


def filters(patient: Patient) -> list[Filter]:
    """Return what the guest must subscribe to so that the others' cards show."""
    if patient.identity is None:
        return []
    return identity_filters(patient.federation, patient.name, has_children=patient.is_aggregator)


def check_identity(patient: Patient, account: Account | None) -> Iterator[Finding]:
    """See that card, key and certificate are one node's, of this fleet, in their time, and not revoked."""
    name, files = "identity", patient.identity
    if files is None:
        yield skipped(name, "there is no `identity:` in the YAML: nothing is signed, and no signature asked for")
        return
    try:
        fleet_key = read_public(files.fleet_key_file)
        card, _ = read_card_file(files.card_file, fleet_key)
        key = PrivateKey.read(files.key_file)
    except ConfigError as error:
        yield _split(name, error, BUNDLE)
        return
    mistake = _misfit(patient, card, key) or _other_certificate(card, account)
    if mistake:
        yield fail(name, mistake, BUNDLE)
        return
    yield ok(name, f"the fleet's key has signed {card.path}'s card, number {card.serial}, and its key is here")
    yield judge_date("card", f"{card.path}'s", float(card.not_after), time.time())
    yield _check_revoked(files, card, fleet_key)


def check_other_papers(patient: Patient) -> Iterator[Finding]:
    """See that the papers of other homes and other clients can be used, for the agent does not start without them."""
    for path, papers in patient.others:
        for key, text in papers.mistakes():
            what, _, remedy = text.partition("; ")
            yield fail(f"papers of {path}", f"{key[-1]}: {what}", remedy or BUNDLE.replace("this node", path))


def check_others(patient: Patient, guest: Guest) -> Iterator[Finding]:
    """See whether the parent and the children show cards that this node would take."""
    if patient.identity is None:
        return
    files = patient.identity
    try:
        own = Identity.load(files.card_file, files.key_file, files.fleet_key_file, files.revoked_file)
    except ConfigError:
        return  # said before
    taken, refused = set[str](), dict[str, str]()
    for sender, card in _shown(guest):
        try:
            own.learn(sender, card)
        except Refused as error:
            refused[sender] = str(error)
        else:
            taken.add(sender)
    if patient.parent is not None:
        yield _of_parent(patient.parent, taken, refused)
    if patient.is_aggregator:
        children = {path for path in taken if parent(path) == patient.name}
        wrong = {path: why for path, why in refused.items() if parent(path) == patient.name}
        if wrong:
            path, why = min(wrong.items())
            yield warn("children's cards", f"{len(wrong)} not taken, such as {path}: {why}", _NEW.format(path=path))
        else:
            yield ok("children's cards", f"{len(children)} heard, all of them in order")


def _of_parent(above: str, taken: set[str], refused: dict[str, str]) -> Finding:
    name = "parent's card"
    if above in taken:
        return ok(name, f"{above}'s is in order: its calls can be checked")
    if above in refused:
        return fail(name, refused[above], _NEW.format(path=above))
    remedy = f"start {above}, with `identity:` in its YAML; until then its calls are passed over"
    return warn(name, f"{above}'s was never heard here", remedy)


def _misfit(patient: Patient, card: Card, key: PrivateKey) -> str:
    if card.federation != patient.federation:
        return f"the card is of the federation {card.federation}, this node is in {patient.federation}"
    if card.path != patient.name:
        return f"the card is {card.path}'s, this node is {patient.name}"
    if card.key != key.public:
        return "the key is not the card's"
    return ""


def _other_certificate(card: Card, account: Account | None) -> str:
    """Return what is wrong where card and certificate are not of one issue; of the latter's own faults TLS tells."""
    if account is None or account.tls is None or account.tls.certificate is None:
        return ""
    try:
        serial = str(int(str(own_certificate(account.tls)["serialNumber"]), 16))
    except OSError:
        return ""
    if serial == card.serial:
        return ""
    return f"the card has number {card.serial} and the certificate {serial}: they are of two issues"


def _check_revoked(files: IdentityConfig, card: Card, fleet_key: str) -> Finding:
    name = "revocations"
    if files.revoked_file is None:
        return warn(
            name, "no list of revoked cards: a stolen board's signatures count here", "set identity.revoked_file"
        )
    try:
        revoked = read_revoked_file(files.revoked_file, fleet_key)
    except HflError as error:
        return _split(name, error, BUNDLE)
    if card.serial in revoked.serials:
        return fail(name, f"this node's own card, number {card.serial}, is revoked", _NEW.format(path=card.path))
    count = len(revoked.serials)
    return ok(name, f"list {revoked.number} has {count} card{'s' if count != 1 else ''}, not this one")


def _shown(guest: Guest) -> Iterator[tuple[str, str]]:
    for frame in guest.heard:
        try:
            message, topic = decode(frame)
        except Malformed:
            continue
        if isinstance(message, Shown):
            yield topic.path, message.card


def _split(name: str, error: Exception, remedy: str) -> Finding:
    what, _, own_remedy = str(error).partition("; ")
    return fail(name, what, own_remedy or remedy)
