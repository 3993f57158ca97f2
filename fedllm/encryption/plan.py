"""Choose encryption parameters for one vector length and cohort, and prove that they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from fedllm.canonical import canonical_json, read_object, reading, sha256_hex
from fedllm.encryption.lattice import LatticeMask, lattice_masks
from fedllm.encryption.numbers import coefficient_primes, transform_prime
from fedllm.errors import ConfigError, PeerError
from fedllm.limits import MAX_SITES

Scheme = Literal["bfv", "ckks", "none"]

# Bits of the whole coefficient modulus that keep 128 bits of security with a ternary secret:
# Bossuat et al. 2024, "Security guidelines for implementing homomorphic encryption". They lie
# one to four bits under the table of the Homomorphic Encryption Standard (2018).
SECURITY_BITS = 128
MODULUS_BITS_LIMIT = {2048: 53, 4096: 106, 8192: 214}

MAX_LENGTH = 1 << 28
# Microsoft SEAL allows 60 bits for the plaintext modulus and for one prime.
_WORD_BITS = 60
_SPECIAL_PRIME_BITS = 20
# Microsoft SEAL draws errors from a centred binomial distribution on [-21, 21].
_ERROR_BOUND = 21
_FAILURE_BITS = 40
_CKKS_DEGREE, _CKKS_COEFF_BITS = 4096, (60, 46)


@dataclass(frozen=True)
class EncryptionPlan:
    """Everything both ends must agree on to add up encrypted vectors.

    Attributes
    ----------
    scheme : {"bfv", "ckks", "none"}
        "none" carries the same quantised levels in clear.
    bits : int
        Bits of one quantised parameter.
    max_sites : int
        Most updates that one sum may hold.
    length : int
        Parameters of the vector, P.
    masked : bool
        Whether pairwise masks lie under the encryption.
    poly_degree : int
        Ring dimension N; 0 for scheme "none".
    coeff_bits : tuple of int
        Bits of the coefficient primes; the last one never reaches a ciphertext.
    plain_modulus : int
        Modulus t of a slot; 0 for CKKS.
    fields_per_slot, field_bits : int
        Levels packed in one slot, and the bits that each has, head-room included. With a
        lattice mask, coefficients of its secret.
    slots : int
        Slots in use, S: the packed levels and one slot that counts updates. With a lattice
        mask, the packed secret alone.
    ciphertexts : int
        Ciphertexts of one update, C.
    scale_bits : int
        Binary logarithm of the CKKS scale; 0 otherwise.
    security_bits : int
        Bits of security of the parameters; 0 for scheme "none".
    lattice : LatticeMask, optional
        How the levels are hidden where only a short secret is masked and encrypted.
    """

    scheme: Scheme
    bits: int
    max_sites: int
    length: int
    masked: bool
    poly_degree: int
    coeff_bits: tuple[int, ...]
    plain_modulus: int
    fields_per_slot: int
    field_bits: int
    slots: int
    ciphertexts: int
    scale_bits: int
    security_bits: int
    lattice: LatticeMask | None = None

    @property
    def top_level(self) -> int:
        """Largest quantised level. It is even, so that zero is a level of its own."""
        return (1 << self.bits) - 2

    @property
    def key_primes(self) -> tuple[int, ...]:
        """Primes of the keys."""
        return coefficient_primes(self.coeff_bits, self.poly_degree)

    @property
    def ciphertext_primes(self) -> tuple[int, ...]:
        """Primes of a ciphertext: all but the last of the keys'."""
        return self.key_primes[:-1]

    @property
    def slots_per_ciphertext(self) -> int:
        """Slots of one ciphertext; a CKKS slot is complex and takes two coefficients."""
        return self.poly_degree // 2 if self.scheme == "ckks" else self.poly_degree

    @property
    def update_bytes(self) -> int:
        """Length of one update or sum on the wire, without its envelope."""
        hidden = self.lattice.hidden_bytes if self.lattice else 0
        return self.ciphertext_bytes + hidden

    @property
    def ciphertext_bytes(self) -> int:
        """Length of the ciphertexts of one update or sum, with which it begins."""
        if self.scheme == "none":
            return 8 * self.slots
        widths = sum(prime_width(bits) for bits in self.coeff_bits[:-1])
        return self.ciphertexts * 2 * self.poly_degree * widths

    @property
    def expansion(self) -> float:
        """Bytes on the wire divided by the bytes of the vector as float32."""
        return self.update_bytes / (4 * self.length)

    def to_bytes(self) -> bytes:
        """Write the plan as canonical JSON (sorted keys, no spaces, ASCII).

        A plan without a lattice mask does not mention it, as before there were any.
        """
        return self._written

    @cached_property
    def _written(self) -> bytes:
        values = asdict(self)
        if self.lattice is None:
            del values["lattice"]
        return canonical_json(values)

    @classmethod
    def from_bytes(cls, blob: bytes) -> EncryptionPlan:
        """Read a plan, and accept it only if this planner would choose exactly the same.

        Every message of an attempt brings its plan: bytes that were read before are known.

        Raises
        ------
        PeerError
            If the bytes are not the canonical form of a plan of this version.
        """
        return _read(bytes(blob))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the plan's bytes, in hex."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return sha256_hex(self.to_bytes())


_REQUEST = {"scheme": str, "bits": int, "max_sites": int, "length": int, "masked": bool}


@lru_cache(maxsize=64)
def _read(blob: bytes) -> EncryptionPlan:
    with reading(_foreign_plan()):
        if len(blob) > 4096:
            raise ValueError
        values = read_object(blob)
        request = {name: values[name] for name in _REQUEST}
        if any(type(request[name]) is not kind for name, kind in _REQUEST.items()):
            raise ValueError
    try:
        plan = make_plan(**request)
    except ConfigError:
        raise _foreign_plan() from None
    if plan.to_bytes() != blob:
        raise _foreign_plan()
    return plan


def _foreign_plan() -> PeerError:
    return PeerError(
        "a peer sent encryption parameters that this version would not choose",
        "run the same version of fedllm on all sides",
    )


def prime_width(bits: int) -> int:
    """Bytes that one residue modulo a prime of ``bits`` bits takes on the wire."""
    return -(-bits // 8)


def noise_bound(poly_degree: int, ciphertexts: int, addends: int, special_bits: int) -> float:
    """Bound the noise of every coefficient of a sum of fresh BFV ciphertexts.

    A fresh ciphertext is switched down from the key modulus by the special prime P. Its
    noise is ``(e u + e1 + e2 s) / P``, bounded outright because ``u`` and ``s`` are ternary
    and the errors at most 21; the rounding of ``c0`` and of the scaled message, one half
    each; and the rounding of ``c1`` times ``s``, a sum of N independent terms in [-1/2, 1/2],
    to which Hoeffding's inequality applies. All coefficients of the sum hold together but
    for a probability of 2**-40.

    Parameters
    ----------
    poly_degree : int
        Ring dimension N.
    ciphertexts : int
        Ciphertexts of one vector.
    addends : int
        Vectors in the sum.
    special_bits : int
        Bits of the special prime.

    Returns
    -------
    float
        The bound on the absolute noise, in units of the ciphertext modulus.
    """
    fresh = _ERROR_BOUND * (2 * poly_degree + 1) / 2.0 ** (special_bits - 1)
    coefficients = ciphertexts * poly_degree
    exponent = math.log(2 * coefficients) + _FAILURE_BITS * math.log(2)
    rounding = math.sqrt(addends * poly_degree * exponent / 2)
    return addends * (fresh + 1.0) + rounding


def make_plan(
    scheme: Scheme, bits: int, max_sites: int, length: int, masked: bool
) -> EncryptionPlan:
    """Choose the parameters with the fewest bytes that hold the sum of ``max_sites`` updates.

    A masked vector gets a lattice mask where that takes fewer bytes, and where its secret is
    shorter than the vector.

    Parameters
    ----------
    scheme : {"bfv", "ckks", "none"}
        BFV is exact. CKKS rounds and floods what it opens. "none" encrypts nothing.
    bits : int
        Bits of one quantised parameter, 4 to 24.
    max_sites : int
        Most updates in one sum, 1 to 16,384.
    length : int
        Parameters of the vector.
    masked : bool
        Whether pairwise masks are added under the encryption (BFV only).

    Raises
    ------
    ConfigError
        If no parameters give 128 bits of security and a sum that cannot overflow.
    """
    _check_request(scheme, bits, max_sites, length, masked)
    return _planned(scheme, bits, max_sites, length, masked)


def _check_request(scheme: str, bits: int, max_sites: int, length: int, masked: bool) -> None:
    if scheme not in get_args(Scheme):
        raise ConfigError(f"unknown encryption scheme {scheme!r}", "choose bfv, ckks or none")
    for name, value, low, high in (
        ("bits", bits, 4, 24),
        ("max_sites", max_sites, 1, MAX_SITES),
        ("length", length, 1, MAX_LENGTH),
    ):
        if not low <= value <= high:
            raise ConfigError(
                f"encryption: {name} = {value} is outside {low} to {high}",
                f"choose {name} from {low} to {high}",
            )
    if masked and scheme != "bfv":
        raise ConfigError(
            f"pairwise masks need the exact modular sum of BFV, not scheme '{scheme}'",
            "set encryption.scheme = 'bfv' or encryption.masks = false",
        )


@lru_cache(maxsize=64)
def _planned(
    scheme: Scheme, bits: int, max_sites: int, length: int, masked: bool
) -> EncryptionPlan:
    request: dict[str, Any] = {
        "scheme": scheme,
        "bits": bits,
        "max_sites": max_sites,
        "length": length,
        "masked": masked,
    }
    if scheme == "none":
        return _clear_plan(request)
    candidates = list(_ckks_plans(request) if scheme == "ckks" else _bfv_plans(request))
    if masked:
        candidates += _lattice_plans(request)
    best = min(candidates, key=lambda plan: (plan.update_bytes, plan.poly_degree), default=None)
    if best is None:
        raise ConfigError(
            f"no secure {scheme} parameters hold {bits} bits for {max_sites} sites",
            "use fewer bits or fewer sites in one round",
        )
    return best


def _field_bits(request: dict[str, Any]) -> int:
    return int(request["max_sites"] * ((1 << request["bits"]) - 2)).bit_length()


def _slots(request: dict[str, Any], fields_per_slot: int) -> int:
    return -(-int(request["length"]) // fields_per_slot) + 1


def _clear_plan(request: dict[str, Any]) -> EncryptionPlan:
    width = _field_bits(request)
    packed = _WORD_BITS // width
    return EncryptionPlan(
        **request,
        poly_degree=0,
        coeff_bits=(),
        plain_modulus=1 << _WORD_BITS,
        fields_per_slot=packed,
        field_bits=width,
        slots=_slots(request, packed),
        ciphertexts=0,
        scale_bits=0,
        security_bits=0,
    )


def _bfv_plans(request: dict[str, Any]) -> Iterator[EncryptionPlan]:
    width, field = _field_bits(request), request["max_sites"] * ((1 << request["bits"]) - 2)
    for packed in range(1, _WORD_BITS // width + 1):
        largest_sum = sum(field << (width * place) for place in range(packed))
        # One slot more counts updates.
        slots = _slots(request, packed)
        yield from _in_bfv(request, packed, width, slots, max(largest_sum, request["max_sites"]))


def _lattice_plans(request: dict[str, Any]) -> Iterator[EncryptionPlan]:
    top_level = (1 << request["bits"]) - 2
    for lattice in lattice_masks(
        request["length"], request["max_sites"], top_level, MODULUS_BITS_LIMIT
    ):
        width = lattice.secret_bits
        for packed in range(1, _WORD_BITS // width + 1):
            slots = -(-lattice.degree // packed)
            largest_sum = (1 << (width * packed)) - 1
            for plan in _in_bfv(request, packed, width, slots, largest_sum):
                yield replace(plan, lattice=lattice)


def _in_bfv(
    request: dict[str, Any], packed: int, width: int, slots: int, largest_sum: int
) -> Iterator[EncryptionPlan]:
    """Yield the smallest parameters of each ring in which slots up to a largest sum fit."""
    for degree in MODULUS_BITS_LIMIT:
        modulus = _plain_modulus(degree, largest_sum)
        ciphertexts = -(-slots // degree)
        coeff_bits = _bfv_coeff_bits(request, degree, modulus, ciphertexts)
        if modulus and coeff_bits:
            yield EncryptionPlan(
                **request,
                poly_degree=degree,
                coeff_bits=coeff_bits,
                plain_modulus=modulus,
                fields_per_slot=packed,
                field_bits=width,
                slots=slots,
                ciphertexts=ciphertexts,
                scale_bits=0,
                security_bits=SECURITY_BITS,
            )


def _plain_modulus(degree: int, largest_sum: int) -> int:
    for bits in range(largest_sum.bit_length(), _WORD_BITS + 1):
        modulus = transform_prime(bits, degree)
        if modulus > largest_sum:
            return modulus
    return 0


def _bfv_coeff_bits(
    request: dict[str, Any], degree: int, modulus: int, ciphertexts: int
) -> tuple[int, ...]:
    noise = noise_bound(degree, ciphertexts, request["max_sites"], _SPECIAL_PRIME_BITS)
    # Whole bytes: a residue then fills the bytes that it takes on the wire.
    for total in range(24, MODULUS_BITS_LIMIT[degree] - _SPECIAL_PRIME_BITS + 1, 8):
        half = -(-total // 16) * 8
        data_bits = (total,) if total <= _WORD_BITS else (half, total - half)
        coeff_bits = (*data_bits, _SPECIAL_PRIME_BITS)
        primes = coefficient_primes(coeff_bits, degree)
        if 0 in primes or modulus in primes:
            continue
        if math.prod(primes[:-1]) > 2 * modulus * noise:
            return coeff_bits
    return ()


def _ckks_plans(request: dict[str, Any]) -> Iterator[EncryptionPlan]:
    degree = _CKKS_DEGREE
    slots = _slots(request, 1)
    # Two bits stay free for the sign and the noise.
    scale_bits = _CKKS_COEFF_BITS[0] - 2 - _field_bits(request)
    yield EncryptionPlan(
        **request,
        poly_degree=degree,
        coeff_bits=_CKKS_COEFF_BITS,
        plain_modulus=0,
        fields_per_slot=1,
        field_bits=_field_bits(request),
        slots=slots,
        ciphertexts=-(-slots // (degree // 2)),
        scale_bits=scale_bits,
        security_bits=SECURITY_BITS,
    )
