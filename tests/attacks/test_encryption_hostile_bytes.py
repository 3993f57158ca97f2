"""Crafted messages: every one is refused, and the sum and the key stay as they were.

The corpus holds what crashed or fooled TenSEAL when it was given foreign bytes, and what an
attacker who knows this format would send.
"""

import os
import struct

import numpy as np
import pytest
import tenseal
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.encryption.pack import unpack
from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.errors import PeerError

PLAN = make_plan("bfv", 8, 4, 60_000, False)
OTHER = make_plan("bfv", 8, 4, 60_001 * 5, False)
SECRET = SecretRoundKey.generate(PLAN)
PUBLIC = PublicRoundKey.from_bytes(PLAN, SECRET.public_context())
SLOTS = np.arange(PLAN.slots, dtype=np.uint64)
GOOD = PUBLIC.encrypt(SLOTS)
CIPHERTEXT = len(GOOD) // PLAN.ciphertexts
WIDTHS = [(p.bit_length() + 7) // 8 for p in PLAN.ciphertext_primes]
assert PLAN.ciphertexts >= 3


def polynomial_starts():
    """Where each polynomial of each prime of each ciphertext begins, and the end."""
    starts, place = [], 0
    for _ in range(PLAN.ciphertexts):
        for width in WIDTHS:
            for _ in range(2):
                starts.append((place, width))
                place += PLAN.poly_degree * width
    assert place == len(GOOD)
    return starts


def tenseal_vector(primes=None, values=None, repeat=1):
    """What a site would send that speaks TenSEAL's own format."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        PLAN.poly_degree,
        PLAN.plain_modulus,
        list(primes or PLAN.coeff_bits),
        n_threads=1,
    )
    return tenseal.bfv_vector(context, values or list(range(100))).serialize() * repeat


def ckks_vector():
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[60, 46], n_threads=1
    )
    context.global_scale = 2.0**40
    return tenseal.ckks_vector(context, [1.0]).serialize()


def with_residue(place, width, value):
    return GOOD[:place] + value.to_bytes(width, "little") + GOOD[place + width :]


def library_header(size, compression=2):
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, compression, 0, size)


def corpus():
    native = tenseal_vector()
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    starts = polynomial_starts()
    cases = {
        "empty": b"",
        "one byte": b"\0",
        "tenseal's own format": native,
        "tenseal's format, sizes that lie": b"\x0a\x05\xff\xff\xff\xff\x0f" + native[4:],
        "tenseal's format, missing ciphertexts": b"\x0a\x06\x80\x20\x80\x20\x80\x20" + native[4:],
        "tenseal's format, repeated": native * 3,
        "tenseal's format, other primes": tenseal_vector(primes=[36, 36, 20]),
        "ckks vector of another scale": ckks_vector(),
        "zstd bomb": bomb,
        "zstd bomb behind a Microsoft SEAL header": library_header(len(bomb) + 16) + bomb,
        "Microsoft SEAL header that lies": library_header(1 << 62) + native[20:],
        "all ones": b"\xff" * len(GOOD),
        "other plan": PublicRoundKey.from_bytes(
            OTHER, SecretRoundKey.generate(OTHER).public_context()
        ).encrypt(np.zeros(OTHER.slots, np.uint64)),
        "a ciphertext too few": GOOD[:-CIPHERTEXT],
        "a ciphertext too many": GOOD + os.urandom(CIPHERTEXT),
        "a ciphertext repeated": GOOD[:CIPHERTEXT] + GOOD[:CIPHERTEXT] + GOOD[2 * CIPHERTEXT :],
        "all zero": bytes(len(GOOD)),
        "public context": SECRET.public_context(),
    }
    for index, (place, width) in enumerate(starts):
        prime = PLAN.ciphertext_primes[index // 2 % len(WIDTHS)]
        last = place + (PLAN.poly_degree - 1) * width
        cases[f"cut at {place}"] = GOOD[:place]
        cases[f"cut after {place}"] = GOOD[: place + 1]
        cases[f"residue = prime at {place}"] = with_residue(place, width, prime)
        cases[f"largest residue at {last}"] = with_residue(last, width, 256**width - 1)
    return cases


CORPUS = corpus()


@pytest.mark.parametrize("name", CORPUS)
def test_crafted_message_is_refused_and_changes_nothing(name):
    total = EncryptedSum(PLAN, PUBLIC)
    before = total.to_bytes()
    with pytest.raises(PeerError):
        total.add(CORPUS[name])
    assert total.count == 0 and total.to_bytes() == before
    # The refused message took nothing away: the honest one is still welcome.
    total.add(GOOD)
    assert total.to_bytes() == GOOD


@pytest.mark.parametrize(
    "name", [n for n in CORPUS if n not in ("all zero", "a ciphertext repeated")]
)
def test_crafted_sum_is_refused_and_does_not_spend_the_key(name):
    secret = SecretRoundKey.generate(PLAN)
    with pytest.raises(PeerError):
        secret.decrypt_sum(CORPUS[name])
    public = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    assert (secret.decrypt_sum(public.encrypt(SLOTS)) == SLOTS).all()


@pytest.mark.parametrize("blob", [bytes(len(GOOD)), GOOD], ids=["zero", "other key"])
def test_well_formed_garbage_opens_to_no_sum(blob):
    """Any residues are a ciphertext under any key; the count of updates gives them away."""
    with pytest.raises(PeerError, match="not the sum"):
        unpack(SecretRoundKey.generate(PLAN).decrypt_sum(blob), PLAN, 1)


def test_tenseals_format_cut_to_the_right_length_is_refused_or_opens_to_no_sum():
    """Whether such bytes hold a residue at or above its prime is chance; no sum opens anyway."""
    blob = (tenseal_vector() * 99)[: len(GOOD)]
    with pytest.raises(PeerError):
        unpack(SecretRoundKey.generate(PLAN).decrypt_sum(blob), PLAN, 1)


def test_update_or_ciphertext_of_another_site_is_not_added_again():
    total = EncryptedSum(PLAN, PUBLIC)
    total.add(GOOD)
    fresh = PUBLIC.encrypt(SLOTS)
    for copy in (GOOD, fresh[:-CIPHERTEXT] + GOOD[-CIPHERTEXT:]):
        with pytest.raises(PeerError, match="twice"):
            total.add(copy)
    total.add(fresh)
    assert total.count == 2


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_everywhere(blob):
    for receive in (
        EncryptedSum(PLAN, PUBLIC).add,
        SECRET.decrypt_sum,
        lambda b: PublicRoundKey.from_bytes(PLAN, b),
    ):
        with pytest.raises(PeerError):
            receive(blob)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
@settings(max_examples=30)
def test_flipped_bit_never_crashes_tenseal(place, bit):
    """It is refused, or opens to garbage: that is for the envelope's signature to notice."""
    damaged = bytearray(GOOD)
    damaged[place] ^= 1 << bit
    key = SecretRoundKey(PLAN, SECRET._context)
    try:
        slots = key.decrypt_sum(bytes(damaged))
    except PeerError:
        return
    # Every slot of the damaged ciphertext is garbage, and all others are whole.
    ciphertext, step = place // CIPHERTEXT, PLAN.poly_degree
    part = slice(ciphertext * step, (ciphertext + 1) * step)
    whole = np.ones(len(SLOTS), bool)
    whole[part] = False
    assert (slots[whole] == SLOTS[whole]).all()
    assert slots.max() < PLAN.plain_modulus
