"""Primes, against trial division and against what Microsoft SEAL itself picks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.encryption.ciphertext_format import layout_of
from fedllm.encryption.numbers import coefficient_primes, is_prime, transform_prime
from fedllm.encryption.plan import make_plan


@given(st.integers(0, 200_000))
def test_prime_as_trial_division_says(number):
    trial = number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
    assert is_prime(number) == trial


@pytest.mark.parametrize("number", [3215031751, 3474749660383, 341550071728321, 2**61 + 1])
def test_strong_pseudoprimes_are_no_primes(number):
    assert not is_prime(number)


@given(st.integers(15, 60), st.sampled_from([2048, 4096, 8192]))
def test_transform_prime_has_the_bits_and_the_root_of_unity(bits, degree):
    prime = transform_prime(bits, degree)
    if prime:
        assert prime.bit_length() == bits and is_prime(prime) and prime % (2 * degree) == 1


def test_too_few_bits_have_no_transform_prime():
    assert transform_prime(12, 4096) == 0


def test_the_same_primes_as_microsoft_seal_also_when_a_size_occurs_twice():
    plan = make_plan("bfv", 16, 100, 10**6, False)
    assert len(set(plan.coeff_bits)) < len(plan.coeff_bits)
    # Making the layout compares with the primes in Microsoft SEAL's own parameters.
    assert layout_of(plan).plan.key_primes == coefficient_primes(plan.coeff_bits, 4096)
