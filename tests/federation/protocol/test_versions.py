"""Statements of another version are refused with words that say what to do."""

from __future__ import annotations

import json

import pytest

from fedllm.canonical import signing_bytes
from fedllm.encryption.envelope import Expectation, open_envelope, sign_envelope
from fedllm.encryption.plan import make_plan
from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import cohort_digest, member_statement
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import check_member, make_member, read_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster

ANNE, AUTHORITY = Identity.generate("anne"), Identity.generate("authority")
ROSTER = Roster(AUTHORITY.public_bytes(), {"anne": ANNE.public_bytes()})
MEMBER = make_member(ANNE, "", "run", 0)
STATEMENT = RoundStatement(
    run="run",
    round=1,
    attempt=1,
    rounds=1,
    cohort=("anne",),
    members=cohort_digest((MEMBER,)),
    min_sites=1,
    plan="",
    key="",
    reveal_key="",
    config="",
    labels="",
    bounds="",
    model="",
    adapter="",
)


def signed(text: str) -> str:
    return AUTHORITY.sign(round_statement(text)).hex()


def test_a_statement_of_this_version_is_read():
    text = STATEMENT.model_dump_json()
    assert read_statement(text, signed(text), ROSTER) == STATEMENT


@pytest.mark.parametrize(
    "kind",
    [
        "fedllm.round.v1",
        "fedllm.round.v2",
        "fedllm.round.v3",
        "fedllm.round.v4",
        "fedllm.round.v6",
        "fedllm.survivors.v3",
        "",
    ],
)
def test_a_statement_of_another_kind_is_refused(kind):
    text = json.dumps(STATEMENT.model_dump(mode="json") | {"kind": kind})
    for signature in (signed(text), AUTHORITY.sign(text.encode()).hex()):
        with pytest.raises(PeerError, match="update fedllm"):
            read_statement(text, signature, ROSTER)
    with pytest.raises(PeerError, match="malformed at kind"):
        parse_header(RoundStatement, text)


def test_a_statement_that_says_a_thing_twice_is_refused():
    text = STATEMENT.model_dump_json()[:-1] + ',"min_sites":1}'
    with pytest.raises(PeerError, match="one meaning"):
        read_statement(text, signed(text), ROSTER)


def test_the_bare_text_is_no_longer_what_the_authority_signs():
    text = STATEMENT.model_dump_json()
    with pytest.raises(PeerError, match="signature of 'the key authority'"):
        read_statement(text, AUTHORITY.sign(text.encode()).hex(), ROSTER)


def test_a_mask_key_that_an_older_site_signed_is_refused():
    member = MEMBER
    check_member(member, "run", ROSTER)
    old = json.dumps(["fedllm.mask-key.v1", "run", "anne", member.mask_key]).encode()
    second = signing_bytes("fedllm.mask-key.v2", "run", "anne", member.mask_key)
    larger = member_statement("run", "anne", member.mask_key, 1)
    for words in (old, second, larger, member_statement("run", "anne", "00" * 32, 0)):
        other = member.model_copy(update={"signature": ANNE.sign(words).hex()})
        with pytest.raises(PeerError, match="update fedllm"):
            check_member(other, "run", ROSTER)


def test_an_older_envelope_is_refused():
    plan = make_plan("none", 8, 4, 5, False)
    expected = Expectation("run", 3, "anne", "update", "ab", plan)
    signed = bytearray(sign_envelope(bytes(plan.update_bytes), expected, ANNE.sign))
    assert signed[8:10] == b"\x02\x00"
    signed[8] = 1
    with pytest.raises(PeerError, match="update fedllm"):
        open_envelope(bytes(signed), expected, lambda *_: None)
