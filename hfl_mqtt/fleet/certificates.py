"""X.509, as TLS wants it: a fleet's own authority (ECDSA P-256), its certificates and its list of revoked ones.

Everything is valid from 1970 on, for a board without a battery clock boots there, and OpenSSL refuses a certificate,
an authority or a list whose time has not come. The extensions are those that OpenSSL's strict checks ask for, which
Python 3.13 has switched on.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hfl_mqtt.errors import ConfigError, HflError
from hfl_mqtt.trust.keys import read_short

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError as error:  # pragma: no cover: it is installed where the tests run
    raise HflError("a fleet's papers need the library cryptography; at home: pip install 'hfl-mqtt[fleet]'") from error

#: Characters of a common name: X.509 has no more, and some libraries refuse what does.
MAX_COMMON_NAME = 64
#: Seconds that an authority and its list of revoked certificates last: ten years.
DECADE_S = 3652 * 86400

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.\-]{0,251}[A-Za-z0-9_])?\Z")
#: A broker is reached from its own machine under these, whatever else it is called.
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class Issuer:
    """A certificate authority: its key, which it shows to nobody, and its own certificate.

    Raises:
        ConfigError: they are not PEM, or not a pair.
    """

    def __init__(self, key_pem: str, certificate_pem: str) -> None:
        #: The authority's own certificate.
        self.certificate_pem = certificate_pem
        try:
            key = serialization.load_pem_private_key(key_pem.encode(), password=None)
            self._certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        except (ValueError, TypeError):
            raise ConfigError("ca.key or ca.crt is not PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise ConfigError("ca.key is not the key of ca.crt")
        self._key = key

    def __repr__(self) -> str:
        return f"Issuer({self._certificate.subject.rfc4514_string()!r})"

    @classmethod
    def create(cls, federation: str, now_s: float) -> Issuer:
        """Make a new authority, for ten years from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hfl-mqtt"),
                x509.NameAttribute(NameOID.COMMON_NAME, federation),
            ]
        )
        certificate = (
            _builder(name, key.public_key(), x509.random_serial_number(), now_s + DECADE_S)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(_private_pem(key), _pem(certificate))

    @property
    def key_pem(self) -> str:
        """The authority's private key: a secret."""
        return _private_pem(self._key)

    @property
    def not_after_s(self) -> int:
        """When the authority itself ends, in seconds since 1970."""
        return int(self._certificate.not_valid_after_utc.timestamp())

    def for_client(self, common_name: str, serial: int, not_after_s: int, public_key: str | None) -> tuple[str, str]:
        """Return the certificate and the key of one that connects, in PEM.

        Args:
            common_name: what the broker takes for its account.
            serial: positive, below 2**64.
            not_after_s: in seconds since 1970.
            public_key: its Ed25519 key, 64 hex digits; None draws a P-256 key. The key is "" where this is given.

        Raises:
            HflError: the name is too long.
        """
        if public_key is None:
            return self._with_new_key(common_name, serial, not_after_s, ExtendedKeyUsageOID.CLIENT_AUTH)
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        return self._certify(common_name, serial, not_after_s, key, ExtendedKeyUsageOID.CLIENT_AUTH), ""

    def for_broker(self, common_name: str, serial: int, not_after_s: int, hosts: Iterable[str]) -> tuple[str, str]:
        """Return the certificate and the key of a broker that is found under these hosts, and under localhost.

        Raises:
            HflError: the name is too long, or a host is neither a name nor an address.
        """
        return self._with_new_key(common_name, serial, not_after_s, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def revocations(self, serials: Mapping[int, int], number: int, now_s: float) -> str:
        """Return the list of revoked certificates, in PEM, valid for ten years.

        Args:
            serials: when each was revoked, in seconds since 1970.
            number: larger than that of any list before.
            now_s: seconds since 1970.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_EPOCH)
            .next_update(_at(now_s + DECADE_S))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._issuer_key(), critical=False)
        )
        for serial, revoked_at_s in sorted(serials.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_at(revoked_at_s)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _with_new_key(
        self, common_name: str, serial: int, not_after_s: int, usage: x509.ObjectIdentifier, hosts: Iterable[str] = ()
    ) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certify(common_name, serial, not_after_s, key.public_key(), usage, hosts), _private_pem(key)

    def _certify(
        self,
        common_name: str,
        serial: int,
        not_after_s: int,
        public_key: _PublicKey,
        usage: x509.ObjectIdentifier,
        hosts: Iterable[str] = (),
    ) -> str:
        if len(common_name) > MAX_COMMON_NAME:
            raise HflError(
                f"{common_name!r} has {len(common_name)} characters, and a certificate's name at most "
                f"{MAX_COMMON_NAME}; give the place or the device a shorter name"
            )
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = (
            _builder(name, public_key, serial, not_after_s)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(self._issuer_key(), critical=False)
        )
        if usage == ExtendedKeyUsageOID.SERVER_AUTH:
            names = [_general_name(host) for host in dict.fromkeys((*hosts, *_OWN_HOSTS))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256()))

    def _issuer_key(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def revocations_in(crl_pem: str) -> tuple[int, frozenset[int], float]:
    """Return the number of a list, its serials, and until when it is valid, in seconds since 1970.

    Raises:
        ConfigError: it is no such list.
    """
    try:
        crl = x509.load_pem_x509_crl(crl_pem.encode())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        raise ConfigError("not a list of revoked certificates") from None
    until = crl.next_update_utc
    return number, frozenset(entry.serial_number for entry in crl), until.timestamp() if until else 0.0


def serial_of(path: Path) -> str | None:
    """Return the serial of a certificate in a PEM file, decimal; None where there is none or it is no certificate."""
    try:
        return str(x509.load_pem_x509_certificate(read_short(path).encode()).serial_number)
    except (ConfigError, ValueError):
        return None


def _builder(name: x509.Name, public_key: _PublicKey, serial: int, not_after_s: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(_EPOCH)
        .not_valid_after(_at(not_after_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.match(host):
            raise HflError(
                f"{host!r} is neither a host's name nor an address; correct host: in the site file"
            ) from None
        return x509.DNSName(host)


def _at(seconds: float) -> datetime:
    return _EPOCH + timedelta(seconds=int(seconds))


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
