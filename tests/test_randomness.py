from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats

from fedllm.randomness import RandomStream


def test_seeded_streams_repeat_and_labels_separate_them() -> None:
    one = RandomStream.seeded(1, "site", 2).bytes(64)
    assert one == RandomStream.seeded(1, "site", 2).bytes(64)
    others = [(2, "site", 2), (1, "site", 3), (1, "site", "2"), (1, "site2"), (1,)]
    assert all(RandomStream.seeded(*labels).bytes(64) != one for labels in others)


def test_secure_streams_never_repeat() -> None:
    assert RandomStream.secure().bytes(32) != RandomStream.secure().bytes(32)


def test_a_stream_does_not_depend_on_how_it_is_cut() -> None:
    whole = RandomStream.seeded(1).bytes(100)
    stream = RandomStream.seeded(1)
    assert stream.bytes(7) + stream.bytes(93) == whole


def test_a_stream_shows_nothing_and_cannot_be_copied() -> None:
    stream = RandomStream.secure()
    assert repr(stream) == "RandomStream(<hidden>)"
    with pytest.raises(TypeError):
        pickle.dumps(stream)


@pytest.mark.parametrize("parts", [1, 4])
def test_normal_numbers_follow_the_normal_distribution(parts: int) -> None:
    sample = RandomStream.seeded(5).normal(200_001, parts)
    assert sample.shape == (200_001,)
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert stats.norm.sf(np.abs(sample).max()) * len(sample) < 3
    halves = np.corrcoef(sample[:100_000], sample[100_001:])[0, 1]
    assert abs(halves) < 0.015


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_normal_numbers_are_sums_of_box_muller_pairs(count: int) -> None:
    stream, pairs = RandomStream.seeded(6), (count + 1) // 2
    expected = np.zeros(2 * pairs)
    for _ in range(4):
        radius = np.sqrt(-2 * np.log1p(-stream.uniform(pairs)))
        # Half a turn on, as good as any.
        angle = 2 * np.pi * stream.uniform(pairs) - np.pi
        expected += np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]) / 2
    found = RandomStream.seeded(6).normal(count)
    np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-13)


@pytest.mark.parametrize("end", [0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53])
def test_normal_numbers_are_finite_at_the_ends_of_the_uniform_ones(end: float, monkeypatch) -> None:
    for radius in (0.0, 1 - 2.0**-53):
        drawn = iter([np.array([radius]), np.array([end])])
        monkeypatch.setattr(RandomStream, "uniform", lambda *_, drawn=drawn: next(drawn))
        found = RandomStream.secure().normal(2, parts=1)
        assert np.linalg.norm(found) == pytest.approx(np.sqrt(-2 * np.log(1 - radius)), abs=1e-12)


def test_below_is_uniform_even_where_a_remainder_would_favour_small_numbers() -> None:
    bound = 3 * 2**62
    sample = RandomStream.seeded(3).below(bound, 30_000)
    assert sample.max() < bound
    counts = np.bincount((sample // np.uint64(2**62)).astype(int), minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert set(RandomStream.seeded(3).below(1, 5)) == {0}


def test_poisson_sample_includes_each_item_at_the_rate() -> None:
    stream = RandomStream.seeded(9)
    counts = np.zeros(50)
    for _ in range(4000):
        counts[stream.poisson_sample(50, 0.3)] += 1
    z = (counts - 1200) / np.sqrt(4000 * 0.21)
    assert np.abs(z).max() < 4.5
    assert len(stream.poisson_sample(50, 1.0)) == 50
    assert len(stream.poisson_sample(0, 0.5)) == 0


def test_no_item_is_chosen_more_often_than_its_rate_says(monkeypatch) -> None:
    """A rate below the grid of the random numbers is never drawn, and charged all the same."""
    stream = RandomStream.seeded(1)
    grid = np.arange(4) * 2.0**-53
    monkeypatch.setattr(stream, "uniform", lambda count: grid[:count])
    for rate, chosen in ((0.5, 0), (1.0, 1), (1.5, 1), (2.0, 2), (3.999, 3)):
        assert len(stream.poisson_sample(4, rate * 2.0**-53)) == chosen
    grid = 1.0 - np.arange(1, 5) * 2.0**-53
    assert len(stream.poisson_sample(4, 1.0)) == 4
    assert len(stream.poisson_sample(4, 1.0 - 2.0**-53)) == 3


def test_permutation() -> None:
    assert sorted(RandomStream.seeded(1).permutation(100)) == list(range(100))
