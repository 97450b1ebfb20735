"""The authority of one fleet, in a folder that is kept apart: who has which papers, and which no longer count.

    ca.key ca.crt   signs certificates, for TLS
    fleet.key       signs cards, for what nodes say to each other through brokers
    issued.json     the book: all papers ever given, with what is revoked; the other two lists are made of it
    crl.pem         revoked certificates, for brokers
    revoked         revoked cards, for nodes

The book is written before papers are handed out or a list is renewed: a crash leaves a serial that nobody has, never
papers that nobody knows of, and a list that was not renewed is renewed when the folder is opened next.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hfl_mqtt import files
from hfl_mqtt.errors import ConfigError, HflError, Misuse
from hfl_mqtt.fleet.book import KINDS, USUAL_DAYS, Book, Issued, Kind, common_name
from hfl_mqtt.fleet.certificates import DECADE_S, Issuer, revocations_in
from hfl_mqtt.fleet.private import write_private
from hfl_mqtt.protocol import topics
from hfl_mqtt.protocol.limits import MAX_SERIALS
from hfl_mqtt.trust.cards import BELIEVABLE_FROM_S, Card, Revoked, sign_card, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey, is_public_key, read_short

_BOOK = "issued.json"
_RESTORE = "take the authority's folder from its backup"
#: Bridges and brokers sign nothing.
_WITH_CARDS: tuple[Kind, ...] = ("node",)
#: A book of 100 000 papers has 30 MB.
_MAX_BOOK_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """What one account is given. PEM, but the card; the key is empty where a device keeps its own."""

    serial: str
    certificate: str
    key: str = field(repr=False)
    #: A node's; empty for bridges and brokers.
    card: str = ""


class Authority:
    """The folder's papers. Each call that changes something has it on the disk when it returns.

    Use `create` or `open`. Two processes may use one folder: each change is made on what the other wrote.
    """

    def __init__(self, folder: Path, issuer: Issuer, fleet_key: PrivateKey, clock: Callable[[], float]) -> None:
        self._folder, self._issuer, self._fleet_key, self._clock = folder, issuer, fleet_key, clock

    def __repr__(self) -> str:
        return f"Authority({str(self._folder)!r})"

    @classmethod
    def create(cls, folder: Path, federation: str, *, clock: Callable[[], float] = time.time) -> Authority:
        """Make a new authority in a folder that is not there yet; it appears with all its files, or not at all.

        Raises:
            HflError: the folder is there, cannot be written, or this machine's clock is not set.
            ConfigError: a federation cannot be called so.
        """
        if not topics.is_federation(federation):
            raise ConfigError(f"{federation!r} is no name for a federation: letters, digits, `_`, `.` and `-`")
        now_s = _believable(clock)
        if folder.exists():
            raise HflError(
                f"{folder}: is there already; a fleet has one authority for good, a new one would lock all its nodes "
                "out. To start over, move that folder away"
            )
        issuer, fleet_key = Issuer.create(federation, now_s), PrivateKey.generate()
        draft = folder.with_name(f".{folder.name}.tmp")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700, parents=True)
            authority = cls(draft, issuer, fleet_key, clock)
            authority._write("ca.key", issuer.key_pem)
            authority._write("ca.crt", issuer.certificate_pem)
            authority._write("fleet.key", fleet_key.pem())
            authority._keep(Book(federation=federation, number=int(now_s)))
            authority._renew_lists()
            files.rename(draft, folder)
        except OSError as error:
            raise files.failure(draft, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls(folder, issuer, fleet_key, clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> Authority:
        """Open an authority, and renew its lists where they are not what the book says or end within five years.

        Raises:
            ConfigError: a file is missing, damaged, or readable for others.
            HflError: the folder cannot be written.
        """
        for name in ("ca.key", "fleet.key", _BOOK):
            _check_private(folder / name)
        try:
            issuer = Issuer(*(read_short(folder / name) for name in ("ca.key", "ca.crt")))
            fleet_key = PrivateKey.from_pem(read_short(folder / "fleet.key"))
        except ConfigError as error:
            raise ConfigError(f"{folder}: {error}; {_RESTORE}") from None
        authority = cls(folder, issuer, fleet_key, clock)
        with authority._locked():
            if not authority._has_fresh_lists():
                authority._renew_lists()
        return authority

    @property
    def federation(self) -> str:
        """The name of the federation whose authority this is."""
        return self._book().federation

    @property
    def ca_pem(self) -> str:
        """The authority's own certificate, `ca.crt` everywhere."""
        return self._issuer.certificate_pem

    @property
    def ca_not_after_s(self) -> int:
        """When the authority itself ends, in seconds since 1970: no papers last longer."""
        return self._issuer.not_after_s

    @property
    def fleet_key(self) -> str:
        """The public half of the fleet's key, 64 hex digits: `fleet.pub` on every node."""
        return self._fleet_key.public

    @property
    def crl_pem(self) -> str:
        """The revoked certificates, `crl.pem` of every broker."""
        return self._read("crl.pem")

    @property
    def revoked_text(self) -> str:
        """The revoked cards, `revoked` on every node: one line without its end."""
        return self._read("revoked").strip()

    @property
    def issued(self) -> tuple[Issued, ...]:
        """All papers ever given, oldest first."""
        return self._book().issued

    def issue(
        self,
        kind: Kind,
        path: str,
        *,
        hosts: Collection[str] = (),
        public_key: str | None = None,
        days: int = USUAL_DAYS,
    ) -> Papers:
        """Give papers to a node, a bridge or a broker. Those it has stay good until they expire or are revoked.

        Args:
            kind: what they are for.
            path: the node's, or the broker's: `cloud/farm-a`.
            hosts: where a broker is found; localhost is always among them.
            public_key: of a device that keeps its own key, 64 hex digits; without it a key is drawn.
            days: how long they last, at most as long as the authority.

        Raises:
            HflError: the name cannot be in a certificate, the key is another's or was revoked, or the folder cannot
                be written.
        """
        if public_key is not None and (kind != "node" or not is_public_key(public_key)):
            raise Misuse(f"{kind} {path}: not a node with 64 hex digits of a public key")
        if not topics.is_path(path):
            raise HflError(f"{path!r} is no path: names of letters, digits, `_`, `.` and `-`, parted by `/`")
        if not 1 <= days <= 36500:
            raise HflError(f"{path}: papers last 1 to 36500 days, not {days}")
        now_s = _believable(self._clock)
        not_after_s = min(int(now_s) + days * 86400, self._issuer.not_after_s)
        own_key = PrivateKey.generate() if kind == "node" and public_key is None else None
        serial = 1 + secrets.randbelow(2**64 - 1)
        subject = common_name(kind, path)
        if kind == "broker":
            certificate, key = self._issuer.for_broker(subject, serial, not_after_s, hosts)
        else:
            certificate, key = self._issuer.for_client(
                subject, serial, not_after_s, own_key.public if own_key else public_key
            )
        entry = Issued(
            serial=str(serial),
            kind=kind,
            path=path,
            key=(own_key.public if own_key else public_key) or "",
            hosts=tuple(hosts),
            issued_at_s=int(now_s),
            not_after_s=not_after_s,
        )
        with self._locked():
            book = self._book()
            self._keep(book.with_papers(entry))
        if kind != "node":
            return Papers(serial=entry.serial, certificate=certificate, key=key)
        card = Card(federation=book.federation, path=path, key=entry.key, serial=entry.serial, not_after=not_after_s)
        return Papers(
            serial=entry.serial,
            certificate=certificate,
            key=own_key.pem() if own_key else "",
            card=sign_card(card, self._fleet_key),
        )

    def revoke(self, path: str, *, kinds: Collection[Kind] = KINDS, keep: str | None = None) -> tuple[Issued, ...]:
        """Revoke all papers of a path, but those with the serial `keep`; return those that were good until now.

        Brokers know once they have the new `crl.pem`, nodes once they have the new `revoked`.

        Raises:
            HflError: the lists are full, or the folder cannot be written.
        """
        now_s = int(_believable(self._clock))
        with self._locked():
            book = self._book()
            gone = {
                one.serial
                for one in book.issued
                if one.path == path and one.kind in kinds and one.is_live and one.serial != keep
            }
            if not gone:
                return ()
            if len(book.revoked_serials()) + len(gone) > MAX_SERIALS:
                raise HflError(f"{MAX_SERIALS} papers are revoked, and a list holds no more; make a new authority")
            book = book.without(gone, now_s)
            self._keep(book)
            self._renew_lists()
        return tuple(one for one in book.issued if one.serial in gone)

    def _renew_lists(self) -> None:
        book = self._book()
        revoked = {int(serial): at_s for serial, at_s in book.revoked_serials().items()}
        self._write("crl.pem", self._issuer.revocations(revoked, book.number, self._clock()))
        self._write("revoked", self._signed_list(book) + "\n")

    def _has_fresh_lists(self) -> bool:
        book = self._book()
        try:
            number, serials, until_s = revocations_in(self.crl_pem)
            text = self.revoked_text
        except ConfigError:
            return False
        return (
            number == book.number
            and serials == {int(serial) for serial in book.revoked_serials()}
            and until_s > self._clock() + DECADE_S / 2
            and text == self._signed_list(book)
        )

    def _signed_list(self, book: Book) -> str:
        serials = frozenset(book.revoked_serials(_WITH_CARDS))
        return sign_revoked(Revoked(federation=book.federation, number=book.number, serials=serials), self._fleet_key)

    def _book(self) -> Book:
        try:
            return Book.model_validate_json(self._read(_BOOK))
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "JSON"
            raise ConfigError(f"{self._folder / _BOOK}: {where} is wrong; {_RESTORE}") from None

    def _keep(self, book: Book) -> None:
        self._write(_BOOK, book.model_dump_json(indent=1, exclude_none=True) + "\n")

    def _read(self, name: str) -> str:
        return read_short(self._folder / name, _MAX_BOOK_BYTES, remedy=_RESTORE)

    def _write(self, name: str, text: str) -> None:
        write_private(self._folder / name, text.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise files.failure(self._folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _believable(clock: Callable[[], float]) -> float:
    now_s = clock()
    if now_s < BELIEVABLE_FROM_S:
        raise HflError("this machine's clock says a year before 2025; set it before papers are dated with it")
    return now_s


def _check_private(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        # Never "make a new one": it would lock all nodes out.
        raise ConfigError(
            f"{path}: is not there; mount the stick that `authority:` in the site file names, or restore the backup of "
            "the authority's folder"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; run this as the folder's owner") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: others on this machine may read it; chmod 600 it (on a FAT stick: umask=077)")
