"""FedSVD: the product is the exact one, A stays orthogonal, and the optimiser turns with it."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.test_methods import model_of
from hypothesis import given
from hypothesis import strategies as st

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.adapters.fedsvd import turned
from fedllm.config import RoundsSection
from fedllm.models.lora import ORTHONORMAL_SCALE
from fedllm.training.server_optimizer import ServerOptimizer

SCALED = ORTHONORMAL_SCALE**2


def products(method, adapter):
    return [
        adapter[b.slice].reshape(b.shape).astype(float)
        @ adapter[a.slice].reshape(a.shape).astype(float)
        for a, b in method._pairs()
    ]


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_a_turned_pair_has_the_same_product_and_orthogonal_rows(rank, out, left, seed, shrunk):
    random = np.random.default_rng(seed)
    a = random.normal(size=(rank, 8))
    # Of any rank, none included.
    b = random.normal(size=(out, left)) @ random.normal(size=(left, rank)) * 10.0 ** -(3 * shrunk)
    new_a, new_b = turned(a, b)
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=1e-10)
    np.testing.assert_allclose(new_a @ new_a.T, SCALED * np.eye(rank), atol=1e-12)
    # Columns of B by size, each at right angles to the others: U S.
    lengths = np.linalg.norm(new_b, axis=0)
    assert (np.diff(lengths) <= 1e-9).all()
    gram = new_b.T @ new_b
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    # It spans what the old rows spanned, whatever B is.
    np.testing.assert_allclose(a - a @ np.linalg.pinv(new_a) @ new_a, 0, atol=1e-9)


def test_one_round_is_the_exact_update(tiny_checkpoint):
    """The next product is that of the moved B and the old A, and no site's change is lost."""
    method = adapter_of(model_of(tiny_checkpoint, "fedsvd"))
    adapter, random = method.start(), np.random.default_rng(1)
    for _ in range(3):
        mean = random.normal(size=method.up.length)
        moved = adapter.copy()
        moved[method.down.places(method.up)] += mean.astype(np.float32)
        exact = products(method, moved)
        adapter = method.next(adapter, mean, lambda at, by: at + by.astype(np.float32))
        for found, right in zip(products(method, adapter), exact, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-5)
        heads = [s.slice for s in method.down.segments if s.kind == "head"]
        assert all(np.array_equal(adapter[place], moved[place]) for place in heads)


@pytest.mark.parametrize("optimizer", ["average", "momentum"])
def test_turning_a_changes_no_step_of_a_linear_optimiser(tiny_checkpoint, optimizer):
    """The same gradients of the product, with A turned each round and with A standing still."""
    rounds = RoundsSection(optimizer=optimizer, learning_rate=0.3)
    still = adapter_of(model_of(tiny_checkpoint, "ffa_orthonormal"))
    turning = adapter_of(model_of(tiny_checkpoint, "fedsvd"))
    optimizers = [ServerOptimizer(rounds, method.up) for method in (still, turning)]
    b, whole = still.start(), turning.start()
    first = {s.name: whole[s.slice].reshape(s.shape) for s in turning.down.segments}
    random = np.random.default_rng(2)
    for _ in range(5):
        change = random.normal(size=still.up.length)
        b = still.advance(b, change, optimizers[0])
        # A site's gradient of B is that of the product, times A.
        seen, ups = change.copy(), {s.name: s for s in turning.up.segments}
        for one, other in turning._pairs():
            place = ups[other.name].slice
            a = whole[one.slice].reshape(one.shape).astype(float)
            to = np.linalg.pinv(first[one.name].astype(float)) @ np.eye(len(a))
            seen[place] = (change[place].reshape(other.shape) @ (a @ to).T).ravel()
        whole = turning.advance(whole, seen, optimizers[1])
    stills = {s.name: b[s.slice].reshape(s.shape) for s in still.up.segments}
    for (one, other), found in zip(turning._pairs(), products(turning, whole), strict=True):
        right = stills[other.name].astype(float) @ first[one.name].astype(float)
        np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max() + 1e-6)


def test_adams_squares_stay_positive_and_keep_their_sum(tiny_checkpoint):
    model = model_of(tiny_checkpoint, "fedsvd")
    method = adapter_of(model)
    optimizer = ServerOptimizer(RoundsSection(optimizer="adam"), *sent_in_turn(model))
    adapter, random = method.start(), np.random.default_rng(3)
    for _ in range(3):
        before = optimizer.state()
        mean = random.normal(size=method.up.length)
        adapter = method.advance(adapter, mean, optimizer)
        after = optimizer.state()
        right = 0.999 * before["square"] + 0.001 * mean**2
        assert (after["square"] >= 0).all()
        for segment in method.up.segments:
            rows = segment.shape if segment.kind == "B" else (segment.size, 1)
            np.testing.assert_allclose(
                after["square"][segment.slice].reshape(rows).sum(axis=1),
                right[segment.slice].reshape(rows).sum(axis=1),
                rtol=1e-4,
            )
        assert not np.array_equal(after["mean"], 0.9 * before["mean"] - 0.1 * mean)
