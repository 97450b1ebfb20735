"""Certificates as a fleet has them, good and bad, and Mosquitto's lines for them; made here, with `cryptography`."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hfl_mqtt.transport.link import TlsFiles

UTC = datetime.timezone.utc
BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=UTC)
PAST = datetime.datetime(2001, 1, 1, tzinfo=UTC)
FUTURE = datetime.datetime(2090, 1, 1, tzinfo=UTC)
END = datetime.datetime(2099, 1, 1, tzinfo=UTC)
HOSTS = ("localhost", "127.0.0.1")
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path
    serial: int


class Authority:
    """A CA that lays what it issues down in one folder."""

    def __init__(self, folder: Path, name: str = "fleet") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"hfl-mqtt {name}")
        builder = _certificate(self._name, self._name, self._key.public_key(), BEGINNING, END)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = folder / "ca.crt"
        certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.crl = self.revoke()

    def issue(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        not_before: datetime.datetime = BEGINNING,
        not_after: datetime.datetime = END,
    ) -> Pair:
        """Issue a broker's certificate where there are hosts, else a node's; one of that name is replaced."""
        key: Key = ec.generate_private_key(ec.SECP256R1()) if hosts else ed25519.Ed25519PrivateKey.generate()
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _certificate(_name(name), self._name, key.public_key(), not_before, not_after)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = name.replace("/", ".")
        pair = Pair(self.folder / f"{stem}.crt", self.folder / f"{stem}.key", certificate.serial_number)
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def revoke(self, *pairs: Pair) -> Path:
        """Write the list of what is revoked."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name).last_update(PAST).next_update(END)
        for pair in pairs:
            revoked = x509.RevokedCertificateBuilder().serial_number(pair.serial).revocation_date(PAST).build()
            builder = builder.add_revoked_certificate(revoked)
        path = self.folder / "crl.pem"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    def papers(self, pair: Pair | None = None, *, server_name: str | None = None) -> TlsFiles:
        """Return what a link takes."""
        certificate, key = (pair.certificate, pair.key) if pair is not None else (None, None)
        return TlsFiles(ca=self.certificate, certificate=certificate, key=key, server_name=server_name)

    def listener(self, port: int, broker: Pair, *, is_mutual: bool = True) -> list[str]:
        """Return the lines of a listener with TLS: with certificates for accounts, or with passwords."""
        mutual = ["require_certificate true", "use_identity_as_username true", f"crlfile {self.crl}"]
        return [
            f"listener {port} 127.0.0.1",
            f"cafile {self.certificate}",
            f"certfile {broker.certificate}",
            f"keyfile {broker.key}",
            *(mutual if is_mutual else []),
        ]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
