"""Somebody tries to join as another, to bring back an old roster, or to pose as the coordinator."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.kits import make_federation
from support.tls import handshake

from fedllm.errors import ConfigError, FedllmError, PeerError, RefusedError
from fedllm.identity import certificates, enrolment, kits
from fedllm.identity.enrolment import accept, enroll, read_answer, read_request
from fedllm.identity.keys import Identity
from fedllm.identity.kits import read_kit, update_roster
from fedllm.identity.operator_keys import load_root
from fedllm.identity.provisioning import renew, revoke, sign
from fedllm.identity.roster import sign_roster


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    make_federation(tmp_path / "fed")
    return tmp_path / "fed"


@pytest.fixture
def site(federation: Path, tmp_path: Path) -> Path:
    """A site's kit that left the operator's machine."""
    return Path(shutil.move(federation / "kits" / "anne", tmp_path / "anne"))


def roster_of(federation: Path) -> str:
    return (federation / "roster.json").read_text()


def forged(folder: Path, root: Identity, **changes: object) -> str:
    """The federation's newest roster with changes, signed by somebody."""
    from dataclasses import replace

    from fedllm.identity.roster import Roster

    plain = json.loads(roster_of(folder))["roster"]
    return sign_roster(replace(Roster.from_json(json.dumps(plain)), **changes), root)


# Forged and old rosters


def test_a_roster_of_another_root_is_refused(federation, site):
    before = (site / "roster.json").read_bytes()
    eve = Identity.generate("root")
    with pytest.raises(PeerError, match="signature of 'the federation's root key'"):
        update_roster(site, forged(federation, eve, version=9, coordinator=eve.public_bytes()))
    assert (site / "roster.json").read_bytes() == before
    # Put straight into the folder, it is found at the next start.
    (site / "roster.json").write_text(forged(federation, eve, version=9))
    with pytest.raises(ConfigError, match="signature"):
        read_kit(site, "site")


def test_one_changed_letter_in_a_roster_is_noticed(federation, site):
    text = roster_of(federation).replace("127.0.0.1:9092", "127.0.0.9:9092")
    with pytest.raises(PeerError, match="signature"):
        update_roster(site, text)


def test_an_old_roster_cannot_bring_back_a_revoked_site(federation, site):
    old = roster_of(federation)
    revoke(federation, "bob")
    update_roster(site, roster_of(federation))
    with pytest.raises(RefusedError, match="has version 1, and this kit has seen version 2"):
        update_roster(site, old)
    with pytest.raises(RefusedError, match="seen version 2"):
        read_kit(site, "site").install_roster(old)
    (site / "roster.json").write_text(old)
    with pytest.raises(ConfigError, match="older roster back"):
        read_kit(site, "site")
    update_roster(site, roster_of(federation))
    assert "bob" not in read_kit(site, "site").roster.sites


def test_a_roster_that_was_put_back_does_not_make_the_kit_forget_a_newer_one(federation, site):
    old, root = roster_of(federation), load_root(federation)
    update_roster(site, forged(federation, root, version=3))
    (site / "roster.json").write_text(old)
    with pytest.raises(RefusedError, match="has version 2, and this kit has seen version 3"):
        update_roster(site, forged(federation, root, version=2))


def test_a_new_roster_that_is_out_of_date_is_refused_with_what_to_do(federation, site):
    root = load_root(federation)
    past = forged(federation, root, version=9, expires=datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(RefusedError) as caught:
        update_roster(site, past)
    assert caught.value.message.startswith("the new roster expired at ")
    assert caught.value.remedy.startswith("ask the operator for a new one")


def test_two_rosters_of_one_version_are_noticed(federation, site):
    root = load_root(federation)
    with pytest.raises(PeerError, match="two different rosters") as caught:
        update_roster(site, forged(federation, root, address="evil:1"))
    assert caught.value.remedy.startswith("stop, and ask the operator")


def test_a_newer_roster_cannot_lift_a_revocation(federation, site):
    """The operator's folder was restored from a backup that knows nothing of the revocation."""
    backup = federation.with_name("backup")
    shutil.copytree(federation, backup)
    revoke(federation, "bob")
    update_roster(site, roster_of(federation))
    for _ in range(3):
        renew(backup)
    with pytest.raises(RefusedError, match="no longer revokes a key that version 2 revoked"):
        update_roster(site, roster_of(backup))
    assert "bob" not in read_kit(site, "site").roster.sites
    revoke(backup, "bob")
    update_roster(site, roster_of(backup))


def test_of_two_rosters_at_once_the_newer_one_stays(federation, site, monkeypatch):
    """The node fetches version 2 while a person installs version 3, which revokes bob."""
    renew(federation)
    second = roster_of(federation)
    revoke(federation, "bob")
    third, read = roster_of(federation), kits.read_description
    hand = threading.Thread(target=update_roster, args=(site, third))

    def slow(folder):
        found = read(folder)
        if not hand.is_alive() and hand.ident is None:
            hand.start()
            # Long enough for the other one, were there no lock.
            hand.join(timeout=1.0)
        return found

    with kits.locked(site):
        description = read(site)
        monkeypatch.setattr(kits, "read_description", slow)
        kits.read_description(site)
        kits.install_roster(site, description, second, Identity.load("anne", site / "keys"))
    hand.join()
    monkeypatch.undo()
    assert read_kit(site, "site").roster.version == 3


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_installation_that_a_crash_cut_off_is_finished(federation, site, monkeypatch, lost):
    """A new CA and a new version; the machine dies after each of the three files."""
    renew(federation, new_ca=True)
    writes, write = [], kits.write_bytes
    describe = kits.write_description

    def dying(do):
        def step(*arguments, **options):
            if len(writes) + 1 >= lost:
                raise KeyboardInterrupt
            writes.append(arguments[0])
            return do(*arguments, **options)

        return step

    monkeypatch.setattr(kits, "write_bytes", dying(write))
    monkeypatch.setattr(kits, "write_description", dying(describe))
    with pytest.raises(KeyboardInterrupt):
        update_roster(site, roster_of(federation))
    monkeypatch.undo()
    assert read_kit(site, "site").roster.version == (1 if lost == 1 else 2)
    update_roster(site, roster_of(federation))
    kit = read_kit(site, "site")
    assert kit.roster.version == json.loads((site / "kit.json").read_text())["roster_version"] == 2


def test_a_roster_held_back_expires(site, monkeypatch):
    later = datetime.now(UTC) + timedelta(days=398)
    monkeypatch.setattr(kits, "current_time", lambda: later)
    with pytest.raises(ConfigError, match="expired") as caught:
        read_kit(site, "site")
    assert "renew" in caught.value.remedy


def test_an_expired_roster_is_not_installed(tmp_path):
    long_ago = datetime.now(UTC) - timedelta(days=500)
    done = make_federation(tmp_path, long_ago)
    assert all("expired" in note for note in done.notes)
    with pytest.raises(ConfigError, match="has not answered"):
        read_kit(tmp_path / "kits" / "anne", "site")


def test_a_roster_of_another_federation_is_refused(federation, site):
    root = load_root(federation)
    with pytest.raises(RefusedError, match="of the federation 'south'"):
        update_roster(site, forged(federation, root, version=9, federation="south"))


# Joining as somebody else


def test_another_cannot_take_a_name(federation, tmp_path):
    request = enroll(tmp_path / "eve", "site", "anne")
    with pytest.raises(RefusedError, match="already in the federation with other keys"):
        sign(federation, request)
    assert json.loads(roster_of(federation))["roster"]["version"] == 1


def test_a_request_needs_the_keys_it_names(federation, tmp_path):
    enroll(tmp_path / "eve", "site", "eve")
    mine = json.loads((tmp_path / "eve" / "request.json").read_text())
    theirs = json.loads((federation / "kits" / "bob" / "request.json").read_text())
    for key, words in (("signing_key", "signature of 'eve'"), ("node_key", "signature of 'eve'")):
        value = json.loads(json.dumps(mine))
        value["request"][key] = theirs["request"][key]
        with pytest.raises(PeerError, match=words):
            read_request(json.dumps(value))


def test_a_stolen_node_key_needs_its_own_proof(federation, tmp_path):
    """The attacker signs rightly with its own signing key, over somebody's node key."""
    identity, own = Identity.generate("eve"), ec.generate_private_key(ec.SECP384R1())
    theirs = read_request((federation / "kits" / "bob" / "request.json").read_text()).node_key
    request = enrolment.Request("site", "eve", identity.public_bytes(), theirs)
    with pytest.raises(PeerError, match="does not prove that it holds its node key"):
        read_request(enrolment._sign_request(request, identity, own))
    with pytest.raises(PeerError, match="does not prove that it holds its node key"):
        read_request(enrolment._sign_request(request, identity, None))


def test_a_weak_or_missing_node_key_is_refused():
    identity, weak = Identity.generate("eve"), ec.generate_private_key(ec.SECP256R1())
    pem = weak.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for key, signer in ((pem, weak), (None, None), (b"-----BEGIN PUBLIC KEY-----", weak)):
        request = enrolment.Request("site", "eve", identity.public_bytes(), key)
        with pytest.raises(PeerError, match="node key"):
            read_request(enrolment._sign_request(request, identity, signer))


def test_a_coordinator_must_prove_its_tls_key():
    identity = Identity.generate("coordinator")
    pem = certificates.make_signing_request(certificates.new_tls_key(), "coordinator").decode()
    lines = pem.splitlines()
    broken = lines[-2][:-8] + ("A" if lines[-2][-8] != "A" else "B") + lines[-2][-7:]
    damaged = "\n".join([*lines[:-2], broken, lines[-1], ""]).encode()
    for content in (None, b"no request", damaged):
        request = enrolment.Request(
            "coordinator", "coordinator", identity.public_bytes(), None, content
        )
        with pytest.raises(PeerError, match="TLS key"):
            read_request(enrolment._sign_request(request, identity, None))


def test_a_copied_kit_cannot_join_under_another_name(federation, tmp_path):
    bob = federation / "kits" / "bob"
    identity = Identity.load("mallory", bob / "keys")
    node = serialization.load_ssh_private_key((bob / "node.key").read_bytes(), None)
    known = read_request((bob / "request.json").read_text())
    request = enrolment.Request("site", "mallory", known.signing_key, known.node_key)
    text = enrolment._sign_request(request, identity, node)
    with pytest.raises(RefusedError, match="carries a key of 'bob'"):
        sign(federation, read_request(text))


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/x", "a/b", "..", "anne\n", "authority", "con.trol"]
)
def test_names_that_would_leave_the_folder(name, federation, tmp_path):
    if name == "con.trol":
        # What people may write, and files are not called.
        assert enroll(tmp_path / "named", "site", name).name == "con-trol"
    else:
        with pytest.raises(ConfigError, match="cannot name a site"):
            enroll(tmp_path / "kit", "site", name)
    assert not (tmp_path / "kit").exists()
    identity, node = Identity.generate("x"), ec.generate_private_key(ec.SECP384R1())
    pem = node.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    request = enrolment.Request("site", name, identity.public_bytes(), pem)
    with pytest.raises(PeerError, match="cannot name a site"):
        read_request(enrolment._sign_request(request, identity, node))


def test_a_site_cannot_ask_for_another_role(tmp_path):
    enroll(tmp_path / "kit", "site", "eve")
    value = json.loads((tmp_path / "kit" / "request.json").read_text())
    for role, words in (("authority", "cannot name"), ("root", "damaged"), ([], "damaged")):
        value["request"]["role"] = role
        with pytest.raises(PeerError, match=words):
            read_request(json.dumps(value))


# Answers that are not the operator's


def test_an_answer_pins_the_root_that_was_read_out(federation, tmp_path):
    """A false operator answers first: the fingerprint is not the one of the phone call."""
    request = enroll(tmp_path / "kit", "site", "carl")
    make_federation(tmp_path / "false")
    _, false = sign(tmp_path / "false", request)
    _, true = sign(federation, request)
    theirs, ours = read_answer(false.read_text()), read_answer(true.read_text())
    assert not enrolment.same_fingerprint(theirs.fingerprint, ours.fingerprint)
    accept(tmp_path / "kit", ours)
    with pytest.raises(RefusedError, match="another root key"):
        accept(tmp_path / "kit", theirs)


def test_an_answer_cannot_name_a_root_that_did_not_sign(federation, tmp_path):
    _, answer = sign(federation, enroll(tmp_path / "kit", "site", "carl"))
    value = json.loads(answer.read_text())
    value["root"] = Identity.generate("root").public_bytes().hex()
    with pytest.raises(PeerError, match="signature"):
        read_answer(json.dumps(value))


def test_an_answer_for_another_party_is_refused(federation, tmp_path):
    enroll(tmp_path / "dora", "site", "dora")
    _, answer = sign(federation, enroll(tmp_path / "carl", "site", "carl"))
    with pytest.raises(RefusedError, match="does not list the site 'dora'"):
        accept(tmp_path / "dora", read_answer(answer.read_text()))
    with pytest.raises(ConfigError, match="has not answered"):
        read_kit(tmp_path / "dora", "site")


def test_a_certificate_for_another_coordinator_is_refused(federation, tmp_path):
    value = json.loads((federation / "kits" / "coordinator" / "kit.json").read_text())
    make_federation(tmp_path / "other")
    certificate = (tmp_path / "other" / "server.pem").read_text()
    answer = enrolment.Answer(
        bytes.fromhex(value["root"]),
        read_kit(federation / "kits" / "coordinator", "coordinator").roster,
        roster_of(federation),
        certificate,
    )
    with pytest.raises(RefusedError, match="made for another kit"):
        accept(federation / "kits" / "coordinator", answer)


# The kit on disk


@pytest.mark.parametrize("name", [".", "keys", "keys/signing.pem", "keys/secret.bin", "node.key"])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o020])
def test_a_kit_that_others_can_read_is_refused(site, name, mode):
    path = site / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(ConfigError, match="other users of this machine") as caught:
        read_kit(site, "site")
    assert f"chmod -R go-rwx {site}" in caught.value.remedy
    os.system(f"chmod -R go-rwx {site}")
    read_kit(site, "site")


def test_the_keys_of_another_site_do_not_fit(federation, site):
    for name in ("keys/signing.pem", "keys/secret.bin"):
        shutil.copy(federation / "kits" / "bob" / name, site / name)
    with pytest.raises(ConfigError, match="does not list the site 'anne'"):
        read_kit(site, "site")


def test_the_node_key_of_another_site_does_not_fit(federation, site):
    shutil.copy(federation / "kits" / "bob" / "node.key", site / "node.key")
    with pytest.raises(ConfigError, match="not the node key of 'anne'"):
        read_kit(site, "site")


def test_messages_hold_no_key(federation, site):
    secret = (site / "keys" / "secret.bin").read_bytes().hex()
    pem = (site / "keys" / "signing.pem").read_text().splitlines()[1]
    (site / "roster.json").write_text("{}")
    with pytest.raises(FedllmError) as caught:
        read_kit(site, "site")
    assert secret not in str(caught.value)
    assert pem not in str(caught.value)
    assert secret not in repr(read_kit(federation / "kits" / "bob", "site"))


# Posing as the coordinator


def test_a_ca_that_somebody_put_there_is_refused(federation, site, tmp_path):
    make_federation(tmp_path / "evil")
    evil = (tmp_path / "evil" / "ca" / "ca-1.pem").read_text()
    good = (site / "ca.pem").read_text()
    for content in (evil, good + evil, ""):
        (site / "ca.pem").write_text(content)
        with pytest.raises(ConfigError, match="not the CA that the operator signed"):
            read_kit(site, "site")


def test_a_roster_cannot_make_a_server_the_ca(federation, site):
    """Even a roster that the root key signed is refused when its CA is no CA."""
    root = load_root(federation)
    leaf = (federation / "server.pem").read_text()
    with pytest.raises(RefusedError, match="not the certificate of a federation's CA"):
        update_roster(site, forged(federation, root, version=9, authorities_pem=leaf))
    assert read_kit(site, "site").roster.version == 1


def impostor(federation: Path, folder: Path, issuer: str, days: int = 1) -> Path:
    """A coordinator's kit with a certificate that somebody else issued."""
    kit = Path(shutil.copytree(federation / "kits" / "coordinator", folder))
    now = datetime.now(UTC)
    if issuer == "own CA":
        key = certificates.new_tls_key()
        ca = certificates.make_authority("north", key, now, 10)
    elif issuer == "server":
        key = certificates.read_private_key(kit / "server.key")
        ca = certificates.read_certificates((kit / "server.pem").read_bytes(), "x")[0]
    else:
        key = certificates.read_private_key(federation / "ca" / "ca-1.key")
        ca = certificates.read_certificates((federation / "ca" / "ca-1.pem").read_text(), "x")[0]
    own = certificates.new_tls_key()
    made = certificates.make_server_certificate(
        "north", own.public_key(), ["127.0.0.1"], (ca, key), now - timedelta(days=2), days
    )
    chain = certificates.pem(made) + (certificates.pem(ca) if issuer == "server" else "")
    (kit / "server.pem").write_text(chain)
    (kit / "server.key").write_bytes(certificates.private_pem(own))
    return kit


@pytest.mark.parametrize(
    ("issuer", "days", "words"),
    [
        ("own CA", 10, "unable to get local issuer"),
        ("server", 10, "invalid CA certificate|unable to get|path length|not a CA"),
        ("CA", 1, "expired"),
        ("CA", 10, None),
    ],
)
def test_who_can_pose_as_the_coordinator(federation, site, tmp_path, issuer, days, words):
    """With a CA of one's own, the server's key as a CA, an expired certificate: nobody."""
    kit = impostor(federation, tmp_path / "impostor", issuer, days)
    ca = read_kit(site, "site").ca_certificate
    refusal = handshake(kit / "server.pem", kit / "server.key", ca, "127.0.0.1")
    if words is None:
        assert refusal is None
        return
    assert isinstance(refusal, ssl.SSLCertVerificationError)
    import re

    assert re.search(words, str(refusal))
    with pytest.raises(ConfigError):
        read_kit(kit, "coordinator")


def test_an_expired_coordinator_does_not_start(federation, tmp_path, monkeypatch):
    kit = federation / "kits" / "coordinator"
    later = datetime.now(UTC) + timedelta(days=398)
    monkeypatch.setattr(certificates, "current_time", lambda: later)
    with pytest.raises(ConfigError, match=r"server\.pem expired") as caught:
        read_kit(kit, "coordinator")
    assert "renew" in caught.value.remedy
    earlier = datetime.now(UTC) - timedelta(days=2)
    monkeypatch.setattr(certificates, "current_time", lambda: earlier)
    with pytest.raises(ConfigError, match="valid only from") as caught:
        read_kit(kit, "coordinator")
    assert "clock" in caught.value.remedy
    monkeypatch.undo()
    renew(federation)
    read_kit(kit, "coordinator")


# The operator's folder


def test_an_older_list_of_parties_does_not_forget_a_revocation(federation):
    """federation.json came back from a backup; the rest of the folder did not."""
    old = (federation / "federation.json").read_bytes()
    revoke(federation, "bob")
    (federation / "federation.json").write_bytes(old)
    for step in (renew, lambda folder: revoke(folder, "anne"), make_federation):
        with pytest.raises(ConfigError, match="different backups"):
            step(federation)
    (federation / "federation.json").unlink()
    with pytest.raises(ConfigError, match="lost its list of parties"):
        make_federation(federation)
    assert "bob" not in json.loads(roster_of(federation))["roster"]["sites"]


def test_a_revoked_node_key_stays_revoked_under_a_new_signing_key(federation, tmp_path):
    """A site that was shut out signs a new request over the node key that the coordinator bans."""
    bob = federation / "kits" / "bob"
    node = serialization.load_ssh_private_key((bob / "node.key").read_bytes(), None)
    known = read_request((bob / "request.json").read_text())
    revoke(federation, "bob")
    identity = Identity.generate("bob")
    request = enrolment.Request("site", "bob", identity.public_bytes(), known.node_key)
    text = enrolment._sign_request(request, identity, node)
    with pytest.raises(RefusedError, match="a key in the request of 'bob' was revoked"):
        sign(federation, read_request(text))


def test_the_operators_folder_is_for_the_operator_alone(federation):
    federation.chmod(0o750)
    for step in (renew, lambda folder: revoke(folder, "anne"), make_federation):
        with pytest.raises(ConfigError, match="other users"):
            step(federation)
