"""The sections `broker:` and `identity:`: whom a node connects to, as whom, and by which papers it shows that.

`{name}` in the path of a paper stands for the last part of the node's name, so that the clients of one process have
their own: `key_file: papers/{name}.key`. What is wrong with a file is said at its line when the configuration is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, model_validator
from typing_extensions import Self

from hfl_mqtt.config.sections import Host, Section
from hfl_mqtt.config.units import Duration, LocalPath, Whole
from hfl_mqtt.config.wording import KeyPath, misplaced
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.transport import tls
from hfl_mqtt.transport.link import Account, TlsFiles

#: By habit: plain, TLS, and TLS with certificates of clients.
PLAIN_PORT, TLS_PORT, MUTUAL_PORT = 1883, 8883, 8884
NAME = "{name}"
_INSTEAD = (
    "is not taken here, so that no password lies in a configuration: put it in a file and name that in password_file, "
    "or in an environment variable and name that in password_env"
)


class Secret(Section):
    """Where a password lies: in a file or in an environment variable, never in the configuration."""

    instead: ClassVar[Mapping[str, str]] = {"password": _INSTEAD}

    password_file: LocalPath | None = Field(
        default=None, description="A file that holds the password and nothing else."
    )
    password_env: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The environment variable that holds the password."
    )

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if self.password_file is not None and self.password_env is not None:
            raise misplaced((("password_env",), "stands beside password_file: keep one of them"))
        return self

    @property
    def has_password(self) -> bool:
        """Whether it is said where a password lies."""
        return self.password_file is not None or self.password_env is not None

    def password(self) -> str | None:
        """Read the password now, without its line end; None where none is configured.

        Raises:
            ConfigError: the file is missing, unreadable, empty or has several lines, or the variable is not set.
        """
        if self.password_env is not None:
            value = os.environ.get(self.password_env)
            if not value:
                raise ConfigError(
                    f"the environment variable {self.password_env} holds no password: set it, or use password_file"
                )
            return value
        if self.password_file is None:
            return None
        path = self.password_file
        try:
            with path.open("rb") as file:
                text = file.read(65_536).decode().removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise ConfigError(f"the password file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"the password file {path} is not UTF-8 text") from None
        if not text or "\n" in text:
            raise ConfigError(f"the password file {path} must hold the password on one line and nothing else")
        return text


def looks_at_papers(info: ValidationInfo) -> bool:
    """Whether the papers on disk are judged with the YAML; the doctor reads it without, and examines them itself."""
    return bool((info.context or {}).get("with_papers", True))


class _Papers(Section):
    """Files of a node's own, in whose paths its name may stand."""

    def at(self, name: str) -> Self:
        """Return the section as it is for one node."""
        own = {key: _at(path, name) for key in type(self).model_fields if isinstance(path := getattr(self, key), Path)}
        return self.model_copy(update=own)

    @property
    def is_shared(self) -> bool:
        """Whether the papers are the same for every node."""
        return not any(NAME in str(getattr(self, key)) for key in type(self).model_fields)

    def mistakes(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what is wrong with the files on disk, each at its key."""
        raise NotImplementedError

    def _alone(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield the keys that stand without the one that they go with."""
        yield from ()

    @model_validator(mode="after")
    def _are_in_order(self, info: ValidationInfo) -> Self:
        found = list(self._alone())
        if not found and self.is_shared and looks_at_papers(info):
            found = list(self.mistakes())
        if found:
            raise misplaced(*found)
        return self


class TlsConfig(_Papers):
    """TLS to the broker, 1.2 or later, and never without: the authority of the fleet is trusted, and no other."""

    ca_file: LocalPath = Field(description="The certificate of the fleet's authority, ca.crt.")
    cert_file: LocalPath | None = Field(
        default=None, description="The node's certificate, where the broker knows nodes by theirs."
    )
    key_file: LocalPath | None = Field(default=None, description="The private key of that certificate.")
    server_name: Host | None = Field(
        default=None, description="The name in the broker's certificate, where that is not host."
    )

    def _alone(self) -> Iterator[tuple[KeyPath, str]]:
        if (self.cert_file is None) is not (self.key_file is None):
            given, missing = ("cert_file", "key_file") if self.key_file is None else ("key_file", "cert_file")
            yield (given,), f"stands without {missing}: a certificate and its key go together"

    def mistakes(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what is wrong with the files on disk, each at its key."""
        for key, text in tls.mistakes(self.files()):
            yield (key,), text

    def files(self) -> TlsFiles:
        """Return what a link takes."""
        return TlsFiles(ca=self.ca_file, certificate=self.cert_file, key=self.key_file, server_name=self.server_name)


class IdentityConfig(_Papers):
    """What a node signs with, and checks others by: with this section signatures are given, and asked for."""

    card_file: LocalPath = Field(description="What the fleet says of the node's key, node.card.")
    key_file: LocalPath = Field(description="The node's private key, node.key; the same as in broker.tls.")
    fleet_key_file: LocalPath = Field(description="The public key of the fleet, fleet.pub, by which cards are checked.")
    revoked_file: LocalPath | None = Field(
        default=None, description="The list of cards that hold no more, revoked; looked at again when it changes."
    )

    def mistakes(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what is wrong with the files on disk, each at its key; what stands in them is the reader's to judge."""
        for key in ("card_file", "fleet_key_file", "revoked_file"):
            path: Path | None = getattr(self, key)
            if path is not None and not path.is_file():
                yield (key,), f"no such file: {path}"
        if (mistake := tls.key_mistake(self.key_file)) is not None:
            yield ("key_file",), mistake


def mistakes_of(papers: _Papers | None, where: KeyPath, names: Iterable[str]) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong with papers in whose paths a name stands, for each of these nodes."""
    if papers is not None and not papers.is_shared:
        for name in names:
            for key, text in papers.at(name).mistakes():
                yield (*where, *key), f"for {name}: {text}"


def _at(path: Path, name: str) -> Path:
    return Path(str(path).replace(NAME, name.rpartition("/")[2]))


class BrokerConfig(Secret):
    """The Mosquitto that a node connects to, and as whom."""

    host: Host = Field(description="Name or address of the broker.")
    port: Annotated[Whole, Field(ge=1, le=65535)] = Field(
        default=PLAIN_PORT,
        description="TCP port of the broker; by default 1883, with tls 8883, and with a certificate of one's own 8884.",
    )
    tls: TlsConfig | None = Field(default=None, description="TLS to the broker; without it, plain TCP.")
    user: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="The account; by default the node's own name, which is what the brokers' rights go by.",
    )
    keepalive: Annotated[Duration, Field(ge=5, le=65535)] = Field(
        default=60.0, description="After so long without a word, the broker is asked; twice that and it is given up."
    )
    session_expiry: Annotated[Duration, Field(ge=0, le=2**32 - 2)] = Field(
        default=7 * 86400.0, description="How long the broker keeps messages for a node that sleeps."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_port(cls, given: Any) -> Any:
        if isinstance(given, dict) and "port" not in given and isinstance(given.get("tls"), dict):
            return given | {"port": MUTUAL_PORT if given["tls"].get("cert_file") else TLS_PORT}
        return given

    def account(self, name: str, own: Secret | None = None) -> Account:
        """Read the password and return how node `name` connects; `own` is its own secret where it has one.

        Raises:
            ConfigError: the password cannot be read.
        """
        secret = own if own is not None and own.has_password else self
        papers = self.tls.at(name).files() if self.tls is not None else None
        return Account(host=self.host, port=self.port, user=self.user or name, password=secret.password(), tls=papers)
