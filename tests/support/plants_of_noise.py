"""Bugs of noise, its seeds, clipping and batches, each planted by a patch of the program."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace

import numpy as np
import torch

from fedllm.federation.protocol import evaluating
from fedllm.federation.site import work as site_work
from fedllm.mechanisms import bounds, discrete, evaluation, mechanism, whole_site
from fedllm.mechanisms.evaluation import EvaluationSums
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.privacy import adaptive, dpsgd, noise, whole
from fedllm.privacy.dpsgd import ClippedGradient
from fedllm.randomness import RandomStream
from fedllm.tasks import scores
from fedllm.training import local

# --- seeds --------------------------------------------------------------------------------


def noise_from_the_rounds_public_key(patch):
    right = site_work.SiteWork.train

    def train(self, order, dataset, noise_multiplier):
        drawn = []

        def public(cls):
            drawn.append(1)
            return cls.seeded(0, order.key.fingerprint, self._name, len(drawn))

        with patch.context() as inner:
            inner.setattr(RandomStream, "secure", classmethod(public))
            return right(self, order, dataset, noise_multiplier)

    patch.setattr(site_work.SiteWork, "train", train)


def half_of_the_noise_from_the_round(patch):
    right = site_work.SiteWork.train

    def train(self, order, dataset, noise_multiplier):
        public = RandomStream.seeded(0, order.statement.run, self._name)

        def mixed(stream, count, deviation):
            return deviation * (stream.normal(count) + public.normal(count)) / 2**0.5

        with patch.context() as inner:
            inner.setattr(dpsgd, "gaussian_noise", mixed)
            return right(self, order, dataset, noise_multiplier)

    patch.setattr(site_work.SiteWork, "train", train)


def _secure(patch, key):
    patch.setattr(RandomStream, "secure", classmethod(lambda cls: cls(key())))


def keys_of_32_bits(patch):
    _secure(patch, lambda: os.urandom(4) * 8)


def keys_of_32_bits_of_a_longer_answer(patch):
    _secure(patch, lambda: zlib.crc32(os.urandom(32)).to_bytes(4, "big") * 8)


def keys_of_64_bits(patch):
    _secure(patch, lambda: os.urandom(8) * 4)


def keys_of_48_bits_behind_a_hash(patch):
    from fedllm.canonical import sha256

    _secure(patch, lambda: sha256(sha256(os.urandom(32))[:6]))


def keys_cut_inside_the_generator(patch):
    right = RandomStream.__init__
    patch.setattr(RandomStream, "__init__", lambda self, key: right(self, key[:6] + bytes(26)))


def keys_from_the_clock(patch):
    import time

    from fedllm.canonical import sha256

    _secure(patch, lambda: sha256(str(time.time_ns()).encode()))


def one_key_for_the_life_of_the_process(patch):
    key = os.urandom(32)
    _secure(patch, lambda: key)


def _noise(patch, drawn):
    for module in (dpsgd, whole, bounds, adaptive):
        patch.setattr(module, "gaussian_noise", drawn)


def noise_from_numpys_generator(patch):
    generator = np.random.default_rng()
    _noise(patch, lambda stream, count, deviation: generator.normal(0, deviation, count))


def shared_noise_from_numpys_generator(patch):
    generator = np.random.default_rng()
    patch.setattr(
        bounds,
        "gaussian_noise",
        lambda stream, count, deviation: generator.normal(0, deviation, count),
    )


def noise_from_torchs_generator(patch):
    _noise(patch, lambda stream, count, deviation: deviation * torch.randn(count).double().numpy())


def the_same_noise_at_every_attempt(patch):
    right = site_work.TrainingAtSite.train
    kept = {}

    def train(self, settings, sampling, noise):
        stream = RandomStream(kept.setdefault(len(self.dataset), os.urandom(32)))
        return right(self, settings, sampling, stream)

    patch.setattr(site_work.TrainingAtSite, "train", train)


def batches_from_the_runs_seed(patch):
    patch.setattr(
        Mechanism,
        "random",
        lambda self, *purpose: RandomStream.seeded(self._config.seed, *purpose),
    )


# --- the shape of the noise ----------------------------------------------------------------


def noise_in_half_precision(patch):
    right = dpsgd.gaussian_noise

    def coarse(stream, count, deviation):
        return right(stream, count, deviation).astype(np.float16).astype(np.float64)

    patch.setattr(dpsgd, "gaussian_noise", coarse)


def numbers_in_half_precision(patch):
    right = RandomStream.normal

    def coarse(self, count, parts=4):
        return right(self, count, parts).astype(np.float16).astype(np.float64)

    patch.setattr(RandomStream, "normal", coarse)


def numbers_of_16_bits(patch):
    right = RandomStream.uniform
    patch.setattr(RandomStream, "uniform", lambda self, n: np.floor(right(self, n) * 65536) / 65536)


def whole_updates_in_bfloat16(patch):
    right = whole_site.private_update

    def coarse(*terms):
        return torch.from_numpy(right(*terms)).bfloat16().float().numpy()

    patch.setattr(whole_site, "private_update", coarse)


def discrete_noise_cut_at_three_deviations(patch):
    from fedllm.privacy import discrete as drawing

    right = drawing.discrete_gaussian

    def cut(stream, count, deviation):
        drawn = right(stream, count, deviation)
        while (out := np.abs(drawn) > 3 * deviation).any():
            drawn[out] = right(stream, int(out.sum()), deviation)
        return drawn

    patch.setattr(discrete, "discrete_gaussian", cut)


def noise_cut_at_four_deviations(patch):
    right = noise.gaussian_noise

    def cut(stream, count, deviation):
        return np.clip(right(stream, count, deviation), -4 * deviation, 4 * deviation)

    _noise(patch, cut)


def room_for_a_part_of_the_noise(patch):
    patch.setattr(bounds, "TAIL_DEVIATIONS", 0.5)


# --- where there is none --------------------------------------------------------------------


def _without(patch, chosen):
    right = local.noised_mean

    def some(total, multiplier, norm, batch, stream):
        result = right(total, multiplier, norm, batch, stream)
        place = chosen(len(total))
        result[place] = total[place] / batch
        return result

    patch.setattr(local, "noised_mean", some)


def a_head_without_noise(patch):
    _without(patch, lambda length: slice(length - 99, None))


def a_bias_without_noise(patch):
    _without(patch, lambda length: slice(length - 99, length - 96))


def one_adapter_without_noise(patch):
    _without(patch, lambda length: slice(256, 512))


def every_tenth_value_without_noise(patch):
    _without(patch, lambda length: slice(None, None, 10))


def evaluation_without_noise(patch):
    patch.setattr(
        EvaluationSums, "noised", lambda self, total, norm, stream: total.astype(np.float32)
    )


def counts_of_evaluation_without_noise(patch):
    right = EvaluationSums.noised

    def some(self, total, norm, stream):
        sums = right(self, total, norm, stream)
        sums[0] = total[0]
        return sums

    patch.setattr(EvaluationSums, "noised", some)


def evaluation_of_nobody_without_noise(patch):
    right = EvaluationSums.noised

    def some(self, total, norm, stream):
        return right(self, total, norm, stream) if total.any() else total.astype(np.float32)

    patch.setattr(EvaluationSums, "noised", some)


def an_empty_batch_takes_no_step(patch):
    right = local.noised_mean

    def skipped(total, *terms):
        return right(total, *terms) if total.any() else np.zeros_like(total)

    patch.setattr(local, "noised_mean", skipped)


def an_empty_batch_of_integers_has_no_noise(patch):
    right = discrete.IntegerGrid.noised_levels

    def skipped(self, total, *terms):
        if total.any():
            return right(self, total, *terms)
        return np.full(len(total), self.half, dtype=np.uint64)

    patch.setattr(discrete.IntegerGrid, "noised_levels", skipped)


def noise_in_the_first_step_alone(patch):
    right, seen = local.noised_mean, {}

    def first(total, multiplier, norm, batch, stream):
        again = seen.get("stream") is stream
        seen["stream"] = stream
        return total / batch if again else right(total, multiplier, norm, batch, stream)

    patch.setattr(local, "noised_mean", first)


def no_noise_for_a_silent_site(patch):
    """A whole site whose training gave nothing sends nothing, without noise."""
    right = whole_site.private_update

    def silent(update, *terms):
        return right(update, *terms) if update.any() else update

    patch.setattr(whole_site, "private_update", silent)


# --- how much ---------------------------------------------------------------------------------


def less_noise_than_charged(patch):
    right = site_work.SiteWork.train
    patch.setattr(
        site_work.SiteWork,
        "train",
        lambda self, order, dataset, n: right(self, order, dataset, n and 0.9 * n),
    )


def sensitivity_of_one_evaluation_entry(patch):
    right = EvaluationSums.deviation
    patch.setattr(EvaluationSums, "deviation", lambda self, norm: right(self, 1.0))


def sensitivity_of_one_evaluation_block(patch):
    """What a unit adds beside the whole, to its part, is in no bound."""
    right = EvaluationSums.deviation

    def whole(self, norm):
        return right(self, norm / 2**0.5 if self._config.evaluation.parts else norm)

    patch.setattr(EvaluationSums, "deviation", whole)


def persons_whole_in_each_part(patch):
    """A person counts in each part that it has records in as if they were all there.

    What cuts its vector to the bound is gone too, or the noise would hide it all the same.
    """
    right = scores.UnitScores.of_records

    def uncut(self, vectors, unit):
        return np.sum([np.zeros(unit.length), *vectors], axis=0)

    patch.setattr(EvaluationSums, "total", uncut)

    def each(values, units, parts=None):
        found = right(values, units, parts)
        return replace(found, shares=np.ones(len(found.shares)))

    patch.setattr(scores.UnitScores, "of_records", each)


def records_of_no_part_told_in_the_first(patch):
    right = evaluating.parts_of

    def first(config, labels, dataset):
        found = right(config, labels, dataset)
        return found if found is None else np.maximum(found, 0)

    patch.setattr(site_work, "parts_of", first)


def losses_of_evaluation_without_a_limit(patch):
    def unbounded(kinds, values):
        rows = np.ones((len(values), scores.entries(kinds)))
        rows[:, 1:] = values / np.array([kind.limit for kind in kinds])
        return rows

    patch.setattr(scores, "unit_vectors", unbounded)


def records_of_persons_counted_in_evaluation(patch):
    from fedllm.federation.site import work

    right = work.scores_of_units

    def by_record(model, dataset, parts=None):
        alone = dataset and _each_by_itself(dataset)
        return right(model, alone, parts)

    patch.setattr(work, "scores_of_units", by_record)


def colluders_forgotten(patch):
    for module in (mechanism, evaluation, discrete):
        patch.setattr(module, "noise_shares", lambda config: config.rounds.min_sites)


def shares_that_suit_all_sites(patch):
    patch.setattr(Mechanism, "noise_share", property(lambda self: 3**-0.5))


def a_head_with_the_noise_of_its_own_norm(patch):
    """Head and adapters clipped one by one, each to the norm, and noised for one."""
    right = local._OneUnit._gradient

    def apart(self, rows, piece):
        gradient, norm = right(self, rows, piece), self.settings.clipping_norm
        slices = [segment.slice for segment in self.model.manifest.segments]
        return np.concatenate([dpsgd.clipped(gradient[each], norm).values for each in slices])

    patch.setattr(local._OneUnit, "_gradient", apart)
    patch.setattr(local, "clipped", lambda gradient, norm: ClippedGradient(gradient, 1.0))


# --- clipping and batches ---------------------------------------------------------------------


def clipping_by_microbatch(patch):
    right = local._gradient_sum

    def together(model, dataset, indices, settings, record, *others):
        total = np.zeros(model.manifest.length)
        for part in np.array_split(indices, max(1, len(indices) // 8)):
            loose = replace(settings, clipping_norm=1e12)
            found = right(model, dataset, part, loose, record, *others)
            total += dpsgd.clipped(found, max(1, len(part)) * settings.clipping_norm).values
        return total

    patch.setattr(local, "_gradient_sum", together)


def small_gradients_scaled_up(patch):
    """Clipped to a little more than the norm."""
    right = local.clipped
    patch.setattr(local, "clipped", lambda gradient, norm: right(gradient, 1.05 * norm))


def persons_clipped_record_by_record(patch):
    right = local.by_unit
    patch.setattr(
        local, "by_unit", lambda batch, units, rows: right(batch, np.arange(len(units)), rows)
    )


def _each_by_itself(dataset):
    return replace(dataset, units=np.arange(len(dataset)), number_of_units=len(dataset))


def persons_taken_for_records(patch):
    right = site_work.SiteWork.train
    patch.setattr(
        site_work.SiteWork,
        "train",
        lambda self, order, dataset, n: right(self, order, _each_by_itself(dataset), n),
    )


def one_batch_for_all_steps(patch):
    right, kept = local.poisson_batch, {}

    def once(units, number, rate, sampling):
        if kept.get("stream") is not sampling:
            kept.update(stream=sampling, batch=right(units, number, rate, sampling))
        return kept["batch"]

    patch.setattr(local, "poisson_batch", once)


def each_batch_used_for_two_steps(patch):
    right, kept = local.poisson_batch, {}

    def twice(units, number, rate, sampling):
        drawn = right(units, number, rate, sampling)
        if kept.get("stream") is sampling and kept.pop("again", None):
            return kept["batch"]
        kept.update(stream=sampling, batch=drawn, again=True)
        return drawn

    patch.setattr(local, "poisson_batch", twice)


def an_empty_batch_drawn_again(patch):
    right = local.poisson_batch

    def filled(units, number, rate, sampling):
        drawn = right(units, number, rate, sampling)
        while rate and not len(drawn):
            drawn = right(units, number, rate, sampling)
        return drawn

    patch.setattr(local, "poisson_batch", filled)


def samples_of_one_byte_for_each_unit(patch):
    def sample(self, population, rate):
        drawn = np.frombuffer(self.bytes(population), dtype=np.uint8)
        return np.flatnonzero(drawn < round(256 * rate)).astype(np.int64)

    patch.setattr(RandomStream, "poisson_sample", sample)


def batches_of_fixed_size(patch):
    def fixed(units, number, rate, sampling):
        chosen = sampling.permutation(number)[: round(rate * number)]
        return np.flatnonzero(np.isin(units, chosen)).astype(np.int64)

    patch.setattr(local, "poisson_batch", fixed)


def a_retry_with_the_same_batch_and_noise(patch):
    right, kept = site_work.SiteWork.train, {}

    def train(self, order, dataset, noise_multiplier):
        key = (order.statement.run, order.statement.round, order.key.fingerprint)
        if key not in kept:
            kept[key] = right(self, order, dataset, noise_multiplier)
        return kept[key]

    patch.setattr(site_work.SiteWork, "train", train)


def persons_held_out_in_part(patch):
    from fedllm.federation.protocol import evaluating

    right = evaluating.Holdout._holds
    patch.setattr(
        evaluating.Holdout, "_holds", lambda self, record: right(self, replace(record, unit=None))
    )


def masks_of_every_attempt_the_same(patch):
    from fedllm.encryption import masks

    right = masks.MaskScope.to_bytes
    patch.setattr(
        masks.MaskScope, "to_bytes", lambda self: right(replace(self, statement="0" * 64))
    )


def held_out_records_trained_on(patch):
    from fedllm.federation.site.data import Holdout

    right = Holdout.split
    patch.setattr(Holdout, "split", lambda self, r: (list(r), right(self, r)[1]))


def a_basis_made_of_private_gradients(patch):
    """A core in the directions that the site's own records ask for, which no noise hides."""
    from peft.tuners.lora import LoraLayer

    right = site_work.TrainingAtSite.train

    def train(self, settings, sampling, noise):
        module = self.model.module
        layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
        if self.model.method == "core":
            weights = [layer.get_base_layer().weight for layer in layers]
            for weight in weights:
                weight.requires_grad_(True)
            batch = self.dataset.batch(np.arange(len(self.dataset)))
            loss = local.record_losses(self.model, batch).sum()
            gradients = torch.autograd.grad(loss, weights)
            for layer, weight, gradient in zip(layers, weights, gradients, strict=True):
                weight.requires_grad_(False)
                left, _, down = torch.linalg.svd(gradient)
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                with torch.no_grad():
                    a.copy_(down[: len(a)])
                    b.copy_(left[:, : len(a)])
        return right(self, settings, sampling, noise)

    patch.setattr(site_work.TrainingAtSite, "train", train)


def another_a_than_the_one_that_was_sent(patch):
    """The site's own of the seed: what it contributes is no gradient of what all train."""
    right = site_work.TrainingAtSite.train

    def train(self, settings, sampling, noise):
        frozen = self.model.tensors.only("A")
        if self.model.method in ("eva", "fedsvd"):
            self.model.put(frozen, self.model.untrained(frozen))
        return right(self, settings, sampling, noise)

    patch.setattr(site_work.TrainingAtSite, "train", train)


# Each with a check that must see it.
NOISE = [
    (noise_from_the_rounds_public_key, "seeds of sites"),
    (half_of_the_noise_from_the_round, "seeds of sites"),
    (keys_of_32_bits, "generator"),
    (keys_of_32_bits_of_a_longer_answer, "generator"),
    (keys_of_64_bits, "seeds of noise"),
    (keys_of_48_bits_behind_a_hash, "seeds of noise"),
    (keys_cut_inside_the_generator, "generator"),
    (keys_from_the_clock, "seeds of noise"),
    (one_key_for_the_life_of_the_process, "seeds of noise"),
    (noise_from_numpys_generator, "seeds of noise"),
    (shared_noise_from_numpys_generator, "seeds of noise"),
    (noise_from_torchs_generator, "seeds of noise"),
    (the_same_noise_at_every_attempt, "noise of every block"),
    (batches_from_the_runs_seed, "seeds of noise"),
    (noise_in_half_precision, "noise arrives"),
    (numbers_in_half_precision, "normal numbers"),
    (numbers_of_16_bits, "uniform numbers"),
    (whole_updates_in_bfloat16, "noise arrives"),
    (discrete_noise_cut_at_three_deviations, "noise of every block"),
    (noise_cut_at_four_deviations, "noise arrives"),
    (room_for_a_part_of_the_noise, "noise as charged"),
    (a_head_without_noise, "noise of every block"),
    (a_bias_without_noise, "noise of every block"),
    (one_adapter_without_noise, "noise of every block"),
    (every_tenth_value_without_noise, "noise of every block"),
    (evaluation_without_noise, "evaluation"),
    (counts_of_evaluation_without_noise, "evaluation"),
    (evaluation_of_nobody_without_noise, "evaluation"),
    (an_empty_batch_takes_no_step, "noise of every block"),
    (an_empty_batch_of_integers_has_no_noise, "noise of every block"),
    (noise_in_the_first_step_alone, "noise of every block"),
    (no_noise_for_a_silent_site, "noise of every block"),
    (less_noise_than_charged, "noise as charged"),
    (sensitivity_of_one_evaluation_entry, "evaluation"),
    (sensitivity_of_one_evaluation_block, "evaluation"),
    (persons_whole_in_each_part, "evaluation"),
    (records_of_no_part_told_in_the_first, "evaluation"),
    (losses_of_evaluation_without_a_limit, "evaluation"),
    (records_of_persons_counted_in_evaluation, "evaluation"),
    (colluders_forgotten, "noise of every block"),
    (shares_that_suit_all_sites, "shared noise"),
    (a_head_with_the_noise_of_its_own_norm, "clipping of records"),
    (a_basis_made_of_private_gradients, "noise as charged"),
    (another_a_than_the_one_that_was_sent, "noise as charged"),
    (clipping_by_microbatch, "clipping of records"),
    (small_gradients_scaled_up, "clipping of records"),
    (persons_clipped_record_by_record, "clipping of persons"),
    (persons_taken_for_records, "rates"),
    (one_batch_for_all_steps, "batches of steps"),
    (each_batch_used_for_two_steps, "batches of steps"),
    (an_empty_batch_drawn_again, "sampling"),
    (samples_of_one_byte_for_each_unit, "uniform numbers"),
    (batches_of_fixed_size, "sampling"),
    (a_retry_with_the_same_batch_and_noise, "attempts"),
    (persons_held_out_in_part, "evaluation"),
    (masks_of_every_attempt_the_same, "masks"),
    (held_out_records_trained_on, "charges"),
]
