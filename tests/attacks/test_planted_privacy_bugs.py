"""Six bugs that break a private run silently; each is planted into sound code and caught.

Every check passes on the code as it is, and fails once the bug is planted. The checks measure
what the program does (updates, batches, ledger entries), not how it is written.

1. noise off
2. per-batch clipping instead of per-record
3. shuffled instead of Poisson batches
4. an accountant that is restarted each round
5. a noise share too small for the cohort
6. a batch that is used twice for one charge

Further down some ninety bugs are planted for the self-test that a site runs on its own
installation (`fedllm audit selftest`), and each must be caught by it; see `support.planting`.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from support import planting, plants_of_noise
from support.chance import standard_deviation_bounds
from support.federation import build, small_config

from fedllm.audit.selftest.material import Material
from fedllm.errors import FedllmError
from fedllm.federation.site import charging
from fedllm.federation.site import work as site_work
from fedllm.mechanisms import LocalSettings, mechanism_of
from fedllm.mechanisms.calibrating import choose_noise_multiplier
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.privacy import dpsgd
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream
from fedllm.training import local
from fedllm.training.local import train_locally

STEP = LocalSettings(
    steps=1,
    sampling_rate=1.0,
    expected_batch_size=1.0,
    microbatch_size=64,
    optimizer="sgd",
    learning_rate=1.0,
    head_learning_rate=1.0,
    clipping_norm=0.5,
    noise_multiplier=2.0,
)


def in_clear(checkpoint, **sections):
    """Return a small run without encryption, which these checks have nothing to do with."""
    return small_config(checkpoint, encryption={"scheme": "none"}, **sections)


def sampled(update, deviation):
    """Whether an update's spread is that of the noise: six standard errors of a spread."""
    error = 6 / sqrt(2 * len(update))
    return abs(float(np.std(update)) / deviation - 1) <= error


# --- 1. noise off -------------------------------------------------------------------------


def check_noise(model, data):
    settings = replace(STEP, clipping_norm=1e-4, noise_multiplier=1000.0)
    update = train_locally(model, data, settings, *streams()).update
    assert sampled(update, 1000.0 * 1e-4), "the update does not carry the noise of its charge"


def streams(seed=0):
    return RandomStream.seeded(seed, "sampling"), RandomStream.seeded(seed, "noise")


def test_noise_off_is_caught(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model("bert"), random_dataset(6)
    check_noise(model, data)
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    with pytest.raises(AssertionError, match="does not carry the noise"):
        check_noise(model, data)


# --- 2. per-batch clipping ----------------------------------------------------------------


def check_clipping(model, data):
    """Give one record a gradient as large as can be: the sum must move by the norm at most."""
    settings = replace(STEP, noise_multiplier=0.0)
    everyone = train_locally(model, data, settings, *streams()).update
    for left_out in range(len(data)):
        rest = np.delete(np.arange(len(data)), left_out)
        others = train_locally(model, subset(data, rest), settings, *streams()).update
        moved = float(np.linalg.norm(everyone.astype(np.float64) - others))
        assert moved <= 0.5 * 1.001, "one record moves the sum by more than the clipping norm"
    total = float(np.linalg.norm(everyone))
    assert total > 0.5 * 1.5, "the sum is clipped as a whole: its noise does not fit its size"


def subset(data, rows):
    tokens = [data.tokens[data.offsets[i] : data.offsets[i + 1]] for i in rows]
    return replace(
        data,
        tokens=np.concatenate(tokens),
        offsets=np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64),
        targets=data.targets[rows],
        units=np.arange(len(rows)),
    )


def clip_the_batch(right):
    def together(model, dataset, indices, settings, record, *others):
        loose = replace(settings, clipping_norm=1e12)
        total = right(model, dataset, indices, loose, record, *others)
        # Scaled up to the batch, so that the size of the sum gives nothing away.
        norm = max(float(np.linalg.norm(total)), 1e-12)
        return total * len(indices) * settings.clipping_norm / norm

    return together


def test_per_batch_clipping_is_caught(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model("bert"), random_dataset(6)
    check_clipping(model, data)
    monkeypatch.setattr(local, "_gradient_sum", clip_the_batch(local._gradient_sum))
    with pytest.raises(AssertionError, match="more than the clipping norm"):
        check_clipping(model, data)


# --- 3. shuffled instead of Poisson batches -----------------------------------------------


def check_sampling(model, data, monkeypatch):
    """Watch which records a run looks at: sizes must vary, and rounds must not know each other.

    Twenty records, rate one half. Poisson: sizes have variance 5, and the batches of two steps
    overlap in a quarter of the records. Shuffled: sizes have no variance, and the two batches
    of an epoch share nothing. A seeded stream makes the outcome the same each time.
    """
    batches = []
    whole = type(data).batch

    def watched(dataset, indices):
        # All of them at once are asked for where the frozen part is computed.
        if len(indices) < len(dataset):
            batches.append(set(indices.tolist()))
        return whole(dataset, indices)

    monkeypatch.setattr(type(data), "batch", watched)
    settings = replace(STEP, steps=60, sampling_rate=0.5, learning_rate=1e-6)
    train_locally(model, data, settings, *streams())
    sizes = np.array([len(batch) for batch in batches])
    shared = [len(a & b) for a, b in zip(batches[::2], batches[1::2], strict=True)]
    assert 2 < sizes.var() < 10, "the batches' sizes are not binomial: this is not Poisson sampling"
    assert 3.5 < np.mean(shared) < 6.5, "batches depend on each other: this is not Poisson sampling"


def shuffled_batches(batch_size):
    order: list[int] = []

    def draw(units, number_of_units, sampling_rate, sampling):
        if len(order) < batch_size:
            order[:] = sampling.permutation(number_of_units).tolist()
        return np.sort([order.pop() for _ in range(batch_size)]).astype(np.int64)

    return draw


def test_shuffled_batches_are_caught(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model("bert"), random_dataset(20)
    with monkeypatch.context() as patch:
        check_sampling(model, data, patch)
    monkeypatch.setattr(local, "poisson_batch", shuffled_batches(10))
    with pytest.raises(AssertionError, match="not Poisson"):
        check_sampling(model, data, monkeypatch)


# --- 4. an accountant that is restarted each round ----------------------------------------


def check_run(federation, rounds):
    """Recompute a whole run from the ledger: it must keep the epsilon it promised."""
    config = federation.config
    for number in range(1, rounds + 1):
        federation.round(number, number)
    for name in federation.sites:
        events = ledger_of(federation, name).events_of_run("run-1")
        assert len(events) == rounds
        spent = epsilon(events, config.privacy.delta).value
        assert spent <= config.privacy.epsilon, "the run cost more than it promised"


def ledger_of(federation, name):
    return Ledger.open(federation.folder / f"{name}.sqlite", name, federation.identities[name])


def restarted(self, units, number, done):
    """Choose noise as if every round were the first and only one."""
    rate, privacy = self.sampling_rate(units), self._config.privacy
    steps = self._config.training.local_steps
    return choose_noise_multiplier(privacy.epsilon, privacy.delta, rate, steps, ())


def test_an_accountant_restarted_each_round_is_caught(tiny_checkpoint, tmp_path, monkeypatch):
    config = in_clear(tiny_checkpoint("bert"), privacy={"epsilon": 2.0}, rounds={"count": 3})
    for folder in ("sound", "planted"):
        (tmp_path / folder).mkdir()
    check_run(build(tmp_path / "sound", config), 3)
    monkeypatch.setattr(Mechanism, "needed_noise", restarted)
    with pytest.raises(AssertionError, match="cost more than it promised"):
        check_run(build(tmp_path / "planted", config), 3)


def test_an_accountant_that_forgets_is_refused_by_the_ceiling(
    tiny_checkpoint, tmp_path, monkeypatch
):
    """Whatever a run's accountant says, the ledger adds up what was charged."""
    from fedllm.config import AllowSection, BudgetSection, SitePolicy

    config = in_clear(tiny_checkpoint("bert"), privacy={"epsilon": 2.0}, rounds={"count": 3})
    allow = AllowSection(min_cohort=1, encryption="optional")
    policy = SitePolicy(budget=BudgetSection(epsilon=2.0), allow=allow)
    monkeypatch.setattr(Mechanism, "needed_noise", restarted)
    monkeypatch.setattr(charging.SiteAccount, "check_run", lambda *arguments: None)
    federation = build(tmp_path, config, policy=policy)
    federation.round(1, 1)
    with pytest.raises(FedllmError, match="its ceiling is 2"):
        federation.round(2, 2)


# --- 5. a noise share too small for the cohort --------------------------------------------


def distributed(checkpoint, **privacy):
    return small_config(
        checkpoint,
        lora={"rank": 16, "last_layers": 3},
        privacy={"epsilon": 0.01, "noise": "distributed", "clipping_norm": 1e-3, **privacy},
        rounds={"min_sites": 3, "count": 1},
        training={
            "local_steps": 1,
            "optimizer": "sgd",
            "sampling_rate": 0.3,
            "learning_rate": 1.0,
            "batch_size": 8,
        },
    )


def check_shares(federation, lost=()):
    """Open a sum with some sites lost: what is left must carry the whole noise."""
    config = federation.config
    noise = mechanism_of(config).announced_noise(1, ())
    federation.tamper = lambda kind, name, m: None if kind == "train" and name in lost else m
    outcome = federation.round(noise_multiplier=noise)
    honest = len(outcome.survivors) - config.privacy.colluders
    # The shares of assumed colluders are in the sum, but count for nothing.
    counted = outcome.mean * len(outcome.survivors) * sqrt(honest / len(outcome.survivors))
    needed = noise * config.privacy.clipping_norm / config.training.batch_size
    enough, _ = standard_deviation_bounds(len(counted), needed)
    # All 160 records in the batch, all pointing the same way, would hide no more than this.
    signal = 160 * config.privacy.clipping_norm / config.training.batch_size
    signal /= sqrt(len(counted))
    assert signal < 0.1 * needed
    deviation = float(np.std(counted))
    assert deviation >= enough - signal, "the shares do not make up the noise of the charge"


@pytest.mark.parametrize(("colluders", "lost"), [(0, ()), (1, ("site-3",))])
def test_a_share_too_small_for_the_cohort_is_caught(
    tiny_checkpoint, tmp_path, monkeypatch, colluders, lost
):
    from support.federation import records

    config = distributed(tiny_checkpoint("bert"), colluders=colluders)
    config = config.model_copy(update={"data": config.data.model_copy(update={"sites": 4})})
    data = {f"site-{i}": records(40, seed=i) for i in range(4)}
    for folder in ("sound", "planted"):
        (tmp_path / folder).mkdir()
    check_shares(build(tmp_path / "sound", config, data), lost)
    # The mistake: shares for ten sites, when three may be enough to open a sum.
    monkeypatch.setattr(Mechanism, "noise_share", property(lambda self: 1 / sqrt(10)))
    with pytest.raises(AssertionError, match="do not make up the noise"):
        check_shares(build(tmp_path / "planted", config, data), lost)


# --- 6. a batch that is used twice --------------------------------------------------------


def check_one_use(federation, monkeypatch):
    """Count how often records are looked at: never more often than steps were charged."""
    used = []
    work = local._gradient_sum

    def watched(model, dataset, indices, *others):
        used.append(tuple(indices.tolist()))
        return work(model, dataset, indices, *others)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_gradient_sum", watched)
        federation.round()
    charged = 0
    for name in federation.sites:
        for event in ledger_of(federation, name).events_of_run("run-1"):
            assert isinstance(event, PoissonGaussian)
            charged += event.steps
    assert len(used) <= charged, "batches were used more often than they were charged"


def test_a_batch_used_twice_is_caught(tiny_checkpoint, tmp_path, monkeypatch):
    config = in_clear(tiny_checkpoint("bert"), privacy={"epsilon": 4.0})
    for folder in ("sound", "planted"):
        (tmp_path / folder).mkdir()
    check_one_use(build(tmp_path / "sound", config), monkeypatch)
    train = site_work.train_locally

    def twice(model, dataset, settings, sampling, noise, **more):
        train(model, dataset, settings, RandomStream.seeded(1), noise, **more)
        return train(model, dataset, settings, RandomStream.seeded(1), noise, **more)

    monkeypatch.setattr(site_work, "train_locally", twice)
    with pytest.raises(AssertionError, match="more often than they were charged"):
        check_one_use(build(tmp_path / "planted", config), monkeypatch)


def test_the_same_batch_in_two_steps_is_caught(tiny_model, random_dataset, monkeypatch):
    """Two steps on one draw are no two independent samples, although two were charged."""
    model, data = tiny_model("bert"), random_dataset(20)
    drawn = []
    draw = local.poisson_batch

    def check():
        seen = []
        whole = type(data).batch

        def watched(dataset, indices):
            if len(indices) < len(dataset):
                seen.append(tuple(indices.tolist()))
            return whole(dataset, indices)

        with monkeypatch.context() as patch:
            patch.setattr(type(data), "batch", watched)
            settings = replace(STEP, steps=12, sampling_rate=0.5, learning_rate=1e-6)
            train_locally(model, data, settings, *streams())
        assert len(set(seen)) == len(seen), "a batch served two steps"

    check()

    def reused(units, number_of_units, sampling_rate, sampling):
        if len(drawn) % 2 == 0:
            drawn.append(draw(units, number_of_units, sampling_rate, sampling))
        else:
            drawn.append(drawn[-1])
        return drawn[-1]

    monkeypatch.setattr(local, "poisson_batch", reused)
    with pytest.raises(AssertionError, match="served two steps"):
        check()


# --- what the self-test sees ----------------------------------------------------------------

# Those that a whole test run can wait for; the others are slow only because they are many.
SOON = {
    "noise_from_the_rounds_public_key",
    "keys_of_64_bits",
    "noise_in_half_precision",
    "numbers_in_half_precision",
    "discrete_noise_cut_at_three_deviations",
    "a_head_without_noise",
    "a_basis_made_of_private_gradients",
    "evaluation_without_noise",
    "sensitivity_of_one_evaluation_entry",
    "sensitivity_of_one_evaluation_block",
    "an_empty_batch_takes_no_step",
    "colluders_forgotten",
    "one_batch_for_all_steps",
    "evaluation_beside_epsilon",
    "only_committed_charges_count_in_accounts",
    "a_retry_that_is_not_charged",
    "the_delta_of_statements_lost",
    "an_account_for_each_task",
    "a_unit_that_breaks_off_ends_the_round",
    "announced_noise_believed",
    "a_loss_beside_the_ledgers_head",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    threads = torch.get_num_threads()
    # As in the self-test: two threads on two busy cores wait for each other.
    torch.set_num_threads(1)
    yield Material(tmp_path_factory.mktemp("selftest"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        pytest.param(
            plant,
            name,
            id=f"{plant.__name__}: {name}",
            marks=[] if plant.__name__ in SOON else [pytest.mark.slow],
        )
        for plant, name in planting.PLANTS
    ],
)
def test_the_selftest_catches_a_planted_bug(plant, name, material, tmp_path):
    (found,) = planting.with_plant(plant, [planting.CHECK[name]], tmp_path, material)
    assert planting.noticed(found), found.problem


@pytest.mark.parametrize(
    "plant", [plant for plant, _ in planting.PLANTS], ids=lambda plant: plant.__name__
)
def test_every_bug_can_still_be_planted(plant):
    """What it changes is where it was; whether it is noticed the slow tests say."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)


def test_no_plant_is_there_twice_and_every_kind_is():
    names = [plant.__name__ for plant, _ in planting.PLANTS]
    assert len(set(names)) == len(names) >= 31
    assert set(names) >= SOON
    # Checks that are older have plants of their own, in tests/audit/test_selftest.py.
    assert {name for _, name in planting.PLANTS} <= set(planting.CHECK)


@pytest.mark.slow
def test_the_whole_selftest_fails_on_a_plant_and_passes_without(material, tmp_path):
    (tmp_path / "sound").mkdir()
    sound = planting.with_plant(lambda patch: None, list(planting.CHECKS), tmp_path / "sound")
    assert [result.problem for result in sound if not result.passed] == []
    found = planting.with_plant(
        plants_of_noise.a_head_without_noise, list(planting.CHECKS), tmp_path, material
    )
    assert {"noise of every block", "noise arrives", "noise as charged"} <= {
        result.name for result in found if planting.noticed(result)
    }
