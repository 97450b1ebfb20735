"""Papers of version 1 stay readable, and are written as they were: boards in the field have them on their disks."""

import hashlib
import json
from pathlib import Path

from hfl_mqtt.fleet import bundle
from hfl_mqtt.fleet.book import Book
from hfl_mqtt.fleet.requests import Request, read_request
from hfl_mqtt.trust.cards import Card, Revoked, encode, read_card, read_revoked, sign_card, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey

GOLDEN = json.loads((Path(__file__).parent / "papers_v1.json").read_text())
#: Keys that nobody uses: the bytes 0, 1, 2 and on, and 32, 33, 34 and on.
FLEET, NODE = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(32, 64)))
CARD = Card(
    federation="fed1", path="cloud/farm-a/pi-1", key=NODE.public, serial="13836023420412396190", not_after=1_858_467_584
)
REVOKED = Revoked(federation="fed1", number=1_795_395_584, serials=frozenset(("8473799213579088585", "17")))
REQUEST = Request(federation="fed1", path="cloud/farm-a/pi-1", key=NODE.public)
FILES = {name: f"{name}\n".encode() * 300 for name in bundle.NAMES}


def test_keys() -> None:
    assert FLEET.public == GOLDEN["fleet.pub"]
    assert NODE.pem() == GOLDEN["node.key"]


def test_a_card() -> None:
    assert read_card(GOLDEN["node.card"], FLEET.public) == CARD
    assert sign_card(CARD, FLEET) == GOLDEN["node.card"]


def test_a_list_of_revoked_cards() -> None:
    assert read_revoked(GOLDEN["revoked"], FLEET.public) == REVOKED
    assert sign_revoked(REVOKED, FLEET) == GOLDEN["revoked"]


def test_a_request() -> None:
    assert read_request(json.dumps(GOLDEN["request"])) == REQUEST
    assert encode(NODE.sign(REQUEST.statement())) == GOLDEN["request"]["signature"]


def test_a_bundle() -> None:
    assert hashlib.sha256(bundle.pack(FILES)).hexdigest() == GOLDEN["bundle"]


def test_a_book() -> None:
    book = Book.model_validate(GOLDEN["issued.json"])
    assert book.revoked_serials() == {"8473799213579088585": 1_795_395_584}
    assert json.loads(book.model_dump_json(exclude_none=True)) == GOLDEN["issued.json"]
