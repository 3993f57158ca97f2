from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from support.kits import federation_config, make_federation
from support.tls import handshake

from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.identity import certificates
from fedllm.identity.enrolment import (
    Request,
    accept,
    enroll,
    read_answer,
    read_request,
    root_fingerprint,
    same_fingerprint,
    spoken_fingerprint,
)
from fedllm.identity.issuing import server_certificate
from fedllm.identity.keys import Identity
from fedllm.identity.kits import Kit, check_membership, read_kit, split_address, update_roster
from fedllm.identity.provisioning import inspect, provision, renew, revoke, sign
from fedllm.identity.roster import Roster, verify_roster


def newest_roster(folder: Path) -> str:
    return (folder / "roster.json").read_text()


def join(folder: Path, kit: Path, name: str) -> Kit:
    """Let a site enroll with keys of its own."""
    enroll(kit, "site", name)
    _, answer = sign(folder, read_request((kit / "request.json").read_text()))
    accept(kit, read_answer(answer.read_text()))
    return read_kit(kit, "site")


def key_files(folder: Path) -> dict[str, bytes]:
    names = ("signing.pem", "secret.bin", "node.key", "server.key", "ca-1.key", "ca-1.pem")
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.name in names}


def test_every_party_has_a_kit(tmp_path):
    done = make_federation(tmp_path / "fed")
    kits = {
        name: read_kit(tmp_path / "fed" / "kits" / name, role)
        for role, name in [
            ("coordinator", "coordinator"),
            ("authority", "authority"),
            ("operator", "operator"),
            ("site", "anne"),
            ("site", "bob"),
        ]
    }
    assert set(kits) == set(done.kits)
    roster = kits["anne"].roster
    assert all(kit.roster == roster for kit in kits.values())
    assert roster.sites["anne"] == kits["anne"].identity.public_bytes()
    assert roster.coordinator == kits["coordinator"].identity.public_bytes()
    assert set(roster.node_keys) == {"anne", "bob", "authority"}
    assert kits["bob"].address == "127.0.0.1:9092"
    assert kits["bob"].server_key is None
    assert kits["operator"].node_key is None


def test_all_is_private_to_the_owner(tmp_path):
    folder = tmp_path / "new" / "fed"
    make_federation(folder)
    for path in folder.rglob("*"):
        private = path.is_dir() or path.suffix == ".key" or "keys" in path.parts
        if "kits" in path.relative_to(folder).parts[1:] or (private and path.is_file()):
            assert path.stat().st_mode & 0o077 == 0, path
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_people_may_look_at_is_written_for_them(tmp_path):
    """Two spaces for each level, and an end of line."""
    make_federation(tmp_path / "fed")
    join(tmp_path / "fed", tmp_path / "kit", "carl")
    found = [*(tmp_path / "fed").rglob("*.json"), *(tmp_path / "kit").rglob("*.json")]
    names = {"federation.json", "kit.json", "request.json", "roster.json"}
    assert names <= {path.name for path in found}
    assert any(path.parent.name == "answers" for path in found)
    for path in found:
        text = path.read_text()
        shown = [json.dumps(json.loads(text), indent=2, ensure_ascii=e) for e in (True, False)]
        assert text.rstrip("\n") in shown, path
        assert text.endswith("}\n"), path


def test_again_it_adds_and_never_replaces(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    before = key_files(folder)
    assert make_federation(folder).roster.version == 1
    done = make_federation(folder, sites=["anne", "bob", "carl"])
    assert done.kits == ("carl",)
    assert done.roster.version == 2
    assert {p: c for p, c in key_files(folder).items() if p in before} == before
    assert set(read_kit(folder / "kits" / "anne", "site").roster.sites) == {"anne", "bob", "carl"}


def test_a_kit_that_moved_to_its_site_is_not_made_again(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    shutil.move(folder / "kits" / "anne", tmp_path / "at-site")
    done = make_federation(folder, sites=["anne", "bob", "carl"])
    assert done.kits == ("carl",)
    assert not (folder / "kits" / "anne").exists()
    kit = read_kit(tmp_path / "at-site", "site")
    assert kit.install_roster(newest_roster(folder)).roster.version == 2
    assert read_kit(tmp_path / "at-site", "site").roster.version == 2


def test_a_crash_at_any_write_is_mended_by_running_again(tmp_path, monkeypatch):
    from fedllm.identity import (
        enrolment,
        federation_state,
        issuing,
        keys,
        kits,
        operator_keys,
        provisioning,
    )

    modules = (enrolment, federation_state, issuing, keys, kits, operator_keys, provisioning)

    def run_until(fatal: int, folder: Path) -> bool:
        count = 0

        def failing(path, content, mode=0o644, real=keys.write_bytes):
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt
            real(path, content, mode)

        with monkeypatch.context() as patch:
            for module in modules:
                patch.setattr(module, "write_bytes", failing)
            try:
                make_federation(folder, sites=[])
            except KeyboardInterrupt:
                return True
        return False

    fatal = 1
    while run_until(fatal, tmp_path / str(fatal)):
        folder = tmp_path / str(fatal)
        done = make_federation(folder, sites=[])
        for role in ("operator", "coordinator", "authority"):
            assert read_kit(folder / "kits" / role, role).roster == done.roster
        fatal += 1
    assert fatal > 20


def test_keys_made_at_the_site(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    kit = join(folder, tmp_path / "kit", "st-anne")
    assert kit.roster.version == 2
    assert kit.roster.sites["st-anne"] == kit.identity.public_bytes()
    answer = (folder / "answers" / "st-anne.json").read_text()
    secrets = [p.read_text(errors="replace") for p in (tmp_path / "kit" / "keys").iterdir()]
    assert "PRIVATE" not in answer
    assert all(secret not in answer for secret in secrets)
    assert not (folder / "kits" / "st-anne").exists()
    again = sign(folder, read_request((tmp_path / "kit" / "request.json").read_text()))
    assert again[0].roster.version == 2


def test_an_answer_is_not_accepted_into_a_kit_that_others_can_read(tmp_path):
    make_federation(tmp_path / "fed")
    kit = tmp_path / "kit"
    enroll(kit, "site", "carl")
    _, answer = sign(tmp_path / "fed", read_request((kit / "request.json").read_text()))
    secret = next(kit.rglob("secret.bin"))
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"secret\.bin"):
        accept(kit, read_answer(answer.read_text()))
    secret.chmod(0o600)
    assert accept(kit, read_answer(answer.read_text())).sites.keys() >= {"carl"}


def test_enrolling_twice_replaces_nothing(tmp_path):
    first = enroll(tmp_path / "kit", "site", "anne")
    assert enroll(tmp_path / "kit", "site", "anne") == first
    with pytest.raises(ConfigError, match="already the kit of the site 'anne'"):
        enroll(tmp_path / "kit", "site", "bob")
    (tmp_path / "kit" / "keys" / "secret.bin").chmod(0o640)
    with pytest.raises(ConfigError, match=r"secret\.bin can be read by other users"):
        enroll(tmp_path / "kit", "site", "anne")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="no kit"):
        enroll(tmp_path / "other", "site", "anne")
    assert (tmp_path / "other" / "letter.txt").read_text() == "dear"


def test_authority_and_coordinator_can_make_their_own_keys(tmp_path):
    folder = tmp_path / "fed"
    coordinator = {"hosts": ["fed.example.org", "127.0.0.1"], "keys": "enrolled"}
    done = make_federation(folder, coordinator=coordinator, authority={"keys": "enrolled"})
    assert done.roster is None
    assert "authority's request" in done.notes[0]
    with pytest.raises(ConfigError, match="has not answered"):
        read_kit(folder / "kits" / "anne", "site")
    for role in ("authority", "coordinator"):
        request = enroll(tmp_path / role, role, role)
        _, answer = sign(folder, request)
        accept(tmp_path / role, read_answer(answer.read_text()))
        kit = read_kit(tmp_path / role, role)
        assert kit.roster.key_of(role, role) == request.signing_key
        made = [path for path in (tmp_path / role).rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert kit.server_certificate.exists()
    assert not (folder / "kits" / "coordinator").exists()
    assert read_kit(folder / "kits" / "anne", "site").roster == kit.roster


def test_revoked_is_out_for_good(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    request = read_request((folder / "kits" / "anne" / "request.json").read_text())
    shutil.copytree(folder / "kits" / "anne", tmp_path / "anne")
    done = revoke(folder, "anne")
    assert set(done.roster.sites) == {"bob"}
    assert done.roster.revoked == (request.signing_key,)
    assert "anne" not in done.roster.node_keys
    with pytest.raises(RefusedError, match="revoked"):
        update_roster(tmp_path / "anne", newest_roster(folder))
    with pytest.raises(RefusedError, match="was revoked"):
        sign(folder, request)
    again = make_federation(folder)
    assert set(again.roster.sites) == {"bob"}
    assert any("'anne' was revoked" in note for note in again.notes)
    fresh = join(folder, tmp_path / "new-anne", "anne")
    assert set(fresh.roster.sites) == {"anne", "bob"}
    with pytest.raises(ConfigError, match="active sites: bob, anne"):
        revoke(folder, "eve")


def test_a_roster_names_the_keys_that_a_site_had_before(tmp_path):
    """Anne lost her keys, twice; bob left and nobody took his name."""
    make_federation(tmp_path / "fed")
    folder, lost = tmp_path / "fed", []
    revoke(folder, "bob")
    for number in (1, 2):
        lost.append(inspect(folder).roster.sites["anne"])
        revoke(folder, "anne")
        sign(folder, enroll(tmp_path / f"anne{number}", "site", "anne"))
    roster = inspect(folder).roster
    assert roster.former == {"anne": tuple(lost)}
    assert roster.sites["anne"] not in lost


def test_a_site_taken_from_the_file_stays_until_revoked(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    join(folder, tmp_path / "eve", "eve")
    # Nobody asked for keys of eve's to be made.
    assert list(make_federation(folder).notes) == []
    done = make_federation(folder, sites=["anne"])
    assert set(done.roster.sites) == {"anne", "bob", "eve"}
    (note,) = done.notes
    assert "site 'bob' is no longer in the file" in note
    assert f"provision revoke bob --dir {folder}" in note


def test_a_new_address_reaches_the_roster_and_the_certificate(tmp_path):
    first = make_federation(tmp_path).roster
    before = server_certificate(tmp_path)
    coordinator = {"hosts": ["fed.example.org", "::1"], "port": 443}
    second = make_federation(tmp_path, coordinator=coordinator).roster
    assert (first.address, second.address) == ("127.0.0.1:9092", "fed.example.org:443")
    after = server_certificate(tmp_path)
    assert certificates.names_exactly(after, ["fed.example.org", "::1"])
    assert after.public_key() == before.public_key()
    assert read_kit(tmp_path / "kits" / "coordinator", "coordinator").address == second.address


def test_renewal_keeps_keys_and_moves_dates(tmp_path):
    past = datetime.now(UTC) - timedelta(days=300)
    make_federation(tmp_path, past)
    keys = key_files(tmp_path)
    old = read_kit(tmp_path / "kits" / "coordinator", "coordinator")
    renew(tmp_path)
    new = read_kit(tmp_path / "kits" / "coordinator", "coordinator")
    assert new.roster.expires - old.roster.expires > timedelta(days=299)
    assert new.roster.sites == old.roster.sites
    lasts = server_certificate(tmp_path).not_valid_after_utc - datetime.now(UTC)
    assert lasts > timedelta(days=396)
    assert key_files(tmp_path) == keys


def test_the_ca_rolls_over_without_a_gap(tmp_path):
    make_federation(tmp_path)

    def trusted() -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((tmp_path / "kits" / "anne" / "ca.pem").read_bytes())

    def issuers() -> list[bool]:
        certificate = server_certificate(tmp_path)
        return [certificates._issued(certificate, ca) for ca in trusted()]

    assert issuers() == [True]
    renew(tmp_path, new_ca=True)
    # Sites that have this roster trust both, and those that do not can still connect.
    assert issuers() == [True, False]
    renew(tmp_path)
    assert issuers() == [False, True]
    renew(tmp_path, drop_old_ca=True)
    assert issuers() == [True]
    assert len(list((tmp_path / "ca").iterdir())) == 2
    read_kit(tmp_path / "kits" / "coordinator", "coordinator")


def test_a_stolen_coordinator_is_shut_out(tmp_path):
    folder = tmp_path / "fed"
    make_federation(folder)
    stolen = Path(shutil.move(folder / "kits" / "coordinator", tmp_path / "stolen"))
    revoke(folder, "coordinator")
    _, answer = sign(folder, enroll(tmp_path / "new", "coordinator", "coordinator"))
    renew(folder, new_ca=True, drop_old_ca=True)
    _, answer = sign(folder, read_request((tmp_path / "new" / "request.json").read_text()))
    accept(tmp_path / "new", read_answer(answer.read_text()))
    new = read_kit(tmp_path / "new", "coordinator")
    ca = read_kit(folder / "kits" / "anne", "site").ca_certificate
    assert handshake(new.server_certificate, new.server_key, ca, "127.0.0.1") is None
    refused = handshake(stolen / "server.pem", stolen / "server.key", ca, "127.0.0.1")
    assert "unable to get local issuer" in str(refused)


def test_an_expired_ca_leaves_the_roster(tmp_path):
    past = datetime.now(UTC) - timedelta(days=29)
    make_federation(tmp_path, past, validity_days=30, ca_validity_days=30)
    renew(tmp_path, new_ca=True, now=past)
    later = datetime.now(UTC) + timedelta(days=15)
    assert renew(tmp_path, new_ca=True, now=past).roster.authorities_pem.count("BEGIN") == 3
    renew(tmp_path, new_ca=True)
    done = renew(tmp_path, now=later)
    assert done.roster.authorities_pem.count("BEGIN") == 1
    assert verify_roster(newest_roster(tmp_path), done.root) == done.roster


def test_extensions_of_the_certificates(tmp_path):
    make_federation(tmp_path, coordinator={"hosts": ["fed.example.org", "10.0.0.1", "fd00::1"]})
    found = server_certificate(tmp_path)
    ca = x509.load_pem_x509_certificate((tmp_path / "ca" / "ca-1.pem").read_bytes())
    ca_basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert ca_basic.critical
    assert (ca_basic.value.ca, ca_basic.value.path_length) == (True, 0)
    for certificate, allowed in ((ca, "key_cert_sign"), (found, "digital_signature")):
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        said = {name.lstrip("_") for name, value in vars(usage.value).items() if value}
        assert (usage.critical, said) == (True, {allowed})
        # Machines whose clocks are up to an hour slow accept it all the same.
        assert certificate.not_valid_before_utc <= datetime.now(UTC) - timedelta(minutes=59)
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["fed.example.org", "10.0.0.1", "fd00::1"]
    purposes = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.1"]
    assert ca.public_key().curve.name == "secp256r1"


def test_a_ca_that_did_not_sign_itself_is_no_ca():
    key = certificates.new_tls_key()
    own = certificates.make_authority("north", key, datetime.now(UTC), 10)
    certificates.check_authority(own, "ca.pem")
    content = bytearray(own.public_bytes(serialization.Encoding.DER))
    content[-1] ^= 1  # of the signature
    with pytest.raises(ConfigError, match=r"ca\.pem is not the certificate of a federation's CA"):
        certificates.check_authority(x509.load_der_x509_certificate(bytes(content)), "ca.pem")


@pytest.mark.parametrize(
    ("basic", "signs"),
    [((False, None), True), ((True, None), True), ((True, 1), True), ((True, 0), False)],
)
def test_what_may_sign_more_or_less_than_a_federations_ca_is_none(basic, signs):
    key, now = certificates.new_tls_key(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    made = (
        certificates._builder(name, name, key.public_key(), now, 10)
        .add_extension(x509.BasicConstraints(*basic), critical=True)
        .add_extension(certificates._usage(key_cert_sign=signs), critical=True)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(ConfigError, match="not the certificate of a federation's CA"):
        certificates.check_authority(made, "ca.pem")


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl command is not installed")
def test_openssl_agrees(tmp_path):
    make_federation(tmp_path)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    command += ["-verify_ip", "127.0.0.1", "-CAfile", str(tmp_path / "ca" / "ca-1.pem")]
    done = subprocess.run(
        [*command, str(tmp_path / "server.pem")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("OK"), done.stderr


def test_flower_reads_the_node_key(tmp_path):
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

    make_federation(tmp_path)
    kit = read_kit(tmp_path / "kits" / "anne", "site")
    public = load_ssh_private_key(kit.node_key.read_bytes(), None).public_key()
    assert uses_nist_ec_curve(public)
    assert kit.roster.node_keys["anne"] == public_key_to_bytes(public)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sites": ["../anne"]}, "cannot name a site"),
        ({"sites": ["Anne"]}, "cannot name a site"),
        ({"sites": ["authority"]}, "cannot name a site"),
        ({"sites": ["anne", "anne"]}, "twice"),
        ({"coordinator": {"hosts": ["https://fed.example.org"]}}, "no host name"),
        ({"coordinator": {"hosts": ["fed.example.org:443"]}}, "no host name"),
        ({"coordinator": {"hosts": []}}, "coordinator.hosts"),
        ({"name": "North"}, "name"),
        ({"name": "a/../b"}, "name"),
        ({"min_cohort": 1}, "min_cohort"),
        ({"validity_days": 4000}, "longer than"),
        ({"min_cohrt": 3}, "did you mean 'min_cohort'"),
    ],
)
def test_wrong_files_say_what_is_wrong(keys, words):
    with pytest.raises(ConfigError, match=words):
        federation_config(**keys)


def test_two_federations_do_not_mix(tmp_path):
    make_federation(tmp_path)
    with pytest.raises(ConfigError, match="holds the federation 'north', not 'south'"):
        make_federation(tmp_path, name="south")
    with pytest.raises(ConfigError, match="no operator's folder"):
        inspect(tmp_path / "kits")


def test_damage_is_named(tmp_path):
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "anne"
    for name, words in [
        ("kit.json", "kit.json is damaged"),
        ("roster.json", "roster.json"),
        ("ca.pem", "not the CA"),
        ("node.key", "node key"),
        ("keys/signing.pem", "keys of 'anne'"),
    ]:
        shutil.copytree(kit, tmp_path / "copy")
        (tmp_path / "copy" / name).write_text("{}")
        with pytest.raises(ConfigError, match=words) as caught:
            read_kit(tmp_path / "copy", "site")
        assert caught.value.remedy
        (tmp_path / "copy" / name).unlink()
        with pytest.raises(ConfigError):
            read_kit(tmp_path / "copy", "site")
        shutil.rmtree(tmp_path / "copy")


def test_update_roster_mends_a_kit(tmp_path):
    make_federation(tmp_path)
    kit = tmp_path / "kits" / "anne"
    (kit / "roster.json").unlink()
    (kit / "ca.pem").write_text("")
    update_roster(kit, newest_roster(tmp_path))
    read_kit(kit, "site")


def test_wrong_role_and_unanswered_kits(tmp_path):
    make_federation(tmp_path / "fed")
    with pytest.raises(ConfigError, match="kit of the site 'anne', not of a coordinator"):
        read_kit(tmp_path / "fed" / "kits" / "anne", "coordinator")
    enroll(tmp_path / "kit", "site", "carl")
    with pytest.raises(ConfigError, match="fedllm client accept ANSWER"):
        read_kit(tmp_path / "kit", "site")
    with pytest.raises(ConfigError, match="has not answered"):
        update_roster(tmp_path / "kit", newest_roster(tmp_path / "fed"))
    with pytest.raises(ConfigError, match="no kit"):
        read_kit(tmp_path / "nowhere", "site")


def test_tls_between_kits(tmp_path):
    make_federation(tmp_path)
    server = read_kit(tmp_path / "kits" / "coordinator", "coordinator")
    files = (server.server_certificate, server.server_key)
    site = read_kit(tmp_path / "kits" / "anne", "site")
    accepted = handshake(*files, site.ca_certificate, "127.0.0.1")
    assert accepted is None
    assert "IP address mismatch" in str(handshake(*files, site.ca_certificate, "127.0.0.2"))
    make_federation(tmp_path / "other")
    foreign = read_kit(tmp_path / "other" / "kits" / "anne", "site")
    assert "unable to get local issuer" in str(
        handshake(*files, foreign.ca_certificate, "127.0.0.1")
    )


def test_addresses():
    assert split_address("fed.example.org:443") == ("fed.example.org", 443)
    assert split_address("[fd00::1]:9092") == ("fd00::1", 9092)
    assert federation_config(coordinator={"hosts": ["fd00::1"]}).address == "[fd00::1]:9092"


def test_names_of_hosts_have_253_letters_at_most():
    host = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert federation_config(coordinator={"hosts": [host]}).address == f"{host}:9092"
    for wrong in (f"{host}d", f"{'a' * 64}.org", "a..org", "-a.org", "a_b.org", "a.org:1", ""):
        with pytest.raises(ConfigError, match="is no host name and no address"):
            federation_config(coordinator={"hosts": [wrong]})


def test_fingerprints_as_people_type_them():
    assert same_fingerprint("abcd efgh", "ABCD-EFGH")
    assert not same_fingerprint("ABCD", "ABCD-EFGH")
    assert not same_fingerprint("", "")


def test_what_people_read_to_each_other_is_the_same_in_every_version():
    # 120 bits of SHA-256 in base32 (RFC 4648), six groups of four; of nothing, by FIPS 180-4.
    assert spoken_fingerprint(b"") == "4OYM-IQUY-7QOB-JGX3-6TEJ-S35Z"
    assert root_fingerprint(bytes(range(32))) == "ZR4M-GXZT-PXAZ-FIA5-H3O6-IAII"
    request = Request("site", "anne", bytes(range(32)), b"node")
    assert request.fingerprint == "ZSN2-VPI5-HHXB-TMIJ-Z3TE-S6GA"
    assert replace(request, name="anna").fingerprint != request.fingerprint


def test_requests_and_answers_of_nonsense_are_peer_errors():
    for text in ("", "[]", "{}", '{"format": 1}', "[" * 100000, '{"request": {}, "proofs": []}'):
        for read in (read_request, read_answer):
            with pytest.raises(PeerError, match="damaged"):
                read(text)


def test_provision_leaves_a_lost_roster_whole(tmp_path):
    config = federation_config()
    first = provision(config, tmp_path).roster
    (tmp_path / "roster.json").unlink()
    assert provision(config, tmp_path).roster.version == first.version + 1


def test_a_party_is_told_what_became_of_its_key(tmp_path):
    for role, name in (("site", "anne"), ("authority", "authority")):
        identity = Identity.generate(name)
        own, who = identity.public_bytes(), "site 'anne'" if role == "site" else "authority"
        keys = {"anne": own} if role == "site" else {}
        listed = Roster(own if role == "authority" else b"", keys, version=7)
        check_membership(listed, role, name, identity, tmp_path)
        for roster, message, remedy in (
            (
                replace(listed, revoked=(b"another", own)),
                f"the operator revoked the {who}: its key is not accepted any more",
                "ask the operator why; enroll again with a new kit if the key was lost",
            ),
            (
                Roster(b"", {"bob": own}, version=7, revoked=(b"another",)),
                f"the roster (version 7) does not list the {who} with the key of {tmp_path}",
                "ask the operator to sign this kit's request, and install the answer",
            ),
        ):
            with pytest.raises(ConfigError) as refused:
                check_membership(roster, role, name, identity, tmp_path)
            assert (refused.value.message, refused.value.remedy) == (message, remedy)
