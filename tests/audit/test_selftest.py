"""The self-test passes intact code, and fails as soon as one of the known bugs is planted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedllm.audit.selftest import promises, statistics
from fedllm.audit.selftest.checks import CHECKS, QUICK, WHOLE, Subject
from fedllm.audit.selftest.material import Material
from fedllm.audit.selftest.run import MOST_TESTS, false_alarm, perform
from fedllm.commands.audit import app
from fedllm.encryption import lattice_mask, masks
from fedllm.encryption.schemes import PublicRoundKey
from fedllm.errors import FedllmError
from fedllm.federation.site import charging
from fedllm.federation.site import work as site_work
from fedllm.mechanisms import bounds, calibrating, discrete, mechanism, mechanism_of, whole_site
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.mechanisms.whole_site import WholeSite
from fedllm.models.shared import SharedModel
from fedllm.privacy import adaptive, dpsgd, whole
from fedllm.privacy.accounting import accountants as accounting
from fedllm.privacy.dpsgd import ClippedGradient
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream
from fedllm.training import local

REMEMBERING = (
    accounting._estimate,
    accounting.upper_bound,
    calibrating.choose_noise_multiplier,
    mechanism_of,
    discrete._make_grid,
)
CHECK = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    threads = torch.get_num_threads()
    # As in the self-test: two threads on two busy cores wait for each other.
    torch.set_num_threads(1)
    made = Material(tmp_path_factory.mktemp("selftest"))
    _ = made.classifier.gradients, made.persons.unit_gradients, made.causal.gradients
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def intact(material):
    """Whether intact code passes a check; each is made once."""
    subject, known = subject_of(material), {}

    def passes(name):
        if name not in known:
            known[name] = perform(CHECK[name], subject)
        return known[name]

    return passes


def subject_of(material):
    subject = Subject(material.folder, QUICK)
    subject.material = material
    return subject


def no_noise(patch):
    patch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))


def half_the_noise(patch):
    right = dpsgd.gaussian_noise
    patch.setattr(
        dpsgd, "gaussian_noise", lambda s, count, deviation: right(s, count, deviation / 2)
    )


def noise_reused_in_every_call(patch):
    once = RandomStream.secure()
    drawn = once.normal(100_000)
    patch.setattr(dpsgd, "gaussian_noise", lambda s, count, deviation: deviation * drawn[:count])


def noise_reused_in_the_steps_of_a_round(patch):
    right, kept = dpsgd.gaussian_noise, {}

    def reuse(stream, count, deviation):
        if kept.get("stream") is not stream:
            kept.update(stream=stream, noise=right(stream, count, deviation))
        return kept["noise"]

    patch.setattr(dpsgd, "gaussian_noise", reuse)


def shares_that_suit_larger_sums(patch):
    # 1/sqrt of all sites instead of the fewest whose sum may be opened.
    patch.setattr(Mechanism, "noise_share", property(lambda self: 3**-0.5))


def half_a_share_of_the_noise(patch):
    right = bounds.gaussian_noise
    patch.setattr(
        bounds, "gaussian_noise", lambda s, count, deviation: right(s, count, deviation / 2)
    )


def no_discrete_noise(patch):
    patch.setattr(
        discrete, "discrete_gaussian", lambda stream, count, deviation: np.zeros(count, np.int64)
    )


def half_the_discrete_noise(patch):
    right = discrete.discrete_gaussian
    patch.setattr(
        discrete, "discrete_gaussian", lambda s, count, deviation: right(s, count, deviation // 2)
    )


def discrete_noise_of_another_shape(patch):
    from fedllm.privacy.discrete import _discrete_laplace

    # A Laplace of the right variance, 2 scale**2.
    patch.setattr(
        discrete,
        "discrete_gaussian",
        lambda s, count, deviation: _discrete_laplace(s, count, round(deviation / 2**0.5)),
    )


def discrete_noise_on_every_second_integer(patch):
    right = discrete.discrete_gaussian
    patch.setattr(
        discrete,
        "discrete_gaussian",
        lambda s, count, deviation: 2 * right(s, count, (deviation + 1) // 2),
    )


def rounding_down(patch):
    patch.setattr(
        discrete, "round_at_random", lambda values, stream: np.floor(values).astype(np.int64)
    )


def rounding_to_a_coarser_grid(patch):
    right = discrete.round_at_random
    patch.setattr(discrete, "round_at_random", lambda v, stream: 16 * right(v / 16, stream))


def sums_scaled_up_before_rounding(patch):
    right = discrete.IntegerGrid.noised_levels
    patch.setattr(
        discrete.IntegerGrid,
        "noised_levels",
        lambda self, total, norm, *rest: right(self, total, norm / 2, *rest),
    )


def discrete_shares_that_suit_larger_sums(patch):
    patch.setattr(discrete, "noise_shares", lambda config: 3)


def no_noise_of_the_count(patch):
    right = adaptive.gaussian_noise

    def without(stream, count, deviation):
        drawn = right(stream, count, deviation)
        drawn[-1] = 0.0
        return drawn

    patch.setattr(adaptive, "gaussian_noise", without)


def half_the_noise_of_the_count(patch):
    right = adaptive.gaussian_noise

    def halved(stream, count, deviation):
        drawn = right(stream, count, deviation)
        drawn[-1] /= 2
        return drawn

    patch.setattr(adaptive, "gaussian_noise", halved)


def count_is_not_charged(patch):
    patch.setattr(adaptive, "sensitivity", lambda: 1.0)


def moving_norm_with_half_the_noise_charged(patch):
    right = site_work.train_locally

    def halved(model, dataset, settings, **streams):
        if settings.clipping_quantile is not None:
            settings = replace(settings, noise_multiplier=settings.noise_multiplier / 2)
        return right(model, dataset, settings, **streams)

    patch.setattr(site_work, "train_locally", halved)


def sites_are_not_clipped(patch):
    right = whole_site.private_update

    def unclipped(update, norm, noise_multiplier, share, stream):
        noise = right(np.zeros_like(update), norm, noise_multiplier, share, stream)
        return update + noise

    patch.setattr(whole_site, "private_update", unclipped)


def sites_are_clipped_tensor_by_tensor(patch):
    right = whole_site.private_update

    def piecewise(update, norm, noise_multiplier, share, stream):
        pieces = np.split(update, [len(update) // 2])
        lengths = [max(norm, float(np.linalg.norm(piece))) for piece in pieces]
        cut = [piece * (norm / length) for piece, length in zip(pieces, lengths, strict=True)]
        noise = right(np.zeros_like(update), norm, noise_multiplier, share, stream)
        return np.concatenate(cut) + noise

    patch.setattr(whole_site, "private_update", piecewise)


def half_the_noise_of_sites(patch):
    # An update may be exchanged for one twice the norm away, not once.
    patch.setattr(whole, "site_deviation", lambda noise, norm, share: noise * norm * share)


def no_noise_of_sites(patch):
    patch.setattr(whole, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))


def sites_are_charged_as_if_sampled(patch):
    patch.setattr(WholeSite, "sampling_rate", lambda self, units: 0.5)


def clipping_off(patch):
    patch.setattr(local, "clipped", lambda gradient, norm: ClippedGradient(gradient, 1.0))


def clipping_per_batch(patch):
    right = local._gradient_sum

    def whole(model, dataset, indices, settings, record, *others):
        loose = replace(settings, clipping_norm=1e12)
        total = right(model, dataset, indices, loose, record, *others)
        return dpsgd.clipped(total, settings.clipping_norm).values

    patch.setattr(local, "_gradient_sum", whole)


def one_record_a_piece(patch):
    right = local.by_unit
    patch.setattr(local, "by_unit", lambda batch, units, rows: right(batch, units, 1))


def clipping_records_before_averaging_over_a_person(patch):
    """The average of clipped records, which no clipping of the person follows."""
    one_record_a_piece(patch)

    def gradient(self, pieces):
        parts = [self._gradient(rows, piece) for rows, piece in pieces]
        norm = self.settings.clipping_norm
        self.record.norms.append(np.ones(1))
        return np.mean([dpsgd.clipped(part, norm).values for part in parts], axis=0)

    patch.setattr(local._OneUnit, "clipped", gradient)


def clipping_records_and_not_persons(patch):
    right = local.by_unit
    patch.setattr(
        local, "by_unit", lambda batch, units, rows: right(batch, np.arange(len(units)), rows)
    )


def shuffled_sampling(patch):
    queue = []

    def shuffled(units, number_of_units, rate, sampling):
        size = round(rate * number_of_units)
        if len(queue) < size:
            queue[:] = sampling.permutation(number_of_units).tolist()
        chosen = [queue.pop() for _ in range(size)]
        return np.flatnonzero(np.isin(units, chosen)).astype(np.int64)

    patch.setattr(local, "poisson_batch", shuffled)


def batches_of_fixed_size(patch):
    def fixed(units, number_of_units, rate, sampling):
        chosen = sampling.permutation(number_of_units)[: round(rate * number_of_units)]
        return np.flatnonzero(np.isin(units, chosen)).astype(np.int64)

    patch.setattr(local, "poisson_batch", fixed)


def fixed_seed(patch):
    patch.setattr(RandomStream, "secure", classmethod(lambda cls: cls.seeded(0)))


def fixed_seed_of_the_sampling(patch):
    patch.setattr(
        Mechanism,
        "random",
        lambda self, what, site, number: RandomStream.seeded(0, what, number),
    )


def charged_at_half_the_rate(patch):
    right = Mechanism.sampling_rate
    patch.setattr(Mechanism, "sampling_rate", lambda self, units: right(self, units) / 2)


def noise_chosen_for_half_the_rate(patch):
    right = mechanism.choose_noise_multiplier
    patch.setattr(
        mechanism,
        "choose_noise_multiplier",
        lambda target, delta, rate, *rest: right(target, delta, rate / 2, *rest),
    )


def accountant_that_halves_the_rate(patch):
    from fedllm.privacy.accounting import calibration, events

    def halved(happened):
        folded = events.fold(happened)
        sampled = tuple((rate / 2, noise, steps) for rate, noise, steps in folded.sampled)
        return events.Folded(sampled, folded.mu_squared, folded.non_private)

    patch.setattr(accounting, "fold", halved)
    patch.setattr(calibration, "fold", halved)


def ledger_skips_a_step(patch):
    right = charging.SiteAccount._charge

    def one_less(self, *terms):
        charge = right(self, *terms)
        events = tuple(replace(event, steps=event.steps - 1) for event in charge.events)
        return replace(charge, events=events)

    patch.setattr(charging.SiteAccount, "_charge", one_less)


def ledger_skips_a_round(patch):
    right, calls = Ledger.reserve, []

    def reserve(self, charge, ceiling):
        calls.append(charge)
        if charge.round == 2:
            return -1
        return right(self, charge, ceiling)

    commit = Ledger.commit
    patch.setattr(Ledger, "reserve", reserve)
    patch.setattr(Ledger, "commit", lambda self, n: None if n < 0 else commit(self, n))


def update_sent_unencrypted(patch):
    from fedllm.encryption.residues import to_wire

    def clear(self, slots):
        plan = self.plan
        width = plan.slots_per_ciphertext
        padded = np.zeros(plan.ciphertexts * width, dtype=np.uint64)
        padded[: plan.slots] = slots
        parts = []
        for block in padded.reshape(-1, width):
            rows = np.stack([block % np.uint64(prime) for prime in plan.ciphertext_primes])
            parts.append(to_wire(np.stack([rows, np.zeros_like(rows)]), plan.ciphertext_primes))
        return b"".join(parts)

    patch.setattr(PublicRoundKey, "encrypt", clear)


def levels_not_hidden(patch):
    """The secret is masked and encrypted, and the levels travel without it."""
    patch.setattr(
        lattice_mask,
        "_masks",
        lambda secret, plan, statement: np.zeros(plan.lattice.coefficients, dtype=np.uint64),
    )


def masks_all_zero(patch):
    patch.setattr(masks, "_expand", lambda parts, plan: np.zeros(plan.slots, dtype=np.uint64))


def pairwise_masks_zero(patch):
    right = masks.SiteMasks.mask_for_update

    def own_alone(self):
        self._peers = ()
        return right(self)

    patch.setattr(masks.SiteMasks, "mask_for_update", own_alone)


def adapters_unchanged(patch):
    right = local.LocalResult

    def nothing(update, *rest):
        return right(np.zeros_like(update), *rest)

    patch.setattr(local, "LocalResult", nothing)


def adapters_unchanged_between_steps(patch):
    patch.setattr(SharedModel, "set_adapter", lambda self, vector: None)


PLANTED = [
    (no_noise, "noise of a step"),
    (half_the_noise, "noise of a step"),
    (noise_reused_in_every_call, "noise of a step"),
    (noise_reused_in_the_steps_of_a_round, "noise of a step"),
    (shares_that_suit_larger_sums, "shared noise"),
    (half_a_share_of_the_noise, "shared noise"),
    (clipping_off, "clipping of records"),
    (clipping_per_batch, "clipping of records"),
    (clipping_records_before_averaging_over_a_person, "clipping of persons"),
    (clipping_records_and_not_persons, "clipping of persons"),
    (shuffled_sampling, "sampling"),
    (batches_of_fixed_size, "sampling"),
    (fixed_seed, "noise of a step"),
    (charged_at_half_the_rate, "sampling as charged"),
    (ledger_skips_a_step, "ledger"),
    (update_sent_unencrypted, "encryption"),
    (levels_not_hidden, "encryption"),
    (masks_all_zero, "masks"),
    (pairwise_masks_zero, "masks"),
    (adapters_unchanged, "adapters"),
    (adapters_unchanged_between_steps, "adapters"),
    (no_discrete_noise, "discrete noise"),
    (half_the_discrete_noise, "discrete noise"),
    (rounding_to_a_coarser_grid, "discrete noise"),
    (count_is_not_charged, "moving norm"),
    (sites_are_not_clipped, "whole sites"),
    (half_the_noise_of_sites, "whole sites"),
]
# The same bugs seen by a second check that is independent of the first, and near relatives.
SLOW = [
    (no_noise_of_the_count, "moving norm"),
    (fixed_seed_of_the_sampling, "chance"),
    (no_noise, "noise of a round"),
    (half_the_noise, "noise of a round"),
    (noise_reused_in_every_call, "noise of a round"),
    (noise_reused_in_the_steps_of_a_round, "noise of a round"),
    (batches_of_fixed_size, "sampling as charged"),
    (fixed_seed, "chance"),
    (noise_chosen_for_half_the_rate, "accounting"),
    (accountant_that_halves_the_rate, "accounting"),
    (ledger_skips_a_step, "noise of a round"),
    (ledger_skips_a_round, "ledger"),
    (discrete_noise_of_another_shape, "discrete noise"),
    (discrete_noise_on_every_second_integer, "discrete noise"),
    (rounding_down, "discrete noise"),
    (sums_scaled_up_before_rounding, "discrete noise"),
    (discrete_shares_that_suit_larger_sums, "discrete noise"),
    (half_the_noise_of_the_count, "moving norm"),
    (moving_norm_with_half_the_noise_charged, "moving norm"),
    (sites_are_clipped_tensor_by_tensor, "whole sites"),
    (no_noise_of_sites, "whole sites"),
    (sites_are_charged_as_if_sampled, "whole sites"),
]


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        *(pytest.param(p, n, id=f"{p.__name__}: {n}") for p, n in PLANTED),
        *(pytest.param(p, n, id=f"{p.__name__}: {n}", marks=pytest.mark.slow) for p, n in SLOW),
    ],
)
def test_a_planted_bug_turns_its_check_from_pass_to_fail(
    plant, name, material, intact, monkeypatch
):
    assert intact(name).problem is None
    subject = subject_of(material)
    plant(monkeypatch)
    forget()
    found = perform(CHECK[name], subject)
    monkeypatch.undo()
    forget()
    assert not found.passed
    # A check that a planted bug merely breaks has seen nothing.
    assert not found.problem.startswith("stopped by"), found.problem


def forget():
    """Drop what accountants remember, which a planted bug would otherwise not touch."""
    for function in REMEMBERING:
        function.cache_clear()


def test_clear_updates_are_seen_though_the_round_went_well(material):
    subject = subject_of(material)
    assert promises.updates_are_encrypted(subject.run) is None
    size = subject.run.federation.plan.update_bytes
    clear = [
        update[:-size] + update[-size:][: size // 2] + bytes(size - size // 2)
        for update in subject.run.federation.updates
    ]
    subject.run.federation.updates[:] = clear
    assert "not uniform" in promises.updates_are_encrypted(subject.run)


def test_every_exact_test_holds_its_alarm_on_the_distribution_it_assumes():
    stream = np.random.default_rng(0)
    values = stream.normal(size=4000)
    assert statistics.variance(values, 1.0, "x") is None
    assert statistics.variance(1.2 * values, 1.0, "x") is not None
    assert statistics.centred(values, 1.0, "x") is None
    assert statistics.centred(values + 0.2, 1.0, "x") is not None
    assert statistics.normal_shape(values, "x") is None
    assert statistics.normal_shape(np.clip(values, -1, 1), "x") is not None
    assert statistics.unrelated([values[:2000], values[2000:]], 2000, "x") is None
    assert statistics.unrelated([values, values + stream.normal(size=4000)], 4000, "x") is not None
    assert statistics.uniform(stream.integers(0, 1000, 5000), 1000, "x") is None
    assert statistics.uniform(stream.integers(0, 900, 5000), 1000, "x") is not None
    assert statistics.binomial(250, 1000, 0.25, "x") is None
    assert statistics.binomial(370, 1000, 0.25, "x") is not None


def test_a_check_that_stops_has_failed(material):
    def stop(subject):
        raise ValueError("no such tensor")

    found = perform(replace(CHECKS[0], look=stop), subject_of(material))
    assert not found.passed
    assert "no such tensor" in found.problem


@pytest.mark.slow
def test_the_number_of_exact_tests_is_no_larger_than_stated(tmp_path, monkeypatch):
    made = []
    right = statistics.alarm

    def counted():
        made.append(1)
        return right()

    monkeypatch.setattr(statistics, "alarm", counted)
    subject = Subject(tmp_path, replace(WHOLE, normals=1, integers=1, streams=1000))
    for check in CHECKS:
        assert perform(check, subject).passed
    assert MOST_TESTS / 10 < len(made) <= MOST_TESTS
    assert false_alarm() < 1e-9


@pytest.mark.slow
def test_the_quick_selftest_passes_from_the_command_line():
    result = CliRunner().invoke(app, ["selftest", "--quick", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["passed"]
    assert found["quick"]
    assert len(found["checks"]) == len(CHECKS)
    assert found["false_alarm_probability"] < 1e-9
    assert len(found["installation"]["code_sha256"]) == 64


@pytest.mark.slow
def test_a_fault_gives_exit_code_1_and_names_the_check(monkeypatch):
    no_noise(monkeypatch)
    result = CliRunner().invoke(app, ["selftest", "--quick"])
    assert isinstance(result.exception, FedllmError)
    assert result.exception.exit_code == 1
    assert "FAIL  noise of a step" in result.stdout
    assert "noise of a round" in str(result.exception)
