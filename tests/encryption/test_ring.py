"""Products in the ring are exact, at the largest factors too, and the public part is uniform."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from fedllm.encryption.ring import multiply, public_elements


def product_by_hand(element, short):
    """Schoolbook in whole numbers of any size."""
    degree = len(element)
    left, right = [int(x) for x in element], [int(x) for x in short]
    result = [0] * degree
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            place, sign = (i + j, 1) if i + j < degree else (i + j - degree, -1)
            result[place] += sign * a * b
    return [value % 2**64 for value in result]


@pytest.mark.parametrize("degree", [1, 2, 8, 64])
def test_product_is_that_of_polynomials_modulo_their_ring(degree):
    random = np.random.default_rng(degree)
    elements = random.integers(0, 2**64, (3, degree), dtype=np.uint64)
    short = random.integers(-500, 501, degree)
    expected = [product_by_hand(element, short) for element in elements]
    assert multiply(elements, short).tolist() == expected


@pytest.mark.parametrize("degree", [2048, 4096])
@pytest.mark.parametrize("kind", ["largest", "alternating", "random"])
def test_product_is_exact_at_the_largest_factors(degree, kind):
    """Against a convolution in integers, of factors as large as the docstring allows."""
    random = np.random.default_rng(3)
    size = int(2**19 / degree**0.5)
    signs = {
        "largest": np.ones(degree),
        "alternating": (-1.0) ** np.arange(degree),
        "random": random.choice([-1, 1], degree),
    }[kind]
    short = (size * signs).astype(np.int64)
    element = np.full(degree, 2**64 - 1, dtype=np.uint64)
    if kind == "random":
        element = random.integers(0, 2**64, degree, dtype=np.uint64)
    doubled = np.concatenate([-short, short]).view(np.uint64)
    # Coefficient k is the sum over i of element[i] * short[k - i], with a sign if that wraps.
    windows = np.lib.stride_tricks.sliding_window_view(doubled, degree)[1:]
    expected = (windows * element[::-1]).sum(axis=1, dtype=np.uint64)
    assert (multiply(element[None], short)[0] == expected).all()


def test_public_elements_are_shake128_of_seed_and_block():
    elements = public_elements(b"seed", 3, 2, 2048)
    stream = hashlib.shake_128(b"seed" + bytes([3, 0, 0, 0, 0, 0, 0, 0])).digest(8 * 4096)
    assert elements.astype("<u8").tobytes() == stream
    assert stats.kstest(elements.ravel() / 2.0**64, "uniform").pvalue > 1e-6
    assert not (public_elements(b"seed", 4, 2, 2048) == elements).any()
