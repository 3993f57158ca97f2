"""What an honest cohort's sum stays within: by calculation, and honest extremes by trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedllm.config import RunConfig, parse
from fedllm.encryption.quantise import Quantiser
from fedllm.errors import RefusedError
from fedllm.mechanisms import (
    FALSE_ALARM,
    LocalResult,
    LocalStatistics,
    SiteRound,
    SumLaw,
    mechanism_of,
    rounded_size,
)
from fedllm.mechanisms.local import largest_size, largest_units
from fedllm.mechanisms.sums import most_drawn, noise_variance, rounding_variance
from fedllm.models.manifest import AdapterManifest
from fedllm.privacy.dpsgd import noised_mean

UP = AdapterManifest.of(
    [
        ("a.lora_A.w", (30, 50), "lora"),
        ("head.bias", (3,), "head"),
        ("head.weight", (10, 20), "head"),
    ]
)
SIZES = [segment.size for segment in UP.segments]
SGD = {"local_steps": 3, "optimizer": "sgd", "learning_rate": 0.5, "head_learning_rate": 2.0}
ONE = {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.25, "learning_rate": 1.0}
# Announced as 64 by a site that has 79 records.
UNITS, SITES = 79, 4


def config(privacy=None, training=None, **sections) -> RunConfig:
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t", "labels": ["a", "b"], "sites": SITES},
        "rounds": {"count": 2, "min_sites": 3},
        "training": {"batch_size": 16, **(training or {})},
        "privacy": {"epsilon": 8.0, **(privacy or {})},
        "encryption": {"bits": 16},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse(RunConfig, values, "test")


DISTRIBUTED = {"noise": "distributed"}
# Site records are at most four times as many as batches expect.
LARGE = {**ONE, "batch_size": 5}
CASES = {
    "local": config({"clipping_norm": 0.3, "epsilon": 0.5}, SGD),
    "local, one record in three left out": config(
        {}, SGD, evaluation={"every": 1, "holdout": 0.3, "epsilon": 1.0}
    ),
    "local, little noise": config({"epsilon": 400.0}, SGD),
    # All records in every step, and still fewer than half of a batch.
    "local, small sites": config({}, {**SGD, "batch_size": 200}),
    "shared": config({**DISTRIBUTED, "colluders": 1}, LARGE),
    "shared, little noise": config(
        {**DISTRIBUTED, "epsilon": 300.0}, {**LARGE, "learning_rate": 3.0}, encryption={"bits": 20}
    ),
    "discrete": config(
        {**DISTRIBUTED, "distribution": "discrete_gaussian"}, LARGE, encryption={"bits": 20}
    ),
    "whole site": config({"unit": "site", "clipping_norm": 0.1}),
    "whole site, shared": config({"unit": "site", **DISTRIBUTED}, {"local_steps": 7}),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


# --- calculation ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [1, 2, 10, 1000, 100_000])
@pytest.mark.parametrize("tests", [1, 7, 200])
def test_noise_alone_is_above_its_limit_more_rarely_than_promised(values, tests):
    law = SumLaw(0.0, 2.5)
    square = law.limit(values, tests) ** 2 / 2.5
    assert tests * stats.chi2.sf(square, values) < FALSE_ALARM / 2
    # And not far above it: a law that promises nothing would pass too.
    assert square < 1.6 * stats.chi2.isf(FALSE_ALARM / 2 / tests, values)


@pytest.mark.parametrize("number", [1, 16, 500, 100_000])
@pytest.mark.parametrize("rate", [1e-3, 0.25, 0.99, 1.0])
def test_batches_are_larger_than_is_counted_on_more_rarely_than_promised(number, rate):
    most = most_drawn(number * rate, number * rate * (1 - rate))
    assert stats.binom.sf(most, number, rate) < FALSE_ALARM / 2
    assert most < number * rate + 10 * sqrt(number * rate) + 6


def test_a_signal_adds_to_the_noise_and_one_in_a_million_is_for_all_norms_together():
    law = SumLaw(3.0, 4.0)
    assert law.limit(50) == pytest.approx(3.0003 + SumLaw(0.0, 4.0).limit(50))
    assert law.limit(50, 2) > law.limit(50)
    total = np.zeros(6)
    total[:2], total[2:] = 30.0, 40.0
    whole, first, second = law.ratios(total, [2, 4])
    assert whole == pytest.approx(sqrt(2 * 900 + 4 * 1600) / law.limit(6, 3))
    assert (first, second) == pytest.approx((sqrt(1800) / law.limit(2, 3), 80 / law.limit(4, 3)))


def test_rounding_to_steps_has_the_variance_of_a_fair_coin():
    # Of 14 steps from -1 to 1, each 1/7: half a step squared, at each of three sites.
    assert rounding_variance(3, 4) == pytest.approx(3 * (1 / 14) ** 2)


@pytest.mark.parametrize("deviation", [0.01, 0.5, 1.0, 3.0, 1000.0])
def test_noise_that_is_cut_off_at_its_bound_is_no_more_than_the_bound(deviation):
    noise = np.random.default_rng(1).normal(0.0, deviation, (3, UP.length))
    total = np.clip(noise, -1, 1).sum(0)
    law = SumLaw(0.0, 3 * noise_variance(deviation))
    assert 0.5 < law.ratios(total, SIZES)[0] <= 1
    assert law.ratios(total, SIZES).max() <= 1
    assert law.variance <= 3


@given(st.integers(0, 10**7), st.sampled_from([0.0, 1e-6, 0.1, 0.3, 0.9, 0.999]))
def test_no_site_trains_on_more_than_its_announced_size_allows(units, held_out):
    announced = rounded_size(max(1, int(rounded_size(units) * (1.0 - held_out))))
    assert largest_size(announced, held_out) >= units
    assert largest_units(max(1, int(rounded_size(units) * (1.0 - held_out))), held_out) >= units
    if not held_out and units:
        assert largest_size(announced, held_out) < 1.25 * announced + 1


def test_an_announced_size_stands_for_no_more_units_than_round_to_it():
    assert largest_units(0, 0.5) == 2
    assert largest_units(3, 0.0) == 3
    assert largest_units(3, 0.5) == 9, "eight before, and one more by rounding"
    assert largest_units(100, 0.2) == 141, "126 before, and as many more as rounding takes away"


def bernstein(expected: float, variance: float, largest: float) -> float:
    """What such a sum is above once in two million."""
    tail = log(2e6)
    return expected + sqrt(2 * variance * tail) + largest * tail / 3


def close(value: float):
    """Near enough that the variance of rounding counts beside that of noise."""
    return pytest.approx(value, rel=1e-9)


def test_the_law_of_local_noise_worked_out_by_hand():
    """For a site of 64 to 79 records, and one of 5, which is in every step with all of them."""
    mechanism = mechanism_of(CASES["local"])
    law = mechanism.sum_law([64, 5], 1, [0.0], UP.length)
    largest = mechanism.public_settings.noise_multiplier
    bound = 3 * (16 + 6 * sqrt(16)) / 16 + 6 * sqrt(3) * largest / 16
    # Three steps; a record adds a 16th, at a site of less than half a batch an 8th.
    most = bernstein(3 * 79 / 4 / 16 + 3 * 5 / 8, 3 * 79 / 4 * 0.75 / 16**2, 1 / 8)
    assert law.signal == close(most / bound)
    noises = [mechanism.needed_noise(64, 1, ()) / 16, mechanism.needed_noise(5, 1, ()) / 8]
    rounding = 2 * (1 / (2**16 - 2)) ** 2
    assert law.variance == close(sum(3 * (noise / bound) ** 2 for noise in noises) + rounding)


def test_the_laws_of_shared_noise_worked_out_by_hand():
    """Batches of four times what is expected, one record in four; the last announced noise."""
    records = bernstein(SITES * 4 * 5, SITES * 4 * 5 * 0.75, 1.0)
    mechanism = mechanism_of(CASES["shared"])
    law = mechanism.sum_law([0] * SITES, 2, [1.0, 3.0, 2.0], UP.length)
    # Two of three sites that are asked for are not in league.
    reach = 5 + 6 * sqrt(5) + 16 * mechanism._most_noise / sqrt(2)
    assert law.signal == close(records / reach)
    rounding = SITES * (1 / (2**16 - 2)) ** 2
    assert law.variance == close(SITES * (2.0 / sqrt(2) / reach) ** 2 + rounding)
    mechanism = mechanism_of(CASES["discrete"])
    grid = mechanism.grid(UP.length)
    law = mechanism.sum_law([0] * SITES, 2, [1.0, 3.0, 2.0], UP.length)
    assert law.signal == close(records * grid.clipping_steps / grid.half)
    rounding = SITES * (1 / (2**20 - 2)) ** 2
    assert law.variance == close(SITES * (grid.share(2.0) / grid.half) ** 2 + rounding)


def test_the_laws_of_whole_sites_worked_out_by_hand():
    """Each adds its clipping norm, and noise by twice that."""
    for name, shares in (("whole site", 1), ("whole site, shared", 3)):
        mechanism = mechanism_of(CASES[name])
        noise = mechanism.needed_noise(1, 1, ()) if shares == 1 else 2.0
        law = mechanism.sum_law([0] * SITES, 1, [noise], UP.length)
        reach = 1 + 16 * 2 * mechanism._most_noise / sqrt(shares)
        assert law.signal == close(SITES / reach)
        rounding = SITES * (1 / (2**16 - 2)) ** 2
        assert law.variance == close(SITES * (2 * noise / sqrt(shares) / reach) ** 2 + rounding)


# --- trial ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extreme:
    """A site all of whose records pull the same way, as hard as clipping lets them.

    ``direction`` is any function of the noised steps so far; it returns a vector (P,) of norm 1.
    """

    direction: object
    units: int = UNITS
    length: int = UP.length

    def _drawn(self, settings, sampling) -> float:
        return len(sampling.poisson_sample(self.units, settings.sampling_rate))

    def train(self, settings, sampling, noise):
        rates = UP.per_value(settings.learning_rate, settings.head_learning_rate)
        moved = np.zeros(self.length)
        for _ in range(settings.steps):
            drawn = self._drawn(settings, sampling)
            total = drawn * settings.clipping_norm * self.direction(moved / rates)
            if settings.noise_multiplier is None:
                moved -= rates * total
                continue
            args = (settings.noise_multiplier, settings.clipping_norm)
            moved -= rates * noised_mean(total, *args, settings.expected_batch_size, noise)
        statistics = LocalStatistics(0.0, 0, 0, ())
        return LocalResult(moved.astype(np.float32), statistics, settings.clipping_norm)

    def gradient_sum(self, settings, sampling):
        total = self._drawn(settings, sampling) * settings.clipping_norm
        return total * self.direction(np.zeros(self.length)), LocalStatistics(0.0, 0, 0, ())


def unit(vector):
    norm = np.linalg.norm(vector)
    return vector / norm if norm else np.eye(1, len(vector))[0]


EXTREMES = {
    "nothing": lambda moved: np.zeros(UP.length),
    "all values": lambda moved: np.full(UP.length, 1 / sqrt(UP.length)),
    "one value": lambda moved: np.eye(1, UP.length, 2)[0],
    "smallest tensor": lambda moved: unit(np.repeat([0.0, 1.0, 0.0], SIZES)),
    # Along the noise of the steps before.
    "noise": lambda moved: -unit(moved),
}


def opened(case: RunConfig, extreme, seed: int, sites: int = SITES):
    """Return an opened sum in parts of its bounds, what its sites announced, and the noise."""
    mechanism = mechanism_of(case)
    bounds = mechanism.bounds(UP.segments)
    quantiser = Quantiser(list(zip(SIZES, bounds, strict=True)), case.encryption.bits)
    announced = mechanism.announced_units(
        max(1, int(rounded_size(UNITS) * (1 - case.evaluation.holdout)))
        if case.evaluation.every
        else UNITS
    )
    said = mechanism.announced_noise(1, ())
    noise = said or mechanism.needed_noise(announced or UNITS, 1, ())
    total = np.zeros(UP.length, dtype=np.uint64)
    for site in range(sites):
        asked = SiteRound(
            Extreme(extreme),
            announced,
            noise,
            quantiser.quantise,
            quantiser.quantise_parts,
            ("site", seed, site),
        )
        total += mechanism.contribute(asked).levels
    parts = quantiser.dequantise_sum(total, sites) / np.repeat(bounds, SIZES)
    law = mechanism.sum_law([announced] * sites, 1, [said or 0.0], UP.length)
    return parts, law


@every
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=list(EXTREMES))
def test_an_honest_cohort_is_never_above_the_law(case, extreme):
    for seed in range(2):
        parts, law = opened(case, extreme, seed)
        assert law.ratios(parts, SIZES).max() <= 1


@pytest.mark.parametrize("name", ["shared", "shared, little noise", "discrete"])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_the_largest_sites_that_shared_noise_lets_in_are_within_the_law(name, held_out):
    """A site counts as fewer than it has: of 79 records as 64."""
    case = CASES[name]
    evaluation = {"every": 1, "holdout": held_out} if held_out else {"every": 0}
    case = case.model_copy(update={"evaluation": case.evaluation.model_copy(update=evaluation)})
    mechanism, most = mechanism_of(case), 0
    for size in range(1, 400):
        counted = max(1, int(rounded_size(size) * (1.0 - held_out)))
        try:
            mechanism.require_size(counted)
        except RefusedError:
            continue
        most = size
    batch = case.training.batch_size
    assert 2 * batch < mechanism.sampling_rate(1) * most <= 4 * batch
    with pytest.raises(RefusedError, match="might be more than 4 times"):
        mechanism.require_size(int(4 * batch / mechanism.sampling_rate(1)))


@every
def test_the_law_is_near_what_honest_extremes_reach(case):
    """Of noise alone, and of signal alone, as far as either counts."""
    nothing, law = opened(case, EXTREMES["nothing"], 1)
    silent = SumLaw(0.0, law.variance)
    assert 0.8 < silent.ratios(nothing, SIZES)[0] <= 1
    aligned, law = opened(case, EXTREMES["all values"], 1)
    assert law.ratios(aligned, SIZES)[0] > 0.4


def test_a_law_without_noise_or_signal_or_steps_would_raise_false_alarms():
    """Bugs that a test of the norm could have, and that the trials above would show."""
    case = CASES["local"]
    parts, law = opened(case, EXTREMES["nothing"], 1)
    rounding = rounding_variance(SITES, case.encryption.bits)
    assert replace(law, variance=rounding).ratios(parts, SIZES).max() > 1
    quiet = CASES["local, little noise"]
    parts, law = opened(quiet, EXTREMES["all values"], 1)
    assert replace(law, signal=0.0).ratios(parts, SIZES).max() > 1
    # As if a round had one step: the bound of a value is then smaller, and the law with it.
    one = quiet.model_copy(
        update={"training": quiet.training.model_copy(update={"local_steps": 1})}
    )
    forgets = mechanism_of(one).sum_law([64] * SITES, 1, [0.0], UP.length)
    smaller = mechanism_of(one).bounds(UP.segments)[0] / mechanism_of(quiet).bounds(UP.segments)[0]
    scaled = SumLaw(forgets.signal * smaller, forgets.variance * smaller**2)
    assert scaled.ratios(parts, SIZES).max() > 1
    # As if one site were in the sum.
    alone = mechanism_of(quiet).sum_law([64], 1, [0.0], UP.length)
    assert alone.ratios(parts, SIZES).max() > 1


@every
@pytest.mark.parametrize("where", [slice(0, None), slice(1500, 1503)], ids=["all", "one tensor"])
def test_a_sum_at_the_quantisers_bound_is_above_the_law(case, where):
    """What one site of many can make of the whole sum, since nobody sees its levels."""
    parts, law = opened(case, EXTREMES["nothing"], 1)
    parts[where] = SITES
    assert law.ratios(parts, SIZES).max() > 1


@pytest.mark.parametrize(
    "case",
    [
        config({"epsilon": "none"}, SGD),
        config({"epsilon": "none", **DISTRIBUTED}, ONE),
        config(),
        config({"clipping_quantile": 0.5}),
        config({}, SGD, encryption={"scheme": "ckks"}),
        config({"unit": "site"}, encryption={"scheme": "ckks"}),
    ],
    ids=["not private", "one gradient", "Adam", "moving norm", "CKKS", "CKKS, whole site"],
)
def test_where_nothing_tighter_than_bounds_is_known_there_is_no_law(case):
    mechanism = mechanism_of(case)
    assert mechanism.sum_law([mechanism.announced_units(64)] * 4, 1, [0.0], UP.length) is None


@pytest.mark.parametrize(("steps", "times"), [(1, 1.0), (10, 1.02), (100, 1.61)])
def test_adams_honest_updates_reach_their_bounds_so_that_no_law_could_be_much_tighter(steps, times):
    """Gradients that stay the same are steps of the learning rate in every value."""
    case = config({}, {"local_steps": steps, "learning_rate": 0.5})
    (bound,) = set(mechanism_of(case).bounds(UP.segments))
    assert 1 <= bound / (steps * 0.5) <= times


@pytest.mark.parametrize("name", ["local", "whole site"])
def test_attempts_that_failed_leave_room_for_more_noise_and_where_none_is_enough_no_law(name):
    case = CASES[name]
    mechanism, before = mechanism_of(case), [0.0]
    cohort = [mechanism.announced_units(UNITS)] * SITES
    first = mechanism.sum_law(cohort, 1, before, UP.length)
    again = mechanism.sum_law(cohort, 1, before * 2, UP.length)
    assert again.variance > 1.2 * first.variance
    assert again.signal == first.signal
    # A site that was charged for as many attempts as there are rounds has nothing left.
    assert mechanism.sum_law(cohort, 2, before * 2, UP.length) == first
    last = mechanism.sum_law(cohort, 2, before * 3, UP.length)
    assert last is None or last.variance > 100 * first.variance
    assert mechanism.sum_law(cohort, 2, before * 4, UP.length) is None
    # What a site itself would choose after that failure is within it.
    units = cohort[0] or UNITS
    charged = mechanism.cost(units, UP.length, mechanism.needed_noise(units, 1, ())).events
    needs = mechanism.needed_noise(units, 1, charged) / mechanism.needed_noise(units, 1, ())
    rounding = rounding_variance(SITES, case.encryption.bits)
    grown = sqrt((again.variance - rounding) / (first.variance - rounding))
    assert needs == pytest.approx(grown, rel=1e-6)


@pytest.mark.parametrize("sizes", [[1, 5, 16], [7, 40, 64]])
def test_no_site_has_more_noise_than_the_law_counts_for_it(sizes):
    """Each by its own announced size, also beside sites of other sizes and after a failure."""
    case = CASES["local"]
    mechanism, before = mechanism_of(case), [0.0, 0.0]
    cohort = [mechanism.announced_units(size) for size in sizes]
    rounding = rounding_variance(1, case.encryption.bits)
    together = mechanism.sum_law(cohort, 1, before, UP.length).variance - 3 * rounding
    bounds = mechanism.bounds(UP.segments)[0]
    each = 0.0
    for units in cohort:
        first = mechanism.needed_noise(units, 1, ())
        charged = mechanism.cost(units, UP.length, first).events
        settings = mechanism.settings(units, mechanism.needed_noise(units, 1, charged))
        step = settings.noise_multiplier * settings.clipping_norm / settings.expected_batch_size
        own = settings.steps * (settings.learning_rate * step / bounds) ** 2
        alone = mechanism.sum_law([units], 1, before, UP.length).variance - rounding
        assert own == pytest.approx(alone, rel=1e-6)
        each += own
    assert each * (1 - 1e-9) <= together <= 4 * each


def test_sites_of_other_sizes_count_by_their_own_rates():
    mechanism = mechanism_of(config({}, {**SGD, "sampling_rate": 0.25}))
    small, both, large = (
        mechanism.sum_law(cohort, 1, [0.0], UP.length).variance
        for cohort in ([64, 64], [64, 640], [640, 640])
    )
    rounding = rounding_variance(2, 16)
    assert (small - rounding) / (large - rounding) == pytest.approx(100)
    assert both - rounding == pytest.approx((small + large) / 2 - rounding)
