"""Rosters, requests, certificates, keys and kits: success or a FedllmError, whatever comes."""

from __future__ import annotations

import json
import shutil

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from support import damage
from support.damage import Target, at, check, signed_anew, text

from fedllm.errors import PeerError
from fedllm.federation.transport.node import read_node_key
from fedllm.identity import certificates, enrolment, operator_keys
from fedllm.identity import roster as rosters
from fedllm.identity.enrolment import make_answer, read_answer, read_request
from fedllm.identity.federation_state import load_state
from fedllm.identity.keys import Identity
from fedllm.identity.kit_folder import read_description
from fedllm.identity.kits import node_public_key, read_kit
from fedllm.identity.provisioning import inspect
from fedllm.identity.roster import Roster, sign_roster, verify_roster


@pytest.fixture(scope="module")
def root(place):
    return operator_keys.load_root(place / "federation")


def test_rosters(place, root):
    signed = (place / "federation" / "roster.json").read_bytes()
    plain = json.loads(signed)["roster"]

    def sign(value):
        signature = root.sign(rosters._signed_bytes(value)).hex()
        document = {"format": "fedllm.roster.v1", "signature": signature, "roster": value}
        return json.dumps(document).encode()

    def read(content):
        return sign_roster(verify_roster(content, root.public_bytes()), root)

    check(
        Target("roster", signed, read, damage.in_json),
        Target(
            "roster signed anew",
            json.dumps(plain).encode(),
            read,
            damage.in_json,
            signed_anew(sign),
        ),
        Target(
            "unsigned roster",
            json.dumps(plain).encode(),
            lambda content: Roster.from_json(text(content)).to_json(),
            damage.in_json,
        ),
    )


def test_requests(place):
    kit = place / "new"
    carl = Identity.load("carl", kit / "keys")
    node = read_node_key(kit / "node.key")
    request = (kit / "request.json").read_bytes()

    def sign(value):
        message = enrolment._canonical(value)
        proofs = {
            "signing_key": carl.sign(message).hex(),
            "node_key": node.sign(message, ec.ECDSA(hashes.SHA384())).hex(),
        }
        document = {"format": "fedllm.request.v1", "request": value, "proofs": proofs}
        return json.dumps(document).encode()

    def read(content):
        return read_request(text(content)).fingerprint

    plain = json.dumps(json.loads(request)["request"]).encode()
    server = (place / "federation" / "kits" / "coordinator" / "request.json").read_bytes()
    check(
        Target("request", request, read, damage.in_json),
        Target("request signed anew", plain, read, damage.in_json, signed_anew(sign)),
        Target("request of a server", server, read, damage.in_json),
    )


def test_node_keys_and_signing_requests_that_are_damaged_inside(place):
    kit = place / "federation" / "kits" / "coordinator"
    value = json.loads((kit / "request.json").read_bytes())["request"]
    key = Identity.load("coordinator", kit / "keys")

    def request(plain):
        proofs = {"signing_key": key.sign(enrolment._canonical(plain)).hex()}
        return json.dumps({"format": "fedllm.request.v1", "request": plain, "proofs": proofs})

    def read(content):
        return read_request(request(value | {"server_request": content.decode()}))

    node = node_public_key(place / "new" / "node.key")
    der = damage.of_pem(value["server_request"].encode())
    # One mutant in two thousand: the version, which is 0.
    with pytest.raises(PeerError, match="does not prove"):
        read(damage.as_pem("CERTIFICATE REQUEST")(der.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)))
    check(
        Target(
            "signing request",
            der,
            read,
            damage.in_bytes,
            damage.as_pem("CERTIFICATE REQUEST"),
        ),
        Target(
            "node key in a roster",
            damage.of_pem(node),
            rosters.is_node_key,
            damage.in_bytes,
            damage.as_pem("PUBLIC KEY"),
        ),
    )


def test_answers(place, root):
    roster = verify_roster((place / "federation" / "roster.json").read_bytes(), root.public_bytes())
    answer = make_answer(roster, root, "x").encode()
    check(
        Target("answer", answer, lambda content: read_answer(text(content)), damage.in_json),
    )


def test_certificates(place, tmp_path):
    kit = place / "federation" / "kits" / "coordinator"
    authority = certificates.read_certificates((kit / "ca.pem").read_bytes(), "ca")
    key = certificates.read_private_key(kit / "server.key")

    def read_authority(content):
        for found in certificates.read_certificates(content, "ca"):
            certificates.check_authority(found, "ca")
            certificates.check_period(found, "ca")

    def read_server(content):
        found = certificates.read_certificates(content, "server")[0]
        certificates.check_period(found, "server")
        certificates.names_exactly(found, ["127.0.0.1"])
        certificates.check_server_certificate(found, key, authority, "127.0.0.1", "server")

    for name, read in (("ca", read_authority), ("server", read_server)):
        pem = (kit / f"{name}.pem").read_bytes()
        dress = damage.as_pem("CERTIFICATE")
        check(
            Target(f"{name} certificate", pem, read, damage.in_bytes),
            Target(f"{name} inside", damage.of_pem(pem), read, damage.in_bytes, dress),
        )


def test_private_keys(place, tmp_path):
    kits = place / "federation" / "kits"
    path = tmp_path / "key"
    openssh, pkcs8 = damage.as_pem("OPENSSH PRIVATE KEY"), damage.as_pem("PRIVATE KEY")
    for name, file, dress, read in (
        ("node key", kits / "anne" / "node.key", openssh, lambda: node_public_key(path)),
        ("node's own key", kits / "anne" / "node.key", openssh, lambda: read_node_key(path)),
        (
            "TLS key",
            kits / "coordinator" / "server.key",
            pkcs8,
            lambda: certificates.read_private_key(path),
        ),
    ):
        pem = file.read_bytes()
        check(
            Target(name, pem, at(path, read), damage.in_bytes),
            Target(f"{name} inside", damage.of_pem(pem), at(path, read), damage.in_bytes, dress),
        )


def test_keys_of_an_identity(place, tmp_path):
    shutil.copytree(place / "new" / "keys", tmp_path / "keys")

    def read():
        return Identity.load("carl", tmp_path / "keys").sign(b"x")

    pem = (tmp_path / "keys" / "signing.pem").read_bytes()
    put = at(tmp_path / "keys" / "signing.pem", read)
    check(
        Target("signing key", pem, put, damage.in_bytes),
        Target(
            "signing key inside",
            damage.of_pem(pem),
            put,
            damage.in_bytes,
            damage.as_pem("PRIVATE KEY"),
        ),
    )


def test_keys_under_a_passphrase(tmp_path):
    passphrase = b"five words at random here"
    operator_keys.make_root(tmp_path, passphrase)
    path = tmp_path / "root" / "signing.pem"
    pem = path.read_bytes()
    put = at(path, lambda: operator_keys.load_root(tmp_path, passphrase))
    check(
        Target("root key", pem, put, damage.in_bytes),
        Target(
            "root key inside",
            damage.of_pem(pem),
            put,
            damage.in_bytes,
            damage.as_pem("ENCRYPTED PRIVATE KEY"),
        ),
        share=0.3,
    )


def test_kits(place, tmp_path):
    kits = shutil.copytree(place / "federation" / "kits", tmp_path / "kits")
    for party, role, names in (
        ("anne", "site", ("kit.json", "roster.json", "ca.pem", "node.key")),
        ("coordinator", "coordinator", ("server.pem", "server.key")),
    ):
        for name in names:
            path = kits / party / name
            sample = path.read_bytes()
            how = damage.in_json if name.endswith("json") else damage.in_bytes
            put = at(path, lambda party=party, role=role: read_kit(kits / party, role))
            check(Target(f"{name} of a kit", sample, put, how), share=0.2)
            path.write_bytes(sample)
    path = kits / "anne" / "kit.json"
    put = at(path, lambda: read_description(kits / "anne"))
    check(Target("kit.json", path.read_bytes(), put, damage.in_json))


def test_the_operators_folder(place, tmp_path):
    folder = shutil.copytree(place / "federation", tmp_path / "federation")
    path = folder / "federation.json"
    sample = path.read_bytes()
    check(
        Target("federation.json", sample, at(path, lambda: load_state(folder)), damage.in_json),
    )
    path.write_bytes(sample)
    for name in ("federation.json", "roster.json"):
        path = folder / name
        sample = path.read_bytes()
        put = at(path, lambda: inspect(folder))
        check(Target(f"{name} inspected", sample, put, damage.in_json), share=0.3)
        path.write_bytes(sample)
