from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import PeerError
from fedllm.identity.keys import Identity
from fedllm.identity.roster import (
    ROLES,
    Roster,
    _signed_bytes,
    _to_plain,
    is_node_key,
    is_site_name,
    sign_roster,
    verify_roster,
)

ROOT = Identity.generate("root")
SIMPLE = Roster(b"a" * 32, {"anne": b"b" * 32})
KEYS = st.binary(min_size=32, max_size=32)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(is_site_name)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)


def node_key(curve: ec.EllipticCurve) -> bytes:
    return (
        ec.generate_private_key(curve)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


NODE_KEY, *MORE_KEYS = (node_key(ec.SECP384R1()) for _ in range(4))


@st.composite
def rosters(draw) -> Roster:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    keys = iter(draw(st.lists(KEYS, unique=True, min_size=9, max_size=9)))
    return Roster(
        authority=next(keys),
        sites={name: next(keys) for name in names},
        coordinator=draw(st.sampled_from([None, next(keys)])),
        operator=draw(st.sampled_from([None, next(keys)])),
        node_keys=dict(zip(names, (NODE_KEY, *MORE_KEYS), strict=False)),
        version=draw(st.integers(1, 10**6)),
        revoked=(next(keys),),
        federation="north",
        address="host:1",
        authorities_pem="-----BEGIN",
        min_cohort=draw(st.integers(1, 100)),
        issued=draw(TIMES),
        expires=draw(TIMES),
    )


@given(rosters())
def test_a_signed_roster_reads_back(roster):
    assert verify_roster(sign_roster(roster, ROOT), ROOT.public_bytes()) == roster
    assert Roster.from_json(roster.to_json()) == roster


@given(rosters(), st.data())
def test_no_field_can_be_changed(roster, data):
    value = json.loads(sign_roster(roster, ROOT))
    field = data.draw(st.sampled_from(sorted(value["roster"])))
    other = data.draw(
        st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just([]), st.just({}))
    )
    if other == value["roster"][field]:
        other = "changed"
    value["roster"][field] = other
    with pytest.raises(PeerError):
        verify_roster(json.dumps(value), ROOT.public_bytes())


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_hostile_texts_are_peer_errors(value):
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(PeerError):
        verify_roster(text, ROOT.public_bytes())
    with pytest.raises(PeerError):
        verify_roster(json.dumps({"format": value, "roster": {"a": value}, "signature": ""}), b"k")


def valid() -> Roster:
    return Roster(
        b"a" * 32,
        {"anne": b"s" * 32},
        version=1,
        node_keys={"anne": NODE_KEY},
        authorities_pem="x",
        expires=datetime(2030, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": {"../anne": b"s" * 32}, "node_keys": {}}, "no valid name"),
        ({"version": 0}, "simulation"),
        ({"expires": None}, "simulation"),
        ({"node_keys": {"eve": NODE_KEY}}, "unknown party"),
        ({"node_keys": {"anne": node_key(ec.SECP256R1())}}, "P-384"),
        ({"node_keys": {"anne": NODE_KEY + b"\n"}}, "P-384"),
        ({"node_keys": {"anne": NODE_KEY, "authority": NODE_KEY}}, "one node key twice"),
        ({"coordinator": b"s" * 32}, "one key twice"),
        ({"revoked": (b"s" * 32,)}, "revoked one"),
        ({"former": {"anne": (b"o" * 32,)}}, "earlier key that is not revoked"),
    ],
)
def test_even_the_root_key_cannot_sign_nonsense(change, words):
    verify_roster(sign_roster(valid(), ROOT), ROOT.public_bytes())
    with pytest.raises(PeerError, match=words) as caught:
        verify_roster(sign_roster(replace(valid(), **change), ROOT), ROOT.public_bytes())
    # What is wrong first, then what to do about it.
    assert "operator" not in caught.value.message
    assert "operator" in caught.value.remedy


def test_a_field_of_the_future_is_not_overlooked():
    value = json.loads(sign_roster(valid(), ROOT))
    plain = value["roster"] | {"suspended": ["anne"]}
    from fedllm.identity import roster as module

    signature = ROOT.sign(module._signed_bytes(plain)).hex()
    with pytest.raises(PeerError, match="not known here"):
        verify_roster(
            json.dumps(value | {"roster": plain, "signature": signature}), ROOT.public_bytes()
        )


@pytest.mark.parametrize("name", ["a", "st-anne", "0", "a" * 63, "a--b"])
def test_names_of_sites(name):
    assert is_site_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a b", "a/b", "..", "../a", "a.b", "a_b", "a\n", "é", "a" * 64, *ROLES],
)
def test_names_that_are_refused(name):
    assert not is_site_name(name)


def test_node_keys_have_one_spelling():
    assert is_node_key(NODE_KEY)
    assert not is_node_key(NODE_KEY.replace(b"\n", b"\r\n"))
    assert not is_node_key(b"")


@pytest.mark.parametrize("name", sorted(set(_to_plain(valid())) - {"former", "titles"}))
def test_a_field_that_is_missing_is_no_default(name):
    """Signed by the root key itself, or of a simulation."""
    plain = {key: value for key, value in _to_plain(valid()).items() if key != name}
    signature = ROOT.sign(_signed_bytes(plain)).hex()
    text = json.dumps({"format": "fedllm.roster.v1", "signature": signature, "roster": plain})
    with pytest.raises(PeerError, match="damaged"):
        verify_roster(text, ROOT.public_bytes())
    with pytest.raises(PeerError, match="damaged"):
        Roster.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", -1),
        ("version", True),
        ("version", 1.0),
        ("version", "1"),
        ("min_cohort", -1),
        ("min_cohort", None),
        ("issued", "2030-01-01T00:00:00"),
        ("expires", "2030-01-01T00:00:00"),
        ("expires", "soon"),
        ("authority", "aa" * 31),
        ("revoked", ["aa" * 33]),
        ("operator", "AA" * 32 + "0"),
        ("sites", {"anne": None}),
        ("sites", []),
    ],
)
def test_a_signed_field_of_another_kind_is_refused(name, value):
    plain = _to_plain(valid()) | {name: value}
    signature = ROOT.sign(_signed_bytes(plain)).hex()
    text = json.dumps({"format": "fedllm.roster.v1", "signature": signature, "roster": plain})
    with pytest.raises(PeerError, match=r"damaged|32 bytes"):
        verify_roster(text, ROOT.public_bytes())


@pytest.mark.parametrize("plain", [[], "x", 3, None])
def test_a_signed_roster_that_is_no_object_is_damaged(plain):
    signature = ROOT.sign(_signed_bytes(plain)).hex()
    text = json.dumps({"format": "fedllm.roster.v1", "signature": signature, "roster": plain})
    with pytest.raises(PeerError, match="damaged"):
        verify_roster(text, ROOT.public_bytes())


def test_a_roster_of_another_format_is_not_read_even_if_it_is_signed():
    text = sign_roster(valid(), ROOT).replace("roster.v1", "roster.v2")
    with pytest.raises(PeerError, match="unknown format"):
        verify_roster(text, ROOT.public_bytes())


def test_the_keys_of_parties_by_their_roles():
    roster = replace(valid(), coordinator=b"c" * 32)
    found = [roster.key_of(role, "anne") for role in ROLES]
    assert found == [b"c" * 32, b"a" * 32, None, b"s" * 32]
    assert roster.key_of("site", "eve") is None
    assert roster.site_key("anne") == b"s" * 32
    with pytest.raises(PeerError, match="'eve' is not in the roster"):
        roster.site_key("eve")


def test_a_roster_that_nobody_issued_is_older_than_every_issued_one():
    assert Roster(b"", {}).version == 0


def test_a_roster_is_written_for_people_to_read():
    assert SIMPLE.to_json() == json.dumps(json.loads(SIMPLE.to_json()), indent=2)
