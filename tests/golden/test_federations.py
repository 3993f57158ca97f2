"""A kept federation is read for ever: kits, rosters, requests, answers, the operator's folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from golden.kept import COHORT, PASSPHRASE, V1, V2, damaged, identity, private_copy, read
from support.kits import federation_config

from fedllm.errors import FedllmError, PeerError
from fedllm.federation.site.carrying import owed_keys
from fedllm.identity.enrolment import (
    _sign_request,
    accept,
    enroll,
    read_answer,
    read_request,
    root_fingerprint,
)
from fedllm.identity.keys import Identity
from fedllm.identity.kits import read_kit
from fedllm.identity.operator_keys import load_root
from fedllm.identity.provisioning import inspect, provision, revoke
from fedllm.identity.roster import Roster, sign_roster, verify_roster

FEDERATION, ENROLLED = V1 / "federation", V1 / "enrolled"
STATE = read(FEDERATION / "federation.json")
ROOT = bytes.fromhex(STATE["root"])
ROSTER = (FEDERATION / "roster.json").read_text()
NAMED = V2 / "federation"
NAMED_ROOT = bytes.fromhex(read(NAMED / "federation.json")["root"])
KNOWN = {
    "derived": "5265fe50a75914ef9d299b3175210f9f4b49f46802e4f1bcaf6ed80e7495059a",
    "mask key": "75e0fd6662bc0c84630081efbaed3c7f100f358a86468e5803c00b14c2905066",
    "signature": "ab7612630766bf30dc394bdb0279237dabb8725b0176d6dc87af2c1b1fe4d582"
    "c67c193ba26fc8ba4f0226d1c2fd69538740653063242d2f92e16af12f09a601",
    "spoken": "ZR4M-GXZT-PXAZ-FIA5-H3O6-IAII",
}
NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_keys_are_read_and_derive_what_they_derived(tmp_path):
    for name in (*COHORT, "authority"):
        found = Identity.load(name, V1 / "keys" / name)
        assert found.public_bytes() == identity(name).public_bytes()
        assert found.derive("x") == identity(name).derive("x")
    anne = Identity.load("anne", V1 / "keys" / "anne")
    anne.save(tmp_path)
    for name in ("signing.pem", "secret.bin"):
        assert (tmp_path / name).read_bytes() == (V1 / "keys" / "anne" / name).read_bytes()
    assert anne.derive("data set fingerprints").hex() == KNOWN["derived"]
    assert (
        anne.mask_key("run-1", "00" * 32).public_key().public_bytes_raw().hex() == KNOWN["mask key"]
    )
    assert anne.sign(b"a message").hex() == KNOWN["signature"]


@pytest.mark.parametrize("role", ["coordinator", "authority", "operator", "site"])
def test_a_kit_is_read(tmp_path, role):
    name = "anne" if role == "site" else role
    kit = read_kit(private_copy(FEDERATION / "kits" / name, tmp_path / "kit"), role)
    assert (kit.role, kit.name, kit.federation) == (role, name, "north")
    assert (kit.address, kit.root) == ("127.0.0.1:9092", ROOT)
    assert kit.roster == verify_roster(ROSTER, ROOT)
    assert kit.roster.key_of(role, name) == kit.identity.public_bytes()
    assert (kit.server_key is not None) == (role == "coordinator")
    assert (kit.node_key is not None) == (role in ("site", "authority"))


def test_the_signed_roster_says_what_it_said():
    roster = verify_roster(ROSTER, ROOT)
    kept = json.loads(ROSTER)["roster"]
    assert (roster.version, roster.federation, roster.min_cohort) == (5, "north", 2)
    assert roster.issued == datetime(2025, 1, 5, 3, 4, 5, tzinfo=UTC)
    assert roster.expires == datetime(2124, 12, 12, 3, 4, 5, tzinfo=UTC)
    assert set(roster.sites) == {"anne", "bob"}
    assert set(roster.node_keys) == {"anne", "bob", "authority"}
    assert roster.authorities_pem.count("BEGIN CERTIFICATE") == 2
    revoked = STATE["revoked"][0]
    assert [key.hex() for key in roster.revoked] == [revoked["signing_key"]]
    assert owed_keys("bob", roster) == {revoked["signing_key"]}
    members = {member["name"]: member for member in STATE["members"]}
    for name, key in (*roster.sites.items(), ("authority", roster.authority)):
        assert key.hex() == members[name]["signing_key"] == {**kept, **kept["sites"]}[name]
    # A roster without earlier keys of a site is written without a word of them.
    first = (ENROLLED / "first-roster.json").read_text()
    assert verify_roster(first, ROOT).version == 4


ROSTERS = [
    (FEDERATION, FEDERATION / "roster.json", ROOT),
    (FEDERATION, ENROLLED / "first-roster.json", ROOT),
    (NAMED, NAMED / "roster.json", NAMED_ROOT),
]


@pytest.mark.parametrize(("operator", "path", "root"), ROSTERS, ids=["v1", "first", "v2"])
def test_the_roster_is_signed_as_it_was_and_refused_when_a_byte_changed(operator, path, root):
    text = path.read_text()
    assert sign_roster(verify_roster(text, root), load_root(operator, PASSPHRASE)) == text
    for changed in damaged(path.read_bytes(), every=13):
        with pytest.raises(PeerError):
            verify_roster(changed, root)


def test_sites_have_names_for_people(tmp_path):
    text = (NAMED / "roster.json").read_text()
    roster = verify_roster(text, NAMED_ROOT)
    assert (roster.titles, roster.shown("bob")) == ({"anne": "Klinik Köln"}, "bob")
    assert roster.shown("anne") == "Klinik Köln (anne)"
    assert verify_roster(ROSTER, ROOT).titles == {}
    assert (
        read_kit(private_copy(NAMED / "kits" / "anne", tmp_path / "kit"), "site").roster == roster
    )
    found = inspect(NAMED)
    assert (found.roster, found.state.config.titles) == (roster, roster.titles)
    assert json.loads(found.state.model_dump_json()) == read(NAMED / "federation.json")


def test_an_unsigned_roster_of_a_simulation_is_read():
    text = (V1 / "round" / "roster.json").read_text()
    roster = Roster.from_json(text)
    assert roster.authority == identity("authority").public_bytes()
    assert roster.sites == {name: identity(name).public_bytes() for name in COHORT}
    assert (roster.version, roster.expires, roster.former) == (0, None, {})
    assert roster.to_json() == text


REQUESTS = sorted(V1.glob("**/request.json"))


@pytest.mark.parametrize("path", REQUESTS, ids=lambda p: str(p.parent.relative_to(V1)))
def test_a_request_is_read_and_refused_when_a_byte_changed(path):
    request = read_request(path.read_text())
    description = read(path.parent / "kit.json")
    assert (request.role, request.name) == (description["role"], description["name"])
    keys = Identity.load(request.name, path.parent / "keys")
    assert request.signing_key == keys.public_bytes()
    # The proof of the node key is never the same twice; that of the signing key is.
    again = json.loads(_sign_request(request, keys, None))
    kept = read(path)
    assert {**again, "proofs": 0} == {**kept, "proofs": 0}
    assert again["proofs"]["signing_key"] == kept["proofs"]["signing_key"]
    for changed in damaged(path.read_bytes(), every=11):
        with pytest.raises(PeerError):
            read_request(changed.decode())


def test_what_people_read_to_each_other_stays_the_same():
    assert root_fingerprint(bytes(range(32))) == KNOWN["spoken"]
    member = next(m for m in STATE["members"] if m["name"] == "bob")
    request = read_request((ENROLLED / "bob-again" / "request.json").read_text())
    assert request.signing_key.hex() == member["signing_key"]
    assert len(request.fingerprint) == 29


def test_an_answer_is_installed_and_refused_when_a_byte_changed(tmp_path):
    content = (FEDERATION / "answers" / "bob.json").read_bytes()
    answer = read_answer(content.decode())
    assert (answer.root, answer.roster.version) == (ROOT, 4)
    kit = private_copy(ENROLLED / "bob-again", tmp_path / "kit")
    accept(kit, answer)
    assert read_kit(kit, "site").install_roster(ROSTER).roster.version == 5
    for changed in damaged(content, every=17):
        try:
            found = read_answer(changed.decode())
        except PeerError:
            continue
        # Whose root key it is, two people compare.
        assert found.fingerprint != answer.fingerprint


def test_a_kit_that_waits_for_its_answer_is_read(tmp_path):
    kit = private_copy(ENROLLED / "coordinator", tmp_path / "kit")
    assert enroll(kit, "coordinator", "coordinator").server_request is not None
    with pytest.raises(FedllmError, match="has not answered"):
        read_kit(kit, "coordinator")


def test_the_operators_folder_is_read_and_worked_with(tmp_path):
    folder = private_copy(FEDERATION, tmp_path / "federation")
    found = inspect(folder)
    assert (found.root, found.state.version) == (ROOT, 5)
    assert found.roster == verify_roster(ROSTER, ROOT)
    assert [(m.role, m.name, m.made_here) for m in found.state.members] == [
        ("operator", "operator", True),
        ("coordinator", "coordinator", True),
        ("authority", "authority", True),
        ("site", "anne", True),
        ("site", "bob", False),
    ]
    written = json.loads(found.state.model_dump_json())
    assert written == STATE | {"config": STATE["config"] | {"titles": {}}}
    days = {"validity_days": 36500, "ca_validity_days": 36500}
    config = federation_config(sites=["anne"], **days)
    assert provision(config, folder, NOW, PASSPHRASE).roster == found.roster
    done = revoke(folder, "anne", NOW, PASSPHRASE)
    assert done.roster is not None
    assert set(done.roster.sites) == {"bob"}
    assert load_root(folder, PASSPHRASE).public_bytes() == ROOT


@pytest.mark.parametrize("name", ["kit.json", "keys/signing.pem", "node.key", "roster.json"])
def test_a_damaged_kit_is_refused_in_words(tmp_path, name):
    kit = private_copy(FEDERATION / "kits" / "anne", tmp_path / "kit")
    content = (kit / name).read_bytes()
    for changed in damaged(content, every=max(1, len(content) // 12), start=7):
        (kit / name).write_bytes(changed)
        try:
            read_kit(kit, "site")
        except FedllmError:
            continue
        # The names of a federation in kit.json say what the signed roster says again.
        assert name == "kit.json"
