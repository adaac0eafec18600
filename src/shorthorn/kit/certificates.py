"""What all certificates of ours have in common: X.509 for the few words that we use of it.

Owns names, key usage and PEM. Must never decide who is trusted, for what and how long: an authority
does (`kube.peer_certificates`, `standalone.apiserver.credentials`). Imported only by what makes
certificates: cryptography takes a while to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


def named(common_name: str) -> x509.Name:
    """Return a name that is nothing but a common name: 64 characters at most."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what an authority's key may be used for, or else that of one end of a connection."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def pem_of(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PEM, not encrypted: it goes where nobody else can read."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
