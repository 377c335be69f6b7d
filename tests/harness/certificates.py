"""Certificates for tests: an authority of their own, and what it signs."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))
NOW = datetime.now(UTC)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Authority:
    """One that the daemon trusts; what it makes is written where `ssl` can load it."""

    home: Path
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        own = self._certificate(
            "authority", self.key, [x509.BasicConstraints(ca=True, path_length=None)], self.key, NOW
        )
        (self.home / "ca.pem").write_bytes(own)

    def context(
        self, file: str, subject: x509.GeneralName, *, days: int = 1, trusted: bool = True
    ) -> ssl.SSLContext:
        """A server's side, with a certificate for that subject."""
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.SubjectAlternativeName([subject])]
        signed = self._certificate(
            "authority", key, parts, self.key if trusted else key, NOW + timedelta(days=days - 1)
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.home / file).write_bytes(signed + secret)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.home / file)
        return context

    @staticmethod
    def _certificate(
        issuer: str, key: Any, parts: list[Any], signer: ec.EllipticCurvePrivateKey, ends: datetime
    ) -> bytes:
        builder = x509.CertificateBuilder(
            issuer_name=name(issuer),
            subject_name=name(issuer if key is signer else "server"),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=NOW - timedelta(days=9),
            not_valid_after=ends + timedelta(hours=1),
        )
        for part in parts:
            builder = builder.add_extension(part, critical=True)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
