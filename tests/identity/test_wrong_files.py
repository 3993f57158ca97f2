"""Files and keys of the wrong kind, each refused in words that name it."""

from __future__ import annotations

import dataclasses
import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import ValidationError
from support.kits import federation_config, make_federation

from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.identity import certificates, enrolment, issuing, kit_folder, kits, operator_keys
from fedllm.identity.config import CoordinatorSection
from fedllm.identity.enrolment import Request, enroll, read_request
from fedllm.identity.federation_state import FederationState, load_state, save_state
from fedllm.identity.keys import Identity
from fedllm.identity.kits import node_public_key, read_kit, split_address
from fedllm.identity.operator_keys import OperatorKeys
from fedllm.identity.provisioning import change_passphrase, inspect, provision, revoke
from fedllm.identity.roster import Roster, sign_roster

PLAIN = serialization.NoEncryption()
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def key_file(path: Path, key, form=PKCS8) -> None:
    path.chmod(0o600)
    path.write_bytes(key.private_bytes(PEM, form, PLAIN))


def refused(match: str):
    return pytest.raises(ConfigError, match=match)


def test_a_kit_is_made_in_a_folder_and_only_under_a_name_of_its_role(tmp_path):
    (tmp_path / "file").touch()
    with refused("is no folder"):
        enroll(tmp_path / "file", "site", "anne")
    with refused("'anne' cannot name a authority"):
        enroll(tmp_path / "kit", "authority", "anne")
    with refused("cannot name a site: it is the name of another role"):
        enroll(tmp_path / "kit", "site", "Operator")
    assert not (tmp_path / "kit").exists()
    enroll(tmp_path / "kit", "site", "anne")
    (tmp_path / "kit" / "request.json").unlink()
    with refused(r"request.json cannot be read"):
        enroll(tmp_path / "kit", "site", "anne")


@pytest.mark.parametrize(("role", "title"), [("site", "\u202e"), ("authority", "Süd")])
def test_a_request_whose_title_cannot_be_shown_is_refused_though_it_is_signed(role, title):
    name = "anne" if role == "site" else role
    identity, node = Identity.generate(name), ec.generate_private_key(ec.SECP384R1())
    pem = node.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    request = Request(role, name, identity.public_bytes(), pem, None, title)
    with pytest.raises(PeerError) as caught:
        read_request(enrolment._sign_request(request, identity, node))
    words = f"the request of '{name}' has a name for people that cannot be shown"
    assert caught.value.message == words


def test_only_an_elliptic_curve_key_proves_that_a_node_key_is_held():
    other = ed25519.Ed25519PrivateKey.generate()
    pem = other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert enrolment._verifies(pem, other.sign(b"x"), b"x") is False
    assert enrolment._verifies(b"none", b"", b"x") is False


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_has_32_bytes(size):
    with pytest.raises(ValueError, match="32 bytes"):
        Identity("anne", ed25519.Ed25519PrivateKey.generate(), bytes(size))


def test_a_node_key_is_of_the_one_curve(tmp_path):
    path = tmp_path / "node.key"
    path.touch()
    form = serialization.PrivateFormat.OpenSSH
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        key_file(path, key, form)
        with refused("is not a P-384 key"):
            node_public_key(path)
    key_file(path, ec.generate_private_key(ec.SECP384R1()), form)
    assert node_public_key(path).startswith(b"-----BEGIN PUBLIC KEY")


def test_a_kit_that_cannot_be_written_is_left_alone_and_a_sealed_one_still_read(
    tmp_path, monkeypatch
):
    with refused("cannot be written"), kit_folder.locked(tmp_path / "none"):
        pass

    def sealed(path, mode=0o600):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", sealed)
    with kit_folder.locked(tmp_path):
        entered = True
    assert entered


def test_a_kit_of_another_user_says_so(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with refused("cannot be read by this user"):
        kit_folder.read_description(tmp_path)


def test_a_coordinator_without_its_certificate_is_told_which_answer_to_install(tmp_path):
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "coordinator"
    (kit / "server.pem").unlink()
    with pytest.raises(ConfigError) as caught:
        read_kit(kit, "coordinator")
    assert caught.value.message == f"{kit / 'server.pem'} cannot be read (FileNotFoundError)"
    assert str(kit) in caught.value.remedy


def test_the_operators_keys_are_of_their_kinds(tmp_path):
    make_federation(tmp_path)
    keys = OperatorKeys(tmp_path, operator_keys.load_root(tmp_path), None)
    key_file(tmp_path / "ca" / "ca-1.key", ed25519.Ed25519PrivateKey.generate())
    with refused("is no elliptic-curve key"):
        keys.issuing_ca()
    key_file(operator_keys._root_path(tmp_path), ec.generate_private_key(ec.SECP256R1()))
    with refused("is no root key"):
        operator_keys.load_root(tmp_path)
    (tmp_path / "ca" / "ca-1.key").unlink()
    with refused(r"ca-1.key"):
        keys.issuing_ca()


def test_a_title_of_the_file_must_not_be_that_of_a_site_that_enrolled(tmp_path):
    from fedllm.identity.provisioning import sign

    folder = tmp_path / "fed"
    make_federation(folder)
    enroll(tmp_path / "kit", "site", "Südklinik")
    sign(folder, read_request((tmp_path / "kit" / "request.json").read_text()))
    with pytest.raises(ConfigError, match="have the same name for people") as caught:
        provision(federation_config(titles={"anne": "südklinik"}), folder)
    assert "another name under [titles]" in caught.value.remedy


def test_a_folder_of_an_earlier_version_gets_its_root_beside_the_list(tmp_path):
    made = make_federation(tmp_path)
    root, state = made.root, load_state(tmp_path)
    save_state(tmp_path, state.model_copy(update={"root": None}))
    assert inspect(tmp_path).root == root
    change_passphrase(tmp_path, None, b"a passphrase that is long")
    assert load_state(tmp_path).root == root.hex()
    assert inspect(tmp_path).root == root


def test_an_operators_folder_that_is_not_there_is_not_made(tmp_path):
    with refused("there is no folder"):
        revoke(tmp_path / "none", "anne")
    assert not (tmp_path / "none").exists()


def test_a_coordinators_request_holds_an_elliptic_curve_key():
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    other = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    right = ec.generate_private_key(ec.SECP256R1())
    good = x509.CertificateSigningRequestBuilder().subject_name(name).sign(right, hashes.SHA256())
    for text in (None, "garbage", other.public_bytes(PEM).decode()):
        with refused("the coordinator's TLS key is no elliptic-curve key"):
            issuing._requested_key(SimpleNamespace(server_request=text))
    found = issuing._requested_key(SimpleNamespace(server_request=good.public_bytes(PEM).decode()))
    assert found == right.public_key()


def test_what_a_federation_has_by_default_and_may_have():
    config = federation_config(coordinator={"hosts": ["127.0.0.1"]})
    assert (config.coordinator.port, config.min_cohort) == (9092, 2)
    assert (config.validity_days, config.ca_validity_days) == (397, 3650)
    for port in (1, 65535):
        assert CoordinatorSection(hosts=("a",), port=port).port == port
    for port in (0, 65536):
        with pytest.raises(ValidationError):
            CoordinatorSection(hosts=("a",), port=port)
    for keys in ({"min_cohort": 1}, {"validity_days": 0}, {"ca_validity_days": 36501}):
        with pytest.raises(ConfigError):
            federation_config(**keys)
    edge = federation_config(min_cohort=2, validity_days=1, ca_validity_days=36500)
    assert (edge.validity_days, edge.ca_validity_days) == (1, 36500)
    state = FederationState(config=config, root=None)
    assert state.version == 0
    with pytest.raises(ValidationError):
        FederationState(config=config, root=None, version=-1)


def test_of_several_certificates_the_first_one_is_the_servers(tmp_path):
    """As TLS reads the file; what follows are those of the CA."""
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "coordinator"
    ca = (tmp_path / "fed" / "ca" / "ca-1.pem").read_text()
    own = (kit / "server.pem").read_text()
    (kit / "server.pem").write_text(own + ca)
    assert read_kit(kit, "coordinator").server_certificate == kit / "server.pem"
    enrolment._check_made_for(own + ca, kit / "server.key")
    (kit / "server.pem").write_text(ca + own)
    with refused("belongs to another key"):
        read_kit(kit, "coordinator")
    with pytest.raises(RefusedError, match="was made for another kit"):
        enrolment._check_made_for(ca + own, kit / "server.key")


def test_an_address_is_split_at_its_last_colon():
    assert split_address("host.example:9092") == ("host.example", 9092)
    assert split_address("[2001:db8::7]:1") == ("2001:db8::7", 1)


def test_a_ca_that_the_operator_signed_must_be_one(tmp_path):
    """Put into a kit by hand, past the installation that would have refused it."""
    made = make_federation(tmp_path)
    kit, root = tmp_path / "kits" / "anne", operator_keys.load_root(tmp_path)
    server = (tmp_path / "kits" / "coordinator" / "server.pem").read_text()
    (kit / "roster.json").write_text(
        sign_roster(dataclasses.replace(made.roster, authorities_pem=server), root)
    )
    (kit / "ca.pem").write_text(server)
    with refused("is not the certificate of a federation's CA"):
        read_kit(kit, "site")


def test_a_roster_and_a_kit_have_their_last_moment(tmp_path, monkeypatch):
    made = make_federation(tmp_path)
    end = made.roster.expires
    monkeypatch.setattr(kits, "current_time", lambda: end)
    kits.check_dates(made.roster, "x")
    monkeypatch.setattr(kits, "current_time", lambda: end + timedelta(microseconds=1))
    with refused("x expired at"):
        kits.check_dates(made.roster, "x")


def test_the_ca_that_lasts_longest_is_the_one_that_must_be_valid(monkeypatch):
    """An old one stays in the roster for those who have nothing newer yet."""
    now = datetime.now(UTC)
    made = [
        certificates.make_authority("north", certificates.new_tls_key(), now, days)
        for days in (10, 20)
    ]

    def check(days, order):
        moment = now + timedelta(days=days)
        monkeypatch.setattr(certificates, "current_time", lambda: moment)
        pem = "".join(certificates.pem(certificate) for certificate in order)
        kits._check_authorities(Roster(b"", {}, authorities_pem=pem), "the CA")

    for order in (made, made[::-1]):
        check(9, order)
        check(15, order)
        with refused("the CA expired at"):
            check(21, order)
