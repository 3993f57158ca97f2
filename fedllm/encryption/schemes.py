"""One round's keys and the sum that grows while encrypted updates arrive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import tenseal
from numpy.typing import NDArray

from fedllm.canonical import sha256, sha256_hex
from fedllm.encryption.ciphertext_format import layout_of, new_context
from fedllm.encryption.flooding import flood_and_round
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.residues import (
    from_wire,
    numbers_from_wire,
    numbers_to_wire,
    to_wire,
    wire_length,
)
from fedllm.errors import FedllmError, PeerError, RefusedError
from fedllm.randomness import RandomStream


class SecretRoundKey:
    """The key that opens one sum of one round, once. It stays in memory.

    With scheme "none" there is no key, and anybody reads every update.

    Parameters
    ----------
    plan : EncryptionPlan
        Parameters of the round.
    context : object
        TenSEAL context with the secret key; None for scheme "none".
    """

    def __init__(self, plan: EncryptionPlan, context: Any) -> None:
        self.plan = plan
        self._context = context
        self._spent = False

    @classmethod
    def generate(cls, plan: EncryptionPlan) -> SecretRoundKey:
        """Make a fresh key pair."""
        return cls(plan, None if plan.scheme == "none" else new_context(plan))

    def __repr__(self) -> str:
        return "SecretRoundKey(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret round key must not be copied")

    def public_context(self) -> bytes:
        """Return the public key for the sites: residues in fixed places, nothing else."""
        if self.plan.scheme == "none":
            return b""
        residues = layout_of(self.plan).key_residues(self._live_context())
        return to_wire(residues, self.plan.key_primes)

    def decrypt_sum(self, blob: bytes) -> NDArray[np.uint64]:
        """Open a sum; the key refuses a second one.

        Parameters
        ----------
        blob : bytes
            `EncryptedSum.to_bytes`.

        Returns
        -------
        uint64 (S,)
            Summed slots. CKKS sums are flooded and rounded (Li and Micciancio 2021). Levels
            under a lattice mask stay hidden: `fedllm.encryption.update.opened_levels`.

        Raises
        ------
        PeerError
            If the bytes are no ciphertexts of the plan.
        RefusedError
            If this key has opened a sum or was wiped.
        """
        if self._spent:
            raise RefusedError(
                "this round key has already opened its one sum", "open a new round with a new key"
            )
        plan = self.plan
        if plan.scheme == "none":
            slots = _clear_slots(plan, blob)
        else:
            context = self._live_context()
            layout = layout_of(plan)
            blocks = list(_ciphertexts(plan, blob))
            # Before the first block is decrypted: a failure half-way must not give a second try.
            self._spent = True
            kind = np.float64 if plan.scheme == "ckks" else np.int64
            values = [np.array(layout.vector(context, b).decrypt(), dtype=kind) for b in blocks]
            slots = _opened_slots(plan, np.concatenate(values)[: plan.slots])
        self._spent = True
        return slots

    def wipe(self) -> None:
        """Forget the secret key; Microsoft SEAL overwrites it when the last reference goes."""
        self._spent = True
        self._context = None

    def _live_context(self) -> Any:
        if self._context is None:
            raise RefusedError("this round key was wiped", "open a new round with a new key")
        return self._context


class PublicRoundKey:
    """The key that a site encrypts with.

    Parameters
    ----------
    plan : EncryptionPlan
        Parameters of the round.
    public_context : bytes
        As the key authority sent it.
    """

    def __init__(self, plan: EncryptionPlan, public_context: bytes) -> None:
        self.plan = plan
        self.fingerprint = sha256_hex(public_context)
        self._context = None
        if plan.scheme == "none":
            if public_context:
                raise PeerError("a round without encryption came with a key")
            return
        view = memoryview(public_context)
        residues = from_wire(view, plan.key_primes, plan.poly_degree)
        if not (residues.any(axis=2)).all():
            raise PeerError("the round's public key is zero and would encrypt nothing")
        self._context = layout_of(plan).public_context(residues)

    @classmethod
    def from_bytes(cls, plan: EncryptionPlan, public_context: bytes) -> PublicRoundKey:
        """Read a public key; the same bytes again give the same object, which never changes.

        The format has room for the public polynomials of this plan alone: a secret key or
        other parameters cannot be expressed. The last key is kept, since the sites of a
        simulation share a process and a round, and a site reads its key once for each order.

        Raises
        ------
        PeerError
            If the length is wrong or a residue is not below its prime.
        """
        return _public_key(plan, bytes(public_context))

    def __repr__(self) -> str:
        return f"PublicRoundKey({self.fingerprint[:16]})"

    def encrypt(self, slots: NDArray[np.uint64]) -> bytes:
        """Encrypt slots.

        Python's lock is released between ciphertexts (a few milliseconds), so that
        heartbeats of other threads go on.

        Parameters
        ----------
        slots : uint64 (S,)
            Each below ``plan.plain_modulus``.

        Returns
        -------
        bytes
            ``plan.ciphertext_bytes`` of them.

        Raises
        ------
        FedllmError
            If the slots do not fit the plan.
        """
        plan = self.plan
        if slots.shape != (plan.slots,) or (plan.plain_modulus and _beyond(slots, plan)):
            raise FedllmError(
                "slots do not fit the encryption plan", "pack with the plan of the round"
            )
        if plan.scheme == "none":
            return slots.astype("<u8").tobytes()
        layout = layout_of(plan)
        return b"".join(
            to_wire(layout.ciphertext_residues(vector), plan.ciphertext_primes)
            for vector in self._vectors(slots)
        )

    def _vectors(self, slots: NDArray[np.uint64]) -> Iterator[Any]:
        plan, native = self.plan, tenseal._ts_cpp
        width = plan.slots_per_ciphertext
        padded = np.zeros(plan.ciphertexts * width, dtype=np.uint64)
        padded[: plan.slots] = slots
        for block in padded.reshape(-1, width):
            if plan.scheme == "ckks":
                yield native.CKKSVector(self._context, block.astype(np.float64).tolist())
            else:
                signed = block.astype(np.int64)
                # TenSEAL takes the representatives around zero.
                signed[signed > plan.plain_modulus // 2] -= plan.plain_modulus
                yield native.BFVVector(self._context, signed.tolist())


@lru_cache(maxsize=1)
def _public_key(plan: EncryptionPlan, public_context: bytes) -> PublicRoundKey:
    return PublicRoundKey(plan, public_context)


class EncryptedSum:
    """The sum of encrypted updates, added up as they arrive.

    Adding ciphertexts of BFV or CKKS is adding their residues (Fan and Vercauteren 2012),
    which needs no key and no foreign parser; one that was added can be taken out again as exactly.
    Memory is that of one sum and one update.

    Parameters
    ----------
    plan : EncryptionPlan
        Parameters of the round.
    public_key : PublicRoundKey
        The round's key; must be of the same plan.
    """

    def __init__(self, plan: EncryptionPlan, public_key: PublicRoundKey) -> None:
        if public_key.plan != plan:
            raise FedllmError("the round key belongs to another plan", "use the round's own plan")
        self.plan = plan
        self.count = 0
        self._seen: set[bytes] = set()
        shape: tuple[int, ...] = (plan.slots,)
        if plan.scheme != "none":
            shape = (plan.ciphertexts, 2, len(plan.ciphertext_primes), plan.poly_degree)
        self._total = np.zeros(shape, dtype=np.uint64)
        self._hidden = np.zeros(plan.lattice.coefficients if plan.lattice else 0, dtype=np.uint64)

    def add(self, blob: bytes) -> None:
        """Add one update. A refused one leaves the sum as it was.

        Parameters
        ----------
        blob : bytes
            What `fedllm.encryption.update.encrypt_levels` returned at a site.

        Raises
        ------
        PeerError
            If the bytes are no ciphertexts of the plan, a ciphertext came before, or the
            plan has no head-room for another update.
        """
        if self.count >= self.plan.max_sites:
            raise PeerError(
                f"the round's plan holds {self.plan.max_sites} updates and no more",
                "plan the round for more sites",
            )
        if self.plan.scheme == "none":
            slots = _clear_slots(self.plan, blob)
            if _beyond(slots, self.plan):
                raise PeerError("a peer sent a value that is not below the modulus")
            self._total += slots
        else:
            # All of it is checked before anything is added.
            arrived = list(_ciphertexts(self.plan, blob))
            hidden = hidden_levels(self.plan, blob)
            self._seen |= self._new_digests(blob)
            self._add_residues(arrived)
            # Modulo 2**64, of which the modulus is a part.
            self._hidden += hidden
        self.count += 1

    def remove(self, blob: bytes) -> None:
        """Take out an update that was added: what is left is as if it had never come."""
        if self.plan.scheme == "none":
            self._total -= _clear_slots(self.plan, blob)
        else:
            moduli = np.array(self.plan.ciphertext_primes, dtype=np.uint64)[None, :, None]
            for total, residues in zip(self._total, _ciphertexts(self.plan, blob), strict=True):
                # Of both, the one that wrapped around is huge.
                np.minimum(total - residues, total + (moduli - residues), out=total)
            self._hidden -= hidden_levels(self.plan, blob)
        self.count -= 1

    def to_bytes(self) -> bytes:
        """Return the sum in the form of an update."""
        if self.plan.scheme == "none":
            return self._total.astype("<u8").tobytes()
        primes, lattice = self.plan.ciphertext_primes, self.plan.lattice
        ciphertexts = b"".join(to_wire(ciphertext, primes) for ciphertext in self._total)
        if lattice is None:
            return ciphertexts
        return ciphertexts + numbers_to_wire(self._hidden, lattice.modulus_bits)

    def _new_digests(self, blob: bytes) -> set[bytes]:
        step = wire_length(self.plan.ciphertext_primes, self.plan.poly_degree)
        view = memoryview(blob)
        end = self.plan.ciphertext_bytes
        parts = [view[start : start + step] for start in range(0, end, step)]
        if self.plan.lattice:
            parts.append(view[end:])
        digests = {sha256(part) for part in parts}
        if len(digests) < len(parts) or not self._seen.isdisjoint(digests):
            raise PeerError(
                "a peer sent a ciphertext twice, or one that another site sent",
                "leave the site out of the round",
            )
        return digests

    def _add_residues(self, arrived: list[NDArray[np.uint64]]) -> None:
        moduli = np.array(self.plan.ciphertext_primes, dtype=np.uint64)[None, :, None]
        for total, residues in zip(self._total, arrived, strict=True):
            np.add(total, residues, out=total)
            # Below the modulus the difference wraps around to a huge number.
            np.minimum(total, total - moduli, out=total)


def _ciphertexts(plan: EncryptionPlan, blob: bytes) -> Iterator[NDArray[np.uint64]]:
    """Check and yield the ciphertexts of a foreign vector, uint64 (2, primes, N) each."""
    if len(blob) != plan.update_bytes:
        raise PeerError(
            f"a peer sent {len(blob)} bytes of ciphertext where the plan has {plan.update_bytes}"
        )
    view = memoryview(blob)
    step = wire_length(plan.ciphertext_primes, plan.poly_degree)
    for start in range(0, plan.ciphertext_bytes, step):
        yield from_wire(view[start : start + step], plan.ciphertext_primes, plan.poly_degree)


def hidden_levels(plan: EncryptionPlan, blob: bytes) -> NDArray[np.uint64]:
    """Read the levels of an update or sum that are under a lattice mask.

    Parameters
    ----------
    plan : EncryptionPlan
        Parameters of the round.
    blob : bytes
        An update or a sum.

    Returns
    -------
    uint64 (coefficients,)
        None without a lattice mask.

    Raises
    ------
    PeerError
        If the length is wrong, or there is something beyond the last bit.
    """
    if plan.lattice is None:
        return np.zeros(0, dtype=np.uint64)
    view = memoryview(blob)[plan.ciphertext_bytes :]
    return numbers_from_wire(view, plan.lattice.coefficients, plan.lattice.modulus_bits)


def _clear_slots(plan: EncryptionPlan, blob: bytes) -> NDArray[np.uint64]:
    if len(blob) != plan.update_bytes:
        raise PeerError(f"a peer sent {len(blob)} bytes where the plan has {plan.update_bytes}")
    return np.frombuffer(blob, dtype="<u8").astype(np.uint64)


def _beyond(slots: NDArray[np.uint64], plan: EncryptionPlan) -> bool:
    return bool(slots.max() >= plan.plain_modulus)


def _opened_slots(plan: EncryptionPlan, values: NDArray[Any]) -> NDArray[np.uint64]:
    if plan.scheme == "ckks":
        return flood_and_round(values, plan, RandomStream.secure())
    # TenSEAL gives the representatives around zero.
    return np.where(values < 0, values + plan.plain_modulus, values).astype(np.uint64)
