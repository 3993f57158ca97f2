"""The order of data: everything once a pass, shares kept, resumable."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.pretraining.sampling import PackedRows, PassagePairs, Passages, Sampler, without_padding


class Numbers:
    """A source whose pieces are its own index."""

    def __init__(self, count):
        self.size = count

    def count(self, epoch):
        return self.size

    def piece(self, epoch, index):
        return np.asarray([index])


@given(st.integers(10, 200), st.integers(2, 9), st.integers(0, 3))
def test_rows_cover_the_stream_without_overlap(tokens, length, epoch):
    rows = PackedRows([np.arange(tokens)], length, seed=1)
    if tokens <= length:
        return
    cut = [rows.piece(epoch, i) for i in range(rows.count(epoch))]
    assert all(len(r) == length + 1 for r in cut)
    for one, other in itertools.pairwise(cut):
        assert one[-1] == other[0]
    # Less than a row is lost at the beginning, and less than one at the end.
    assert cut[0][0] < length
    assert tokens - 1 - cut[-1][-1] < length


def test_passes_begin_at_different_offsets():
    rows = PackedRows([np.arange(1000)], 100, seed=1)
    assert len({int(rows.piece(epoch, 0)[0]) for epoch in range(5)}) > 2


def test_rows_of_several_shards():
    rows = PackedRows([np.arange(10), np.arange(3), np.arange(100, 112)], 5, seed=0)
    assert [rows.piece(0, i).tolist() for i in range(rows.count(0))] == [
        [0, 1, 2, 3, 4, 5],
        [100, 101, 102, 103, 104, 105],
        [105, 106, 107, 108, 109, 110],
    ]


def test_passages_hold_one_document_each():
    shard = np.asarray([9, *range(100, 120), 9, 1, 2, 9, *range(200, 210), 9])
    passages = Passages([shard], 12, boundary=9)
    assert [without_padding(passages.piece(0, i)).tolist() for i in range(passages.count(0))] == [
        list(range(100, 112)),
        list(range(112, 120)),
        list(range(200, 210)),
    ]


@given(st.integers(2, 9), st.integers(0, 3))
def test_a_passage_is_never_its_own_partner(count, epoch):
    shard = np.asarray([0] + [t for i in range(count) for t in [100 + i] * 8 + [0]])
    pairs = PassagePairs(Passages([shard], 8, boundary=0), seed=2)
    for index in range(pairs.count(epoch)):
        one, other = pairs.piece(epoch, index)
        assert one[0] == 100 + index
        assert other[0] != one[0]


def test_each_pass_deals_every_piece_once_in_another_order():
    sampler = Sampler([Numbers(50)], None, seed=3)
    first, second = ([int(p[0]) for p in sampler.next(50)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


@given(
    st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 60),
)
def test_mixture_weights_are_kept_at_every_moment(weights, batch, steps):
    sampler = Sampler([Numbers(7) for _ in weights], weights, seed=0)
    for _ in range(steps):
        sampler.next(batch)
    shares = np.asarray(weights) / sum(weights)
    dealt = np.asarray(sampler.state()["dealt"])
    assert np.abs(dealt - shares * batch * steps).max() <= len(weights)


@given(st.integers(0, 40), st.integers(1, 40))
def test_a_restored_sampler_goes_on_alike(before, after):
    one, other = (Sampler([Numbers(7), Numbers(11)], [1.0, 2.0], seed=5) for _ in range(2))
    one.next(before)
    other.restore(one.state())
    expected, found = one.next(after), other.next(after)
    assert [int(p[0]) for p in found] == [int(p[0]) for p in expected]


def test_shares_default_to_sizes():
    sampler = Sampler([Numbers(30), Numbers(10)], None, seed=0)
    sampler.next(40)
    assert sampler.state()["dealt"] == pytest.approx([30, 10])
