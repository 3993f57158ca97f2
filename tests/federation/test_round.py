"""One round against an oracle that trains and averages in the open."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support.chance import standard_deviation_bounds
from support.federation import build, plain_means, quantisation_step, records, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.encryption.key_process import SecretKeyProcess
from fedllm.errors import BudgetError, ConfigError, PeerError, RefusedError, TrainingError
from fedllm.privacy.accounting.events import NonPrivate, PoissonGaussian
from fedllm.privacy.ledger.ledger import Ledger


def ledger_of(federation, name):
    identity = federation.identities[name]
    return Ledger.open(federation.folder / f"{name}.sqlite", name, identity)


@pytest.mark.parametrize(
    "encryption",
    [
        {"scheme": "bfv"},
        {"scheme": "bfv", "recover_dropouts": False},
        {"scheme": "bfv", "masks": False},
        {"scheme": "bfv", "bits": 8},
        {"scheme": "none"},
    ],
)
def test_the_opened_mean_is_the_mean_of_the_sites_updates(tiny_checkpoint, tmp_path, encryption):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), encryption=encryption))
    expected = plain_means(federation)
    outcome = federation.round()
    assert outcome.survivors == ("site-0", "site-1", "site-2")
    error = np.abs(outcome.mean - expected) / quantisation_step(federation)
    assert error.max() <= 1.0
    assert np.abs(expected).max() > 20 * quantisation_step(federation).min()


def test_ckks_gives_the_mean_up_to_its_flooding(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), encryption={"scheme": "ckks"})
    federation = build(tmp_path, config)
    expected = plain_means(federation)
    error = federation.round().mean - expected
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("asked", ["train", "ready"])
@pytest.mark.parametrize("lost", [["site-1"], ["site-0", "site-3"]])
def test_a_round_goes_on_exactly_without_the_sites_that_dropped_out(
    tiny_checkpoint, tmp_path, lost, asked
):
    config = small_config(tiny_checkpoint("bert"), data={"sites": 4})
    data = {f"site-{i}": records(40, seed=i) for i in range(4)}
    federation = build(tmp_path, config, data)
    left = [name for name in sorted(federation.sites) if name not in lost]
    expected = plain_means(federation, left)
    federation.tamper = lambda kind, name, m: None if kind == asked and name in lost else m
    outcome = federation.round()
    assert outcome.survivors == tuple(left)
    assert set(outcome.dropped) == set(lost)
    assert (np.abs(outcome.mean - expected) / quantisation_step(federation)).max() <= 1.0


def test_without_recovery_a_dropout_loses_the_round(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), encryption={"recover_dropouts": False})
    federation = build(tmp_path, config)
    federation.tamper = lambda kind, name, m: None if (kind, name) == ("train", "site-1") else m
    with pytest.raises(PeerError, match="dropped out"):
        federation.round()


def test_too_few_survivors_fail_the_round(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), rounds={"min_sites": 3}))
    federation.tamper = lambda kind, name, m: None if (kind, name) == ("train", "site-1") else m
    with pytest.raises(PeerError, match="2 sites can go on, 3 are needed"):
        federation.round()


def test_local_noise_is_reserved_before_and_committed_after_training(
    tiny_checkpoint, tmp_path, monkeypatch
):
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 4.0})
    federation = build(tmp_path, config)
    from fedllm.federation.site import work as site_work

    seen = []
    train = site_work.train_locally

    def watched(model, dataset, settings, sampling, noise, **more):
        seen.append((settings.noise_multiplier, settings.sampling_rate, settings.steps))
        found = [ledger_of(federation, n).events_of_run("run-1") for n in federation.sites]
        assert sum(map(len, found)) == len(seen), "reserved before it is trained"
        return train(model, dataset, settings, sampling, noise, **more)

    monkeypatch.setattr(site_work, "train_locally", watched)
    federation.round()
    for name in federation.sites:
        (event,) = ledger_of(federation, name).events_of_run("run-1")
        assert (event.noise_multiplier, event.sampling_rate, event.steps) in seen
        assert (event.sampling_rate, event.steps) == (8 / 40, 2)
        (account,) = ledger_of(federation, name).verify().accounts
        assert account.runs[0].committed == 1


def test_the_whole_run_keeps_its_epsilon_also_after_a_lost_round(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 2.0}, rounds={"count": 3})
    federation = build(tmp_path, config)
    federation.round(1, 1)
    federation.tamper = lambda kind, name, m: None if kind == "train" else m
    with pytest.raises(PeerError):
        federation.round(2, 2)
    federation.tamper = lambda kind, name, m: m
    federation.round(2, 3)
    federation.round(3, 4)
    events = ledger_of(federation, "site-0").events_of_run("run-1")
    noises = [event.noise_multiplier for event in events]
    assert len(noises) == 4
    assert noises[0] == noises[1] < noises[2] <= noises[3], "less is left, so there is more noise"
    from fedllm.privacy.accounting.accountants import epsilon

    assert epsilon(events, 1e-5).value <= 2.0


def test_distributed_noise_is_charged_in_both_views(tiny_checkpoint, tmp_path):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 3.0, "noise": "distributed"},
        rounds={"min_sites": 3},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.3},
    )
    federation = build(tmp_path, config)
    from fedllm.mechanisms import mechanism_of

    noise = mechanism_of(config).announced_noise(1, ())
    federation.round(noise_multiplier=noise)
    ledger = ledger_of(federation, "site-0")
    assert ledger.events("") == [PoissonGaussian(0.3, noise, 1)]
    (alone,) = ledger.events("", "colluders")
    assert alone.noise_multiplier == pytest.approx(noise / np.sqrt(3))
    with pytest.raises(RefusedError, match="does not keep the run's epsilon"):
        federation.round(2, 2, noise_multiplier=noise * 0.9)


def test_distributed_shares_add_up_to_the_whole_noise(tiny_checkpoint, tmp_path):
    from fedllm.mechanisms import mechanism_of

    norm = 1e-3
    config = small_config(
        tiny_checkpoint("bert"),
        lora={"rank": 16, "last_layers": 3},
        privacy={"epsilon": 0.01, "noise": "distributed", "clipping_norm": norm},
        rounds={"min_sites": 3, "count": 1},
        training={
            "local_steps": 1,
            "optimizer": "sgd",
            "sampling_rate": 0.3,
            "learning_rate": 1.0,
            "batch_size": 8,
        },
    )
    federation = build(tmp_path, config)
    noise = mechanism_of(config).announced_noise(1, ())
    mean = federation.round(noise_multiplier=noise).mean
    # Three shares of sigma/sqrt(3) give sigma in the sum; the mean over sites and batch follows.
    low, high = standard_deviation_bounds(len(mean), noise * norm / (3 * 8))
    # All 120 records in the batch, all pointing the same way, would add no more than this.
    signal = 120 * norm / (3 * 8) / np.sqrt(len(mean))
    assert signal < 0.05 * low
    assert low - signal < mean.std() < high + signal


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_whole_site_can_be_the_unit(tiny_checkpoint, tmp_path, noise):
    from fedllm.mechanisms import mechanism_of

    config = small_config(
        tiny_checkpoint("bert"),
        lora={"rank": 16, "last_layers": 3},
        privacy={"epsilon": 4.0, "unit": "site", "noise": noise, "clipping_norm": 1e-3},
        rounds={"min_sites": 3, "count": 3},
        training={"local_steps": 3, "optimizer": "adam"},
    )
    assert config.unit == "site"
    federation = build(tmp_path, config)
    announced = mechanism_of(config).announced_noise(1, ())
    mean = federation.round(noise_multiplier=announced).mean
    (event,) = ledger_of(federation, "site-0").events_of_run("run-1")
    assert (event.sampling_rate, event.steps) == (1.0, 1), "once a round, whatever the batches"
    assert announced in (None, event.noise_multiplier)
    shares = 3 if noise == "local" else 1
    deviation = event.noise_multiplier * 2e-3 * np.sqrt(shares) / 3
    low, high = standard_deviation_bounds(len(mean), deviation)
    signal = 1e-3 / np.sqrt(len(mean))  # at most, by the clipping norm
    assert signal < 0.05 * low
    assert low - signal < mean.std() < high + signal
    from fedllm.privacy.accounting.accountants import epsilon

    assert 3.9 < epsilon([event] * 3, 1e-5).value <= 4.0


def test_a_whole_site_does_not_tell_by_refusing_that_its_training_failed(
    tiny_checkpoint, tmp_path, monkeypatch
):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 4.0, "unit": "site", "clipping_norm": 0.01},
    )
    federation = build(tmp_path, config)

    def fails(*_, **__):
        raise TrainingError("a batch's gradient is NaN or infinite")

    monkeypatch.setattr("fedllm.federation.site.work.train_locally", fails)
    outcome = federation.round()
    assert outcome.dropped == {}
    assert np.isfinite(outcome.mean).all()
    assert outcome.mean.std() > 0


def test_a_site_as_the_unit_sends_no_more_than_the_clipping_norm(
    tiny_checkpoint, tmp_path, monkeypatch
):
    from fedllm.privacy import whole

    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 4.0, "unit": "site", "clipping_norm": 0.01},
        training={"local_steps": 3},
        encryption={"bits": 24},
    )
    federation = build(tmp_path, config)
    before = np.linalg.norm(plain_means(federation))
    monkeypatch.setattr(whole, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    sums = federation.round().mean * 3
    assert before > 0.02
    assert 0.003 < np.linalg.norm(sums) <= 3 * 0.01 * 1.01


def test_a_moving_clipping_norm_is_kept_over_rounds_and_charged_as_ever(
    tiny_checkpoint, tmp_path, monkeypatch
):
    from fedllm.federation.site import work as site_work

    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 8.0, "clipping_quantile": 0.5, "clipping_norm": 1e-4},
        training={"local_steps": 3},
        encryption={"scheme": "none"},
    )
    federation = build(tmp_path, config)
    norms = []
    train = site_work.train_locally

    def watched(model, dataset, settings, sampling, noise, **more):
        result = train(model, dataset, settings, sampling=sampling, noise=noise, **more)
        norms.append((settings.clipping_norm, result.clipping_norm))
        return result

    monkeypatch.setattr(site_work, "train_locally", watched)
    federation.round(1, 1)
    federation.round(2, 2)
    assert [start for start, _ in norms[:3]] == [1e-4] * 3
    assert [start for start, _ in norms[3:]] == [end for _, end in norms[:3]]
    assert all(start != end for start, end in norms)
    (first, second) = ledger_of(federation, "site-0").events_of_run("run-1")
    assert first == second == PoissonGaussian(0.2, first.noise_multiplier, 3)


def discrete(checkpoint, **sections):
    values = {
        "privacy": {"epsilon": 1.0, "noise": "distributed", "distribution": "discrete_gaussian"},
        "rounds": {"min_sites": 3, "count": 2},
        "training": {
            "local_steps": 1,
            "optimizer": "sgd",
            "sampling_rate": 0.5,
            "learning_rate": 1.0,
            "batch_size": 20,
        },
        "encryption": {"bits": 20},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return small_config(checkpoint, **values)


def test_discrete_shares_open_to_exactly_the_charged_noise_on_whole_steps(
    tiny_checkpoint, tmp_path
):
    norm = 1e-6
    wide = {"rank": 16, "last_layers": 3}
    privacy = {"clipping_norm": norm, "epsilon": 0.03}
    config = discrete(tiny_checkpoint("bert"), lora=wide, privacy=privacy)
    federation = build(tmp_path, config)
    from fedllm.mechanisms import mechanism_of

    noise = mechanism_of(config).announced_noise(1, ())
    mean = federation.round(noise_multiplier=noise).mean
    step = quantisation_step(federation)
    integers = mean * 3 / step
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-6)
    ledger = ledger_of(federation, "site-0")
    (event,) = ledger.events_of_run("run-1")
    assert (event.noise_multiplier, event.shares, event.length) == (noise, 3, len(mean))
    assert event.clipping_steps * step[0] * 20 == pytest.approx(norm), "divided by the batch"
    # The sum of three discrete Gaussians, many steps wide, is a Gaussian to within the bounds.
    low, high = standard_deviation_bounds(len(mean), event.share_deviation * np.sqrt(3))
    signal = 120 * event.clipping_steps / np.sqrt(len(mean))  # at most, of 120 records
    assert signal < 0.05 * low
    assert low - signal < integers.std() < high + signal
    (alone,) = ledger.events("", "colluders")
    assert (alone.shares, alone.share_deviation) == (1, event.share_deviation)
    assert alone.noise_multiplier == pytest.approx(noise / np.sqrt(3), rel=1e-3)


def test_discrete_noise_lies_around_the_sum_of_clipped_gradients(
    tiny_checkpoint, tmp_path, monkeypatch
):
    import fedllm.mechanisms.discrete as discrete_module
    from fedllm.federation.site import work as site_work

    config = discrete(tiny_checkpoint("bert"), privacy={"epsilon": 50.0})
    federation = build(tmp_path, config)
    totals = []
    summed = site_work.clipped_gradient_sum

    def watched(*arguments):
        total, statistics = summed(*arguments)
        totals.append(total)
        return total, statistics

    monkeypatch.setattr(site_work, "clipped_gradient_sum", watched)
    silent = lambda random, count, deviation: np.zeros(count, dtype=np.int64)  # noqa: E731
    monkeypatch.setattr(discrete_module, "discrete_gaussian", silent)
    from fedllm.mechanisms import mechanism_of

    mean = federation.round(noise_multiplier=mechanism_of(config).announced_noise(1, ())).mean
    expected = -np.sum(totals, axis=0) / 3 / 20
    assert np.abs(mean - expected).max() <= quantisation_step(federation).max()
    assert np.linalg.norm(expected) > 50 * quantisation_step(federation).max()


@pytest.mark.slow
def test_a_whole_discrete_run_keeps_its_epsilon_and_lost_attempts_count(tiny_checkpoint, tmp_path):
    from fedllm.mechanisms import mechanism_of
    from fedllm.privacy.accounting.accountants import epsilon

    config = discrete(tiny_checkpoint("bert"))
    federation = build(tmp_path, config)
    before: list[float] = []
    for number, attempt, lost in ((1, 1, True), (1, 2, False), (2, 3, False)):
        before.append(mechanism_of(config).announced_noise(number, before))
        federation.tamper = lambda kind, name, m, lost=lost: None if lost and kind == "train" else m
        if lost:
            with pytest.raises(PeerError):
                federation.round(number, attempt, noise_multiplier=before[-1])
        else:
            federation.round(number, attempt, noise_multiplier=before[-1])
    events = ledger_of(federation, "site-0").events_of_run("run-1")
    assert [event.noise_multiplier for event in events] == before
    assert before[0] < before[1] == before[2]
    assert 0.9 < epsilon(events, 1e-5).value <= 1.0


def test_a_grid_other_than_the_charged_one_is_refused(tiny_checkpoint, tmp_path):
    from dataclasses import replace

    from fedllm.mechanisms import mechanism_of

    config = discrete(tiny_checkpoint("bert"))
    federation = build(tmp_path, config)
    wider = tuple((size, 2 * bound) for size, bound in federation.terms.bounds)
    federation.terms = replace(federation.terms, bounds=wider)
    with pytest.raises(PeerError, match="not those that follow"):
        federation.round(noise_multiplier=mechanism_of(config).announced_noise(1, ()))


def test_too_few_bits_for_discrete_noise_are_named(tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="bits = 8 is too coarse"):
        build(tmp_path, discrete(tiny_checkpoint("bert"), encryption={"bits": 8}))


def test_a_run_over_the_ceiling_is_refused_before_any_training(
    tiny_checkpoint, tmp_path, monkeypatch
):
    from fedllm.federation.site import work as site_work

    monkeypatch.setattr(site_work, "train_locally", None)
    policy = SitePolicy(budget=BudgetSection(epsilon=1.0), allow=AllowSection(min_cohort=1))
    config = small_config(tiny_checkpoint("bert"), privacy={"epsilon": 2.0})
    federation = build(tmp_path, config, policy=policy)
    with pytest.raises(BudgetError, match="its ceiling is 1 at delta 1e-05") as caught:
        federation.round()
    assert caught.value.exit_code == 3
    assert [kind for kind, _ in federation.heard] == ["join"] * 3
    assert ledger_of(federation, "site-0").events_of_run("run-1") == []


def test_a_site_can_limit_what_everyone_else_could_learn_together(tiny_checkpoint, tmp_path):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 1.0, "noise": "distributed"},
        rounds={"min_sites": 3},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.3},
    )
    budget = BudgetSection(epsilon=1.0, colluders_epsilon=1.5)
    policy = SitePolicy(budget=budget, allow=AllowSection(min_cohort=1))
    federation = build(tmp_path, config, policy=policy)
    with pytest.raises(BudgetError, match="for everyone else colluding; its ceiling is"):
        federation.round()
    assert [kind for kind, _ in federation.heard] == ["join"] * 3


@pytest.mark.parametrize(
    ("sections", "allow", "words"),
    [
        ({}, {"non_private": False}, "allow.non_private"),
        ({"privacy": {"epsilon": 1.0}}, {"unit": "person"}, "allow.unit"),
        ({"encryption": {"scheme": "none"}}, {"encryption": "required"}, "allow.encryption"),
        ({"encryption": {"masks": False}}, {}, "allow.masks"),
        ({"encryption": {"scheme": "ckks"}}, {}, "allow.masks"),
        ({}, {"tasks": ["causal"]}, "allow.tasks"),
        ({}, {"models": ["00" * 32]}, "allow.models"),
        ({}, {"min_cohort": 3}, "allow.min_cohort"),
    ],
)
def test_what_the_policy_forbids_is_refused(tiny_checkpoint, tmp_path, sections, allow, words):
    allowed = {"min_cohort": 1, "encryption": "optional", "non_private": True, **allow}
    policy = SitePolicy(budget=BudgetSection(epsilon=100.0), allow=AllowSection(**allowed))
    config = small_config(tiny_checkpoint("bert"), **sections)
    federation = build(tmp_path, config, policy=policy)
    with pytest.raises(RefusedError, match=words):
        federation.round()
    (tmp_path / "quiet").mkdir()
    federation = build(tmp_path / "quiet", config, policy=policy, full_errors=False)
    with pytest.raises(RefusedError) as refused:
        federation.round()
    # The policy is never sent, not by its words either.
    assert words not in str(refused.value)
    assert "does not allow this" in str(refused.value)
    assert words in (tmp_path / "quiet" / "site-0.log").read_text()


def test_a_run_without_privacy_is_written_down_as_infinite(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    federation.round()
    ledger = ledger_of(federation, "site-0")
    assert ledger.events_of_run("run-1") == [NonPrivate()]
    assert ledger.spent("", 1e-5).value == float("inf")


def test_persons_are_the_unit_when_the_records_name_them(tiny_checkpoint, tmp_path):
    data = {f"site-{i}": records(40, seed=i, unit=lambda j: f"person-{j // 4}") for i in range(3)}
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 8.0},
        data={"unit": "patient"},
        training={"batch_size": 5},
    )
    federation = build(tmp_path, config, data)
    federation.round()
    (event,) = ledger_of(federation, "site-1").events_of_run("run-1")
    assert event.sampling_rate == 5 / 10, "ten persons, not forty records"


def test_a_loss_that_is_not_finite_is_never_released(tiny_checkpoint, tmp_path):
    config = small_config(
        tiny_checkpoint("bert"),
        training={"optimizer": "sgd", "learning_rate": 1e30, "local_steps": 3},
    )
    federation = build(tmp_path, config)
    with pytest.raises(TrainingError):
        federation.round()


def test_the_private_log_stays_at_the_site(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    answers = []

    def listen(kind, name, message):
        if not kind.endswith("request"):
            answers.append(message.to_wire()[0])
        return message

    federation.tamper = listen
    federation.round()
    line = json.loads((tmp_path / "site-0.log").read_text())
    assert line["records_seen"] > 0
    assert line["loss"] > 0
    everything = " ".join(answers)
    for word in ("loss", "records", "seconds", "norm"):
        assert word not in everything


def test_a_round_with_the_secret_key_in_a_process_of_its_own(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    federation.authority._make_key = SecretKeyProcess.generate
    expected = plain_means(federation)
    outcome = federation.round()
    step = quantisation_step(federation)
    assert (np.abs(outcome.mean - expected) <= step).all()


def test_a_survivor_that_signed_something_else_is_named_before_masks_are_asked_for(
    tiny_checkpoint, tmp_path
):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), rounds={"count": 1}))

    def other(kind, name, message):
        if (kind, name) == ("settle", "site-1"):
            header = message.header.model_copy(update={"signature": "00" * 64})
            return replace(message, header=header)
        return message

    federation.tamper = other
    with pytest.raises(PeerError, match="the signature of 'site-1' does not fit"):
        federation.round()
    assert ("settle", "site-2") in federation.heard
    assert "unmask" not in {kind for kind, _ in federation.heard}
