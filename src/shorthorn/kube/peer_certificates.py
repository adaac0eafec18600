"""Certificates for what nodes send each other, and when to renew them.

Owns the form of our private authority and of the one certificate that all nodes use, and the plan
of their renewal, with the time passed in. Must never do I/O, read a clock, or show a key: keys are
in no `repr` and in no message. Called by `kube.peer_authority`.

An authority is valid for a year and followed by a new one after two thirds of it. The nodes' bundle
then holds both; only when all nodes have had an hour to see it does the new one sign. The old one
leaves the bundle when every certificate that it signed is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shorthorn.kit.certificates import key_pem_of, key_usage, named, pem_of

#: The name in the nodes' certificate. No host: addresses change, the authority is what counts.
PEER_SERVER_NAME = "peer.shorthorn.io"

AUTHORITY_VALID = timedelta(days=365)
LEAF_VALID = timedelta(days=30)
#: How long a new authority is only shown, until every node has its certificate in the bundle.
SETTLING = timedelta(hours=1)
#: Clocks of nodes differ; what begins now is valid for those that are behind, too.
SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Authority:
    """`bundle`: PEM certificates, the one that signs first; `key`: its key, PEM."""

    bundle: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The nodes' certificate, its key, and the authorities that they trust, as PEM."""

    certificate: str
    key: str = field(repr=False)
    bundle: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be in the two Secrets now, and when to look again."""

    authority: Authority
    leaf: Leaf
    look_again_at: datetime


def plan(authority: Authority | None, leaf: Leaf | None, now: datetime) -> Plan:
    """Return what both should be at `now`; whatever can stay is returned as it is.

    What cannot be read, is over, or does not belong together counts as missing. The answer is a
    fixed point: planned again at the same time, nothing changes.
    """
    authority = _renewed_authority(authority, now)
    leaf = _renewed_leaf(authority, leaf, now)
    return Plan(authority, leaf, _next_change(authority, leaf, now))


def make_authority(now: datetime) -> Authority:
    """Return a new authority, the only one in its bundle."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = named(f"Shorthorn peers {serial:040x}"[:64])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(pem_of(certificate), key_pem_of(key))


def issue_leaf(authority: Authority, now: datetime) -> Leaf:
    """Return a new certificate for all nodes, for both ends of a connection."""
    issuer = _certificates(authority.bundle)[0]
    issuer_key = _load_key(authority.key)
    key = ec.generate_private_key(ec.SECP256R1())
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named(PEER_SERVER_NAME))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - SKEW, issuer.not_valid_before_utc))
        .not_valid_after(min(now + LEAF_VALID, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(PEER_SERVER_NAME)]), critical=False
        )
        .add_extension(issued_by, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return Leaf(pem_of(certificate), key_pem_of(key), authority.bundle)


def _renewed_authority(authority: Authority | None, now: datetime) -> Authority:
    if authority is None or not _is_usable(authority, now):
        return make_authority(now)
    newest, *older = _certificates(authority.bundle)
    kept = [certificate for certificate in older if _may_have_leaves(newest, certificate, now)]
    if now >= _renewal_of(newest):
        fresh = make_authority(now)
        return Authority(fresh.bundle + _bundle([newest, *kept]), fresh.key)
    if len(kept) == len(older):
        return authority
    return Authority(_bundle([newest, *kept]), authority.key)


def _may_have_leaves(newest: x509.Certificate, older: x509.Certificate, now: datetime) -> bool:
    """Whether something that `older` signed may still be valid: it signed until `newest` came."""
    ending = newest.not_valid_before_utc + SKEW + LEAF_VALID
    return now < min(ending, older.not_valid_after_utc)


def _renewed_leaf(authority: Authority, leaf: Leaf | None, now: datetime) -> Leaf:
    if leaf is None or not _is_leaf_usable(authority, leaf, now):
        return issue_leaf(authority, now)
    newest, *older = _certificates(authority.bundle)
    is_settled = not older or now >= newest.not_valid_before_utc + SKEW + SETTLING
    if now >= _renewal_of(_certificates(leaf.certificate)[0]) and is_settled:
        return issue_leaf(authority, now)
    if leaf.bundle == authority.bundle:
        return leaf
    return Leaf(leaf.certificate, leaf.key, authority.bundle)


def _is_usable(authority: Authority, now: datetime) -> bool:
    try:
        certificate = _certificates(authority.bundle)[0]
        is_own_key = certificate.public_key() == _load_key(authority.key).public_key()
    except (ValueError, TypeError):
        return False
    return is_own_key and _is_valid(certificate, now)


def _is_leaf_usable(authority: Authority, leaf: Leaf, now: datetime) -> bool:
    try:
        certificate = _certificates(leaf.certificate)[0]
        is_own_key = certificate.public_key() == _load_key(leaf.key).public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        is_named = PEER_SERVER_NAME in names.value.get_values_for_type(x509.DNSName)
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return False
    issuers = _certificates(authority.bundle)
    is_ours = any(_has_signed(issuer, certificate) for issuer in issuers)
    return is_own_key and is_named and is_ours and _is_valid(certificate, now)


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _next_change(authority: Authority, leaf: Leaf, now: datetime) -> datetime:
    newest, *older = _certificates(authority.bundle)
    made_at = newest.not_valid_before_utc + SKEW
    moments = [_renewal_of(newest), _renewal_of(_certificates(leaf.certificate)[0])]
    if older:
        moments += [made_at + SETTLING, made_at + LEAF_VALID]
        moments += [certificate.not_valid_after_utc for certificate in older]
    return min(moment for moment in [*moments, now + LEAF_VALID] if moment > now)


def _renewal_of(certificate: x509.Certificate) -> datetime:
    """Return when two thirds of its time are over."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) * 2 / 3


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _certificates(pem: str) -> list[x509.Certificate]:
    """Raises: ValueError: there is none, or one that cannot be read."""
    return x509.load_pem_x509_certificates(pem.encode())


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """Raises: ValueError: it is none of ours; the message holds nothing of it."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as exc:
        raise ValueError("the private key cannot be read") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is not of an elliptic curve")  # noqa: TRY004
    return key


def _bundle(certificates: list[x509.Certificate]) -> str:
    return "".join(pem_of(certificate) for certificate in certificates)
