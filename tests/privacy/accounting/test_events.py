"""Events: strict codec, validation, folding."""

import math

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dp_events import to_dp_event

from fedllm.canonical import canonical_json
from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import (
    MAX_SHARES,
    MAX_STEPS,
    Folded,
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    Stated,
    fold,
    from_json,
    to_json,
)
from fedllm.privacy.discrete import LARGEST_SHARE

noises = st.floats(0, 1e6)
events = st.one_of(
    st.builds(PoissonGaussian, st.floats(0, 1), noises, st.integers(0, 10**9)),
    st.builds(Gaussian, noises, st.integers(0, 10**9)),
    st.just(NonPrivate()),
    st.builds(Stated, st.floats(0, 1e6), st.floats(0, 1)),
)


@given(events)
def test_json_round_trip(event):
    import json

    encoded = canonical_json(to_json(event))
    assert from_json(json.loads(encoded)) == event
    assert canonical_json(json.loads(encoded)) == encoded


def test_what_is_wrong_with_a_number_of_steps_and_what_to_do():
    for steps, words in (
        (1.5, ("steps must be a whole number", "count every step that was taken")),
        (-1, ("steps is out of range", f"give a number in [0, {MAX_STEPS}]")),
    ):
        with pytest.raises(ConfigError) as caught:
            PoissonGaussian(0.1, 1.0, steps)
        assert (caught.value.message, caught.value.remedy) == words


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"type": "laplace", "noise_multiplier": 1.0},
        {"type": ["gaussian"], "noise_multiplier": 1.0, "count": 1},
        {"type": "gaussian", "noise_multiplier": 1.0},
        {"type": "gaussian", "noise_multiplier": 1.0, "count": 1, "extra": 0},
        {"type": "gaussian", "noise_multiplier": "1.0", "count": 1},
        {"type": "gaussian", "noise_multiplier": True, "count": 1},
        {"type": "gaussian", "noise_multiplier": 1.0, "count": 1.5},
        {"type": "gaussian", "noise_multiplier": 1.0, "count": True},
        {"type": "non_private", "count": 1},
        {"type": "stated", "epsilon": -1.0, "delta": 0.0},
        {"type": "stated", "epsilon": 1.0, "delta": 1.5},
        {"type": "stated", "epsilon": 1.0},
    ],
)
def test_unknown_or_malformed_events_are_refused(value):
    with pytest.raises(ConfigError):
        from_json(value)


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [
        (-0.1, 1, 1),
        (1.1, 1, 1),
        (math.nan, 1, 1),
        (0.1, -1, 1),
        (0.1, math.inf, 1),
        (0.1, math.nan, 1),
        (0.1, 1, -1),
        (0.1, 1, 10**13),
        (0.1, 1, 1.0),
    ],
)
def test_impossible_values_are_refused(rate, noise, steps):
    with pytest.raises(ConfigError):
        PoissonGaussian(rate, noise, steps)


def test_numpy_numbers_become_plain_ones():
    import numpy as np

    event = PoissonGaussian(np.float64(0.1), np.float32(1.0), np.int64(3))
    assert canonical_json(to_json(event)) == canonical_json(to_json(PoissonGaussian(0.1, 1.0, 3)))


@given(st.lists(events, max_size=8), st.randoms())
def test_folding_ignores_order_and_splitting(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(items)


def test_equal_rounds_fold_into_one_composed_event():
    rounds = [PoissonGaussian(0.1, 1.0, 10)] * 1000
    assert fold(rounds) == fold([PoissonGaussian(0.1, 1.0, 10_000)])
    assert fold(rounds).sampled == ((0.1, 1.0, 10_000),)


def test_unsampled_gaussians_are_one_gaussian():
    items = [PoissonGaussian(1.0, 2.0, 3), Gaussian(4.0, 5)]
    assert fold(items) == Folded((), 3 / 4 + 5 / 16, False)


def test_noiseless_release_is_not_private_but_no_release_is():
    assert fold([PoissonGaussian(0.5, 0.0, 1)]).non_private
    assert fold([Gaussian(1e-120)]).non_private
    assert fold([PoissonGaussian(0.5, 0.0, 0), PoissonGaussian(0.0, 0.0, 9)]) == Folded()


def test_within_is_composition_of_less():
    small = fold([PoissonGaussian(0.1, 1.0, 5)])
    large = fold([PoissonGaussian(0.1, 1.0, 6), Gaussian(3.0)])
    assert small.within(large)
    assert not large.within(small)
    assert not fold([PoissonGaussian(0.1, 1.1, 1)]).within(large)
    assert not fold([NonPrivate()]).within(large)
    assert not fold([Gaussian(1.0)]).within(large)


def test_dp_accounting_understands_our_events():
    accountant = dp_accounting.rdp.RdpAccountant()
    for event in (PoissonGaussian(0.1, 1.0, 100), Gaussian(3.0, 2)):
        accountant.compose(to_dp_event(event))
    assert accountant.get_epsilon(1e-5) > 7
    accountant.compose(to_dp_event(NonPrivate()))
    assert math.isinf(accountant.get_epsilon(1e-5))


@pytest.mark.parametrize("value", [math.nan, math.inf, {"x": object()}, b"bytes"])
def test_canonical_bytes_refuse_what_json_cannot_say(value):
    with pytest.raises(ConfigError):
        canonical_json(value)


def test_hardly_any_noise_hides_nothing_and_nothing_else_is_told_of_it():
    """Below 1e-100 the square of the noise is no number; what cannot be computed stays out."""
    assert fold([PoissonGaussian(0.5, 1e-100, 1), Gaussian(1e-100)]).non_private is False
    tiny = 0.99e-100
    assert fold([PoissonGaussian(0.5, tiny, 1), Gaussian(3.0)]) == Folded(non_private=True)
    assert fold([Gaussian(tiny), PoissonGaussian(0.5, 1.0, 1)]) == Folded(non_private=True)


@pytest.mark.parametrize(
    ("kind", "field", "least", "most"),
    [
        (PoissonGaussian, "sampling_rate", 0.0, 1.0),
        (PoissonGaussian, "noise_multiplier", 0.0, 1e150),
        (PoissonGaussian, "steps", 0, 10**12),
        (Gaussian, "noise_multiplier", 0.0, 1e150),
        (Gaussian, "count", 0, 10**12),
        (Stated, "epsilon", 0.0, 1e6),
        (Stated, "delta", 0.0, 1.0),
        (PoissonDiscreteGaussian, "sampling_rate", 0.0, 1.0),
        (PoissonDiscreteGaussian, "steps", 0, 10**12),
        (PoissonDiscreteGaussian, "shares", 1, MAX_SHARES),
        (PoissonDiscreteGaussian, "length", 1, None),
        (PoissonDiscreteGaussian, "clipping_steps", 0.0, None),
        (PoissonDiscreteGaussian, "share_deviation", None, LARGEST_SHARE),
    ],
)
def test_the_ends_of_every_range_are_within_it_and_what_is_beyond_is_not(kind, field, least, most):
    values = {
        PoissonGaussian: {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 2},
        Gaussian: {"noise_multiplier": 1.0, "count": 2},
        Stated: {"epsilon": 1.0, "delta": 0.1},
        PoissonDiscreteGaussian: {
            "sampling_rate": 0.1,
            "noise_multiplier": 1.0,
            "steps": 2,
            "shares": 3,
            "share_deviation": 1000,
            "clipping_steps": 9.0,
            "length": 4,
        },
    }[kind]
    for end, step in ((least, -1), (most, 1)):
        if end is None:
            continue
        assert getattr(kind(**{**values, field: end}), field) == end
        beyond = end + step if isinstance(end, int) else end + step * max(1e-9, abs(end) / 1e9)
        with pytest.raises(ConfigError):
            kind(**{**values, field: beyond})


def test_the_largest_clipping_norm_in_grid_steps_is_a_range_of_its_own():
    """Shares worth their noise at such a norm would be too large, so only the words can tell."""
    assert PoissonDiscreteGaussian(0.1, 0.0, 2, 3, 4, 1e15, 4).clipping_steps == 1e15
    for steps, words in ((1e15, "not worth"), (1e15 + 1, "clipping_steps")):
        with pytest.raises(ConfigError, match=words):
            PoissonDiscreteGaussian(0.1, 1.0, 2, 3, 1000, steps, 4)


def test_an_event_happens_once_unless_more_is_said_and_nothing_is_nothing():
    assert Gaussian(1.0).count == 1
    assert Folded() == Folded((), 0.0, False, 0.0, 0.0, 0.0, 0.0)
    assert fold([]) == Folded()
