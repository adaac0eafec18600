"""Secrets of one server: the bearer token, and a certificate for loopback.

Owns the files that hold them (mode 0600, written whole or not at all). kubectl sends a token over
TLS only, and TLS also keeps another local user from posing as the server while it is down. The
authority's key is never stored: it signs one certificate and is forgotten. Called at start by
whoever builds an `ApiServer`.
"""

from __future__ import annotations

import datetime as dt
import secrets
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.host.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

_VALID_DAYS = 3650
#: A certificate with less left than this is replaced at the next start.
_RENEW_BEFORE = dt.timedelta(days=365)
_EXPIRY_NOTE = "Valid until: "


@dataclass(frozen=True, slots=True)
class Tls:
    """`pem` holds the key, the certificate and the authority; `authority` is the latter as PEM."""

    pem: Path
    authority: str

    def context(self) -> ssl.SSLContext:
        """Return a server-side context for this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.pem)
        return context


def ensure_token(path: Path) -> str:
    """Return the token in `path`, made at first: 256 random bits."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        replace_file(path, f"{token}\n".encode())
    return token


def ensure_tls(path: Path) -> Tls:
    """Return the certificate in `path`; made anew when missing, unusable or nearly expired."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        text = ""
    if not _is_usable(text):
        text = _make_certificate()
        replace_file(path, text.encode())
    return Tls(path, text[text.rindex("-----BEGIN CERTIFICATE-----") :])


def _is_usable(text: str) -> bool:
    first, _, rest = text.partition("\n")
    if not first.startswith(_EXPIRY_NOTE) or rest.count("-----END CERTIFICATE-----") != 2:
        return False
    try:
        expiry = dt.datetime.fromisoformat(first.removeprefix(_EXPIRY_NOTE))
    except ValueError:
        return False
    return expiry - dt.datetime.now(dt.UTC) > _RENEW_BEFORE


def _make_certificate() -> str:
    # Imported only when a certificate is made: once in ten years.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    from shorthorn.kit.certificates import key_pem_of, key_usage, named, pem_of

    start = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    expiry = (start + dt.timedelta(days=_VALID_DAYS)).replace(microsecond=0)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = named("shorthorn loopback authority")
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())

    def builder(public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(authority_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(expiry)
        )

    authority = (
        builder(authority_key.public_key())
        .subject_name(authority_name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    certificate = (
        builder(key.public_key())
        .subject_name(named("shorthorn API server"))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_loopback_names(), critical=False)
        .add_extension(issued_by, critical=False)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pems = [key_pem_of(key), pem_of(certificate), pem_of(authority)]
    return f"{_EXPIRY_NOTE}{expiry.isoformat()}\n{''.join(pems)}"


def _loopback_names() -> x509.SubjectAlternativeName:
    from ipaddress import ip_address

    from cryptography import x509

    addresses = [x509.IPAddress(ip_address(text)) for text in ("127.0.0.1", "::1")]
    return x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
