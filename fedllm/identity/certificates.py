"""The federation's private certificate authority and the coordinator's TLS certificate.

X.509 v3 as RFC 5280 profiles it, with EC P-256 keys (FIPS 186-5). The CA signs servers
directly: its path length is 0, and the server's certificate can sign nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedllm.canonical import UNREADABLE
from fedllm.errors import ConfigError

# What is raised over damaged certificates and requests for one.
UNREADABLE_X509 = (
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    *UNREADABLE,
)
# Machines whose clocks are a little slow accept a new certificate all the same.
_CLOCK_TOLERANCE = timedelta(hours=1)


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_authority(
    federation: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.Certificate:
    """Make the self-signed certificate of a federation's private CA."""
    name = _name(federation, f"{federation} federation CA {now:%Y-%m-%d}")
    return (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def make_server_certificate(
    federation: str,
    public_key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    now: datetime,
    days: int,
) -> x509.Certificate:
    """Make a server's certificate for host names and addresses; it never outlives the CA."""
    authority, authority_key = ca
    subject = _name(federation, f"{federation} coordinator")
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(authority.subject, subject, public_key, now, days, authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(h) for h in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    return builder.sign(authority_key, hashes.SHA256())


def make_signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """Return a certificate signing request (PKCS #10, PEM), which proves that ``key`` is held."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def read_certificates(text: str | bytes, origin: str) -> list[x509.Certificate]:
    """Read one or more PEM certificates.

    Raises
    ------
    ConfigError
        If there is none, or one is damaged.
    """
    try:
        found = x509.load_pem_x509_certificates(text.encode() if isinstance(text, str) else text)
        # What is read only when it is asked for is read now, or it would fail later.
        for certificate in found:
            list(certificate.extensions)
            certificate.public_key()
    except UNREADABLE_X509:
        raise ConfigError(
            f"{origin} holds no readable certificate", "fetch it again from the operator"
        ) from None
    return found


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 key that `private_pem` wrote.

    Raises
    ------
    ConfigError
        If the file is missing or holds no such key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(
            f"the key {path} cannot be read ({type(error).__name__})",
            "restore the file from its backup",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an elliptic-curve key", "restore it from its backup")
    return key


def check_authority(certificate: x509.Certificate, origin: str) -> None:
    """Check that a certificate may act as the federation's CA, and as no more.

    Raises
    ------
    ConfigError
        If it is not marked as a CA that signs certificates with nothing below them.
    """
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        certificate.verify_directly_issued_by(certificate)
        fits = basic.ca and basic.path_length == 0 and usage.key_cert_sign
    except (x509.ExtensionNotFound, InvalidSignature, *UNREADABLE):
        fits = False
    if not fits:
        raise ConfigError(
            f"{origin} is not the certificate of a federation's CA",
            "fetch the roster again from the operator; never install a certificate from elsewhere",
        )


def check_server_certificate(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    authorities: Sequence[x509.Certificate],
    host: str,
    origin: str,
) -> None:
    """Check that a server's certificate fits its key, its CA and its host name.

    Raises
    ------
    ConfigError
        Says which of them does not fit.
    """
    try:
        own, names = certificate.public_key(), _names(certificate)
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise ConfigError(f"{origin} is damaged", "install the operator's last answer") from None
    if own != key.public_key():
        raise ConfigError(f"{origin} belongs to another key", "install the operator's last answer")
    if not any(_issued(certificate, authority) for authority in authorities):
        raise ConfigError(
            f"{origin} was not issued by the federation's CA", "install the operator's last answer"
        )
    if _general(host) not in names:
        raise ConfigError(
            f"{origin} does not name {host}, the address in the roster",
            "renew it: fedllm provision renew",
        )


def names_exactly(certificate: x509.Certificate, hosts: Sequence[str]) -> bool:
    """Tell whether a server's certificate names these hosts and no others."""
    return _names(certificate) == [_general(host) for host in hosts]


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


def current_time() -> datetime:
    """Return this machine's time in UTC."""
    return datetime.now(UTC)


def check_period(certificate: x509.Certificate, origin: str) -> None:
    """Check that a certificate is valid at this moment.

    Raises
    ------
    ConfigError
        If it is not valid yet, or no longer.
    """
    moment = current_time()
    if moment < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{origin} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            f"set this machine's clock; it says {moment:%Y-%m-%d %H:%M} UTC",
        )
    if moment > certificate.not_valid_after_utc:
        raise ConfigError(
            f"{origin} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            "ask the federation's operator to renew it (fedllm provision renew); "
            f"this machine's clock says {moment:%Y-%m-%d %H:%M} UTC",
        )


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(min(end, latest) if latest else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(organisation: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
