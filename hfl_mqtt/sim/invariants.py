"""What must hold of every run, read from its notes: simulated ones, or the journals of real nodes.

An aggregator notes each update that it `accepted`, and with each round that is `closed` those that entered the model;
after a restart it notes what it `restored`. So a ledger can be kept that knows of no machine: whatever was accepted is
in exactly one closed round, whatever has a positive receipt was accepted, and each delta starts where the last one led.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What names an update: its sender, the round it answers, and the base it starts from; see `Ledger.add`.
_Key = tuple[str, ...]
_ENDINGS = ("missed", "abandoned")


@dataclass(slots=True)
class Tally:
    """What became of the updates of one kind."""

    accepted: int = 0
    counted: int = 0
    late: int = 0
    given_up: int = 0  # accepted in a round that came to nothing, as its policy says
    forgotten: int = 0  # of an open round, with the disk
    lost: int = 0
    twice: int = 0


@dataclass(slots=True)
class _Entry:
    update: str
    key: _Key
    kind: str


@dataclass(slots=True)
class _Book:
    """One aggregator's: its rounds that have not ended, and what has entered its model."""

    rounds: dict[tuple[str, str], dict[str, _Entry]] = field(default_factory=dict)
    closed: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    counted: dict[_Key, str] = field(default_factory=dict)
    #: What entered the model in each closed round.
    entered: dict[tuple[str, str], dict[str, _Entry]] = field(default_factory=dict)
    #: Rounds that were closed in vain, and what had entered them.
    undone: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    #: What was ever accepted: (child, update), and (child, run and round that it answers).
    ever: set[tuple[str, ...]] = field(default_factory=set)
    digests: dict[tuple[str, int], str] = field(default_factory=dict)
    #: How often the node was killed: each time a receipt may have gone out that it had no time to note.
    kills: int = 0


class Ledger:
    """Reads records in the order of each node's own, and knows what is wrong with them.

    A record is a mapping with `node`, `event` and the note's fields, as a journal has them. Of processes that share a
    place by lease, `node` is the place's path, `@`, and the holder's name: each keeps books of its own. Besides the
    nodes' own notes there may be `killed` and `wiped` of a node, by whoever did that.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.train, self.evaluate = Tally(), Tally()
        #: Of training, by aggregator: who entered the model how often.
        self.entered: dict[str, int] = {}
        self._books: dict[str, _Book] = {}
        self._led: set[str] = set()
        self._receipts: list[tuple[str, str, str, str]] = []

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Ledger:
        """Read all of these; see then `check`."""
        ledger = cls()
        for record in records:
            ledger.add(record)
        return ledger

    def add(self, record: Mapping[str, Any]) -> None:
        """Read one more record."""
        node, event = record["node"], record["event"]
        if event in ("restored", "opened") and node in self._led:
            # Who leads a place once more, and does not say what it restored, knows nothing: another led in between.
            self._led.remove(node)
            if event == "opened":
                self._wiped(node)
        if event == "accepted" and "sender" in record:
            self._accepted(node, record)
        elif event == "accepted":
            if "update" in record:
                self._receipts.append((node, record["update"], *_round(record)))
        elif event == "closed" and "updates" in record:
            self._closed(node, _round(record), record["updates"])
        elif event in _ENDINGS:
            self._given_up(node, _round(record))
        elif event == "undone":
            self._undone(node, _round(record))
        elif event == "restored":
            self._restored(node, record)
        elif event == "delta" and "digest" in record:
            self._delta(node, record)
        elif event == "wiped":
            self._wiped(node)
        elif event == "leads":
            self._led.add(node)
        elif event == "killed":
            self._book(node).kills += 1

    def check(self) -> list[str]:
        """Return what is wrong with what was read, one sentence each; none where all is well."""
        found = list(self.problems)
        kills: dict[str, int] = {}
        known: dict[str, set[tuple[str, ...]]] = {}
        for name, book in self._books.items():  # several processes may have shared one place
            place = name.partition("@")[0]
            kills[place] = kills.get(place, 0) + book.kills
            known.setdefault(place, set()).update(book.ever)
        for child, update, run, answered in self._receipts:
            node = child.partition("@")[0].rpartition("/")[0]
            ever = known.get(node, set())
            child = child.partition("@")[0]
            # A child that lost its disk may have worked once more: the same answer in other bytes.
            if not ever & {(child, update), (child, run, answered)}:
                kills[node] = kills.get(node, 0) - 1
                if kills[node] >= 0:
                    continue
                found.append(f"{child} has a receipt for {update}, which was never accepted")
        return found

    # -------------------------------------------------------------- inside

    def _accepted(self, node: str, record: Mapping[str, Any]) -> None:
        book, where = self._book(node), _round(record)
        sender, update = record["sender"], record.get("update", "")
        kind = record.get("kind", "train")
        tally = self._tally(kind)
        if where in book.closed:
            self._problem(node, where, f"accepted {sender} when it was closed")
        known = book.rounds.setdefault(where, {}).get(sender)
        if known is not None and known.update != update:
            self._problem(node, where, f"accepted two updates of {sender}, {known.update} and {update}")
        tally.accepted += known is None
        tally.late += bool(record.get("late"))
        key = (where[0], record.get("of", where[1]), sender, record.get("base", ""), kind)
        book.rounds[where][sender] = _Entry(update, key, kind)
        book.ever |= {(sender, update), (sender, where[0], key[1])}

    def _closed(self, node: str, where: tuple[str, str], updates: Mapping[str, str]) -> None:
        book = self._book(node)
        if where in book.closed:
            if book.closed[where] != dict(updates):
                self._problem(node, where, "was closed twice, with other updates")
            return
        entries = book.rounds.pop(where, {})
        book.closed[where] = dict(updates)
        for sender, entry in entries.items():
            if updates.get(sender) != entry.update:
                self._tally(entry.kind).lost += 1
                self._problem(node, where, f"lost {entry.update} of {sender}, which was accepted")
        for sender, update in updates.items():
            found = entries.get(sender)
            if found is None:
                self._problem(node, where, f"counted {update} of {sender}, which was not accepted")
                continue
            tally = self._tally(found.kind)
            tally.counted += 1
            self.entered[node] = self.entered.get(node, 0) + (found.kind == "train")
            before = book.counted.get(found.key)
            if before is not None:
                tally.twice += 1
                self._problem(node, where, f"counted {sender}'s answer to {found.key[1]} once more, as in {before}")
            book.counted[found.key] = where[1]
            book.entered.setdefault(where, {})[sender] = found

    def _given_up(self, node: str, where: tuple[str, str]) -> None:
        for entry in self._book(node).rounds.pop(where, {}).values():
            self._tally(entry.kind).given_up += 1

    def _undone(self, node: str, where: tuple[str, str]) -> None:
        """Take it that a round was closed in vain: what it gave was refused above, and it is opened once more."""
        book = self._book(node)
        book.undone[where] = book.closed.pop(where, {})
        for entry in book.entered.pop(where, {}).values():
            book.counted.pop(entry.key, None)
            tally = self._tally(entry.kind)
            tally.counted -= 1
            tally.given_up += 1
            self.entered[node] -= entry.kind == "train"

    def _restored(self, node: str, record: Mapping[str, Any]) -> None:
        book, where = self._book(node), _round(record)
        closed, run = record.get("closed"), where[0]
        if closed and record.get("closed_round") and book.undone.get((run, record["closed_round"])) != closed:
            self._recover(node, (run, record["closed_round"]), closed)
            if (run, record["closed_round"]) not in book.closed:
                self._closed(node, (run, record["closed_round"]), closed)
        updates = record.get("updates") or {}
        for sender, entry in book.rounds.get(where, {}).items():
            if updates.get(sender) != entry.update:
                self._tally(entry.kind).lost += 1
                self._problem(node, where, f"forgot {entry.update} of {sender} when it was restarted")
        if updates:
            self._recover(node, where, updates)

    def _recover(self, node: str, where: tuple[str, str], updates: Mapping[str, str]) -> None:
        """Take it that these were accepted: who was killed before it could note that notes it now."""
        book = self._book(node)
        if where in book.closed:
            return
        entries = book.rounds.setdefault(where, {})
        for sender, update in updates.items():
            book.ever |= {(sender, update), (sender, *where)}
            if sender not in entries:
                self.train.accepted += 1
                entries[sender] = _Entry(update, (*where, sender, update, "recovered"), "train")

    def _delta(self, node: str, record: Mapping[str, Any]) -> None:
        digests, run, version = self._book(node).digests, record.get("run", ""), record["version"]
        before, base = digests.get((run, version - 1)), record.get("base")
        if "/" in node:
            return  # an edge begins a chain anew where its parent's has moved on without it
        if before is not None and base is not None and base != before:
            self._problem(node, (run, f"version {version}"), f"starts from {base}, the version before is {before}")
        known = digests.setdefault((run, version), record["digest"])
        if known != record["digest"]:
            self._problem(node, (run, f"version {version}"), f"is {record['digest']} now, and was {known}")

    def _wiped(self, node: str) -> None:
        book = self._book(node)
        for entries in book.rounds.values():
            for entry in entries.values():
                self._tally(entry.kind).forgotten += 1
        self._books[node] = _Book(ever=book.ever, kills=book.kills)

    def _problem(self, node: str, where: tuple[str, str], text: str) -> None:
        self.problems.append(f"{node}, {where[0]} {where[1]}: {text}")

    def _tally(self, kind: str) -> Tally:
        return self.train if kind == "train" else self.evaluate

    def _book(self, node: str) -> _Book:
        return self._books.setdefault(node, _Book())


def _round(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record.get("run", "")), str(record.get("round", ""))
