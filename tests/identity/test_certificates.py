"""What a server's certificate must fit: its key, its CA, its host, and the moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509

from fedllm.errors import ConfigError
from fedllm.identity import certificates

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@cache
def made():
    """A CA with its key, and a certificate of ten days with its own."""
    ca_key, own = certificates.new_tls_key(), certificates.new_tls_key()
    ca = certificates.make_authority("north", ca_key, NOW, 20)
    certificate = certificates.make_server_certificate(
        "north", own.public_key(), ["127.0.0.1", "host.example"], (ca, ca_key), NOW, 10
    )
    return ca, certificate, own


def test_a_certificate_that_fits_is_accepted_for_each_of_its_hosts():
    ca, certificate, own = made()
    stranger = certificates.make_authority("south", certificates.new_tls_key(), NOW, 20)
    for host in ("127.0.0.1", "host.example"):
        certificates.check_server_certificate(certificate, own, [stranger, ca], host, "x.pem")
    assert certificates.names_exactly(certificate, ["127.0.0.1", "host.example"])
    assert not certificates.names_exactly(certificate, ["127.0.0.1"])
    assert not certificates.names_exactly(ca, ["127.0.0.1"])


def test_what_does_not_fit_is_named():
    ca, certificate, own = made()
    other = certificates.new_tls_key()
    stranger = certificates.make_authority("north", other, NOW, 20)
    for key, authorities, host, words in (
        (other, [ca], "127.0.0.1", "x.pem belongs to another key"),
        (own, [stranger], "127.0.0.1", "x.pem was not issued by the federation's CA"),
        (own, [], "127.0.0.1", "x.pem was not issued by the federation's CA"),
        (own, [ca], "127.0.0.2", "x.pem does not name 127.0.0.2, the address in the roster"),
    ):
        with pytest.raises(ConfigError) as refused:
            certificates.check_server_certificate(certificate, key, authorities, host, "x.pem")
        assert refused.value.message == words


def test_a_certificate_is_valid_from_its_first_moment_to_its_last(monkeypatch):
    _, certificate, _ = made()
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert last == NOW + timedelta(days=10)
    assert timedelta(0) < NOW - first <= timedelta(days=1), "clocks differ a little"
    second = timedelta(seconds=1)
    for moment, words in (
        (first, None),
        (last, None),
        (first - second, "valid only from"),
        (last + second, "expired at"),
    ):
        monkeypatch.setattr(certificates, "current_time", lambda value=moment: value)
        if words is None:
            certificates.check_period(certificate, "x.pem")
        else:
            with pytest.raises(ConfigError, match=words):
                certificates.check_period(certificate, "x.pem")


def test_no_certificate_outlives_its_ca():
    ca_key, own = certificates.new_tls_key(), certificates.new_tls_key()
    ca = certificates.make_authority("north", ca_key, NOW, 20)
    long = certificates.make_server_certificate(
        "north", own.public_key(), ["127.0.0.1"], (ca, ca_key), NOW, 400
    )
    assert long.not_valid_after_utc == ca.not_valid_after_utc == NOW + timedelta(days=20)


def test_a_key_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    path = tmp_path / "server.key"
    with pytest.raises(ConfigError, match="cannot be read"):
        certificates.read_private_key(path)
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ConfigError, match="not an elliptic-curve key"):
        certificates.read_private_key(path)
    own = certificates.new_tls_key()
    path.write_bytes(certificates.private_pem(own))
    assert certificates.read_private_key(path).public_key() == own.public_key()


def test_a_server_may_sign_messages_and_no_certificates():
    ca, certificate, _ = made()

    def usage(one: x509.Certificate) -> tuple[bool, bool, bool]:
        found = one.extensions.get_extension_for_class(x509.KeyUsage).value
        return found.key_cert_sign, found.digital_signature, found.crl_sign

    assert usage(ca)[0]
    assert usage(certificate) == (False, True, False)
    certificates.check_authority(ca, "x.pem")
    with pytest.raises(ConfigError, match="not the certificate of a federation's CA"):
        certificates.check_authority(certificate, "x.pem")


def test_certificates_name_the_federation_and_whom_they_are_of():
    """What openssl shows to a person who looks for the right one."""
    now = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    key = certificates.new_tls_key()
    ca = certificates.make_authority("north", key, now, 20)
    server = certificates.make_server_certificate(
        "north", certificates.new_tls_key().public_key(), ["h"], (ca, key), now, 10
    )
    own = "CN=north federation CA 2026-03-04,O=north"
    assert (ca.issuer.rfc4514_string(), ca.subject.rfc4514_string()) == (own, own)
    assert server.issuer.rfc4514_string() == own
    assert server.subject.rfc4514_string() == "CN=north coordinator,O=north"
    for certificate, days in ((ca, 20), (server, 10)):
        assert certificate.not_valid_before_utc == now - timedelta(hours=1)
        assert certificate.not_valid_after_utc == now + timedelta(days=days)


def test_what_is_read_late_is_read_at_once(monkeypatch):
    """A certificate whose extensions or key are damaged is named by where it came from."""
    _, certificate, _ = made()

    class Damaged:
        def __init__(self, part: str) -> None:
            self.part = part

        @property
        def extensions(self):
            if self.part == "extensions":
                raise x509.DuplicateExtension("twice", x509.ObjectIdentifier("2.5.29.15"))
            return certificate.extensions

        def public_key(self):
            if self.part == "key":
                raise ValueError("no such curve")
            return certificate.public_key()

    for part, readable in (("", True), ("extensions", False), ("key", False)):
        found = [certificate, Damaged(part)]
        monkeypatch.setattr(x509, "load_pem_x509_certificates", lambda text, found=found: found)
        if readable:
            assert certificates.read_certificates(b"", "ca.pem") == found
        else:
            with pytest.raises(ConfigError, match=r"ca\.pem holds no readable certificate"):
                certificates.read_certificates(b"", "ca.pem")
