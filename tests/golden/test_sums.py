"""What keeps updates apart and adds them up is computed for ever as it was: plans, masks, sums."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal
from golden.kept import COHORT, SURVIVORS, damaged, identity
from golden.kept_rounds import (
    CLEAR,
    IN_CLEAR,
    LEDGERS,
    MEMBERS,
    PLAN,
    ROSTER,
    ROUND,
    STATEMENT,
    TRAIN,
    around,
    message,
    sealing_key,
)

from fedllm.canonical import sha256, sha256_hex, signing_bytes
from fedllm.encryption.lattice_mask import hide, reveal
from fedllm.encryption.masks import SiteMasks
from fedllm.encryption.pack import pack
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.residues import numbers_to_wire
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import MaskScope, survivor_statement
from fedllm.errors import PeerError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.protocol.envelopes import signed_update, verified_update
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose, site_masks
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import read_statement
from fedllm.federation.protocol.wire import digest
from fedllm.identity.keys import verify_signature
from fedllm.privacy.ledger.heads import signed_head
from fedllm.randomness import RandomStream

# Known answers: what follows from keys that anybody can make.
PACKED = "36adb83a1226f0b75892b14de719cd7d8e95efba210491726e6d91764d16fa78"
STREAM = "f4100eb4b5599012a8b922e4a6ddf009"
MASK = "8979ba6a85b5f902713a0096be9ed53d75dd409f811a6e60a5b8077260cbda69"
HIDING_PLAN = (
    '{"bits":16,"ciphertexts":1,"coeff_bits":[24,20],"field_bits":8,"fields_per_slot":1,'
    '"lattice":{"coefficients":1051,"degree":2048,"error_bound":103,"levels_per_coefficient":2,'
    '"modulus_bits":43,"radix":196603,"secret_bound":104},"length":2100,"masked":true,'
    '"max_sites":3,"plain_modulus":12289,"poly_degree":2048,"scale_bits":0,"scheme":"bfv",'
    '"security_bits":128,"slots":2048}'
)
HIDDEN = "0f1c4516edcfdb3156136ad94cd025edf985742d943e5fa10233488a72deea5f"
SECRET = "c4fad25afc43bc8527bf849dd10c552aaa1f9b1054ad62cf9a593f179eaa4672"
CHOSEN = [
    (
        ("bfv", 16, 10, 54221, True),
        "b436442a1f389e406d719d9f42df27444707703b57a5daa4654482919a58d396",
    ),
    (
        ("bfv", 16, 10, 1000000, True),
        "2ddf1a3ebf28b96ae19a74f28610c23234c4b634d107a3a471cf430ed3d889bc",
    ),
    (("bfv", 24, 2, 3, True), "f26b2d6f47b6c325d9d17155bfa2bf6ffb0f1c2fbcca28c9c64892813669395a"),
    (
        ("bfv", 8, 1024, 100000, False),
        "20b10b5329ee7f0598fbf87eae8b6b08af955dafeea3b1cabdaa76c00be249b0",
    ),
    (
        ("ckks", 16, 10, 54221, False),
        "0da3c82b4cefa8201efc14864d385470b699bbdc29ff761220628ce00a32515a",
    ),
    (
        ("none", 20, 100, 54221, False),
        "9a24c9642f10ec5e63f789e2e7b60e20b8e0b3051e04150a5131f9fd91096e6e",
    ),
    (
        ("bfv", 20, 50, 268435456, True),
        "79ae411f79fd6cf1c20642b875ec727be49caf581a8837073a6eb6d8ec5e2fb4",
    ),
]
PLANS = [
    (("bfv", 16, 3, 31, True), TRAIN.plan),
    (("none", 16, 3, 31, False), IN_CLEAR.plan),
]


def test_a_statement_is_encoded_as_it_was():
    number = lambda value: value.to_bytes(8, "little")  # noqa: E731
    parts = (b"fedllm.x.v2", "ü".encode(), b"12", b"\x00", b"")
    encoded = number(len(parts)) + b"".join(number(len(part)) + part for part in parts)
    assert signing_bytes("fedllm.x.v2", "ü", 12, b"\x00", "") == encoded


@pytest.mark.parametrize(("asked", "kept"), PLANS, ids=["bfv", "none"])
def test_the_same_plan_is_chosen_and_written_as_it_was(asked, kept):
    plan = make_plan(*asked)
    assert plan.to_bytes() == kept
    assert EncryptionPlan.from_bytes(kept) == plan
    for changed in damaged(kept):
        with pytest.raises(PeerError):
            EncryptionPlan.from_bytes(changed)


@pytest.mark.parametrize(("asked", "fingerprint"), CHOSEN)
def test_all_parties_choose_the_plan_that_they_chose(asked, fingerprint):
    assert make_plan(*asked).fingerprint() == fingerprint


@pytest.mark.parametrize("name", SURVIVORS)
@pytest.mark.parametrize(("folder", "order"), [(ROUND, TRAIN), (CLEAR, IN_CLEAR)])
def test_an_update_is_opened_and_refused_when_a_byte_changed(folder, order, name):
    trained = message(f"Trained-{name}", folder)
    statement = read_statement(order.header.statement, order.header.signature, ROSTER)
    plan = EncryptionPlan.from_bytes(order.plan)
    about = (statement, plan, name, ROSTER)
    payload = verified_update(trained.update, *about)
    assert len(payload) == plan.update_bytes
    assert signed_update(payload, statement, plan, identity(name)) == trained.update
    for changed in damaged(trained.update, every=max(7, len(trained.update) // 60)):
        with pytest.raises(PeerError):
            verified_update(changed, *about)
    # All of header and signature.
    for changed in damaged(trained.update[:420], every=3):
        with pytest.raises(PeerError):
            verified_update(changed + trained.update[420:], *about)
    head, signature = trained.header.ledger, trained.header.ledger_signature
    assert str(signed_head(head, signature, ROSTER.sites[name], name)) == head


@pytest.mark.parametrize(("folder", "order"), [(ROUND, TRAIN), (CLEAR, IN_CLEAR)])
def test_kept_updates_add_up_to_the_kept_sum(folder, order):
    plan = EncryptionPlan.from_bytes(order.plan)
    total = EncryptedSum(plan, PublicRoundKey.from_bytes(plan, order.public_key))
    statement = RoundStatement.model_validate_json(order.header.statement)
    for name in SURVIVORS:
        update = message(f"Trained-{name}", folder).update
        total.add(verified_update(update, statement, plan, name, ROSTER))
    assert total.to_bytes() == message("OpenSum", folder).total


def secret_key() -> SecretRoundKey:
    """Return the kept secret key of the encrypted round."""
    native = tenseal._ts_cpp
    content = (ROUND / "secret_context.bin").read_bytes()
    return SecretRoundKey(PLAN, native.TenSEALContext.deserialize(content, 1))


def test_the_kept_public_key_belongs_to_the_kept_secret_key():
    assert secret_key().public_context() == TRAIN.public_key
    for place in (7, 11):
        # The largest value of a residue is above its prime.
        changed = TRAIN.public_key[: 8 * place] + b"\xff" * 8 + TRAIN.public_key[8 * place + 8 :]
        with pytest.raises(PeerError):
            PublicRoundKey.from_bytes(PLAN, changed)


@pytest.mark.parametrize("folder", [ROUND, CLEAR])
def test_an_authority_opens_the_kept_sum_to_what_it_was(folder):
    authority = Authority(identity("authority"), ROSTER, 2)
    request, answer = message("OpenSum", folder), message("SumOpened", folder)
    authority._statement = request.header.statement
    plan = PLAN if folder == ROUND else EncryptionPlan.from_bytes(IN_CLEAR.plan)
    authority._secret = secret_key() if folder == ROUND else SecretRoundKey(plan, None)
    authority._sealing = sealing_key()
    assert authority.open_sum(request).to_wire() == answer.to_wire()


def test_levels_in_clear_are_packed_as_they_were():
    plan = EncryptionPlan.from_bytes(IN_CLEAR.plan)
    levels = np.arange(31, dtype=np.uint64) * np.uint64(2114)
    slots = pack(levels, plan)
    assert digest(slots.astype("<u8").tobytes()) == PACKED


@pytest.mark.parametrize("name", SURVIVORS)
def test_masks_and_reveals_are_derived_as_they_were(name):
    masks = site_masks(identity(name), LEDGERS[name], STATEMENT, around(name), PLAN, recover=True)
    scope = mask_scope(STATEMENT, PLAN)
    statement = masks.statement(SURVIVORS)
    assert statement == survivor_statement(scope, SURVIVORS)
    names = [sha256(signing_bytes("fedllm.names.v1", *each)) for each in (SURVIVORS, COHORT)]
    assert statement == signing_bytes("fedllm.survivors.v3", scope.to_bytes(), names[0])
    about = (STATEMENT.digest, PLAN.fingerprint(), names[1])
    assert scope.to_bytes() == signing_bytes("fedllm.mask-scope.v4", *about, 0, 0)
    settled = message(f"Settled-{name}").header.signature
    assert identity(name).sign(statement).hex() == settled
    verify_signature(ROSTER.sites[name], bytes.fromhex(settled), statement, name)
    for changed in damaged(statement, every=9):
        with pytest.raises(PeerError):
            verify_signature(ROSTER.sites[name], bytes.fromhex(settled), changed, name)
    reveal = masks.reveal(dict.fromkeys(SURVIVORS, statement))
    sealed = bytes.fromhex(message(f"Unmasked-{name}").header.reveal)
    opened = sealing_key().open(sealed, reveal_purpose(STATEMENT, name))
    assert opened == reveal.to_bytes()
    assert Reveal.from_bytes(opened, scope).pair_seeds.keys() == {"carl"}
    for changed in damaged(sealed, every=9):
        with pytest.raises(PeerError):
            sealing_key().open(changed, reveal_purpose(STATEMENT, name))
    with pytest.raises(PeerError):
        Reveal.from_bytes(opened.replace(b'"pairs"', b'"parts"'), scope)


def test_a_mask_is_the_stream_that_it_was():
    anne, plain = (
        site_masks(
            identity("anne"), LEDGERS["anne"], STATEMENT, around("anne"), PLAN, recover
        ).mask_for_update()
        for recover in (True, False)
    )
    assert anne.shape == plain.shape == (PLAN.slots,)
    assert (anne != plain).any()
    stream = RandomStream.seeded(7, "kept", 1)
    assert stream.bytes(16).hex() == STREAM
    fixed = SiteMasks(
        MaskScope("00" * 32, COHORT, PLAN),
        "anne",
        identity("anne").mask_key("run-1", "00" * 32),
        {m.name: bytes.fromhex(m.mask_key) for m in MEMBERS if m.name != "anne"},
        own_mask=True,
        own_seed=bytes(32),
    )
    assert digest(fixed.mask_for_update().astype("<u8").tobytes()) == MASK


def test_levels_are_hidden_and_come_out_as_they_did():
    """Plan, public part, secret, errors and their form on the wire, from known random bits."""
    plan = make_plan("bfv", 16, 3, 2100, True)
    assert plan.to_bytes().decode() == HIDING_PLAN
    levels = np.arange(2100, dtype=np.uint64)
    hidden, secret = hide(levels, plan, "00" * 32, RandomStream(bytes(range(32))))
    assert sha256_hex(numbers_to_wire(hidden, plan.lattice.modulus_bits)) == HIDDEN
    assert sha256_hex(secret.astype("<u8").tobytes()) == SECRET
    assert hidden[:2].tolist() == [4195036844385, 5001979921826]
    assert secret[:3].tolist() == [6, 0, 9]
    assert (reveal(hidden, secret, plan, "00" * 32, 1) == levels).all()
    assert EncryptionPlan.from_bytes(HIDING_PLAN.encode()) == plan
