"""What parties of a run send and keep: success or a FedllmError, whatever comes."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support import damage
from support.damage import Target, at, check, signed_anew, text

from fedllm.encryption.envelope import Expectation, open_envelope, sign_envelope
from fedllm.encryption.masks import MaskScope, Reveal
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.federation.authority.authority import Authority
from fedllm.federation.authority.round_log import RoundLog, read_log
from fedllm.federation.protocol import messages
from fedllm.federation.protocol.masks import reveal_purpose, site_masks
from fedllm.federation.protocol.messages import RoundStatement, round_statement
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.statements import make_member, read_statement
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
SECRET = SecretRoundKey.generate(PLAN)
PUBLIC, CONTEXT = SECRET.public_context(), SECRET._context
STATEMENT = RoundStatement(
    run="run",
    round=1,
    attempt=2,
    rounds=3,
    cohort=tuple(make_member(PEOPLE[name], "", "run", 0) for name in NAMES),
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
    messages.Joined(messages.JoinedHeader(member=STATEMENT.cohort[0])),
    messages.Train(
        messages.TrainHeader(**SIGNED, config="c", labels=("a",), bounds=((3, 1.0),), model="m"),
        *(b"x", b"y", b"z"),
    ),
    messages.Trained(messages.TrainedHeader(site="anne", refusal=REFUSAL), b"x"),
    messages.Settle(messages.SettleHeader(**SIGNED, survivors=NAMES), b"x"),
    messages.Settled(messages.SettledHeader(site="anne", signature="00")),
    messages.Unmask(
        messages.UnmaskHeader(**SIGNED, survivors=NAMES, signatures=("00", "00")), b"x"
    ),
    messages.Unmasked(messages.UnmaskedHeader(site="anne", reveal="00")),
    messages.OpenRound(messages.OpenRoundHeader(statement=TEXT.decode()), b"x"),
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

    def read(content):
        words = text(content)
        statement = read_statement(words, sign(words), ROSTER)
        masks = site_masks(PEOPLE["anne"], "", statement, PLAN, True)
        masks.scope.to_bytes()
        reveal_purpose(statement, "anne")

    check(Target("round statement", TEXT, read, damage.in_json))


def test_the_authoritys_side_of_a_statement():
    authority = Authority(
        PEOPLE["authority"], ROSTER, 2, make_key=lambda plan: SecretRoundKey(plan, CONTEXT)
    )

    def read(content):
        header = messages.OpenRoundHeader(statement=content.decode(errors="replace"))
        authority.open_round(messages.OpenRound(header, PLAN.to_bytes()))

    check(Target("proposed statement", TEXT, read, damage.in_json), share=0.3)


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
