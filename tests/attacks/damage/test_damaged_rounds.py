"""What parties of a run send and keep: success or a FedllmError, whatever comes."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support import damage
from support.damage import Target, at, check, signed_anew, text
from support.federation import own_draw

from fedllm.encryption.envelope import Expectation, open_envelope, sign_envelope
from fedllm.encryption.escrow import lock
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import MaskScope
from fedllm.federation.authority.authority import Authority
from fedllm.federation.authority.round_log import RoundLog, read_log
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.cohorts import Neighbourhood, cohort_digest
from fedllm.federation.protocol.masks import reveal_purpose, site_masks
from fedllm.federation.protocol.neighbours import (
    Neighbourhoods,
    own_seed,
    read_neighbourhood,
)
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import check_members, make_member, read_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import SealingKey, seal_for
from fedllm.privacy.ledger.entries import Head

NAMES = ("anne", "bob")
PEOPLE = {name: Identity.generate(name) for name in (*NAMES, "authority")}
ROSTER = Roster(
    PEOPLE["authority"].public_bytes(), {name: PEOPLE[name].public_bytes() for name in NAMES}
)
PLAN = make_plan("bfv", 8, 2, 20, True)
ESCROW = lock(b"a sealed reveal", bytes(32), [b"\x01" * 32], 1).to_bytes()
SECRET = SecretRoundKey.generate(PLAN)
PUBLIC, CONTEXT = SECRET.public_context(), SECRET._context
MEMBERS = tuple(make_member(PEOPLE[name], "", "run", 0) for name in NAMES)
STATEMENT = RoundStatement(
    run="run",
    round=1,
    attempt=2,
    rounds=3,
    cohort=NAMES,
    members=cohort_digest(MEMBERS),
    min_sites=2,
    plan=PLAN.fingerprint(),
    key=PublicRoundKey.from_bytes(PLAN, PUBLIC).fingerprint,
    reveal_key=SealingKey().public_bytes().hex(),
    config="00" * 32,
    labels="00" * 32,
    bounds="00" * 32,
    model="00" * 32,
    adapter="00" * 32,
)
TEXT = STATEMENT.model_dump_json().encode()
AROUND = Neighbourhoods(STATEMENT, MEMBERS, {}).of("anne")
# A cohort in which sites draw neighbours, and what the first of them is told.
MANY = tuple(f"site-{number}" for number in range(6))
CROWD = {name: Identity.generate(name) for name in MANY}
CROWD_ROSTER = Roster(ROSTER.authority, {name: CROWD[name].public_bytes() for name in MANY})
ENTRIES = tuple(make_member(CROWD[name], "", "run", 0) for name in MANY)
DRAWN = STATEMENT.model_copy(
    update={"cohort": MANY, "members": cohort_digest(ENTRIES), "neighbours": 2, "missing": 1}
)
SEEDS = {name: own_seed(CROWD[name], "", DRAWN).hex() for name in MANY}
DRAWN_AROUND = Neighbourhoods(DRAWN, ENTRIES, SEEDS).of(MANY[0])


def as_sent(message):
    header, blobs = message.to_wire()
    return Target(
        type(message).__name__,
        header.encode(),
        lambda content: type(message).from_wire(text(content), blobs),
        damage.in_json,
    )


SIGNED = {"statement": TEXT.decode(), "signature": "00" * 64}
REFUSAL = Refusal(kind="PeerError", message="m", remedy="r")
MESSAGES = (
    messages.Join(
        messages.JoinHeader(
            run="run", round=1, config="c", labels=("a",), model="m", adapter_length=3
        )
    ),
    messages.Joined(messages.JoinedHeader(member=MEMBERS[0])),
    messages.Train(
        messages.TrainHeader(
            **SIGNED,
            config="c",
            labels=("a",),
            bounds=((3, 1.0),),
            model="m",
            around=DRAWN_AROUND,
        ),
        *(b"x", b"y", b"z"),
    ),
    messages.Trained(messages.TrainedHeader(site="anne", refusal=REFUSAL), b"x"),
    messages.Draw(messages.SignedRound(**SIGNED)),
    messages.Drawn(messages.DrawnHeader(site="anne", seed=SEEDS[MANY[0]])),
    messages.Ready(messages.SignedRound(**SIGNED)),
    messages.Readied(messages.SiteAnswer(site="anne")),
    messages.Settle(messages.SettleHeader(**SIGNED, survivors=NAMES, around=AROUND), b"x"),
    messages.Settled(messages.SettledHeader(site="anne", signature="00"), ESCROW),
    messages.Unmask(
        messages.UnmaskHeader(
            **SIGNED, survivors=NAMES, signatures=dict.fromkeys(NAMES, "00"), around=AROUND
        ),
        b"x",
    ),
    messages.Unmasked(messages.UnmaskedHeader(site="anne", reveal="00")),
    messages.Recover(
        messages.RecoverHeader(
            **SIGNED,
            survivors=NAMES,
            owners=NAMES[:1],
            signatures=dict.fromkeys(NAMES, "00"),
            around=AROUND,
        ),
        b"x",
    ),
    messages.Recovered(messages.RecoveredHeader(site="anne", shares=("00" * 32,))),
    messages.OpenRound(messages.OpenRoundHeader(statement=TEXT.decode(), members=MEMBERS), b"x"),
    messages.RoundOpened(messages.RoundOpenedHeader(**SIGNED), b"x"),
    messages.OpenSum(
        messages.OpenSumHeader(**SIGNED, survivors=NAMES, signatures=("00",), reveals=("00",)), b"x"
    ),
    messages.SumOpened(messages.SumOpenedHeader(count=2), b"x"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_headers_of_messages(message):
    check(as_sent(message))


def test_round_statements():
    def sign(words):
        with suppress(UnicodeEncodeError):
            return PEOPLE["authority"].sign(round_statement(words)).hex()
        return "00" * 64

    def reader(around, identity, roster, plan):
        def read(content):
            words = text(content)
            statement = read_statement(words, sign(words), roster)
            if statement.neighbours:
                own_draw(identity, "", statement)
            found = read_neighbourhood(around, statement, identity, "", roster)
            masks = site_masks(identity, "", statement, found, plan, True)
            masks.scope.to_bytes()
            reveal_purpose(statement, identity.name)

        return read

    small = reader(AROUND, PEOPLE["anne"], ROSTER, PLAN)
    large = reader(DRAWN_AROUND, CROWD[MANY[0]], CROWD_ROSTER, make_plan("bfv", 8, 6, 20, True))
    check(
        Target("round statement", TEXT, small, damage.in_json),
        Target("drawn statement", DRAWN.model_dump_json().encode(), large, damage.in_json),
    )


@pytest.mark.parametrize(
    ("sample", "statement", "name", "roster"),
    [(AROUND, STATEMENT, "anne", ROSTER), (DRAWN_AROUND, DRAWN, MANY[0], CROWD_ROSTER)],
    ids=["all", "drawn"],
)
def test_what_a_site_is_told_of_its_cohort(sample, statement, name, roster):
    identity = {**PEOPLE, **CROWD}[name]

    def read(content):
        found = parse_header(Neighbourhood, text(content))
        around = read_neighbourhood(found, statement, identity, "", roster)
        assert around.own.name == name

    check(Target("neighbourhood", sample.model_dump_json().encode(), read, damage.in_json))


def test_draws():
    def draw(content):
        header = parse_header(messages.DrawnHeader, text(content))
        Neighbourhoods(DRAWN, ENTRIES, {MANY[0]: header.seed}).of(MANY[0])

    sample = messages.DrawnHeader(site=MANY[0], seed=SEEDS[MANY[0]]).model_dump_json()
    check(Target("seed", sample.encode(), draw, damage.in_json))


def test_the_authoritys_side_of_a_statement():
    authority = Authority(
        PEOPLE["authority"], ROSTER, 2, make_key=lambda plan: SecretRoundKey(plan, CONTEXT)
    )

    def read(content):
        words = content.decode(errors="replace")
        header = messages.OpenRoundHeader(statement=words, members=MEMBERS)
        authority.open_round(messages.OpenRound(header, PLAN.to_bytes()))

    check(Target("proposed statement", TEXT, read, damage.in_json), share=0.3)


def test_the_authoritys_side_of_a_cohorts_entries():
    proposal = messages.OpenRoundHeader(statement=TEXT.decode(), members=MEMBERS)

    def read(content):
        found = parse_header(messages.OpenRoundHeader, text(content))
        check_members(STATEMENT, found.members, ROSTER)

    check(Target("entries", proposal.model_dump_json().encode(), read, damage.in_json))


def test_plans_and_reveals():
    scope = MaskScope("00" * 32, NAMES, PLAN)
    reveal = Reveal("anne", bytes(32), {"bob": bytes(range(32))}).to_bytes()
    check(
        Target("plan", PLAN.to_bytes(), EncryptionPlan.from_bytes, damage.in_json),
        Target("reveal", reveal, lambda blob: Reveal.from_bytes(blob, scope), damage.in_json),
    )


def test_public_keys_and_updates():
    key = PublicRoundKey.from_bytes(PLAN, PUBLIC)
    update = key.encrypt(np.zeros(PLAN.slots, dtype=np.uint64))

    def add(blob):
        total = EncryptedSum(PLAN, key)
        total.add(blob)
        total.to_bytes()

    check(
        Target("public key", PUBLIC, lambda b: PublicRoundKey.from_bytes(PLAN, b), damage.in_bytes),
        Target("update", update, add, damage.in_bytes),
        Target(
            "sum",
            update,
            lambda b: SecretRoundKey(PLAN, CONTEXT).decrypt_sum(b),
            damage.in_bytes,
        ),
        share=0.3,
    )


def test_envelopes():
    plan = make_plan("none", 8, 4, 5, False)
    expected = Expectation("run", 3, "anne", "update", "ab", plan)
    payload = bytes(plan.update_bytes)
    signed = sign_envelope(payload, expected, PEOPLE["anne"].sign)

    def verify(name, message, signature):
        verify_signature(ROSTER.site_key(name), signature, message, name)

    def accept(name, message, signature):
        pass

    check(
        Target("envelope", signed, lambda b: open_envelope(b, expected, verify), damage.in_bytes),
        Target("signed", signed, lambda b: open_envelope(b, expected, accept), damage.in_bytes),
    )


def test_sealed_reveals():
    key = SealingKey()
    sealed = seal_for(key.public_bytes(), b"reveal", b"about")
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    check(
        Target("sealed reveal", sealed, lambda b: key.open(b, b"about"), damage.in_bytes),
        Target("reveal key", public, lambda b: seal_for(b, b"reveal", b"about"), damage.in_bytes),
    )


def test_a_sites_memory(tmp_path):
    path = tmp_path / "memory.json"
    memory = SiteMemory(path)
    memory.remember(Head(3, "00" * 32))

    def read():
        memory.used()
        memory.head()

    def change():
        memory.remember(Head(4, "11" * 32))
        memory.begin_anew(Head(1, "22" * 32))

    sample = path.read_bytes()
    check(Target("memory", sample, at(path, read), damage.in_json))
    check(Target("memory changed", sample, at(path, change), damage.in_json), share=0.2)


def test_the_authoritys_log(tmp_path):
    path = tmp_path / "rounds.jsonl"
    identity = PEOPLE["authority"]
    log = RoundLog(path, identity)
    for attempt in (1, 2):
        statement = STATEMENT.model_copy(update={"attempt": attempt})
        log.add(statement)
        log.summed(statement, NAMES)

    def read():
        read_log(path, identity.public_bytes())
        RoundLog(path, identity)

    def sign(value):
        value.pop("signature", None)
        message = json.dumps(["fedllm.round-log.v1", value], sort_keys=True).encode()
        signature = identity.sign(message).hex()
        return json.dumps({**value, "signature": signature}).encode() + b"\n"

    sample = path.read_bytes()
    first = sample.splitlines(keepends=True)[0]
    check(
        Target("round log", sample, at(path, read), damage.in_lines),
        Target("round log signed anew", first, at(path, read), damage.in_json, signed_anew(sign)),
        share=0.3,
    )
