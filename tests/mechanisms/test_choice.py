"""Which mechanism a configuration gets, what it costs, and that all of them say the same things."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mechanisms import DISTRIBUTED, PRIVATE, SHARED, config

from fedllm.errors import ConfigError, RefusedError, TrainingError
from fedllm.mechanisms import (
    Contribution,
    LocalResult,
    LocalStatistics,
    Mechanism,
    SiteRound,
    mechanism_of,
)
from fedllm.mechanisms.discrete import DiscreteSharedNoise
from fedllm.mechanisms.local import LocalNoise
from fedllm.mechanisms.none import NoPrivacy
from fedllm.mechanisms.shared import SharedNoise
from fedllm.mechanisms.whole_site import WholeSite, WholeSiteShared
from fedllm.models.manifest import AdapterManifest
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import (
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
)
from fedllm.privacy.discrete import TAIL_DEVIATIONS
from fedllm.randomness import RandomStream

SEGMENTS = AdapterManifest.of([("a.lora_A.w", (4, 8), "lora"), ("head.weight", (3, 8), "head")])
CASES = {
    NoPrivacy: config({}),
    LocalNoise: config(PRIVATE),
    SharedNoise: config({**DISTRIBUTED, "colluders": 2}, SHARED),
    DiscreteSharedNoise: config(
        {**DISTRIBUTED, "distribution": "discrete_gaussian"}, SHARED, encryption={"bits": 20}
    ),
    WholeSite: config({**PRIVATE, "unit": "site"}),
    WholeSiteShared: config({**DISTRIBUTED, "unit": "site"}),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=[c.__name__ for c in CASES])
private = pytest.mark.parametrize(
    "case", list(CASES.values())[1:], ids=[c.__name__ for c in list(CASES)[1:]]
)


def test_each_mechanism_is_chosen_and_none_is_left_out():
    assert [type(mechanism_of(case)) for case in CASES.values()] == list(CASES)
    leaves, left = set(), [Mechanism]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if not kind.__abstractmethods__:
            leaves.add(kind)
    assert leaves == set(CASES)


@pytest.mark.parametrize(
    ("noise", "unit", "evaluation"),
    itertools.product(("local", "distributed"), ("record", "site"), (0, 2)),
)
def test_a_run_without_epsilon_is_not_private_whatever_else_it_says(noise, unit, evaluation):
    if unit == "site" and evaluation:
        pytest.skip("refused by the configuration")
    asked = config({"noise": noise, "unit": unit}, SHARED, evaluation={"every": evaluation})
    mechanism = mechanism_of(asked)
    assert type(mechanism) is NoPrivacy
    assert mechanism.needed_noise(10, 1, ()) is None
    assert mechanism.announced_noise(1, ()) is None
    costs = mechanism.planned(10, 5)
    assert {event for cost in costs for event in cost.events} == {NonPrivate()}
    assert len(costs) == 4 + len(mechanism.evaluation.rounds)


@private
def test_the_planned_costs_of_a_run_spend_its_epsilon_and_no_more(case):
    mechanism = mechanism_of(case)
    costs = mechanism.planned(40, SEGMENTS.length)
    seen = epsilon([event for cost in costs for event in cost.events], 1e-5).value
    assert 3.9 < seen <= 4.0
    alone = [event for cost in costs for event in cost.alone or ()]
    assert (mechanism.shares > 1) == bool(alone)
    if alone:
        assert epsilon(alone, 1e-5).value > seen


def test_evaluations_are_paid_for_out_of_the_same_epsilon():
    plain = config(PRIVATE)
    paying = config(PRIVATE, evaluation={"every": 2, "epsilon": 1.0})
    without, beside = (mechanism_of(case).needed_noise(40, 1, ()) for case in (plain, paying))
    assert beside > without
    costs = mechanism_of(paying).planned(40, 5)
    kinds = [type(event) for cost in costs for event in cost.events]
    assert kinds == [PoissonGaussian] * 4 + [Gaussian] * 2
    assert 3.9 < epsilon([event for cost in costs for event in cost.events], 1e-5).value <= 4.0


def test_what_each_round_is_charged_for():
    """Known answers, worked out by hand from the settings above."""
    local = mechanism_of(CASES[LocalNoise]).cost(40, 56, 2.0)
    assert local.events == (PoissonGaussian(8 / 40, 2.0, 10),)
    assert local.alone is None
    shared = mechanism_of(CASES[SharedNoise]).cost(40, 56, 2.0)
    assert shared.events == (PoissonGaussian(0.25, 2.0, 1),)
    # Four sites at least, two of them colluding: the shares of two make up the whole.
    assert shared.alone == (PoissonGaussian(0.25, 2.0 / np.sqrt(2), 1),)
    site = mechanism_of(CASES[WholeSite]).cost(40, 56, 2.0)
    assert site.events == (PoissonGaussian(1.0, 2.0, 1),)
    whole = mechanism_of(CASES[WholeSiteShared]).cost(40, 56, 2.0)
    assert whole.alone == (PoissonGaussian(1.0, 1.0, 1),)
    (event,) = mechanism_of(CASES[DiscreteSharedNoise]).cost(40, 56, 2.0).events
    assert isinstance(event, PoissonDiscreteGaussian)
    assert (event.sampling_rate, event.noise_multiplier, event.shares) == (0.25, 2.0, 4)
    assert event.length == 56


@private
def test_noise_that_is_announced_too_small_is_refused_and_local_noise_is_nobodys_to_announce(case):
    mechanism = mechanism_of(case)
    needed = mechanism.needed_noise(40, 1, ())
    announced = mechanism.announced_noise(1, ())
    if mechanism.shares == 1:
        assert announced is None
        # Whatever a coordinator says, more or less.
        assert {mechanism.agreed_noise(needed, said) for said in (None, 1e-9, 1e9)} == {needed}
        return
    assert announced == needed
    assert mechanism.agreed_noise(needed, 2 * needed) == 2 * needed
    for said in (None, 0.0, needed * 0.999):
        with pytest.raises(RefusedError, match="does not keep the run's epsilon"):
            mechanism.agreed_noise(needed, said)
    with pytest.raises(RefusedError):
        mechanism.agreed_noise(None, 1.0)


@pytest.mark.parametrize("case", [SharedNoise, WholeSiteShared])
def test_noise_of_which_a_share_does_not_fit_the_levels_is_refused(case):
    mechanism = mechanism_of(CASES[case])
    least, most = mechanism._least_noise, mechanism._most_noise
    for said in (least * 1.001, most):
        assert mechanism.agreed_noise(0.0, said) == said
    for said in (least * 0.999, most * 1.001):
        with pytest.raises(RefusedError, match="does not fit the run's levels, which hold"):
            mechanism.agreed_noise(0.0, said)


def test_what_counts_is_the_share_that_one_site_adds():
    mechanism = mechanism_of(CASES[SharedNoise])
    bits = mechanism._config.encryption.bits
    share = mechanism._least_noise * mechanism.noise_share
    assert share == pytest.approx(mechanism._room.least_deviation(bits))
    mechanism = mechanism_of(CASES[WholeSiteShared])
    share = 2 * mechanism._least_noise * mechanism.noise_share
    assert share == pytest.approx(mechanism._room.least_deviation(bits))


@private
def test_after_a_lost_attempt_the_rest_of_the_run_gets_more_noise(case):
    mechanism = mechanism_of(case)
    first = mechanism.needed_noise(40, 1, ())
    done = [event for _ in range(2) for event in mechanism.cost(40, 56, first).events]
    again = mechanism.needed_noise(40, 2, done)
    assert again > first
    rest = [event for _ in range(3) for event in mechanism.cost(40, 56, again).events]
    assert epsilon([*done, *rest], 1e-5).value <= 4.0
    assert mechanism.needed_noise(40, 2, done[: len(done) // 2]) == first


class Work:
    """Training whose outcome is known; remembers what it was asked."""

    units, length = 40, 56

    def __init__(self, update=1.0):
        self.settings, self.update = [], update
        self.statistics = LocalStatistics(0.5, 3, 0, ())

    def train(self, settings, sampling, noise):
        self.settings.append(settings)
        update = np.full(self.length, self.update, dtype=np.float32)
        return LocalResult(update, self.statistics, 0.75)

    def gradient_sum(self, settings, sampling):
        self.settings.append(settings)
        return np.full(self.length, self.update), self.statistics


def contribution(case, work, noise=2.0, norm=None) -> Contribution:
    def quantise(update, random):
        return np.round((update + 1000) * 1000).astype(np.uint64)

    asked = SiteRound(work, work.units, noise, quantise, quantise, ("site-0", 1), norm)
    return mechanism_of(case).contribute(asked)


def test_discrete_noise_takes_long_vectors_while_the_grid_is_fine_enough():
    mechanism = mechanism_of(CASES[DiscreteSharedNoise])
    grid = mechanism.grid(50_000)
    assert grid.length == 50_000 > grid.clipping_steps > 2_000
    # Rounding ten billion values moves the sum by half their root, 50,000 steps.
    with pytest.raises(ConfigError, match=r"bits = 20 is too coarse .* on 10000000000 values"):
        mechanism.grid(10**10)


def test_discrete_noise_that_may_fail_more_often_than_delta_allows_is_refused_before_it_costs():
    case = CASES[DiscreteSharedNoise]
    # Four rounds fail with probability 4e-18, and a millionth of delta is left for that.
    refused, kept = (
        mechanism_of(
            case.model_copy(update={"privacy": case.privacy.model_copy(update={"delta": delta})})
        )
        for delta in (3.9e-12, 4.1e-12)
    )
    for ask in (
        lambda: refused.grid(56),
        lambda: refused.bounds(SEGMENTS.segments),
        lambda: refused.cost(40, 56, 1.0),
        lambda: refused.planned(40, 56),
    ):
        with pytest.raises(ConfigError, match=r"delta = 3\.9e-12 is too small") as caught:
            ask()
        assert caught.value.remedy.startswith("set privacy.delta = 5e-12 or more, or")
    spent = [event for cost in kept.planned(40, 56) for event in cost.events]
    assert 3.9 < epsilon(spent, 4.1e-12).value <= 4.0


def test_after_discrete_rounds_coordinator_and_site_choose_the_same_noise():
    # The coordinator knows the noise multipliers alone, a site has the events in its ledger.
    mechanism = mechanism_of(CASES[DiscreteSharedNoise])
    first = mechanism.announced_noise(1, ())
    done = mechanism.cost(40, 56, first).events * 4
    announced = mechanism.announced_noise(4, [first] * 4)
    assert announced == mechanism.needed_noise(40, 4, done) > first


def test_no_contribution_of_a_private_run_leaves_without_noise():
    for kind, case in CASES.items():
        if kind is not NoPrivacy:
            with pytest.raises(ConfigError, match="no noise multiplier"):
                contribution(case, Work(), noise=None)


@every
def test_settings_are_those_that_are_charged(case):
    work = Work()
    contribution(case, work)
    mechanism = mechanism_of(case)
    (settings,) = work.settings
    if type(mechanism) in (NoPrivacy, WholeSite, WholeSiteShared):
        # Nothing is noised step by step.
        assert settings.noise_multiplier is None
        return
    (event,) = mechanism.cost(work.units, work.length, 2.0).events
    assert (settings.sampling_rate, settings.steps) == (event.sampling_rate, event.steps)
    assert settings.noise_multiplier == 2.0


def test_a_clipping_norm_that_moves_goes_on_where_it_was():
    case = config({**PRIVATE, "clipping_quantile": 0.5}, {"optimizer": "adam"})
    work = Work()
    assert contribution(case, work).clipping_norm == 0.75
    contribution(case, work, norm=0.75)
    assert [settings.clipping_norm for settings in work.settings] == [1.0, 0.75]
    assert {settings.clipping_quantile for settings in work.settings} == {0.5}


def test_whole_updates_are_clipped_and_noised(monkeypatch):
    drawn = []

    def noise(stream, count, deviation):
        drawn.append(deviation)
        return np.zeros(count)

    monkeypatch.setattr("fedllm.privacy.whole.gaussian_noise", noise)
    levels = contribution(CASES[WholeSite], Work(3.0)).levels
    update = levels.astype(float) / 1000 - 1000
    assert np.linalg.norm(update) == pytest.approx(1.0, abs=0.01)
    contribution(CASES[WholeSiteShared], Work(3.0))
    # Twice the clipping norm apart; four shares make up the whole.
    assert drawn == [4.0, 2.0]


def test_whole_training_that_fails_is_an_update_of_nothing_and_told_by_its_kind():
    class Broken(Work):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def train(self, settings, sampling, noise):
            raise self.error

    for error, why in ((TrainingError("too large"), "too large"), (ValueError("a"), "ValueError")):
        found = contribution(CASES[WholeSite], Broken(error))
        said = found.statistics
        assert np.isnan(said.loss)
        assert (said.records_seen, said.empty_batches, said.norm_quantiles) == (0, 0, ())
        assert (said.broken_units, said.problem, found.clipping_norm) == ({}, why, 1.0)
        # Nothing, but for its noise of four, times a thousand.
        assert 0 < np.abs(found.levels.astype(float) - 1_000_000).max() < 50_000
    with pytest.raises(KeyboardInterrupt):
        contribution(CASES[WholeSite], Broken(KeyboardInterrupt()))


def test_random_numbers_are_secret_unless_nothing_is_promised():
    for kind, case in CASES.items():
        streams = [mechanism_of(case).random("sampling", "site-0", 1) for _ in range(2)]
        one, two = (stream.uniform(4).tolist() for stream in streams)
        assert (one == two) == (kind is NoPrivacy)
    again = RandomStream.seeded(0, "sampling", "site-0", 1).uniform(4)
    assert (
        again.tolist()
        == mechanism_of(CASES[NoPrivacy]).random("sampling", "site-0", 1).uniform(4).tolist()
    )


@every
def test_bounds_are_public_and_hold_the_noise(case):
    mechanism = mechanism_of(case)
    bounds = mechanism.bounds(SEGMENTS.segments)
    assert len(bounds) == 2
    assert min(bounds) > 0
    noise = mechanism.needed_noise(case.training.batch_size, 1, ())
    if noise is not None and case.training.optimizer == "sgd":
        deviation = noise * mechanism.noise_share / case.training.batch_size
        assert min(bounds) > 6 * deviation


@every
def test_the_report_has_words_for_it(case):
    from fedllm.audit.report.page import read_texts

    wording = mechanism_of(case).wording
    for language in ("en", "zh"):
        texts = read_texts(language)
        assert wording.clipping in texts["what"]
        assert wording.noise == "none" or f"noise_{wording.noise}" in texts["protected"]


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("batch", [8, 200])
def test_gradients_that_all_point_the_same_way_fit_beside_the_largest_noise(batch, norm):
    privacy = {**DISTRIBUTED, "distribution": "discrete_gaussian", "clipping_norm": norm}
    case = config(privacy, {**SHARED, "batch_size": batch}, encryption={"bits": 20})
    mechanism = mechanism_of(case)
    grid, noise = mechanism.grid(56), mechanism._most_noise
    # So many gradients does a batch have at most, but for six standard deviations of its size.
    total = sum(norm for _ in range(int(batch + 6 * np.sqrt(batch))))
    assert grid.bound * batch > total
    sent = grid.noised_levels(np.array([total, -total]), norm, noise, RandomStream.seeded(1))
    found = (grid.half - sent.astype(float)) / grid.clipping_steps * norm
    most = TAIL_DEVIATIONS * grid.share(noise) / grid.clipping_steps * norm
    assert np.abs(found - [total, -total]).max() < most
    room = grid.half - TAIL_DEVIATIONS * grid.share(noise) - 1
    assert room * norm / grid.clipping_steps > total, "nothing of it is cut off"
    assert grid.bound * batch == pytest.approx(grid.half * norm / grid.clipping_steps)


@every
def test_a_sampling_rate_is_told_where_it_counts(case):
    mechanism = mechanism_of(case)
    counts = case.private and mechanism.sampling_rate(40) < 1
    assert mechanism.wording.sampled == counts


@private
def test_noise_that_was_more_than_needed_goes_on_as_it_was(case):
    """Equal events compose most tightly; discrete ones count as the noise that they are worth."""
    mechanism = mechanism_of(case)
    more = 3 * mechanism.needed_noise(40, 1, ())
    done = mechanism.cost(40, 56, more).events
    assert mechanism.needed_noise(40, 2, done) == more


def test_only_local_noise_announces_a_size():
    for case in CASES.values():
        mechanism = mechanism_of(case)
        assert (mechanism.announced_units(1000) > 0) == (type(mechanism) is LocalNoise)


@given(st.integers(1, 10**9))
def test_an_announced_size_is_a_fifth_smaller_at_most_and_stays_what_it_is(units):
    mechanism = mechanism_of(CASES[LocalNoise])
    announced = mechanism.announced_units(units)
    assert 0.8 * units < announced <= units
    assert mechanism.announced_units(announced) == announced
    assert bin(announced).rstrip("0").count("1") <= 3


def test_all_that_can_be_seen_of_local_noise_follows_from_what_is_announced():
    case = CASES[LocalNoise]
    seen = set()
    for units in (1024, 1100, 1279):
        mechanism, work = mechanism_of(case), Work()
        assert mechanism.announced_units(units) == 1024
        work.units = units
        noise = mechanism.needed_noise(units, 1, ())
        announced = mechanism.announced_units(units)

        def quantise(update, random):
            return np.zeros(56, np.uint64)

        mechanism.contribute(SiteRound(work, announced, noise, quantise, quantise, ("s", 1)))
        (settings,) = work.settings
        (event,) = mechanism.cost(units, 56, noise).events
        seen.add((settings, event))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("noise", "unit", "divisor"),
    [("local", "record", 10.0), ("distributed", "record", 8.0), ("distributed", "site", 10.0)],
)
def test_a_run_without_noise_divides_its_sums_as_one_with_noise(noise, unit, divisor):
    asked = config({"noise": noise, "unit": unit}, {**SHARED, "batch_size": 8})
    assert mechanism_of(asked).settings(40, None).expected_batch_size == divisor


@every
def test_what_is_asked_of_a_mechanism_is_answered_by_yes_or_no(case):
    mechanism = mechanism_of(case)
    assert mechanism.needs_masks is (mechanism.shares > 1)


def test_a_whole_sites_update_has_room_for_the_clipping_norm_and_its_noise():
    """Two updates are at most two clipping norms apart; a shared run has room for more attempts."""
    for kind, times in ((WholeSite, 1), (WholeSiteShared, 4)):
        mechanism = mechanism_of(CASES[kind])
        noise = times * mechanism.needed_noise(8, 1, ())
        deviation = 2 * noise * mechanism.noise_share
        bounds = mechanism.bounds(SEGMENTS.segments)
        assert bounds == pytest.approx((1.0 + TAIL_DEVIATIONS * deviation,) * 2)


def test_the_range_of_shared_noise_worked_out_by_hand():
    """A batch that all points one way and six deviations of its size, beside four times the noise.

    The head has another learning rate.
    """
    case = config({**DISTRIBUTED, "clipping_norm": 0.5}, {**SHARED, "head_learning_rate": 3.0})
    mechanism = mechanism_of(case)
    noise = 4 * mechanism._largest_noise / 2
    reach = 0.5 * (8 + 6 * np.sqrt(8) + 16 * noise) / 8
    assert mechanism.bounds(SEGMENTS.segments) == pytest.approx((reach, 3 * reach))
    discrete = config(
        {**DISTRIBUTED, "clipping_norm": 0.5, "distribution": "discrete_gaussian"},
        SHARED,
        encryption={"bits": 20},
    )
    grid = mechanism_of(discrete).grid(SEGMENTS.length)
    # A quarter more noise, and a deviation, for what rounding costs.
    reach = 0.5 * (8 + 6 * np.sqrt(8) + 17 * 1.25 * noise)
    assert (grid.half, grid.shares) == (2**19 - 1, 4)
    assert grid.clipping_steps == pytest.approx(0.5 * grid.half / reach)
    assert grid.bound == pytest.approx(reach / 8)
