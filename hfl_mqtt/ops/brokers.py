"""From a site file to what its Mosquittos run on: a configuration, an ACL and a password file for each broker.

Where the site has certificates the configuration names them; `hfl fleet` issues them and puts them beside it.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hfl_mqtt.config.site import PASSWORDS_FILE, SECRETS_DIR, Site, secret_name
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.brokerfiles import (
    BRIDGE_FILES,
    BROKER_FILES,
    CA_FILE,
    CRL_FILE,
    INSTALLED,
    MAX_PACKET,
    MAX_QUEUED,
    PLACEHOLDER,
    Layout,
    at,
    configuration,
    password_file,
    password_hash,
    rights,
)

__all__ = [
    "BRIDGE_FILES",
    "BROKER_FILES",
    "CA_FILE",
    "CRL_FILE",
    "INSTALLED",
    "MAX_PACKET",
    "MAX_QUEUED",
    "PLACEHOLDER",
    "Layout",
    "Outcome",
    "Rendered",
    "password_hash",
    "read_passwords",
    "redraw_password",
    "render",
    "render_example",
    "render_to",
    "secret_files",
    "secret_path",
    "write_to",
]

#: A password that can stand in a Mosquitto configuration.
_PASSWORD = re.compile(r"[!-~]{8,200}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A file to write; `path` is relative to the output."""

    path: str
    content: str = field(repr=False)
    mode: int = 0o600


def render(
    site: Site, passwords: Mapping[str, str], layout: Layout = INSTALLED, *, shut_out: Collection[str] = ()
) -> list[Rendered]:
    """Return the files of every broker but for certificates and keys; the same arguments give the same bytes.

    `passwords` has one for every account of the site that has a secret. Accounts in `shut_out` get no rights.

    Raises:
        ConfigError: a password is missing, or cannot stand in a Mosquitto configuration.
    """
    for account in site.with_secret():
        if not _PASSWORD.match(passwords.get(account, "")):
            raise ConfigError(
                f"{PASSWORDS_FILE}: {account}: a password is 8 to 200 printable ASCII characters without spaces; "
                "delete the line to get a random one"
            )
    files = []
    for broker in site.brokers():
        files += [
            Rendered(path=f"{broker.directory}/mosquitto.conf", content=configuration(site, broker, passwords, layout)),
            Rendered(path=f"{broker.directory}/acl", content=rights(site, broker, shut_out)),
            Rendered(path=f"{broker.directory}/passwd", content=password_file(site, broker, passwords)),
        ]
    return files


def render_example(site: Site) -> list[Rendered]:
    """Return the files that can be shown to everybody: `CHANGE-ME` for every secret, and no password files."""
    files = render(site, dict.fromkeys(site.with_secret(), PLACEHOLDER))
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
    passwords = read_passwords(site, out_dir)
    outcomes = write_to(out_dir, [*secret_files(site, passwords), *render(site, passwords, layout)])
    try:
        if "{broker}" in layout.data_dir:
            for broker in site.brokers():
                Path(at(layout.data_dir, broker)).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None
    return outcomes


def secret_files(site: Site, passwords: Mapping[str, str]) -> list[Rendered]:
    """Return the file of all passwords, and one for each account of a node or a person."""
    return [
        _all_passwords(passwords),
        *(
            Rendered(path=f"{SECRETS_DIR}/{secret_name(account)}", content=passwords[account] + "\n")
            for account in site.with_password()
            if not account.startswith("_")  # a bridge's password is in its mosquitto.conf
        ),
    ]


def write_to(out_dir: Path, files: list[Rendered]) -> list[Outcome]:
    """Write rendered files, each at once and whole.

    Raises:
        ConfigError: one cannot be written.
    """
    try:
        return [Outcome(path=out_dir / file.path, changed=_write(out_dir, file)) for file in files]
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None


def secret_path(out_dir: Path, account: str) -> Path:
    """Return the file that holds nothing but this account's password, for `password_file:` of an agent."""
    return out_dir / SECRETS_DIR / secret_name(account)


def read_passwords(site: Site, out_dir: Path) -> dict[str, str]:
    """Return the secrets kept in the output, and a new one for each account that has none; nothing is written.

    Raises:
        ConfigError: `passwords.yaml` is not a mapping of accounts to passwords, or cannot be read.
    """
    path = out_dir / PASSWORDS_FILE
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
    return {**{account: _drawn() for account in site.with_secret()}, **kept}


def redraw_password(site: Site, out_dir: Path, account: str) -> None:
    """Draw an account's password anew; it holds for all that is rendered from then on.

    Raises:
        ConfigError: as `read_passwords` and `write_to`.
    """
    passwords = read_passwords(site, out_dir) | {account: _drawn()}
    write_to(out_dir, [_all_passwords(passwords)])


def _drawn() -> str:
    return secrets.token_urlsafe(32)


def _all_passwords(passwords: Mapping[str, str]) -> Rendered:
    head = "# Every account's password, and what bridges' client ids are made of. Keep it secret and keep it: rendering"
    head += " again takes them from here.\n"
    return Rendered(path=PASSWORDS_FILE, content=head + yaml.safe_dump(dict(passwords), sort_keys=True))


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
