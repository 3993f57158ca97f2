"""A site's training against plain reference loops; each planted bug has a test that sees it."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from fedllm.errors import TrainingError
from fedllm.mechanisms import LocalSettings
from fedllm.mechanisms.bounds import update_bounds
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream
from fedllm.training import local
from fedllm.training.local import clipped_gradient_sum, train_locally
from fedllm.training.objectives import record_losses

ONE_STEP = LocalSettings(
    steps=1,
    sampling_rate=1.0,
    expected_batch_size=5.0,
    microbatch_size=64,
    optimizer="sgd",
    learning_rate=1.0,
    head_learning_rate=1.0,
    clipping_norm=0.5,
    noise_multiplier=0.0,
)
CASES = [
    ("bert", "classification"),
    ("gpt2", "causal"),
    ("llama", "instruction"),
    ("bert", "token_classification"),
]


def streams(seed=0):
    return RandomStream.seeded(seed, "sampling"), RandomStream.seeded(seed, "noise")


def train(model, data, settings, seed=0):
    return train_locally(model, data, settings, *streams(seed)).update


def gradient_of(model, data, indices):
    losses = record_losses(model, data.batch(np.asarray(indices)))
    parts = torch.autograd.grad(losses.sum(), model.trained)
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()


def clipped(vector, norm):
    return vector * min(1.0, norm / np.linalg.norm(vector))


@pytest.mark.parametrize("microbatch_size", [64, 3, 1])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_private_step_clips_each_record_however_the_batch_is_cut(
    kind, task, microbatch_size, tiny_model, random_dataset
):
    model, data = tiny_model(kind, task), random_dataset(8, task)
    settings = replace(ONE_STEP, microbatch_size=microbatch_size)
    expected = -sum(clipped(gradient_of(model, data, [i]), 0.5) for i in range(8)) / 5.0
    update = train(model, data, settings)
    assert np.linalg.norm(update - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("microbatch_size", [64, 2, 1])
def test_private_step_clips_a_persons_records_together(microbatch_size, tiny_model, random_dataset):
    persons = [0, 1, 0, 2, 1, 0, 2, 3]
    model, data = tiny_model("llama"), random_dataset(8, persons=persons)
    settings = replace(ONE_STEP, microbatch_size=microbatch_size)
    expected = np.zeros(model.manifest.length)
    for person in range(4):
        mine = [i for i in range(8) if persons[i] == person]
        expected -= clipped(gradient_of(model, data, mine), 0.5) / 5.0
    update = train(model, data, settings)
    assert np.linalg.norm(update - expected) <= 2e-3 * np.linalg.norm(expected)


def test_batch_as_a_whole_is_not_what_is_clipped(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(40)
    update = train(model, data, replace(ONE_STEP, expected_batch_size=1.0))
    # Forty clipped records pull partly the same way: far beyond one clipping norm.
    assert np.linalg.norm(update) > 2 * ONE_STEP.clipping_norm


@pytest.mark.parametrize("microbatch_size", [64, 1])
def test_noise_is_added_once_a_step_whatever_the_microbatches(
    microbatch_size, tiny_model, random_dataset
):
    model, data = tiny_model(), random_dataset(8)
    clean = replace(ONE_STEP, microbatch_size=microbatch_size)
    noisy = replace(clean, noise_multiplier=3.0)
    difference = train(model, data, noisy) - train(model, data, clean)
    deviation = 3.0 * 0.5 / 5.0
    noise = gaussian_noise(streams()[1], model.manifest.length, deviation)
    np.testing.assert_allclose(difference, -noise, atol=1e-6)
    assert difference.std() == pytest.approx(deviation, rel=0.3)


def test_empty_batches_still_take_steps_of_fresh_noise(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(8)
    settings = replace(ONE_STEP, steps=3, sampling_rate=1e-9, noise_multiplier=2.0)
    result = train_locally(model, data, settings, *streams())
    noise = streams()[1]
    drawn = [gaussian_noise(noise, model.manifest.length, 2.0 * 0.5 / 5.0) for _ in range(3)]
    np.testing.assert_allclose(result.update, -sum(drawn), atol=1e-6)
    assert result.statistics.empty_batches == 3
    assert result.statistics.records_seen == 0


def test_steps_draw_poisson_batches_of_their_own(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model(lora={"rank": 0, "last_layers": None}), random_dataset(60)
    drawn = []
    original = type(data).batch
    model.prefix.attach(data, np.arange(2), data.batch(np.arange(2)))

    def spy(self, indices):
        drawn.append(np.asarray(indices))
        return original(self, indices)

    monkeypatch.setattr(type(data), "batch", spy)
    settings = replace(ONE_STEP, steps=300, sampling_rate=0.2, learning_rate=1e-6)
    train(model, data, replace(settings, head_learning_rate=1e-6))
    sizes = np.array([len(batch) for batch in drawn])
    assert len(sizes) == 300
    assert sizes.var() == pytest.approx(60 * 0.2 * 0.8, rel=0.3)
    counts = np.bincount(np.concatenate(drawn), minlength=60)
    # Shuffled epochs would give every record the same count.
    assert counts.var() == pytest.approx(300 * 0.2 * 0.8, rel=0.5)


def test_plain_steps_follow_torch_adam(tiny_model, random_dataset):
    model, data = tiny_model("gpt2", "causal"), random_dataset(6, "causal")
    settings = replace(
        ONE_STEP,
        steps=4,
        optimizer="adam",
        learning_rate=0.01,
        noise_multiplier=None,
        expected_batch_size=6.0,
    )
    update = train(model, data, settings)
    before = model.adapter()
    oracle = torch.optim.Adam(model.trained, lr=0.01)
    for _ in range(4):
        oracle.zero_grad()
        record_losses(model, data.batch(np.arange(6))).mean().backward()
        oracle.step()
    np.testing.assert_allclose(update, model.adapter() - before, atol=3e-4)


def test_plain_gradient_is_not_clipped_and_head_has_its_own_rate(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(6)
    settings = replace(ONE_STEP, noise_multiplier=None, learning_rate=0.5, head_learning_rate=2.0)
    expected = -gradient_of(model, data, range(6)) / 5.0 * model.manifest.per_value(0.5, 2.0)
    assert np.linalg.norm(expected) > 2 * settings.clipping_norm
    update = train(model, data, settings)
    assert np.linalg.norm(update - expected) <= 2e-3 * np.linalg.norm(expected)


def test_two_steps_do_not_equal_one_twice(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(6)
    one = train(model, data, ONE_STEP)
    two = train(model, data, replace(ONE_STEP, steps=2))
    assert np.linalg.norm(two - 2 * one) > 1e-3


def test_same_streams_give_the_same_update_and_leave_the_model_alone(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(20)
    before = model.adapter()
    settings = replace(ONE_STEP, steps=3, sampling_rate=0.4, noise_multiplier=1.0)
    first = train(model, data, settings)
    assert np.array_equal(first, train(model, data, settings))
    assert not np.array_equal(first, train(model, data, settings, seed=1))
    assert np.array_equal(model.adapter(), before)


def test_new_adapters_train_though_some_gradients_start_at_zero(tiny_model, random_dataset):
    # B = 0 and a head of zeros stop gradients in the first steps; that is no fault.
    data = random_dataset(10)
    for steps in (1, 2, 3):
        model = tiny_model(trained=False)
        settings = replace(ONE_STEP, steps=steps, noise_multiplier=None)
        update = train(model, data, settings)
        moved = {s.name for s in model.manifest.segments if update[s.slice].any()}
        assert ("head.weight" in moved) is True
        assert any("lora_B" in name for name in moved) is (steps >= 2)
        assert any("lora_A" in name for name in moved) is (steps >= 3)


def disconnected(tiny_model):
    model = tiny_model()
    layer = next(m for m in model.module.modules() if hasattr(m, "lora_A"))
    layer.scaling["default"] = 0.0
    return model


def test_a_disconnected_adapter_is_refused(tiny_model, random_dataset):
    with pytest.raises(TrainingError, match=r"did not reach .*lora_A"):
        train(
            disconnected(tiny_model), random_dataset(10), replace(ONE_STEP, noise_multiplier=None)
        )


def test_a_private_step_says_what_looks_wrong_to_the_sites_own_log_alone(
    tiny_model, random_dataset
):
    model, data = disconnected(tiny_model), random_dataset(10)
    settings = replace(ONE_STEP, noise_multiplier=1.0)
    result = train_locally(model, data, settings, *streams())
    assert "did not reach" in result.statistics.problem
    assert result.update.any()
    _, statistics = clipped_gradient_sum(model, data, ONE_STEP, RandomStream.seeded(1))
    assert "did not reach" in statistics.problem


class Breaking:
    """A data set of whose records some make the model break off."""

    def __init__(self, inner, bad):
        self.inner, self.bad = inner, set(bad)
        self.units, self.number_of_units = inner.units, inner.number_of_units

    def __len__(self):
        return len(self.inner)

    def batch(self, indices):
        batch = self.inner.batch(indices)
        rows = [row for row, index in enumerate(indices) if int(index) in self.bad]
        # A token far beyond the embeddings.
        batch["input_ids"][rows, 0] = 10**9
        return batch


def without(data, bad):
    """Return the same units with nothing of the ``bad`` records in them."""
    kept = [i for i in range(len(data)) if i not in bad]
    lengths = np.diff(data.offsets)[kept]
    tokens = [data.tokens[data.offsets[i] : data.offsets[i + 1]] for i in kept]
    return replace(
        data,
        tokens=np.concatenate(tokens),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        targets=data.targets[kept],
        units=data.units[kept],
    )


@pytest.mark.parametrize("layers", [0, 1, None], ids=["head", "last layer", "all layers"])
@pytest.mark.parametrize("persons", [None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]], ids=["", "persons"])
def test_a_record_at_which_the_model_breaks_off_costs_no_other_unit_anything(
    tiny_model, random_dataset, persons, layers
):
    lora = {"rank": 0} if layers == 0 else {"last_layers": layers}
    model = tiny_model(lora=lora)
    data = random_dataset(10, persons=persons)
    bad = {3, 4} if persons is None else {2, 3}
    settings = replace(ONE_STEP, sampling_rate=1.0, microbatch_size=4)
    broken, seen = clipped_gradient_sum(
        model, Breaking(data, bad), settings, RandomStream.seeded(1)
    )
    expected, _ = clipped_gradient_sum(model, without(data, bad), settings, RandomStream.seeded(1))
    assert expected.any()
    np.testing.assert_allclose(broken, expected, rtol=0, atol=1e-5)
    if layers:
        return
    # Where the frozen part is kept, the record is no number there, and adds nothing as such.
    assert sum(seen.broken_units.values()) in (0, len(bad), 1)


def test_a_broken_record_counts_alike_whether_there_was_room_for_the_others_or_not(
    tiny_model, random_dataset, tmp_path, monkeypatch
):
    """Else a record that takes the room away would move what is counted of the broken ones."""
    found = []
    for room in ("memory", "disk", "missing"):
        monkeypatch.setenv("TMPDIR", str(tmp_path / room if room == "missing" else tmp_path))
        model = tiny_model(lora={"rank": 0})
        if room != "memory":
            model.prefix._budget_bytes = 0
        settings = replace(
            ONE_STEP,
            sampling_rate=1.0,
            noise_multiplier=1e-6,
            clipping_quantile=0.5,
            clipping_norm=3.0,
        )
        data = Breaking(random_dataset(10), {2, 3, 4, 5})
        result = train_locally(
            model, data, settings, RandomStream.seeded(1), RandomStream.seeded(2)
        )
        found.append((result.clipping_norm, result.update.tobytes()))
    assert found[0] == found[1] == found[2]


def test_a_library_that_breaks_off_is_counted_by_the_kind_of_its_error(
    tiny_model, random_dataset, monkeypatch
):
    def losses(model, batch):
        if bool((batch["labels"] == 0).any()):
            raise IndexError("the words of Mrs Example")
        return record_losses(model, batch)

    monkeypatch.setattr("fedllm.training.local.record_losses", losses)
    model, data = tiny_model(), random_dataset(10)
    settings = replace(ONE_STEP, sampling_rate=1.0)
    _, seen = clipped_gradient_sum(model, data, settings, RandomStream.seeded(1))
    zeros = int((data.targets == 0).sum())
    assert 0 < zeros < 10
    assert seen.broken_units == {"IndexError": zeros}
    assert seen.records_seen == 10 - zeros
    with pytest.raises(IndexError):
        train(model, data, replace(settings, noise_multiplier=None))


def test_an_empty_unit_is_sampled_like_any_other(tiny_model, random_dataset):
    data = random_dataset(10)
    fewer = without(data, {0, 9})
    assert fewer.number_of_units == 10
    model, settings = tiny_model(), replace(ONE_STEP, sampling_rate=0.5)
    seen = [
        clipped_gradient_sum(model, d, settings, RandomStream.seeded(2))[1].records_seen
        for d in (data, fewer)
    ]
    chosen = RandomStream.seeded(2).poisson_sample(10, 0.5)
    assert seen == [len(chosen), len(set(chosen.tolist()) - {0, 9})]


def test_whom_sampling_does_not_draw_nobody_misses(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(10)
    settings = replace(ONE_STEP, sampling_rate=1e-9, noise_multiplier=None)
    result = train_locally(model, data, settings, RandomStream.secure(), RandomStream.secure())
    assert not result.update.any()
    assert result.statistics.empty_batches == settings.steps


def test_steps_too_small_for_float32_are_refused(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(10)
    settings = replace(ONE_STEP, learning_rate=1e-50, noise_multiplier=None)
    with pytest.raises(TrainingError, match="did not reach"):
        train(model, data, settings)


def spoil(monkeypatch, records):
    original, seen = local.record_losses, count()

    def spoiled(model, batch):
        losses = original(model, batch)
        factors = [float("nan") if next(seen) < records else 1.0 for _ in losses]
        return losses * torch.tensor(factors)

    monkeypatch.setattr(local, "record_losses", spoiled)


def test_nan_losses_are_refused_and_the_model_restored(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model(), random_dataset(10)
    before = model.adapter()
    spoil(monkeypatch, 1)
    with pytest.raises(TrainingError, match="NaN"):
        train(model, data, replace(ONE_STEP, noise_multiplier=None))
    assert np.array_equal(model.adapter(), before)


@pytest.mark.parametrize("records", [1, 16])
def test_a_private_site_does_not_tell_by_refusing_that_records_have_no_gradient(
    records, tiny_model, random_dataset, monkeypatch
):
    model, data = tiny_model(), random_dataset(10)
    spoil(monkeypatch, records)
    settings = replace(ONE_STEP, noise_multiplier=1.0, microbatch_size=64)
    assert np.isfinite(train(model, data, settings)).all()
    spoil(monkeypatch, records)
    total, _ = local.clipped_gradient_sum(model, data, settings, RandomStream.seeded(1))
    assert np.isfinite(total).all()
    assert total.any() == (records < 10)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("noise_multiplier", [None, 0.7])
def test_updates_stay_within_their_bounds(optimizer, noise_multiplier, tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(30)
    settings = replace(
        ONE_STEP,
        steps=5,
        sampling_rate=0.5,
        expected_batch_size=15.0,
        optimizer=optimizer,
        noise_multiplier=noise_multiplier,
        learning_rate=0.01,
        head_learning_rate=0.03,
        clipping_norm=2.0,
    )
    update = np.abs(train(model, data, settings))
    bounds = update_bounds(settings, model.manifest.segments)
    shares = [
        update[s.slice].max() / bound
        for s, bound in zip(model.manifest.segments, bounds, strict=True)
    ]
    assert max(shares) <= 1.0
    # No bound is so wide that 16 bits would be wasted on it.
    assert min(shares) > 2e-3


def test_adam_bound_holds_for_the_worst_gradients():
    from fedllm.models.manifest import AdapterManifest
    from fedllm.training.optimizers import Optimizer

    manifest = AdapterManifest.of([("head.weight", (4,), "head")])
    for steps in (1, 3, 30):
        settings = replace(ONE_STEP, optimizer="adam", steps=steps)
        optimizer, vector = Optimizer("adam", np.ones(4)), np.zeros(4)
        for step in range(steps):
            # A last gradient far larger than all before it is the worst case of Adam.
            gradient = np.array([1.0, 10.0**step, (-1.0) ** step, 1e-3 if step < 20 else 1e6])
            vector = optimizer.step(vector, gradient)
        (bound,) = update_bounds(settings, manifest.segments)
        assert np.abs(vector).max() <= bound
        assert bound <= 1.5 * steps


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_audits_hear_each_noised_mean_before_the_optimiser(tiny_model, random_dataset, quantile):
    model, data = tiny_model("bert"), random_dataset(10)
    asked = LocalSettings(
        steps=3,
        sampling_rate=1.0,
        expected_batch_size=10.0,
        microbatch_size=8,
        optimizer="sgd",
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        clipping_norm=1.0,
        noise_multiplier=0.5,
        clipping_quantile=quantile,
    )
    heard = []
    streams = [RandomStream.seeded(1, purpose) for purpose in ("sampling", "noise")]
    result = train_locally(
        model, data, asked, *streams, released=lambda mean, norm: heard.append((mean, norm))
    )
    np.testing.assert_allclose(result.update, -1e-3 * sum(m for m, _ in heard), atol=1e-8)
    norms = [norm for _, norm in heard]
    assert norms[0] == 1.0
    assert (norms[1] != 1.0) == (quantile is not None)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_a_site_trains_has_the_whole_noise_and_the_whole_norm(
    optimizer, tiny_model, random_dataset
):
    """As if the model had no other values: those beyond take no norm, and have no noise."""
    model, data = tiny_model(), random_dataset(6)
    mine = np.random.default_rng(2).random(model.manifest.length) < 0.3
    settings = replace(ONE_STEP, noise_multiplier=0.8, optimizer=optimizer)
    seen = []
    update = train_locally(
        model,
        data,
        settings,
        *streams(),
        released=lambda gradient, norm: seen.append(gradient),
        trained=mine,
    ).update
    assert not update[~mine].any()
    # The same noise falls on the values that are trained, whatever else there is.
    noise = gaussian_noise(streams()[1], len(mine), 0.8 * 0.5)
    sums = sum(clipped(np.where(mine, gradient_of(model, data, [i]), 0), 0.5) for i in range(6))
    np.testing.assert_allclose(seen[0], np.where(mine, sums + noise, 0) / 5.0, atol=1e-5)
    plain = replace(ONE_STEP, noise_multiplier=None, optimizer=optimizer)
    update = train_locally(model, data, plain, *streams(), trained=mine).update
    assert not update[~mine].any()
    assert update[mine].any()
